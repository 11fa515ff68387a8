//! The server's side of MCP towards one client, in whichever era the client speaks: handshake, lists, requests, asks, listening.
//!
//! Here: `initialize` and `server/discover`, `ping`, `logging/setLevel`, `subscriptions/listen`, cancellation, progress, and the four
//! cells of era translation. Not here: what is offered ([`Offer`] implementations: `service`, `mesh`, `channel`).
//!
//! | client | offer | how |
//! |---|---|---|
//! | legacy | legacy | [`Exchange::ask`] is a request to the client |
//! | modern | modern | the caller's `_meta`, `inputResponses` and `requestState` pass through |
//! | modern | legacy | the first [`Exchange::ask`] answers `input_required` with a handle; the retry brings the answer to the call that waits |
//! | legacy | modern | an `input_required` result becomes requests to the client, and the call is repeated with the answers, at most 10 times |
//!
//! Invariant: an [`Offer`] never sees which era its client speaks.

use std::future::Future;

use tokio::sync::watch;
use wire::RawJson;

use crate::stdio::Answer;

/// What is said in `initialize` and `server/discover`. All raw, as the server itself said it.
#[derive(Debug, Clone)]
pub struct About {
    pub server_info: RawJson,
    pub capabilities: RawJson,
    pub instructions: Option<String>,
    /// The offer answers in the modern era (2026-07-28): `input_required`, `_meta` of the caller.
    pub is_modern: bool,
}

/// Counters that grow when a list changed; the front tells the client (`notifications/*/list_changed`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub tools: u64,
    pub prompts: u64,
    pub resources: u64,
}

/// Which eras the front speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    Both,
    /// `server/discover` is an unknown method: some notifications are taken from legacy servers only.
    LegacyOnly,
}

/// One request of the client while it is worked on.
pub struct Exchange {
    pub method: String,
    /// As the client sent them, without what only its era knows.
    pub params: Option<RawJson>,
    // H5 adds what it needs, private.
}

impl Exchange {
    /// Passes on a notification `{method, params}` that belongs to this request.
    pub fn notify(&self, event: &RawJson) {
        let _ = event;
    }

    /// Asks the client what the server wants to know (`{method, params}`: elicitation, sampling, roots) and waits. A client that
    /// did not declare the capability answers -32601, as it would to the server itself.
    pub async fn ask(&self, request: &RawJson) -> Answer {
        let _ = request;
        std::future::pending().await
    }
}

/// What one process offers to its client. Lists are requests like others (`tools/list`, …).
pub trait Offer: Send + Sync + 'static {
    /// Whatever is known within a second or so; never fails.
    fn about(&self) -> impl Future<Output = About> + Send;

    /// Answers every request but those of the front itself. Dropped when the client cancels.
    fn handle(&self, exchange: &Exchange) -> impl Future<Output = Answer> + Send;

    fn changes(&self) -> watch::Receiver<Changes>;

    /// What the client wants to hear outside of requests; called anew whenever that changes.
    fn subscribe(&self, resources: Vec<String>, log_level: Option<String>) {
        let _ = (resources, log_level);
    }

    /// Notifications `{method, params}` outside of requests; `None`: this offer has none.
    fn notices(&self) -> Option<tokio::sync::broadcast::Receiver<RawJson>> {
        None
    }
}

/// Serves one client until it closes stdin.
pub async fn serve<O: Offer>(
    input: impl tokio::io::AsyncRead + Unpin + Send + 'static,
    output: impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    offer: std::sync::Arc<O>,
    eras: Eras,
) {
    let _ = (input, output, offer, eras);
}

/// A JSON-RPC error object.
pub fn error(code: i64, message: &str) -> RawJson {
    let value = serde_json::json!({ "code": code, "message": message });
    serde_json::value::to_raw_value(&value).expect("plain JSON")
}
