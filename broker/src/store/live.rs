//! Live servers that stay listed without their host.
//!
//! Not here: those that end with their host, and who hosts what now (`crate::live`).

use wire::{MemberId, RawJson, ServiceKey};

use super::row::{Place, to_json};
use super::{StoreError, Tx, execute, fetch_all};

pub struct LentServers<'t> {
    pub(super) tx: &'t mut Tx,
}

/// A persistent live server.
#[derive(Debug, Clone)]
pub struct LentServer {
    pub key: ServiceKey,
    pub member: MemberId,
    pub description: String,
    pub tools: Vec<RawJson>,
    /// Counts the registrations of the name.
    pub registration: i64,
    /// `None`: its host was last seen connected.
    pub offline_since: Option<i64>,
}

const PUT: &str = "INSERT INTO live_server (mesh_id, name, member_id, description, tools, registration, offline_since) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (mesh_id, name) DO UPDATE SET \
    description = excluded.description, tools = excluded.tools, registration = excluded.registration, \
    offline_since = excluded.offline_since WHERE live_server.member_id = excluded.member_id";
const ALL: &str = "SELECT mesh_id, name, member_id, description, tools, registration, offline_since FROM live_server \
    ORDER BY mesh_id, name";
const LEAVE: &str =
    "UPDATE live_server SET offline_since = $4 WHERE mesh_id = $1 AND name = $2 AND registration = $3";
const ALL_LEFT: &str = "UPDATE live_server SET offline_since = $1 WHERE offline_since IS NULL";
const REMOVE: &str = "DELETE FROM live_server WHERE mesh_id = $1 AND name = $2";
const REMOVE_OF: &str = "DELETE FROM live_server WHERE mesh_id = $1 AND member_id = $2";

impl LentServers<'_> {
    /// # Errors
    /// [`StoreError::Conflict`] when the name is another member's.
    pub async fn put(&mut self, server: &LentServer) -> Result<(), StoreError> {
        let LentServer { key, member, description, tools, registration, offline_since } = server;
        let rows = execute!(
            &mut *self.tx,
            PUT,
            key.mesh.as_str(),
            key.name.as_str(),
            member.as_str(),
            description,
            to_json(tools),
            registration,
            offline_since
        )?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// Of every mesh.
    pub async fn all(&mut self) -> Result<Vec<LentServer>, StoreError> {
        let rows: Vec<LiveRow> = fetch_all!(&mut *self.tx, ALL)?;
        rows.into_iter().map(LentServer::try_from).collect()
    }

    /// Its host went. `false` when it was registered again, or removed, since then.
    pub async fn leave(
        &mut self,
        key: &ServiceKey,
        registration: i64,
        since: i64,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        Ok(execute!(&mut *self.tx, LEAVE, mesh, name, registration, since)? == 1)
    }

    /// The broker starts: nobody hosts anything yet.
    pub async fn all_left(&mut self, since: i64) -> Result<(), StoreError> {
        execute!(&mut *self.tx, ALL_LEFT, since).map(drop)
    }

    /// `false` when there is none.
    pub async fn remove(&mut self, key: &ServiceKey) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, REMOVE, key.mesh.as_str(), key.name.as_str())? == 1)
    }

    /// All of a member.
    pub async fn remove_of(&mut self, mesh: &wire::MeshId, member: &MemberId) -> Result<(), StoreError> {
        execute!(&mut *self.tx, REMOVE_OF, mesh.as_str(), member.as_str()).map(drop)
    }
}

#[derive(sqlx::FromRow)]
struct LiveRow {
    mesh_id: String,
    name: String,
    member_id: String,
    description: String,
    tools: String,
    registration: i64,
    offline_since: Option<i64>,
}

impl TryFrom<LiveRow> for LentServer {
    type Error = StoreError;
    fn try_from(row: LiveRow) -> Result<Self, StoreError> {
        let LiveRow { mesh_id, name, member_id, description, tools, registration, offline_since } = row;
        let id = format!("{mesh_id}/{name}");
        let place = Place { table: "live_server", id: &id };
        Ok(Self {
            key: place.key(&mesh_id, &name)?,
            member: place.member("member_id", &member_id)?,
            tools: place.json("tools", &tools)?,
            description,
            registration,
            offline_since,
        })
    }
}
