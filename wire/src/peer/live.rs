//! Live servers: MCP servers that a peer runs on its own machine and lends to the mesh (peer-protocol reference §3.13,
//! hosting reference §1.17).

use serde::{Deserialize, Serialize};

use super::body;
use crate::RawJson;

/// Lends a server. The name belongs to the member that registered it first, until they unregister it; a hosted service's
/// name is taken. The same member may register it again, from this or another connection: the last one serves.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpRegister {
    pub server_name: String,
    pub description: String,
    /// Whole tool definitions.
    pub tools: Vec<RawJson>,
    /// Stays listed, as offline, when its host goes; it is there again when the same member registers it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpRegisterAck {
    pub server_name: String,
    pub tool_count: usize,
}

/// By the member whose name it is, or an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpUnregister {
    pub server_name: String,
}

/// *Ours*: the original answers nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpUnregisterAck {
    pub server_name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpList {}

#[derive(Debug, Serialize, Deserialize)]
pub struct McpListResult {
    pub servers: Vec<LiveServer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveServer {
    pub name: String,
    pub description: String,
    /// Display name of the member.
    pub hosted_by: String,
    /// Whole definitions (the original cut them to name and description).
    pub tools: Vec<RawJson>,
    pub online: bool,
    /// ISO 8601, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_since: Option<String>,
    /// *Ours*.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// *Ours*: whether it is the caller's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

/// Broker → host, without `_reqId`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpCallForward {
    /// Random.
    pub call_id: String,
    pub server_name: String,
    pub tool_name: String,
    pub args: RawJson,
    pub caller_name: String,
}

/// Host → broker; taken from the connection that was asked and from no other. No answer of its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpCallResponse {
    pub call_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// *Ours*, broker → host: nobody waits for this call any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpCallForwardCancel {
    pub call_id: String,
}

/// `eventData` of `mcp_registered`, to the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpRegistered {
    pub server_name: String,
    pub description: String,
    /// Names.
    pub tools: Vec<String>,
    pub hosted_by: String,
}

/// `eventData` of `mcp_unregistered` (also when an ephemeral one went with its host) and `mcp_restored`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpLiveEvent {
    pub server_name: String,
    pub hosted_by: String,
}

body! {
    McpRegister = "mcp_register";
    McpRegisterAck = "mcp_register_ack";
    McpUnregister = "mcp_unregister";
    McpUnregisterAck = "mcp_unregister_ack";
    McpList = "mcp_list";
    McpListResult = "mcp_list_result";
    McpCallForward = "mcp_call_forward";
    McpCallResponse = "mcp_call_response";
    McpCallForwardCancel = "mcp_call_forward_cancel";
}
