//! The migrations, embedded, and running them under a lock.
//!
//! To add one: write the pair `migrations/{sqlite,postgres}/NNNN_name.sql` and name it in [`migrations!`]. Applied files
//! are never edited: their checksums are in the databases of users.

use std::time::{Duration, Instant};

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, SqlSafeStr};

use super::StoreError;

/// How long another process may take for its migration.
const PATIENCE: Duration = Duration::from_secs(300);

macro_rules! migrations {
    ($folder:literal) => {
        migrator(&[
            (1, "first", include_str!(concat!("../../../migrations/", $folder, "/0001_first.sql"))),
            (2, "jail", include_str!(concat!("../../../migrations/", $folder, "/0002_jail.sql"))),
            (3, "vault", include_str!(concat!("../../../migrations/", $folder, "/0003_vault.sql"))),
            (4, "agents", include_str!(concat!("../../../migrations/", $folder, "/0004_agents.sql"))),
        ])
    };
}

fn migrator(all: &[(i64, &'static str, &'static str)]) -> Migrator {
    let one = |(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(all.iter().map(one).collect());
    // An older broker must run on a newer schema, or there is no way back from an upgrade.
    migrator.set_ignore_missing(true);
    migrator
}

/// The driver's own lock is empty for SQLite, so everything runs inside one exclusive transaction.
pub(super) async fn sqlite(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let migrator = migrations!("sqlite");
    let mut connection = connect(options).await?;
    let mut tx = connection.begin_with("BEGIN EXCLUSIVE").await?;
    migrator.run_direct(None, &mut *tx, false).await?;
    tx.commit().await?;
    connection.close().await?;
    Ok(())
}

/// Turning on WAL needs the file for oneself, and SQLite does not wait for that by its busy timeout.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match SqliteConnection::connect_with(options).await {
            Err(e) if is_busy(&e) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return Ok(result?),
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    // SQLITE_BUSY is 5; its extended codes keep that in the low byte.
    let code = error.as_database_error().and_then(|e| e.code());
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}

/// The driver takes an advisory lock for the time of the run. A connection of its own: when a migration fails, the lock
/// goes with the connection.
pub(super) async fn postgres(options: &PgConnectOptions) -> Result<(), StoreError> {
    let migrator = migrations!("postgres");
    let limit = PATIENCE.as_millis().to_string();
    let options = options.clone().options([("statement_timeout", limit.as_str())]);
    let mut connection = PgConnection::connect_with(&options).await?;
    migrator.run_direct(None, &mut connection, false).await?;
    connection.close().await?;
    Ok(())
}
