//! Who lends what now, and who waits for an answer of a host: memory, and nothing that waits.
//!
//! Not here: the store, events, what may be lent.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use wire::peer::live::{LiveServer, McpCallResponse};
use wire::{ErrorCode, MemberId, MeshId, RawJson, ServiceKey, ServiceName};

use super::registration::{Offer, bytes};
use crate::clock;
use crate::error::FrameError;
use crate::peer::outbox::Outbox;
use crate::peer::presence::ConnId;

const MAX_OF_MEMBER: usize = 50;
const MAX_OF_MESH: usize = 200;
/// Everybody's lists together: they are in memory, and in one answer to `mcp_list`.
const MAX_BYTES_OF_MESH: usize = 16 << 20;
/// Calls that one host may have before it.
pub const MAX_PENDING: usize = 64;

#[derive(Clone)]
pub struct Entry {
    pub member: MemberId,
    /// Display name of the member.
    pub lender: String,
    pub description: String,
    pub tools: Arc<[RawJson]>,
    pub persistent: bool,
    /// Tells this registration from an earlier one of the same name.
    pub registration: i64,
    pub place: Place,
}

#[derive(Clone)]
pub enum Place {
    Host {
        conn: ConnId,
        outbox: Outbox,
    },
    /// Milliseconds since the epoch, when it is known.
    Away {
        since: Option<i64>,
    },
}

impl Entry {
    pub fn says_the_same(&self, other: &Entry) -> bool {
        let texts = |entry: &Entry| entry.tools.iter().map(|tool| tool.get().to_owned()).collect::<Vec<_>>();
        self.description == other.description
            && self.persistent == other.persistent
            && texts(self) == texts(other)
    }

    fn is_of(&self, host: ConnId) -> bool {
        matches!(self.place, Place::Host { conn, .. } if conn == host)
    }
}

/// What a host leaves behind.
pub struct Left {
    /// Names and lenders.
    pub gone: Vec<(ServiceName, String)>,
    /// Offline from now on: names and registrations.
    pub away: Vec<(ServiceName, i64)>,
}

struct Asked {
    host: ConnId,
    answer: oneshot::Sender<McpCallResponse>,
}

type Shelf = BTreeMap<ServiceName, Entry>;

pub struct Live {
    shelves: Mutex<HashMap<MeshId, Shelf>>,
    asked: Mutex<HashMap<String, Asked>>,
    registrations: AtomicI64,
}

/// Held without ever waiting; a panic in between leaves whole entries.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// `first`: more than every registration of earlier lives of the broker.
    pub fn new(first: i64) -> Self {
        Self { shelves: Mutex::default(), asked: Mutex::default(), registrations: AtomicI64::new(first) }
    }

    pub fn next_registration(&self) -> i64 {
        self.registrations.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the mesh has a live server of this name, online or not.
    pub fn knows(&self, mesh: &MeshId, name: &str) -> bool {
        let Ok(name) = ServiceName::parse(name) else { return false };
        locked(&self.shelves).get(mesh).is_some_and(|shelf| shelf.contains_key(&name))
    }

    pub fn entry(&self, key: &ServiceKey) -> Option<Entry> {
        locked(&self.shelves).get(&key.mesh)?.get(&key.name).cloned()
    }

    /// Who lends under this name.
    pub fn lender(&self, key: &ServiceKey) -> Option<String> {
        Some(locked(&self.shelves).get(&key.mesh)?.get(&key.name)?.lender.clone())
    }

    /// Whether the member may have the name, and the mesh this much more.
    ///
    /// # Errors
    /// `conflict`, `limit`.
    pub fn has_room(&self, key: &ServiceKey, member: &MemberId, offer: &Offer) -> Result<(), FrameError> {
        let shelves = locked(&self.shelves);
        let Some(shelf) = shelves.get(&key.mesh) else { return Ok(()) };
        if let Some(taken) = shelf.get(&key.name).filter(|entry| entry.member != *member) {
            let message = format!("the name `{}` is taken by a server that {} lends", key.name, taken.lender);
            return Err(FrameError::new(ErrorCode::Conflict, message));
        }
        let others = || shelf.iter().filter(|(name, _)| **name != key.name).map(|(_, entry)| entry);
        let limit = |message: String| Err(FrameError::new(ErrorCode::Limit, message));
        if others().filter(|entry| entry.member == *member).count() >= MAX_OF_MEMBER {
            return limit(format!("a member lends at most {MAX_OF_MEMBER} servers"));
        }
        if others().count() >= MAX_OF_MESH {
            return limit(format!("a mesh has at most {MAX_OF_MESH} live servers"));
        }
        if others().map(|entry| bytes(&entry.tools)).sum::<usize>() + bytes(&offer.tools) > MAX_BYTES_OF_MESH
        {
            let most = MAX_BYTES_OF_MESH >> 20;
            return limit(format!("the tools of all live servers of a mesh take at most {most} MiB"));
        }
        Ok(())
    }

    pub fn put(&self, key: &ServiceKey, entry: Entry) {
        locked(&self.shelves).entry(key.mesh.clone()).or_default().insert(key.name.clone(), entry);
    }

    /// Back to what was before a registration that could not be written.
    pub fn undo(&self, key: &ServiceKey, registration: i64, before: Option<Entry>) {
        if self.remove(key, registration)
            && let Some(before) = before
        {
            self.put(key, before);
        }
    }

    /// `false` when it is another registration by now, or none.
    pub fn remove(&self, key: &ServiceKey, registration: i64) -> bool {
        let mut shelves = locked(&self.shelves);
        let Some(shelf) = shelves.get_mut(&key.mesh) else { return false };
        let is_it = shelf.get(&key.name).is_some_and(|entry| entry.registration == registration);
        if is_it {
            shelf.remove(&key.name);
        }
        if shelf.is_empty() {
            shelves.remove(&key.mesh);
        }
        is_it
    }

    /// Names and lenders of what the member lent.
    pub fn remove_of(&self, mesh: &MeshId, member: &MemberId) -> Vec<(ServiceName, String)> {
        self.take_out(mesh, |entry| entry.member == *member)
    }

    fn take_out(&self, mesh: &MeshId, goes: impl Fn(&Entry) -> bool) -> Vec<(ServiceName, String)> {
        let mut shelves = locked(&self.shelves);
        let Some(shelf) = shelves.get_mut(mesh) else { return Vec::new() };
        let mut gone = Vec::new();
        shelf.retain(|name, entry| {
            let stays = !goes(entry);
            if !stays {
                gone.push((name.clone(), entry.lender.clone()));
            }
            stays
        });
        if shelf.is_empty() {
            shelves.remove(mesh);
        }
        gone
    }

    /// The host's connection ended.
    pub fn host_left(&self, mesh: &MeshId, conn: ConnId, now: i64) -> Left {
        let mut away = Vec::new();
        if let Some(shelf) = locked(&self.shelves).get_mut(mesh) {
            for (name, entry) in shelf.iter_mut().filter(|(_, entry)| entry.persistent && entry.is_of(conn)) {
                entry.place = Place::Away { since: Some(now) };
                away.push((name.clone(), entry.registration));
            }
        }
        let gone = self.take_out(mesh, |entry| entry.is_of(conn));
        // After that: a call that is not ended here finds out that its host is gone.
        locked(&self.asked).retain(|_, asked| asked.host != conn);
        Left { gone, away }
    }

    /// As `member` sees them, by name.
    pub fn list(&self, mesh: &MeshId, member: &MemberId) -> Vec<LiveServer> {
        let shelves = locked(&self.shelves);
        let shelf = shelves.get(mesh).into_iter().flatten();
        let seen = shelf.map(|(name, entry)| {
            let since = match entry.place {
                Place::Host { .. } => None,
                Place::Away { since } => since,
            };
            LiveServer {
                name: name.to_string(),
                description: entry.description.clone(),
                hosted_by: entry.lender.clone(),
                tools: entry.tools.to_vec(),
                online: matches!(entry.place, Place::Host { .. }),
                offline_since: since.map(clock::iso),
                persistent: entry.persistent,
                own: entry.member == *member,
            }
        });
        seen.collect()
    }

    /// Books a call of a host. `None` when too many are before it already.
    pub fn expect(&self, call_id: &str, host: ConnId) -> Option<oneshot::Receiver<McpCallResponse>> {
        let mut asked = locked(&self.asked);
        if asked.values().filter(|asked| asked.host == host).count() >= MAX_PENDING {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        asked.insert(call_id.to_owned(), Asked { host, answer });
        Some(answered)
    }

    /// Nobody waits any more. `false` when it was answered, or its host is gone.
    pub fn give_up(&self, call_id: &str) -> bool {
        locked(&self.asked).remove(call_id).is_some()
    }

    /// From another connection than the one that was asked, or too late: ignored.
    pub fn answer(&self, from: ConnId, response: McpCallResponse) {
        let mut asked = locked(&self.asked);
        if asked.get(&response.call_id).is_some_and(|asked| asked.host == from)
            && let Some(Asked { answer, .. }) = asked.remove(&response.call_id)
        {
            // Who waited may have left in this moment.
            let _ = answer.send(response);
        }
    }
}
