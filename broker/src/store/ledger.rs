//! The vault's ledger: what runners opened, and what people did.
//!
//! Here: the lines, each written once and kept for [`KEPT_LEDGER_MS`]. Not here: who may read which (`crate::vault`).
//! Invariants: the same opening twice is one line; nothing here is ever changed. No runner writes into a mesh that never
//! trusted it, or of an entry that never was.

use wire::vault::{Opening, RunnerId, VaultName};
use wire::{MemberId, MeshId, PublicKey, ServiceName};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all};

/// 400 days.
pub const KEPT_LEDGER_MS: i64 = 400 * 24 * 3600 * 1000;

pub struct Ledger<'t> {
    pub(super) tx: &'t mut Tx,
}

/// What people, or the broker for them, do in a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    Set,
    Removed,
    Trusted,
    Revoked,
    /// A runner got its boot key.
    BootKey,
    /// The vault has a new key.
    Rotated,
    /// Entries were sealed to the newest key anew.
    Rewrapped,
    /// A vault key that nothing needs was forgotten.
    KeyDropped,
    /// The broker has a new key for what it encrypts itself.
    AtRest,
}

impl ActKind {
    const ALL: [Self; 9] = [
        Self::Set,
        Self::Removed,
        Self::Trusted,
        Self::Revoked,
        Self::BootKey,
        Self::Rotated,
        Self::Rewrapped,
        Self::KeyDropped,
        Self::AtRest,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Removed => "removed",
            Self::Trusted => "trusted",
            Self::Revoked => "revoked",
            Self::BootKey => "boot_key",
            Self::Rotated => "rotated",
            Self::Rewrapped => "rewrapped",
            Self::KeyDropped => "key_dropped",
            Self::AtRest => "at_rest",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.as_str() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// `None` for a boot key, which is of no mesh.
    pub mesh: Option<MeshId>,
    pub at_ms: i64,
    pub act: ActKind,
    /// Display name of who did it.
    pub who: String,
    /// Of an entry; the original's form has no version.
    pub entry: Option<(PublicKey, VaultName)>,
    /// Of the entry; of what was done to a vault key, its number.
    pub version: Option<i64>,
    pub runner: Option<RunnerId>,
}

/// Which lines of a mesh.
#[derive(Debug, Clone, Copy)]
pub struct Lines<'a> {
    pub mesh: &'a MeshId,
    /// Of this owner's entries only; `None`: everything that happened.
    pub owner: Option<&'a PublicKey>,
    pub key: Option<&'a VaultName>,
    /// Openings for this service only; its plain name.
    pub service: Option<&'a ServiceName>,
    pub most: i64,
}

const OPENED: &str = "INSERT INTO vault_opening (ledger, seq, mesh_id, at_ms, runner, owner, key_name, version, name, \
    generation, caller, reason, stored_at) SELECT $1, $2, m.id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 \
    FROM mesh m WHERE m.id = $3 \
    AND EXISTS (SELECT 1 FROM vault_entry e WHERE e.mesh_id = $3 AND e.owner = $6 AND e.key_name = $7 AND e.version >= $8) \
    AND (EXISTS (SELECT 1 FROM vault_grant g WHERE g.mesh_id = $3 AND g.runner = $5) \
        OR EXISTS (SELECT 1 FROM vault_act a WHERE a.mesh_id = $3 AND a.runner = $5)) ON CONFLICT DO NOTHING";
const DID: &str = "INSERT INTO vault_act (id, mesh_id, at_ms, act, who, owner, key_name, version, runner) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
const LAST_SEQ: &str = "SELECT COALESCE(MAX(seq), 0) AS n FROM vault_opening WHERE ledger = $1";
const FORGET_OPENINGS: &str = "DELETE FROM vault_opening WHERE stored_at < $1 AND seq < \
    (SELECT MAX(o.seq) FROM vault_opening o WHERE o.ledger = vault_opening.ledger)";
const FORGET_ACTS: &str = "DELETE FROM vault_act WHERE at_ms < $1";
const OPENINGS: &str = "SELECT seq, mesh_id, at_ms, runner, owner, key_name, version, name, generation, caller, reason \
    FROM vault_opening WHERE mesh_id = $1 AND ($2 IS NULL OR owner = $2) AND ($3 IS NULL OR key_name = $3) \
    AND ($4 IS NULL OR name = $4) ORDER BY at_ms DESC, ledger, seq DESC LIMIT $5";
const ACTS: &str = "SELECT mesh_id, at_ms, act, who, owner, key_name, version, runner FROM vault_act \
    WHERE (mesh_id = $1 OR (mesh_id IS NULL AND $2 IS NULL)) AND ($2 IS NULL OR owner = $2) \
    AND ($3 IS NULL OR key_name = $3) ORDER BY at_ms DESC, id LIMIT $4";

impl Ledger<'_> {
    /// Takes in what a runner wrote in this ledger of its own. Answers how many lines are new; what it can't have opened is
    /// none.
    pub async fn opened(&mut self, ledger: &str, openings: &[Opening], at: i64) -> Result<u64, StoreError> {
        let mut fresh = 0;
        for opening in openings {
            let Opening {
                seq,
                at_ms,
                runner,
                mesh,
                owner,
                key,
                version,
                service,
                generation,
                caller,
                reason,
            } = opening;
            fresh += execute!(
                &mut *self.tx,
                OPENED,
                ledger,
                *seq,
                mesh.as_str(),
                *at_ms,
                runner.as_str(),
                owner.as_str(),
                key.as_str(),
                *version,
                service.plain(),
                *generation,
                caller.as_ref().map(MemberId::as_str),
                reason,
                at
            )?;
        }
        execute!(&mut *self.tx, FORGET_OPENINGS, at - KEPT_LEDGER_MS)?;
        Ok(fresh)
    }

    /// The last line that is here of a runner's ledger; 0 when there is none.
    pub async fn last_seq(&mut self, ledger: &str) -> Result<i64, StoreError> {
        let rows: Vec<super::row::Count> = fetch_all!(&mut *self.tx, LAST_SEQ, ledger)?;
        Ok(rows.first().map_or(0, |row| row.n))
    }

    pub async fn did(&mut self, act: &Act) -> Result<(), StoreError> {
        let Act { mesh, at_ms, act, who, entry, version, runner } = act;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (owner, key) = entry.as_ref().map(|(owner, key)| (owner.as_str(), key.as_str())).unzip();
        execute!(
            &mut *self.tx,
            DID,
            id,
            mesh.as_ref().map(MeshId::as_str),
            *at_ms,
            act.as_str(),
            who,
            owner,
            key,
            *version,
            runner.as_ref().map(RunnerId::as_str)
        )?;
        execute!(&mut *self.tx, FORGET_ACTS, at_ms - KEPT_LEDGER_MS)?;
        Ok(())
    }

    /// Newest first.
    pub async fn openings(&mut self, lines: Lines<'_>) -> Result<Vec<Opening>, StoreError> {
        let Lines { mesh, owner, key, service, most } = lines;
        let (owner, key) = (owner.map(PublicKey::as_str), key.map(VaultName::as_str));
        let service = service.map(ServiceName::plain);
        let rows: Vec<OpeningRow> =
            fetch_all!(&mut *self.tx, OPENINGS, mesh.as_str(), owner, key, service, most)?;
        rows.into_iter().map(OpeningRow::read).collect()
    }

    /// Newest first. None of them is of a service.
    pub async fn acts(&mut self, lines: Lines<'_>) -> Result<Vec<Act>, StoreError> {
        let Lines { mesh, owner, key, service: _, most } = lines;
        let (owner, key) = (owner.map(PublicKey::as_str), key.map(VaultName::as_str));
        let rows: Vec<ActRow> = fetch_all!(&mut *self.tx, ACTS, mesh.as_str(), owner, key, most)?;
        rows.into_iter().map(ActRow::read).collect()
    }
}

#[derive(sqlx::FromRow)]
struct OpeningRow {
    seq: i64,
    mesh_id: String,
    at_ms: i64,
    runner: String,
    owner: String,
    key_name: String,
    version: i64,
    name: String,
    generation: i64,
    caller: Option<String>,
    reason: String,
}

impl OpeningRow {
    fn read(self) -> Result<Opening, StoreError> {
        let Self { seq, mesh_id, at_ms, runner, owner, key_name, version, name, generation, caller, reason } =
            self;
        let id = format!("{mesh_id}/{runner}/{seq}");
        let place = Place { table: "vault_opening", id: &id };
        Ok(Opening {
            seq,
            at_ms,
            runner: place.id("runner", RunnerId::parse, &runner)?,
            mesh: place.mesh(&mesh_id)?,
            owner: place.id("owner", PublicKey::parse, &owner)?,
            key: place.id("key_name", VaultName::parse, &key_name)?,
            version,
            service: place.id("name", ServiceName::parse, &name)?,
            generation,
            caller: caller.map(|caller| place.member("caller", &caller)).transpose()?,
            reason,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ActRow {
    mesh_id: Option<String>,
    at_ms: i64,
    act: String,
    who: String,
    owner: Option<String>,
    key_name: Option<String>,
    version: Option<i64>,
    runner: Option<String>,
}

impl ActRow {
    fn read(self) -> Result<Act, StoreError> {
        let Self { mesh_id, at_ms, act, who, owner, key_name, version, runner } = self;
        let id = format!("{}/{at_ms}", mesh_id.as_deref().unwrap_or_default());
        let place = Place { table: "vault_act", id: &id };
        let entry = match (owner, key_name) {
            (Some(owner), Some(key)) => Some((
                place.id("owner", PublicKey::parse, &owner)?,
                place.id("key_name", VaultName::parse, &key)?,
            )),
            _ => None,
        };
        Ok(Act {
            mesh: mesh_id.map(|mesh| place.mesh(&mesh)).transpose()?,
            at_ms,
            act: ActKind::parse(&act).ok_or_else(|| place.broken("act"))?,
            who,
            entry,
            version,
            runner: runner.map(|runner| place.id("runner", RunnerId::parse, &runner)).transpose()?,
        })
    }
}
