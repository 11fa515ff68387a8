//! One hosted service as one MCP server, as if it ran here.
//!
//! ```text
//!  front ── ServiceOffer ─┬─ view (watch) ◀── follow: mcp_schema at link up, at pushes, at list_changed; cache
//!                         ├─ call: mcp_request, asks of the server back to the client
//!                         └─ wishes (watch) ──▶ hear: one mcp_listen stream ──▶ notices
//! ```
//!
//! Here: what is offered, and when the lists of the broker or of the cache are good enough. Not here: eras and stdio (`front`).
//! Invariants: lists never wait for the service itself; the client is told of a change only if bytes differ.

mod call;
mod follow;
mod hear;
mod lists;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::{Connection, LinkState};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::{MeshId, RawJson, ServiceName};

use crate::cache::Cache;
use crate::front::{self, About, Changes, Eras, Exchange, Offer, code, error, unknown_method};
use crate::raw::Members;
use crate::stdio::{self, Answer};
use lists::Lists;

/// How a session of an agent presents itself to the mesh.
pub const PEER_TYPE: &str = "ai";
pub const CHANNEL: &str = "claude-code";

/// Where the last lists of one membership's services are kept.
pub fn cache_folder(config_folder: &Path, mesh: &MeshId) -> PathBuf {
    config_folder.join("cache").join(mesh.as_str())
}

/// So long a client waits for the broker when there are lists of last time.
const PATIENCE_WITH_CACHE: Duration = Duration::from_secs(1);
/// And so long when there are none. Clients give a server 30 s to start.
const PATIENCE_WITHOUT: Duration = Duration::from_secs(25);
const NOTICES: usize = 256;

/// What is known about the service.
#[derive(Clone)]
struct View {
    lists: Arc<Lists>,
    /// The broker said so, in this life of the process.
    is_fresh: bool,
}

/// What the client wants to hear outside of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wishes {
    resources: Vec<String>,
    log_level: Option<String>,
    /// Newer ones have higher numbers.
    number: u64,
}

/// What the offer and its tasks share.
struct Shared {
    connection: Connection,
    name: ServiceName,
    cache: Cache,
    view: watch::Sender<View>,
    changes: watch::Sender<Changes>,
    wishes: watch::Sender<Wishes>,
    /// The newest wishes that are listened for, or can not be.
    heard: watch::Sender<u64>,
    notices: broadcast::Sender<RawJson>,
    /// The lists are to be read again.
    stale: Notify,
    started: Instant,
}

struct ServiceOffer {
    shared: Arc<Shared>,
    has_cache: bool,
}

/// Serves stdin and stdout until the client closes stdin or `stop` is done. `cache_dir`: of this membership.
pub async fn run(
    connection: Connection,
    name: ServiceName,
    cache_dir: PathBuf,
    stop: impl Future<Output = ()>,
) {
    serve((stdio::stdin(), stdio::stdout()), connection, name, cache_dir, stop).await;
}

async fn serve(
    (input, output): (
        impl tokio::io::AsyncRead + Unpin + Send + 'static,
        impl tokio::io::AsyncWrite + Unpin + Send + 'static,
    ),
    connection: Connection,
    name: ServiceName,
    cache_dir: PathBuf,
    stop: impl Future<Output = ()>,
) {
    let cache = Cache::new(cache_dir, name.clone());
    let known = cache.read();
    let has_cache = known.is_some();
    let lists = Arc::new(known.map_or_else(|| Lists::unknown(&name), Lists::from));
    let shared = Arc::new(Shared {
        connection,
        name,
        cache,
        view: watch::Sender::new(View { lists, is_fresh: false }),
        changes: watch::Sender::default(),
        wishes: watch::Sender::default(),
        heard: watch::Sender::default(),
        notices: broadcast::Sender::new(NOTICES),
        stale: Notify::new(),
        started: Instant::now(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(follow::follow(Arc::clone(&shared)));
    tasks.spawn(hear::hear(Arc::clone(&shared)));
    let offer = Arc::new(ServiceOffer { shared: Arc::clone(&shared), has_cache });
    tokio::select! {
        () = front::serve(input, output, offer, Eras::Both) => {}
        () = stop => {}
    }
    tasks.shutdown().await;
    if let Ok(Shared { connection, .. }) = Arc::try_unwrap(shared) {
        connection.close().await;
    }
}

impl ServiceOffer {
    /// The lists of the broker; when it takes too long, the last ones that are known.
    async fn lists(&self) -> Arc<Lists> {
        let mut view = self.shared.view.subscribe();
        if !view.borrow().is_fresh {
            let patience = if self.has_cache { PATIENCE_WITH_CACHE } else { PATIENCE_WITHOUT };
            let until = self.shared.started + patience;
            let mut link = self.shared.connection.state();
            tokio::select! {
                _ = tokio::time::timeout_at(until, view.wait_for(|view| view.is_fresh)) => {}
                // Nobody to wait for. When the broker is back, the client hears of what has changed.
                _ = link.wait_for(LinkState::has_failed), if self.has_cache => {}
            }
        }
        Arc::clone(&view.borrow().lists)
    }
}

impl Offer for ServiceOffer {
    async fn about(&self) -> About {
        self.lists().await.about.clone()
    }

    async fn handle(&self, exchange: &Exchange) -> Answer {
        match exchange.method.as_str() {
            "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => {
                let lists = self.lists().await;
                match lists.of(&exchange.method) {
                    None => unknown_method(),
                    Some(_) if has_cursor(exchange) => Answer::Error(error(
                        code::INVALID_PARAMS,
                        "there is one page only: no `cursor` is valid",
                    )),
                    Some(list) => Answer::Result(list.clone()),
                }
            }
            "tools/call" | "prompts/get" | "resources/read" | "completion/complete" => {
                call::call(&self.shared, exchange).await
            }
            _ => unknown_method(),
        }
    }

    fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    fn subscribe(&self, resources: Vec<String>, log_level: Option<String>) -> BoxFuture<'static, ()> {
        let mut number = 0;
        self.shared.wishes.send_modify(|wishes| {
            number = wishes.number + 1;
            *wishes = Wishes { resources, log_level, number };
        });
        let mut heard = self.shared.heard.subscribe();
        Box::pin(async move {
            // An error: everything ends.
            let _ = heard.wait_for(|heard| *heard >= number).await;
        })
    }

    fn notices(&self) -> Option<broadcast::Receiver<RawJson>> {
        Some(self.shared.notices.subscribe())
    }
}

fn has_cursor(exchange: &Exchange) -> bool {
    let members = exchange.params.as_ref().and_then(|params| Members::read(params.get()));
    members.and_then(|members| members.get("cursor")).is_some_and(|cursor| cursor.get() != "null")
}
