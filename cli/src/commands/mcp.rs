//! `mcp`: the roles that an MCP client starts.

use crate::args::McpArgs;
use crate::failure::Failure;
use crate::here::Here;

pub async fn mcp(_here: &Here, _args: &McpArgs) -> Result<(), Failure> {
    Err(Failure::platform("not yet"))
}
