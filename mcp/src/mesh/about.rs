//! How the mesh presents itself to a client.

use serde_json::json;

use super::splice;
use crate::front::About;

const INSTRUCTIONS: &str = "\
This server is a mesh: MCP servers that a team hosts once and shares.
- Tools named svc__SERVICE__TOOL belong to services of the mesh; call them like any other tool. They come and go as services are \
deployed, shared or removed.
- A tool that is not in your list can be called with mesh_tool_call {server_name, tool_name, args}; mesh_mcp_catalog lists the \
services, mesh_mcp_schema shows a service's tools and their inputs.
- To host a server for everybody use mesh_mcp_deploy (npx_package, uvx_package, git_url or path); it is private until \
mesh_mcp_scope widens it. When it fails, mesh_mcp_logs says why.
- Never put a secret into `env`: store it with vault_set from a file or an environment variable, and write $vault:KEY.
- Skills of the mesh are the prompts of this server and its skill:// resources; get_skill reads one.
- mesh_mcp_register lends a server of this machine to the others while this session lives.";

pub fn mesh() -> About {
    About {
        server_info: server_info(),
        capabilities: splice::of(&json!({
            "tools": { "listChanged": true },
            "prompts": { "listChanged": true },
            "resources": { "listChanged": true },
            "extensions": { "io.modelcontextprotocol/skills": {} },
        })),
        instructions: Some(INSTRUCTIONS.to_owned()),
        // Its services' questions are passed to the client one by one.
        is_modern: false,
    }
}

pub fn server_info() -> wire::RawJson {
    splice::of(&json!({ "name": "claudemesh", "title": "claudemesh", "version": env!("CARGO_PKG_VERSION") }))
}
