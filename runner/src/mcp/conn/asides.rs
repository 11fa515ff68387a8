//! What a server says unasked: progress, log messages, changed lists.
//!
//! Here: whom it reaches. Not here: how much of it is taken (see [`super`]).
//! Invariant: what one caller's call brought about reaches no other caller.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::super::caller::Said;
use super::super::client::Call;
use super::super::{frame, notice};
use super::Conn;
use super::turns::is_same;
use crate::logs::Stream;
use crate::rate::LINE_WEIGHT;

/// Whom a notification concerns that names no call.
enum Concerned<'a> {
    /// No call runs.
    Everybody,
    /// All calls are of this session; the newest of them that hears events.
    Session(Option<&'a Arc<str>>, Option<&'a mpsc::Sender<Said>>),
    /// Calls of several sessions run.
    Unknown,
}

impl Conn {
    pub(super) fn notification(&mut self, method: &str, params: Option<&RawValue>) {
        match method {
            "notifications/progress" => self.progress(params),
            "notifications/message" => self.log_message(params),
            "notifications/tools/list_changed" => self.changed.send_modify(|n| n.tools += 1),
            "notifications/prompts/list_changed" => self.changed.send_modify(|n| n.prompts += 1),
            "notifications/resources/list_changed" => self.changed.send_modify(|n| n.resources += 1),
            "notifications/resources/updated" => self.updated(params),
            "notifications/elicitation/complete" => {
                self.tell_the_only_session("notifications/elicitation/complete", params)
            }
            "notifications/cancelled" => self.withdraw(params),
            _ => {}
        }
    }

    /// To the caller whose token it names, under the token that this caller chose.
    fn progress(&mut self, params: Option<&RawValue>) {
        let Some(params) = params else { return };
        let number = notice::token(params).and_then(|token| self.shared.number(token.get()));
        let Some(call) = number.and_then(|n| self.pending.get(&n)).and_then(|w| w.call.as_ref()) else {
            return;
        };
        let (Some(ear), Some(token)) = (&call.caller.ear, &call.token) else { return };
        if let Some(params) = self.masked(params).and_then(|params| frame::with_token(&params, token)) {
            // Progress is advice: a caller that does not read fast enough misses some.
            let _ = ear.sink.try_send(Said::Event(notice::event("notifications/progress", &params)));
        }
    }

    /// Into the log; and to whom it concerns. While calls run they are who that is, if all are of one session: whose message
    /// it is can not be told otherwise, and one member's call must not show up in another's.
    fn log_message(&mut self, params: Option<&RawValue>) {
        let Some(params) = params else { return };
        self.asides.take(LINE_WEIGHT);
        self.voice.say(Stream::Runner, notice::log_text(params));
        let (audience, level) = (self.shared.audience(), notice::level(params));
        let event = || Some(notice::event("notifications/message", self.masked(params)?.get()));
        match self.concerned() {
            Concerned::Session(session, ear) => {
                let least =
                    session.zip(audience.as_ref()).and_then(|(session, heard)| heard.level_of(session));
                if least.zip(level).is_some_and(|(least, level)| level < least) {
                    return;
                }
                let Some(event) = event() else { return };
                if let Some(ear) = ear {
                    // As for progress: losing one is better than waiting.
                    let _ = ear.try_send(Said::Event(event));
                } else if let (Some(session), Some(audience)) = (session, audience) {
                    audience.log(level, Some(session), &event);
                }
            }
            Concerned::Everybody => {
                if let Some((audience, event)) = audience.zip(event()) {
                    audience.log(level, None, &event);
                }
            }
            Concerned::Unknown => {}
        }
    }

    fn updated(&mut self, params: Option<&RawValue>) {
        let Some((params, audience)) = params.zip(self.shared.audience()) else { return };
        if let Some((uri, masked)) = notice::uri(params).zip(self.masked(params)) {
            audience.updated(&uri, &notice::event("notifications/resources/updated", masked.get()));
        }
    }

    fn tell_the_only_session(&self, method: &'static str, params: Option<&RawValue>) {
        let Some(event) = params.and_then(|params| Some(notice::event(method, self.masked(params)?.get())))
        else {
            return;
        };
        let of = match self.concerned() {
            // One that is full loses it, as it would lose progress.
            Concerned::Session(_, Some(ear)) => return drop(ear.try_send(Said::Event(event))),
            Concerned::Session(Some(session), None) => Some(session),
            Concerned::Everybody => None,
            Concerned::Session(None, None) | Concerned::Unknown => return,
        };
        if let Some(audience) = self.shared.audience() {
            audience.tell_one(of, &event);
        }
    }

    fn concerned(&self) -> Concerned<'_> {
        let calls = || self.pending.values().filter_map(|waiter| waiter.call.as_ref());
        let newest = calls().max_by_key(|call| call.nth);
        let session = match newest {
            Some(newest) => newest.caller.session.as_ref(),
            None => match self.given_up.session() {
                Some(session) => session,
                None => return Concerned::Everybody,
            },
        };
        let nth = newest.map(|call| call.nth);
        let is_theirs = |call: &Call| Some(call.nth) == nth || is_same(call.caller.session.as_ref(), session);
        if !calls().all(is_theirs) || !self.given_up.are_of(session) {
            return Concerned::Unknown;
        }
        let heard = calls().filter(|call| call.caller.ear.as_ref().is_some_and(|ear| ear.events));
        let ear = heard.max_by_key(|call| call.nth).and_then(|call| call.caller.ear.as_ref());
        Concerned::Session(session, ear.map(|ear| &ear.sink))
    }

    /// As JSON: `None` is what could not be, and what is told is advice.
    pub(super) fn masked<'a>(&self, params: &'a RawValue) -> Option<Cow<'a, RawValue>> {
        let masking = &self.shared.masking;
        if masking.is_empty() {
            return Some(Cow::Borrowed(params));
        }
        let masked = masking.json(Bytes::copy_from_slice(params.get().as_bytes()));
        RawValue::from_string(String::from_utf8(masked.to_vec()).ok()?).ok().map(Cow::Owned)
    }
}
