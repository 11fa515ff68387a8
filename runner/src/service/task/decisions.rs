//! What became of a service's connections, as its report tells it.
//!
//! Here: the ledger of one service in one life of the runner, and when it is looked at. Not here: deciding (crate
//! `egress`).
//! Invariant: a decision of a new kind is told within [`SETTLE`]; growing counts only with the next sample.

use std::sync::Arc;
use std::time::{Duration, Instant};

use egress::Ledger;
use tokio::sync::watch;
use wire::report::EgressDecision;

/// Several new ones in a row are told together.
const SETTLE: Duration = Duration::from_millis(200);

pub struct Decisions {
    pub ledger: Arc<Ledger>,
    seen: watch::Receiver<u64>,
    pub told: Vec<EgressDecision>,
    due: Option<Instant>,
}

impl Decisions {
    pub fn new() -> Self {
        let ledger = Arc::new(Ledger::default());
        Self { seen: ledger.changes(), ledger, told: Vec::new(), due: None }
    }

    /// When there is something new to be told.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Waits for a decision of a new kind. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.due.is_some() || self.seen.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.due = Some(Instant::now() + SETTLE);
    }

    pub fn tick(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            self.look();
        }
    }

    pub fn look(&mut self) {
        self.due = None;
        self.told = self.ledger.decisions();
    }
}
