//! What was observed: the lists of the last ready instance, and the runner's last report, for each service.
//!
//! Copies for the time when the runner can't be asked; nothing is decided from them. A report that comes after its service
//! is gone is dropped.

use wire::report::{Lists, ServiceReport};
use wire::{MeshId, ServiceKey};

use super::row::{Place, to_json};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

#[derive(Debug, Clone)]
pub struct Listing {
    pub key: ServiceKey,
    pub lists: Lists,
    pub updated_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastReport {
    pub report: ServiceReport,
    pub updated_at: i64,
}

pub struct Listings<'t> {
    pub(super) tx: &'t mut Tx,
}

pub struct Observations<'t> {
    pub(super) tx: &'t mut Tx,
}

const PUT_LISTS: &str = "INSERT INTO service_lists (mesh_id, name, generation, lists, updated_at) \
    SELECT s.mesh_id, s.name, $3, $4, $5 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name) DO UPDATE SET generation = excluded.generation, lists = excluded.lists, \
    updated_at = excluded.updated_at WHERE service_lists.generation <= excluded.generation";
const GET_LISTS: &str =
    "SELECT mesh_id, name, lists, updated_at FROM service_lists WHERE mesh_id = $1 AND name = $2";
const LISTS_OF_MESH: &str =
    "SELECT mesh_id, name, lists, updated_at FROM service_lists WHERE mesh_id = $1 ORDER BY name";
const ALL_LISTS: &str = "SELECT mesh_id, name, lists, updated_at FROM service_lists ORDER BY mesh_id, name";
const PUT_REPORT: &str = "INSERT INTO observed (mesh_id, name, report, updated_at) \
    SELECT s.mesh_id, s.name, $3, $4 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name) DO UPDATE SET report = excluded.report, updated_at = excluded.updated_at";
const GET_REPORT: &str =
    "SELECT mesh_id, name, report, updated_at FROM observed WHERE mesh_id = $1 AND name = $2";
const ALL_REPORTS: &str = "SELECT mesh_id, name, report, updated_at FROM observed ORDER BY mesh_id, name";

impl Listings<'_> {
    /// `false` when the service is gone, or a newer generation has listed already.
    pub async fn put(&mut self, key: &ServiceKey, lists: &Lists, at: i64) -> Result<bool, StoreError> {
        let (mesh, name, generation) = (key.mesh.as_str(), key.name.as_str(), lists.generation.0);
        Ok(execute!(&mut *self.tx, PUT_LISTS, mesh, name, generation, to_json(lists), at)? == 1)
    }

    pub async fn get(&mut self, key: &ServiceKey) -> Result<Option<Listing>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let row: Option<ListsRow> = fetch_optional!(&mut *self.tx, GET_LISTS, mesh, name)?;
        row.map(Listing::try_from).transpose()
    }

    /// Of one mesh, by service name.
    pub async fn of_mesh(&mut self, mesh: &MeshId) -> Result<Vec<Listing>, StoreError> {
        let rows: Vec<ListsRow> = fetch_all!(&mut *self.tx, LISTS_OF_MESH, mesh.as_str())?;
        rows.into_iter().map(Listing::try_from).collect()
    }

    /// Of every mesh, for the snapshot in memory.
    pub async fn list_all(&mut self) -> Result<Vec<Listing>, StoreError> {
        let rows: Vec<ListsRow> = fetch_all!(&mut *self.tx, ALL_LISTS)?;
        rows.into_iter().map(Listing::try_from).collect()
    }
}

impl Observations<'_> {
    /// `false` when the service is gone.
    pub async fn put(&mut self, report: &ServiceReport, at: i64) -> Result<bool, StoreError> {
        let (mesh, name) = (report.service.mesh.as_str(), report.service.name.as_str());
        Ok(execute!(&mut *self.tx, PUT_REPORT, mesh, name, to_json(report), at)? == 1)
    }

    pub async fn get(&mut self, key: &ServiceKey) -> Result<Option<LastReport>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let row: Option<ReportRow> = fetch_optional!(&mut *self.tx, GET_REPORT, mesh, name)?;
        row.map(LastReport::try_from).transpose()
    }

    /// Of every mesh.
    pub async fn list_all(&mut self) -> Result<Vec<LastReport>, StoreError> {
        let rows: Vec<ReportRow> = fetch_all!(&mut *self.tx, ALL_REPORTS)?;
        rows.into_iter().map(LastReport::try_from).collect()
    }
}

#[derive(sqlx::FromRow)]
struct ListsRow {
    mesh_id: String,
    name: String,
    lists: String,
    updated_at: i64,
}

impl TryFrom<ListsRow> for Listing {
    type Error = StoreError;
    fn try_from(row: ListsRow) -> Result<Self, StoreError> {
        let ListsRow { mesh_id, name, lists, updated_at } = row;
        let id = format!("{mesh_id}/{name}");
        let place = Place { table: "service_lists", id: &id };
        Ok(Self { key: place.key(&mesh_id, &name)?, lists: place.json("lists", &lists)?, updated_at })
    }
}

#[derive(sqlx::FromRow)]
struct ReportRow {
    mesh_id: String,
    name: String,
    report: String,
    updated_at: i64,
}

impl TryFrom<ReportRow> for LastReport {
    type Error = StoreError;
    fn try_from(row: ReportRow) -> Result<Self, StoreError> {
        let ReportRow { mesh_id, name, report, updated_at } = row;
        let id = format!("{mesh_id}/{name}");
        let place = Place { table: "observed", id: &id };
        Ok(Self { report: place.json("report", &report)?, updated_at })
    }
}
