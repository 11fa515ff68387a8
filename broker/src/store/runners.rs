//! Runners that this broker has met, and the boot keys that it keeps for them.
//!
//! Not here: sealing a boot key (`crate::at_rest`), handing it over (`crate::reconcile`).
//! Invariant: a boot key is here before anybody gets it, or a runner's key could be lost with it.

use vault::Sealed;
use wire::vault::{BoxPublic, Custody, RunnerId};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

pub struct Runners<'t> {
    pub(super) tx: &'t mut Tx,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRunner {
    pub runner: RunnerId,
    pub public: BoxPublic,
    pub custody: Custody,
    pub boot_id: Option<String>,
    pub seen_at: i64,
}

const ALL: &str = "SELECT runner, public, custody, boot_id, seen_at FROM vault_runner ORDER BY runner";
const FIND: &str = "SELECT runner, public, custody, boot_id, seen_at FROM vault_runner WHERE runner = $1";
const SEEN: &str = "INSERT INTO vault_runner (runner, public, custody, boot_id, seen_at) VALUES ($1, $2, $3, $4, $5) \
    ON CONFLICT (runner) DO UPDATE SET public = excluded.public, custody = excluded.custody, \
    boot_id = COALESCE(excluded.boot_id, vault_runner.boot_id), seen_at = excluded.seen_at";
// A runner with custody in memory is another one after each start.
const FORGET_PASSED: &str = "DELETE FROM vault_runner WHERE custody = 'memory' AND runner <> $1 AND NOT EXISTS \
    (SELECT 1 FROM vault_grant g WHERE g.runner = vault_runner.runner)";
const PUT_BOOT_KEY: &str =
    "INSERT INTO boot_key (boot_id, sealed, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const BOOT_KEY: &str = "SELECT boot_id, sealed FROM boot_key WHERE boot_id = $1";
const BOOT_KEYS: &str = "SELECT boot_id, sealed FROM boot_key ORDER BY boot_id";
const RESEAL_BOOT_KEY: &str = "UPDATE boot_key SET sealed = $3 WHERE boot_id = $1 AND sealed = $2";

impl Runners<'_> {
    pub async fn all(&mut self) -> Result<Vec<KnownRunner>, StoreError> {
        let rows: Vec<RunnerRow> = fetch_all!(&mut *self.tx, ALL)?;
        rows.into_iter().map(KnownRunner::try_from).collect()
    }

    pub async fn find(&mut self, runner: &RunnerId) -> Result<Option<KnownRunner>, StoreError> {
        let row: Option<RunnerRow> = fetch_optional!(&mut *self.tx, FIND, runner.as_str())?;
        row.map(KnownRunner::try_from).transpose()
    }

    /// A runner that is open already does not say under which boot key: then the one that is known stays.
    pub async fn seen(&mut self, known: &KnownRunner) -> Result<(), StoreError> {
        let KnownRunner { runner, public, custody, boot_id, seen_at } = known;
        let (id, public, custody) = (runner.as_str(), public.as_str(), custody_text(*custody));
        execute!(&mut *self.tx, SEEN, id, public, custody, boot_id.as_deref(), *seen_at)?;
        execute!(&mut *self.tx, FORGET_PASSED, id)?;
        Ok(())
    }

    /// # Errors
    /// [`StoreError::Conflict`] when the id is taken.
    pub async fn put_boot_key(&mut self, boot_id: &str, sealed: &Sealed, at: i64) -> Result<(), StoreError> {
        let rows = execute!(&mut *self.tx, PUT_BOOT_KEY, boot_id, sealed.as_str(), at)?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    pub async fn boot_key(&mut self, boot_id: &str) -> Result<Option<Sealed>, StoreError> {
        let row: Option<BootRow> = fetch_optional!(&mut *self.tx, BOOT_KEY, boot_id)?;
        Ok(row.map(|row| Sealed::from_stored(row.sealed)))
    }

    pub async fn boot_keys(&mut self) -> Result<Vec<(String, Sealed)>, StoreError> {
        let rows: Vec<BootRow> = fetch_all!(&mut *self.tx, BOOT_KEYS)?;
        Ok(rows.into_iter().map(|row| (row.boot_id, Sealed::from_stored(row.sealed))).collect())
    }

    /// `false` when it was sealed anew by somebody else.
    pub async fn reseal_boot_key(
        &mut self,
        boot_id: &str,
        seen: &Sealed,
        sealed: &Sealed,
    ) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, RESEAL_BOOT_KEY, boot_id, seen.as_str(), sealed.as_str())? == 1)
    }
}

const CUSTODIES: [Custody; 3] = [Custody::Split, Custody::File, Custody::Memory];

fn custody_text(custody: Custody) -> &'static str {
    match custody {
        Custody::Split => "split",
        Custody::File => "file",
        Custody::Memory => "memory",
    }
}

#[derive(sqlx::FromRow)]
struct BootRow {
    boot_id: String,
    sealed: String,
}

#[derive(sqlx::FromRow)]
struct RunnerRow {
    runner: String,
    public: String,
    custody: String,
    boot_id: Option<String>,
    seen_at: i64,
}

impl TryFrom<RunnerRow> for KnownRunner {
    type Error = StoreError;
    fn try_from(row: RunnerRow) -> Result<Self, StoreError> {
        let RunnerRow { runner, public, custody, boot_id, seen_at } = row;
        let place = Place { table: "vault_runner", id: &runner };
        let known = CUSTODIES.into_iter().find(|known| custody_text(*known) == custody);
        Ok(Self {
            runner: place.id("runner", RunnerId::parse, &runner)?,
            public: place.id("public", BoxPublic::parse, &public)?,
            custody: known.ok_or_else(|| place.broken("custody"))?,
            boot_id,
            seen_at,
        })
    }
}
