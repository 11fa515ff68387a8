//! What can go wrong at the store.

use wire::ErrorCode;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A guarded write found that its guard does not hold any more. Nothing was written.
    #[error("somebody else changed the same thing at the same time")]
    Conflict,
    /// A row that our own code can't have written. Names the place and never the value.
    #[error("the database holds an unreadable `{column}` in table `{table}`, row {id}")]
    Inconsistent { table: &'static str, column: &'static str, id: String },
    #[error("the database URL must be `sqlite:PATH` or `postgres://…`")]
    BadUrl,
    #[error("the database file {path} can not be created")]
    Create { path: String, source: std::io::Error },
    #[error("the disk of the database is full")]
    DiskFull(#[source] sqlx::Error),
    #[error("the database could not be migrated")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("a commit was interrupted; it may have happened")]
    Interrupted,
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Conflict => ErrorCode::Conflict,
            Self::DiskFull(_) => ErrorCode::DiskFull,
            Self::Inconsistent { .. }
            | Self::BadUrl
            | Self::Create { .. }
            | Self::Migrate(_)
            | Self::Interrupted
            | Self::Database(_) => ErrorCode::Internal,
        }
    }

    /// Whether a unique key was hit. Our own writes avoid it (`ON CONFLICT`); this is for callers who rely on one.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(e)) if e.is_unique_violation())
    }

    /// Whether a row was named that does not exist, or removed that is still named.
    pub fn is_foreign_key_violation(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(e)) if e.is_foreign_key_violation())
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // SQLite: SQLITE_FULL. PostgreSQL: disk_full.
        let code = error.as_database_error().and_then(|e| e.code());
        match code.as_deref() {
            Some("13" | "53100") => Self::DiskFull(error),
            _ => Self::Database(error),
        }
    }
}
