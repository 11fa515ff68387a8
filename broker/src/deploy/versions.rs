//! Deploying a version again: update, rollback, and the way that all such changes take.
//!
//! Not here: first deploys (`super`), what a change of the network list is ([`super::network`]).

use catalog::access::{Action, Caller};
use wire::spec::Pin;

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
    again(broker, caller, tx, row, current, None).await
}

/// Deploys the version that was ready before the current one, exactly as it was pinned.
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
    let previous = tx.generations().previous_proven(&row.key, row.target).await?;
    let previous = previous.ok_or(DeployError::NoPrevious)?;
    let pin = previous.pin.clone();
    again(broker, caller, tx, row, previous, pin).await
}

/// Writes a known generation as the newest one.
pub(super) async fn again(
    broker: &Broker,
    caller: &Caller,
    mut tx: Tx,
    row: Service,
    old: StoredGeneration,
    pin: Option<Pin>,
) -> Result<Change, DeployError> {
    let secrets = open_secrets(&broker.at_rest_key, &old)?;
    let version = Version { spec: old.spec, secrets, pin };
    let by = (row.latest.0, &caller.member, &row.scope);
    let generation = write(broker, &mut tx, &row.key, by, version).await?;
    commit(broker, &row.key.mesh, tx).await?;
    Ok(Change::watch(broker, row.key, Goal::Serve(generation)).await)
}
