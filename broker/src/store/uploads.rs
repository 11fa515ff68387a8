//! Uploads: archives that a deploy may name, by the SHA-256 (lowercase hex) of their bytes.
//!
//! The database keeps an upload as long as a generation names it (a foreign key); others go after a while.

use wire::{MemberId, MeshId};

use super::row::Count;
use super::{StoreError, Tx, execute, fetch_optional};

pub struct Uploads<'t> {
    pub(super) tx: &'t mut Tx,
}

const PUT: &str = "INSERT INTO upload (mesh_id, sha256, member_id, size, bytes, created_at) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (mesh_id, sha256) DO UPDATE SET created_at = excluded.created_at";
const BYTES: &str = "SELECT bytes FROM upload WHERE mesh_id = $1 AND sha256 = $2";
const EXISTS: &str = "SELECT COUNT(*) AS n FROM upload WHERE mesh_id = $1 AND sha256 = $2";
const WAITING: &str = "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) AS n FROM upload \
    WHERE mesh_id = $1 AND member_id = $2 AND NOT EXISTS \
    (SELECT 1 FROM generation g WHERE g.mesh_id = upload.mesh_id AND g.archive = upload.sha256)";
const SWEEP: &str = "DELETE FROM upload WHERE created_at < $1 AND NOT EXISTS \
    (SELECT 1 FROM generation g WHERE g.mesh_id = upload.mesh_id AND g.archive = upload.sha256)";

impl Uploads<'_> {
    /// Stores bytes whose hash the caller has checked. The same bytes again only renew the time.
    pub async fn put(
        &mut self,
        mesh: &MeshId,
        sha256: &str,
        by: &MemberId,
        bytes: &[u8],
        at: i64,
    ) -> Result<(), StoreError> {
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        execute!(&mut *self.tx, PUT, mesh.as_str(), sha256, by.as_str(), size, bytes, at)?;
        Ok(())
    }

    pub async fn bytes(&mut self, mesh: &MeshId, sha256: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row: Option<BytesRow> = fetch_optional!(&mut *self.tx, BYTES, mesh.as_str(), sha256)?;
        Ok(row.map(|row| row.bytes))
    }

    pub async fn exists(&mut self, mesh: &MeshId, sha256: &str) -> Result<bool, StoreError> {
        let row: Option<Count> = fetch_optional!(&mut *self.tx, EXISTS, mesh.as_str(), sha256)?;
        Ok(row.is_some_and(|row| row.n > 0))
    }

    /// Bytes that a member uploaded and no generation names yet: what a limit on uploads has to count.
    pub async fn waiting_bytes(&mut self, mesh: &MeshId, by: &MemberId) -> Result<u64, StoreError> {
        let row: Option<Count> = fetch_optional!(&mut *self.tx, WAITING, mesh.as_str(), by.as_str())?;
        Ok(row.and_then(|row| u64::try_from(row.n).ok()).unwrap_or_default())
    }

    /// Removes what was uploaded before `before` and no generation names. Answers how many went.
    pub async fn sweep(&mut self, before: i64) -> Result<u64, StoreError> {
        execute!(&mut *self.tx, SWEEP, before)
    }
}

#[derive(sqlx::FromRow)]
struct BytesRow {
    bytes: Vec<u8>,
}
