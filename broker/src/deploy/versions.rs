//! Deploying a version again: update, rollback, and the way that all such changes take.
//!
//! Not here: first deploys (`super`), what a change of the network list is ([`super::network`]).

use catalog::access::{Action, Caller};
use wire::spec::ServiceSpec;

use super::{Change, DeployError, Version, open_secrets, permitted, present, write};
use crate::app::Broker;
use crate::commit::commit;
use crate::reconcile::Goal;
use crate::store::{Service, StoredGeneration, Tx};
use crate::views::MeshView;

/// Deploys the same source again without its pin, so that it is resolved anew.
///
/// # Errors
/// [`DeployError`].
pub async fn update(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, name, Action::Update)?;
    let mut tx = broker.store.begin().await?;
    let row = present(&mut tx, service.key()).await?;
    let current = tx.generations().find(&row.key, row.target).await?.ok_or(DeployError::Conflict)?;
    let version = Version { pin: None, ..version_of(broker, &mut tx, current).await? };
    again(broker, caller, tx, row, version).await
}

/// Deploys the version that was ready before the current one, exactly as it was pinned, with the network that it had last.
/// Generations of the current version itself (`allow`, `deny`, `learn` make such) are no version to go back to, and what was
/// being learned then is over.
///
/// # Errors
/// [`DeployError`].
pub async fn rollback(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, name, Action::Update)?;
    let mut tx = broker.store.begin().await?;
    let row = present(&mut tx, service.key()).await?;
    let current = tx.generations().find(&row.key, row.target).await?.ok_or(DeployError::Conflict)?;
    let current = version_of(broker, &mut tx, current).await?;
    let earlier = tx.generations().list(&row.key).await?;
    for generation in earlier.into_iter().filter(|one| one.proven && one.generation < row.target) {
        let mut version = version_of(broker, &mut tx, generation).await?;
        if !is_same(&version, &current) {
            version.spec.learn_until_ms = None;
            return again(broker, caller, tx, row, version).await;
        }
    }
    Err(DeployError::NoPrevious)
}

pub(super) async fn version_of(
    broker: &Broker,
    tx: &mut Tx,
    generation: StoredGeneration,
) -> Result<Version, DeployError> {
    let secrets = open_secrets(&broker.at_rest, tx, &generation).await?;
    Ok(Version { spec: generation.spec, secrets, pin: generation.pin, starts: true })
}

/// But for where it may connect to.
fn is_same(a: &Version, b: &Version) -> bool {
    let bare = |spec: &ServiceSpec| ServiceSpec { network: Vec::new(), learn_until_ms: None, ..spec.clone() };
    (&a.pin, &a.secrets) == (&b.pin, &b.secrets) && bare(&a.spec) == bare(&b.spec)
}

/// Writes a version as the newest generation.
pub(super) async fn again(
    broker: &Broker,
    caller: &Caller,
    mut tx: Tx,
    row: Service,
    version: Version,
) -> Result<Change, DeployError> {
    let by = (row.latest.0, &caller.member, &row.scope);
    let generation = write(broker, &mut tx, &row.key, by, version).await?;
    commit(broker, &row.key.mesh, tx).await?;
    Ok(Change::watch(broker, (row.key, caller.member.clone()), Goal::Serve(generation)).await)
}
