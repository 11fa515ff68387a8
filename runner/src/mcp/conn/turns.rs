//! Sessions that take turns at one server, once it has asked something that could not be told whose it was.
//!
//! Here: which call goes to the server now and which waits. Not here: what made that necessary (see [`super::asks`]).
//! Invariants: first come, first served: a session that goes on calling does not keep another one waiting. What waits was
//! never sent, and is told so when the connection closes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::client::Waiter;
use super::Conn;

#[derive(Default)]
pub(super) struct Turns {
    pub are_taken: bool,
    waiting: VecDeque<(u64, Vec<u8>, Waiter)>,
}

impl Turns {
    /// True when it waited.
    pub fn forget(&mut self, id: u64) -> bool {
        let at = self.waiting.iter().position(|(waiting, ..)| *waiting == id);
        at.and_then(|at| self.waiting.remove(at)).is_some()
    }

    pub fn refuse(&mut self) -> impl Iterator<Item = Waiter> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, _, waiter)| waiter)
    }
}

/// Who does not say which session they are of shares none.
pub(super) fn is_same(a: Option<&Arc<str>>, b: Option<&Arc<str>>) -> bool {
    a.is_some() && a == b
}

impl Conn {
    pub(super) fn send_in_turn(&mut self, id: u64, line: Vec<u8>, waiter: Waiter) {
        if self.must_wait(&waiter) {
            // Bounded as calls are, and their bytes with them.
            self.turns.waiting.push_back((id, line, waiter));
        } else {
            self.send(id, &line, waiter);
        }
    }

    fn send(&mut self, id: u64, line: &[u8], waiter: Waiter) {
        self.write(line);
        self.pending.insert(id, waiter);
    }

    fn must_wait(&self, waiter: &Waiter) -> bool {
        let Some(call) = waiter.call.as_ref().filter(|_| self.turns.are_taken) else { return false };
        let session = call.caller.session.as_ref();
        // What a client is asked it may find out with another call, and the first one waits for that.
        if self.asks.are_put_to(session) {
            return false;
        }
        !self.turns.waiting.is_empty() || !self.is_free_for(session)
    }

    fn is_free_for(&self, session: Option<&Arc<str>>) -> bool {
        let mut calls = self.pending.values().filter_map(|waiter| waiter.call.as_ref());
        calls.all(|call| is_same(call.caller.session.as_ref(), session))
    }

    /// The only way out of `pending`: the next in the line may go.
    pub(super) fn take_waiter(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.pending.remove(&id)?;
        while let Some((id, line, next)) = self.turns.waiting.pop_front() {
            let session = next.call.as_ref().and_then(|call| call.caller.session.as_ref());
            if !self.is_free_for(session) {
                self.turns.waiting.push_front((id, line, next));
                break;
            }
            self.send(id, &line, next);
        }
        Some(waiter)
    }
}
