//! The stream of the runner's events: opened, read, lost, opened again.
//!
//! Here: one task that never gives up and never waits long. Not here: what an event means (`super`).

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use wire::runner::Event;

use crate::runner::{Runner, RunnerError};

/// The runner beats every 10 s; three missed beats are a dead link.
const SILENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A runner that was started together with the broker is not late yet.
const GRACE: Duration = Duration::from_secs(3);

pub(super) enum LinkNews {
    /// A new stream begins: everything that is known may be out of date.
    Opened,
    Event(Box<Event>),
    Lost,
}

/// Runs until the receiver is gone.
pub(super) async fn follow(runner: Runner, news: mpsc::Sender<LinkNews>) {
    let mut pause = FIRST_PAUSE;
    let mut was_told = false;
    let mut alone_since = Instant::now();
    loop {
        match read(&runner, &news).await {
            Ended::NobodyListens => return,
            Ended::WasOpen(error) => {
                pause = FIRST_PAUSE;
                was_told = false;
                alone_since = Instant::now();
                tracing::warn!("the runner's event stream ended: {error}; connecting again");
                if news.send(LinkNews::Lost).await.is_err() {
                    return;
                }
            }
            Ended::NeverOpened(error) => {
                if !was_told && alone_since.elapsed() >= GRACE {
                    tracing::warn!("no runner yet: {error}; trying until there is one");
                    was_told = true;
                }
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = news.closed() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Ended {
    NobodyListens,
    NeverOpened(RunnerError),
    WasOpen(RunnerError),
}

async fn read(runner: &Runner, news: &mpsc::Sender<LinkNews>) -> Ended {
    let mut lines = match runner.events().await {
        Ok(lines) => lines,
        Err(error) => return Ended::NeverOpened(error),
    };
    if news.send(LinkNews::Opened).await.is_err() {
        return Ended::NobodyListens;
    }
    loop {
        let next = tokio::select! {
            next = timeout(SILENCE, lines.next()) => next.unwrap_or(Err(RunnerError::Lost)),
            () = news.closed() => return Ended::NobodyListens,
        };
        let line = match next {
            Ok(Some(line)) => line,
            Ok(None) => return Ended::WasOpen(RunnerError::Lost),
            Err(error) => return Ended::WasOpen(error),
        };
        match serde_json::from_slice::<Event>(&line) {
            // A beat only proves that the link lives.
            Ok(event) if event.beat => {}
            Ok(event) => {
                if news.send(LinkNews::Event(Box::new(event))).await.is_err() {
                    return Ended::NobodyListens;
                }
            }
            Err(error) => return Ended::WasOpen(RunnerError::Nonsense(error.to_string())),
        }
    }
}
