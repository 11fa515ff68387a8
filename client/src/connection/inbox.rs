//! What the holders of a connection want of the task that owns its link.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use wire::peer::calls::McpCancel;

use super::frame::{Waiter, Waiting};
use super::session::Joiners;

/// What becomes of a request when its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// It runs to its end.
    Errand,
    /// It is cancelled.
    Call,
    /// It is cancelled; and as it has no end of its own, nobody waits for that.
    Standing,
}

pub(super) enum Command {
    Ask {
        id: String,
        nature: Nature,
        text: String,
        waiter: Waiter,
    },
    Forget {
        id: String,
        cancel: bool,
    },
    /// A frame that nobody answers.
    Tell {
        text: String,
    },
    /// What another process of the session sent, while the link was up for this time.
    Pass {
        epoch: u32,
        text: String,
    },
    Close,
}

/// Ids that are unique among the processes of a session: what is before the dot names the process.
#[derive(Debug)]
pub(super) struct Ids {
    prefix: Option<Arc<str>>,
    next: AtomicU64,
}

impl Ids {
    pub(super) fn new(prefix: Option<Arc<str>>) -> Self {
        Self { prefix, next: AtomicU64::new(1) }
    }

    pub(super) fn next(&self) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        match &self.prefix {
            Some(prefix) => format!("{prefix}.{n}"),
            None => n.to_string(),
        }
    }
}

pub(super) struct Inbox {
    own: mpsc::Receiver<Command>,
    /// Taken out while the link could not have them.
    held: VecDeque<Command>,
}

/// Requests that wait while the session's link changes hands; more stay in the queue.
const MAX_HELD: usize = 256;

impl Inbox {
    pub(super) fn new(own: mpsc::Receiver<Command>) -> Self {
        Self { own, held: VecDeque::new() }
    }

    /// `None`: nobody holds the connection any more. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Command> {
        match self.held.pop_front() {
            Some(command) => Some(command),
            None => self.own.recv().await,
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Command> {
        self.held.pop_front().or_else(|| self.own.try_recv().ok())
    }

    /// The next that is newer than what is held.
    pub(super) async fn next_fresh(&mut self) -> Option<Command> {
        self.own.recv().await
    }

    pub(super) fn hold(&mut self, command: Command) {
        self.held.push_back(command);
    }

    /// It was taken out too early.
    pub(super) fn put_back(&mut self, command: Command) {
        self.held.push_front(command);
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= MAX_HELD
    }
}

/// What to send for a command. Enters or removes the waiter.
pub(super) fn frame_of(command: Command, waiting: &Waiting, joiners: Option<&Joiners>) -> Option<String> {
    match command {
        Command::Ask { id, text, waiter, nature: _ } => {
            // It may have given up while the link was down.
            if waiter.is_gone() {
                return None;
            }
            waiting.enter(id, waiter);
            Some(text)
        }
        Command::Forget { id, cancel } => {
            waiting.forget(&id);
            if cancel { cancel_frame(&id) } else { None }
        }
        Command::Tell { text } => Some(text),
        // Its sender was told that the link was lost, and has answered its own waiters.
        Command::Pass { epoch, text } => joiners.is_some_and(|all| all.is_current(epoch)).then_some(text),
        Command::Close => None,
    }
}

pub(super) fn cancel_frame(id: &str) -> Option<String> {
    wire::peer::write(None, &McpCancel { request_id: id.to_owned() }).ok()
}
