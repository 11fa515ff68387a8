//! Keeping the lists true: what the broker tells, and what has to be asked again.
//!
//! Here: the loops that hear of changes, and of calls of what this process lends. Not here: the lists themselves
//! ([`super::roster`]).
//! Invariant: after a gap (a new link, events that were missed) everything is asked again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use client::LinkState;
use client::connection::Forward;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use wire::peer::hosting::{McpCatalog, McpCatalogResult, McpSchema, McpSchemaResult};
use wire::peer::live::{McpCallForward, McpList, McpListResult, McpRegisterAck};
use wire::peer::mesh::SystemPush;
use wire::peer::skills::{ListSkills, SkillList};
use wire::{Class, ErrorCode};

use super::Mesh;
use super::lending::{Taken, response};

/// What could not be read although there is a link is read again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// The member that names the service; the rest of an event is asked for.
#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Mesh {
    /// Runs until it is dropped.
    pub(super) async fn keep(&self) {
        tokio::join!(self.keep_lists(), self.keep_lending());
    }

    async fn keep_lists(&self) {
        let mut pushes = self.member.connection.pushes();
        let mut state = self.member.connection.state();
        state.mark_changed();
        let mut again = None;
        loop {
            tokio::select! {
                changed = state.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let is_up = matches!(&*state.borrow_and_update(), LinkState::Up(_));
                    if is_up {
                        self.refresh_all().await;
                    }
                }
                () = at(again) => self.refresh_all().await,
                push = pushes.recv() => match push {
                    Ok(push) => self.hear(&push).await,
                    Err(RecvError::Lagged(_)) => self.refresh_all().await,
                    Err(RecvError::Closed) => return std::future::pending().await,
                },
            }
            let has_missed = self.has_missed.swap(false, Ordering::Relaxed);
            // Without a link, the next one makes us ask.
            let is_up = matches!(&*state.borrow(), LinkState::Up(_));
            again = (has_missed && is_up).then(|| Instant::now() + RETRY);
        }
    }

    /// A broker that is busy now may answer later.
    fn miss(&self) -> bool {
        self.has_missed.store(true, Ordering::Relaxed);
        false
    }

    async fn keep_lending(&self) {
        let connection = &self.member.connection;
        let mut forwards = connection.forwards();
        let mut state = connection.state();
        // The calls that programs of ours answer.
        let mut work = FuturesUnordered::new();
        loop {
            tokio::select! {
                changed = state.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let is_up = matches!(&*state.borrow_and_update(), LinkState::Up(_));
                    if is_up {
                        self.lending.register_all(connection).await;
                    }
                }
                forward = forwards.recv() => match forward.as_deref() {
                    Ok(Forward::Call(call)) => work.extend(self.take(call)),
                    Ok(Forward::Cancel(cancel)) => self.lending.cancel(&cancel.call_id),
                    // Their callers are told by the broker's own deadline.
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "calls of lent servers were missed"),
                    Err(RecvError::Closed) => return std::future::pending().await,
                },
                renewed = self.lending.renewed() => {
                    let done: Result<McpRegisterAck, _> = connection.request(&renewed).await;
                    if let Err(error) = done {
                        tracing::warn!(server = renewed.server_name, "its new tools are not known to the mesh: {error}");
                    }
                }
                Some(()) = work.next() => {}
            }
        }
    }

    /// A call of something that we lend; the future answers it.
    fn take(&self, call: &McpCallForward) -> Option<impl Future<Output = ()> + Send + '_> {
        let taken = self.lending.take(call)?;
        let id = call.call_id.clone();
        Some(async move {
            let outcome = match taken {
                Taken::Refused => {
                    Err("the agent that lends this server has too many calls to answer".to_owned())
                }
                Taken::Running(answering, end) => tokio::select! {
                    outcome = answering => outcome,
                    _ = end => return,
                },
            };
            self.lending.finished(&id);
            if let Err(error) = self.member.connection.tell(&response(&id, outcome)).await {
                tracing::debug!("the answer of a lent server is lost: {error}");
            }
        })
    }

    async fn hear(&self, push: &SystemPush) {
        let has_changed = match push.event.as_str() {
            "mcp_deployed" | "mcp_updated" | "mcp_undeployed" | "mcp_scope_changed" => {
                let Ok(Named { name }) = serde_json::from_str(push.event_data.get()) else { return };
                self.refresh_service(&name).await
            }
            "mcp_registered" | "mcp_unregistered" | "mcp_restored" => self.refresh_live().await,
            "skill_shared" | "skill_removed" => {
                self.refresh_skills().await;
                // The text behind a name may differ where the list does not.
                return self.skills_changed();
            }
            _ => return,
        };
        if has_changed {
            self.tools_changed();
        }
    }

    async fn refresh_all(&self) {
        let (services, live, skills) =
            tokio::join!(self.refresh_services(), self.refresh_live(), self.refresh_skills());
        if services || live {
            self.tools_changed();
        }
        if skills {
            self.skills_changed();
        }
        self.loaded.send_replace(true);
    }

    async fn refresh_services(&self) -> bool {
        let Ok(McpCatalogResult { services }) = self.member.connection.request(&McpCatalog {}).await else {
            return self.miss();
        };
        // A stopped one too: nothing is told when a service stops or starts, and a call of it says what to do.
        let names: Vec<String> = services.into_iter().map(|service| service.name).collect();
        let gone = self.roster().keep_services(&names);
        let changed = join_all(names.iter().map(|name| self.refresh_service(name))).await;
        gone || changed.contains(&true)
    }

    /// `true` when its tools differ now.
    pub(super) async fn refresh_service(&self, name: &str) -> bool {
        let frame = McpSchema { server_name: name.to_owned(), tool_name: None };
        match self.member.connection.request::<_, McpSchemaResult>(&frame).await {
            Ok(schema) => self.roster().put_service(schema),
            Err(error) if error.code().is_some_and(is_absence) => self.roster().remove_service(name),
            Err(_) => self.miss(),
        }
    }

    pub(super) async fn refresh_live(&self) -> bool {
        match self.member.connection.request::<_, McpListResult>(&McpList {}).await {
            Ok(McpListResult { servers }) => self.roster().put_live(servers, |name| self.lending.holds(name)),
            Err(_) => self.miss(),
        }
    }

    async fn refresh_skills(&self) -> bool {
        let Ok(SkillList { skills }) = self.member.connection.request(&ListSkills::default()).await else {
            return self.miss();
        };
        let text =
            |skills: &[wire::peer::skills::SkillEntry]| serde_json::to_string(skills).unwrap_or_default();
        let mut known = self.skills();
        let is_new = text(&known) != text(&skills);
        *known = skills;
        is_new
    }
}

/// Never, without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Not there for this caller, in whichever words.
fn is_absence(code: ErrorCode) -> bool {
    code.class() == Class::Denied
}
