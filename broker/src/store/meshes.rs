//! Meshes: the tenants.

use wire::{MeshId, Policy, PublicKey};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all, fetch_optional, policies};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    pub id: MeshId,
    /// For people: short, in links. Not unique.
    pub slug: String,
    pub name: String,
    /// Signs invites.
    pub owner_pubkey: PublicKey,
    /// Part of every invite (32 random bytes, base64url).
    pub root_key: String,
    pub created_at: i64,
    pub policy: Policy,
}

pub struct Meshes<'t> {
    pub(super) tx: &'t mut Tx,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, slug, name, owner_pubkey, root_key, created_at, min_isolation, min_release_age_s FROM mesh ",
            $rest
        )
    };
}

const INSERT: &str = "INSERT INTO mesh (id, slug, name, owner_pubkey, root_key, created_at, \
    min_isolation, min_release_age_s) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
const FIND: &str = select!("WHERE id = $1");
const BY_OWNER: &str = select!("WHERE owner_pubkey = $1 ORDER BY created_at, id");
const LIST: &str = select!("ORDER BY created_at, id");
const TAKE_TURNS: &str = "UPDATE mesh SET created_at = created_at WHERE id = $1";

impl Meshes<'_> {
    /// Makes writers that count something in a mesh take turns until they commit: on PostgreSQL a count is out of date as
    /// soon as it is known. `false` when there is no such mesh.
    pub async fn take_turns(&mut self, id: &MeshId) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, TAKE_TURNS, id.as_str())? == 1)
    }

    /// # Errors
    /// [`StoreError::Conflict`] when the id is taken.
    pub async fn insert(&mut self, mesh: &Mesh) -> Result<(), StoreError> {
        let Mesh { id, slug, name, owner_pubkey, root_key, created_at, policy } = mesh;
        let rows = execute!(
            &mut *self.tx,
            INSERT,
            id.as_str(),
            slug,
            name,
            owner_pubkey.as_str(),
            root_key,
            created_at,
            policy.min_isolation.as_str(),
            policies::seconds(*policy)
        )?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    pub async fn find(&mut self, id: &MeshId) -> Result<Option<Mesh>, StoreError> {
        let row: Option<MeshRow> = fetch_optional!(&mut *self.tx, FIND, id.as_str())?;
        row.map(Mesh::try_from).transpose()
    }

    /// Oldest first.
    pub async fn by_owner(&mut self, owner: &PublicKey) -> Result<Vec<Mesh>, StoreError> {
        let rows: Vec<MeshRow> = fetch_all!(&mut *self.tx, BY_OWNER, owner.as_str())?;
        rows.into_iter().map(Mesh::try_from).collect()
    }

    /// Oldest first.
    pub async fn list(&mut self) -> Result<Vec<Mesh>, StoreError> {
        let rows: Vec<MeshRow> = fetch_all!(&mut *self.tx, LIST)?;
        rows.into_iter().map(Mesh::try_from).collect()
    }
}

#[derive(sqlx::FromRow)]
struct MeshRow {
    id: String,
    slug: String,
    name: String,
    owner_pubkey: String,
    root_key: String,
    created_at: i64,
    min_isolation: String,
    min_release_age_s: i64,
}

impl TryFrom<MeshRow> for Mesh {
    type Error = StoreError;
    fn try_from(row: MeshRow) -> Result<Self, StoreError> {
        let MeshRow { id, slug, name, owner_pubkey, root_key, created_at, min_isolation, min_release_age_s } =
            row;
        let place = Place { table: "mesh", id: &id };
        Ok(Self {
            id: place.id("id", MeshId::parse, &id)?,
            owner_pubkey: place.id("owner_pubkey", PublicKey::parse, &owner_pubkey)?,
            policy: policies::policy(&place, &min_isolation, min_release_age_s)?,
            slug,
            name,
            root_key,
            created_at,
        })
    }
}
