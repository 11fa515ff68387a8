//! Approvals: what of each service was approved last, and by whom.
//!
//! Not here: what follows from a difference (`catalog::quarantine`).

use catalog::quarantine::Item;
use wire::{MemberId, MeshId, ServiceKey};

use super::row::{Place, to_json};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub key: ServiceKey,
    pub items: Vec<Item>,
    pub by: MemberId,
    pub at: i64,
}

pub struct Approvals<'t> {
    pub(super) tx: &'t mut Tx,
}

const PUT: &str = "INSERT INTO approval (mesh_id, name, items, approved_by, approved_at) \
    SELECT s.mesh_id, s.name, $3, $4, $5 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name) DO UPDATE SET items = excluded.items, approved_by = excluded.approved_by, \
    approved_at = excluded.approved_at";
const GET: &str =
    "SELECT mesh_id, name, items, approved_by, approved_at FROM approval WHERE mesh_id = $1 AND name = $2";
const OF_MESH: &str =
    "SELECT mesh_id, name, items, approved_by, approved_at FROM approval WHERE mesh_id = $1";

impl Approvals<'_> {
    /// `false` when the service is gone.
    pub async fn put(
        &mut self,
        key: &ServiceKey,
        items: &[Item],
        by: &MemberId,
        at: i64,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        Ok(execute!(&mut *self.tx, PUT, mesh, name, to_json(&items), by.as_str(), at)? == 1)
    }

    pub async fn get(&mut self, key: &ServiceKey) -> Result<Option<Approval>, StoreError> {
        let row: Option<ApprovalRow> =
            fetch_optional!(&mut *self.tx, GET, key.mesh.as_str(), key.name.as_str())?;
        row.map(Approval::try_from).transpose()
    }

    pub async fn of_mesh(&mut self, mesh: &MeshId) -> Result<Vec<Approval>, StoreError> {
        let rows: Vec<ApprovalRow> = fetch_all!(&mut *self.tx, OF_MESH, mesh.as_str())?;
        rows.into_iter().map(Approval::try_from).collect()
    }
}

#[derive(sqlx::FromRow)]
struct ApprovalRow {
    mesh_id: String,
    name: String,
    items: String,
    approved_by: String,
    approved_at: i64,
}

impl TryFrom<ApprovalRow> for Approval {
    type Error = StoreError;
    fn try_from(row: ApprovalRow) -> Result<Self, StoreError> {
        let ApprovalRow { mesh_id, name, items, approved_by, approved_at } = row;
        let id = format!("{mesh_id}/{name}");
        let place = Place { table: "approval", id: &id };
        Ok(Self {
            key: place.key(&mesh_id, &name)?,
            items: place.json("items", &items)?,
            by: place.member("approved_by", &approved_by)?,
            at: approved_at,
        })
    }
}
