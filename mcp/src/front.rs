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
//! Parts: `turn` (one client, its loop), `room` (what its tasks share; the four cells), `desk` (requests in work), `exchange` (one request), `eras` (what each era wants of
//! params and results), `hearing` (what is told outside of requests).
//! Invariant: an [`Offer`] never sees which era its client speaks.

mod desk;
mod eras;
mod exchange;
mod hearing;
mod room;
#[cfg(test)]
mod tests;
mod turn;

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use wire::RawJson;

pub use exchange::Exchange;

use crate::stdio::{self, Answer};

/// What was written last may take this long to get to a client that has closed its side.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// JSON-RPC error codes of MCP.
pub mod code {
    pub const INVALID_REQUEST: i64 = -32600;
    pub const UNKNOWN_METHOD: i64 = -32601;
    pub const INVALID_PARAMS: i64 = -32602;
    pub const INTERNAL: i64 = -32603;
    pub const UNSUPPORTED_VERSION: i64 = -32022;
}

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

/// What one process offers to its client. Lists are requests like others (`tools/list`, …).
pub trait Offer: Send + Sync + 'static {
    /// Whatever is known within a second or so; never fails.
    fn about(&self) -> impl Future<Output = About> + Send;

    /// Answers every request but those of the front itself. Dropped when the client cancels.
    fn handle(&self, exchange: &Exchange) -> impl Future<Output = Answer> + Send;

    fn changes(&self) -> watch::Receiver<Changes>;

    /// What the client wants to hear outside of requests; called anew whenever that changes. What comes back is done when all of it
    /// will be heard, as far as it can be.
    fn subscribe(&self, resources: Vec<String>, log_level: Option<String>) -> BoxFuture<'static, ()> {
        let _ = (resources, log_level);
        Box::pin(std::future::ready(()))
    }

    /// Whether the server behind this request answers in the modern era; `None`: as [`About::is_modern`] says. For offers that
    /// speak for several servers.
    fn is_modern_for(&self, exchange: &Exchange) -> Option<bool> {
        let _ = exchange;
        None
    }

    /// The client of the legacy era has said that it is ready: from now on it hears notices.
    fn ready(&self) {}

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
    let (peer, incoming, transport) = stdio::open(input, output);
    let mut transport = std::pin::pin!(transport);
    tokio::select! {
        // The client reads no more: whatever is in work is for nobody.
        () = transport.as_mut() => {}
        () = turn::Turn::new(peer, offer, eras).run(incoming) => {
            let _ = tokio::time::timeout(LAST_WORDS, transport).await;
        }
    }
}

/// A JSON-RPC error object.
pub fn error(code: i64, message: &str) -> RawJson {
    crate::raw::value(&serde_json::json!({ "code": code, "message": message }))
}

/// The answer to a method that nobody knows.
pub fn unknown_method() -> Answer {
    Answer::Error(error(code::UNKNOWN_METHOD, "Method not found"))
}
