//! Making what is meet what is wanted.
//!
//! One owner task holds everything: it reads what people want from the store when it is woken, hears from the runner
//! what is, and does what [`plan`] says, at most one action for each service at a time. Nothing is decided from an
//! event alone; events only say when to look again. So a lost request, a restarted broker and a restarted runner are
//! one case.
//!
//! ```text
//!   store ──wake──▶ desired ─┐                       ┌─▶ apply, stop, purge at the runner (jobs)
//!                            ├─▶ judge ─▶ plan ──────┤
//!   runner ──events─▶ observed ┘    │                └─▶ waiters get their verdicts
//!                                   └─▶ store: proven, failed, lists
//! ```
//!
//! Here: the loop and the order of things. Not here: what a report means (`judge`), requests (`work`), the stream
//! (`link`).

mod announce;
mod desired;
mod finish;
mod judge;
mod known;
mod link;
mod plan;
mod rounds;
mod verdict;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use wire::ServiceKey;
use wire::report::Lists;
use wire::runner::{Health, Progress};

use self::desired::Wishes;
use self::finish::{Done, Retry};
use self::known::Known;
use self::link::LinkNews;
use self::plan::{Told, plan};
use self::rounds::Rounds;
use self::verdict::Sight;
pub use self::verdict::{Goal, Verdict};
use crate::app::Broker;
use crate::audit;
use crate::clock;
use crate::describe;
use crate::store::StoreError;

/// The store is away: look again after this.
const STORE_RETRY: Duration = Duration::from_secs(1);
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// An upload that no generation names is removed after this.
const UPLOADS_KEPT_MS: i64 = 24 * 3600 * 1000;
/// Reports are written to the store together, at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const EVENTS: usize = 1024;
const WATCHES: usize = 256;

/// Somebody waits for a goal.
pub struct Watch {
    pub key: ServiceKey,
    pub goal: Goal,
    /// Lines that find no room are left out.
    pub progress: mpsc::Sender<Progress>,
    pub verdict: oneshot::Sender<Verdict>,
}

/// How the rest of the broker talks to the reconciler.
pub struct Handle {
    wake: Arc<Notify>,
    watches: mpsc::Sender<Watch>,
}

/// The other end of a [`Handle`].
pub struct Inbox {
    wake: Arc<Notify>,
    watches: mpsc::Receiver<Watch>,
}

pub fn channel() -> (Handle, Inbox) {
    let wake = Arc::new(Notify::new());
    let (sender, watches) = mpsc::channel(WATCHES);
    (Handle { wake: Arc::clone(&wake), watches: sender }, Inbox { wake, watches })
}

impl Handle {
    /// [`Self::wake`] for who can not hold the handle.
    pub(crate) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Something was written: look again. Never waits; many wakes are one.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub async fn watch(&self, watch: Watch) {
        // A reconciler that has ended drops the watch, which answers whoever waits.
        let _ = self.watches.send(watch).await;
    }
}

/// Runs until `shutdown`. The runner and its services are left as they are.
pub async fn run(broker: Arc<Broker>, inbox: Inbox, shutdown: CancellationToken) {
    let (sender, news) = mpsc::channel(EVENTS);
    let link = link::follow(broker.runner.clone(), sender);
    let mut reconciler = Reconciler::new(broker);
    reconciler.recall().await;
    tokio::select! {
        () = reconciler.run(inbox, news) => {}
        () = link => {}
        () = shutdown.cancelled() => {}
    }
    reconciler.save().await;
}

struct Reconciler {
    broker: Arc<Broker>,
    wishes: Wishes,
    /// Of the vault, for the wishes.
    known: Known,
    /// Without it, no wishes would look like a wish for nothing.
    is_read: bool,
    /// The store failed when it was read last; read it again then.
    read_again: Option<Instant>,
    is_synced: bool,
    /// Of the stream that is being read.
    hello: Option<Health>,
    named: BTreeSet<ServiceKey>,
    /// What the runner listed and nobody has judged yet.
    lists: HashMap<ServiceKey, Lists>,
    watches: Vec<Watch>,
    jobs: JoinSet<Done>,
    /// Services with an action on its way.
    busy: HashSet<ServiceKey>,
    retries: HashMap<ServiceKey, Retry>,
    unsaved: HashSet<ServiceKey>,
    /// With what the runner was last given each service.
    applied: BTreeMap<ServiceKey, Told>,
    /// Services of which the runner does not have yet what it is to have.
    behind: HashSet<ServiceKey>,
    /// Of the runner's present life.
    boot: String,
    unwritten: audit::Unwritten,
    wants_tidying: bool,
    /// Of the runner's vault.
    rounds: Rounds,
}

impl Reconciler {
    fn new(broker: Arc<Broker>) -> Self {
        Self {
            broker,
            wishes: Wishes::new(),
            known: Known::default(),
            is_read: false,
            read_again: None,
            is_synced: false,
            hello: None,
            named: BTreeSet::new(),
            lists: HashMap::new(),
            watches: Vec::new(),
            jobs: JoinSet::new(),
            busy: HashSet::new(),
            retries: HashMap::new(),
            unsaved: HashSet::new(),
            applied: BTreeMap::new(),
            behind: HashSet::new(),
            boot: String::new(),
            unwritten: audit::Unwritten::new(),
            wants_tidying: false,
            rounds: Rounds::new(0),
        }
    }

    async fn run(&mut self, mut inbox: Inbox, mut news: mpsc::Receiver<LinkNews>) {
        let mut tidy = interval(TIDY_EVERY);
        let mut save = interval(SAVE_EVERY);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.refresh().await;
        loop {
            let next = self.next_retry();
            tokio::select! {
                () = inbox.wake.notified() => self.refresh().await,
                Some(watch) = inbox.watches.recv() => {
                    self.watches.push(watch);
                    self.refresh().await;
                }
                Some(event) = news.recv() => {
                    self.hear(event).await;
                    // A burst (the sync of many services) is heard before anything is decided.
                    while let Ok(event) = news.try_recv() {
                        self.hear(event).await;
                    }
                }
                Some(done) = self.jobs.join_next() => self.finish(done).await,
                () = sleep_until(next.unwrap_or_else(far_away)), if next.is_some() => self.retry().await,
                _ = tidy.tick() => {
                    self.wants_tidying = true;
                    // Nobody tells when a caller has not called for a day.
                    self.refresh().await;
                }
                _ = save.tick() => self.save().await,
            }
            self.settle().await;
        }
    }

    /// Brings everything to rest: judges what was reported, does what is to be done, answers who waits.
    async fn settle(&mut self) {
        if !self.is_read {
            return;
        }
        if self.is_synced {
            self.go_round();
            self.judge_all().await;
            self.act();
        }
        // What is remembered is older than what the waiters asked for: it would say that somebody else replaced it.
        if self.read_again.is_none() {
            self.answer();
        }
    }

    async fn refresh(&mut self) {
        match desired::load(&self.broker, &self.wishes, &mut self.known).await {
            Ok(wishes) => {
                self.wishes = wishes;
                self.is_read = true;
                self.read_again = None;
            }
            Err(error) => self.store_failed(&error),
        }
    }

    fn store_failed(&mut self, error: &StoreError) {
        tracing::warn!("the reconciler can not use the store: {error}; trying again");
        self.read_again = Some(Instant::now() + STORE_RETRY);
    }

    fn next_retry(&self) -> Option<Instant> {
        self.retries
            .values()
            .filter_map(|retry| retry.at)
            .chain(self.read_again)
            .chain(self.rounds.next)
            .min()
    }

    /// What is due is begun by the next `act`, if it is still wanted.
    async fn retry(&mut self) {
        let now = Instant::now();
        for retry in self.retries.values_mut().filter(|retry| retry.at.is_some_and(|at| at <= now)) {
            retry.at = None;
        }
        self.rounds.pass(now);
        if self.read_again.is_some_and(|at| at <= now) {
            self.refresh().await;
        }
    }

    async fn hear(&mut self, news: LinkNews) {
        match news {
            LinkNews::Opened => {
                self.is_synced = false;
                self.hello = None;
                self.named.clear();
                self.lists.clear();
                self.rounds.renew();
            }
            LinkNews::Lost => {
                self.is_synced = false;
                self.broker.observed.lost();
            }
            LinkNews::Event(event) => self.event(*event).await,
        }
    }

    async fn event(&mut self, event: wire::runner::Event) {
        let wire::runner::Event { hello, report, lists, synced, progress, removed, beat: _ } = event;
        if let Some(health) = hello {
            self.boot.clone_from(&health.boot);
            self.hello = Some(health);
        }
        if let Some(report) = report {
            self.named.insert(report.service.clone());
            self.report(report).await;
        }
        // Lists are those of the plain name, for everybody.
        if let Some(listed) = lists.filter(|listed| listed.service.name.is_plain()) {
            self.lists.insert(listed.service, describe::named_only(listed.lists));
        }
        if let Some(progress) = progress {
            self.progress(&progress);
        }
        if let Some(key) = removed {
            self.lists.remove(&key);
            self.broker.observed.forget(&key);
        }
        if synced && let Some(health) = self.hello.take() {
            tracing::info!("runner connected with {} services", self.named.len());
            self.is_synced = true;
            self.retries.clear();
            self.known = Known::default();
            self.broker.observed.synced(&self.named, health);
            self.refresh().await;
        }
    }

    fn progress(&self, progress: &Progress) {
        let waits =
            |watch: &&Watch| watch.key == progress.service && watch.goal == Goal::Serve(progress.generation);
        for watch in self.watches.iter().filter(waits) {
            let _ = watch.progress.try_send(progress.clone());
        }
    }

    /// Begins every action that is due and whose service has none on its way.
    fn act(&mut self) {
        if !self.rounds.is_told {
            return;
        }
        let wishes: BTreeMap<_, _> =
            self.wishes.iter().map(|(key, desired)| (key.clone(), desired.wish())).collect();
        let actions = plan(&wishes, &self.broker.observed.all(), &self.applied);
        self.behind = actions.iter().map(|action| action.key().clone()).collect();
        for action in actions {
            let waits = self.retries.get(action.key()).is_some_and(|retry| retry.at.is_some());
            if waits || !self.busy.insert(action.key().clone()) {
                continue;
            }
            let broker = Arc::clone(&self.broker);
            self.jobs.spawn(async move {
                let result = work::carry_out(&broker, &action).await;
                Done::Action(action, result)
            });
        }
        if std::mem::take(&mut self.wants_tidying) {
            let broker = Arc::clone(&self.broker);
            let before = clock::now_ms() - UPLOADS_KEPT_MS;
            self.jobs.spawn(async move { Done::Tidied(work::tidy(&broker, before).await) });
        }
    }

    /// Tells everyone whose goal is reached, or can not be reached any more.
    fn answer(&mut self) {
        for watch in std::mem::take(&mut self.watches) {
            let report = self.broker.observed.get(&watch.key);
            let desired = self.wishes.get(&watch.key);
            let sight = self.sight(&watch.key);
            match verdict::verdict(watch.goal, desired, report.as_deref(), sight) {
                Some(verdict) => drop(watch.verdict.send(verdict)),
                // Whoever has gone does not wait any more.
                None if watch.verdict.is_closed() => {}
                None => self.watches.push(watch),
            }
        }
    }
}

impl Reconciler {
    fn sight(&self, key: &ServiceKey) -> Sight {
        if !self.is_synced {
            Sight::Away
        } else if !self.rounds.is_told || self.busy.contains(key) || self.behind.contains(key) {
            Sight::Busy
        } else {
            Sight::Settled
        }
    }
}

#[cfg(test)]
mod tests;

fn far_away() -> Instant {
    Instant::now() + TIDY_EVERY
}
