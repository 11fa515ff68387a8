//! What a server asks of its client: elicitation, sampling, roots.
//!
//! Here: which caller is asked, and the way of the answer back. Not here: what the answer says: it passes untouched.
//! Invariants: a request that names no call reaches a caller only while every call that runs is of one session. Each request
//! is answered once: by that caller, or with an error when its call has ended.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::super::caller::{Question, Replier, Said};
use super::super::client::Client;
use super::super::{frame, notice};
use super::turns::is_same;
use super::{Conn, REPLY_HIGH};
use crate::logs::Stream;

/// Requests of one server that wait for an answer.
const MOST: usize = 32;
/// Longest id that is kept and echoed.
const ID_BYTES: usize = 256;
/// Of one request: as many as may wait are held at once.
const ASK_BYTES: usize = 4 << 20;

const NO_ROOTS: &[u8] = b"\"result\":{\"roots\":[]}";
const NOT_OFFERED: &[u8] = br#""error":{"code":-32601,"message":"this host does not offer that"}"#;
const NOBODY: &[u8] = br#""error":{"code":-32601,"message":"no client that answers this is calling now"}"#;
const AMBIGUOUS: &[u8] = br#""error":{"code":-32603,"message":"calls of several sessions are running, so whose client is meant can not be told; from now on sessions take turns: call again"}"#;
const TOO_MANY: &[u8] =
    br#""error":{"code":-32603,"message":"too many requests of this server wait for an answer"}"#;
const TOO_LARGE: &[u8] = br#""error":{"code":-32603,"message":"the request is too large to be passed on"}"#;
const TOO_SLOW: &[u8] = br#""error":{"code":-32603,"message":"the client does not take what it is asked"}"#;
const ENDED: &[u8] =
    br#""error":{"code":-32603,"message":"the call has ended, and nobody answers any more"}"#;
const UNTOLD: &[u8] = br#""error":{"code":-32603,"message":"the request could not be passed on"}"#;

#[derive(Default)]
pub(super) struct Asks {
    last: u64,
    open: HashMap<u64, Ask>,
}

struct Ask {
    id: Box<RawValue>,
    request: Bytes,
    session: Option<Arc<str>>,
    /// The server does not want the answer any more. Its place is taken until the caller has let go of it: otherwise one that
    /// asks and withdraws for ever fills its caller's memory.
    is_withdrawn: bool,
}

impl Asks {
    /// Whether this session is thinking about an answer.
    pub fn are_put_to(&self, session: Option<&Arc<str>>) -> bool {
        self.open.values().any(|ask| !ask.is_withdrawn && is_same(ask.session.as_ref(), session))
    }
}

/// Whom a request of the server may be put to.
enum Addressee {
    Nobody,
    Call(u64),
    Several,
}

impl Conn {
    /// The server's own requests.
    pub(super) fn serve(&mut self, id: &RawValue, method: &str, params: Option<&RawValue>) {
        if self.out.len() > REPLY_HIGH || id.get().len() > ID_BYTES {
            return;
        }
        match method {
            "ping" => self.reply(id, b"\"result\":{}"),
            "elicitation/create" | "sampling/createMessage" | "roots/list" => {
                if let Err(refusal) = self.pass_on(id, method, params) {
                    self.reply(id, refusal);
                }
            }
            _ => self.reply(id, NOT_OFFERED),
        }
    }

    fn reply(&mut self, id: &RawValue, body: &[u8]) {
        let mut line = Vec::with_capacity(body.len() + id.get().len() + 32);
        frame::write_answer(&mut line, id, body);
        self.push(&line);
    }

    fn pass_on(
        &mut self,
        id: &RawValue,
        method: &str,
        params: Option<&RawValue>,
    ) -> Result<(), &'static [u8]> {
        let call = match self.addressee() {
            Addressee::Call(call) => call,
            Addressee::Nobody if method == "roots/list" => return Err(NO_ROOTS),
            Addressee::Nobody => return Err(NOBODY),
            Addressee::Several => {
                self.take_turns();
                return Err(AMBIGUOUS);
            }
        };
        if self.asks.open.len() >= MOST {
            return Err(TOO_MANY);
        }
        if params.is_some_and(|params| params.get().len() > ASK_BYTES) {
            return Err(TOO_LARGE);
        }
        let params = params.map(|params| self.masked(params).ok_or(UNTOLD)).transpose()?;
        let request = notice::request(method, params.as_deref().map(RawValue::get));
        self.put(call, id.to_owned(), request).map_err(|_| TOO_SLOW)
    }

    /// The newest call that answers, if all that run are of its session.
    fn addressee(&self) -> Addressee {
        let calls =
            || self.pending.iter().filter_map(|(number, waiter)| Some((number, waiter.call.as_ref()?)));
        let answers = calls().filter(|(_, call)| call.caller.ear.as_ref().is_some_and(|ear| ear.asks));
        let Some((number, newest)) = answers.max_by_key(|(_, call)| call.nth) else {
            return Addressee::Nobody;
        };
        let session = newest.caller.session.as_ref();
        let is_theirs = |(other, call): (&u64, &super::Call)| {
            other == number || is_same(call.caller.session.as_ref(), session)
        };
        let is_alone = calls().all(is_theirs) && self.given_up.are_of(session);
        if is_alone { Addressee::Call(*number) } else { Addressee::Several }
    }

    fn take_turns(&mut self) {
        if !std::mem::replace(&mut self.turns.are_taken, true) {
            self.voice.say(
                Stream::Runner,
                "the server asks its client something while several sessions call it; they take turns from now on",
            );
        }
    }

    /// Gives the id back when the call does not take it.
    fn put(&mut self, call: u64, id: Box<RawValue>, request: Bytes) -> Result<(), Box<RawValue>> {
        let Some(of) = self.pending.get(&call).and_then(|waiter| waiter.call.as_ref()) else {
            return Err(id);
        };
        let Some(ear) = &of.caller.ear else { return Err(id) };
        let session = of.caller.session.clone();
        self.asks.last += 1;
        let number = self.asks.last;
        let reply = Replier { number, call, to: Client::new(self.shared.clone()), done: false };
        match ear.sink.try_send(Said::Ask(Question { request: request.clone(), reply })) {
            Ok(()) => {
                self.asks.open.insert(number, Ask { id, request, session, is_withdrawn: false });
                Ok(())
            }
            // Dropping what was not sent tells of a number that is not known; nothing follows from that.
            Err(_) => Err(id),
        }
    }

    /// An answer, or the end of the call that was asked. Then another call of that session is asked: which of several the
    /// server meant it did not say.
    pub(super) fn reply_ask(&mut self, number: u64, call: u64, body: Option<Vec<u8>>) {
        let Some(Ask { id, request, session, is_withdrawn }) = self.asks.open.remove(&number) else { return };
        if is_withdrawn {
            return;
        }
        if let Some(body) = body {
            return self.reply(&id, &body);
        }
        let others =
            self.pending.iter().filter_map(|(number, waiter)| Some((*number, waiter.call.as_ref()?)));
        let next = others
            .filter(|(number, other)| {
                *number != call && is_same(other.caller.session.as_ref(), session.as_ref())
            })
            .filter(|(_, other)| other.caller.ear.as_ref().is_some_and(|ear| ear.asks))
            .max_by_key(|(_, other)| other.nth)
            .map(|(number, _)| number);
        let unasked = match next {
            Some(next) => self.put(next, id, request),
            None => Err(id),
        };
        if let Err(id) = unasked {
            self.reply(&id, ENDED);
        }
    }

    /// The server does not want to know any more.
    pub(super) fn withdraw(&mut self, params: Option<&RawValue>) {
        let Some(id) = params.and_then(notice::request_id) else { return };
        for ask in self.asks.open.values_mut().filter(|ask| ask.id.get() == id.get()) {
            ask.is_withdrawn = true;
            ask.request = Bytes::new();
        }
    }
}
