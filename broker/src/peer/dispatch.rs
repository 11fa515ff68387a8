//! From a frame to its handler and back.
//!
//! Here: correlation by `_reqId`, order, limits, who speaks (read anew from the store's view for every frame, so that
//! a removed member loses access at once), and turning an error into a frame. Frames of a connection are handled in
//! order; what waits for a server (calls, log streams, the end of a deploy) runs beside them, in tasks that end with
//! the connection. Not here: sockets (`super::socket`), what a frame means (`super::handlers`).

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use catalog::access::Caller;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ErrorCode;
use wire::peer::Head;
use wire::peer::calls::{McpAskAnswer, McpCancel, McpRequest};
use wire::runner::RpcDown;

use super::handlers;
use super::outbox::{Closing, Outbox};
use super::presence::Presence;
use super::socket::Text;
use crate::app::Broker;
use crate::error::FrameError;
use crate::metrics;
use crate::views::MeshView;

/// Calls, log streams and deploys that one connection may have waiting.
const MAX_DETACHED: usize = 256;
/// Answers to what a server asks that wait to be passed on. A runner does not ask more at once.
const MAX_ANSWERS: usize = 32;

/// Everything a handler may look at.
#[derive(Clone)]
pub struct Asked {
    pub broker: Arc<Broker>,
    pub presence: Arc<Presence>,
    pub view: Arc<MeshView>,
    pub caller: Arc<Caller>,
    pub req_id: Option<Arc<str>>,
}

impl Asked {
    pub fn outbox(&self) -> &Outbox {
        &self.presence.outbox
    }

    pub async fn answer<B: wire::peer::Body + serde::Serialize>(&self, body: &B) {
        self.outbox().answer(self.req_id.as_deref(), body).await;
    }

    pub async fn refuse(&self, error: FrameError) {
        self.outbox().refuse(self.req_id.as_deref(), error).await;
    }
}

/// Reads the body of a frame. The message names the field and the rule, never the value.
///
/// # Errors
/// `invalid_args`.
pub fn body<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, FrameError> {
    serde_json::from_str(text).map_err(|error| FrameError::invalid(without_value(&error.to_string())))
}

/// serde's texts quote what was found: `invalid type: string "hunter2", expected u32`.
fn without_value(message: &str) -> String {
    for kind in ["invalid type", "invalid value"] {
        if let Some((before, rest)) = message.split_once(kind) {
            let rule = rest.rfind(", expected").map_or("", |at| &rest[at..]);
            return format!("{before}{kind}{rule}");
        }
    }
    message.to_owned()
}

struct Running {
    serial: u64,
    cancel: CancellationToken,
    /// Of a request whose caller can be asked.
    answers: Option<mpsc::Sender<RpcDown>>,
}

/// One authenticated connection.
pub struct Connection {
    broker: Arc<Broker>,
    presence: Arc<Presence>,
    tasks: JoinSet<Option<(Arc<str>, u64)>>,
    /// What `mcp_cancel` can end, by the `_reqId` that began it.
    running: HashMap<Arc<str>, Running>,
    serial: u64,
}

impl Connection {
    pub fn new(broker: Arc<Broker>, presence: Arc<Presence>) -> Self {
        Self { broker, presence, tasks: JoinSet::new(), running: HashMap::new(), serial: 0 }
    }

    pub fn idle_limit(&self) -> Duration {
        self.broker.limits.idle_limit
    }

    /// Takes one ended task out of the books. Waits for ever when there is none. Cancel-safe.
    pub async fn reap(&mut self) {
        match self.tasks.join_next().await {
            None => pending().await,
            Some(Ok(Some((req_id, serial)))) => self.forget(&req_id, serial),
            Some(Ok(None)) => {}
            Some(Err(error)) => {
                tracing::error!(mesh.id = %self.presence.mesh, "a request's task failed: {error}");
            }
        }
    }

    fn forget(&mut self, req_id: &Arc<str>, serial: u64) {
        // A later request may have taken the same id.
        if self.running.get(req_id).is_some_and(|running| running.serial == serial) {
            self.running.remove(req_id);
        }
    }

    /// Handles one frame. Returns when the next may be read.
    pub async fn frame(&mut self, text: &Text) {
        let Text::Utf8(text) = text else {
            return self.reject(None, "malformed", ErrorCode::Malformed, "a frame is UTF-8 text").await;
        };
        let Ok(head) = serde_json::from_str::<Head<'_>>(text) else {
            let message = "a frame is a JSON object with a string `type`";
            return self.reject(None, "malformed", ErrorCode::Malformed, message).await;
        };
        let req_id: Option<Arc<str>> = head.req_id.map(|id| Arc::from(id.as_ref()));
        let limit = self.broker.limits.frame(&head.kind);
        if text.len() > limit {
            let message = format!("the frame is larger than {limit} bytes");
            return self.reject(req_id.as_deref(), "too_large", ErrorCode::TooLarge, &message).await;
        }
        let asked = match self.asked(req_id.clone()).await {
            Ok(Some(asked)) => asked,
            Ok(None) => return self.presence.outbox.end(Closing::BANNED),
            Err(error) => return self.presence.outbox.refuse(req_id.as_deref(), error).await,
        };
        if let Err(error) = self.route(&head.kind, asked, text).await {
            self.presence.outbox.refuse(req_id.as_deref(), error).await;
        }
    }

    async fn asked(&self, req_id: Option<Arc<str>>) -> Result<Option<Asked>, FrameError> {
        let view = self.broker.views.of(&self.presence.mesh).await?;
        let Some(caller) = view.caller(&self.presence.member) else { return Ok(None) };
        let presence = Arc::clone(&self.presence);
        Ok(Some(Asked { broker: Arc::clone(&self.broker), presence, view, caller, req_id }))
    }

    async fn reject(&self, req_id: Option<&str>, label: &'static str, code: ErrorCode, message: &str) {
        metrics::frame_rejected(label);
        self.presence.outbox.refuse(req_id, FrameError::new(code, message)).await;
    }

    /// What waits for a server, and what is said to it meanwhile. `false`: another kind of frame.
    fn route_call(&mut self, kind: &str, asked: &Asked, text: &str) -> Result<bool, FrameError> {
        use handlers::{calls, listen, logs};
        match kind {
            "mcp_call" => {
                let call = body(text)?;
                self.detach(asked, |cancel| calls::tool(asked.clone(), call, cancel))?;
            }
            "mcp_request" => {
                let request: McpRequest = body(text)?;
                // Without an id, no answer would find its way back.
                let asks = request.asks && asked.req_id.is_some();
                let (sender, answers) = asks.then(|| mpsc::channel(MAX_ANSWERS)).unzip();
                let begin = |cancel| calls::request(asked.clone(), request, answers, cancel);
                self.detach_asking(asked, sender, begin)?;
            }
            "mcp_ask_answer" => self.pass_on(body(text)?)?,
            "mcp_listen" => {
                let wanted = body(text)?;
                self.detach(asked, |cancel| listen::listen(asked.clone(), wanted, cancel))?;
            }
            "mcp_logs" => {
                let wanted = body(text)?;
                self.detach(asked, |cancel| logs::logs(asked.clone(), wanted, cancel))?;
            }
            "mcp_cancel" => self.cancel(&body(text)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    async fn route(&mut self, kind: &str, asked: Asked, text: &str) -> Result<(), FrameError> {
        use handlers::{hosting, mesh, vault};
        if self.route_call(kind, &asked, text)? {
            return Ok(());
        }
        match kind {
            "mcp_deploy" => self.change(asked.clone(), hosting::deploy(&asked, body(text)?).await?).await,
            "mcp_update" => self.change(asked.clone(), hosting::update(&asked, body(text)?).await?).await,
            "mcp_rollback" => self.change(asked.clone(), hosting::rollback(&asked, body(text)?).await?).await,
            "mcp_start" => self.change(asked.clone(), hosting::start(&asked, body(text)?).await?).await,
            "mcp_stop" => self.change(asked.clone(), hosting::stop(&asked, body(text)?).await?).await,
            "mcp_undeploy" => self.change(asked.clone(), hosting::undeploy(&asked, body(text)?).await?).await,
            "mcp_network" => self.change(asked.clone(), hosting::network(&asked, body(text)?).await?).await,
            "mcp_consent_ask" => handlers::consent::ask(&asked, body(text)?).await,
            "mcp_consent" => match handlers::consent::agree(&asked, body(text)?).await? {
                Some(change) => self.change(asked, change).await,
                None => Ok(()),
            },
            "mcp_approve" => hosting::approve(&asked, body(text)?).await,
            "runner_status" => hosting::runner(&asked).await,
            "mcp_scope" => hosting::scope(&asked, body(text)?).await,
            "mcp_status" => hosting::status(&asked, body(text)?).await,
            "mcp_catalog" => hosting::catalog(&asked).await,
            "mcp_schema" => hosting::schema(&asked, body(text)?).await,
            "list_peers" => mesh::peers(&asked).await,
            "set_status" => mesh::set_status(&asked, body(text)?).await,
            "invite_create" => mesh::invite(&asked, body(text)?).await,
            "mesh_policy" => mesh::policy(&asked, body(text)?).await,
            "member_list" => mesh::members(&asked).await,
            "member_update" => mesh::update_member(&asked, body(text)?).await,
            "hello" | "session_hello" => Err(FrameError::invalid("this connection has said hello before")),
            other => {
                if let Some(handled) = vault::handle(other, &asked, text).await {
                    return handled;
                }
                if let Some(handled) = handlers::live::handle(other, &asked, text).await {
                    return handled;
                }
                if let Some(handled) = handlers::skills::handle(other, &asked, text).await {
                    return handled;
                }
                metrics::frame_rejected("unknown_type");
                let message = format!("unknown frame `{}`", crate::error::shown(other));
                Err(FrameError::new(ErrorCode::UnknownMessageType, message))
            }
        }
    }

    /// Answers `building` (or the state it is already in) and waits for the verdict beside the other frames.
    async fn change(&mut self, asked: Asked, change: crate::deploy::Change) -> Result<(), FrameError> {
        if let Some(status) = change.first_status() {
            asked.answer(&status).await;
        }
        self.detach(&asked.clone(), |_| handlers::hosting::verdict(asked, change))
    }

    /// Runs a handler in a task of its own, which `mcp_cancel` and the end of the connection end.
    fn detach<F, Fut>(&mut self, asked: &Asked, begin: F) -> Result<(), FrameError>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.detach_asking(asked, None, begin)
    }

    /// [`Self::detach`], for what takes answers while it runs.
    fn detach_asking<F, Fut>(
        &mut self,
        asked: &Asked,
        answers: Option<mpsc::Sender<RpcDown>>,
        begin: F,
    ) -> Result<(), FrameError>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        while let Some(Ok(ended)) = self.tasks.try_join_next() {
            if let Some((req_id, serial)) = ended {
                self.forget(&req_id, serial);
            }
        }
        if self.tasks.len() >= MAX_DETACHED {
            metrics::frame_rejected("busy");
            let message = format!("{MAX_DETACHED} requests of this connection are waiting already");
            return Err(FrameError::new(ErrorCode::Busy, message));
        }
        let cancel = CancellationToken::new();
        self.serial += 1;
        let booked = asked.req_id.clone().map(|req_id| (req_id, self.serial));
        if let Some((req_id, serial)) = booked.clone() {
            self.running.insert(req_id, Running { serial, cancel: cancel.clone(), answers });
        }
        let work = begin(cancel);
        self.tasks.spawn(async move {
            work.await;
            booked
        });
        Ok(())
    }

    fn cancel(&mut self, frame: &McpCancel) {
        if let Some(running) = self.running.remove(frame.request_id.as_str()) {
            running.cancel.cancel();
        }
    }

    /// To the request that was asked. It may just have ended: then nobody waits for the answer.
    fn pass_on(&self, frame: McpAskAnswer) -> Result<(), FrameError> {
        let McpAskAnswer { request_id, ask, result, error } = frame;
        if result.is_some() == error.is_some() {
            return Err(FrameError::invalid("an answer is either `result` or `error`"));
        }
        let running = self.running.get(request_id.as_str());
        if let Some(answers) = running.and_then(|running| running.answers.as_ref())
            && answers.try_send(RpcDown { ask, result, error }).is_err()
        {
            metrics::frame_rejected("answer_unasked");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_not_quoted_back() {
        let error = body::<wire::peer::hosting::McpLogs>(r#"{"server_name":"x","lines":"hunter2"}"#);
        let message = error.expect_err("refused").message;
        assert!(!message.contains("hunter2") && message.contains("expected u32"), "{message}");
    }
}
