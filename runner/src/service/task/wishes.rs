//! What a service is asked to be: a generation, and what its mesh demands of it.
//!
//! Here: the place of a new generation, one that is asked for again, refusals for a weak jail. Not here: what follows
//! (see [`super::super::state`]).
//! Invariant: a wish that is met already changes nothing.

use std::sync::Arc;

use wire::report::Reason;
use wire::runner::Apply;
use wire::{ErrorCode, Policy};

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
            self.reconsider(self.serving, apply.policy);
            return Ok(());
        }
        if generation_of(self.candidate) == Some(apply.generation) {
            self.reconsider(self.candidate, apply.policy);
            return Ok(());
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

    /// The same generation was asked for again: what the mesh demands may be something else now.
    fn reconsider(&mut self, nonce: Option<Nonce>, policy: Policy) {
        let Some(nonce) = nonce else { return };
        let Some(held) = self.held.get_mut(&nonce).filter(|held| held.apply.policy != policy) else { return };
        held.apply = Arc::new(Apply { policy, ..Apply::clone(&held.apply) });
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
