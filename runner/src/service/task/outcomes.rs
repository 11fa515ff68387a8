//! What follows when a job comes back.
//!
//! Here: outcomes into events of the machine, and the swap. Not here: starting jobs that the machine asks for.
//! Invariant: an outcome of an instance that is no longer its generation's changes nothing.

use std::sync::Arc;

use wire::ErrorCode;
use wire::report::{Lists, Reason, Usage};

use super::super::door::Serves;
use super::super::generation::Holding;
use super::super::jobs::{self, Outcome, Pong};
use super::super::state::{Event, State};
use super::{Nonce, ServiceTask};
use crate::cell::Ended;
use crate::instance::{Instance, StartError};
use crate::logs::{Stream, now_ms};
use crate::mcp::lists::Kinds;
use crate::mcp::tuning;

/// A sample that moved less than this is not news.
const BYTES_STEP: u64 = 1 << 20;
const CPU_STEP_MS: u64 = 1000;

impl ServiceTask {
    pub(super) fn finished(&mut self, nonce: Nonce, outcome: Outcome) {
        let Some(held) = self.held.get_mut(&nonce) else { return };
        // What comes from an instance that is no longer this generation's says nothing about it.
        let is_current =
            |instance: &Arc<Instance>| held.instance.as_ref().is_some_and(|i| Arc::ptr_eq(i, instance));
        match outcome {
            Outcome::Prepared(Ok(prepared)) => {
                held.prepared = Some(Arc::new(prepared));
                self.step(nonce, Event::Prepared);
            }
            Outcome::Prepared(Err(reason)) => self.failed(nonce, reason, Event::PrepareFailed),
            Outcome::Started(outcome) => match *outcome {
                Ok((instance, lists)) => self.started(nonce, instance, lists),
                Err(StartError { reason, is_gone }) => {
                    let event = if is_gone { Event::PreparedGone } else { Event::StartFailed };
                    self.failed(nonce, reason, event);
                }
            },
            Outcome::Lost(instance, reason) if is_current(&instance) => {
                if !held.is_ready() {
                    return;
                }
                self.failed(nonce, reason, Event::Lost);
                if self.serving != Some(nonce) && self.candidate != Some(nonce) {
                    // It was finishing its last calls.
                    self.step(nonce, Event::Stop);
                }
            }
            Outcome::Pinged(instance, pong) if is_current(&instance) => {
                held.is_pinged = false;
                self.ponged(nonce, &instance, pong);
            }
            Outcome::Relisted(instance, changes, lists) if is_current(&instance) => {
                if let Some(lists) = lists {
                    held.lists = Some(Arc::new(lists));
                    self.publish_lists(nonce, changes.kinds());
                }
                let limit = self.shop.config.start_timeout;
                self.jobs.spawn(async move { (nonce, jobs::relist(instance, changes, limit).await) });
            }
            Outcome::Sampled(instance, Some(usage)) if is_current(&instance) => {
                if held.usage.is_none_or(|before| is_news(&before, &usage)) {
                    held.usage = Some(usage);
                }
            }
            Outcome::Drained => self.step(nonce, Event::Stop),
            Outcome::Gone(ended) => self.gone(nonce, ended),
            Outcome::Lost(..)
            | Outcome::Pinged(..)
            | Outcome::Relisted(..)
            | Outcome::Sampled(..)
            | Outcome::Over => {}
        }
    }

    pub(super) fn failed(&mut self, nonce: Nonce, reason: Reason, event: Event) {
        let Some(held) = self.held.get_mut(&nonce) else { return };
        // The jail that this runner builds is found once, and what the vault says changes only with what it is asked with:
        // another try could not end otherwise.
        let is_wait = reason.code.is_vault_wait();
        let is_refusal = (is_wait
            || matches!(reason.code, ErrorCode::IsolationUnavailable | ErrorCode::VaultError))
            && !matches!(held.machine.state, State::Halting { .. });
        let event = if is_refusal { Event::Refused } else { event };
        let is_repeated = is_wait && held.reason.as_deref() == Some(&reason);
        let is_silent = held.is_superseded || is_repeated || reason.code == ErrorCode::Superseded;
        if !is_silent {
            let generation = held.apply.generation;
            self.log.push(Stream::Runner, &format!("generation {generation}: {}", reason.message));
            tracing::info!(mesh.id = %self.key.mesh, service.name = %self.key.name, code = %reason.code,
                "service {} generation {generation}: {}", self.key.name, reason.message);
            held.reason = Some(Arc::new(reason));
        }
        self.step(nonce, event);
        if self.held.get(&nonce).is_some_and(|held| held.is_outdated) {
            self.free(nonce);
        }
    }

    fn ponged(&mut self, nonce: Nonce, instance: &Instance, pong: Pong) {
        let event = match pong {
            Pong::Answered => Event::PingAnswered,
            Pong::Missed => Event::PingMissed { busy: instance.client.in_flight() > 0 },
            Pong::Void => return,
        };
        self.step(nonce, event);
        if let Some(held) = self.held.get_mut(&nonce)
            && pong == Pong::Missed
            && !held.is_ready()
        {
            let message = "the server did not answer several pings in a row".to_owned();
            let reason = Reason { code: ErrorCode::InstanceLost, message, stderr: vec![] };
            self.log.push(Stream::Runner, &reason.message);
            held.reason = Some(Arc::new(reason));
        }
    }

    fn started(&mut self, nonce: Nonce, instance: Instance, lists: Lists) {
        let instance = Arc::new(instance);
        let Some(held) = self.held.get_mut(&nonce) else { return };
        held.instance = Some(instance.clone());
        held.lists = Some(Arc::new(lists));
        held.ready_since_ms = Some(now_ms());
        held.is_pinged = false;
        self.step(nonce, Event::Started);
        // What the mesh demands may have changed while it started.
        if let Some(reason) = self.held.get(&nonce).and_then(|held| {
            self.refusal(&held.apply).or_else(|| self.shop.vault.distrust(&self.key.mesh, &held.apply.spec))
        }) {
            self.failed(nonce, reason, Event::Refused);
        }
        if !self.held.get(&nonce).is_some_and(Holding::is_ready) {
            return;
        }
        let (limit, changes) = (self.shop.config.start_timeout, jobs::Changes::new(instance.changes()));
        let (watched, listed, sampled) = (instance.clone(), instance.clone(), instance.clone());
        self.jobs.spawn(async move { (nonce, jobs::watch(watched).await) });
        self.jobs.spawn(async move { (nonce, jobs::relist(listed, changes, limit).await) });
        self.jobs.spawn(async move { (nonce, jobs::sample(sampled).await) });
        self.log.push(Stream::Runner, "ready");
        // Before callers find it: who listens from then on hears what comes of their calls.
        if self.candidate == Some(nonce) || self.serving == Some(nonce) {
            self.play(nonce, instance);
        }
        if self.candidate == Some(nonce) {
            self.swap(nonce);
        }
        self.publish_lists(nonce, Kinds::default());
    }

    /// From here on who listens hears this instance.
    fn play(&mut self, nonce: Nonce, instance: Arc<Instance>) {
        let Some(held) = self.held.get(&nonce) else { return };
        let mut player = self.audience.play(Serves::of(&held.apply));
        instance.client.play_to(Some(self.audience.clone()));
        let begun = tuning::begin(&instance.client, instance.greeting.offers, &mut player);
        let log = self.log.clone();
        self.jobs.spawn(async move { (nonce, jobs::attend(instance, player, begun, log).await) });
    }

    /// From here on calls go to the candidate; the one before it may finish what it has.
    fn swap(&mut self, nonce: Nonce) {
        self.candidate = None;
        let Some(old) = self.serving.replace(nonce) else { return };
        self.publish();
        match self.held.get(&old).filter(|held| held.is_ready()).and_then(|held| held.instance.clone()) {
            Some(instance) => {
                instance.client.play_to(None);
                drop(self.jobs.spawn(async move { (old, jobs::drain(instance).await) }));
            }
            None => self.step(old, Event::Stop),
        }
    }

    fn gone(&mut self, nonce: Nonce, ended: Ended) {
        if ended == Ended::Unknown {
            tracing::error!(mesh.id = %self.key.mesh, service.name = %self.key.name,
                "it is not certain that all processes of service {} are gone", self.key.name);
            if let Some(removal) = &mut self.removal {
                removal.is_certain = false;
            }
        }
        if let Some(held) = self.held.get_mut(&nonce) {
            held.instance = None;
            held.ready_since_ms = None;
            held.usage = None;
        }
        self.step(nonce, Event::Gone);
        if self.held.get(&nonce).is_some_and(|held| held.is_outdated) {
            self.free(nonce);
        }
    }
}

fn is_news(before: &Usage, now: &Usage) -> bool {
    let has_moved = |a: u64, b: u64, step| a.abs_diff(b) >= step;
    before.pids != now.pids
        || has_moved(before.memory_bytes, now.memory_bytes, BYTES_STEP)
        || has_moved(before.disk_bytes, now.disk_bytes, BYTES_STEP)
        || has_moved(before.cpu_ms.unwrap_or(0), now.cpu_ms.unwrap_or(0), CPU_STEP_MS)
}
