//! `share`: an MCP server of this machine, lent to the mesh.

use crate::args::ShareArgs;
use crate::failure::Failure;
use crate::here::Here;

pub async fn share(_here: &Here, _args: &ShareArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
