//! The keys that the broker encrypts a mesh's records with at rest, each wrapped by a root, and those records.
//!
//! Not here: roots, wrapping and sealing (`crate::at_rest`).
//! Invariant: a mesh has at most one active key; a second row is a rotation that has not ended.

use vault::Sealed;
use wire::{Generation, MeshId, ServiceKey};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

pub struct MeshKeys<'t> {
    pub(super) tx: &'t mut Tx,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshKey {
    pub mesh: MeshId,
    pub key_id: String,
    /// The root that wrapped it.
    pub root_id: String,
    pub wrapped: Sealed,
    /// It seals; another one only opens, until nothing is sealed under it.
    pub is_active: bool,
    pub created_at: i64,
}

/// The secrets of one generation, as they lie in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    pub key: ServiceKey,
    pub generation: Generation,
    pub sealed: Sealed,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT mesh_id, key_id, root_id, wrapped, state, created_at FROM mesh_key ", $rest)
    };
}

const ALL: &str = select!("ORDER BY mesh_id, created_at, key_id");
const OF: &str = select!("WHERE mesh_id = $1 ORDER BY created_at, key_id");
const FIND: &str = select!("WHERE mesh_id = $1 AND key_id = $2");
const ACTIVE: &str = select!("WHERE mesh_id = $1 AND state = 'active'");
const RETIRE: &str = "UPDATE mesh_key SET state = 'decrypt_only' WHERE mesh_id = $1 AND state = 'active'";
const INSERT: &str = "INSERT INTO mesh_key (mesh_id, key_id, root_id, wrapped, state, created_at) \
    VALUES ($1, $2, $3, $4, 'active', $5) ON CONFLICT DO NOTHING";
const REWRAP: &str =
    "UPDATE mesh_key SET root_id = $4, wrapped = $5 WHERE mesh_id = $1 AND key_id = $2 AND wrapped = $3";
const DELETE_RETIRED: &str = "DELETE FROM mesh_key WHERE mesh_id = $1 AND key_id = $2 AND state = 'decrypt_only' \
    AND NOT EXISTS (SELECT 1 FROM generation g WHERE g.mesh_id = $1 AND g.secrets LIKE $3)";
const UNDER_OTHERS: &str = "SELECT mesh_id, name, generation, secrets FROM generation \
    WHERE mesh_id = $1 AND secrets NOT LIKE $2 AND (name, generation) > ($3, $4) ORDER BY name, generation LIMIT $5";
const RESEAL: &str = "UPDATE generation SET secrets = $5 WHERE mesh_id = $1 AND name = $2 AND generation = $3 AND secrets = $4";

impl MeshKeys<'_> {
    /// Of every mesh.
    pub async fn all(&mut self) -> Result<Vec<MeshKey>, StoreError> {
        let rows: Vec<KeyRow> = fetch_all!(&mut *self.tx, ALL)?;
        rows.into_iter().map(MeshKey::try_from).collect()
    }

    pub async fn of(&mut self, mesh: &MeshId) -> Result<Vec<MeshKey>, StoreError> {
        let rows: Vec<KeyRow> = fetch_all!(&mut *self.tx, OF, mesh.as_str())?;
        rows.into_iter().map(MeshKey::try_from).collect()
    }

    pub async fn find(&mut self, mesh: &MeshId, key_id: &str) -> Result<Option<MeshKey>, StoreError> {
        let row: Option<KeyRow> = fetch_optional!(&mut *self.tx, FIND, mesh.as_str(), key_id)?;
        row.map(MeshKey::try_from).transpose()
    }

    pub async fn active(&mut self, mesh: &MeshId) -> Result<Option<MeshKey>, StoreError> {
        let row: Option<KeyRow> = fetch_optional!(&mut *self.tx, ACTIVE, mesh.as_str())?;
        row.map(MeshKey::try_from).transpose()
    }

    /// Makes a key the active one; the one before only opens from now on.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when its id is taken.
    pub async fn activate(
        &mut self,
        mesh: &MeshId,
        key_id: &str,
        root_id: &str,
        wrapped: &Sealed,
        at: i64,
    ) -> Result<(), StoreError> {
        execute!(&mut *self.tx, RETIRE, mesh.as_str())?;
        let rows = execute!(&mut *self.tx, INSERT, mesh.as_str(), key_id, root_id, wrapped.as_str(), at)?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// The same key under another root. `false` when somebody else did it before.
    pub async fn rewrap(
        &mut self,
        seen: &MeshKey,
        root_id: &str,
        wrapped: &Sealed,
    ) -> Result<bool, StoreError> {
        let (mesh, key_id, before) = (seen.mesh.as_str(), seen.key_id.as_str(), seen.wrapped.as_str());
        Ok(execute!(&mut *self.tx, REWRAP, mesh, key_id, before, root_id, wrapped.as_str())? == 1)
    }

    /// Forgets a key that only opened, unless something is still sealed under it. `false` then.
    pub async fn delete_retired(&mut self, mesh: &MeshId, key_id: &str) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, DELETE_RETIRED, mesh.as_str(), key_id, sealed_by(key_id))? == 1)
    }

    /// The next records, after `after`, that another key than this one sealed.
    pub async fn sealed_by_others(
        &mut self,
        mesh: &MeshId,
        key_id: &str,
        after: Option<&SealedRow>,
        most: i64,
    ) -> Result<Vec<SealedRow>, StoreError> {
        let (name, generation) = after.map_or(("", 0), |row| (row.key.name.as_str(), row.generation.0));
        let by = sealed_by(key_id);
        let rows: Vec<RecordRow> =
            fetch_all!(&mut *self.tx, UNDER_OTHERS, mesh.as_str(), by, name, generation, most)?;
        rows.into_iter().map(SealedRow::try_from).collect()
    }

    /// Replaces a record that is still as it was seen. `false` when it is not, or is gone.
    pub async fn reseal(&mut self, seen: &SealedRow, sealed: &Sealed) -> Result<bool, StoreError> {
        let (mesh, name) = (seen.key.mesh.as_str(), seen.key.name.as_str());
        let (before, after) = (seen.sealed.as_str(), sealed.as_str());
        Ok(execute!(&mut *self.tx, RESEAL, mesh, name, seen.generation.0, before, after)? == 1)
    }
}

/// What a record that this key sealed looks like. Ids are hex, so nothing in them means anything in a pattern.
fn sealed_by(key_id: &str) -> String {
    format!("v1.{key_id}.%")
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    mesh_id: String,
    key_id: String,
    root_id: String,
    wrapped: String,
    state: String,
    created_at: i64,
}

impl TryFrom<KeyRow> for MeshKey {
    type Error = StoreError;
    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        let KeyRow { mesh_id, key_id, root_id, wrapped, state, created_at } = row;
        let id = format!("{mesh_id}/{key_id}");
        let place = Place { table: "mesh_key", id: &id };
        let mesh = place.mesh(&mesh_id)?;
        let wrapped = Sealed::from_stored(wrapped);
        Ok(Self { mesh, key_id, root_id, wrapped, is_active: state == "active", created_at })
    }
}

#[derive(sqlx::FromRow)]
struct RecordRow {
    mesh_id: String,
    name: String,
    generation: i64,
    secrets: String,
}

impl TryFrom<RecordRow> for SealedRow {
    type Error = StoreError;
    fn try_from(row: RecordRow) -> Result<Self, StoreError> {
        let RecordRow { mesh_id, name, generation, secrets } = row;
        let id = format!("{mesh_id}/{name}/{generation}");
        let place = Place { table: "generation", id: &id };
        let (key, generation) = (place.key(&mesh_id, &name)?, Generation(generation));
        Ok(Self { key, generation, sealed: Sealed::from_stored(secrets) })
    }
}
