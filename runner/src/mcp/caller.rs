//! The one who calls a hosted server: what of its words reaches them meanwhile, and their answers to its questions.
//!
//! Not here: who is meant by what a server says (see [`super::conn`]).
//! Invariant: each question is answered once, or its end is told.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::client::Client;

/// What the server says to one caller before it answers: JSON texts of `{method, params}`.
pub enum Said {
    Event(Bytes),
    Ask(Question),
}

/// A request of the server, and the way back.
pub struct Question {
    pub request: Bytes,
    pub reply: Replier,
}

/// Answers one request of the server. Dropped, it says that nobody answers any more.
pub struct Replier {
    pub(super) number: u64,
    /// That it was put to.
    pub(super) call: u64,
    pub(super) to: Client,
    pub(super) done: bool,
}

/// Whose call it is, and what of the server's words reaches them meanwhile.
#[derive(Clone, Default)]
pub struct Caller {
    /// Calls without one are of nobody else's session.
    pub session: Option<Arc<str>>,
    pub ear: Option<Ear>,
}

#[derive(Clone)]
pub struct Ear {
    pub sink: mpsc::Sender<Said>,
    /// Progress and log messages.
    pub events: bool,
    /// Requests.
    pub asks: bool,
}

impl Replier {
    /// `body` is `"result":…` or `"error":…`, raw JSON behind the colon.
    pub fn answer(mut self, body: Vec<u8>) {
        self.send(Some(body));
    }

    fn send(&mut self, body: Option<Vec<u8>>) {
        self.done = true;
        self.to.reply(self.number, self.call, body);
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if !self.done {
            self.send(None);
        }
    }
}
