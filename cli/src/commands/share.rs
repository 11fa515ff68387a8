//! `share`: an MCP server of this machine, lent to the mesh for as long as the command runs.
//!
//! Here: registering it, again on a new link and when its tools change, and answering calls. Not here: the server
//! ([`mcp::local`]), who may call it (the broker).
//! Invariant: a call that the broker forwarded is answered once, unless the broker took it back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::connection::{Forward, LinkState};
use client::{Connection, Reconnect};
use mcp::local::{LocalServer, Tools};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};
use wire::ErrorCode;
use wire::peer::live::{
    McpCallForward, McpCallResponse, McpRegister, McpRegisterAck, McpUnregister, McpUnregisterAck,
};

use super::agents::shown_command;
use super::ask;
use crate::args::ShareArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::Out;
use crate::plain::plain_line;
use crate::roles::Signals;

/// Calls at the same time; the broker forwards no more.
const MAX_CALLS: usize = 64;
/// The broker gives up long before.
const CALL: Duration = Duration::from_secs(600);

pub async fn share(here: &Here, args: &ShareArgs) -> Result<(), Failure> {
    let name = args.name.to_string();
    if args.stop {
        let ack: McpUnregisterAck = ask(here, &McpUnregister { server_name: name }).await?;
        if here.out.json {
            return here.out.document(&ack);
        }
        here.out.line(format!("{} is no longer lent", ack.server_name));
        return Ok(());
    }
    let mut signals = Signals::install()?;
    // Wrong names and meshes are said before anything is started.
    let connection = here.connect_as(Reconnect::Forever).await?;
    let begun = tokio::select! {
        begun = LocalServer::start(args.command.clone()) => begun,
        () = signals.next() => return Ok(()),
    };
    let (server, _) = begun.map_err(|error| Failure::user(error.to_string()))?;
    let description = args.description.clone().unwrap_or_else(|| shown_command(&args.command));
    let mut lender = Lender {
        out: here.out,
        registration: McpRegister {
            server_name: name,
            description,
            tools: Vec::new(),
            persistent: args.persistent,
        },
        connection: Arc::new(connection),
        server: Arc::new(server),
        calls: JoinSet::new(),
        running: HashMap::new(),
    };
    let ended = tokio::select! {
        ended = lender.lend() => ended,
        () = signals.next() => Ok(()),
    };
    lender.stop().await;
    ended
}

struct Lender {
    out: Out,
    registration: McpRegister,
    connection: Arc<Connection>,
    server: Arc<LocalServer>,
    calls: JoinSet<()>,
    /// By the broker's id of the call.
    running: HashMap<String, AbortHandle>,
}

impl Lender {
    /// Until the broker does not let us any more.
    async fn lend(&mut self) -> Result<(), Failure> {
        let mut forwards = self.connection.forwards();
        let mut state = self.connection.state();
        let (mut tools, mut falls) = (self.server.tools(), self.server.falls());
        state.mark_unchanged();
        let ack = self.register(&mut tools).await.map_err(taken)?;
        self.say_hello(&ack)?;
        loop {
            tokio::select! {
                forward = forwards.recv() => match forward {
                    Ok(forward) => self.take(&forward).await,
                    Err(RecvError::Lagged(missed)) => self.remark(&format!("{missed} calls came too fast")),
                    Err(RecvError::Closed) => return Err(Failure::platform("the link to the broker is gone")),
                },
                Some(ended) = self.calls.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    self.forget(id);
                }
                _ = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    self.follow_link(now, &mut tools).await?;
                }
                Ok(()) = tools.changed() => self.register_again(&mut tools, "its tools have changed").await?,
                Ok(()) = falls.changed() => {
                    let why = falls.borrow_and_update().clone();
                    self.remark(&format!("{}; starting it again", why.unwrap_or_default()));
                }
            }
        }
    }

    async fn follow_link(
        &mut self,
        now: LinkState,
        tools: &mut watch::Receiver<Tools>,
    ) -> Result<(), Failure> {
        match now {
            LinkState::Up(_) => self.register_again(tools, "connected again").await,
            LinkState::Down(why) => {
                // Whoever called is told by the broker that we are gone.
                self.calls.abort_all();
                self.remark(&format!("the link is lost ({why}); connecting again"));
                Ok(())
            }
            LinkState::Ended(why) => Err(Failure::platform(format!("the link is lost for good: {why}"))),
        }
    }

    async fn register(
        &mut self,
        tools: &mut watch::Receiver<Tools>,
    ) -> Result<McpRegisterAck, client::ClientError> {
        self.registration.tools = tools.borrow_and_update().to_vec();
        self.connection.request(&self.registration).await
    }

    /// A link that is lost meanwhile comes back, and then this is tried again.
    async fn register_again(&mut self, tools: &mut watch::Receiver<Tools>, why: &str) -> Result<(), Failure> {
        match self.register(tools).await {
            Ok(ack) => {
                self.remark(&format!("{why}; {} is lent with {} tools", ack.server_name, ack.tool_count));
                Ok(())
            }
            Err(error) if error.is_link_loss() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn take(&mut self, forward: &Forward) {
        match forward {
            Forward::Call(call) if call.server_name != self.registration.server_name => {}
            Forward::Call(call) if self.running.len() >= MAX_CALLS => {
                let busy = format!("{MAX_CALLS} calls are running already");
                answer(&self.connection, &call.call_id, Err(busy)).await;
            }
            Forward::Call(call) => self.begin(call),
            Forward::Cancel(cancel) => {
                if let Some(call) = self.running.remove(&cancel.call_id) {
                    call.abort();
                }
            }
        }
    }

    fn begin(&mut self, call: &McpCallForward) {
        let McpCallForward { call_id, tool_name, args, caller_name, server_name: _ } = call;
        self.remark(&format!("{caller_name} calls {tool_name}"));
        let (server, connection) = (Arc::clone(&self.server), Arc::clone(&self.connection));
        let (id, tool, args) = (call_id.clone(), tool_name.clone(), args.clone());
        let handle = self.calls.spawn(async move {
            let outcome = server.call(&tool, &args, CALL).await;
            answer(&connection, &id, outcome).await;
        });
        self.running.insert(call_id.clone(), handle);
    }

    fn forget(&mut self, task: Id) {
        self.running.retain(|_, handle| handle.id() != task);
    }

    fn remark(&self, text: &str) {
        self.out.remark(plain_line(text));
    }

    fn say_hello(&self, ack: &McpRegisterAck) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Lent<'a> {
            name: &'a str,
            tools: usize,
            persistent: bool,
        }
        let McpRegisterAck { server_name: name, tool_count: tools } = ack;
        if self.out.json {
            let persistent = self.registration.persistent;
            return self.out.document(&Lent { name, tools: *tools, persistent });
        }
        self.out.line(format!("{name} is lent to the mesh with {tools} tools"));
        self.out.remark("Ctrl-C takes it back.");
        Ok(())
    }

    /// Leaving takes an ephemeral server from the mesh, and sets a persistent one offline.
    async fn stop(mut self) {
        self.calls.shutdown().await;
        if let Some(connection) = Arc::into_inner(self.connection) {
            connection.close().await;
        }
        if let Some(server) = Arc::into_inner(self.server) {
            server.stop().await;
        }
    }
}

fn taken(error: client::ClientError) -> Failure {
    let is_taken = error.code() == Some(ErrorCode::Conflict);
    let failure = Failure::from(error);
    if is_taken { failure.with_cure("Choose another name.") } else { failure }
}

async fn answer(connection: &Connection, call_id: &str, outcome: Result<wire::RawJson, String>) {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    // A link that is gone has told the caller already.
    let _ = connection.tell(&McpCallResponse { call_id: call_id.to_owned(), result, error }).await;
}
