//! Letting a peer in: the checks of `hello` and `session_hello` in the order of the reference, then a presence.
//!
//! Here: the order, capacity, membership, `hello_ack`, joining and leaving. Not here: the cryptographic checks
//! themselves (`crate::identity`), what a presence may do later (`super::dispatch` asks the store's view each time).

use std::sync::Arc;

use catalog::access::Caller;
use wire::peer::hello::{Group, Hello, HelloAck, MemberProfile, SessionHello};
use wire::peer::mesh::PeerEvent;
use wire::peer::{Head, close};
use wire::{ErrorCode, MeshId, PublicKey};

use super::dispatch::body;
use super::events;
use super::outbox::{Closing, Outbox};
use super::presence::{Entered, Labels, PeerRole, Presence};
use super::socket::Text;
use crate::app::Broker;
use crate::error::{FrameError, shown};
use crate::identity::{self, Refusal};
use crate::status::Doing;
use crate::views::MeshView;
use crate::{clock, describe, fresh, live, metrics};

/// Why a hello was not accepted.
enum No {
    Refused(Refusal),
    Failed(FrameError),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<FrameError> for No {
    fn from(error: FrameError) -> Self {
        Self::Failed(error)
    }
}

impl From<crate::store::StoreError> for No {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// Who has been proven to speak.
struct Proven {
    mesh: MeshId,
    member_key: PublicKey,
    session_key: Option<PublicKey>,
    role: PeerRole,
    display_name: Option<String>,
    session_id: String,
    pid: i64,
    groups: Option<Vec<Group>>,
    labels: Labels,
}

/// Takes one frame of a connection that has not said hello. `None`: it may try on.
///
/// # Errors
/// How the connection ends; the `error` frame that says why is on its way.
pub async fn admit(broker: &Broker, outbox: &Outbox, text: &Text) -> Result<Option<Arc<Presence>>, Closing> {
    let Text::Utf8(text) = text else {
        metrics::frame_rejected("malformed");
        outbox.refuse(None, FrameError::new(ErrorCode::Malformed, "a frame is UTF-8 text")).await;
        return Ok(None);
    };
    if text.len() > broker.limits.max_message_bytes {
        metrics::frame_rejected("too_large");
        outbox.refuse(None, FrameError::new(ErrorCode::TooLarge, "the frame is too large")).await;
        // A hello is small, and whoever has not proven who they are gets no second try at our memory.
        return Err(Closing::TOO_BIG);
    }
    let Ok(head) = serde_json::from_str::<Head<'_>>(text) else {
        metrics::frame_rejected("malformed");
        let message = "a frame is a JSON object with a string `type`";
        outbox.refuse(None, FrameError::new(ErrorCode::Malformed, message)).await;
        return Ok(None);
    };
    let req_id = head.req_id.as_deref();
    let entered = match head.kind.as_ref() {
        "hello" => by_hello(broker, outbox, req_id, text).await,
        "session_hello" => by_session_hello(broker, outbox, req_id, text).await,
        _ => {
            metrics::frame_rejected("no_hello");
            outbox.refuse(req_id, FrameError::new(ErrorCode::NoHello, "must send hello first")).await;
            return Ok(None);
        }
    };
    match entered {
        Ok(presence) => Ok(Some(presence)),
        Err(no) => Err(turn_away(outbox, req_id, no).await),
    }
}

async fn turn_away(outbox: &Outbox, req_id: Option<&str>, no: No) -> Closing {
    match no {
        No::Refused(refusal) => {
            metrics::connection_refused(refusal.label);
            let code = refusal.code;
            outbox.refuse(req_id, FrameError::new(code, refusal.message)).await;
            match code {
                ErrorCode::Revoked => Closing::BANNED,
                _ => Closing { code: close::POLICY, reason: code.as_str() },
            }
        }
        No::Failed(error) => {
            let code = error.code;
            outbox.refuse(req_id, error).await;
            Closing { code: close::POLICY, reason: code.as_str() }
        }
    }
}

async fn by_hello(
    broker: &Broker,
    outbox: &Outbox,
    req_id: Option<&str>,
    text: &str,
) -> Result<Arc<Presence>, No> {
    let hello: Hello = body(text)?;
    let session_key = identity::session_key_of_hello(&hello)?;
    let mesh = mesh_id(&hello.mesh_id)?;
    has_room(broker, &mesh)?;
    let member_key = identity::prove_hello(&hello, &mesh, clock::now_ms())?;
    let proven = Proven {
        mesh,
        member_key,
        session_key,
        role: PeerRole::ControlPlane,
        display_name: hello.display_name,
        session_id: hello.session_id,
        pid: hello.pid,
        groups: hello.groups,
        labels: Labels {
            cwd: hello.cwd,
            hostname: hello.hostname,
            peer_type: hello.peer_type,
            channel: hello.channel,
            model: hello.model,
            groups: Vec::new(),
            role: label(hello.role),
        },
    };
    let (view, caller) = membership(broker, &proven, "pubkey not found in mesh").await?;
    enter(broker, (outbox, req_id), proven, (view, caller))
}

async fn by_session_hello(
    broker: &Broker,
    outbox: &Outbox,
    req_id: Option<&str>,
    text: &str,
) -> Result<Arc<Presence>, No> {
    let hello: SessionHello = body(text)?;
    let (keys, attestation) = identity::session_keys(&hello)?;
    let mesh = mesh_id(&hello.mesh_id)?;
    has_room(broker, &mesh)?;
    let now = clock::now_ms();
    identity::prove_attestation(attestation, &keys, now)?;
    identity::prove_session(&hello, &keys, &mesh, now)?;
    let proven = Proven {
        mesh,
        member_key: keys.parent,
        session_key: Some(keys.session),
        role: PeerRole::Session,
        display_name: hello.display_name,
        session_id: hello.session_id,
        pid: hello.pid,
        groups: hello.groups,
        labels: Labels {
            cwd: hello.cwd,
            hostname: hello.hostname,
            peer_type: hello.peer_type,
            channel: hello.channel,
            model: hello.model,
            groups: Vec::new(),
            role: label(hello.role),
        },
    };
    let (view, caller) = membership(broker, &proven, "parent pubkey not found in mesh").await?;
    let claimed = hello.parent_member_id.filter(|id| !id.is_empty());
    if claimed.is_some_and(|id| id != caller.member.as_str()) {
        let message = "parentMemberId does not match parentMemberPubkey";
        return Err(Refusal::new(ErrorCode::ParentMemberIdMismatch, message).into());
    }
    enter(broker, (outbox, req_id), proven, (view, caller))
}

/// As it is shown; `None` when that is nothing.
fn label(text: Option<String>) -> Option<String> {
    text.map(|text| shown(&text)).filter(|text| !text.trim().is_empty())
}

fn mesh_id(text: &str) -> Result<MeshId, Refusal> {
    MeshId::parse(text).map_err(|_| Refusal::new(ErrorCode::Malformed, "hello rejected: malformed"))
}

fn has_room(broker: &Broker, mesh: &MeshId) -> Result<(), Refusal> {
    if broker.presences.is_full(mesh, broker.limits.max_connections_per_mesh) { Err(full()) } else { Ok(()) }
}

fn full() -> Refusal {
    Refusal::new(ErrorCode::Capacity, "mesh at connection capacity")
}

/// The member behind the key, from the store and not from the view: a revoked key has its own answer.
async fn membership(
    broker: &Broker,
    proven: &Proven,
    unknown: &str,
) -> Result<(Arc<MeshView>, Arc<Caller>), No> {
    let no_member = || Refusal::new(ErrorCode::Unauthorized, unknown);
    let mut tx = broker.store.read().await?;
    let member = tx.members().by_pubkey(&proven.mesh, &proven.member_key).await?.ok_or_else(no_member)?;
    drop(tx);
    let view = broker.views.of(&proven.mesh).await?;
    if member.is_revoked() {
        let mesh = view.mesh_name();
        let message = format!("You've been removed from \"{mesh}\". Contact the mesh owner to rejoin.");
        return Err(Refusal::new(ErrorCode::Revoked, message).into());
    }
    let caller = view.caller(&member.id).ok_or_else(no_member)?;
    Ok((view, caller))
}

fn enter(
    broker: &Broker,
    (outbox, req_id): (&Outbox, Option<&str>),
    proven: Proven,
    (view, caller): (Arc<MeshView>, Arc<Caller>),
) -> Result<Arc<Presence>, No> {
    let Proven { mesh, member_key, session_key, role, display_name, session_id, pid, groups, mut labels } =
        proven;
    labels.groups = groups.filter(|groups| !groups.is_empty()).unwrap_or_else(|| caller.groups.clone());
    let named = label(display_name);
    let presence = Arc::new(Presence {
        conn: broker.presences.next_id(),
        presence_id: fresh::base62_32(),
        mesh,
        member: caller.member.clone(),
        member_key,
        session_key,
        session_id,
        pid,
        role,
        display_name: named.unwrap_or_else(|| caller.display_name.clone()),
        labels,
        connected_at_ms: clock::now_ms(),
        status: Doing::default(),
        outbox: outbox.clone(),
    });
    let ack = wire::peer::write(req_id, &acknowledge(broker, &presence, &view, &caller))
        .map_err(|error| FrameError::internal(&error))?;
    match broker.presences.enter(&presence, broker.limits.max_connections_per_mesh, ack) {
        Entered::Refused => return Err(full().into()),
        Entered::Replaced => {}
        Entered::Fresh => tell_others(broker, &presence, "peer_joined"),
    }
    broker.hooks.meet(&presence);
    tracing::info!(
        mesh.id = %presence.mesh, member.id = %presence.member, presence.id = presence.presence_id,
        "peer connected as {}", role.as_str()
    );
    Ok(presence)
}

fn acknowledge(broker: &Broker, presence: &Presence, view: &MeshView, caller: &Caller) -> HelloAck {
    HelloAck {
        presence_id: presence.presence_id.clone(),
        member_display_name: presence.display_name.clone(),
        member_profile: Some(MemberProfile {
            role_tag: caller.role_tag.clone(),
            groups: caller.groups.clone(),
            message_mode: view.message_mode(&caller.member),
        }),
        services: describe::offers(&broker.observed, view, caller),
        member_role: caller.role.as_str().into(),
        broker_version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// The connection ended. A replaced one left before, and nobody is told of that; but what it lent and nobody took over has no
/// host any more.
pub fn depart(broker: &Broker, presence: &Presence) {
    let was_there = broker.presences.leave(presence);
    live::host_left(broker, presence);
    if was_there {
        tell_others(broker, presence, "peer_left");
        tracing::info!(
            mesh.id = %presence.mesh, member.id = %presence.member, presence.id = presence.presence_id,
            "peer disconnected"
        );
    }
}

fn tell_others(broker: &Broker, presence: &Presence, event: &str) {
    let data = PeerEvent {
        name: presence.display_name.clone(),
        display_name: presence.display_name.clone(),
        pubkey: presence.pubkey().to_string(),
        groups: (event == "peer_joined").then(|| presence.labels.groups.clone()),
    };
    let others = |member: &wire::MemberId| *member != presence.member;
    events::tell_members(&broker.presences, &presence.mesh, (event, &data), others);
}
