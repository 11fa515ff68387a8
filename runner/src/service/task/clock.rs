//! What the passing of time asks of a service: pauses that end, idle stops, pings, samples.
//!
//! Not here: what follows (see [`super::super::state`]).

use std::time::Instant;

use wire::ErrorCode;

use super::super::generation::Holding;
use super::super::jobs;
use super::super::state::Event;
use super::{Nonce, ServiceTask};
use crate::logs::Stream;

impl ServiceTask {
    pub(super) fn next_due(&self) -> Instant {
        let now = Instant::now();
        let machines = self.held.values().filter_map(|held| held.machine.deadline());
        let idle = self.serving().and_then(|held| held.idle_at(now));
        let regular = [self.ping_at, self.sample_at];
        machines.chain(idle).chain(regular).chain(self.egress.due()).min().unwrap_or(self.ping_at)
    }

    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let due: Vec<Nonce> = self
            .held
            .iter()
            .filter(|(_, held)| held.machine.deadline().is_some_and(|at| at <= now))
            .map(|(nonce, _)| *nonce)
            .collect();
        for nonce in due {
            self.step(nonce, Event::Deadline);
        }
        if let Some(nonce) = self.serving
            && self.serving().and_then(|held| held.idle_at(now)).is_some_and(|at| at <= now)
        {
            self.log.push(Stream::Runner, "stopped for lack of calls; a call wakes it");
            self.step(nonce, Event::Unused);
        }
        if self.ping_at <= now {
            self.ping_at = now + self.shop.config.ping_every;
            self.ping();
        }
        self.egress.tick(now);
        if self.sample_at <= now {
            self.free_of_the_ledger();
            self.egress.look();
            self.sample_at = now + self.shop.config.sample_every;
            for (&nonce, held) in &self.held {
                if let Some(instance) = held.instance.clone() {
                    self.jobs.spawn(async move { (nonce, jobs::sample(instance).await) });
                }
            }
        }
    }

    /// Nobody says when there is space on the disk again.
    fn free_of_the_ledger(&mut self) {
        let is_due = |held: &Holding| {
            held.reason.as_ref().is_some_and(|reason| reason.code == ErrorCode::LedgerFailed)
        };
        let due: Vec<Nonce> =
            self.held.iter().filter(|(_, held)| is_due(held)).map(|(nonce, _)| *nonce).collect();
        for nonce in due {
            self.free(nonce);
        }
    }

    fn ping(&mut self) {
        let Some(nonce) = self.serving else { return };
        let config = &self.shop.config;
        let (every, limit) = (config.ping_every, config.ping_timeout);
        let Some(held) = self.held.get_mut(&nonce) else { return };
        let Some(instance) = held.instance.clone().filter(|_| !held.is_pinged) else { return };
        if instance.client.silent_for() < every {
            // It spoke a moment ago: no need to ask.
            return self.step(nonce, Event::PingAnswered);
        }
        held.is_pinged = true;
        self.jobs.spawn(async move { (nonce, jobs::ping(instance, limit).await) });
    }
}
