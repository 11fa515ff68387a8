//! JSON-RPC messages over stdin and stdout, a line each (MCP "stdio" transport).
//!
//! Here: reading, writing in order, requests of ours and their answers. Not here: what a method means.
//! Invariants: one writer; a message is written whole or not at all; while the client does not read, no more of it is read,
//! so what waits to be written is bounded; everybody who waits for the client hears when it is gone.

mod read;
mod standard;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use wire::RawJson;

pub use standard::{stdin, stdout};

/// Messages of the client that wait to be taken.
const INCOMING: usize = 64;
/// While more than this waits to be written, nothing is read, and notifications are lost.
const BACKLOG: usize = 8 << 20;
/// Bytes that are put together before they are written.
const BATCH: usize = 64 << 10;

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
    lines: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// What both halves and all peers share.
struct Shared {
    /// Bytes that wait to be written.
    backlog: AtomicUsize,
    drained: Notify,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    is_gone: bool,
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers everybody who waits, now and from now on.
    fn hang_up(&self) {
        let mut asked = self.asked();
        asked.is_gone = true;
        asked.waiting.clear();
    }

    fn is_behind(&self) -> bool {
        self.backlog.load(Ordering::Acquire) > BACKLOG
    }

    async fn caught_up(&self) {
        loop {
            let drained = self.drained.notified();
            if !self.is_behind() {
                return;
            }
            drained.await;
        }
    }
}

impl Peer {
    /// Answers a request of theirs, once. A client that is gone has nobody to tell.
    pub fn answer(&self, id: &RawJson, answer: &Answer) {
        let (name, body) = match answer {
            Answer::Result(result) => ("result", result),
            Answer::Error(error) => ("error", error),
        };
        self.send(&["{\"jsonrpc\":\"2.0\",\"id\":", id.get(), ",\"", name, "\":", body.get(), "}"]);
    }

    /// Sends a notification; `params` is JSON. It is lost when the client has not read for long.
    pub fn notify(&self, method: &str, params: Option<&str>) {
        if self.shared.is_behind() {
            return tracing::warn!("the client does not read: a notification is lost");
        }
        let method = crate::raw::quote(method);
        match params {
            Some(params) => {
                self.send(&["{\"jsonrpc\":\"2.0\",\"method\":", &method, ",\"params\":", params, "}"]);
            }
            None => self.send(&["{\"jsonrpc\":\"2.0\",\"method\":", &method, "}"]),
        }
    }

    /// Asks the client and waits. Dropping the future sends `notifications/cancelled`.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn ask(&self, method: &str, params: Option<&str>) -> Result<Answer, Gone> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut asked = self.shared.asked();
            if asked.is_gone {
                return Err(Gone);
            }
            asked.next += 1;
            let id = asked.next;
            asked.waiting.insert(id, sender);
            id
        };
        let guard = Withdraw { peer: self, id };
        let (number, method) = (id.to_string(), crate::raw::quote(method));
        let mut parts = vec!["{\"jsonrpc\":\"2.0\",\"id\":", &number, ",\"method\":", &method];
        if let Some(params) = params {
            parts.extend([",\"params\":", params]);
        }
        parts.push("}");
        self.send(&parts);
        let answer = answer.await;
        drop(guard);
        answer.map_err(|_| Gone)
    }

    /// Resolves when everything that was sent is written out, or can't be any more.
    pub async fn flushed(&self) {
        loop {
            let drained = self.shared.drained.notified();
            if self.shared.backlog.load(Ordering::Acquire) == 0 || self.lines.is_closed() {
                return;
            }
            drained.await;
        }
    }

    fn send(&self, parts: &[&str]) {
        let mut line = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 1);
        for part in parts {
            // A line break between tokens is legal JSON and would end our line early; inside strings it can not occur.
            match memchr::memchr2(b'\n', b'\r', part.as_bytes()) {
                None => line.extend_from_slice(part.as_bytes()),
                Some(_) => {
                    line.extend(part.bytes().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }))
                }
            }
        }
        line.push(b'\n');
        self.shared.backlog.fetch_add(line.len(), Ordering::AcqRel);
        // Refused when the writer has ended: the client is gone, and so is the one who would hear of it.
        let _ = self.lines.send(line);
    }

    /// Hands an answer of the client to who asked for it.
    fn settle(&self, id: &RawJson, answer: Answer) {
        let waiter = id.get().parse::<u64>().ok().and_then(|id| self.shared.asked().waiting.remove(&id));
        match waiter {
            Some(waiter) => drop(waiter.send(answer)),
            None => tracing::debug!("the client answered what nobody asked"),
        }
    }
}

/// Takes back a question that nobody waits for any more.
struct Withdraw<'a> {
    peer: &'a Peer,
    id: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let is_open = self.peer.shared.asked().waiting.remove(&self.id).is_some();
        if is_open {
            let params = format!("{{\"requestId\":{}}}", self.id);
            self.peer.notify("notifications/cancelled", Some(&params));
        }
    }
}

/// Opens the transport. The receiver ends when the client closes its side; the future does the work and must be polled. It ends
/// when the client stops reading, or has closed its side and every [`Peer`] is dropped.
pub fn open<R, W>(input: R, output: W) -> (Peer, mpsc::Receiver<Incoming>, impl Future<Output = ()> + Send)
where
    R: tokio::io::AsyncRead + Unpin + Send,
    W: tokio::io::AsyncWrite + Unpin + Send,
{
    let (lines, queue) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        backlog: AtomicUsize::new(0),
        drained: Notify::new(),
        asked: Mutex::new(Asked { next: 0, waiting: HashMap::new(), is_gone: false }),
    });
    let peer = Peer { lines, shared: Arc::clone(&shared) };
    let (sender, incoming) = mpsc::channel(INCOMING);
    let reading = read::all(input, peer.clone(), sender);
    let work = async move {
        let reading = async {
            reading.await;
            shared.hang_up();
            std::future::pending::<()>().await;
        };
        // The writer outlives the reader: the last answers are still to be written.
        tokio::select! {
            () = write(output, queue, &shared) => {}
            () = reading => {}
        }
        shared.hang_up();
        shared.drained.notify_waiters();
    };
    (peer, incoming, work)
}

/// Ends when nobody can send any more, or when the client stops reading.
async fn write(
    mut output: impl AsyncWrite + Unpin,
    mut lines: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: &Shared,
) {
    while let Some(mut batch) = lines.recv().await {
        while batch.len() < BATCH {
            let Ok(next) = lines.try_recv() else { break };
            batch.extend_from_slice(&next);
        }
        let written = async {
            output.write_all(&batch).await?;
            output.flush().await
        };
        if let Err(e) = written.await {
            return tracing::debug!("the client reads no more: {e}");
        }
        shared.backlog.fetch_sub(batch.len(), Ordering::AcqRel);
        shared.drained.notify_waiters();
    }
}
