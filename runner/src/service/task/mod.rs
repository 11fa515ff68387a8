//! The owner of one service: the only writer of its state.
//!
//! ```text
//!   apply(n) ──► candidate n ──ready──► serving n      the one before it finishes its calls and is halted
//!                  │ failed
//!                  └► stays as a failed candidate, with its reason, until the next apply; serving stays as it is
//! ```
//!
//! Here: the table of generations (at most one serves, at most one is the candidate, others are leaving), commands,
//! publishing. Not here: what follows from an event (see [`super::state`]), slow work (see [`super::jobs`]).
//! Invariant: anything slow runs as a job and comes back as an outcome; this loop never waits for a server.

mod clock;
mod decisions;
mod outcomes;
mod wishes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ServiceKey;
use wire::report::{Lists, Phase, ServiceReport};
use wire::runner::Progress;

use self::decisions::Decisions;
use super::door::{Door, Doorbell};
use super::generation::Holding;
use super::jobs::{self, Outcome};
use super::state::{Effect, Event, State, Then};
use super::{ApplyError, Command, RemoveError, ServiceHandle};
use crate::audience::Audience;
use crate::instance::Manner;
use crate::logs::{LogRing, Stream};
use crate::mcp::lists::{Kinds, is_equal};
use crate::prepare::ProgressSink;
use crate::shop::Shop;
use crate::vault::Why;

/// Commands that may wait. More than a few means that the broker is repeating itself.
const COMMANDS: usize = 64;

/// Tells generations apart inside the task, also two holdings of one generation.
type Nonce = u64;

/// Phases that the workshop reports while it works.
type Steps = (mpsc::Sender<(Nonce, Phase)>, mpsc::Receiver<(Nonce, Phase)>);

pub struct ServiceTask {
    key: ServiceKey,
    shop: Arc<Shop>,
    commands: mpsc::Receiver<Command>,
    wake: Arc<Notify>,
    door: watch::Sender<Door>,
    report: watch::Sender<ServiceReport>,
    lists: watch::Sender<Option<Arc<Lists>>>,
    log: Arc<LogRing>,
    audience: Arc<Audience>,
    held: BTreeMap<Nonce, Holding>,
    serving: Option<Nonce>,
    candidate: Option<Nonce>,
    next_nonce: Nonce,
    jobs: JoinSet<(Nonce, Outcome)>,
    steps: Steps,
    ping_at: Instant,
    sample_at: Instant,
    egress: Decisions,
    vault: watch::Receiver<u64>,
    removal: Option<Removal>,
}

struct Removal {
    purge: bool,
    waiting: Vec<oneshot::Sender<Result<(), RemoveError>>>,
    is_certain: bool,
}

/// A service that is over, and who waits to hear it.
pub struct Departure {
    outcome: Result<(), RemoveError>,
    waiting: Vec<oneshot::Sender<Result<(), RemoveError>>>,
}

impl Departure {
    /// To be called when the service can not be found any more.
    pub fn announce(self) {
        for done in self.waiting {
            // The request may have been dropped meanwhile.
            let _ = done.send(self.outcome.clone());
        }
    }
}

impl ServiceTask {
    /// A task without a generation; it waits for the first command.
    pub fn new(key: ServiceKey, shop: Arc<Shop>) -> (ServiceHandle, Self) {
        let (send, commands) = mpsc::channel(COMMANDS);
        let wake = Arc::new(Notify::new());
        let (door, door_seen) = watch::channel(Door::Soon(None));
        let empty = ServiceReport {
            service: key.clone(),
            revision: 0,
            serving: None,
            candidate: None,
            egress: vec![],
        };
        let (report, report_seen) = watch::channel(empty);
        let (lists, lists_seen) = watch::channel(None);
        let (log, audience) = (Arc::new(LogRing::default()), Arc::new(Audience::default()));
        let handle = ServiceHandle {
            key: key.clone(),
            commands: send,
            bell: Doorbell::new(door_seen, wake.clone()),
            report: report_seen,
            lists: lists_seen,
            log: log.clone(),
            audience: audience.clone(),
        };
        let now = Instant::now();
        let task = Self {
            ping_at: now + shop.config.ping_every,
            sample_at: now,
            vault: shop.vault.changes(),
            key,
            shop,
            commands,
            wake,
            door,
            report,
            lists,
            log,
            audience,
            held: BTreeMap::new(),
            serving: None,
            candidate: None,
            next_nonce: 1,
            jobs: JoinSet::new(),
            steps: mpsc::channel(16),
            egress: Decisions::new(),
            removal: None,
        };
        (handle, task)
    }

    /// Runs until the service is removed and nothing of it is left.
    pub async fn run(mut self) -> Departure {
        loop {
            let due = self.next_due();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    // The table is gone, so the runner is ending.
                    None => self.begin_removal(false, None),
                },
                () = self.wake.notified() => if let Some(nonce) = self.serving { self.step(nonce, Event::Called) },
                Some(done) = self.jobs.join_next() => match done {
                    Ok((nonce, outcome)) => self.finished(nonce, outcome),
                    // A bug in a job is a bug in this task: the table sees it, and dropping us ends the processes.
                    Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                    Err(_) => {}
                },
                Some((nonce, phase)) = self.steps.1.recv() => if let Some(held) = self.held.get_mut(&nonce) {
                    held.step = phase;
                },
                () = self.egress.changed() => {}
                // The sender lives in the shop.
                Ok(()) = self.vault.changed() => self.vault_changed(),
                () = tokio::time::sleep_until(due.into()) => self.tick(),
            }
            self.publish();
            if self.removal.is_some() && self.held.is_empty() {
                return self.leave().await;
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Apply(apply, reply) => {
                let outcome = self.apply(*apply).map(|()| {
                    self.publish();
                    self.report.borrow().clone()
                });
                // The request may have been dropped meanwhile; the wish stands.
                let _ = reply.send(outcome);
            }
            Command::Remove { purge, done } => self.begin_removal(purge, Some(done)),
        }
    }

    fn begin_removal(&mut self, purge: bool, done: Option<oneshot::Sender<Result<(), RemoveError>>>) {
        let fresh = Removal { purge: false, waiting: vec![], is_certain: true };
        let removal = self.removal.get_or_insert(fresh);
        removal.purge |= purge;
        removal.waiting.extend(done);
        let all: Vec<Nonce> = self.held.keys().copied().collect();
        for nonce in all {
            self.step(nonce, Event::Stop);
        }
    }

    /// The end: nothing runs any more. Whoever asked for it is told by [`Departure::announce`].
    async fn leave(mut self) -> Departure {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                // The request may have been dropped meanwhile.
                Command::Apply(_, reply) => drop(reply.send(Err(ApplyError::Removing))),
                Command::Remove { purge, done } => self.begin_removal(purge, Some(done)),
            }
        }
        self.door.send_replace(Door::Removed);
        let fresh = Removal { purge: false, waiting: vec![], is_certain: true };
        let Removal { purge, waiting, is_certain } = self.removal.take().unwrap_or(fresh);
        let mut data = Ok(());
        if purge {
            let (shop, key) = (self.shop.clone(), self.key.clone());
            let removed = tokio::task::spawn_blocking(move || {
                shop.data_of(&key)?.iter().try_for_each(|path| crate::prepare::remove_tree(path))
            });
            let removed = removed.await;
            data = removed.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        }
        let outcome = match data {
            Err(e) => Err(RemoveError::Data(e.to_string())),
            Ok(()) if !is_certain => Err(RemoveError::Alive),
            Ok(()) => Ok(()),
        };
        Departure { outcome, waiting }
    }

    fn step(&mut self, nonce: Nonce, event: Event) {
        let Some(held) = self.held.get_mut(&nonce) else { return };
        let before = held.machine.state;
        let effect = held.machine.step(event, Instant::now());
        if effect == Some(Effect::Start) {
            held.why = why(before, held.why);
        }
        if let Some(effect) = effect {
            self.perform(nonce, effect);
        }
        let is_leaving = self.serving != Some(nonce) && self.candidate != Some(nonce);
        let is_over = self.held.get(&nonce).is_some_and(|held| held.machine.state == State::Stopped);
        if is_over && (is_leaving || self.removal.is_some()) {
            self.held.remove(&nonce);
        }
    }

    fn perform(&mut self, nonce: Nonce, effect: Effect) {
        let progress = self.progress(nonce);
        let Some(held) = self.held.get_mut(&nonce) else { return };
        match effect {
            Effect::Prepare => {
                held.step = Phase::Fetching;
                held.cancel = CancellationToken::new();
                let job = jobs::prepare(
                    self.shop.clone(),
                    self.key.clone(),
                    held.apply.clone(),
                    progress,
                    held.cancel.clone(),
                );
                self.jobs.spawn(async move { (nonce, job.await) });
            }
            Effect::Start => {
                held.cancel = CancellationToken::new();
                held.is_outdated = false;
                let Some(prepared) = held.prepared.clone() else { return };
                let steps = self.steps.0.clone();
                let job = jobs::start(jobs::Start {
                    shop: self.shop.clone(),
                    key: self.key.clone(),
                    apply: held.apply.clone(),
                    prepared,
                    why: held.why,
                    opened: Box::new(move || {
                        // A full queue leaves the phase behind until it is ready.
                        let _ = steps.try_send((nonce, Phase::Starting));
                    }),
                    log: self.log.clone(),
                    ledger: self.egress.ledger.clone(),
                    cancel: held.cancel.clone(),
                });
                self.jobs.spawn(async move { (nonce, job.await) });
            }
            Effect::Abandon => held.cancel.cancel(),
            Effect::Halt | Effect::Kill => {
                let manner = if effect == Effect::Halt { Manner::Graceful } else { Manner::Kill };
                let Some(instance) = held.instance.clone() else { return };
                self.jobs.spawn(async move { (nonce, jobs::halt(instance, manner).await) });
            }
        }
    }

    /// Where the workshop's output goes: the log, the events, and the phase.
    fn progress(&self, nonce: Nonce) -> ProgressSink {
        let Some(held) = self.held.get(&nonce) else { return Arc::new(|_, _| {}) };
        let (shop, log, service) = (self.shop.clone(), self.log.clone(), self.key.clone());
        let (generation, steps) = (held.apply.generation, self.steps.0.clone());
        let last = std::sync::Mutex::new(Phase::Fetching);
        Arc::new(move |step, line| {
            log.push(Stream::Install, line);
            let (service, line) = (service.clone(), crate::logs::clean(line));
            shop.events.progress(Progress { service, generation, step: step.to_owned(), line });
            let phase = if step == "fetch" { Phase::Fetching } else { Phase::Installing };
            let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A full queue leaves the phase one line behind.
            if *last != phase && steps.try_send((nonce, phase)).is_ok() {
                *last = phase;
            }
        })
    }

    fn serving(&self) -> Option<&Holding> {
        self.serving.and_then(|nonce| self.held.get(&nonce))
    }

    /// `said`: what the server says has changed.
    fn publish_lists(&mut self, nonce: Nonce, said: Kinds) {
        if self.serving != Some(nonce) {
            return;
        }
        let Some(lists) = self.held.get(&nonce).and_then(|held| held.lists.clone()) else { return };
        let told = self.lists.borrow().clone();
        let kinds = said.and(Kinds::that_differ(told.as_deref(), &lists));
        if !told.is_some_and(|told| is_equal(&told, &lists)) {
            // In this order, as for reports.
            self.lists.send_replace(Some(lists));
            self.shop.events.lists(&self.key);
        }
        // Last: who hears of it reads them anew.
        self.audience.list_changed(kinds);
    }

    /// Tells whoever watches; nothing when nothing changed.
    fn publish(&mut self) {
        let of = |nonce: Option<Nonce>| nonce.and_then(|n| self.held.get(&n));
        let (serving, candidate) = (of(self.serving), of(self.candidate));
        let next = ServiceReport {
            service: self.key.clone(),
            revision: self.report.borrow().revision,
            serving: serving.map(Holding::report),
            candidate: candidate.map(Holding::report),
            egress: self.egress.told.clone(),
        };
        let door = serving.or(candidate).map_or(Door::Soon(None), Holding::door);
        if !is_same(&self.door.borrow(), &door) {
            self.door.send_replace(door);
        }
        if next == *self.report.borrow() {
            return;
        }
        let next = ServiceReport { revision: next.revision + 1, ..next };
        // First what a new reader looks at, then the event: the other way round, a reader that comes in between
        // would see neither.
        self.report.send_replace(next.clone());
        self.shop.events.report(&next);
    }
}

/// A door that leads where it led before needs no new waiters' attention.
fn is_same(before: &Door, after: &Door) -> bool {
    match (before, after) {
        (Door::Open(a, to), Door::Open(b, too)) => a.is(b) && to == too,
        (Door::Asleep(to), Door::Asleep(too)) => to == too,
        (Door::Removed, Door::Removed) => true,
        (Door::Soon(a), Door::Soon(b)) => match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        },
        (Door::Shut(a), Door::Shut(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// Why a start follows from this state; what was tried before is tried again for the same reason.
fn why(before: State, last: Why) -> Why {
    match before {
        State::Idle | State::Halting { then: Then::Wake } => Why::Wake,
        State::Backoff { .. } | State::CrashLoop { .. } => Why::Restart,
        State::Failed => last,
        _ => Why::Start,
    }
}

/// The same for one service each time, different between services.
fn seed(key: &ServiceKey) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
}
