//! System events: `push` frames with `subtype: "system"`.
//!
//! Here: their form, and who gets them. A service's events go to those who may see it and to nobody else.
//! Not here: when something happened (`deploy`, `reconcile`, `admission`).

use serde::Serialize;
use wire::peer::mesh::SystemPush;
use wire::{MemberId, MeshId};

use super::presence::{Presence, Presences};
use crate::clock;

/// Writes one event. `None` only when the data can't be JSON, which no event of ours is.
pub fn frame<E: Serialize>(mesh: &MeshId, event: &str, data: &E) -> Option<String> {
    let event_data = serde_json::value::to_raw_value(data).ok()?;
    let push = SystemPush {
        subtype: "system".into(),
        event: event.into(),
        event_data,
        message_id: uuid::Uuid::new_v4().to_string(),
        mesh_id: mesh.to_string(),
        sender_pubkey: "system".into(),
        priority: "low".into(),
        nonce: String::new(),
        ciphertext: String::new(),
        created_at: clock::iso(clock::now_ms()),
    };
    wire::peer::write(None, &push).ok()
}

/// Sends an event to every connection of the mesh that `hears` it.
pub fn tell<E: Serialize>(
    presences: &Presences,
    mesh: &MeshId,
    (event, data): (&str, &E),
    hears: impl Fn(&Presence) -> bool,
) {
    let listeners: Vec<_> = presences.of_mesh(mesh).into_iter().filter(|p| hears(p)).collect();
    if listeners.is_empty() {
        return;
    }
    let Some(text) = frame(mesh, event, data) else { return };
    let text = axum::extract::ws::Utf8Bytes::from(text);
    for presence in listeners {
        presence.outbox.push(text.clone());
    }
}

/// Like [`tell`], chosen by member.
pub fn tell_members<E: Serialize>(
    presences: &Presences,
    mesh: &MeshId,
    event: (&str, &E),
    hears: impl Fn(&MemberId) -> bool,
) {
    tell(presences, mesh, event, |presence| hears(&presence.member));
}
