//! The vault's entries: versions, sealed and signed by their owners.
//!
//! Here: the rows. Not here: whether a signature fits and who may write (`crate::vault`), the form of the original's clients
//! ([`super::envelopes`]).
//! Invariant: versions of an entry grow by one, and only the newest has content.

use vault::entry;
use wire::peer::vault::{VaultVersion, WrapAt};
use wire::vault::{EntryKind, KeyId, VaultEntry, VaultName, Wrap, WrapOf};
use wire::{MeshId, PublicKey};

use super::row::{Count, Place};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional, on_db};
use crate::clock;

/// Versions of one entry of which something is remembered.
pub const KEPT_VERSIONS: i64 = 100;
/// Entries that are in memory at the same time.
const PAGE: i64 = 50;

pub struct Entries<'t> {
    pub(super) tx: &'t mut Tx,
}

/// An entry as its owner's list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryLine {
    pub key: VaultName,
    pub version: i64,
    pub kind: EntryKind,
    pub kid: Option<KeyId>,
    pub stored_at: i64,
    /// When a runner last opened it.
    pub last_used_at: Option<i64>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT owner, key_name, version, kind, created_ms, content, signature, kid, wrap FROM vault_entry ",
            $rest
        )
    };
}

const NEWEST: &str =
    select!("WHERE mesh_id = $1 AND owner = $2 AND key_name = $3 ORDER BY version DESC LIMIT 1");
const NEWEST_BARE: &str = "SELECT owner, key_name, version, kind, created_ms, '' AS content, signature, kid, wrap \
    FROM vault_entry WHERE mesh_id = $1 AND owner = $2 AND key_name = $3 ORDER BY version DESC LIMIT 1";
const PUT: &str = "INSERT INTO vault_entry (mesh_id, owner, key_name, version, kind, created_ms, content, signature, \
    kid, wrap, stored_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING";
const EMPTY_OLDER: &str = "UPDATE vault_entry SET content = '', wrap = NULL \
    WHERE mesh_id = $1 AND owner = $2 AND key_name = $3 AND version < $4 AND wrap IS NOT NULL";
const FORGET_OLDEST: &str =
    "DELETE FROM vault_entry WHERE mesh_id = $1 AND owner = $2 AND key_name = $3 AND version <= $4";
const NAMES: &str = "SELECT COUNT(DISTINCT key_name) AS n FROM vault_entry WHERE mesh_id = $1 AND owner = $2";
const LIVE: &str = "SELECT (SELECT COUNT(*) FROM vault_entry WHERE mesh_id = $1 AND owner = $2 AND wrap IS NOT NULL) + \
    (SELECT COUNT(*) FROM vault_envelope WHERE mesh_id = $1 AND owner = $2) AS n";
const BYTES: &str = "SELECT (SELECT COALESCE(SUM(OCTET_LENGTH(content)), 0) FROM vault_entry \
    WHERE mesh_id = $1 AND owner = $2 AND key_name <> $3 AND wrap IS NOT NULL) + \
    (SELECT COALESCE(SUM(OCTET_LENGTH(ciphertext)), 0) FROM vault_envelope \
    WHERE mesh_id = $1 AND owner = $2 AND key_name <> $3) AS n";
const LINES: &str = "SELECT e.key_name, e.version, e.kind, e.kid, e.stored_at, \
    (SELECT MAX(o.at_ms) FROM vault_opening o WHERE o.mesh_id = e.mesh_id AND o.owner = e.owner \
    AND o.key_name = e.key_name) AS last_used_at FROM vault_entry e \
    WHERE e.mesh_id = $1 AND e.owner = $2 AND e.wrap IS NOT NULL ORDER BY e.key_name";
const HISTORY: &str = "SELECT e.version, e.kind, e.kid, e.stored_at, \
    (SELECT COUNT(*) FROM vault_opening o WHERE o.mesh_id = e.mesh_id AND o.owner = e.owner \
    AND o.key_name = e.key_name AND o.version = e.version) AS openings FROM vault_entry e \
    WHERE e.mesh_id = $1 AND e.owner = $2 AND e.key_name = $3 ORDER BY e.version DESC";
const SEALED_TO: &str = select!(
    "WHERE mesh_id = $1 AND kid = $2 AND wrap IS NOT NULL AND (owner, key_name) > ($3, $4) \
     ORDER BY owner, key_name LIMIT $5"
);
const COUNT_SEALED_TO: &str =
    "SELECT COUNT(*) AS n FROM vault_entry WHERE mesh_id = $1 AND kid = $2 AND wrap IS NOT NULL";
// Both databases call the columns of VALUES so. To PostgreSQL each statement is a round trip.
const REWRAP: &str = "UPDATE vault_entry SET kid = $3, wrap = v.column4 FROM (VALUES \
    ($4, $5, $6, $7), ($8, $9, $10, $11), ($12, $13, $14, $15), ($16, $17, $18, $19), ($20, $21, $22, $23), \
    ($24, $25, $26, $27), ($28, $29, $30, $31), ($32, $33, $34, $35), ($36, $37, $38, $39), ($40, $41, $42, $43), \
    ($44, $45, $46, $47), ($48, $49, $50, $51), ($52, $53, $54, $55), ($56, $57, $58, $59), ($60, $61, $62, $63), \
    ($64, $65, $66, $67), ($68, $69, $70, $71), ($72, $73, $74, $75), ($76, $77, $78, $79), ($80, $81, $82, $83)\
    ) AS v WHERE mesh_id = $1 AND owner = v.column1 AND key_name = v.column2 AND version = v.column3 \
    AND kid = $2 AND vault_entry.wrap IS NOT NULL";
/// Wraps of one statement.
const REWRAPS: usize = 20;

impl Entries<'_> {
    /// The newest version, which may say that the entry is gone.
    pub async fn newest(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<Option<VaultEntry>, StoreError> {
        let row: Option<EntryRow> =
            fetch_optional!(&mut *self.tx, NEWEST, mesh.as_str(), owner.as_str(), key.as_str())?;
        row.map(|row| row.read(mesh)).transpose()
    }

    /// [`Self::newest`] with its content left out, which may be large.
    pub async fn newest_bare(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<Option<VaultEntry>, StoreError> {
        let row: Option<EntryRow> =
            fetch_optional!(&mut *self.tx, NEWEST_BARE, mesh.as_str(), owner.as_str(), key.as_str())?;
        row.map(|row| row.read(mesh)).transpose()
    }

    /// Stores the successor of the newest version, whose content goes with this.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is not the successor.
    pub async fn put(&mut self, mesh: &MeshId, entry: &VaultEntry, at: i64) -> Result<(), StoreError> {
        let VaultEntry { owner, key, version, kind, created_ms, content, signature, wrap } = entry;
        let newest = self.newest_bare(mesh, owner, key).await?.map_or(0, |newest| newest.version);
        let (mesh, owner, key) = (mesh.as_str(), owner.as_str(), key.as_str());
        let (kid, wrap) = wrap.as_ref().map(|w| (w.kid.as_str(), w.sealed.as_str())).unzip();
        if newest.checked_add(1) != Some(*version) {
            return Err(StoreError::Conflict);
        }
        execute!(&mut *self.tx, EMPTY_OLDER, mesh, owner, key, *version)?;
        let kind = kind.as_str();
        let rows = execute!(
            &mut *self.tx,
            PUT,
            mesh,
            owner,
            key,
            *version,
            kind,
            *created_ms,
            content,
            signature,
            kid,
            wrap,
            at
        )?;
        if rows != 1 {
            return Err(StoreError::Conflict);
        }
        execute!(&mut *self.tx, FORGET_OLDEST, mesh, owner, key, version - KEPT_VERSIONS)?;
        Ok(())
    }

    /// How many names an owner ever used for entries of ours: the gone ones too, whose version has to be remembered.
    pub async fn count_names(&mut self, mesh: &MeshId, owner: &PublicKey) -> Result<usize, StoreError> {
        let row: Option<Count> = fetch_optional!(&mut *self.tx, NAMES, mesh.as_str(), owner.as_str())?;
        Ok(number(row))
    }

    /// How many entries of either form an owner has.
    pub async fn count(&mut self, mesh: &MeshId, owner: &PublicKey) -> Result<usize, StoreError> {
        let row: Option<Count> = fetch_optional!(&mut *self.tx, LIVE, mesh.as_str(), owner.as_str())?;
        Ok(number(row))
    }

    /// How many bytes the sealed values of either form take that an owner has under other names.
    pub async fn bytes_beside(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<usize, StoreError> {
        let row: Option<Count> =
            fetch_optional!(&mut *self.tx, BYTES, mesh.as_str(), owner.as_str(), key.as_str())?;
        Ok(number(row))
    }

    /// The entries that an owner has, by name.
    pub async fn list(&mut self, mesh: &MeshId, owner: &PublicKey) -> Result<Vec<EntryLine>, StoreError> {
        let rows: Vec<LineRow> = fetch_all!(&mut *self.tx, LINES, mesh.as_str(), owner.as_str())?;
        rows.into_iter().map(|row| row.read(mesh, owner)).collect()
    }

    /// Newest first.
    pub async fn history(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<Vec<VaultVersion>, StoreError> {
        let rows: Vec<VersionRow> =
            fetch_all!(&mut *self.tx, HISTORY, mesh.as_str(), owner.as_str(), key.as_str())?;
        let id = format!("{mesh}/{owner}/{key}");
        let place = Place { table: "vault_entry", id: &id };
        rows.into_iter().map(|row| row.read(&place)).collect()
    }

    /// What is sealed to a vault key, of every member.
    pub async fn wraps_of(
        &mut self,
        mesh: &MeshId,
        kid: &KeyId,
        after: Option<&WrapAt>,
        most: usize,
    ) -> Result<Vec<WrapOf>, StoreError> {
        let mut wraps = Vec::new();
        let mut after = after.map_or_else(Default::default, |at| (at.owner.to_string(), at.key.to_string()));
        // Contents are hashed on the way, a few at a time: a thousand of the largest would fill the memory.
        while wraps.len() < most {
            let (owner, key) = (after.0.as_str(), after.1.as_str());
            let rows: Vec<EntryRow> =
                fetch_all!(&mut *self.tx, SEALED_TO, mesh.as_str(), kid.as_str(), owner, key, PAGE)?;
            let Some(last) = rows.last() else { break };
            after = (last.owner.clone(), last.key_name.clone());
            for row in rows {
                wraps.extend(entry::wrap_of(&row.read(mesh)?));
            }
        }
        wraps.truncate(most);
        Ok(wraps)
    }

    pub async fn count_sealed_to(&mut self, mesh: &MeshId, kid: &KeyId) -> Result<i64, StoreError> {
        let row: Option<Count> =
            fetch_optional!(&mut *self.tx, COUNT_SEALED_TO, mesh.as_str(), kid.as_str())?;
        Ok(row.map_or(0, |row| row.n))
    }

    /// Replaces the wraps of versions that are still sealed to the first key, and the newest, by wraps to the second. Answers
    /// how many that were.
    pub async fn rewrap(
        &mut self,
        mesh: &MeshId,
        (from, to): (&KeyId, &KeyId),
        wraps: &[WrapOf],
    ) -> Result<u64, StoreError> {
        let mut done = 0;
        for some in wraps.chunks(REWRAPS) {
            // What is missing in the last statement is of nobody.
            let rows = some.iter().map(Some).chain(std::iter::repeat(None)).take(REWRAPS);
            done += on_db!(&mut *self.tx, conn => {
                let mut update = sqlx::query(REWRAP).bind(mesh.as_str()).bind(from.as_str()).bind(to.as_str());
                for row in rows {
                    update = update
                        .bind(row.map_or("", |of| of.owner.as_str()))
                        .bind(row.map_or("", |of| of.key.as_str()))
                        .bind(row.map_or(0, |of| of.version))
                        .bind(row.map_or("", |of| of.wrap.sealed.as_str()));
                }
                update.execute(conn).await.map(|done| done.rows_affected()).map_err(StoreError::from)
            })?;
        }
        Ok(done)
    }
}

fn number(row: Option<Count>) -> usize {
    row.and_then(|row| usize::try_from(row.n).ok()).unwrap_or_default()
}

fn kind(place: &Place<'_>, text: &str) -> Result<EntryKind, StoreError> {
    let known = [EntryKind::Env, EntryKind::File, EntryKind::Gone];
    known.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| place.broken("kind"))
}

fn kid(place: &Place<'_>, text: Option<&str>) -> Result<Option<KeyId>, StoreError> {
    text.map(|text| place.id("kid", KeyId::parse, text)).transpose()
}

#[derive(sqlx::FromRow)]
struct EntryRow {
    owner: String,
    key_name: String,
    version: i64,
    kind: String,
    created_ms: i64,
    content: String,
    signature: String,
    kid: Option<String>,
    wrap: Option<String>,
}

impl EntryRow {
    fn read(self, mesh: &MeshId) -> Result<VaultEntry, StoreError> {
        let Self { owner, key_name, version, kind: is, created_ms, content, signature, kid: sealed_to, wrap } =
            self;
        let id = format!("{mesh}/{owner}/{key_name}/{version}");
        let place = Place { table: "vault_entry", id: &id };
        let wrap = match (kid(&place, sealed_to.as_deref())?, wrap) {
            (Some(kid), Some(sealed)) => Some(Wrap { kid, sealed }),
            (None, Some(_)) => return Err(place.broken("kid")),
            (_, None) => None,
        };
        Ok(VaultEntry {
            owner: place.id("owner", PublicKey::parse, &owner)?,
            key: place.id("key_name", VaultName::parse, &key_name)?,
            version,
            kind: kind(&place, &is)?,
            created_ms,
            content,
            signature,
            wrap,
        })
    }
}

#[derive(sqlx::FromRow)]
struct LineRow {
    key_name: String,
    version: i64,
    kind: String,
    kid: Option<String>,
    stored_at: i64,
    last_used_at: Option<i64>,
}

impl LineRow {
    fn read(self, mesh: &MeshId, owner: &PublicKey) -> Result<EntryLine, StoreError> {
        let Self { key_name, version, kind: is, kid: sealed_to, stored_at, last_used_at } = self;
        let id = format!("{mesh}/{owner}/{key_name}/{version}");
        let place = Place { table: "vault_entry", id: &id };
        Ok(EntryLine {
            key: place.id("key_name", VaultName::parse, &key_name)?,
            version,
            kind: kind(&place, &is)?,
            kid: kid(&place, sealed_to.as_deref())?,
            stored_at,
            last_used_at,
        })
    }
}

#[derive(sqlx::FromRow)]
struct VersionRow {
    version: i64,
    kind: String,
    kid: Option<String>,
    stored_at: i64,
    openings: i64,
}

impl VersionRow {
    fn read(self, place: &Place<'_>) -> Result<VaultVersion, StoreError> {
        let Self { version, kind: is, kid: sealed_to, stored_at, openings } = self;
        Ok(VaultVersion {
            version,
            kind: kind(place, &is)?,
            stored_at: clock::iso(stored_at),
            kid: kid(place, sealed_to.as_deref())?,
            openings,
        })
    }
}
