//! `hook`: what the session is doing.

use crate::args::HookArgs;
use crate::failure::Failure;
use crate::here::Here;

pub async fn hook(_here: &Here, _args: &HookArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
