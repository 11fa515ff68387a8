//! An MCP server of this machine, run here and lent to the mesh.
//!
//! Here: its process, the handshake in the era that it speaks, its tools as they change, calls, starting it again. Not here: the
//! mesh (`crate::mesh`, the command `share`), JSON-RPC over its pipes ([`crate::stdio`]).
//! Invariants: it runs as a child with the person's own environment, in a process group of its own, and the group ends with the
//! [`LocalServer`] (of a process that is killed, a server that does not end with its stdin stays: only the kernel could help, by
//! `unsafe` code); nobody here answers what it asks of a client: it has no roots, and everything else is an unknown method.

mod greet;
mod process;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use wire::RawJson;

use crate::raw;
use crate::stdio::{self, Answer, Incoming, Peer};
use greet::{Era, message};
use process::Process;

/// npx and its like may have to download the server first.
const START: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// After so long, an end is no failed start any more.
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("there is no command to run")]
    NoCommand,
    #[error("can not run `{program}`: {source}")]
    Spawn { program: String, source: std::io::Error },
    #[error("the server ended ({0})")]
    Ended(String),
    #[error("the server is no MCP server: {0}")]
    Protocol(String),
    #[error("the server was not ready within {} s", START.as_secs())]
    Slow,
}

/// Tools as the server defines them.
pub type Tools = Arc<Vec<RawJson>>;

/// The server as it is now.
#[derive(Clone)]
enum State {
    Up {
        peer: Peer,
        era: Era,
        /// Counts its lives.
        life: u64,
    },
    Down,
}

/// A server that runs here. Dropping it ends the server's process group.
pub struct LocalServer {
    state: watch::Receiver<State>,
    tools: watch::Receiver<Tools>,
    /// Why it ended, each time.
    falls: watch::Receiver<Option<String>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinSet<()>,
}

impl LocalServer {
    /// Runs the server and reads its tools.
    ///
    /// # Errors
    /// [`LocalError`], when it does not start the first time. Later it is started again for ever.
    pub async fn start(argv: Vec<String>) -> Result<(Self, Vec<RawJson>), LocalError> {
        let (state_in, state) = watch::channel(State::Down);
        let (tools_in, tools) = watch::channel(Tools::default());
        let (falls_in, falls) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let (first, ready) = oneshot::channel();
        let first = Some(first);
        let owner = Owner { argv, state: state_in, tools: tools_in, falls: falls_in, first, life: 0 };
        let mut task = JoinSet::new();
        task.spawn(owner.run(stopped));
        let server = Self { state, tools, falls, stop: Some(stop), task };
        match timeout(START, ready).await {
            Ok(Ok(Ok(()))) => {
                let tools = server.tools.borrow().to_vec();
                Ok((server, tools))
            }
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(LocalError::Ended("before it said anything".into())),
            Err(_) => Err(LocalError::Slow),
        }
    }

    /// A raw result, or a text that says why there is none. Waits for a server that is being started again, within the deadline.
    /// Dropping the future cancels the call.
    ///
    /// # Errors
    /// What the server said, or why it said nothing.
    pub async fn call(&self, tool: &str, args: &RawJson, deadline: Duration) -> Result<RawJson, String> {
        let ends = Instant::now() + deadline;
        let mut state = self.state.clone();
        let (peer, era, life) = match timeout_at(ends, running(&mut state)).await {
            Ok(Some(running)) => running,
            Ok(None) => return Err("the server was stopped".into()),
            Err(_) => return Err("the server ended and did not come back in time".into()),
        };
        let params = era.params(&[("name", &raw::quote(tool)), ("arguments", args.get())]);
        let answer = tokio::select! {
            answer = timeout_at(ends, peer.ask("tools/call", Some(&params))) => answer,
            _ = state.wait_for(|state| !matches!(state, State::Up { life: now, .. } if *now == life)) => Ok(Err(stdio::Gone)),
        };
        match answer {
            Ok(Ok(Answer::Result(result))) if greet::asks_for_input(&result) => {
                Err("the server asks its client for input, and a server that is lent has none".into())
            }
            Ok(Ok(Answer::Result(result))) => Ok(result),
            Ok(Ok(Answer::Error(error))) => Err(message(&error)),
            Ok(Err(stdio::Gone)) => Err("the server ended while it was working on this".into()),
            Err(_) => Err(format!("the server did not answer within {} s", deadline.as_secs())),
        }
    }

    /// Its tools, each time they change.
    pub fn tools(&self) -> watch::Receiver<Tools> {
        self.tools.clone()
    }

    /// Why it ended, each time it does.
    pub fn falls(&self) -> watch::Receiver<Option<String>> {
        self.falls.clone()
    }

    /// Ends it politely: its stdin is closed, and who does not go is killed.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        while self.task.join_next().await.is_some() {}
    }
}

/// The server, once it runs; `None` when it never will.
async fn running(state: &mut watch::Receiver<State>) -> Option<(Peer, Era, u64)> {
    let up = state.wait_for(|state| matches!(state, State::Up { .. })).await.ok()?;
    match &*up {
        State::Up { peer, era, life } => Some((peer.clone(), *era, *life)),
        State::Down => None,
    }
}

/// Starts the server again and again.
struct Owner {
    argv: Vec<String>,
    state: watch::Sender<State>,
    tools: watch::Sender<Tools>,
    falls: watch::Sender<Option<String>>,
    /// Who waits for the first start.
    first: Option<oneshot::Sender<Result<(), LocalError>>>,
    life: u64,
}

impl Owner {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let Some(error) = self.live(&mut stopped).await else { return };
            self.state.send_replace(State::Down);
            if let Some(first) = self.first.take() {
                // Somebody who does not wait any more is dropping us.
                let _ = first.send(Err(error));
                return;
            }
            self.falls.send_replace(Some(error.to_string()));
            if begun.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = &mut stopped => return,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One life of the server; `None` when it was stopped.
    async fn live(&mut self, stopped: &mut oneshot::Receiver<()>) -> Option<LocalError> {
        let mut process = match Process::spawn(&self.argv) {
            Ok(process) => process,
            Err(error) => return Some(error),
        };
        let (stdout, stdin) = process.pipes();
        let (peer, incoming, transport) = stdio::open(stdout, stdin);
        let relist = Notify::new();
        let end = {
            let work = async {
                let end = tokio::select! {
                    end = self.converse(&peer, &relist) => end,
                    () = hear(&peer, incoming, &relist) => LocalError::Ended("it closed its output".into()),
                };
                // No caller waits for a process that is gone.
                self.state.send_replace(State::Down);
                end
            };
            tokio::select! {
                end = work => Some(end),
                () = transport => Some(LocalError::Ended("it closed its pipes".into())),
                status = process.wait() => Some(LocalError::Ended(status)),
                _ = stopped => None,
            }
        };
        // Of all reasons, how it ended tells most.
        match (end, process.end().await) {
            (Some(LocalError::Ended(_)), Some(status)) => Some(LocalError::Ended(status)),
            (end, _) => end,
        }
    }

    /// Greets it, then reads its tools whenever they change.
    async fn converse(&mut self, peer: &Peer, relist: &Notify) -> LocalError {
        let starting = async {
            let era = greet::greet(peer).await?;
            Ok((era, greet::tools(peer, era).await?))
        };
        let (era, tools) = match timeout(START, starting).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return error,
            Err(_) => return LocalError::Slow,
        };
        self.publish(tools);
        self.life += 1;
        self.state.send_replace(State::Up { peer: peer.clone(), era, life: self.life });
        if let Some(first) = self.first.take() {
            let _ = first.send(Ok(()));
        }
        let changes = async {
            loop {
                relist.notified().await;
                match timeout(START, greet::tools(peer, era)).await {
                    Ok(Ok(tools)) => self.publish(tools),
                    Ok(Err(error)) => tracing::warn!("the tools can not be read again: {error}"),
                    Err(_) => tracing::warn!("the tools can not be read again: no answer"),
                }
            }
        };
        // A listener that ends is no end of the server, nor of what follows its tools.
        let listening = async {
            greet::listen(peer, era).await;
            std::future::pending().await
        };
        tokio::select! {
            never = changes => never,
            never = listening => never,
        }
    }

    fn publish(&self, tools: Vec<RawJson>) {
        self.tools.send_if_modified(|now| {
            let texts =
                |tools: &[RawJson]| tools.iter().map(|tool| tool.get().to_owned()).collect::<Vec<_>>();
            let is_new = texts(now) != texts(&tools);
            if is_new {
                *now = Arc::new(tools);
            }
            is_new
        });
    }
}

/// What it asks and tells, until it closes its side.
async fn hear(peer: &Peer, mut incoming: mpsc::Receiver<Incoming>, relist: &Notify) {
    while let Some(message) = incoming.recv().await {
        match message {
            Incoming::Request { id, method, .. } => peer.answer(&id, &reply(&method)),
            Incoming::Notification { method, .. } if method == "notifications/tools/list_changed" => {
                relist.notify_one();
            }
            Incoming::Notification { .. } | Incoming::Nonsense => {}
        }
    }
}

fn reply(method: &str) -> Answer {
    let result = |text: &str| Answer::Result(raw::raw(text.to_owned()));
    match method {
        "ping" => result("{}"),
        "roots/list" => result(r#"{"roots":[]}"#),
        _ => Answer::Error(crate::front::error(-32601, "Method not found")),
    }
}
