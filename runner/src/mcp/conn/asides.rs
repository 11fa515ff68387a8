//! What a server says unasked: requests of its own, progress, log messages, changed lists.
//!
//! Here: which of it is answered, and whom it reaches. Not here: how much of it is taken (see [`super`]).
//! Invariant: what one caller's call brought about reaches no other caller.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::super::{frame, notice};
use super::{Conn, REPLY_HIGH};
use crate::logs::Stream;
use crate::rate::LINE_WEIGHT;

impl Conn {
    /// The server's own requests. We offer no capability, so only what every peer must answer gets an answer.
    pub(super) fn serve(&mut self, id: &RawValue, method: &str) {
        if self.out.len() > REPLY_HIGH || id.get().len() > 256 {
            return;
        }
        let body = match method {
            "ping" => "\"result\":{}",
            "roots/list" => "\"result\":{\"roots\":[]}",
            _ => "\"error\":{\"code\":-32601,\"message\":\"this host does not offer that\"}",
        };
        let mut line = Vec::new();
        frame::write_answer(&mut line, id, body);
        self.push(&line);
    }

    pub(super) fn notification(&mut self, method: &str, params: Option<&RawValue>) {
        match method {
            "notifications/progress" => self.progress(params),
            "notifications/message" => self.log_message(params),
            "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed" => self.changed.send_modify(|n| *n += 1),
            _ => {}
        }
    }

    /// To the caller whose token it names, under the token that this caller chose.
    fn progress(&mut self, params: Option<&RawValue>) {
        let Some(params) = params else { return };
        let number = notice::token(params).and_then(|token| self.shared.number(token.get()));
        let Some(listener) = number.and_then(|n| self.pending.get(&n)).and_then(|w| w.events.as_ref()) else {
            return;
        };
        let Some(token) = &listener.token else { return };
        if let Some(params) = self.masked(params).and_then(|params| frame::with_token(&params, token)) {
            // Progress is advice: a caller that does not read fast enough misses some.
            let _ = listener.sink.try_send(notice::event("notifications/progress", &params));
        }
    }

    /// Into the log. A caller sees it only while its call is the only one: whose message it is can not be told
    /// otherwise, and one member's call must not show up in another's.
    fn log_message(&mut self, params: Option<&RawValue>) {
        let Some(params) = params else { return };
        self.asides.take(LINE_WEIGHT);
        self.voice.say(Stream::Runner, notice::log_text(params));
        let mut calls = self.pending.values().filter(|w| w.place.is_some());
        if let (Some(only), None) = (calls.next(), calls.next())
            && let Some(listener) = &only.events
        {
            // As for progress: losing one is better than waiting.
            let told = self.masked(params).map(|params| notice::event("notifications/message", params.get()));
            let _ = told.map(|event| listener.sink.try_send(event));
        }
    }

    /// As JSON: `None` is what could not be, and what is told is advice.
    fn masked<'a>(&self, params: &'a RawValue) -> Option<Cow<'a, RawValue>> {
        let masking = &self.shared.masking;
        if masking.is_empty() {
            return Some(Cow::Borrowed(params));
        }
        let masked = masking.json(Bytes::copy_from_slice(params.get().as_bytes()));
        RawValue::from_string(String::from_utf8(masked.to_vec()).ok()?).ok().map(Cow::Owned)
    }
}
