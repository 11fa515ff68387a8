//! What people want, as the reconciler needs it: read from the store, one entry for each service of every mesh, and one for
//! each instance of a caller.

use std::collections::BTreeMap;
use std::sync::Arc;

use catalog::access;
use wire::vault::RunAs;
use wire::{Policy, ServiceKey};

use super::known::Known;
use super::plan::{Turn, Wish};
use crate::app::Broker;
use crate::clock;
use crate::deploy::{self, Mark};
use crate::store::{CallerInstance, Service, StoreError, StoredGeneration, Tx, Wanted};

#[derive(Debug, Clone)]
pub(super) struct Desired {
    pub(super) row: Service,
    /// The target has been ready before.
    pub(super) proven: bool,
    /// What the target's references to the vault are opened with; `None` when it has none.
    pub(super) material: Option<Mark>,
    /// The target, when it has references or runs as its caller.
    pub(super) vaulted: Option<Arc<StoredGeneration>>,
    /// While the target is unproven: the newest generation before it that was ready.
    pub(super) fallback: Option<Turn>,
    /// Of the mesh.
    pub(super) policy: Policy,
    /// Callers have instances, and so data, of their own; they go before it does.
    pub(super) has_callers: bool,
}

impl Desired {
    pub(super) fn wish(&self) -> Wish {
        match self.row.wanted {
            Wanted::Gone if self.has_callers => Wish::Rest,
            Wanted::Gone => Wish::Gone,
            Wanted::Stopped => Wish::Rest,
            Wanted::Running if self.row.has_failed() => Wish::Rest,
            Wanted::Running => {
                let target = Turn { generation: self.row.target, material: self.material };
                Wish::Run { target, fallback: self.fallback, policy: self.policy }
            }
        }
    }
}

pub(super) type Wishes = BTreeMap<ServiceKey, Desired>;

/// Reads everything. What is known of a proven target is taken over from `before`: it does not change any more.
pub(super) async fn load(broker: &Broker, before: &Wishes, known: &mut Known) -> Result<Wishes, StoreError> {
    known.keep_what_holds(broker.views.epochs());
    let mut tx = broker.store.read().await?;
    let mut wishes = Wishes::new();
    let policies = tx.policies().all().await?;
    for row in tx.services().list_all().await? {
        let policy = policies.get(&row.key.mesh).copied().unwrap_or_default();
        let old = before.get(&row.key).filter(|old| old.proven && is_same(&old.row, &row));
        let desired = if let Some(old) = old {
            let vaulted = old.vaulted.clone();
            let material = known.mark(&mut tx, vaulted.as_deref()).await?;
            Desired { row, proven: true, material, vaulted, fallback: None, policy, has_callers: false }
        } else {
            read(&mut tx, known, row, policy).await?
        };
        wishes.insert(desired.row.key.clone(), desired);
    }
    of_callers(&mut tx, known, &mut wishes).await?;
    Ok(wishes)
}

async fn read(tx: &mut Tx, known: &mut Known, row: Service, policy: Policy) -> Result<Desired, StoreError> {
    let stored = tx.generations().find(&row.key, row.target).await?;
    let proven = stored.as_ref().is_some_and(|generation| generation.proven);
    let vaulted = stored.filter(|generation| deploy::needs_material(&generation.spec)).map(Arc::new);
    let material = known.mark(tx, vaulted.as_deref()).await?;
    let mut fallback = None;
    if !proven && let Some(previous) = tx.generations().previous_proven(&row.key, row.target).await? {
        let material = known.mark(tx, Some(&previous)).await?;
        fallback = Some(Turn { generation: previous.generation, material });
    }
    Ok(Desired { row, proven, material, vaulted, fallback, policy, has_callers: false })
}

/// The instances of callers, beside the services that they belong to.
async fn of_callers(tx: &mut Tx, known: &mut Known, wishes: &mut Wishes) -> Result<(), StoreError> {
    let now = clock::now_ms();
    for instance in tx.callers().all().await? {
        let Some(service) = wishes.get_mut(&instance.service) else { continue };
        service.has_callers = true;
        let service = service.clone();
        let (wanted, turn) = of_caller((tx, known), &service, &instance, now).await?;
        let target = turn.map_or(service.row.target, |turn| turn.generation);
        let row = Service { key: instance.key(), wanted, target, failed: None, ..service.row };
        let material = turn.and_then(|turn| turn.material);
        let key = row.key.clone();
        // What serves the deployer is worth trying again for everybody.
        let (proven, vaulted, fallback, policy) = (true, None, None, service.policy);
        let desired = Desired { row, proven, material, vaulted, fallback, policy, has_callers: false };
        wishes.insert(key, desired);
    }
    Ok(())
}

/// Runs only what its caller may have now; whatever they lack, or have changed since, it rests until they call again.
async fn of_caller(
    (tx, known): (&mut Tx, &mut Known),
    service: &Desired,
    instance: &CallerInstance,
    now: i64,
) -> Result<(Wanted, Option<Turn>), StoreError> {
    let member = known.member(tx, &instance.service.mesh, &instance.member).await?;
    let Some(member) = member.filter(|member| !member.is_revoked()) else { return Ok((Wanted::Gone, None)) };
    let resting = Ok((Wanted::Stopped, None));
    match service.row.wanted {
        Wanted::Gone => return Ok((Wanted::Gone, None)),
        Wanted::Stopped => return resting,
        Wanted::Running if service.row.has_failed() || !instance.is_in_use(now) => return resting,
        Wanted::Running if !access::may_call(&member.caller(), service.row.subject()) => return resting,
        Wanted::Running => {}
    }
    let Some(stored) = serves(tx, service).await?.filter(|stored| stored.spec.run_as == RunAs::Caller) else {
        return resting;
    };
    let found = known.of_caller(tx, &stored, &member).await?;
    let (Some(due), held) = (&found.held, &instance.held) else { return resting };
    if held.as_ref().is_some_and(|held| held != due) {
        return resting;
    }
    Ok((Wanted::Running, Some(Turn { generation: stored.generation, material: found.mark })))
}

/// What serves: the target, or as long as it was never ready, what worked before.
async fn serves(tx: &mut Tx, service: &Desired) -> Result<Option<Arc<StoredGeneration>>, StoreError> {
    if service.proven {
        return Ok(service.vaulted.clone());
    }
    let previous = tx.generations().previous_proven(&service.row.key, service.row.target).await?;
    Ok(previous.map(Arc::new))
}

/// A service that was removed and deployed again under its old name counts its generations anew.
fn is_same(old: &Service, new: &Service) -> bool {
    old.target == new.target && old.created_at == new.created_at
}
