//! One request of the client, as an offer sees it.

use std::sync::Arc;

use serde::Deserialize;
use wire::RawJson;

use super::desk::{Desk, Ticket};
use super::eras::{self, Abilities, ModernHead};
use super::hearing::{LegacyLevel, message_level};
use super::{code, error};
use crate::raw::{Members, quote, value};
use crate::stdio::{Answer, Peer};

/// One request of the client while it is worked on.
pub struct Exchange {
    pub method: String,
    /// As the client sent them, without what only its era knows.
    pub params: Option<RawJson>,
    pub(super) caller: Arc<Caller>,
}

/// Who sent a request, and how to reach them.
pub(super) struct Caller {
    pub peer: Peer,
    pub desk: Arc<Desk>,
    pub ticket: Ticket,
    pub speaks: Speaks,
}

pub(super) enum Speaks {
    Legacy { abilities: Abilities, client: Option<RawJson>, log_level: LegacyLevel },
    Modern(ModernHead),
}

impl Speaks {
    fn abilities(&self) -> &Abilities {
        match self {
            Self::Legacy { abilities, .. } => abilities,
            Self::Modern(head) => &head.abilities,
        }
    }
}

/// A request or notification without an envelope.
#[derive(Deserialize)]
pub(super) struct Bare {
    pub method: String,
    #[serde(default)]
    pub params: Option<RawJson>,
}

impl Exchange {
    /// Passes on a notification `{method, params}` that belongs to this request.
    pub fn notify(&self, event: &RawJson) {
        let Ok(Bare { method, params }) = serde_json::from_str::<Bare>(event.get()) else {
            return tracing::warn!("a notification that is none was not passed on");
        };
        if method == "notifications/message" && !self.wants_message(params.as_ref()) {
            return;
        }
        let replaced = match method.as_str() {
            "notifications/progress" => self.caller.desk.token_of_retry(self.caller.ticket),
            _ => None,
        };
        match (replaced, &params) {
            (Some(token), Some(params)) => {
                // A retry without a token wants no progress.
                let (Some(token), Some(params)) = (token, Members::read(params.get())) else { return };
                let params = params.write(|_| true, &[("progressToken", token.get())]);
                self.caller.peer.notify(&method, Some(params.get()));
            }
            _ => self.caller.peer.notify(&method, params.as_ref().map(|params| params.get())),
        }
    }

    /// Tells how far the work is, if the client wants to know.
    pub fn progress(&self, progress: f64, total: Option<f64>, message: Option<&str>) {
        let Some(token) = self.progress_token() else { return };
        let mut params = serde_json::json!({ "progress": progress });
        if let Some(total) = total {
            params["total"] = total.into();
        }
        if let Some(message) = message {
            params["message"] = message.into();
        }
        let params = value(&params);
        let params = crate::raw::with_missing(&params, &[("progressToken", token.get())]);
        let event = format!("{{\"method\":\"notifications/progress\",\"params\":{}}}", params.get());
        self.notify(&crate::raw::raw(event));
    }

    /// The client's own, when it wants to hear of progress.
    pub fn progress_token(&self) -> Option<RawJson> {
        let params = self.params.as_ref().filter(|params| params.get().contains("progressToken"))?;
        let meta = Members::read(params.get())?.get("_meta")?;
        Some(Members::read(meta.get())?.get("progressToken")?.to_owned())
    }

    /// Asks the client what the server wants to know (`{method, params}`: elicitation, sampling, roots) and waits. A client that
    /// did not declare the capability answers -32601, as it would to the server itself.
    pub async fn ask(&self, request: &RawJson) -> Answer {
        let Ok(Bare { method, params }) = serde_json::from_str::<Bare>(request.get()) else {
            return Answer::Error(error(code::INVALID_REQUEST, "not a request"));
        };
        if let Some(refusal) = self.caller.speaks.abilities().refuse(&method, params.as_ref()) {
            return refusal;
        }
        let gone = || Answer::Error(error(code::INTERNAL, "the client is gone"));
        match &self.caller.speaks {
            Speaks::Legacy { .. } => {
                let params = params.as_ref().map(|params| params.get());
                self.caller.peer.ask(&method, params).await.unwrap_or_else(|_| gone())
            }
            Speaks::Modern(_) if !can_ask(&self.method) => super::unknown_method(),
            Speaks::Modern(_) => {
                let answer = self.caller.desk.ask(&self.caller.peer, self.caller.ticket, request.clone());
                answer.await.unwrap_or_else(|_| gone())
            }
        }
    }

    /// In the modern era a request says whether it wants log messages, and from which level on.
    fn wants_message(&self, params: Option<&RawJson>) -> bool {
        match &self.caller.speaks {
            Speaks::Legacy { log_level, .. } => log_level.admits(params),
            Speaks::Modern(head) => {
                head.log_level.is_some_and(|least| message_level(params).is_none_or(|level| level >= least))
            }
        }
    }
}

fn is_unknown_method(error: &RawJson) -> bool {
    let code = Members::read(error.get()).and_then(|error| Some(error.get("code")?.get().to_owned()));
    code.is_some_and(|code| code == code::UNKNOWN_METHOD.to_string())
}

/// Requests that may be answered with `input_required`.
pub(super) fn can_ask(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read")
}

/// What a modern server wants to know before it answers.
pub(super) struct InputRequired {
    pub requests: Vec<(String, RawJson)>,
    pub state: Option<RawJson>,
}

impl InputRequired {
    pub(super) fn read(result: &RawJson) -> Option<Self> {
        if eras::result_type(result)? != "input_required" {
            return None;
        }
        let members = Members::read(result.get())?;
        let requests = members.get("inputRequests").and_then(|requests| Members::read(requests.get()));
        let requests = requests.unwrap_or_default().0.into_iter();
        Some(Self {
            requests: requests.map(|(key, request)| (key.into_owned(), request.to_owned())).collect(),
            state: members.get("requestState").map(ToOwned::to_owned),
        })
    }

    /// Asks the client all of it.
    ///
    /// # Errors
    /// What the client answered instead: then the call can not go on. In the modern era there is no answer that says so; the
    /// client gets its own error back, as servers of its era do it.
    pub(super) async fn answers(&self, exchange: &Exchange) -> Result<RawJson, RawJson> {
        let mut responses = crate::raw::Object::default();
        for (key, request) in &self.requests {
            match exchange.ask(request).await {
                Answer::Result(result) => responses.put(key, result.get()),
                Answer::Error(refusal) if !is_unknown_method(&refusal) => return Err(refusal),
                // By itself it would say that the client called an unknown method.
                Answer::Error(refusal) => {
                    let said =
                        Members::read(refusal.get()).and_then(|e| e.text("message")).unwrap_or_default();
                    let what = serde_json::from_str::<Bare>(request.get()).map(|bare| bare.method);
                    let what = what.unwrap_or_else(|_| quote(key));
                    let text =
                        format!("the service asked the client for `{what}`, and the client answered: {said}");
                    return Err(error(code::INVALID_REQUEST, &text));
                }
            };
        }
        Ok(responses.end())
    }
}
