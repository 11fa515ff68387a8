//! What this session lends to the mesh: live servers whose calls are answered here, by a program or by the agent itself.
//!
//! Here: what is lent, calls that run or wait for the agent, registering again on a new link. Not here: the program
//! (`crate::local`), the tools that begin and end it (`super::tools`).
//! Invariant: a call that was taken is answered once, by its program or by the agent, unless the broker took it back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Announce, ClientError, Connection, Reconnect};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot, watch};
use wire::RawJson;
use wire::peer::live::{
    McpCallForward, McpCallResponse, McpRegister, McpRegisterAck, McpUnregister, McpUnregisterAck,
};

use super::{Member, splice};
use crate::local::{LocalServer, Tools};

/// Member of a tool's `_meta` that tells the session's channel whose calls the agent answers.
pub const ANSWERED_BY: &str = "claudemesh/answeredBy";
pub const AGENT: &str = "agent";
/// Calls that wait for the agent; the broker forwards no more than this to one connection anyway.
const MAX_WAITING: usize = 64;
/// The broker gives up a forwarded call after this long.
const CALL_LIMIT: Duration = Duration::from_secs(30);

pub type Answering = Pin<Box<dyn Future<Output = Result<RawJson, String>> + Send>>;

/// A program that answers: tool and arguments to a raw result, or a text that says why there is none.
pub type Program = Arc<dyn Fn(String, RawJson) -> Answering + Send + Sync>;

#[derive(Clone)]
pub enum AnsweredBy {
    Agent,
    Program(Program),
}

#[derive(Clone)]
pub struct Lent {
    pub description: String,
    pub tools: Vec<RawJson>,
    pub persistent: bool,
    pub by: AnsweredBy,
    /// Of a program: its tools, each time they change.
    pub news: Option<watch::Receiver<Tools>>,
}

#[derive(Default)]
pub struct Lending {
    state: Mutex<State>,
    /// A call came that the agent has to answer.
    came: Notify,
    /// Something else is lent now.
    lent: Notify,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<String, Lent>,
    waiting: VecDeque<McpCallForward>,
    /// Calls that a program works on; sending to one ends it.
    running: HashMap<String, oneshot::Sender<()>>,
}

impl Lending {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn holds(&self, name: &str) -> bool {
        self.state().servers.contains_key(name)
    }

    /// Registers a server at the broker and answers for it from then on.
    pub async fn lend(
        &self,
        connection: &Connection,
        name: &str,
        lent: Lent,
    ) -> Result<McpRegisterAck, ClientError> {
        let frame = registration(name, &lent);
        // Before the broker knows it: a call may come at once.
        let before = self.state().servers.insert(name.to_owned(), lent);
        let registered = connection.request(&frame).await;
        if registered.is_ok() {
            self.lent.notify_one();
        } else {
            let mut state = self.state();
            match before {
                Some(before) => state.servers.insert(name.to_owned(), before),
                None => state.servers.remove(name),
            };
        }
        registered
    }

    /// Takes a server back; the broker decides whether it is ours to take.
    pub async fn remove(&self, connection: &Connection, name: &str) -> Result<(), ClientError> {
        let frame = McpUnregister { server_name: name.to_owned() };
        let McpUnregisterAck { .. } = connection.request(&frame).await?;
        let mut state = self.state();
        state.servers.remove(name);
        state.waiting.retain(|call| call.server_name != name);
        Ok(())
    }

    /// Until a program's tools are others; what it is to be registered with then.
    pub async fn renewed(&self) -> McpRegister {
        loop {
            let receivers: Vec<_> = {
                let state = self.state();
                state
                    .servers
                    .iter()
                    .filter_map(|(name, lent)| Some((name.clone(), lent.news.clone()?)))
                    .collect()
            };
            let changes = receivers.into_iter().map(|(name, mut news)| {
                Box::pin(async move {
                    match news.changed().await {
                        Ok(()) => name,
                        Err(_) => std::future::pending().await,
                    }
                })
            });
            let mut changes: FuturesUnordered<_> = changes.collect();
            let name = tokio::select! {
                () = self.lent.notified() => continue,
                Some(name) = changes.next() => name,
            };
            let mut state = self.state();
            if let Some(lent) = state.servers.get_mut(&name)
                && let Some(news) = &mut lent.news
            {
                lent.tools = news.borrow_and_update().to_vec();
                return registration(&name, lent);
            }
        }
    }

    /// A new link knows nothing of what was lent over the old one.
    pub async fn register_all(&self, connection: &Connection) {
        let frames: Vec<McpRegister> =
            self.state().servers.iter().map(|(name, lent)| registration(name, lent)).collect();
        for frame in frames {
            let done: Result<McpRegisterAck, _> = connection.request(&frame).await;
            if let Err(error) = done {
                tracing::warn!(server = frame.server_name, "not registered again: {error}");
            }
        }
    }

    /// At the end of this process, since others may keep the session's link up: what is persistent is offline, the rest goes.
    pub async fn take_back(&self, member: &Member) {
        if member.connection.hello().is_none() {
            return;
        }
        let servers = std::mem::take(&mut self.state().servers);
        let (kept, gone): (Vec<_>, Vec<_>) = servers.into_iter().partition(|(_, lent)| lent.persistent);
        let goodbye = async {
            let connection = &member.connection;
            for (server_name, _) in gone {
                let _: McpUnregisterAck = connection.request(&McpUnregister { server_name }).await?;
            }
            if kept.is_empty() {
                return Ok(());
            }
            // The broker knows a server as offline when the link is gone over which it was registered last.
            let announce = Announce::here("ai", "lend");
            let brief = Connection::open(member.membership.clone(), announce, Reconnect::Never).await?;
            for (name, lent) in &kept {
                let _: McpRegisterAck = brief.request(&registration(name, lent)).await?;
            }
            brief.close().await;
            Ok::<(), ClientError>(())
        };
        match tokio::time::timeout(GOODBYE, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("what was lent here may stay listed: {error}"),
            Err(_) => tracing::warn!("what was lent here may stay listed: the broker is slow"),
        }
    }

    /// Takes a call of one of our servers. The future answers it, when a program does; the agent's calls wait.
    pub fn take(&self, call: &McpCallForward) -> Option<Taken> {
        let mut state = self.state();
        let lent = state.servers.get(&call.server_name)?;
        match &lent.by {
            AnsweredBy::Agent if state.waiting.len() >= MAX_WAITING => Some(Taken::Refused),
            AnsweredBy::Agent => {
                state.waiting.push_back(copy(call));
                self.came.notify_waiters();
                None
            }
            AnsweredBy::Program(program) => {
                let answering = program(call.tool_name.clone(), call.args.clone());
                let (ender, end) = oneshot::channel();
                state.running.insert(call.call_id.clone(), ender);
                Some(Taken::Running(answering, end))
            }
        }
    }

    pub fn finished(&self, call_id: &str) {
        self.state().running.remove(call_id);
    }

    /// Nobody waits for this call any more.
    pub fn cancel(&self, call_id: &str) {
        let mut state = self.state();
        state.waiting.retain(|call| call.call_id != call_id);
        state.running.remove(call_id);
    }

    /// The calls that wait for the agent.
    pub fn waiting(&self) -> Vec<McpCallForward> {
        self.state().waiting.iter().map(copy).collect()
    }

    /// Until a call waits for the agent.
    pub async fn some_waiting(&self) {
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            // Listening begins before looking, or a call between the two would be missed.
            came.as_mut().enable();
            if !self.state().waiting.is_empty() {
                return;
            }
            came.await;
        }
    }

    /// Takes a waiting call out, to be answered. `false`: there is none of this id.
    pub fn settle(&self, call_id: &str) -> bool {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|call| call.call_id != call_id);
        state.waiting.len() < before
    }
}

const GOODBYE: Duration = Duration::from_secs(2);

/// A call that is answered without the agent.
pub enum Taken {
    /// The agent has too many calls to answer already.
    Refused,
    Running(Answering, oneshot::Receiver<()>),
}

fn copy(call: &McpCallForward) -> McpCallForward {
    let McpCallForward { call_id, server_name, tool_name, args, caller_name } = call;
    McpCallForward {
        call_id: call_id.clone(),
        server_name: server_name.clone(),
        tool_name: tool_name.clone(),
        args: args.clone(),
        caller_name: caller_name.clone(),
    }
}

fn registration(name: &str, lent: &Lent) -> McpRegister {
    McpRegister {
        server_name: name.to_owned(),
        description: lent.description.clone(),
        tools: lent.tools.clone(),
        persistent: lent.persistent,
    }
}

pub fn response(call_id: &str, outcome: Result<RawJson, String>) -> McpCallResponse {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    McpCallResponse { call_id: call_id.to_owned(), result, error }
}

/// Starts an MCP server of this machine, which answers by itself.
///
/// # Errors
/// A text that says why it does not run.
pub async fn start(command: Vec<String>, description: String, persistent: bool) -> Result<Lent, String> {
    let (server, tools) = LocalServer::start(command).await.map_err(|error| error.to_string())?;
    let mut news = server.tools();
    news.mark_unchanged();
    let server = Arc::new(server);
    let program: Program = Arc::new(move |tool, args| {
        let server = Arc::clone(&server);
        Box::pin(async move { server.call(&tool, &args, CALL_LIMIT).await })
    });
    Ok(Lent { description, tools, persistent, by: AnsweredBy::Program(program), news: Some(news) })
}

/// The definition, marked as one whose calls the agent answers.
pub fn marked(tool: &RawValue) -> Option<RawJson> {
    let none = splice::of(&serde_json::json!({}));
    let meta = splice::member(tool, "_meta").unwrap_or(&none);
    let meta = splice::with_text(meta, ANSWERED_BY, AGENT)?;
    splice::with_member(tool, "_meta", meta.get())
}

/// Whether a listed tool is one whose calls the agent answers.
pub fn is_for_agent(tool: &RawValue) -> bool {
    let by = splice::member(tool, "_meta").and_then(|meta| splice::text_member(meta, ANSWERED_BY));
    by.as_deref() == Some(AGENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, server: &str) -> McpCallForward {
        McpCallForward {
            call_id: id.into(),
            server_name: server.into(),
            tool_name: "t".into(),
            args: splice::of(&serde_json::json!({ "x": 1 })),
            caller_name: "Bo".into(),
        }
    }

    fn lending(by: AnsweredBy) -> Lending {
        let lending = Lending::default();
        let lent = Lent { description: String::new(), tools: vec![], persistent: false, by, news: None };
        lending.state().servers.insert("mine".into(), lent);
        lending
    }

    #[tokio::test]
    async fn a_call_for_the_agent_waits_until_it_is_answered_or_taken_back() {
        let lending = lending(AnsweredBy::Agent);
        assert!(lending.take(&call("1", "other")).is_none(), "not ours");
        assert!(lending.waiting().is_empty());
        assert!(lending.take(&call("1", "mine")).is_none());
        assert!(lending.take(&call("2", "mine")).is_none());
        lending.some_waiting().await;
        lending.cancel("1");
        assert!(lending.settle("2"));
        assert!(!lending.settle("2") && !lending.settle("1"), "answered once");
    }

    #[tokio::test]
    async fn the_agent_gets_a_bounded_number_of_calls() {
        let lending = lending(AnsweredBy::Agent);
        for n in 0..MAX_WAITING {
            assert!(lending.take(&call(&n.to_string(), "mine")).is_none());
        }
        assert!(matches!(lending.take(&call("more", "mine")), Some(Taken::Refused)));
        assert_eq!(lending.waiting().len(), MAX_WAITING);
    }

    #[tokio::test]
    async fn a_program_answers_and_a_cancel_ends_it() {
        let program: Program = Arc::new(|tool, args| {
            Box::pin(async move { Ok(splice::of(&serde_json::json!({ "tool": tool, "args": args }))) })
        });
        let lending = lending(AnsweredBy::Program(program));
        let Some(Taken::Running(answering, end)) = lending.take(&call("1", "mine")) else {
            panic!("it runs")
        };
        assert_eq!(answering.await.unwrap().get(), r#"{"args":{"x":1},"tool":"t"}"#);
        lending.cancel("1");
        assert!(end.await.is_err(), "its end is told");
    }

    #[test]
    fn a_marked_tool_is_recognised_and_else_as_it_was() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let tool = raw(r#"{"name":"a","_meta":{"k":1.0},"n":1e1}"#);
        assert!(!is_for_agent(&tool));
        let marked = marked(&tool).unwrap();
        assert!(is_for_agent(&marked));
        assert_eq!(marked.get(), r#"{"name":"a","_meta":{"claudemesh/answeredBy":"agent","k":1.0},"n":1e1}"#);
    }
}
