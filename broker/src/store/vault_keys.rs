//! The meshes' vault keys, and the grants of them to runners. Nothing here opens anything.
//!
//! Not here: whether the mesh's owner signed them (`crate::vault`).

use wire::vault::{BoxPublic, Grant, KeyId, RunnerId, VaultKey};
use wire::{MeshId, PublicKey};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all};

pub struct VaultKeys<'t> {
    pub(super) tx: &'t mut Tx,
}

/// A vault key with its private half, sealed to the mesh's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVaultKey {
    pub key: VaultKey,
    pub owner_copy: String,
}

const LIST: &str = "SELECT number, kid, public, created_ms, signature, owner_copy FROM vault_key \
    WHERE mesh_id = $1 ORDER BY number DESC";
const NEWEST: &str = "SELECT number, kid, public, created_ms, signature, owner_copy FROM vault_key \
    WHERE mesh_id = $1 ORDER BY number DESC LIMIT 1";
// The number of a key that was dropped is not used again: it is lower than that of the newest, which never is dropped.
const PUT: &str = "INSERT INTO vault_key (mesh_id, number, kid, public, created_ms, signature, owner_copy) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
const DROP: &str = "DELETE FROM vault_key WHERE mesh_id = $1 AND kid = $2 \
    AND number < (SELECT MAX(k.number) FROM vault_key k WHERE k.mesh_id = $1) AND NOT EXISTS \
    (SELECT 1 FROM vault_entry e WHERE e.mesh_id = $1 AND e.kid = $2 AND e.wrap IS NOT NULL)";
const GRANT: &str = "INSERT INTO vault_grant (mesh_id, runner, kid, signer, sealed, signature) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (mesh_id, runner, kid) DO UPDATE SET signer = excluded.signer, \
    sealed = excluded.sealed, signature = excluded.signature";
const GRANTS: &str = "SELECT mesh_id, runner, kid, signer, sealed, signature FROM vault_grant \
    WHERE mesh_id = $1 ORDER BY runner, kid";
const GRANTS_TO: &str = "SELECT mesh_id, runner, kid, signer, sealed, signature FROM vault_grant \
    WHERE runner = $1 ORDER BY mesh_id, kid";
const REVOKE: &str = "DELETE FROM vault_grant WHERE mesh_id = $1 AND runner = $2";

impl VaultKeys<'_> {
    /// Newest first.
    pub async fn list(&mut self, mesh: &MeshId) -> Result<Vec<StoredVaultKey>, StoreError> {
        let rows: Vec<KeyRow> = fetch_all!(&mut *self.tx, LIST, mesh.as_str())?;
        rows.into_iter().map(|row| row.read(mesh)).collect()
    }

    /// The one to seal to.
    pub async fn newest(&mut self, mesh: &MeshId) -> Result<Option<VaultKey>, StoreError> {
        let rows: Vec<KeyRow> = fetch_all!(&mut *self.tx, NEWEST, mesh.as_str())?;
        rows.into_iter().next().map(|row| Ok(row.read(mesh)?.key)).transpose()
    }

    /// Stores the successor of the newest.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is not the successor, or the same key was there before.
    pub async fn put(&mut self, mesh: &MeshId, key: &VaultKey, owner_copy: &str) -> Result<(), StoreError> {
        let newest = self.newest(mesh).await?.map_or(0, |newest| newest.number);
        let VaultKey { number, kid, public, created_ms, signature } = key;
        if newest.checked_add(1) != Some(*number) {
            return Err(StoreError::Conflict);
        }
        let (mesh, kid, public) = (mesh.as_str(), kid.as_str(), public.as_str());
        let rows =
            execute!(&mut *self.tx, PUT, mesh, *number, kid, public, *created_ms, signature, owner_copy)?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// Forgets a key that no entry is sealed to and that is not the newest, with its grants. `false` for any other.
    pub async fn drop_unused(&mut self, mesh: &MeshId, kid: &KeyId) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, DROP, mesh.as_str(), kid.as_str())? == 1)
    }

    /// Replaces the grant of the same key to the same runner.
    pub async fn grant(&mut self, mesh: &MeshId, grant: &Grant) -> Result<(), StoreError> {
        let Grant { runner, kid, signer, sealed, signature } = grant;
        let (mesh, signer) = (mesh.as_str(), signer.as_str());
        execute!(&mut *self.tx, GRANT, mesh, runner.as_str(), kid.as_str(), signer, sealed, signature)?;
        Ok(())
    }

    /// To every runner.
    pub async fn grants(&mut self, mesh: &MeshId) -> Result<Vec<Grant>, StoreError> {
        let rows: Vec<GrantRow> = fetch_all!(&mut *self.tx, GRANTS, mesh.as_str())?;
        rows.into_iter().map(|row| Ok(row.read()?.1)).collect()
    }

    /// Of every mesh.
    pub async fn grants_to(&mut self, runner: &RunnerId) -> Result<Vec<(MeshId, Grant)>, StoreError> {
        let rows: Vec<GrantRow> = fetch_all!(&mut *self.tx, GRANTS_TO, runner.as_str())?;
        rows.into_iter().map(GrantRow::read).collect()
    }

    /// Answers how many grants there were.
    pub async fn revoke(&mut self, mesh: &MeshId, runner: &RunnerId) -> Result<u64, StoreError> {
        execute!(&mut *self.tx, REVOKE, mesh.as_str(), runner.as_str())
    }
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    number: i64,
    kid: String,
    public: String,
    created_ms: i64,
    signature: String,
    owner_copy: String,
}

impl KeyRow {
    fn read(self, mesh: &MeshId) -> Result<StoredVaultKey, StoreError> {
        let Self { number, kid, public, created_ms, signature, owner_copy } = self;
        let id = format!("{mesh}/{number}");
        let place = Place { table: "vault_key", id: &id };
        let kid = place.id("kid", KeyId::parse, &kid)?;
        let public = place.id("public", BoxPublic::parse, &public)?;
        Ok(StoredVaultKey { key: VaultKey { number, kid, public, created_ms, signature }, owner_copy })
    }
}

#[derive(sqlx::FromRow)]
struct GrantRow {
    mesh_id: String,
    runner: String,
    kid: String,
    signer: String,
    sealed: String,
    signature: String,
}

impl GrantRow {
    fn read(self) -> Result<(MeshId, Grant), StoreError> {
        let Self { mesh_id, runner, kid, signer, sealed, signature } = self;
        let id = format!("{mesh_id}/{runner}/{kid}");
        let place = Place { table: "vault_grant", id: &id };
        let grant = Grant {
            runner: place.id("runner", RunnerId::parse, &runner)?,
            kid: place.id("kid", KeyId::parse, &kid)?,
            signer: place.id("signer", PublicKey::parse, &signer)?,
            sealed,
            signature,
        };
        Ok((place.mesh(&mesh_id)?, grant))
    }
}
