//! What the owner task holds of one generation, and how that looks from outside.
//!
//! Here: the record and its projections (report, door). Not here: changing it (see [`super::task`]).

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use wire::report::{GenerationReport, Lists, Phase, Reason, Usage};
use wire::runner::Apply;
use wire::vault::RunAs;

use super::door::{Door, Serves};
use super::state::{Machine, State, Then};
use crate::instance::Instance;
use crate::prepare::Prepared;
use crate::vault::Why;

/// When a service that runs as its caller says nothing of when it is stopped for lack of calls.
const CALLERS_IDLE_STOP_S: u32 = 600;

pub struct Holding {
    pub apply: Arc<Apply>,
    pub machine: Machine,
    pub prepared: Option<Arc<Prepared>>,
    pub instance: Option<Arc<Instance>>,
    /// Why it is not ready, or why it was not the last time.
    pub reason: Option<Arc<Reason>>,
    /// `Fetching` or `Installing`, as the workshop says; `Waiting` while a start that the vault held back is tried again
    /// with the same.
    pub step: Phase,
    /// Of the next start.
    pub why: Why,
    /// What a start needs of the vault changed while one was running: if that was held back, it is tried again.
    pub is_outdated: bool,
    /// Ends the prepare or start job that is running.
    pub cancel: CancellationToken,
    pub lists: Option<Arc<Lists>>,
    pub ready_since_ms: Option<i64>,
    pub usage: Option<Usage>,
    pub is_pinged: bool,
    /// Another generation took its place before it was ready.
    pub is_superseded: bool,
}

impl Holding {
    pub fn new(apply: Apply, machine: Machine) -> Self {
        Self {
            apply: Arc::new(apply),
            machine,
            prepared: None,
            instance: None,
            reason: None,
            step: Phase::Fetching,
            why: Why::Start,
            is_outdated: false,
            cancel: CancellationToken::new(),
            lists: None,
            ready_since_ms: None,
            usage: None,
            is_pinged: false,
            is_superseded: false,
        }
    }

    pub fn phase(&self) -> Phase {
        if self.is_superseded {
            return Phase::Failed;
        }
        match self.machine.state {
            State::Preparing { .. } => self.step,
            // Until it may open its secrets, nothing has changed for who looks at it.
            State::Starting { .. } if self.step == Phase::Waiting => Phase::Waiting,
            State::Starting { .. } | State::Halting { then: Then::Wake } => Phase::Starting,
            State::Ready { .. } => Phase::Ready,
            State::Idle | State::Halting { then: Then::Idle } => Phase::Idle,
            State::Backoff { .. } | State::Halting { then: Then::Crashed { .. } } => Phase::Backoff,
            State::CrashLoop { .. } => Phase::CrashLoop,
            State::Halting { then: Then::Stopped | Then::Failed } => Phase::Stopping,
            State::Stopped => Phase::Stopped,
            State::Failed if self.is_held_back() => Phase::Waiting,
            State::Failed => Phase::Failed,
        }
    }

    pub fn report(&self) -> GenerationReport {
        let phase = self.phase();
        // A service that works again is not described by what was wrong before.
        let is_well = matches!(phase, Phase::Ready | Phase::Idle);
        let instance = self.instance.as_ref();
        GenerationReport {
            generation: self.apply.generation,
            phase,
            reason: self.reason.as_deref().filter(|_| !is_well).cloned(),
            // Waiting for a secret was no fall.
            last_fall: self
                .reason
                .as_deref()
                .filter(|reason| is_well && !reason.code.is_vault_wait())
                .cloned(),
            pin: self
                .prepared
                .as_ref()
                .map(|prepared| prepared.pin.clone())
                .or_else(|| self.apply.pin.clone()),
            restarts: self.machine.restarts,
            ready_since_ms: self.ready_since_ms.filter(|_| phase == Phase::Ready),
            pid: instance.map(|instance| instance.pid),
            usage: self.usage.filter(|_| instance.is_some()),
            tier: instance.map(|instance| instance.tier()),
        }
    }

    /// What a caller finds at this generation.
    pub fn door(&self) -> Door {
        match (self.machine.state, &self.instance) {
            (State::Ready { .. }, Some(instance)) => {
                Door::Open(instance.client.clone(), Serves::of(&self.apply))
            }
            (State::Idle | State::Halting { then: Then::Idle }, _) => Door::Asleep(Serves::of(&self.apply)),
            (State::Failed | State::CrashLoop { .. } | State::Halting { then: Then::Failed }, _) => {
                match &self.reason {
                    Some(reason) => Door::Shut(reason.clone()),
                    None => Door::Soon(None),
                }
            }
            (State::Stopped | State::Halting { then: Then::Stopped }, _) => Door::Removed,
            _ => Door::Soon(self.reason.clone()),
        }
    }

    /// When it will have been without a call for as long as its spec allows.
    pub fn idle_at(&self, now: Instant) -> Option<Instant> {
        let (State::Ready { .. }, Some(instance)) = (self.machine.state, &self.instance) else { return None };
        let spec = &self.apply.spec;
        // One for each caller: most of them sleep most of the time.
        let of_caller = (spec.run_as == RunAs::Caller).then_some(CALLERS_IDLE_STOP_S);
        let allowed = std::time::Duration::from_secs(u64::from(spec.idle_stop_s.or(of_caller)?));
        Some(now + allowed.saturating_sub(instance.client.unused_for()))
    }

    /// It is prepared, and waits until it may open its secrets.
    pub fn is_held_back(&self) -> bool {
        self.machine.state == State::Failed
            && self.prepared.is_some()
            && self.reason.as_ref().is_some_and(|reason| reason.code.is_vault_wait())
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.machine.state, State::Ready { .. })
    }
}
