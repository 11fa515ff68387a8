//! A mesh in one document, and back into another database: who is in it, what they want hosted, uploads, the vault's sealed
//! entries and the ledger.
//!
//! Here: what belongs to it besides the rows: the mesh's at-rest keys, unwrapped, and maybe its owner's identity. So the
//! document is secret as a whole; whoever writes it to a file seals it (`vault::passphrase`). Not here: rows
//! ([`crate::store::Dump`]), files, passphrases.
//! Invariant: a restored mesh trusts no runner, and its members' entries are sealed as they were.

use serde::{Deserialize, Serialize};
use vault::AtRestKey;
use wire::{ErrorCode, MeshId, PublicKey, Secret};

use crate::at_rest::{AtRest, AtRestError};
use crate::clock;
use crate::store::{LoadError, Store, StoreError, Table};

/// Everything of one mesh. Its `Debug` says nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// 1.
    v: u32,
    /// Name of the newest migration of the database that it comes from.
    schema: String,
    pub made_ms: i64,
    pub mesh: MeshId,
    pub name: String,
    pub owner: PublicKey,
    keys: Vec<KeptKey>,
    tables: Vec<Table>,
    /// The owner's secret key, if whoever made the backup has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_secret: Option<Secret>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptKey {
    is_active: bool,
    created_at: i64,
    /// 64 hex digits.
    key: Secret,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[backup]")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the database holds no mesh")]
    NoMesh,
    #[error("the database holds no mesh `{wanted}`; it holds: {known}")]
    UnknownMesh { wanted: String, known: String },
    #[error("the database holds several meshes; name one: {0}")]
    Several(String),
    #[error("the mesh is in this database already; nothing was changed")]
    IsThere,
    /// The schema that it comes from.
    #[error("the backup was made by a newer claudemesh (schema {0})")]
    Newer(String),
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    #[error("the database failed: {0}")]
    Store(#[from] StoreError),
}

impl BackupError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoMesh | Self::UnknownMesh { .. } | Self::Several(_) => ErrorCode::NotFound,
            Self::IsThere => ErrorCode::Conflict,
            Self::Newer(_) | Self::Damaged(_) => ErrorCode::InvalidArgs,
            Self::AtRest(_) => ErrorCode::Internal,
            Self::Store(error) => error.code(),
        }
    }
}

impl From<LoadError> for BackupError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::Store(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Reads one mesh in one snapshot; a broker may go on working on the database. `wanted`: slug or id; may be left out when there is
/// one mesh.
///
/// # Errors
/// [`BackupError`].
pub async fn make(store: &Store, at_rest: &AtRest, wanted: Option<&str>) -> Result<Backup, BackupError> {
    // Records of a time before there were mesh keys are under a root, which does not travel.
    at_rest.settle(store).await?;
    let schema = store.schema_version().await?;
    let mut tx = store.read().await?;
    let meshes = tx.meshes().list().await?;
    let known = || meshes.iter().map(|mesh| mesh.slug.as_str()).collect::<Vec<_>>().join(", ");
    let mesh = match (wanted, meshes.as_slice()) {
        (_, []) => return Err(BackupError::NoMesh),
        (None, [only]) => only,
        (None, _) => return Err(BackupError::Several(known())),
        (Some(wanted), all) => {
            all.iter().find(|mesh| mesh.slug == wanted || mesh.id.as_str() == wanted).ok_or_else(|| {
                BackupError::UnknownMesh { wanted: crate::error::shown(wanted), known: known() }
            })?
        }
    };
    let mut keys = Vec::new();
    for row in tx.mesh_keys().of(&mesh.id).await? {
        let key = at_rest.ring().unwrap_mesh_key(&mesh.id, &row.wrapped).map_err(AtRestError::from)?;
        let key = Secret::new(key.to_hex().as_str());
        keys.push(KeptKey { is_active: row.is_active, created_at: row.created_at, key });
    }
    let tables = tx.dump().tables(&mesh.id).await?;
    Ok(Backup {
        v: 1,
        schema,
        made_ms: clock::now_ms(),
        mesh: mesh.id.clone(),
        name: mesh.name.clone(),
        owner: mesh.owner_pubkey.clone(),
        keys,
        tables,
        owner_secret: None,
    })
}

/// Writes a mesh into a database that does not hold it, in one transaction.
///
/// # Errors
/// [`BackupError`]; nothing was written then.
pub async fn restore(store: &Store, at_rest: &AtRest, backup: &Backup) -> Result<(), BackupError> {
    let schema = store.schema_version().await?;
    if backup.v != 1 || backup.schema > schema {
        return Err(BackupError::Newer(crate::error::shown(&backup.schema)));
    }
    let mut tx = store.begin().await?;
    if tx.meshes().find(&backup.mesh).await?.is_some() {
        return Err(BackupError::IsThere);
    }
    tx.dump().load(&backup.tables).await?;
    // The active one last: making a key active retires the one before.
    let (active, older): (Vec<_>, Vec<_>) = backup.keys.iter().partition(|kept| kept.is_active);
    for kept in older.into_iter().chain(active) {
        let damaged = |_| BackupError::Damaged("an at-rest key in it is none".to_owned());
        let key = AtRestKey::from_hex(kept.key.expose()).map_err(damaged)?;
        let (wrapped, root) = (at_rest.ring().wrap(&backup.mesh, &key), at_rest.ring().active());
        tx.mesh_keys().activate(&backup.mesh, key.id(), root, &wrapped, kept.created_at).await?;
    }
    let is_whole =
        tx.meshes().find(&backup.mesh).await?.is_some_and(|mesh| mesh.owner_pubkey == backup.owner);
    if !is_whole {
        return Err(BackupError::Damaged("its mesh is not in it".to_owned()));
    }
    Ok(tx.commit().await?)
}
