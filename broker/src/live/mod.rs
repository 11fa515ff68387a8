//! Live servers: MCP servers that members run on their own machines and lend to the mesh.
//!
//! Here: registering, taking back, listing, and what follows when a host comes or goes. [`table`] is who lends what now, [`call`]
//! the way of a call to its host and back. Not here: hosted services (`deploy`, `calls`).
//! Invariants: a name is of one member, and never a hosted service's too: both sides look while they hold the mesh's turn. An answer
//! is taken from the connection that was asked and from no other.

mod call;
mod registration;
mod table;

use std::sync::Arc;

use catalog::access::{self, Action, Caller, Decision, Subject};
use wire::peer::live::{McpLiveEvent, McpRegister, McpRegistered};
use wire::{ErrorCode, MeshId, Scope, ServiceKey, ServiceName};

pub use call::{LiveError, call};
pub use table::Live;

use self::registration::Offer;
use self::table::{Entry, Left, Place};
use crate::app::Broker;
use crate::clock;
use crate::error::{FrameError, shown};
use crate::peer::events;
use crate::peer::presence::Presence;
use crate::store::{LentServer, Store, StoreError, Tx};

/// The persistent ones of every mesh, all of them offline.
///
/// # Errors
/// [`StoreError`].
pub async fn load(store: &Store) -> Result<Live, StoreError> {
    let mut tx = store.begin().await?;
    tx.live().all_left(clock::now_ms()).await?;
    let live = Live::new(clock::now_ms());
    for server in tx.live().all().await? {
        let LentServer { key, member, description, tools, registration, offline_since } = server;
        let lender = tx.members().by_id(&key.mesh, &member).await?;
        let lender = lender.map_or_else(|| "unknown".to_owned(), |member| member.display_name);
        let place = Place::Away { since: offline_since };
        let entry =
            Entry { member, lender, description, tools: tools.into(), persistent: true, registration, place };
        live.put(&key, entry);
    }
    tx.commit().await?;
    Ok(live)
}

/// Lends a server from this connection. Runs to its end even when the connection ends meanwhile.
///
/// # Errors
/// `forbidden`, `invalid_name`, `invalid_args`, `conflict`, `limit`.
pub async fn register(
    broker: &Arc<Broker>,
    (presence, caller): (&Arc<Presence>, &Arc<Caller>),
    frame: McpRegister,
) -> Result<(ServiceName, usize), FrameError> {
    if access::decide(caller, Action::Lend, None) != Decision::Allow {
        return Err(FrameError::new(ErrorCode::Forbidden, "guests may not lend servers"));
    }
    let offer = Offer::read(frame)?;
    let (own, presence, caller) = (Arc::clone(broker), Arc::clone(presence), Arc::clone(caller));
    let work = broker.tracker.spawn(async move { enter(&own, &presence, &caller, offer).await });
    work.await.unwrap_or_else(|error| Err(FrameError::internal(&error)))
}

async fn enter(
    broker: &Broker,
    presence: &Presence,
    caller: &Caller,
    offer: Offer,
) -> Result<(ServiceName, usize), FrameError> {
    let key = ServiceKey { mesh: caller.mesh.clone(), name: offer.name.clone() };
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&key.mesh).await?;
    let member = tx.members().by_id(&key.mesh, &caller.member).await?;
    if member.is_none_or(|member| member.is_revoked()) {
        return Err(FrameError::new(ErrorCode::Forbidden, "you are no member of this mesh any more"));
    }
    if tx.services().find(&key).await?.is_some() {
        let message = format!("the name `{}` is taken by a hosted service", key.name);
        return Err(FrameError::new(ErrorCode::Conflict, message));
    }
    let before = broker.live.entry(&key);
    broker.live.has_room(&key, &caller.member, &offer)?;
    let entry = Entry {
        member: caller.member.clone(),
        lender: caller.display_name.clone(),
        description: offer.description,
        tools: offer.tools,
        persistent: offer.persistent,
        registration: broker.live.next_registration(),
        place: Place::Host { conn: presence.conn, outbox: presence.outbox.clone() },
    };
    keep(&mut tx, &key, &entry).await?;
    // While the turn is held, so that nobody else takes the name meanwhile.
    broker.live.put(&key, entry.clone());
    if let Err(error) = tx.commit().await {
        broker.live.undo(&key, entry.registration, before);
        return Err(error.into());
    }
    if !broker.presences.is_here(presence) {
        // It went while we wrote: its leaving did not know of this yet.
        host_left(broker, presence);
        return Err(FrameError::new(ErrorCode::HostOffline, "the connection ended"));
    }
    tell_entered(broker, presence, &key, (before.as_ref(), &entry));
    tracing::info!(mesh.id = %key.mesh, member.id = %caller.member, "live server {key} is lent");
    Ok((key.name, entry.tools.len()))
}

async fn keep(tx: &mut Tx, key: &ServiceKey, entry: &Entry) -> Result<(), StoreError> {
    if !entry.persistent {
        return tx.live().remove(key).await.map(drop);
    }
    let server = LentServer {
        key: key.clone(),
        member: entry.member.clone(),
        description: entry.description.clone(),
        tools: entry.tools.to_vec(),
        registration: entry.registration,
        offline_since: None,
    };
    tx.live().put(&server).await
}

/// To everybody else: it is back, or it is new or another. Nothing when only its host is another.
fn tell_entered(
    broker: &Broker,
    presence: &Presence,
    key: &ServiceKey,
    (before, now): (Option<&Entry>, &Entry),
) {
    let others = |other: &Presence| other.conn != presence.conn;
    if before.is_some_and(|before| matches!(before.place, Place::Away { .. })) {
        let data = McpLiveEvent { server_name: key.name.to_string(), hosted_by: now.lender.clone() };
        return events::tell(&broker.presences, &key.mesh, ("mcp_restored", &data), others);
    }
    if before.is_some_and(|before| before.says_the_same(now)) {
        return;
    }
    let data = McpRegistered {
        server_name: key.name.to_string(),
        description: now.description.clone(),
        tools: now.tools.iter().filter_map(|tool| registration::tool_name(tool)).collect(),
        hosted_by: now.lender.clone(),
    };
    events::tell(&broker.presences, &key.mesh, ("mcp_registered", &data), others);
}

/// Takes a server off the mesh, by whose it is or an admin.
///
/// # Errors
/// `not_found`, `forbidden`.
pub async fn unregister(
    broker: &Arc<Broker>,
    (presence, caller): (&Arc<Presence>, &Arc<Caller>),
    name: &str,
) -> Result<ServiceName, FrameError> {
    let unknown =
        || FrameError::new(ErrorCode::NotFound, format!("no live server `{}` in this mesh", shown(name)));
    let name = ServiceName::parse(name).map_err(|_| unknown())?;
    let key = ServiceKey { mesh: caller.mesh.clone(), name };
    let entry = broker.live.entry(&key).ok_or_else(unknown)?;
    let subject = Subject { mesh: &key.mesh, deployed_by: &entry.member, scope: &Scope::Mesh };
    if access::decide(caller, Action::TakeBack, Some(subject)) != Decision::Allow {
        return Err(FrameError::new(ErrorCode::Forbidden, "only who lends it and admins may do this"));
    }
    let (own, presence, taken) = (Arc::clone(broker), Arc::clone(presence), key.clone());
    let work = broker.tracker.spawn(async move {
        let mut tx = own.store.begin().await?;
        tx.meshes().take_turns(&taken.mesh).await?;
        tx.live().remove(&taken).await?;
        tx.commit().await?;
        if own.live.remove(&taken, entry.registration) {
            tell_gone(&own, &taken, &entry.lender, |other| other.conn != presence.conn);
        }
        Ok::<(), StoreError>(())
    });
    work.await.map_err(|error| FrameError::internal(&error))??;
    Ok(key.name)
}

/// The connection ended: what it lends goes, or is offline from now on, and who waits for its answers is told.
pub fn host_left(broker: &Broker, presence: &Presence) {
    let now = clock::now_ms();
    let Left { gone, away } = broker.live.host_left(&presence.mesh, presence.conn, now);
    for (name, lender) in gone {
        let key = ServiceKey { mesh: presence.mesh.clone(), name };
        tell_gone(broker, &key, &lender, |other| other.conn != presence.conn);
    }
    // Connections are dropped with the runtime, too.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    if away.is_empty() {
        return;
    }
    let (store, mesh) = (broker.store.clone(), presence.mesh.clone());
    let note = async move {
        if let Err(error) = note_away(&store, &mesh, away, now).await {
            tracing::warn!(mesh.id = %mesh, "since when a live server is offline was not written down: {error}");
        }
    };
    drop(broker.tracker.spawn_on(note, &runtime));
}

async fn note_away(
    store: &Store,
    mesh: &MeshId,
    away: Vec<(ServiceName, i64)>,
    since: i64,
) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    for (name, registration) in away {
        tx.live().leave(&ServiceKey { mesh: mesh.clone(), name }, registration, since).await?;
    }
    tx.commit().await
}

/// A member was removed, and their rows with them.
pub fn member_left(broker: &Broker, mesh: &MeshId, member: &wire::MemberId) {
    for (name, lender) in broker.live.remove_of(mesh, member) {
        tell_gone(broker, &ServiceKey { mesh: mesh.clone(), name }, &lender, |_| true);
    }
}

fn tell_gone(broker: &Broker, key: &ServiceKey, lender: &str, hears: impl Fn(&Presence) -> bool) {
    let data = McpLiveEvent { server_name: key.name.to_string(), hosted_by: lender.to_owned() };
    events::tell(&broker.presences, &key.mesh, ("mcp_unregistered", &data), hears);
}
