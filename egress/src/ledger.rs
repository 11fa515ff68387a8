//! What became of one service's connections, and what they used up.
//!
//! Here: decisions, bytes, the number of connections. Not here: deciding.
//! Invariants: at most [`MAX_DECISIONS`] decisions, whatever a service asks for; a service that asks for new names all the
//! time wakes a reader of [`Ledger::changes`] four times a second and no more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use wire::report::{EgressDecision, Verdict};

const MAX_DECISIONS: usize = 100;
/// Least time between two ticks of [`Ledger::changes`].
const CALM: Duration = Duration::from_millis(250);
/// A resolver asks again, and for each of its search domains: within this time it is one question.
const SAME_LOOKUP_MS: i64 = 5_000;
/// The port of a name that was refused before a port was known.
const LOOKUP_PORT: u16 = 443;
const HOUR: Duration = Duration::from_secs(3600);
/// The hour that runs, and 24 whole ones before it.
const HOURS: usize = 25;

/// What became of one service's connections: at most 100 (host, port, verdict); the oldest refusals leave first,
/// then the oldest of the others. One for each
/// service, kept over its generations: the caps on connections and bytes are counted here, too.
#[derive(Debug)]
pub struct Ledger {
    book: Mutex<Book>,
    spent: Mutex<Spent>,
    connections: AtomicUsize,
    started: Instant,
    ticks: watch::Sender<u64>,
    /// A tick was held back.
    pending: Notify,
}

#[derive(Debug, Default)]
struct Book {
    /// By the time of last use.
    entries: Vec<Entry>,
    ticked: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    host: String,
    port: u16,
    verdict: Verdict,
    count: u64,
    last_ms: i64,
    traffic: Arc<Traffic>,
}

/// Bytes of the connections of one decision.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Requests that got a secret.
    pub(crate) injected: AtomicU64,
}

/// A connection that counts against the cap until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Ledger>);

impl Default for Ledger {
    fn default() -> Self {
        Self {
            book: Mutex::default(),
            spent: Mutex::default(),
            connections: AtomicUsize::new(0),
            started: Instant::now(),
            ticks: watch::Sender::new(0),
            pending: Notify::new(),
        }
    }
}

impl Ledger {
    /// Newest last.
    pub fn decisions(&self) -> Vec<EgressDecision> {
        let decision = |entry: &Entry| EgressDecision {
            host: entry.host.clone(),
            port: entry.port,
            verdict: entry.verdict,
            count: entry.count,
            last_ms: entry.last_ms,
            sent_bytes: entry.traffic.sent.load(Ordering::Relaxed),
            received_bytes: entry.traffic.received.load(Ordering::Relaxed),
            injected: entry.traffic.injected.load(Ordering::Relaxed),
        };
        self.book().entries.iter().map(decision).collect()
    }

    /// Changes when a decision of a new kind was added (not when a count grew).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }

    pub(crate) fn record(&self, host: &str, port: u16, verdict: Verdict) -> Arc<Traffic> {
        self.enter((host, port, verdict), now_ms(), Instant::now(), 0)
    }

    /// A name that got no address. No port is known then: it is booked as 443, the port of a rule that names none. Whoever
    /// was refused an address has nothing to connect to, so the same wish is not booked again as a connection.
    pub(crate) fn record_lookup(&self, host: &str) {
        self.enter((host, LOOKUP_PORT, Verdict::NotListed), now_ms(), Instant::now(), SAME_LOOKUP_MS);
    }

    /// `same_ms`: within this time after the last one it is the same event, and not counted.
    fn enter(
        &self,
        (host, port, verdict): (&str, u16, Verdict),
        now_ms: i64,
        now: Instant,
        same_ms: i64,
    ) -> Arc<Traffic> {
        let mut book = self.book();
        let is_it = |e: &Entry| e.port == port && e.verdict == verdict && e.host == host;
        if let Some(at) = book.entries.iter().position(is_it) {
            let mut entry = book.entries.remove(at);
            if now_ms - entry.last_ms >= same_ms {
                entry.count += 1;
            }
            entry.last_ms = now_ms;
            let traffic = entry.traffic.clone();
            book.entries.push(entry);
            return traffic;
        }
        if book.entries.len() >= MAX_DECISIONS {
            // Where it has been is worth more than what it was refused, of which it can make as much as it likes.
            let refused = book.entries.iter().position(|e| !e.verdict.is_allowed()).unwrap_or(0);
            book.entries.remove(refused);
        }
        let traffic = Arc::new(Traffic::default());
        book.entries.push(Entry {
            host: host.to_owned(),
            port,
            verdict,
            count: 1,
            last_ms: now_ms,
            traffic: traffic.clone(),
        });
        if book.ticked.is_some_and(|ticked| now.saturating_duration_since(ticked) < CALM) {
            self.pending.notify_one();
        } else {
            self.tick(&mut book, now);
        }
        traffic
    }

    fn tick(&self, book: &mut Book, now: Instant) {
        book.ticked = Some(now);
        self.ticks.send_modify(|ticks| *ticks += 1);
    }

    /// Makes the ticks that were held back. Runs as long as a service is served.
    pub(crate) async fn settle(&self) {
        loop {
            self.pending.notified().await;
            tokio::time::sleep(CALM).await;
            self.tick(&mut self.book(), Instant::now());
        }
    }

    /// `None`: there are `most` connections already.
    pub(crate) fn take_place(self: &Arc<Self>, most: usize) -> Option<Place> {
        let more = |n: usize| (n < most).then_some(n + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(self.clone()))
    }

    /// Counts bytes, and says how many were spent within 24 hours.
    pub(crate) fn spend(&self, bytes: u64) -> u64 {
        let hour = self.started.elapsed().as_secs() / HOUR.as_secs();
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).add(bytes, hour)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes by the hour.
#[derive(Debug, Default)]
struct Spent {
    hours: [u64; HOURS],
    /// The hour that runs.
    hour: u64,
    total: u64,
}

impl Spent {
    fn add(&mut self, bytes: u64, hour: u64) -> u64 {
        let passed = hour.saturating_sub(self.hour).min(HOURS as u64);
        for past in 1..=passed {
            let slot = &mut self.hours[((self.hour + past) % HOURS as u64) as usize];
            self.total -= std::mem::take(slot);
        }
        // After a long silence the slots are all empty, whatever their numbers.
        self.hour = self.hour.max(hour);
        self.hours[(self.hour % HOURS as u64) as usize] += bytes;
        self.total += bytes;
        self.total
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_decision_is_counted_and_moves_to_the_end() {
        let ledger = Ledger::default();
        let traffic = ledger.record("a.com", 443, Verdict::Allowed);
        ledger.record("b.com", 443, Verdict::NotListed);
        ledger.record("a.com", 443, Verdict::Allowed);
        traffic.sent.fetch_add(5, Ordering::Relaxed);
        let decisions = ledger.decisions();
        assert_eq!(decisions.len(), 2);
        assert_eq!((decisions[0].host.as_str(), decisions[0].count), ("b.com", 1));
        assert_eq!((decisions[1].host.as_str(), decisions[1].count), ("a.com", 2));
        assert_eq!((decisions[1].sent_bytes, decisions[1].received_bytes), (5, 0));
    }

    #[test]
    fn of_more_than_a_hundred_the_newest_stay() {
        let ledger = Ledger::default();
        for n in 0..250 {
            ledger.record(&format!("{n}.com"), 443, Verdict::NotListed);
        }
        let decisions = ledger.decisions();
        assert_eq!(decisions.len(), MAX_DECISIONS);
        assert_eq!((decisions[0].host.as_str(), decisions[99].host.as_str()), ("150.com", "249.com"));
    }

    #[test]
    fn a_lookup_that_is_repeated_at_once_counts_once() {
        let ledger = Ledger::default();
        let now = Instant::now();
        let kind = ("a.com", 443, Verdict::NotListed);
        for at_ms in [0, 10, 4_000, 20_000, 20_001] {
            ledger.enter(kind, at_ms, now, SAME_LOOKUP_MS);
        }
        assert_eq!(ledger.decisions()[0].count, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_new_names_ticks_twice() {
        let ledger = Arc::new(Ledger::default());
        let mut changes = ledger.changes();
        for n in 0..50 {
            ledger.record(&format!("{n}.com"), 443, Verdict::NotListed);
        }
        assert_eq!(*changes.borrow_and_update(), 1);
        let settling = ledger.settle();
        tokio::select! {
            () = settling => unreachable!("it never ends"),
            seen = changes.wait_for(|ticks| *ticks == 2) => drop(seen.expect("the ledger is there")),
        }
        ledger.record("0.com", 443, Verdict::NotListed);
        assert!(!changes.has_changed().expect("the ledger is there"), "a count that grew is no change");
    }

    #[test]
    fn places_are_given_back() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.take_place(2).expect("a place");
        let _second = ledger.take_place(2).expect("a place");
        assert!(ledger.take_place(2).is_none());
        drop(first);
        assert!(ledger.take_place(2).is_some());
    }

    #[test]
    fn bytes_are_forgotten_after_a_day() {
        let mut spent = Spent::default();
        assert_eq!(spent.add(10, 0), 10);
        assert_eq!(spent.add(5, 23), 15);
        assert_eq!(spent.add(0, 24), 15);
        assert_eq!(spent.add(0, 25), 5);
        assert_eq!(spent.add(1, 1_000), 1);
        assert_eq!(spent.add(1, 999), 2, "a clock that goes back forgets nothing");
    }
}
