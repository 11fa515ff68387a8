//! What people want, as the reconciler needs it: read from the store, one entry for each service of every mesh.

use std::collections::BTreeMap;

use wire::{Generation, Policy, ServiceKey};

use super::plan::Wish;
use crate::store::{Service, Store, StoreError, Wanted};

#[derive(Debug, Clone)]
pub(super) struct Desired {
    pub(super) row: Service,
    /// The target has been ready before.
    pub(super) proven: bool,
    /// While the target is unproven: the newest generation before it that was ready.
    pub(super) fallback: Option<Generation>,
    /// Of the mesh.
    pub(super) policy: Policy,
}

impl Desired {
    pub(super) fn wish(&self) -> Wish {
        match self.row.wanted {
            Wanted::Gone => Wish::Gone,
            Wanted::Stopped => Wish::Rest,
            Wanted::Running if self.row.has_failed() => Wish::Rest,
            Wanted::Running => {
                Wish::Run { target: self.row.target, fallback: self.fallback, policy: self.policy }
            }
        }
    }
}

pub(super) type Wishes = BTreeMap<ServiceKey, Desired>;

/// Reads everything. What is known of a proven target is taken over from `before`: it does not change any more.
pub(super) async fn load(store: &Store, before: &Wishes) -> Result<Wishes, StoreError> {
    let mut tx = store.read().await?;
    let mut wishes = Wishes::new();
    let policies = tx.policies().all().await?;
    for row in tx.services().list_all().await? {
        let policy = policies.get(&row.key.mesh).copied().unwrap_or_default();
        let known = before.get(&row.key).filter(|old| old.proven && is_same(&old.row, &row));
        let desired = if known.is_some() {
            Desired { row, proven: true, fallback: None, policy }
        } else {
            let stored = tx.generations().find(&row.key, row.target).await?;
            let proven = stored.is_some_and(|generation| generation.proven);
            let fallback = if proven {
                None
            } else {
                let previous = tx.generations().previous_proven(&row.key, row.target).await?;
                previous.map(|generation| generation.generation)
            };
            Desired { row, proven, fallback, policy }
        };
        wishes.insert(desired.row.key.clone(), desired);
    }
    Ok(wishes)
}

/// A service that was removed and deployed again under its old name counts its generations anew.
fn is_same(old: &Service, new: &Service) -> bool {
    old.target == new.target && old.created_at == new.created_at
}
