//! The requests that are in work, and those that wait for a client of the modern era to come back with an answer.
//!
//! ```text
//!   open ──▶ in work ── finish ──▶ answered
//!              │  ▲
//!          ask │  │ resume (the client's retry, by handle)
//!              ▼  │
//!            parked ── 10 minutes, or too many ──▶ dropped
//! ```
//!
//! Here: who may answer which request id, handles. Not here: what a request means.
//! Invariants: every request is answered at most once, and not at all once it is cancelled; a handle is used once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{AbortHandle, Id};
use tokio::time::Instant;
use wire::RawJson;

use super::{code, error};
use crate::raw::{Members, Object, quote};
use crate::stdio::{Answer, Peer};

/// How long a client may take to come back with an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// Calls that wait for their client at once; the oldest gives way.
const MAX_PARKED: usize = 64;
/// Requests in work at once.
const MAX_OPEN: usize = 1024;
/// How often one call may ask.
const MAX_ROUNDS: u32 = 10;

/// Names one piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

#[derive(Default)]
pub(super) struct Desk(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    next: u64,
    works: HashMap<Ticket, Work>,
    /// JSON text of the request id.
    by_id: HashMap<String, Ticket>,
    by_handle: HashMap<String, Ticket>,
}

struct Work {
    /// The request that is to be answered; none while the client was sent to fetch an answer.
    id: Option<RawJson>,
    /// What a retry must have in common with the first request.
    binding: String,
    abort: Option<AbortHandle>,
    asks: Vec<Ask>,
    asked: u64,
    rounds: u32,
    handle: Option<(String, Instant)>,
    /// The answer, ready before the client came back.
    done: Option<Answer>,
    /// Progress token of the latest retry.
    token: Option<Option<RawJson>>,
}

struct Ask {
    key: String,
    request: RawJson,
    waiter: oneshot::Sender<Answer>,
    is_sent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    IdInUse,
    TooMany,
    UnknownState,
}

impl Refusal {
    pub(super) fn answer(self) -> Answer {
        let (code, text) = match self {
            Self::IdInUse => (code::INVALID_REQUEST, "a request with this id is still running"),
            Self::TooMany => (code::INTERNAL, "too many requests at once"),
            Self::UnknownState => (
                code::INVALID_PARAMS,
                "the `requestState` is unknown, was used already, or is too old: call again",
            ),
        };
        Answer::Error(error(code, text))
    }
}

impl Desk {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request. `binding`: method and params, as far as a retry has to repeat them.
    pub(super) fn open(&self, id: &RawJson, binding: String) -> Result<Ticket, Refusal> {
        let mut tables = self.tables();
        if tables.by_id.contains_key(id.get()) {
            return Err(Refusal::IdInUse);
        }
        if tables.by_id.len() >= MAX_OPEN {
            return Err(Refusal::TooMany);
        }
        tables.next += 1;
        let ticket = Ticket(tables.next);
        tables.by_id.insert(id.get().to_owned(), ticket);
        let work = Work {
            id: Some(id.clone()),
            binding,
            abort: None,
            asks: Vec::new(),
            asked: 0,
            rounds: 0,
            handle: None,
            done: None,
            token: None,
        };
        tables.works.insert(ticket, work);
        Ok(ticket)
    }

    /// Says which task does the work. It may have finished already.
    pub(super) fn staff(&self, ticket: Ticket, abort: AbortHandle) {
        if let Some(work) = self.tables().works.get_mut(&ticket) {
            work.abort = Some(abort);
        }
    }

    pub(super) fn finish(&self, peer: &Peer, ticket: Ticket, answer: Answer) {
        let mut tables = self.tables();
        let Some(work) = tables.works.get_mut(&ticket) else { return };
        work.asks.clear();
        match work.id.take() {
            Some(id) => {
                tables.by_id.remove(id.get());
                tables.works.remove(&ticket);
                peer.answer(&id, &answer);
            }
            None => work.done = Some(answer),
        }
    }

    /// The request stays unanswered; its id is free again.
    pub(super) fn leave(&self, ticket: Ticket) {
        let mut tables = self.tables();
        let id = tables.works.remove(&ticket).and_then(|work| work.id);
        if let Some(id) = id {
            tables.by_id.remove(id.get());
        }
    }

    /// A task that died without a word must not leave its client waiting.
    pub(super) fn bury(&self, peer: &Peer, task: Id) {
        let is_its = |work: &Work| work.abort.as_ref().is_some_and(|abort| abort.id() == task);
        let found = self.tables().works.iter().find(|(_, work)| is_its(work)).map(|(ticket, _)| *ticket);
        if let Some(ticket) = found {
            self.finish(
                peer,
                ticket,
                Answer::Error(error(code::INTERNAL, "claudemesh failed at this request")),
            );
        }
    }

    /// The client does not want the answer any more.
    pub(super) fn cancel(&self, id: &str) {
        let mut tables = self.tables();
        if let Some(ticket) = tables.by_id.get(id).copied() {
            tables.drop_work(ticket);
        }
    }

    /// Asks the client by way of an `input_required` answer. The receiver is dropped with the work.
    pub(super) fn ask(&self, peer: &Peer, ticket: Ticket, request: RawJson) -> oneshot::Receiver<Answer> {
        let (waiter, answer) = oneshot::channel();
        let mut tables = self.tables();
        if let Some(work) = tables.works.get_mut(&ticket) {
            work.asked += 1;
            let key = format!("ask-{}", work.asked);
            work.asks.push(Ask { key, request, waiter, is_sent: false });
            tables.send_asks(peer, ticket);
        }
        answer
    }

    /// The client comes back: its answers go to those who wait for them, and this request gets the answer of the call.
    pub(super) fn resume(
        &self,
        peer: &Peer,
        handle: &str,
        id: &RawJson,
        retry: &Retry<'_>,
    ) -> Result<(), Refusal> {
        let mut tables = self.tables();
        if tables.by_id.contains_key(id.get()) {
            return Err(Refusal::IdInUse);
        }
        let ticket = tables.by_handle.get(handle).copied().ok_or(Refusal::UnknownState)?;
        let work = tables.works.get_mut(&ticket).ok_or(Refusal::UnknownState)?;
        let is_late = work.handle.as_ref().is_none_or(|(_, until)| *until <= Instant::now());
        if is_late || work.binding != retry.binding {
            return Err(Refusal::UnknownState);
        }
        work.handle = None;
        work.id = Some(id.clone());
        work.token = Some(retry.token.clone());
        let done = work.done.take();
        for ask in std::mem::take(&mut work.asks) {
            match retry.responses.get(&ask.key) {
                Some(response) => drop(ask.waiter.send(Answer::Result(response.to_owned()))),
                None => work.asks.push(Ask { is_sent: false, ..ask }),
            }
        }
        tables.by_handle.remove(handle);
        tables.by_id.insert(id.get().to_owned(), ticket);
        match done {
            Some(answer) => {
                drop(tables);
                self.finish(peer, ticket, answer);
            }
            None => tables.send_asks(peer, ticket),
        }
        Ok(())
    }

    /// `Some`: the work is answered to a retry, whose progress token (if any) this is.
    pub(super) fn token_of_retry(&self, ticket: Ticket) -> Option<Option<RawJson>> {
        self.tables().works.get(&ticket)?.token.clone()
    }

    /// Drops what waits for a client that does not come back.
    pub(super) fn sweep(&self) {
        let mut tables = self.tables();
        let now = Instant::now();
        let is_late = |work: &Work| work.handle.as_ref().is_some_and(|(_, until)| *until <= now);
        let late: Vec<Ticket> =
            tables.works.iter().filter(|(_, work)| is_late(work)).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            tables.drop_work(ticket);
        }
    }

    /// Nothing is in work for a client that waits.
    pub(super) fn is_clear(&self) -> bool {
        self.tables().by_id.is_empty()
    }
}

/// A repeated request.
pub(super) struct Retry<'a> {
    pub binding: &'a str,
    pub responses: Members<'a>,
    pub token: Option<RawJson>,
}

impl Tables {
    fn drop_work(&mut self, ticket: Ticket) {
        let Some(work) = self.works.remove(&ticket) else { return };
        if let Some(id) = work.id {
            self.by_id.remove(id.get());
        }
        if let Some((handle, _)) = work.handle {
            self.by_handle.remove(&handle);
        }
        if let Some(abort) = work.abort {
            abort.abort();
        }
    }

    /// Sends the client to fetch answers, if it waits for one and there is something to ask.
    fn send_asks(&mut self, peer: &Peer, ticket: Ticket) {
        let Some(work) = self.works.get_mut(&ticket) else { return };
        // The server may have taken a question back.
        work.asks.retain(|ask| !ask.waiter.is_closed());
        if work.asks.iter().all(|ask| ask.is_sent) {
            return;
        }
        let Some(id) = work.id.take() else { return };
        if work.rounds >= MAX_ROUNDS {
            work.id = Some(id);
            for ask in work.asks.drain(..) {
                let text = "the client was asked too often, or does not answer";
                let _ = ask.waiter.send(Answer::Error(error(code::INVALID_REQUEST, text)));
            }
            return;
        }
        work.rounds += 1;
        let mut requests = Object::default();
        for ask in &mut work.asks {
            ask.is_sent = true;
            requests.put(&ask.key, ask.request.get());
        }
        let handle = random_handle();
        let mut result = Object::default();
        result
            .put("resultType", "\"input_required\"")
            .put("inputRequests", requests.end().get())
            .put("requestState", &quote(&handle));
        work.handle = Some((handle.clone(), Instant::now() + PATIENCE));
        self.by_id.remove(id.get());
        self.by_handle.insert(handle, ticket);
        peer.answer(&id, &Answer::Result(result.end()));
        self.make_room();
    }

    fn make_room(&mut self) {
        if self.by_handle.len() <= MAX_PARKED {
            return;
        }
        let until = |work: &Work| work.handle.as_ref().map(|(_, until)| *until);
        let parked = self.works.iter().filter_map(|(ticket, work)| Some((until(work)?, *ticket)));
        if let Some((_, oldest)) = parked.min_by_key(|(until, _)| *until) {
            self.drop_work(oldest);
        }
    }
}

fn random_handle() -> String {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    hex::encode(bytes)
}
