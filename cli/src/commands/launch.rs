//! `launch`: Claude Code in the mesh.

use crate::args::LaunchArgs;
use crate::failure::Failure;
use crate::here::Here;

pub async fn launch(_here: &Here, _args: &LaunchArgs) -> Result<u8, Failure> {
    Err(Failure::platform("not yet"))
}
