//! Sessions that take turns at one server, once it has asked something that could not be told whose it was.
//!
//! Here: which call goes to the server now and which waits. Not here: what made that necessary (see [`super::asks`]).
//! Invariants: first come, first served: a session that goes on calling does not keep another one waiting. What waits was
//! never sent, and is told so when the connection closes. A call that was cancelled is still its session's turn until the server
//! answers it, or for a while: not every server stops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::client::Waiter;
use super::super::frame;
use super::Conn;

/// So long a server that was told that a call is cancelled, and does not answer it, is thought to work on it.
const LINGERS: Duration = Duration::from_secs(10);
/// More calls than can be waiting for an answer.
const MOST_GIVEN_UP: usize = 4096;

#[derive(Default)]
pub(super) struct Turns {
    pub are_taken: bool,
    waiting: VecDeque<(u64, Vec<u8>, Waiter)>,
}

impl Turns {
    /// The request's bytes, when it waited.
    fn forget(&mut self, id: u64) -> Option<Vec<u8>> {
        let at = self.waiting.iter().position(|(waiting, ..)| *waiting == id);
        at.and_then(|at| self.waiting.remove(at)).map(|(_, line, _)| line)
    }

    pub fn refuse(&mut self) -> impl Iterator<Item = Waiter> {
        std::mem::take(&mut self.waiting).into_iter().map(|(_, _, waiter)| waiter)
    }
}

/// Calls that nobody waits for any more, which the server may be working on all the same: what it says may be about them.
#[derive(Default)]
pub(super) struct GivenUp(VecDeque<(u64, Option<Arc<str>>, Instant)>);

impl GivenUp {
    fn add(&mut self, id: u64, session: Option<Arc<str>>) {
        let now = Instant::now();
        self.drop_old(now);
        if self.0.len() >= MOST_GIVEN_UP {
            self.0.pop_front();
        }
        self.0.push_back((id, session, now + LINGERS));
    }

    fn remove(&mut self, id: u64) -> bool {
        let at = self.0.iter().position(|(given_up, ..)| *given_up == id);
        at.and_then(|at| self.0.remove(at)).is_some()
    }

    /// Whether each that the server may still be working on is of this session.
    pub fn are_of(&self, session: Option<&Arc<str>>) -> bool {
        let now = Instant::now();
        self.0.iter().all(|(_, of, until)| *until <= now || is_same(of.as_ref(), session))
    }

    /// Of the newest that the server may still be working on.
    pub fn session(&self) -> Option<Option<&Arc<str>>> {
        let (_, of, until) = self.0.back()?;
        (*until > Instant::now()).then_some(of.as_ref())
    }

    /// When the next of them is over.
    fn next_over(&mut self) -> Option<Instant> {
        self.drop_old(Instant::now());
        self.0.front().map(|(.., until)| *until)
    }

    fn drop_old(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(.., until)| *until <= now) {
            self.0.pop_front();
        }
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

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&mut self, id: u64, reason: Option<&'static str>) {
        if let Some(line) = self.turns.forget(id) {
            self.shared.queued.fetch_sub(line.len(), Ordering::Relaxed);
            // It may have kept those behind it waiting.
            return self.next_in_line();
        }
        // Already answered: then there is nothing to cancel.
        let Some(waiter) = self.pending.remove(&id) else { return };
        if let Some(reason) = reason {
            let params =
                format!(r#"{{"requestId":"{}","reason":{}}}"#, self.shared.id(id), frame::quote(reason));
            let mut line = Vec::new();
            frame::write_notification(&mut line, "notifications/cancelled", Some(&params));
            self.push(&line);
        }
        if let Some(call) = waiter.call {
            self.given_up.add(id, call.caller.session);
        }
        self.next_in_line();
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
        calls.all(|call| is_same(call.caller.session.as_ref(), session)) && self.given_up.are_of(session)
    }

    /// Out of `pending`, for an answer.
    pub(super) fn take_waiter(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.pending.remove(&id)?;
        self.next_in_line();
        Some(waiter)
    }

    /// The server answered a call that nobody waits for. False when it is none of those.
    pub(super) fn settle(&mut self, id: u64) -> bool {
        let is_known = self.given_up.remove(id);
        if is_known {
            self.next_in_line();
        }
        is_known
    }

    /// When the next in the line may go although nothing is heard.
    pub(super) fn turn_at(&mut self) -> Option<Instant> {
        if self.turns.waiting.is_empty() { None } else { self.given_up.next_over() }
    }

    pub(super) fn next_in_line(&mut self) {
        while let Some((id, line, next)) = self.turns.waiting.pop_front() {
            let session = next.call.as_ref().and_then(|call| call.caller.session.as_ref());
            if !self.is_free_for(session) {
                self.turns.waiting.push_front((id, line, next));
                break;
            }
            self.send(id, &line, next);
        }
    }
}
