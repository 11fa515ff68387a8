//! Opening a database: where it is, how it is driven, and its schema.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::{Db, Store, StoreError, Tx, fetch_all, migrate, row};

/// A transaction that can't begin within this time fails instead of waiting on.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// Readers of SQLite, or all connections of PostgreSQL. At least 1.
    pub max_connections: u32,
}

impl Store {
    /// Opens the database, creates it if it is a missing SQLite file, and brings its schema up to date. Several processes
    /// may do so at once: one migrates, the others wait for it.
    ///
    /// # Errors
    /// [`StoreError`] when the URL is of another kind, the database is out of reach or a migration fails.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let StoreConfig { url, max_connections } = config;
        let db = if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            open_sqlite(PathBuf::from(path), max_connections.max(1)).await?
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            // The parser's own error may quote the URL, and the URL may hold a password.
            let options = url.parse::<PgConnectOptions>().map_err(|_| StoreError::BadUrl)?;
            open_postgres(options, max_connections.max(1)).await?
        } else {
            return Err(StoreError::BadUrl);
        };
        Ok(Self { db })
    }

    /// Name of the newest migration that was applied, e.g. `0001_first`.
    ///
    /// # Errors
    /// [`StoreError`] when the database is out of reach.
    pub async fn schema_version(&self) -> Result<String, StoreError> {
        let mut tx: Tx = self.read().await?;
        let rows: Vec<row::Applied> = fetch_all!(
            &mut tx,
            "SELECT version, description FROM _sqlx_migrations WHERE success ORDER BY version DESC LIMIT 1"
        )?;
        Ok(rows.first().map(row::Applied::name).unwrap_or_default())
    }
}

async fn open_sqlite(path: PathBuf, readers: u32) -> Result<Db, StoreError> {
    create_private(&path)?;
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(PATIENCE);
    migrate::sqlite(&options).await?;
    let one_writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .idle_timeout(None)
        .max_lifetime(None);
    let many_readers =
        SqlitePoolOptions::new().max_connections(readers).acquire_timeout(PATIENCE).max_lifetime(None);
    let write = one_writer.connect_with(options.clone()).await?;
    let read = many_readers.connect_with(options.pragma("query_only", "ON")).await?;
    Ok(Db::Sqlite { read, write })
}

/// Nobody but the owner reads the database. SQLite gives the same mode to the files beside it.
fn create_private(path: &Path) -> Result<(), StoreError> {
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(StoreError::Create { path: path.display().to_string(), source }),
    }
}

async fn open_postgres(options: PgConnectOptions, connections: u32) -> Result<Db, StoreError> {
    let options = options.application_name("claudemesh-broker");
    migrate::postgres(&options).await?;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        // A statement that waits for a lock, or a server that hangs, ends as an error of this one request.
        .connect_with(options.options([("statement_timeout", "30s"), ("lock_timeout", "10s")]))
        .await?;
    Ok(Db::Postgres(pool))
}
