//! How fast a server's output is taken: by a bucket that refills.
//!
//! Here: [`Bucket`]. Not here: what counts against it (whoever reads a pipe).
//! Invariant: nothing is dropped. Who is in debt stops reading, so the server's pipe fills and the server waits.

use tokio::time::{Duration, Instant};

/// So that a server that is held can still be heard in time to answer a ping.
const LONGEST_HOLD: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

/// Lines that a server writes to stderr.
pub const LINES: Rate = Rate { per_second: 200.0, burst: 2000.0 };
/// What it writes to stdout besides answers: notifications, requests of its own; [`LINE_WEIGHT`] for one that is logged.
pub const ASIDES: Rate = Rate { per_second: 2000.0, burst: 20_000.0 };
pub const LINE_WEIGHT: f64 = 10.0;
/// Bytes on stdout.
pub const BYTES: Rate = Rate { per_second: (64_u32 << 20) as f64, burst: (128_u32 << 20) as f64 };

#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Below zero: in debt.
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(rate: Rate) -> Self {
        Self { rate, level: rate.burst, at: Instant::now() }
    }

    /// Takes what has been read already; the debt that may come of it is bounded.
    pub fn take(&mut self, n: f64) {
        let now = Instant::now();
        let grown = now.duration_since(self.at).as_secs_f64() * self.rate.per_second;
        self.at = now;
        let deepest = -self.rate.per_second * LONGEST_HOLD.as_secs_f64();
        self.level = ((self.level + grown).min(self.rate.burst) - n).max(deepest);
    }

    /// Until when nothing may be read; `None`: read on.
    pub fn held_until(&self) -> Option<Instant> {
        let wait = Duration::from_secs_f64((-self.level / self.rate.per_second).max(0.0));
        (!wait.is_zero()).then(|| self.at + wait).filter(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_a_debt_is_waited_off_and_bounded() {
        let mut bucket = Bucket::new(Rate { per_second: 10.0, burst: 20.0 });
        bucket.take(20.0);
        assert_eq!(bucket.held_until(), None);
        bucket.take(5.0);
        let until = bucket.held_until().expect("in debt");
        assert_eq!(until - Instant::now(), Duration::from_millis(500));
        tokio::time::sleep_until(until).await;
        assert_eq!(bucket.held_until(), None);
        bucket.take(1000.0);
        assert_eq!(bucket.held_until().expect("in debt") - Instant::now(), LONGEST_HOLD);
        tokio::time::sleep(Duration::from_secs(60)).await;
        bucket.take(20.0);
        assert_eq!(bucket.held_until(), None, "full again, and not more than full");
        bucket.take(1.0);
        assert!(bucket.held_until().is_some());
    }
}
