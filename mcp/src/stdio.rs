//! JSON-RPC messages over stdin and stdout, a line each (MCP "stdio" transport).
//!
//! Here: reading, writing in order, requests of ours and their answers. Not here: what a method means.
//! Invariant: one writer; a message is written whole or not at all.

use tokio::sync::mpsc;
use wire::RawJson;

/// What the client sent. Its answers to our requests do not show up here.
#[derive(Debug)]
pub enum Incoming {
    Request {
        id: RawJson,
        method: String,
        params: Option<RawJson>,
    },
    Notification {
        method: String,
        params: Option<RawJson>,
    },
    /// A line that is no JSON-RPC message; already answered with a JSON-RPC error where the specification asks for one.
    Nonsense,
}

/// The answer to a request, ours or theirs.
#[derive(Debug)]
pub enum Answer {
    Result(RawJson),
    /// A JSON-RPC error object.
    Error(RawJson),
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the MCP client is gone")]
pub struct Gone;

/// The client at the other end. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    // H5 fills this in.
}

impl Peer {
    /// Answers a request of theirs, once. A client that is gone has nobody to tell.
    pub fn answer(&self, id: &RawJson, answer: &Answer) {
        let _ = (id, answer);
    }

    /// Sends a notification; `params` is JSON.
    pub fn notify(&self, method: &str, params: Option<&str>) {
        let _ = (method, params);
    }

    /// Asks the client and waits. Dropping the future sends `notifications/cancelled`.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn ask(&self, method: &str, params: Option<&str>) -> Result<Answer, Gone> {
        let _ = (method, params);
        Err(Gone)
    }
}

/// Opens the transport. The receiver ends when the client closes its side; the future does the work and must be polled.
pub fn open<R, W>(input: R, output: W) -> (Peer, mpsc::Receiver<Incoming>, impl Future<Output = ()> + Send)
where
    R: tokio::io::AsyncRead + Unpin + Send,
    W: tokio::io::AsyncWrite + Unpin + Send,
{
    let _ = (input, output);
    (Peer {}, mpsc::channel(1).1, async {})
}
