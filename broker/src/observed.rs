//! What the runner last said, and whether it is there.
//!
//! Here: a table that only the reconciler writes and everyone reads. Not here: what people want (the store, through
//! `views`). After a restart of the broker it is filled from the store, so that a listing has something to show while
//! the runner is away; then from the runner's own stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use wire::ServiceKey;
use wire::report::{Phase, Reason, ServiceReport};
use wire::runner::Health;
use wire::vault::RunnerVault;

/// Whether the runner can be asked.
#[derive(Debug, Clone, Default)]
pub enum Link {
    #[default]
    Away,
    /// Connected and synced: what it holds is known.
    Up(Arc<Health>),
}

impl Link {
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}

pub struct Observed {
    reports: RwLock<HashMap<ServiceKey, Arc<ServiceReport>>>,
    /// Why the broker can't get a service to the runner.
    troubles: RwLock<HashMap<ServiceKey, Reason>>,
    vault: RwLock<Option<RunnerVault>>,
    link: watch::Sender<Link>,
    changes: watch::Sender<u64>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            reports: RwLock::default(),
            troubles: RwLock::default(),
            vault: RwLock::default(),
            link: watch::Sender::new(Link::Away),
            changes: watch::Sender::new(0),
        }
    }
}

impl Observed {
    pub fn get(&self, key: &ServiceKey) -> Option<Arc<ServiceReport>> {
        self.reports.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn trouble(&self, key: &ServiceKey) -> Option<Reason> {
        self.troubles.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn set_trouble(&self, key: &ServiceKey, trouble: Option<Reason>) {
        let mut troubles = self.troubles.write().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(reason) => drop(troubles.insert(key.clone(), reason)),
            None => drop(troubles.remove(key)),
        }
    }

    /// The runner's vault as it was last seen, in this life of the broker; also while the runner is away.
    pub fn vault(&self) -> Option<RunnerVault> {
        self.vault.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_vault(&self, vault: RunnerVault) {
        let mut known = self.vault.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != Some(&vault) {
            *known = Some(vault);
            drop(known);
            self.bump();
        }
    }

    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Whether the runner can be asked within `patience`.
    pub async fn runner_returns(&self, patience: Duration) -> bool {
        let mut link = self.link.subscribe();
        let up = link.wait_for(Link::is_up);
        matches!(tokio::time::timeout(patience, up).await, Ok(Ok(_)))
    }

    /// Resolves while the runner is away.
    pub async fn runner_leaves(&self) {
        let mut link = self.link.subscribe();
        // Fails only when the sender is gone, and `self` holds it.
        let _ = link.wait_for(|link| !link.is_up()).await;
    }

    /// Counts changes; take it before looking, and [`Self::changed_since`] can't miss one.
    pub fn revision(&self) -> u64 {
        *self.changes.borrow()
    }

    pub async fn changed_since(&self, revision: u64) {
        let mut changes = self.changes.subscribe();
        // Fails only when the sender is gone, and `self` holds it.
        let _ = changes.wait_for(|now| *now != revision).await;
    }

    /// Everything, for planning.
    pub fn all(&self) -> BTreeMap<ServiceKey, ServiceReport> {
        let reports = self.reports.read().unwrap_or_else(PoisonError::into_inner);
        reports.iter().map(|(key, report)| (key.clone(), (**report).clone())).collect()
    }

    /// Services by the phase of what serves, else of the candidate.
    pub fn phases(&self) -> HashMap<Phase, usize> {
        let reports = self.reports.read().unwrap_or_else(PoisonError::into_inner);
        let mut counted = HashMap::new();
        for report in reports.values() {
            if let Some(generation) = report.serving.as_ref().or(report.candidate.as_ref()) {
                *counted.entry(generation.phase).or_insert(0) += 1;
            }
        }
        counted
    }

    /// Answers what was known before.
    pub(crate) fn record(&self, report: ServiceReport) -> Option<Arc<ServiceReport>> {
        let key = report.service.clone();
        let before = self.write(|reports| reports.insert(key, Arc::new(report)));
        self.bump();
        before
    }

    pub(crate) fn forget(&self, key: &ServiceKey) {
        self.write(|reports| reports.remove(key));
        self.bump();
    }

    /// The runner's stream has told everything it holds: what it did not name, it does not have.
    pub(crate) fn synced(&self, named: &std::collections::BTreeSet<ServiceKey>, health: Health) {
        self.write(|reports| reports.retain(|key, _| named.contains(key)));
        self.link.send_replace(Link::Up(Arc::new(health)));
        self.bump();
    }

    /// The reports stay: they are the last known state.
    pub(crate) fn lost(&self) {
        self.link.send_replace(Link::Away);
        self.bump();
    }

    fn write<T>(&self, change: impl FnOnce(&mut HashMap<ServiceKey, Arc<ServiceReport>>) -> T) -> T {
        change(&mut self.reports.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn bump(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}
