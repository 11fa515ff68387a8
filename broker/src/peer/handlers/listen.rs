//! `mcp_listen`: what a service says outside of calls.
//!
//! Here: for how long somebody may listen, listening again at a runner that was away, and which events the broker itself knows.
//! Not here: subscriptions and log levels at the server (the runner).
//! Invariants: that a list changed is told when the catalog has the new one, and from the catalog only, so that who lists again gets
//! it; nothing is told to somebody who may not call the service any more; listening wakes no service.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wire::peer::calls::{McpListen, McpListening, McpRequestEvent, McpRequestResult};
use wire::report::Lists;
use wire::runner::{LISTEN, LISTENING, Listen, Rpc, RpcCall};
use wire::{ErrorCode, RawJson, ServiceKey};

use super::calls::answer;
use crate::callers;
use crate::calls::{self, CallError, Said};
use crate::error::FrameError;
use crate::peer::dispatch::Asked;
use crate::runner::{OpenCall, RunnerError};

const MAX_RESOURCES: usize = 1000;
/// Of all of them together; a runner takes no more.
const MAX_URIS_BYTES: usize = 256 << 10;
const LEVELS: &[&str] = &["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
/// Until it is tried again at a runner that is there and yet did not let us listen on.
const AGAIN: Duration = Duration::from_secs(5);
/// A runner waits half of this for a server that was asked to tell of a resource.
const OPENING: Duration = Duration::from_secs(20);
/// The runner's own bound on how long something may run: listening has no end.
const FOR_EVER_MS: u64 = 365 * 24 * 3600 * 1000;

pub async fn listen(asked: Asked, frame: McpListen, cancel: CancellationToken) {
    if let Err(error) = check(&frame) {
        return asked.refuse(error).await;
    }
    let end = tokio::select! {
        end = Listener::new(&asked, &frame).follow() => end,
        () = cancel.cancelled() => CallError::Cancelled,
    };
    answer(&asked, &frame.server_name, Err(end), McpRequestResult).await;
}

fn check(frame: &McpListen) -> Result<(), FrameError> {
    let bytes: usize = frame.resources.iter().map(String::len).sum();
    if frame.resources.len() > MAX_RESOURCES || bytes > MAX_URIS_BYTES {
        let rule =
            format!("`resources` are at most {MAX_RESOURCES} URIs of at most {MAX_URIS_BYTES} bytes in all");
        return Err(FrameError::invalid(rule));
    }
    match &frame.log_level {
        Some(level) if !LEVELS.contains(&level.as_str()) => {
            Err(FrameError::invalid(format!("`logLevel` is one of {}", LEVELS.join(", "))))
        }
        _ => Ok(()),
    }
}

/// Where to listen, and what the catalog offers this listener.
struct Place {
    key: ServiceKey,
    lists: Option<Arc<Lists>>,
}

struct Listener<'a> {
    asked: &'a Asked,
    frame: &'a McpListen,
    changes: watch::Receiver<u64>,
    has_begun: bool,
    /// Something may have been missed since then.
    was_away: bool,
    /// What the client knows the lists to be; the outer `None` before the first look.
    known: Option<Option<Arc<Lists>>>,
}

impl<'a> Listener<'a> {
    fn new(asked: &'a Asked, frame: &'a McpListen) -> Self {
        let changes = asked.broker.views.watch(&asked.presence.mesh);
        Self { asked, frame, changes, has_begun: false, was_away: false, known: None }
    }

    /// Listens until the listener may not any more.
    async fn follow(mut self) -> CallError {
        loop {
            let revision = self.asked.broker.observed.revision();
            let place = match self.look().await {
                Ok(place) => place,
                Err(end) => return end,
            };
            let heard = match self.open(&place.key).await {
                Ok(open) => self.hear(open, &place.key).await,
                Err(error) => Err(error),
            };
            let Err(error) = heard else { continue };
            if error.code() == ErrorCode::InvalidArgs {
                // It will not become right by waiting.
                return error.into();
            }
            // Nothing is missed: what changes until the runner is back is told then.
            self.begin().await;
            self.was_away = true;
            self.wait(&place.key, revision, &error).await;
        }
    }

    /// Access, anew after each change of the mesh. Tells which lists changed.
    async fn look(&mut self) -> Result<Place, CallError> {
        self.changes.borrow_and_update();
        let (presence, name) = (&self.asked.presence, self.frame.server_name.as_str());
        let gone = || CallError::NotFound(crate::error::shown(name));
        let view = self.asked.broker.views.find(&presence.mesh).await.map_err(callers::CallerError::from)?;
        let view = view.ok_or_else(gone)?;
        let caller = view.caller(&presence.member).ok_or_else(gone)?;
        let service = calls::theirs(&view, &caller, name)?;
        let lists = service.lists_for(&caller).cloned();
        let place = Place { key: callers::place(service, &caller), lists };
        if let Some(known) = self.known.replace(place.lists.clone()) {
            for method in differing(known.as_deref(), place.lists.as_deref()) {
                self.tell(method, None).await;
            }
        }
        Ok(place)
    }

    async fn open(&self, key: &ServiceKey) -> Result<OpenCall, RunnerError> {
        if !self.asked.broker.observed.link().is_up() {
            return Err(RunnerError::Unavailable);
        }
        let nonsense = |e: serde_json::Error| RunnerError::Nonsense(e.to_string());
        let McpListen { server_name: _, resources, log_level } = self.frame.clone();
        let params = serde_json::value::to_raw_value(&Listen { resources, log_level }).map_err(nonsense)?;
        let rpc = Rpc {
            method: LISTEN.to_owned(),
            params: Some(params),
            deadline_ms: FOR_EVER_MS,
            events: true,
            asks: false,
            session: Some(self.asked.presence.presence_id.clone()),
            caller: Some(self.asked.presence.member_key.clone()),
        };
        let call = serde_json::to_string(&RpcCall { service: key.clone(), rpc }).map_err(nonsense)?;
        let opening = tokio::time::timeout(OPENING, calls::begun(&self.asked.broker, call.into()));
        let (open, first) = opening.await.map_err(|_| RunnerError::Lost)??;
        match calls::said(first) {
            Ok(Said::Event(event)) if method(&event) == LISTENING => Ok(open),
            Err(CallError::Runner(error)) => Err(error),
            _ => Err(RunnerError::Nonsense("listening begins with another line".into())),
        }
    }

    /// Passes on what the service says, until it ends or is to be listened to in another place.
    async fn hear(&mut self, mut open: OpenCall, key: &ServiceKey) -> Result<(), RunnerError> {
        self.begin().await;
        if std::mem::take(&mut self.was_away) {
            for uri in &self.frame.resources {
                self.tell("notifications/resources/updated", Some(json!({ "uri": uri }))).await;
            }
        }
        loop {
            tokio::select! {
                // Access first: what the service says after it was taken away is not theirs.
                biased;
                _ = self.changes.changed() => match self.look().await {
                    Ok(place) if place.key == *key => {}
                    // Elsewhere, or not at all: the next look tells.
                    _ => return Ok(()),
                },
                () = self.asked.broker.observed.runner_leaves() => return Err(RunnerError::Unavailable),
                line = calls::line(&mut open) => match calls::said(line?) {
                    Ok(Said::Event(event)) => self.pass_on(event).await,
                    Err(CallError::Runner(error)) => return Err(error),
                    _ => return Err(RunnerError::Nonsense("listening has no result".into())),
                },
            }
        }
    }

    async fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.asked.answer(&McpListening {}).await;
        }
    }

    async fn pass_on(&self, event: RawJson) {
        if !LIST_CHANGES.contains(&method(&event)) {
            self.asked.answer(&McpRequestEvent { event }).await;
        }
    }

    async fn tell(&self, method: &str, params: Option<serde_json::Value>) {
        let mut event = json!({ "method": method });
        if let Some(params) = params {
            event["params"] = params;
        }
        if let Ok(event) = serde_json::value::to_raw_value(&event) {
            self.asked.answer(&McpRequestEvent { event }).await;
        }
    }

    /// Until the service is at the runner, or the mesh has changed.
    async fn wait(&mut self, key: &ServiceKey, mut revision: u64, error: &RunnerError) {
        let observed = &self.asked.broker.observed;
        let is_there = || observed.link().is_up() && observed.get(key).is_some();
        // Everything says that it is there: so no event will say that it is there again.
        let again = !matches!(error, RunnerError::Unavailable) && is_there();
        loop {
            tokio::select! {
                () = observed.changed_since(revision) => {
                    revision = observed.revision();
                    if is_there() {
                        return;
                    }
                }
                _ = self.changes.changed() => return,
                () = tokio::time::sleep(AGAIN), if again => return,
            }
        }
    }
}

const TOOLS: &str = "notifications/tools/list_changed";
const PROMPTS: &str = "notifications/prompts/list_changed";
const RESOURCES: &str = "notifications/resources/list_changed";
const LIST_CHANGES: [&str; 3] = [TOOLS, PROMPTS, RESOURCES];

/// What to call the difference between two sets of lists.
fn differing(before: Option<&Lists>, after: Option<&Lists>) -> Vec<&'static str> {
    let differs = |pick: fn(&Lists) -> &Vec<RawJson>| {
        let [before, after] = [before, after].map(|lists| lists.map_or(&[][..], |lists| pick(lists)));
        !before.iter().map(|one| one.get()).eq(after.iter().map(|one| one.get()))
    };
    let parts = [
        (TOOLS, differs(|lists| &lists.tools)),
        (PROMPTS, differs(|lists| &lists.prompts)),
        (RESOURCES, differs(|lists| &lists.resources) || differs(|lists| &lists.resource_templates)),
    ];
    parts.into_iter().filter(|(_, differs)| *differs).map(|(method, _)| method).collect()
}

fn method(event: &RawJson) -> &str {
    #[derive(Deserialize)]
    struct Method<'a> {
        method: &'a str,
    }
    serde_json::from_str::<Method<'_>>(event.get()).map_or("", |event| event.method)
}
