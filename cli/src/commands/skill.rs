//! `skill`: instructions that the mesh shares.

use crate::args::SkillCommand;
use crate::failure::Failure;
use crate::here::Here;

pub async fn skill(_here: &Here, _args: &SkillCommand) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
