//! Everything of one mesh, out of a database and into another one, of the same schema and maybe of the other kind.
//!
//! Here: which tables, and rows as they are. Not here: what is in them, the keys that some of it is sealed under, files
//! (`crate::backup`).
//! Invariant: every table is named here, as kept or as left out; a test compares with the database.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Column as _, Decode, Row, Type, ValueRef as _};
use wire::MeshId;

use super::{StoreError, Tx, on_db};

/// In the order in which rows can be written, with the column that names the mesh.
const KEPT: [(&str, &str); 18] = [
    ("mesh", "id"),
    ("member", "mesh_id"),
    ("invite", "mesh_id"),
    ("upload", "mesh_id"),
    ("service", "mesh_id"),
    ("generation", "mesh_id"),
    ("service_lists", "mesh_id"),
    ("approval", "mesh_id"),
    ("egress_decision", "mesh_id"),
    ("vault_entry", "mesh_id"),
    ("vault_envelope", "mesh_id"),
    ("vault_key", "mesh_id"),
    ("consent", "mesh_id"),
    ("vault_opening", "mesh_id"),
    ("vault_act", "mesh_id"),
    ("live_server", "mesh_id"),
    ("skill", "mesh_id"),
    ("skill_file", "mesh_id"),
];

/// What belongs to one broker or one runner: what was observed, what a runner was given, what a runner opens itself with,
/// and the mesh's at-rest keys, which travel unwrapped beside the rows.
#[cfg(test)]
const LEFT_OUT: [&str; 7] =
    ["observed", "applied_policy", "caller_instance", "boot_key", "vault_runner", "vault_grant", "mesh_key"];

/// The rows of one table that are of the mesh.
#[derive(Serialize, Deserialize)]
pub struct Table {
    name: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cell {
    Null,
    Number(i64),
    Text(String),
    /// Base64.
    Bytes(String),
}

/// What does not fit this database.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("it has a table `{0}`, which this version does not know")]
    Table(String),
    #[error("a row of `{0}` has not as many values as there are columns, or damaged ones")]
    Row(String),
    #[error("a column of `{0}` has a name that is none")]
    Column(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All rows of a mesh. Read it in one snapshot ([`super::Store::read`]).
pub struct Dump<'a> {
    pub(super) tx: &'a mut Tx,
}

impl Dump<'_> {
    /// # Errors
    /// [`StoreError`].
    pub async fn tables(&mut self, mesh: &MeshId) -> Result<Vec<Table>, StoreError> {
        let mut tables = Vec::new();
        for (name, mesh_column) in KEPT {
            let sql = format!("SELECT * FROM {name} WHERE {mesh_column} = $1");
            let read = on_db!(&mut *self.tx, conn => {
                let rows = sqlx::query(AssertSqlSafe(sql)).bind(mesh.as_str()).fetch_all(conn).await?;
                table(name, &rows)
            });
            tables.push(read?);
        }
        Ok(tables)
    }

    /// Writes rows that [`Self::tables`] read.
    ///
    /// # Errors
    /// [`LoadError`]; nothing is to be committed then.
    pub async fn load(&mut self, tables: &[Table]) -> Result<(), LoadError> {
        for (known, _) in KEPT {
            for table in tables.iter().filter(|table| table.name == known) {
                self.load_table(known, table).await?;
            }
        }
        match tables.iter().find(|table| KEPT.iter().all(|(known, _)| *known != table.name)) {
            Some(unknown) => Err(LoadError::Table(unknown.name.clone())),
            None => Ok(()),
        }
    }

    async fn load_table(&mut self, known: &'static str, table: &Table) -> Result<(), LoadError> {
        let is_name = |column: &String| {
            column.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'0'..=b'9'))
        };
        if !table.columns.iter().all(is_name) {
            return Err(LoadError::Column(known.to_owned()));
        }
        for row in &table.rows {
            if row.len() != table.columns.len() {
                return Err(LoadError::Row(known.to_owned()));
            }
            self.load_row(known, &table.columns, row).await?;
        }
        Ok(())
    }
}

impl Dump<'_> {
    async fn load_row(
        &mut self,
        known: &'static str,
        columns: &[String],
        row: &[Cell],
    ) -> Result<(), LoadError> {
        // What is left out is NULL: to PostgreSQL a NULL has a type, which a cell does not know.
        let given: Vec<(&String, &Cell)> =
            columns.iter().zip(row).filter(|(_, cell)| !matches!(cell, Cell::Null)).collect();
        let names: Vec<&str> = given.iter().map(|(column, _)| column.as_str()).collect();
        let places: Vec<String> = (1..=given.len()).map(|n| format!("${n}")).collect();
        let sql = format!("INSERT INTO {known} ({}) VALUES ({})", names.join(", "), places.join(", "));
        let bytes = given.iter().map(|(_, cell)| cell.bytes()).collect::<Option<Vec<_>>>();
        let bytes = bytes.ok_or_else(|| LoadError::Row(known.to_owned()))?;
        let written = on_db!(&mut *self.tx, conn => {
            let mut insert = sqlx::query(AssertSqlSafe(sql));
            for ((_, cell), bytes) in given.into_iter().zip(bytes) {
                insert = match cell {
                    Cell::Number(number) => insert.bind(*number),
                    Cell::Text(text) => insert.bind(text.clone()),
                    Cell::Bytes(_) | Cell::Null => insert.bind(bytes),
                };
            }
            insert.execute(conn).await.map(drop).map_err(StoreError::from)
        });
        Ok(written?)
    }
}

impl Cell {
    /// `None` when it should be bytes and is not; empty for all others.
    fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(text) => BASE64.decode(text).ok(),
            _ => Some(Vec::new()),
        }
    }
}

fn table<'r, R>(name: &str, rows: &'r [R]) -> Result<Table, StoreError>
where
    R: Row,
    usize: sqlx::ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    let columns: Vec<String> = rows
        .first()
        .map(|row| row.columns().iter().map(|column| column.name().to_owned()).collect())
        .unwrap_or_default();
    let mut read = Vec::with_capacity(rows.len());
    for row in rows {
        let cells: Result<Vec<Cell>, StoreError> = (0..columns.len()).map(|at| cell(row, at)).collect();
        read.push(cells?);
    }
    Ok(Table { name: name.to_owned(), columns, rows: read })
}

fn cell<'r, R>(row: &'r R, at: usize) -> Result<Cell, StoreError>
where
    R: Row,
    usize: sqlx::ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    if row.try_get_raw(at)?.is_null() {
        return Ok(Cell::Null);
    }
    if let Ok(number) = row.try_get::<i64, _>(at) {
        return Ok(Cell::Number(number));
    }
    if let Ok(text) = row.try_get::<String, _>(at) {
        return Ok(Cell::Text(text));
    }
    Ok(Cell::Bytes(BASE64.encode(row.try_get::<Vec<u8>, _>(at)?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::{Store, StoreConfig, fetch_all};

    #[derive(sqlx::FromRow)]
    struct Named {
        name: String,
    }

    #[tokio::test]
    async fn every_table_is_kept_or_left_out_on_purpose() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite:{}", folder.path().join("a.db").display());
        let store = Store::open(StoreConfig { url, max_connections: 1 }).await.expect("opens");
        let mut tx = store.read().await.expect("reads");
        let there: Vec<Named> = fetch_all!(
            &mut tx,
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> '_sqlx_migrations'"
        )
        .expect("lists");
        let there: BTreeSet<&str> = there.iter().map(|table| table.name.as_str()).collect();
        let named: BTreeSet<&str> = KEPT.iter().map(|(name, _)| *name).chain(LEFT_OUT).collect();
        assert_eq!(there, named);
        drop(tx);
        store.close().await;
    }
}
