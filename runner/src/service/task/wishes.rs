//! What a service is asked to be: a generation, and what its mesh demands of it.
//!
//! Here: the place of a new generation, one that is asked for again, refusals for a weak jail. Not here: what follows
//! (see [`super::super::state`]).
//! Invariant: a wish that is met already changes nothing.

use std::sync::Arc;

use wire::ErrorCode;
use wire::report::Phase;
use wire::report::Reason;
use wire::runner::Apply;

use super::super::generation::Holding;
use super::super::state::{Event, Machine, State};
use super::super::{ApplyError, jobs, wish};
use super::{Nonce, ServiceTask, seed};
use crate::instance::superseded;
use crate::logs::Stream;

impl ServiceTask {
    pub(super) fn apply(&mut self, apply: Apply) -> Result<(), ApplyError> {
        if self.removal.is_some() {
            return Err(ApplyError::Removing);
        }
        wish::check(&apply)?;
        let generation_of =
            |nonce: Option<Nonce>| nonce.and_then(|n| self.held.get(&n)).map(|h| h.apply.generation);
        if generation_of(self.serving) == Some(apply.generation) {
            self.supersede_candidate();
            return self.reconsider(self.serving, apply);
        }
        if generation_of(self.candidate) == Some(apply.generation) {
            return self.reconsider(self.candidate, apply);
        }
        self.supersede_candidate();
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        let (machine, first) = Machine::new(apply.proven, seed(&self.key));
        self.log.push(Stream::Runner, &format!("generation {} was asked for", apply.generation));
        // What was ready before serves again; what was not has to earn the place.
        let place =
            if apply.proven && self.serving.is_none() { &mut self.serving } else { &mut self.candidate };
        *place = Some(nonce);
        self.held.insert(nonce, Holding::new(apply, machine));
        self.perform(nonce, first);
        Ok(())
    }

    /// The same generation was asked for again: what the mesh demands, or what there is to open its secrets with, may be
    /// something else now.
    fn reconsider(&mut self, nonce: Option<Nonce>, asked: Apply) -> Result<(), ApplyError> {
        let Some((nonce, held)) = nonce.and_then(|nonce| Some((nonce, self.held.get_mut(&nonce)?))) else {
            return Ok(());
        };
        let Apply { policy, vault, .. } = asked;
        // What it opened as one member must not answer another.
        if vault.caller != held.apply.vault.caller {
            return Err(ApplyError::OtherCaller);
        }
        let (is_demand, is_material) = (held.apply.policy != policy, held.apply.vault != vault);
        if is_demand || is_material {
            held.apply = Arc::new(Apply { policy, vault, ..Apply::clone(&held.apply) });
        }
        held.is_outdated |= is_material;
        if is_demand {
            self.judge(nonce);
        }
        self.free(nonce);
        Ok(())
    }

    /// What a start of it needs of the vault may be there now.
    pub(super) fn free(&mut self, nonce: Nonce) {
        let Some(held) = self.held.get_mut(&nonce).filter(|held| held.is_held_back()) else { return };
        // With the same as before nothing has changed for who looks at it; with something else, its reason is out of date.
        held.step = if held.is_outdated { Phase::Starting } else { Phase::Waiting };
        self.step(nonce, Event::Freed);
    }

    /// The runner got its key, or keys of some mesh, or lost them.
    pub(super) fn vault_changed(&mut self) {
        let all: Vec<Nonce> = self.held.keys().copied().collect();
        for nonce in all {
            let Some(held) = self.held.get_mut(&nonce) else { continue };
            held.is_outdated = true;
            let is_running = held.is_ready();
            match self.shop.vault.distrust(&self.key.mesh, &held.apply.spec).filter(|_| is_running) {
                Some(reason) => {
                    self.failed(nonce, reason, Event::Refused);
                    if self.serving != Some(nonce) && self.candidate != Some(nonce) {
                        // It was finishing its last calls.
                        self.step(nonce, Event::Stop);
                    }
                }
                None => self.free(nonce),
            }
        }
    }

    /// What the mesh demands has changed.
    fn judge(&mut self, nonce: Nonce) {
        let Some(held) = self.held.get_mut(&nonce) else { return };
        let (apply, state) = (held.apply.clone(), held.machine.state);
        let was_refused = held.reason.as_ref().is_some_and(|r| r.code == ErrorCode::IsolationUnavailable);
        match self.refusal(&apply) {
            // A job that runs is told when it ends.
            Some(_) if matches!(state, State::Preparing { .. } | State::Starting { .. }) => {}
            Some(reason) => self.failed(nonce, reason, Event::Refused),
            None if state == State::Failed && was_refused => {
                let Some(held) = self.held.get_mut(&nonce) else { return };
                let (machine, first) = Machine::new(apply.proven || held.machine.proven, seed(&self.key));
                (held.machine, held.reason) = (machine, None);
                self.perform(nonce, first);
            }
            None => {}
        }
    }

    /// Why this can't run here.
    pub(super) fn refusal(&self, apply: &Apply) -> Option<Reason> {
        self.shop.cells.tier(jobs::least(apply)).err()
    }

    fn supersede_candidate(&mut self) {
        let Some(nonce) = self.candidate else { return };
        // One that failed before has its verdict already.
        if let Some(held) = self.held.get_mut(&nonce).filter(|held| held.machine.state != State::Failed) {
            held.is_superseded = true;
            held.reason = Some(Arc::new(superseded()));
        }
        // Said while it is still the candidate, so that its deployer hears it.
        self.publish();
        self.candidate = None;
        self.step(nonce, Event::Stop);
    }
}
