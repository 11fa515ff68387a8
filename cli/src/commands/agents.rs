//! `connect`, `disconnect`, `import`: configuration of MCP clients.

use crate::args::{ConnectArgs, ImportArgs};
use crate::failure::Failure;
use crate::here::Here;

pub async fn connect(_here: &Here, _args: &ConnectArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}

pub async fn disconnect(_here: &Here, _args: &ConnectArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}

pub async fn import(_here: &Here, _args: &ImportArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
