//! What a mesh demands of every service, and what the runner was last told of that.
//!
//! Not here: who may change it (`catalog::access`), who tells the runner (`crate::reconcile`).

use std::collections::BTreeMap;

use wire::{MeshId, Policy, ServiceKey, Tier};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all};

pub struct Policies<'t> {
    pub(super) tx: &'t mut Tx,
}

const SET: &str = "UPDATE mesh SET min_isolation = $2, min_release_age_s = $3 WHERE id = $1";
const ALL: &str = "SELECT id, min_isolation, min_release_age_s FROM mesh";
const APPLIED: &str = "SELECT mesh_id, name, min_isolation, min_release_age_s FROM applied_policy";
const APPLY: &str = "INSERT INTO applied_policy (mesh_id, name, min_isolation, min_release_age_s) \
    SELECT s.mesh_id, s.name, $3, $4 FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name) DO UPDATE SET min_isolation = excluded.min_isolation, \
    min_release_age_s = excluded.min_release_age_s";

const MATERIALS: &str = "SELECT mesh_id, name, material FROM applied_policy WHERE material IS NOT NULL";
const SET_MATERIAL: &str = "UPDATE applied_policy SET material = $3 WHERE mesh_id = $1 AND name = $2";

impl Policies<'_> {
    /// `false` when there is no such mesh.
    pub async fn set(&mut self, mesh: &MeshId, policy: Policy) -> Result<bool, StoreError> {
        let age = seconds(policy);
        Ok(execute!(&mut *self.tx, SET, mesh.as_str(), policy.min_isolation.as_str(), age)? == 1)
    }

    /// Of every mesh, for the reconciler.
    pub async fn all(&mut self) -> Result<BTreeMap<MeshId, Policy>, StoreError> {
        let rows: Vec<PolicyRow> = fetch_all!(&mut *self.tx, ALL)?;
        let read = |row: PolicyRow| {
            let place = Place { table: "mesh", id: &row.id };
            Ok((place.mesh(&row.id)?, policy(&place, &row.min_isolation, row.min_release_age_s)?))
        };
        rows.into_iter().map(read).collect()
    }

    /// Under which policy the runner was last given each service.
    pub async fn applied(&mut self) -> Result<BTreeMap<ServiceKey, Policy>, StoreError> {
        let rows: Vec<AppliedRow> = fetch_all!(&mut *self.tx, APPLIED)?;
        let read = |row: AppliedRow| {
            let id = format!("{}/{}", row.mesh_id, row.name);
            let place = Place { table: "applied_policy", id: &id };
            let policy = policy(&place, &row.min_isolation, row.min_release_age_s)?;
            Ok((place.key(&row.mesh_id, &row.name)?, policy))
        };
        rows.into_iter().map(read).collect()
    }

    /// `false` when the service is gone.
    pub async fn set_applied(&mut self, key: &ServiceKey, policy: Policy) -> Result<bool, StoreError> {
        let (mesh, name, age) = (key.mesh.as_str(), key.name.as_str(), seconds(policy));
        Ok(execute!(&mut *self.tx, APPLY, mesh, name, policy.min_isolation.as_str(), age)? == 1)
    }

    /// Fingerprints of the entries and consents with which the runner was last given each service; those without have none.
    pub async fn materials(&mut self) -> Result<BTreeMap<ServiceKey, String>, StoreError> {
        let rows: Vec<MaterialRow> = fetch_all!(&mut *self.tx, MATERIALS)?;
        let read = |row: MaterialRow| {
            let id = format!("{}/{}", row.mesh_id, row.name);
            let place = Place { table: "applied_policy", id: &id };
            Ok((place.key(&row.mesh_id, &row.name)?, row.material))
        };
        rows.into_iter().map(read).collect()
    }

    /// After [`Policies::set_applied`]. `false` when the service is gone.
    pub async fn set_material(
        &mut self,
        key: &ServiceKey,
        material: Option<&str>,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        Ok(execute!(&mut *self.tx, SET_MATERIAL, mesh, name, material)? == 1)
    }
}

pub(super) fn seconds(policy: Policy) -> i64 {
    i64::try_from(policy.min_release_age_s).unwrap_or(i64::MAX)
}

pub(super) fn policy(place: &Place<'_>, tier: &str, age: i64) -> Result<Policy, StoreError> {
    let tier = [Tier::Light, Tier::Strict].into_iter().find(|known| known.as_str() == tier);
    Ok(Policy {
        min_isolation: tier.ok_or_else(|| place.broken("min_isolation"))?,
        min_release_age_s: u64::try_from(age).map_err(|_| place.broken("min_release_age_s"))?,
    })
}

#[derive(sqlx::FromRow)]
struct PolicyRow {
    id: String,
    min_isolation: String,
    min_release_age_s: i64,
}

#[derive(sqlx::FromRow)]
struct AppliedRow {
    mesh_id: String,
    name: String,
    min_isolation: String,
    min_release_age_s: i64,
}

#[derive(sqlx::FromRow)]
struct MaterialRow {
    mesh_id: String,
    name: String,
    material: String,
}
