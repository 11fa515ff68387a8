//! Instances of services that run as their caller: which members have one, and when they last used it.
//!
//! Not here: when one is started and stopped (`crate::reconcile`).

use wire::{MemberId, ServiceKey};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

pub struct Callers<'t> {
    pub(super) tx: &'t mut Tx,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerInstance {
    /// With the plain name.
    pub service: ServiceKey,
    pub member: MemberId,
    pub created_at: i64,
    pub last_call_at: i64,
    /// Names what the instance holds that the runner may have. `None`: it has to be ended before it is given anything.
    pub held: Option<String>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT mesh_id, name, member_id, created_at, last_call_at, held FROM caller_instance ",
            $rest
        )
    };
}

const TOUCH: &str = "INSERT INTO caller_instance (mesh_id, name, member_id, created_at, last_call_at) \
    SELECT s.mesh_id, s.name, $3, $4, $4 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name, member_id) DO UPDATE SET last_call_at = excluded.last_call_at \
    WHERE caller_instance.last_call_at <= excluded.last_call_at";
const ALL: &str = select!("ORDER BY mesh_id, name, member_id");
const OF: &str = select!("WHERE mesh_id = $1 AND name = $2 ORDER BY member_id");
const FIND: &str = select!("WHERE mesh_id = $1 AND name = $2 AND member_id = $3");
const OUTDATE: &str = "UPDATE caller_instance SET held = NULL \
    WHERE mesh_id = $1 AND name = $2 AND member_id = $3 AND held <> $4";
const HOLD: &str = "UPDATE caller_instance SET held = $4 WHERE mesh_id = $1 AND name = $2 AND member_id = $3";
const REMOVE: &str = "DELETE FROM caller_instance WHERE mesh_id = $1 AND name = $2 AND member_id = $3";

impl Callers<'_> {
    /// Notes a call; the first one makes the instance. `false` when the service is gone.
    pub async fn touch(
        &mut self,
        service: &ServiceKey,
        member: &MemberId,
        at: i64,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        Ok(execute!(&mut *self.tx, TOUCH, mesh, name, member.as_str(), at)? == 1)
    }

    /// What the caller is to have now: an instance that may hold something else is to be ended first.
    pub async fn expect(
        &mut self,
        service: &ServiceKey,
        member: &MemberId,
        held: &str,
    ) -> Result<(), StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        execute!(&mut *self.tx, OUTDATE, mesh, name, member.as_str(), held).map(drop)
    }

    /// What the instance is about to hold; the runner has none now. `false` when the row is gone.
    pub async fn hold(
        &mut self,
        service: &ServiceKey,
        member: &MemberId,
        held: &str,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        Ok(execute!(&mut *self.tx, HOLD, mesh, name, member.as_str(), held)? == 1)
    }

    pub async fn find(
        &mut self,
        service: &ServiceKey,
        member: &MemberId,
    ) -> Result<Option<CallerInstance>, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        let row: Option<CallerRow> = fetch_optional!(&mut *self.tx, FIND, mesh, name, member.as_str())?;
        row.map(CallerInstance::try_from).transpose()
    }

    /// Of every mesh.
    pub async fn all(&mut self) -> Result<Vec<CallerInstance>, StoreError> {
        let rows: Vec<CallerRow> = fetch_all!(&mut *self.tx, ALL)?;
        rows.into_iter().map(CallerInstance::try_from).collect()
    }

    pub async fn of(&mut self, service: &ServiceKey) -> Result<Vec<CallerInstance>, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        let rows: Vec<CallerRow> = fetch_all!(&mut *self.tx, OF, mesh, name)?;
        rows.into_iter().map(CallerInstance::try_from).collect()
    }

    /// `false` when there is none.
    pub async fn remove(&mut self, service: &ServiceKey, member: &MemberId) -> Result<bool, StoreError> {
        let (mesh, name) = (service.mesh.as_str(), service.name.as_str());
        Ok(execute!(&mut *self.tx, REMOVE, mesh, name, member.as_str())? == 1)
    }
}

#[derive(sqlx::FromRow)]
struct CallerRow {
    mesh_id: String,
    name: String,
    member_id: String,
    created_at: i64,
    last_call_at: i64,
    held: Option<String>,
}

impl TryFrom<CallerRow> for CallerInstance {
    type Error = StoreError;
    fn try_from(row: CallerRow) -> Result<Self, StoreError> {
        let CallerRow { mesh_id, name, member_id, created_at, last_call_at, held } = row;
        let id = format!("{mesh_id}/{name}/{member_id}");
        let place = Place { table: "caller_instance", id: &id };
        let member = place.member("member_id", &member_id)?;
        Ok(Self { service: place.key(&mesh_id, &name)?, member, created_at, last_call_at, held })
    }
}
