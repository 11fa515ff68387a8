//! Which services this runner holds.
//!
//! Here: finding a service by its key, making and removing them, ending all. Not here: anything inside a service.
//! Invariant: each key has at most one owner task; a task that panics is seen here, and its processes end with it.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use wire::ServiceKey;
use wire::report::ServiceReport;
use wire::runner::Apply;

use crate::service::task::ServiceTask;
use crate::service::{ApplyError, Command, RemoveError, ServiceHandle};
use crate::shop::Shop;

pub struct Table {
    shop: Arc<Shop>,
    services: RwLock<HashMap<ServiceKey, Arc<ServiceHandle>>>,
    tasks: TaskTracker,
}

impl Table {
    pub fn new(shop: Arc<Shop>) -> Arc<Self> {
        Arc::new(Self { shop, services: RwLock::default(), tasks: TaskTracker::new() })
    }

    pub fn find(&self, key: &ServiceKey) -> Option<Arc<ServiceHandle>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn all(&self) -> Vec<Arc<ServiceHandle>> {
        let mut all: Vec<_> =
            self.services.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// Makes this generation the wish, and the service if there is none.
    pub async fn apply(
        self: &Arc<Self>,
        key: &ServiceKey,
        apply: Apply,
    ) -> Result<ServiceReport, ApplyError> {
        // Checked before a service is made for it, and again by the owner.
        crate::service::wish::check(&apply)?;
        let service = self.find_or_make(key)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Apply(Box::new(apply), reply);
        service.commands.send(command).await.map_err(|_| ApplyError::Removing)?;
        answer.await.map_err(|_| ApplyError::Removing)?
    }

    /// `None` when there is no such service, nor data of it to purge. Returns once its whole process tree is gone.
    pub async fn remove(self: &Arc<Self>, key: &ServiceKey, purge: bool) -> Option<Result<(), RemoveError>> {
        let service = match self.find(key) {
            Some(service) => service,
            // Not applied since the runner started, or since it was stopped: its data goes in its owner task's turn, too.
            None if purge && self.has_data(key).await => match self.find_or_make(key) {
                Ok(service) => service,
                Err(_) => return Some(Err(RemoveError::Ended)),
            },
            None => return None,
        };
        let (done, answer) = oneshot::channel();
        if service.commands.send(Command::Remove { purge, done }).await.is_err() {
            return None;
        }
        Some(answer.await.unwrap_or(Err(RemoveError::Ended)))
    }

    /// Ends every service, all at the same time. Nothing can be applied afterwards.
    pub async fn end(self: &Arc<Self>) {
        self.tasks.close();
        let keys: Vec<ServiceKey> = self.all().iter().map(|service| service.key.clone()).collect();
        for outcome in join_all(keys.iter().map(|key| self.remove(key, false))).await.into_iter().flatten() {
            if let Err(e) = outcome {
                tracing::error!("a service did not end well: {e}");
            }
        }
        self.tasks.wait().await;
    }

    /// Artefacts that a service uses, or may be about to use.
    pub fn artefacts(&self) -> HashSet<String> {
        let mut used: HashSet<String> = self.shop.young_artefacts().into_iter().collect();
        for service in self.all() {
            let report = service.report.borrow();
            let both = [&report.serving, &report.candidate];
            used.extend(both.into_iter().flatten().filter_map(|g| Some(g.pin.as_ref()?.artefact.clone())));
        }
        used
    }

    async fn has_data(&self, key: &ServiceKey) -> bool {
        // What can't be looked at is tried, so that its failure is told.
        let (shop, key) = (self.shop.clone(), key.clone());
        let found = tokio::task::spawn_blocking(move || shop.data_of(&key)).await;
        found.ok().and_then(Result::ok).is_none_or(|found| !found.is_empty())
    }

    fn find_or_make(self: &Arc<Self>, key: &ServiceKey) -> Result<Arc<ServiceHandle>, ApplyError> {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if self.tasks.is_closed() {
            return Err(ApplyError::Removing);
        }
        if let Some(service) = services.get(key) {
            return Ok(service.clone());
        }
        let (handle, task) = ServiceTask::new(key.clone(), self.shop.clone());
        let handle = Arc::new(handle);
        services.insert(key.clone(), handle.clone());
        let (table, key) = (Arc::downgrade(self), key.clone());
        self.tasks.spawn(async move {
            let end = AssertUnwindSafe(task.run()).catch_unwind().await;
            // Forgotten first: whoever hears that it is gone must not find it.
            if let Some(table) = table.upgrade() {
                table.forget(&key);
            }
            match end {
                Ok(departure) => departure.announce(),
                Err(_) => tracing::error!(mesh.id = %key.mesh, service.name = %key.name,
                    "the task of service {} panicked", key.name),
            }
        });
        Ok(handle)
    }

    fn forget(&self, key: &ServiceKey) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.shop.events.removed(key);
    }
}
