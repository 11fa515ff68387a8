//! What happens in the runner, told to every broker that listens.
//!
//! Here: the broadcast and the count of its readers. Not here: what a new reader is told first (the API does that).
//! Invariant: a reader sees every change in order, or is cut off and starts again; it never misses one unknowingly.

use bytes::Bytes;
use tokio::sync::{broadcast, watch};
use wire::ServiceKey;
use wire::report::{Lists, ServiceReport};
use wire::runner::{Event, Progress, ServiceLists};

/// Events that a reader may be behind before it is cut off.
const QUEUE: usize = 4096;

pub struct Events {
    lines: broadcast::Sender<Bytes>,
    readers: watch::Sender<usize>,
}

/// One reader's place; counted until it is dropped.
pub struct Reader {
    pub lines: broadcast::Receiver<Bytes>,
    readers: watch::Sender<usize>,
}

impl Default for Events {
    fn default() -> Self {
        Self { lines: broadcast::Sender::new(QUEUE), readers: watch::Sender::new(0) }
    }
}

impl Events {
    pub fn report(&self, report: &ServiceReport) {
        self.send(&Event { report: Some(report.clone()), ..Event::default() });
    }

    pub fn lists(&self, service: &ServiceKey, lists: &Lists) {
        let lists = ServiceLists { service: service.clone(), lists: lists.clone() };
        self.send(&Event { lists: Some(lists), ..Event::default() });
    }

    pub fn progress(&self, progress: Progress) {
        self.send(&Event { progress: Some(progress), ..Event::default() });
    }

    pub fn removed(&self, service: &ServiceKey) {
        self.send(&Event { removed: Some(service.clone()), ..Event::default() });
    }

    pub fn read(&self) -> Reader {
        self.readers.send_modify(|n| *n += 1);
        Reader { lines: self.lines.subscribe(), readers: self.readers.clone() }
    }

    /// How many readers there are.
    pub fn readers(&self) -> watch::Receiver<usize> {
        self.readers.subscribe()
    }

    fn send(&self, event: &Event) {
        if self.lines.receiver_count() > 0 {
            // A reader that left in this moment is no error.
            let _ = self.lines.send(line(event));
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
        assert!(matches!(slow.lines.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
        assert_eq!(*count.borrow(), 1);
        drop(slow);
        assert_eq!(*count.borrow(), 0);
    }
}
