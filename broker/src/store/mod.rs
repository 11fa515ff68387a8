//! The store: what people want, on SQLite or PostgreSQL, with one SQL text for both.
//!
//! Here: opening (with migrations), transactions, and one repository for each table. Not here: who may read or write what
//! (`catalog::access`), sealing (`vault`), what has to happen (`crate::reconcile`).
//! Invariants: SQL is nowhere else. A write that depends on what was read before is guarded in its own `WHERE` and checks
//! how many rows it hit, so it is right on both databases whatever runs beside it.
//!
//! SQLite runs in WAL mode with one writer and a few readers, and `synchronous=FULL`: with `NORMAL` a power cut may
//! take back a commit that was already answered (<https://www.sqlite.org/pragma.html#pragma_synchronous>). Writes are
//! deploys, joins and changes of state, so the sync is not on the path of a call.

mod approvals;
mod callers;
mod consents;
mod dump;
mod egress;
mod entries;
mod envelopes;
mod error;
mod generations;
mod invites;
mod ledger;
mod live;
mod members;
mod mesh_keys;
mod meshes;
mod migrate;
mod open;
mod policies;
mod reports;
mod row;
mod runners;
mod services;
mod skills;
mod uploads;
mod vault_keys;

use sqlx::{PgPool, Postgres, Sqlite, SqlitePool, Transaction};

pub use approvals::{Approval, Approvals};
pub use callers::{CallerInstance, Callers};
pub use consents::{Consents, KEPT_CONSENTS};
pub use dump::{Dump, LoadError, Table};
pub use egress::{Counted, Egress, KEPT_MS, KEPT_ROWS, summed};
pub use entries::{Entries, EntryLine, KEPT_VERSIONS};
pub use envelopes::Envelope;
pub use error::StoreError;
pub use generations::{Generations, StoredGeneration};
pub use invites::{Invite, Invites};
pub use ledger::{Act, ActKind, KEPT_LEDGER_MS, Ledger, Lines};
pub use live::{LentServer, LentServers};
pub use members::{Member, MemberChange, Members};
pub use mesh_keys::{MeshKey, MeshKeys, SealedRow};
pub use meshes::{Mesh, Meshes};
pub use open::StoreConfig;
pub use policies::Policies;
pub use reports::{LastReport, Listing, Listings, Observations};
pub use runners::{KnownRunner, Runners};
pub use services::{Deploy, FailedGeneration, Service, Services, Wanted};
pub use skills::{Skill, SkillRow, Skills};
pub use uploads::Uploads;
pub use vault_keys::{StoredVaultKey, VaultKeys};

/// An open database with the newest schema. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Db,
}

#[derive(Clone)]
enum Db {
    Sqlite { read: SqlitePool, write: SqlitePool },
    Postgres(PgPool),
}

/// A transaction. Dropped without [`Tx::commit`], it never happened.
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Store {
    /// Begins to write. On SQLite there is one writer at a time: keep it short, and never wait for the network in it.
    ///
    /// # Errors
    /// [`StoreError`] when the database is out of reach, or busy for ten seconds.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(match &self.db {
            // IMMEDIATE: a lock that is only asked for at the first write can fail in the middle.
            Db::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
            Db::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }

    /// Begins to read one consistent snapshot. Writes in it fail.
    ///
    /// # Errors
    /// [`StoreError`] when the database is out of reach, or busy for ten seconds.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        const SNAPSHOT: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(match &self.db {
            Db::Sqlite { read, .. } => Tx::Sqlite(read.begin().await?),
            Db::Postgres(pool) => Tx::Postgres(pool.begin_with(SNAPSHOT).await?),
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`] with the reason why not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut tx = self.read().await?;
        let _: Vec<row::One> = fetch_all!(&mut tx, "SELECT CAST(1 AS BIGINT) AS one")?;
        Ok(())
    }

    /// Waits for running transactions and closes every connection.
    pub async fn close(&self) {
        match &self.db {
            Db::Sqlite { read, write } => {
                read.close().await;
                // The last connection that closes folds the WAL back into the file.
                write.close().await;
            }
            Db::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    /// # Errors
    /// [`StoreError`] when the commit fails; then nothing was written.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    pub fn meshes(&mut self) -> Meshes<'_> {
        Meshes { tx: self }
    }

    pub fn members(&mut self) -> Members<'_> {
        Members { tx: self }
    }

    pub fn invites(&mut self) -> Invites<'_> {
        Invites { tx: self }
    }

    pub fn services(&mut self) -> Services<'_> {
        Services { tx: self }
    }

    pub fn generations(&mut self) -> Generations<'_> {
        Generations { tx: self }
    }

    /// What each service listed when it was last ready.
    pub fn lists(&mut self) -> Listings<'_> {
        Listings { tx: self }
    }

    /// What the runner last said about each service.
    pub fn observed(&mut self) -> Observations<'_> {
        Observations { tx: self }
    }

    pub fn policies(&mut self) -> Policies<'_> {
        Policies { tx: self }
    }

    pub fn approvals(&mut self) -> Approvals<'_> {
        Approvals { tx: self }
    }

    /// What became of connections.
    pub fn egress(&mut self) -> Egress<'_> {
        Egress { tx: self }
    }

    /// All rows of a mesh.
    pub fn dump(&mut self) -> Dump<'_> {
        Dump { tx: self }
    }

    pub fn uploads(&mut self) -> Uploads<'_> {
        Uploads { tx: self }
    }

    /// The vault's entries.
    pub fn entries(&mut self) -> Entries<'_> {
        Entries { tx: self }
    }

    /// What entries are sealed to, and which runners hold it.
    pub fn vault_keys(&mut self) -> VaultKeys<'_> {
        VaultKeys { tx: self }
    }

    pub fn runners(&mut self) -> Runners<'_> {
        Runners { tx: self }
    }

    pub fn consents(&mut self) -> Consents<'_> {
        Consents { tx: self }
    }

    /// What was opened, and what people did in the vault.
    pub fn ledger(&mut self) -> Ledger<'_> {
        Ledger { tx: self }
    }

    /// Instances of services that run as their caller.
    pub fn callers(&mut self) -> Callers<'_> {
        Callers { tx: self }
    }

    /// Persistent live servers.
    pub fn live(&mut self) -> LentServers<'_> {
        LentServers { tx: self }
    }

    pub fn skills(&mut self) -> Skills<'_> {
        Skills { tx: self }
    }

    /// What this broker itself encrypts with.
    pub fn mesh_keys(&mut self) -> MeshKeys<'_> {
        MeshKeys { tx: self }
    }
}

/// Runs one statement: the body is compiled once for each driver, over one SQL text and one row type.
macro_rules! on_db {
    ($tx:expr, $conn:ident => $body:expr) => {
        match $tx {
            $crate::store::Tx::Sqlite(tx) => {
                let $conn = &mut **tx;
                $body
            }
            $crate::store::Tx::Postgres(tx) => {
                let $conn = &mut **tx;
                $body
            }
        }
    };
}

/// `execute!(tx, SQL, binds…)`: how many rows the write hit.
macro_rules! execute {
    ($tx:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        $crate::store::on_db!($tx, conn => {
            sqlx::query($sql)$(.bind($bind))*.execute(conn).await.map(|done| done.rows_affected())
        })
        .map_err($crate::store::StoreError::from)
    };
}

/// `fetch_all!(tx, SQL, binds…)`: the rows.
macro_rules! fetch_all {
    ($tx:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        $crate::store::on_db!($tx, conn => sqlx::query_as($sql)$(.bind($bind))*.fetch_all(conn).await)
            .map_err($crate::store::StoreError::from)
    };
}

/// `fetch_optional!(tx, SQL, binds…)`: the row, if there is one.
macro_rules! fetch_optional {
    ($tx:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        $crate::store::on_db!($tx, conn => sqlx::query_as($sql)$(.bind($bind))*.fetch_optional(conn).await)
            .map_err($crate::store::StoreError::from)
    };
}

use {execute, fetch_all, fetch_optional, on_db};
