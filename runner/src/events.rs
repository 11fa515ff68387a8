//! What happens in the runner, told to every broker that listens.
//!
//! Here: the broadcast and the count of its readers. Not here: what a new reader is told first (the API does that).
//! Invariant: a reader sees every change in order, or is cut off and starts again; it never misses one unknowingly.

use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use wire::ServiceKey;
use wire::report::ServiceReport;
use wire::runner::{Event, Progress};

/// Events that a reader may be behind before it is cut off.
const QUEUE: usize = 4096;

/// What waits for a reader. Small, since thousands may wait.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The event's own line.
    Line(Bytes),
    /// This service has new lists. They are megabytes, so a reader takes the current ones when it comes to this.
    Lists(ServiceKey),
}

pub struct Events {
    notices: broadcast::Sender<Notice>,
    readers: watch::Sender<usize>,
}

/// One reader's place; counted until it is dropped.
pub struct Reader {
    pub notices: broadcast::Receiver<Notice>,
    readers: watch::Sender<usize>,
}

impl Default for Events {
    fn default() -> Self {
        Self { notices: broadcast::Sender::new(QUEUE), readers: watch::Sender::new(0) }
    }
}

impl Events {
    pub fn report(&self, report: &ServiceReport) {
        self.send(&Event { report: Some(report.clone()), ..Event::default() });
    }

    /// To be called when the new lists can be found.
    pub fn lists(&self, service: &ServiceKey) {
        // A reader that left in this moment is no error; nor is it below.
        let _ = self.notices.send(Notice::Lists(service.clone()));
    }

    pub fn progress(&self, progress: Progress) {
        self.send(&Event { progress: Some(progress), ..Event::default() });
    }

    pub fn removed(&self, service: &ServiceKey) {
        self.send(&Event { removed: Some(service.clone()), ..Event::default() });
    }

    pub fn read(&self) -> Reader {
        self.readers.send_modify(|n| *n += 1);
        Reader { notices: self.notices.subscribe(), readers: self.readers.clone() }
    }

    /// How many readers there are.
    pub fn readers(&self) -> watch::Receiver<usize> {
        self.readers.subscribe()
    }

    fn send(&self, event: &Event) {
        if self.notices.receiver_count() > 0 {
            let _ = self.notices.send(Notice::Line(line(event)));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.send_modify(|n| *n -= 1);
    }
}

/// One JSON line.
pub fn line<T: serde::Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("wire types are plain JSON");
    text.push(b'\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_counted_and_a_slow_one_is_told() {
        let events = Events::default();
        let count = events.readers();
        let mut slow = events.read();
        let key = serde_json::from_value(serde_json::json!({"mesh": "a".repeat(32), "name": "x"}));
        let key: ServiceKey = key.expect("a key");
        for _ in 0..=QUEUE {
            events.removed(&key);
        }
        assert!(matches!(slow.notices.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
        assert_eq!(*count.borrow(), 1);
        drop(slow);
        assert_eq!(*count.borrow(), 0);
    }
}
