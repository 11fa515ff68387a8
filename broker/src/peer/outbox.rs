//! What waits to be written to one connection: bounded in frames and in bytes.
//!
//! Here: [`Outbox`], cloned by everyone who has something to say to the connection, and [`Outgoing`], which its socket
//! loop drains. Invariant: nobody is ever blocked by a receiver that does not read. A push that finds no room ends the
//! connection; a reply waits for room, in the task of its own call, until its deadline.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::Utf8Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use wire::peer::{Body, ErrorBody, close};

use crate::error::FrameError;

/// How long a reply waits for a receiver that has stopped reading.
const ROOM: Duration = Duration::from_secs(30);

/// Why and how a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    pub code: u16,
    pub reason: &'static str,
}

impl Closing {
    pub const NORMAL: Self = Self { code: close::NORMAL, reason: "" };
    pub const IDLE: Self = Self { code: close::GOING_AWAY, reason: "idle" };
    pub const REPLACED: Self = Self { code: close::NORMAL, reason: "session_replaced" };
    pub const SHUTDOWN: Self = Self { code: close::GOING_AWAY, reason: "shutting down" };
    pub const BANNED: Self = Self { code: close::BANNED, reason: "banned" };
    pub const TOO_BIG: Self = Self { code: close::TOO_BIG, reason: "frame too big" };
    pub const HELLO_TIMEOUT: Self = Self { code: close::POLICY, reason: "hello_timeout" };
    /// 1013 of the WebSocket close codes: try again later.
    pub const CAPACITY: Self = Self { code: 1013, reason: "capacity" };
    pub const TOO_SLOW: Self = Self { code: close::POLICY, reason: "slow_consumer" };
}

/// One frame with the room it takes; the room is given back when it has been written.
pub struct Waiting {
    pub text: Utf8Bytes,
    _room: OwnedSemaphorePermit,
}

pub type Outgoing = mpsc::Receiver<Waiting>;

#[derive(Clone)]
pub struct Outbox {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    room_kib: u32,
    ending: Arc<watch::Sender<Option<Closing>>>,
}

impl Outbox {
    pub fn new(frames: usize, kib: u32) -> (Self, Outgoing) {
        let (queue, outgoing) = mpsc::channel(frames);
        let room = Arc::new(Semaphore::new(kib as usize));
        let ending = Arc::new(watch::Sender::new(None));
        (Self { queue, room, room_kib: kib, ending }, outgoing)
    }

    /// Sends now, or ends the connection: for events, which nobody waits for.
    pub fn push(&self, text: impl Into<Utf8Bytes>) {
        let text = text.into();
        let room = Arc::clone(&self.room).try_acquire_many_owned(self.kib(&text));
        let sent = room.ok().is_some_and(|room| self.queue.try_send(Waiting { text, _room: room }).is_ok());
        if !sent && !self.queue.is_closed() {
            self.end(Closing::TOO_SLOW);
        }
    }

    /// Sends as soon as there is room: for replies, each of which has a task of its own.
    pub async fn reply(&self, text: impl Into<Utf8Bytes>) {
        let text = text.into();
        let waiting = async {
            let room = Arc::clone(&self.room).acquire_many_owned(self.kib(&text)).await.ok()?;
            self.queue.send(Waiting { text, _room: room }).await.ok()
        };
        if tokio::time::timeout(ROOM, waiting).await.is_err() {
            self.end(Closing::TOO_SLOW);
        }
    }

    /// Writes the body as a frame and sends it like [`Self::reply`].
    pub async fn answer<B: Body + serde::Serialize>(&self, req_id: Option<&str>, body: &B) {
        match wire::peer::write(req_id, body) {
            Ok(text) => self.reply(text).await,
            Err(error) => self.refuse(req_id, FrameError::internal(&error)).await,
        }
    }

    pub async fn refuse(&self, req_id: Option<&str>, error: FrameError) {
        let body: ErrorBody = error.body();
        // An `error` frame is two strings and a list of strings: it always serializes.
        if let Ok(text) = wire::peer::write(req_id, &body) {
            self.reply(text).await;
        }
    }

    /// The first reason wins.
    pub fn end(&self, closing: Closing) {
        self.ending.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(closing);
            }
            first
        });
    }

    /// Resolves when somebody ended the connection.
    pub async fn ended(&self) -> Closing {
        let mut ending = self.ending.subscribe();
        let seen = ending.wait_for(Option::is_some).await.map(|now| *now);
        // `self` holds the sender, so the channel can't have closed.
        seen.ok().flatten().unwrap_or(Closing::NORMAL)
    }

    fn kib(&self, text: &Utf8Bytes) -> u32 {
        let kib = u32::try_from(text.len() / 1024).unwrap_or(u32::MAX).saturating_add(1);
        // A frame larger than the whole room takes all of it, rather than never being sent.
        kib.min(self.room_kib)
    }
}

/// The payload of a ping; its answer proves that the peer is there.
pub fn ping_payload() -> Bytes {
    Bytes::from_static(b"claudemesh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_push_without_room_ends_the_connection_and_the_first_reason_stays() {
        let (outbox, _outgoing) = Outbox::new(2, 64);
        outbox.push("one");
        outbox.push("two");
        outbox.push("three");
        outbox.end(Closing::NORMAL);
        assert_eq!(outbox.ended().await, Closing::TOO_SLOW);
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_and_come_back_when_written() {
        let (outbox, mut outgoing) = Outbox::new(100, 4);
        outbox.push("x".repeat(3000));
        drop(outgoing.recv().await.expect("first"));
        outbox.push("x".repeat(3000));
        outbox.push("x".repeat(3000));
        assert_eq!(outbox.ended().await, Closing::TOO_SLOW);
    }

    #[tokio::test]
    async fn a_reply_waits_for_room() {
        let (outbox, mut outgoing) = Outbox::new(1, 64);
        outbox.push("first");
        let reply = outbox.reply("second");
        tokio::pin!(reply);
        assert!(futures_util::poll!(reply.as_mut()).is_pending());
        assert_eq!(outgoing.recv().await.expect("first").text.as_str(), "first");
        reply.await;
        assert_eq!(outgoing.recv().await.expect("second").text.as_str(), "second");
    }

    #[tokio::test]
    async fn a_frame_larger_than_all_room_still_goes_out() {
        let (outbox, mut outgoing) = Outbox::new(4, 2);
        outbox.reply("x".repeat(100_000)).await;
        assert_eq!(outgoing.recv().await.expect("frame").text.len(), 100_000);
    }
}
