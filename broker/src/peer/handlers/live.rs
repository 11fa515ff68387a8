//! Live servers: registering, taking back, listing, and answers of hosts.

use wire::peer::live::{
    McpCallResponse, McpListResult, McpRegister, McpRegisterAck, McpUnregister, McpUnregisterAck,
};

use crate::error::FrameError;
use crate::live;
use crate::peer::dispatch::{Asked, body};

/// Handles `kind`; `None` when it is no frame of live servers.
pub async fn handle(kind: &str, asked: &Asked, text: &str) -> Option<Result<(), FrameError>> {
    match kind {
        "mcp_register" | "mcp_unregister" | "mcp_list" | "mcp_call_response" => {
            Some(route(kind, asked, text).await)
        }
        _ => None,
    }
}

async fn route(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    match kind {
        "mcp_register" => register(asked, body(text)?).await?,
        "mcp_unregister" => unregister(asked, body(text)?).await?,
        "mcp_list" => list(asked).await,
        _ => asked.broker.live.answer(asked.presence.conn, body::<McpCallResponse>(text)?),
    }
    Ok(())
}

async fn register(asked: &Asked, frame: McpRegister) -> Result<(), FrameError> {
    let (name, tool_count) = live::register(&asked.broker, (&asked.presence, &asked.caller), frame).await?;
    asked.answer(&McpRegisterAck { server_name: name.to_string(), tool_count }).await;
    Ok(())
}

async fn unregister(asked: &Asked, frame: McpUnregister) -> Result<(), FrameError> {
    let taken = live::unregister(&asked.broker, (&asked.presence, &asked.caller), &frame.server_name);
    let server_name = taken.await?.to_string();
    // The original answers nothing, and its clients may take an answer without an id for something else.
    if asked.req_id.is_some() {
        asked.answer(&McpUnregisterAck { server_name }).await;
    }
    Ok(())
}

/// Every member may call each of them, so every member sees them all.
async fn list(asked: &Asked) {
    let servers = asked.broker.live.list(&asked.presence.mesh, &asked.caller.member);
    asked.answer(&McpListResult { servers }).await;
}
