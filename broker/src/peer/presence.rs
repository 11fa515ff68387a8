//! Who is connected, mesh by mesh: the one table of live connections of this broker.
//!
//! Here: [`Presences`], admission under the capacity of the mesh, replacement of an older connection of the same
//! session, and fan-out. Not here: who may connect (`super::admission`), what a connection says (`super::dispatch`).
//! This is state that a second broker does not see; fan-out over several brokers will go through a bus.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use wire::peer::hello::Group;
use wire::peer::mesh::Peer;
use wire::{MemberId, MeshId, PublicKey};

use super::outbox::{Closing, Outbox};
use crate::clock;
use crate::status::Doing;

/// One connection in one life of the broker; grows in the order of connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// Made by `hello`.
    ControlPlane,
    /// Made by `session_hello`.
    Session,
}

impl PeerRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Session => "session",
        }
    }
}

/// What a client says about itself. Labels for people; nothing here gives access.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    pub cwd: String,
    pub hostname: Option<String>,
    pub peer_type: Option<String>,
    pub channel: Option<String>,
    pub model: Option<String>,
    pub groups: Vec<Group>,
    pub role: Option<String>,
}

/// One live connection of a member.
pub struct Presence {
    pub conn: ConnId,
    pub presence_id: String,
    pub mesh: MeshId,
    pub member: MemberId,
    pub member_key: PublicKey,
    pub session_key: Option<PublicKey>,
    pub session_id: String,
    /// Of the process that said hello, on its machine.
    pub pid: i64,
    pub role: PeerRole,
    pub display_name: String,
    pub labels: Labels,
    pub connected_at_ms: i64,
    pub status: Doing,
    pub outbox: Outbox,
}

impl Presence {
    /// The key that others address: of the session, else of the member.
    pub fn pubkey(&self) -> &PublicKey {
        self.session_key.as_ref().unwrap_or(&self.member_key)
    }

    fn is_same_session(&self, other: &Presence) -> bool {
        self.member == other.member && self.session_id == other.session_id && self.role == other.role
    }

    fn as_peer(&self, now_ms: i64, working_for: Duration) -> Peer {
        Peer {
            pubkey: self.pubkey().to_string(),
            member_pubkey: self.member_key.to_string(),
            display_name: self.display_name.clone(),
            status: self.status.now(now_ms, working_for).as_str().into(),
            summary: None,
            groups: self.labels.groups.clone(),
            session_id: self.session_id.clone(),
            connected_at: clock::iso(self.connected_at_ms),
            cwd: self.labels.cwd.clone(),
            peer_role: self.role.as_str().into(),
            hostname: self.labels.hostname.clone(),
            peer_type: self.labels.peer_type.clone(),
            channel: self.labels.channel.clone(),
            model: self.labels.model.clone(),
            role: self.labels.role.clone(),
        }
    }
}

/// How a connection entered.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    Fresh,
    /// In place of an older connection of the same session, which is being closed.
    Replaced,
    /// The mesh is full.
    Refused,
}

type Room = BTreeMap<ConnId, Arc<Presence>>;

#[derive(Default)]
pub struct Presences {
    rooms: RwLock<HashMap<MeshId, Room>>,
    next: AtomicU64,
}

impl Presences {
    pub fn next_id(&self) -> ConnId {
        ConnId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub fn is_full(&self, mesh: &MeshId, limit: usize) -> bool {
        self.read(|rooms| rooms.get(mesh).map_or(0, BTreeMap::len) >= limit)
    }

    /// Counts, replaces and inserts in one step, so that two that enter at once can't both take the last place. The
    /// acknowledgement is queued in the same step, so that no event comes before it.
    pub fn enter(&self, presence: &Arc<Presence>, limit: usize, ack: String) -> Entered {
        let mut rooms = self.rooms.write().unwrap_or_else(PoisonError::into_inner);
        let room = rooms.entry(presence.mesh.clone()).or_default();
        let same: Vec<ConnId> =
            room.iter().filter(|(_, other)| other.is_same_session(presence)).map(|(id, _)| *id).collect();
        for id in &same {
            if let Some(old) = room.remove(id) {
                presence.status.take_over(&old.status);
                old.outbox.end(Closing::REPLACED);
            }
        }
        if room.len() >= limit {
            return Entered::Refused;
        }
        presence.outbox.push(ack);
        room.insert(presence.conn, Arc::clone(presence));
        if same.is_empty() { Entered::Fresh } else { Entered::Replaced }
    }

    /// Whether it was still there: a replaced connection left before its socket ended.
    pub fn leave(&self, presence: &Presence) -> bool {
        let mut rooms = self.rooms.write().unwrap_or_else(PoisonError::into_inner);
        let Some(room) = rooms.get_mut(&presence.mesh) else { return false };
        let was_there = room.remove(&presence.conn).is_some();
        if room.is_empty() {
            rooms.remove(&presence.mesh);
        }
        was_there
    }

    /// Whether this very connection is still one of the mesh's.
    pub fn is_here(&self, presence: &Presence) -> bool {
        self.read(|rooms| rooms.get(&presence.mesh).is_some_and(|room| room.contains_key(&presence.conn)))
    }

    /// Everyone in the mesh, oldest first.
    pub fn of_mesh(&self, mesh: &MeshId) -> Vec<Arc<Presence>> {
        self.read(|rooms| rooms.get(mesh).map(|room| room.values().cloned().collect()).unwrap_or_default())
    }

    /// `working_for`: how long somebody who said that they work is believed.
    pub fn peers(&self, mesh: &MeshId, working_for: Duration) -> Vec<Peer> {
        let now = clock::now_ms();
        self.of_mesh(mesh).iter().map(|presence| presence.as_peer(now, working_for)).collect()
    }

    /// Ends every connection of the member.
    pub fn ban(&self, mesh: &MeshId, member: &MemberId) {
        for presence in self.of_mesh(mesh).iter().filter(|p| p.member == *member) {
            presence.outbox.end(Closing::BANNED);
        }
    }

    pub fn count(&self) -> usize {
        self.read(|rooms| rooms.values().map(BTreeMap::len).sum())
    }

    fn read<T>(&self, look: impl FnOnce(&HashMap<MeshId, Room>) -> T) -> T {
        look(&self.rooms.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(table: &Presences, member: char, session: &str, role: PeerRole) -> Arc<Presence> {
        let id = |c: char| c.to_string().repeat(32);
        Arc::new(Presence {
            conn: table.next_id(),
            presence_id: id('P'),
            mesh: MeshId::parse(&id('M')).expect("mesh"),
            member: MemberId::parse(&id(member)).expect("member"),
            member_key: PublicKey::parse(&"a".repeat(64)).expect("key"),
            session_key: None,
            session_id: session.into(),
            pid: 1,
            role,
            display_name: "ann".into(),
            labels: Labels::default(),
            connected_at_ms: 0,
            status: Doing::default(),
            outbox: Outbox::new(4, 4).0,
        })
    }

    #[tokio::test]
    async fn only_the_same_session_of_the_same_member_and_role_is_replaced() {
        let table = Presences::default();
        let first = presence(&table, 'A', "s", PeerRole::Session);
        assert_eq!(table.enter(&first, 9, String::new()), Entered::Fresh);
        assert_eq!(
            table.enter(&presence(&table, 'B', "s", PeerRole::Session), 9, String::new()),
            Entered::Fresh
        );
        assert_eq!(
            table.enter(&presence(&table, 'A', "s", PeerRole::ControlPlane), 9, String::new()),
            Entered::Fresh
        );
        assert_eq!(
            table.enter(&presence(&table, 'A', "s", PeerRole::Session), 9, String::new()),
            Entered::Replaced
        );
        assert_eq!(first.outbox.ended().await, Closing::REPLACED);
        assert!(!table.leave(&first));
        assert_eq!(table.count(), 3);
    }

    #[test]
    fn a_full_mesh_lets_nobody_new_in_but_its_sessions_back() {
        let table = Presences::default();
        let first = presence(&table, 'A', "s", PeerRole::Session);
        table.enter(&first, 1, String::new());
        assert_eq!(
            table.enter(&presence(&table, 'B', "t", PeerRole::Session), 1, String::new()),
            Entered::Refused
        );
        assert_eq!(
            table.enter(&presence(&table, 'A', "s", PeerRole::Session), 1, String::new()),
            Entered::Replaced
        );
    }
}
