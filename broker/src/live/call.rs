//! One call of a live server: to its host, and back.
//!
//! Here: forwarding, the limit, cancelling. Not here: frames of the caller (`peer::handlers::calls`).
//! Invariant: a call that was forwarded and is not waited for any more is cancelled at its host.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use wire::depth::{MAX_DEPTH, is_too_deep};
use wire::peer::live::{McpCallForward, McpCallForwardCancel, McpCallResponse};
use wire::{ErrorCode, MeshId, RawJson, ServiceKey, ServiceName};

use super::table::{MAX_PENDING, Place};
use crate::app::Broker;
use crate::clock;
use crate::error::shown;
use crate::peer::outbox::Outbox;
use crate::peer::presence::{ConnId, Presence};

/// The texts are those of the original (peer-protocol reference §3.13).
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("MCP server \"{0}\" not found in mesh")]
    NotFound(String),
    #[error("Server '{name}' is offline — hosted by {lender}{left}. It will restore when they reconnect.")]
    Offline { name: String, lender: String, left: String },
    #[error("MCP server \"{0}\" host disconnected")]
    HostGone(String),
    #[error("MCP call timed out ({}s)", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("the host of \"{0}\" has {MAX_PENDING} calls before it already")]
    Busy(String),
    #[error("`{0}` can not be asked of a live server; use tools/call")]
    Method(String),
    #[error("params: {0}")]
    Params(&'static str),
    /// What the host answered.
    #[error("{0}")]
    Said(String),
    #[error("MCP server \"{0}\" answered with neither a result object nor an error")]
    Nonsense(String),
    #[error("the answer of MCP server \"{0}\" is nested more than {MAX_DEPTH} deep")]
    TooDeep(String),
}

impl LiveError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::Offline { .. } | Self::HostGone(_) => ErrorCode::HostOffline,
            Self::Timeout(_) => ErrorCode::CallTimeout,
            Self::Busy(_) => ErrorCode::Busy,
            Self::Method(_) | Self::Params(_) => ErrorCode::InvalidArgs,
            Self::Said(_) => ErrorCode::McpError,
            Self::Nonsense(_) | Self::TooDeep(_) => ErrorCode::BadProtocol,
        }
    }
}

/// Cancels at the host when it goes before the answer.
struct Waiting<'a> {
    broker: &'a Broker,
    call_id: String,
    host: Outbox,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.broker.live.give_up(&self.call_id) {
            let frame = McpCallForwardCancel { call_id: self.call_id.clone() };
            // One text: it always serializes.
            if let Ok(text) = wire::peer::write(None, &frame) {
                self.host.push(text);
            }
        }
    }
}

/// The part of `tools/call` that has a place in what a host is asked.
#[derive(Deserialize)]
struct Params {
    name: String,
    #[serde(default)]
    arguments: Option<RawJson>,
}

/// Forwards a request, of which there is only `tools/call`, and waits for its answer: never longer than `Limits::live_call`. Dropping
/// the future cancels it.
///
/// # Errors
/// [`LiveError`].
pub async fn call(
    broker: &Broker,
    caller: &Presence,
    (server_name, method): (&str, &str),
    params: Option<&RawValue>,
    deadline: Duration,
) -> Result<RawJson, LiveError> {
    if method != "tools/call" {
        return Err(LiveError::Method(shown(method)));
    }
    let params = params.map_or("{}", RawValue::get);
    let Params { name, arguments } =
        serde_json::from_str(params).map_err(|_| LiveError::Params("an object with the `name` of a tool"))?;
    let (conn, outbox) = host(broker, &caller.mesh, server_name)?;
    let server_name = server_name.to_owned();
    let limit = deadline.min(broker.limits.live_call);
    let call_id = uuid::Uuid::new_v4().to_string();
    let answered = broker.live.expect(&call_id, conn).ok_or_else(|| LiveError::Busy(server_name.clone()))?;
    let waiting = Waiting { broker, call_id: call_id.clone(), host: outbox };
    // Who leaves takes their servers off first and ends their calls then: either it sees ours, or we see that.
    if host(broker, &caller.mesh, &server_name)?.0 != conn {
        return Err(LiveError::HostGone(server_name));
    }
    let forward = McpCallForward {
        call_id,
        server_name: server_name.clone(),
        tool_name: name,
        args: arguments.unwrap_or_else(no_arguments),
        caller_name: caller.display_name.clone(),
    };
    let exchange = async {
        waiting.host.answer(None, &forward).await;
        answered.await
    };
    let response = timeout(limit, exchange).await.map_err(|_| LiveError::Timeout(limit))?;
    read(server_name, response.ok())
}

fn read(server_name: String, response: Option<McpCallResponse>) -> Result<RawJson, LiveError> {
    let Some(McpCallResponse { call_id: _, result, error }) = response else {
        return Err(LiveError::HostGone(server_name));
    };
    match (result, error) {
        (_, Some(error)) => Err(LiveError::Said(error)),
        (Some(result), None) if is_too_deep(result.get().as_bytes()) => Err(LiveError::TooDeep(server_name)),
        (Some(result), None) if result.get().starts_with('{') => Ok(result),
        _ => Err(LiveError::Nonsense(server_name)),
    }
}

fn no_arguments() -> RawJson {
    RawValue::from_string("{}".to_owned()).expect("an empty object is JSON")
}

/// Who answers for the server now.
fn host(broker: &Broker, mesh: &MeshId, server_name: &str) -> Result<(ConnId, Outbox), LiveError> {
    let unknown = || LiveError::NotFound(shown(server_name));
    let name = ServiceName::parse(server_name).map_err(|_| unknown())?;
    let entry = broker.live.entry(&ServiceKey { mesh: mesh.clone(), name }).ok_or_else(unknown)?;
    match entry.place {
        Place::Host { conn, outbox } => Ok((conn, outbox)),
        Place::Away { since } => {
            let left = since.map(|since| format!(" who disconnected {} ago", span(clock::now_ms() - since)));
            let (name, lender) = (server_name.to_owned(), entry.lender);
            Err(LiveError::Offline { name, lender, left: left.unwrap_or_default() })
        }
    }
}

/// Rounded, in the largest unit that is not nought.
fn span(ms: i64) -> String {
    let rounded = |unit: i64| (ms.max(0) + unit / 2) / unit;
    match ms {
        ..60_000 => format!("{}s", rounded(1000)),
        60_000..3_600_000 => format!("{}m", rounded(60_000)),
        _ => format!("{}h", rounded(3_600_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_that_clients_know() {
        let offline = |left: &str| {
            LiveError::Offline { name: "db".into(), lender: "Ann".into(), left: left.into() }.to_string()
        };
        assert_eq!(
            offline(" who disconnected 5s ago"),
            "Server 'db' is offline — hosted by Ann who disconnected 5s ago. It will restore when they reconnect."
        );
        assert_eq!(
            offline(""),
            "Server 'db' is offline — hosted by Ann. It will restore when they reconnect."
        );
        assert_eq!(LiveError::Timeout(Duration::from_secs(30)).to_string(), "MCP call timed out (30s)");
        assert_eq!(LiveError::NotFound("x".into()).to_string(), "MCP server \"x\" not found in mesh");
        assert_eq!(LiveError::HostGone("x".into()).to_string(), "MCP server \"x\" host disconnected");
    }

    #[test]
    fn spans_are_rounded_in_their_largest_unit() {
        let spans = [-5, 400, 59_499, 60_000, 90_000, 3_600_000, 9_000_000].map(span);
        assert_eq!(spans, ["0s", "0s", "59s", "1m", "2m", "1h", "3h"]);
    }

    #[test]
    fn an_answer_is_a_result_object_or_an_error() {
        let response = |text: &str| serde_json::from_str::<McpCallResponse>(text).ok();
        let said = |text: &str| read("s".into(), response(text)).map(|raw| raw.get().to_owned());
        assert_eq!(said(r#"{"callId":"1","result":{ "x": 1.0 }}"#).ok().as_deref(), Some("{ \"x\": 1.0 }"));
        assert_eq!(said(r#"{"callId":"1","error":"no"}"#).err().map(|e| e.code()), Some(ErrorCode::McpError));
        let deep = format!(
            r#"{{"callId":"1","result":{{"x":{}{}}}}}"#,
            "[".repeat(MAX_DEPTH),
            "]".repeat(MAX_DEPTH)
        );
        for nothing in [r#"{"callId":"1"}"#, r#"{"callId":"1","result":[1]}"#, &deep] {
            assert_eq!(said(nothing).err().map(|e| e.code()), Some(ErrorCode::BadProtocol));
        }
    }
}
