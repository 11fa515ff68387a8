//! Calling a service (peer-protocol reference §3.13; hosting reference §1.15): camelCase, as in the original.

use serde::{Deserialize, Serialize};

use super::body;
use crate::{ErrorCode, RawJson};

/// `mcp_call`. `deadlineMs` and `meta` are *ours*.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpCall {
    pub server_name: String,
    pub tool_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<RawJson>,
    /// Milliseconds; default 30,000, at most 600,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// `_meta` of the MCP request. With a `progressToken` the caller gets `mcp_request_event` frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<RawJson>,
}

/// `result` is the raw MCP result object. `code`, `stderr` and `rpc` are *ours*.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct McpCallResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
    /// The server's own JSON-RPC error object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpc: Option<RawJson>,
}

/// *Ours*: any MCP request (`tools/call`, `prompts/get`, `resources/read`, `completion/complete`), params untouched.
/// Answered by zero or more `mcp_request_event` and `mcp_ask`, and one `mcp_request_result`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpRequest {
    pub server_name: String,
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<RawJson>,
    /// Milliseconds; default 30,000, at most a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The caller answers what the server asks of its client meanwhile (elicitation, sampling, roots): [`McpAsk`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
}

/// *Ours*, broker → caller, with the `_reqId` of its `mcp_request`: what the server asks of its client. To be answered with
/// [`McpAskAnswer`]; when the request ends, nobody waits for that any more.
#[derive(Debug, Serialize, Deserialize)]
pub struct McpAsk {
    /// Counts within the request.
    pub ask: u64,
    /// A JSON-RPC request without id: `{method, params}`.
    pub request: RawJson,
}

/// *Ours*, caller → broker. Exactly one of `result` and `error` (a JSON-RPC error object). No answer of its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpAskAnswer {
    /// `_reqId` of the `mcp_request`.
    pub request_id: String,
    pub ask: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RawJson>,
}

/// *Ours*: what a service says outside of calls, until `mcp_cancel`, disconnect, or the end of the caller's access. Answered by
/// `mcp_listening`, then `mcp_request_event`s (`list_changed` of three kinds, `notifications/resources/updated` of what is subscribed,
/// `notifications/message`), at the end one `mcp_request_result` with the error. Neither wakes a service that sleeps nor keeps it awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpListen {
    pub server_name: String,
    /// URIs of resources whose updates are wanted, at most 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Least level of log messages that are wanted (MCP `LoggingLevel`); none: no log messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// *Ours*: from now on nothing is missed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpListening {}

/// *Ours*.
#[derive(Debug, Serialize, Deserialize)]
pub struct McpRequestEvent {
    /// A JSON-RPC notification `{method, params}`.
    pub event: RawJson,
}

/// *Ours*: the same members as `mcp_call_result`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct McpRequestResult(pub McpCallResult);

/// *Ours*: ends the call or log stream that was asked with this `_reqId` on this connection. No answer of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct McpCancel {
    pub request_id: String,
}

body! {
    McpRequestResult = "mcp_request_result";
    McpCallResult = "mcp_call_result";
    McpCancel = "mcp_cancel";
    McpCall = "mcp_call";
    McpRequest = "mcp_request";
    McpRequestEvent = "mcp_request_event";
    McpAsk = "mcp_ask";
    McpAskAnswer = "mcp_ask_answer";
    McpListen = "mcp_listen";
    McpListening = "mcp_listening";
}
