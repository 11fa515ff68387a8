//! Services: what is wanted of each. Every write is guarded by what its caller saw.

use catalog::Subject;
use vault::Sealed;
use wire::report::Reason;
use wire::spec::{Pin, ServiceSpec};
use wire::{Generation, MemberId, MeshId, Scope, ServiceKey};

use super::generations;
use super::row::{Count, Place, to_json};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    /// Who deployed it first. A redeploy by an admin does not change that.
    pub deployed_by: MemberId,
    pub scope: Scope,
    pub wanted: Wanted,
    /// The generation that should serve.
    pub target: Generation,
    /// The newest that was ever asked for.
    pub latest: Generation,
    /// The last candidate that did not become ready. When it is the target, nothing serves and nothing tries again.
    pub failed: Option<FailedGeneration>,
    pub created_at: i64,
    pub updated_at: i64,
}

impl Service {
    /// The service as the access table asks for it.
    pub fn subject(&self) -> Subject<'_> {
        Subject { mesh: &self.key.mesh, deployed_by: &self.deployed_by, scope: &self.scope }
    }

    /// Whether the target itself failed, so that there is nothing to run until somebody starts or deploys it.
    pub fn has_failed(&self) -> bool {
        self.failed.as_ref().is_some_and(|failed| failed.generation == self.target)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedGeneration {
    pub generation: Generation,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    Running,
    /// No process; everything else stays.
    Stopped,
    /// Nothing at all. The row goes once the runner has confirmed it; nothing else can happen to it.
    Gone,
}

impl Wanted {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Stopped, Self::Gone].into_iter().find(|wanted| wanted.as_str() == text)
    }
}

/// One deploy, update or rollback.
#[derive(Debug, Clone, Copy)]
pub struct Deploy<'a> {
    pub key: &'a ServiceKey,
    /// The successor of the `latest` that the caller saw; 1 for a service that the caller saw nowhere.
    pub generation: Generation,
    pub by: &'a MemberId,
    pub scope: &'a Scope,
    pub spec: &'a ServiceSpec,
    pub secrets: Option<&'a Sealed>,
    /// Known when an earlier generation is deployed again.
    pub pin: Option<&'a Pin>,
    /// Whether a stopped service is to run again.
    pub starts: bool,
    pub at: i64,
}

pub struct Services<'t> {
    pub(super) tx: &'t mut Tx,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT mesh_id, name, deployed_by, scope, wanted, target, latest, failed_generation, failed_reason, \
             created_at, updated_at FROM service ",
            $rest
        )
    };
}

const FIND: &str = select!("WHERE mesh_id = $1 AND name = $2");
const LIST: &str = select!("WHERE mesh_id = $1 ORDER BY name");
const LIST_ALL: &str = select!("ORDER BY mesh_id, name");
const COUNT: &str = "SELECT COUNT(*) AS n FROM service WHERE mesh_id = $1";
const INSERT: &str = "INSERT INTO service (mesh_id, name, deployed_by, scope, wanted, target, latest, created_at, \
    updated_at) VALUES ($1, $2, $3, $4, 'running', 1, 1, $5, $5) ON CONFLICT DO NOTHING";
const REDEPLOY: &str = "UPDATE service SET scope = $3, wanted = CASE WHEN $7 = 1 THEN 'running' ELSE wanted END, \
    target = $4, latest = $4, failed_generation = NULL, failed_reason = NULL, updated_at = $5 \
    WHERE mesh_id = $1 AND name = $2 AND latest = $6 AND wanted <> 'gone'";
const SET_TARGET: &str = "UPDATE service SET target = $4, updated_at = $5 \
    WHERE mesh_id = $1 AND name = $2 AND target = $3 AND wanted <> 'gone'";
const FAIL: &str = "UPDATE service SET failed_generation = $3, failed_reason = $4, target = $5, updated_at = $6 \
    WHERE mesh_id = $1 AND name = $2 AND target = $3";
const FORGET_FAILURE: &str = "UPDATE service SET failed_generation = NULL, failed_reason = NULL \
    WHERE mesh_id = $1 AND name = $2 AND failed_generation <= $3";
const SET_WANTED: &str = "UPDATE service SET wanted = $3, updated_at = $4 \
    WHERE mesh_id = $1 AND name = $2 AND wanted <> 'gone'";
const REST_OF: &str = "UPDATE service SET wanted = 'stopped', updated_at = $3 \
    WHERE mesh_id = $1 AND deployed_by = $2 AND wanted = 'running'";
const TRY_AGAIN: &str = "UPDATE service SET failed_generation = NULL, failed_reason = NULL \
    WHERE mesh_id = $1 AND name = $2 AND failed_generation = target";
const SET_SCOPE: &str = "UPDATE service SET scope = $4, updated_at = $5 \
    WHERE mesh_id = $1 AND name = $2 AND scope = $3 AND wanted <> 'gone'";
const DELETE: &str = "DELETE FROM service WHERE mesh_id = $1 AND name = $2 AND wanted = 'gone'";

impl Services<'_> {
    /// `None` when the mesh has no such service. Whether the caller may see it is the access table's question.
    pub async fn find(&mut self, key: &ServiceKey) -> Result<Option<Service>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let row: Option<ServiceRow> = fetch_optional!(&mut *self.tx, FIND, mesh, name)?;
        row.map(Service::try_from).transpose()
    }

    /// By name; also those that are going.
    pub async fn list(&mut self, mesh: &MeshId) -> Result<Vec<Service>, StoreError> {
        let rows: Vec<ServiceRow> = fetch_all!(&mut *self.tx, LIST, mesh.as_str())?;
        rows.into_iter().map(Service::try_from).collect()
    }

    /// Of every mesh, for the reconciler.
    pub async fn list_all(&mut self) -> Result<Vec<Service>, StoreError> {
        let rows: Vec<ServiceRow> = fetch_all!(&mut *self.tx, LIST_ALL)?;
        rows.into_iter().map(Service::try_from).collect()
    }

    /// How many a mesh has; with [`super::Meshes::take_turns`] before it, the number holds until the commit.
    pub async fn count(&mut self, mesh: &MeshId) -> Result<usize, StoreError> {
        let row: Option<Count> = fetch_optional!(&mut *self.tx, COUNT, mesh.as_str())?;
        Ok(row.and_then(|row| usize::try_from(row.n).ok()).unwrap_or_default())
    }

    /// Writes a generation and makes it the target. Clears the failure of an earlier one: this is a new attempt.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the service has another latest generation than the caller saw, or is going.
    pub async fn deploy(&mut self, deploy: Deploy<'_>) -> Result<(), StoreError> {
        let Deploy { key, generation, by, scope, spec: _, secrets: _, pin: _, starts, at } = deploy;
        let (mesh, name, scope) = (key.mesh.as_str(), key.name.as_str(), to_json(scope));
        let rows = if generation.0 == 1 {
            execute!(&mut *self.tx, INSERT, mesh, name, by.as_str(), scope, at)?
        } else {
            let seen = generation.0 - 1;
            execute!(&mut *self.tx, REDEPLOY, mesh, name, scope, generation.0, at, seen, i64::from(starts))?
        };
        if rows != 1 {
            return Err(StoreError::Conflict);
        }
        generations::insert(self.tx, deploy).await
    }

    /// Moves the target from `seen`. `false` when it is another by now.
    pub async fn set_target(
        &mut self,
        key: &ServiceKey,
        seen: Generation,
        target: Generation,
        at: i64,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        Ok(execute!(&mut *self.tx, SET_TARGET, mesh, name, seen.0, target.0, at)? == 1)
    }

    /// The candidate `failed.generation` did not become ready: remembers why and targets `fall_back`, the generation that
    /// still serves, if there is one. `false` when the candidate is not the target any more: then nobody waits for it.
    pub async fn record_failure(
        &mut self,
        key: &ServiceKey,
        failed: &FailedGeneration,
        fall_back: Option<Generation>,
        at: i64,
    ) -> Result<bool, StoreError> {
        let FailedGeneration { generation, reason } = failed;
        let (mesh, name, target) = (key.mesh.as_str(), key.name.as_str(), fall_back.unwrap_or(*generation));
        Ok(execute!(&mut *self.tx, FAIL, mesh, name, generation.0, to_json(reason), target.0, at)? == 1)
    }

    /// The generation became ready: it is retried for ever from now on, and has its pin. `false` when it was proven
    /// before, or is gone.
    pub async fn mark_proven(
        &mut self,
        key: &ServiceKey,
        generation: Generation,
        pin: Option<&Pin>,
    ) -> Result<bool, StoreError> {
        let is_new = generations::mark_proven(self.tx, key, generation, pin).await?;
        if is_new {
            let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
            execute!(&mut *self.tx, FORGET_FAILURE, mesh, name, generation.0)?;
        }
        Ok(is_new)
    }

    /// Start, stop or remove. Starting also forgets that the target failed, so that it is tried again. `false` when there
    /// is no such service, or it is going.
    pub async fn set_wanted(
        &mut self,
        key: &ServiceKey,
        wanted: Wanted,
        at: i64,
    ) -> Result<bool, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let is_set = execute!(&mut *self.tx, SET_WANTED, mesh, name, wanted.as_str(), at)? == 1;
        if is_set && wanted == Wanted::Running {
            execute!(&mut *self.tx, TRY_AGAIN, mesh, name)?;
        }
        Ok(is_set)
    }

    /// Stops whatever a member deployed. Answers how many services that were.
    pub async fn rest_of(&mut self, mesh: &MeshId, member: &MemberId, at: i64) -> Result<u64, StoreError> {
        execute!(&mut *self.tx, REST_OF, mesh.as_str(), member.as_str(), at)
    }

    /// Changes the scope that the caller saw.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the scope is another by now, or the service is going.
    pub async fn set_scope(
        &mut self,
        key: &ServiceKey,
        seen: &Scope,
        scope: &Scope,
        at: i64,
    ) -> Result<(), StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let rows = execute!(&mut *self.tx, SET_SCOPE, mesh, name, to_json(seen), to_json(scope), at)?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// Removes the record of a service that is [`Wanted::Gone`], with its generations, lists and report. `false` when there
    /// is no such service, or somebody still wants it.
    pub async fn delete(&mut self, key: &ServiceKey) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, DELETE, key.mesh.as_str(), key.name.as_str())? == 1)
    }
}

#[derive(sqlx::FromRow)]
struct ServiceRow {
    mesh_id: String,
    name: String,
    deployed_by: String,
    scope: String,
    wanted: String,
    target: i64,
    latest: i64,
    failed_generation: Option<i64>,
    failed_reason: Option<String>,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<ServiceRow> for Service {
    type Error = StoreError;
    fn try_from(row: ServiceRow) -> Result<Self, StoreError> {
        let ServiceRow {
            mesh_id,
            name,
            deployed_by,
            scope,
            wanted,
            target,
            latest,
            failed_generation,
            failed_reason,
            created_at,
            updated_at,
        } = row;
        let id = format!("{mesh_id}/{name}");
        let place = Place { table: "service", id: &id };
        let failed = match (failed_generation, failed_reason) {
            (Some(generation), Some(reason)) => Some(FailedGeneration {
                generation: Generation(generation),
                reason: place.json("failed_reason", &reason)?,
            }),
            (None, None) => None,
            _ => return Err(place.broken("failed_generation")),
        };
        Ok(Self {
            key: place.key(&mesh_id, &name)?,
            deployed_by: place.member("deployed_by", &deployed_by)?,
            scope: place.json("scope", &scope)?,
            wanted: Wanted::parse(&wanted).ok_or_else(|| place.broken("wanted"))?,
            target: Generation(target),
            latest: Generation(latest),
            failed,
            created_at,
            updated_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use wire::spec::Source;
    use wire::{PublicKey, ServiceName};

    use super::*;
    use crate::store::{Store, StoreConfig};

    #[tokio::test]
    async fn what_a_removed_member_deployed_rests_and_nothing_else_changes() {
        let dir = tempfile::TempDir::new().expect("temp dir");
        let url = format!("sqlite:{}", dir.path().join("broker.db").display());
        let store = Store::open(StoreConfig { url, max_connections: 2 }).await.expect("opens");
        let one = |seed: &str| PublicKey::parse(&seed.repeat(32)).expect("key");
        let theirs = crate::bootstrap(&store, "acme", &one("ab"), "Olga").await.expect("mesh");
        let other = crate::bootstrap(&store, "other", &one("cd"), "Bo").await.expect("mesh");
        let spec = ServiceSpec::of(Source::Npx { package: "ok".into(), bin: None });
        let mut tx = store.begin().await.expect("begins");
        for (mesh, name) in [(&theirs, "a"), (&theirs, "b"), (&theirs, "leaving"), (&other, "a")] {
            let key = ServiceKey { mesh: mesh.mesh.clone(), name: ServiceName::parse(name).expect("name") };
            let deploy = Deploy {
                key: &key,
                generation: Generation(1),
                by: &mesh.member,
                scope: &Scope::Peer,
                spec: &spec,
                secrets: None,
                pin: None,
                starts: true,
                at: 1,
            };
            tx.services().deploy(deploy).await.expect("deploys");
            if name == "leaving" {
                tx.services().set_wanted(&key, Wanted::Gone, 1).await.expect("writes");
            }
        }
        assert_eq!(tx.services().rest_of(&theirs.mesh, &theirs.member, 7).await.expect("writes"), 2);
        assert_eq!(tx.services().rest_of(&theirs.mesh, &theirs.member, 8).await.expect("writes"), 0);
        let all = tx.services().list_all().await.expect("reads");
        let mut wanted: Vec<_> =
            all.iter().map(|s| (s.key.mesh == theirs.mesh, s.key.name.as_str(), s.wanted)).collect();
        wanted.sort_by_key(|(is_theirs, name, _)| (!is_theirs, name.to_string()));
        let expected = [
            (true, "a", Wanted::Stopped),
            (true, "b", Wanted::Stopped),
            (true, "leaving", Wanted::Gone),
            (false, "a", Wanted::Running),
        ];
        assert_eq!(wanted, expected);
    }
}
