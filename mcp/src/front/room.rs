//! What the loop of one client and its tasks share: the four cells, and what the client wants to hear.
//!
//! Here: how a request gets from one era into another. Not here: which message means what (`turn`), what each era wants (`eras`).
//! Invariant: no lock is held while somebody waits.

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;
use wire::RawJson;

use super::desk::{Desk, Refusal};
use super::eras::{self, Abilities};
use super::exchange::{Exchange, InputRequired, Speaks, can_ask};
use super::hearing::{Hearing, TooMuch};
use super::{Changes, Offer, code, error};
use crate::raw::{Members, quote, raw};
use crate::stdio::{Answer, Peer};

/// How often a legacy client is asked for one call of a modern server.
const MAX_ROUNDS: usize = 10;
/// So long a client waits until what it wants to hear will be heard. It may still come later.
const HEARD_LIMIT: Duration = Duration::from_secs(5);

/// A client of the legacy era, since its `initialize`.
#[derive(Clone)]
pub(super) struct Session {
    pub abilities: Abilities,
    pub client: Option<RawJson>,
}

/// What the loop and its tasks share.
pub(super) struct Room<O> {
    pub peer: Peer,
    pub offer: Arc<O>,
    pub desk: Arc<Desk>,
    state: Mutex<State>,
    pub changes: watch::Receiver<Changes>,
    /// No `initialize` waits for its answer.
    pub greeted: Arc<watch::Sender<bool>>,
}

/// An `initialize` whose answer is under way, or was cancelled.
pub(super) struct Greeting(Arc<watch::Sender<bool>>);

impl Greeting {
    pub(super) fn begin(greeted: &Arc<watch::Sender<bool>>) -> Self {
        greeted.send_replace(false);
        Self(Arc::clone(greeted))
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// A modern request in work that wants log messages.
pub(super) struct Wanting<'a> {
    state: &'a Mutex<State>,
    level: usize,
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.hearing.end_request(self.level);
    }
}

pub(super) struct State {
    pub session: Option<Session>,
    pub hearing: Hearing,
    wished: (Vec<String>, Option<String>),
    /// Done when what was wished last will be heard.
    heard: Shared<BoxFuture<'static, ()>>,
}

impl Default for State {
    fn default() -> Self {
        let heard = ready(()).boxed().shared();
        Self { session: None, hearing: Hearing::default(), wished: (Vec::new(), None), heard }
    }
}

impl<O: Offer> Room<O> {
    pub(super) fn new(peer: Peer, offer: Arc<O>) -> Self {
        let (desk, changes, greeted) = (Arc::default(), offer.changes(), Arc::new(watch::Sender::new(true)));
        Self { peer, offer, desk, state: Mutex::default(), changes, greeted }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the offer what the client wants to hear, if that is something new.
    pub(super) fn wish(&self) {
        let mut state = self.state();
        let wishes = state.hearing.wishes();
        if state.wished != wishes {
            state.wished = wishes.clone();
            state.heard = self.offer.subscribe(wishes.0, wishes.1).shared();
        }
    }

    /// Waits until all that was wished is heard, as far as it can be in time.
    pub(super) async fn heard(&self) {
        let heard = self.state().heard.clone();
        let _ = tokio::time::timeout(HEARD_LIMIT, heard).await;
    }

    /// The server is told that a modern request wants log messages, if it does. To be held while the request is in work.
    pub(super) fn want_messages(&self, speaks: &Speaks) -> Option<Wanting<'_>> {
        let Speaks::Modern(head) = speaks else { return None };
        let level = head.log_level?;
        self.state().hearing.begin_request(level);
        let wanting = Wanting { state: &self.state, level };
        self.wish();
        Some(wanting)
    }

    pub(super) async fn heed(&self, uri: &str, is_on: bool) -> Answer {
        {
            let hearing = &mut self.state().hearing;
            if !is_on {
                hearing.unsubscribe(uri);
            } else if let Err(too_much) = hearing.subscribe(uri) {
                return too_much.answer();
            }
        }
        self.wish();
        if is_on {
            self.heard().await;
        }
        empty()
    }

    /// The four cells.
    pub(super) async fn handle(&self, exchange: Exchange) -> Answer {
        let about = self.offer.about().await;
        if let Speaks::Legacy { .. } = exchange.caller.speaks {
            // A client that does not wait for it still hears the handshake first. It can't fail: we hold the sender.
            let _ = self.greeted.subscribe().wait_for(|greeted| *greeted).await;
        }
        let method = exchange.method.clone();
        let is_modern = self.offer.is_modern_for(&exchange).unwrap_or(about.is_modern);
        let answer = match (&exchange.caller.speaks, is_modern) {
            (Speaks::Legacy { .. }, false) => return self.offer.handle(&exchange).await,
            (Speaks::Legacy { .. }, true) => {
                return match self.rounds(&exchange).await {
                    Answer::Result(result) => Answer::Result(eras::legacy_result(&method, result)),
                    failed @ Answer::Error(_) => failed,
                };
            }
            (Speaks::Modern(_), true) => self.offer.handle(&exchange).await,
            (Speaks::Modern(head), false) => {
                if head.log_level.is_some() {
                    self.heard().await;
                }
                let params = exchange.params.map(eras::without_modern_meta);
                if params.as_ref().is_some_and(has_request_state) && can_ask(&method) {
                    return Refusal::UnknownState.answer();
                }
                self.offer.handle(&Exchange { params, ..exchange }).await
            }
        };
        match answer {
            Answer::Result(result) => Answer::Result(eras::modern_result(&method, result)),
            failed @ Answer::Error(_) => failed,
        }
    }

    /// A legacy client's call of a modern server: asks the client what the server wants to know, and calls again.
    async fn rounds(&self, exchange: &Exchange) -> Answer {
        let Speaks::Legacy { abilities, client, log_level } = &exchange.caller.speaks else {
            return self.offer.handle(exchange).await;
        };
        let mut answers: Vec<(&str, RawJson)> = Vec::new();
        for _ in 0..=MAX_ROUNDS {
            let put: Vec<(&str, &str)> = answers.iter().map(|(name, value)| (*name, value.get())).collect();
            let params = eras::with_modern_meta(
                exchange.params.as_ref(),
                abilities,
                client.as_ref(),
                log_level.get(),
                &put,
            );
            let (method, caller) = (exchange.method.clone(), Arc::clone(&exchange.caller));
            let answer = self.offer.handle(&Exchange { method, params: Some(params), caller }).await;
            let Answer::Result(result) = &answer else { return answer };
            let Some(wanted) = InputRequired::read(result) else { return answer };
            match wanted.answers(exchange).await {
                Ok(responses) => answers = vec![("inputResponses", responses)],
                Err(refusal) => return Answer::Error(refusal),
            }
            answers.extend(wanted.state.map(|state| ("requestState", state)));
        }
        Answer::Error(error(code::INTERNAL, "the service asked the client more than 10 times"))
    }
}

impl TooMuch {
    pub(super) fn answer(self) -> Answer {
        let text = match self {
            Self::Uris => "more than 1,000 subscriptions",
            Self::Streams => "more than 64 streams",
        };
        Answer::Error(error(code::INVALID_PARAMS, text))
    }
}

fn has_request_state(params: &RawJson) -> bool {
    params.get().contains(&quote("requestState"))
        && Members::read(params.get()).is_some_and(|params| params.get("requestState").is_some())
}

pub(super) fn empty() -> Answer {
    Answer::Result(raw("{}".to_owned()))
}
