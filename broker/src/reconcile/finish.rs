//! What follows from the end of an action: the next look, a retry, or a failure that people see.

use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;
use wire::ServiceKey;
use wire::report::Reason;

use super::Reconciler;
use super::plan::{Action, Told, Wish};
use super::rounds::RoundError;
use super::work::{Applied, WorkError};
use crate::callers;
use crate::commit::commit_observed;
use crate::deploy::Mark;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What a job was, and how it ended.
pub(super) enum Done {
    Action(Action, Result<Option<Box<Applied>>, WorkError>),
    Tidied(Result<(), WorkError>),
    /// Of this link.
    Round(u64, Result<(), RoundError>),
}

pub(super) struct Retry {
    /// `None`: due.
    pub(super) at: Option<Instant>,
    /// Grows with each failure, goes with the first success.
    pub(super) pause: Duration,
}

impl Reconciler {
    pub(super) async fn finish(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Action(action, result)) => {
                self.busy.remove(action.key());
                match result {
                    Ok(applied) => self.succeeded(&action, applied).await,
                    Err(error) => self.failed(&action, &error).await,
                }
            }
            Ok(Done::Round(link, ended)) => self.went_round(link, ended),
            Ok(Done::Tidied(Ok(()))) => {}
            Ok(Done::Tidied(Err(error))) => tracing::warn!("nothing was tidied: {error}"),
            // A job that panicked leaves its service marked busy for ever otherwise.
            Err(error) => {
                tracing::error!("an action ended abnormally: {error}");
                self.busy.clear();
                self.rounds.renew();
            }
        }
    }

    async fn succeeded(&mut self, action: &Action, applied: Option<Box<Applied>>) {
        let key = action.key();
        self.retries.remove(key);
        self.broker.observed.set_trouble(key, None);
        match (action, applied) {
            (Action::Apply(..), Some(applied)) => {
                self.remember(key, applied.told).await;
                self.report(applied.report).await;
            }
            (Action::Apply(..), None) => {}
            (Action::Stop(_), _) => {
                self.applied.remove(key);
                self.broker.observed.forget(key);
            }
            (Action::Purge(_), _) => {
                self.applied.remove(key);
                self.broker.observed.forget(key);
                self.delete(key).await;
                self.wants_tidying = true;
            }
        }
    }

    /// So that a restarted broker knows what the runner was told. When it can't be written, the runner is told once more.
    async fn remember(&mut self, key: &ServiceKey, told: Told) {
        let before = self.applied.insert(key.clone(), told);
        // In doubt, the instance of a caller is given the same again, which changes nothing.
        if before == Some(told) || !key.name.is_plain() {
            return;
        }
        let written = async {
            let mut tx = self.broker.store.begin().await?;
            tx.policies().set_applied(key, told.policy).await?;
            if before.is_none_or(|before| before.material != told.material) {
                let material = told.material.map(Mark::to_hex);
                tx.policies().set_material(key, material.as_deref()).await?;
            }
            tx.commit().await
        };
        if let Err(error) = written.await {
            self.store_failed(&error);
        }
    }

    /// The runner has confirmed that nothing is left of the service.
    async fn delete(&mut self, key: &ServiceKey) {
        if self.wishes.get(key).is_none_or(|desired| desired.wish() != Wish::Gone) {
            return;
        }
        let deleted = async {
            let mut tx = self.broker.store.begin().await?;
            match key.name.caller() {
                Some(member) => drop(tx.callers().remove(&callers::service_of(key), &member).await?),
                None => drop(tx.services().delete(key).await?),
            }
            commit_observed(&self.broker, &key.mesh, tx).await
        };
        match deleted.await {
            Ok(()) => self.refresh().await,
            Err(error) => self.store_failed(&error),
        }
    }

    async fn failed(&mut self, action: &Action, error: &WorkError) {
        let key = action.key();
        let unproven = self.wishes.get(key).filter(|desired| !desired.proven);
        if let (Action::Apply(_, generation), false, Some(desired)) = (action, error.is_passing(), unproven)
            && desired.row.target == *generation
        {
            let reason: Reason = error.reason();
            return self.fail(key, *generation, reason).await;
        }
        let pause = self.retries.get(key).map_or(FIRST_RETRY, |retry| (retry.pause * 2).min(LONGEST_RETRY));
        self.retries.insert(key.clone(), Retry { at: Some(Instant::now() + pause), pause });
        if !error.is_passing() {
            self.broker.observed.set_trouble(key, Some(error.reason()));
        }
        tracing::warn!(
            mesh.id = %key.mesh, service.name = %key.name,
            "an action for {key} failed: {error}; trying again in {} ms", pause.as_millis()
        );
    }
}
