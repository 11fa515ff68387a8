//! What the broker itself encrypts at rest, so that a stolen database or backup tells nothing: root → a key for each mesh → a
//! key for each record.
//!
//! Here: which key seals and opens, the meshes' keys, and moving records from one key to another: at start (another root,
//! records of a time before there were mesh keys) and by a rotation. Not here: the cryptography (crate `vault`), where
//! roots come from (the binary), members' entries, which the broker can't open.
//!
//! ```text
//! rotation:  begin (a new active key, the old one only opens) → reseal, in batches → retire (the old one goes)
//! ```
//! Invariants: each step is one transaction and may be the last before a crash; [`AtRest::settle`] ends at the next start
//! what was begun. Who seals takes turns with that, so nothing is sealed under a key after it was retired.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vault::{AtRestKey, KeyRing, OpenError, RingError, Sealed};
use wire::{ErrorCode, Generation, MeshId, ServiceKey};
use zeroize::Zeroizing;

use crate::clock;
use crate::error::FrameError;
use crate::store::{Act, MeshKey, SealedRow, Store, StoreError, Tx};

/// Records of one transaction: on SQLite every other writer waits for it.
const BATCH: i64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum AtRestError {
    #[error("a sealed record does not open: {0}")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the secrets of generation {generation} of service {key} are damaged")]
    Record { key: ServiceKey, generation: Generation },
    #[error("the at-rest key of this mesh is being rotated already")]
    Rotating,
}

impl From<AtRestError> for FrameError {
    fn from(error: AtRestError) -> Self {
        match error {
            AtRestError::Rotating => Self::new(ErrorCode::Conflict, error.to_string()),
            _ => Self::internal(&error),
        }
    }
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// Id of the key that seals now.
    pub key: String,
    /// How many records were sealed anew.
    pub records: i64,
}

pub struct AtRest {
    ring: KeyRing,
    /// Unwrapped, by mesh and id. Which one is active is the store's to say.
    keys: Mutex<HashMap<(MeshId, String), Arc<AtRestKey>>>,
    rotating: Mutex<HashSet<MeshId>>,
}

impl AtRest {
    /// # Errors
    /// [`RingError::Empty`].
    pub fn new(roots: Vec<AtRestKey>) -> Result<Self, RingError> {
        Ok(Self { ring: KeyRing::new(roots)?, keys: Mutex::default(), rotating: Mutex::default() })
    }

    pub(crate) fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Seals a record of a mesh, whose key is made when there is none.
    ///
    /// # Errors
    /// [`AtRestError`].
    pub async fn seal(
        &self,
        tx: &mut Tx,
        mesh: &MeshId,
        context: &[&str],
        plain: &[u8],
    ) -> Result<Sealed, AtRestError> {
        tx.meshes().take_turns(mesh).await?;
        let key = match tx.mesh_keys().active(mesh).await? {
            Some(row) => self.unwrapped(&row)?,
            None => self.make_key(tx, mesh).await?,
        };
        Ok(key.seal(context, plain))
    }

    /// Opens a record of a mesh.
    ///
    /// # Errors
    /// [`AtRestError`].
    pub async fn open(
        &self,
        tx: &mut Tx,
        mesh: &MeshId,
        context: &[&str],
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, AtRestError> {
        let id = sealed.key_id().ok_or(OpenError::Damaged)?;
        if let Some(key) = self.known(mesh, id) {
            return Ok(key.open(context, sealed)?);
        }
        match tx.mesh_keys().find(mesh, id).await? {
            Some(row) => Ok(self.unwrapped(&row)?.open(context, sealed)?),
            None => Ok(self.ring.open(context, sealed)?),
        }
    }

    /// A boot key is of a runner and of no mesh: directly under the root.
    pub fn seal_boot_key(&self, boot_id: &str, key: &[u8]) -> Sealed {
        self.ring.seal(&boot_key_context(boot_id), key)
    }

    /// # Errors
    /// [`OpenError`].
    pub fn open_boot_key(&self, boot_id: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        self.ring.open(&boot_key_context(boot_id), sealed)
    }

    /// Brings everything under the active root and every mesh's active key, and ends rotations that were interrupted.
    ///
    /// # Errors
    /// [`RingError::MissingRoot`] when something needs a root that is not given; then nothing of it was changed.
    pub async fn settle(&self, store: &Store) -> Result<(), AtRestError> {
        self.rewrap(store).await?;
        let mut tx = store.read().await?;
        let meshes = tx.meshes().list().await?;
        drop(tx);
        for mesh in meshes {
            match self.finish(store, &mesh.id).await {
                Ok(0) => {}
                Ok(records) => tracing::info!(mesh.id = %mesh.id, "sealed {records} records anew"),
                // A root that is missing may be given tomorrow; a record that is damaged will be so tomorrow, too.
                Err(AtRestError::Record { key, generation }) => {
                    tracing::error!(
                        mesh.id = %mesh.id, service.name = %key.name,
                        "the secrets of generation {generation} of {key} are damaged; deploy it again"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A new key for a mesh, under which everything is sealed before this answers. Goes on with a rotation that failed in the
    /// middle. `act` is written with it.
    ///
    /// # Errors
    /// [`AtRestError::Rotating`] while another one runs.
    pub async fn rotate(&self, store: &Store, mesh: &MeshId, act: &Act) -> Result<Rotated, AtRestError> {
        let _turn = Turn::take(self, mesh)?;
        let key = self.begin(store, mesh, act).await?;
        let records = self.finish(store, mesh).await?;
        Ok(Rotated { key, records })
    }

    /// Answers the id of the key that is active from now on.
    async fn begin(&self, store: &Store, mesh: &MeshId, act: &Act) -> Result<String, AtRestError> {
        let mut tx = store.begin().await?;
        tx.meshes().take_turns(mesh).await?;
        let keys = tx.mesh_keys().of(mesh).await?;
        // Readers of an older snapshot may still need the last one that went; none of those before it.
        let is_there = |id: &str| keys.iter().any(|key| key.key_id == id);
        self.cache().retain(|(of, id), _| of != mesh || is_there(id));
        let open = keys.iter().any(|key| !key.is_active);
        if let Some(active) = keys.into_iter().find(|key| open && key.is_active) {
            return Ok(active.key_id);
        }
        let key = self.make_key(&mut tx, mesh).await?;
        tx.ledger().did(act).await?;
        tx.commit().await?;
        Ok(key.id().to_owned())
    }

    /// Seals anew what another key than the active one sealed, and forgets the keys that nothing needs any more. Answers how
    /// many records that were.
    async fn finish(&self, store: &Store, mesh: &MeshId) -> Result<i64, AtRestError> {
        let (mut records, mut damaged, mut last) = (0, None, None);
        while let Some(batch) = self.reseal_batch(store, mesh, last.as_ref()).await? {
            records += batch.records;
            damaged = damaged.or(batch.damaged);
            last = Some(batch.last);
        }
        self.retire(store, mesh).await?;
        damaged.map_or(Ok(records), Err)
    }

    /// `None` when there are no more.
    async fn reseal_batch(
        &self,
        store: &Store,
        mesh: &MeshId,
        after: Option<&SealedRow>,
    ) -> Result<Option<Batch>, AtRestError> {
        let mut tx = store.begin().await?;
        tx.meshes().take_turns(mesh).await?;
        let active = tx.mesh_keys().active(mesh).await?;
        let id = active.as_ref().map(|key| key.key_id.clone()).unwrap_or_default();
        let rows = tx.mesh_keys().sealed_by_others(mesh, &id, after, BATCH).await?;
        let Some(last) = rows.last().cloned() else { return Ok(None) };
        let key = match active {
            Some(row) => self.unwrapped(&row)?,
            None => self.make_key(&mut tx, mesh).await?,
        };
        let mut batch = Batch { records: 0, damaged: None, last };
        for row in rows {
            let generation = row.generation.to_string();
            let context = secrets_context(&row.key, &generation);
            let plain = match self.open(&mut tx, mesh, &context, &row.sealed).await {
                Ok(plain) => plain,
                Err(AtRestError::Open(OpenError::WrongKey(id))) => {
                    return Err(RingError::MissingRoot(id).into());
                }
                Err(AtRestError::Open(OpenError::Damaged)) => {
                    batch.damaged =
                        Some(AtRestError::Record { key: row.key.clone(), generation: row.generation });
                    continue;
                }
                Err(error) => return Err(error),
            };
            batch.records += i64::from(tx.mesh_keys().reseal(&row, &key.seal(&context, &plain)).await?);
        }
        tx.commit().await?;
        Ok(Some(batch))
    }

    async fn retire(&self, store: &Store, mesh: &MeshId) -> Result<(), AtRestError> {
        let mut tx = store.begin().await?;
        tx.meshes().take_turns(mesh).await?;
        for key in tx.mesh_keys().of(mesh).await?.into_iter().filter(|key| !key.is_active) {
            if !tx.mesh_keys().delete_retired(mesh, &key.key_id).await? {
                tracing::warn!(mesh.id = %mesh, "at-rest key {} is kept: something is still sealed under it", key.key_id);
            }
        }
        Ok(tx.commit().await?)
    }

    /// Brings mesh keys and boot keys under the active root.
    async fn rewrap(&self, store: &Store) -> Result<(), AtRestError> {
        let mut tx = store.begin().await?;
        for row in tx.mesh_keys().all().await? {
            if let Some(wrapped) = self.ring.rewrap(&row.mesh, &row.wrapped)? {
                tx.mesh_keys().rewrap(&row, self.ring.active(), &wrapped).await?;
            }
        }
        for (boot_id, sealed) in tx.runners().boot_keys().await? {
            if sealed.key_id() != Some(self.ring.active()) {
                let plain = self.open_boot_key(&boot_id, &sealed).map_err(RingError::from)?;
                let anew = self.seal_boot_key(&boot_id, &plain);
                tx.runners().reseal_boot_key(&boot_id, &sealed, &anew).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    async fn make_key(&self, tx: &mut Tx, mesh: &MeshId) -> Result<Arc<AtRestKey>, AtRestError> {
        let (key, wrapped) = self.ring.new_mesh_key(mesh);
        tx.mesh_keys().activate(mesh, key.id(), self.ring.active(), &wrapped, clock::now_ms()).await?;
        // Not remembered: the transaction may not be committed.
        Ok(Arc::new(key))
    }

    fn unwrapped(&self, row: &MeshKey) -> Result<Arc<AtRestKey>, AtRestError> {
        if let Some(key) = self.known(&row.mesh, &row.key_id) {
            return Ok(key);
        }
        let key = Arc::new(self.ring.unwrap_mesh_key(&row.mesh, &row.wrapped)?);
        // The row names the key; a row that was exchanged must not put another one in its place.
        if key.id() != row.key_id {
            return Err(RingError::Damaged.into());
        }
        self.cache().insert((row.mesh.clone(), row.key_id.clone()), Arc::clone(&key));
        Ok(key)
    }

    fn known(&self, mesh: &MeshId, id: &str) -> Option<Arc<AtRestKey>> {
        self.cache().get(&(mesh.clone(), id.to_owned())).cloned()
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<(MeshId, String), Arc<AtRestKey>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of some records.
struct Batch {
    records: i64,
    /// One that does not open under its own key any more; it stays as it is.
    damaged: Option<AtRestError>,
    last: SealedRow,
}

/// One rotation of a mesh at a time in this process.
struct Turn<'a> {
    at_rest: &'a AtRest,
    mesh: &'a MeshId,
}

impl<'a> Turn<'a> {
    fn take(at_rest: &'a AtRest, mesh: &'a MeshId) -> Result<Self, AtRestError> {
        let mut rotating = at_rest.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        if rotating.insert(mesh.clone()) { Ok(Self { at_rest, mesh }) } else { Err(AtRestError::Rotating) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.at_rest.rotating.lock().unwrap_or_else(PoisonError::into_inner).remove(self.mesh);
    }
}

/// Where the secrets of a generation belong; a sealed value that was moved to another row does not open.
pub(crate) fn secrets_context<'a>(key: &'a ServiceKey, generation: &'a str) -> [&'a str; 4] {
    ["service-secrets", key.mesh.as_str(), key.name.as_str(), generation]
}

fn boot_key_context(boot_id: &str) -> [&str; 2] {
    ["boot-key", boot_id]
}

#[cfg(test)]
mod tests;
