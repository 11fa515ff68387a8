//! A frame that came in, those who wait for frames, and what is said to all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wire::peer::live::{McpCallForward, McpCallForwardCancel};
use wire::peer::mesh::SystemPush;
use wire::peer::{Body, ErrorBody, Head};

use super::Forward;
use crate::error::{ClientError, LooseError};

/// Unread.
#[derive(Debug)]
pub(crate) struct Frame {
    text: Utf8Bytes,
}

impl Frame {
    pub(super) fn new(text: Utf8Bytes) -> Self {
        Self { text }
    }

    pub(super) fn text(&self) -> Utf8Bytes {
        self.text.clone()
    }

    pub(super) fn head(&self) -> Result<Head<'_>, ClientError> {
        serde_json::from_str(&self.text).map_err(|e| ClientError::Protocol(format!("not a frame: {e}")))
    }

    pub(super) fn kind(&self) -> Result<Cow<'_, str>, ClientError> {
        Ok(self.head()?.kind)
    }

    /// The body, when the frame is of its type; an `error` frame becomes the error.
    pub(super) fn read<R: Body + DeserializeOwned>(&self) -> Result<R, ClientError> {
        let kind = self.kind()?;
        if kind == R::TYPE {
            return serde_json::from_str(&self.text)
                .map_err(|e| ClientError::Protocol(format!("a broken `{kind}` frame: {e}")));
        }
        if kind == ErrorBody::TYPE {
            let loose: LooseError = serde_json::from_str(&self.text)
                .map_err(|e| ClientError::Protocol(format!("a broken `error` frame: {e}")))?;
            return Err(loose.into());
        }
        Err(ClientError::Protocol(format!("a `{kind}` frame in place of `{}`", R::TYPE)))
    }
}

/// What answers no request, for everybody in this process who wants it.
#[derive(Clone)]
pub(super) struct News {
    pub pushes: broadcast::Sender<Arc<SystemPush>>,
    pub forwards: broadcast::Sender<Arc<Forward>>,
}

impl News {
    pub(super) fn new(queue: usize) -> Self {
        Self { pushes: broadcast::Sender::new(queue), forwards: broadcast::Sender::new(queue) }
    }

    pub(super) fn is_news(kind: &str) -> bool {
        [SystemPush::TYPE, McpCallForward::TYPE, McpCallForwardCancel::TYPE].contains(&kind)
    }

    /// Nobody listening is fine, and news that we can't read is not worth the connection.
    pub(super) fn publish(&self, kind: &str, frame: &Frame) {
        let done = match kind {
            SystemPush::TYPE => frame.read().map(|push| drop(self.pushes.send(Arc::new(push)))),
            McpCallForward::TYPE => frame.read().map(|call| self.forward(Forward::Call(call))),
            _ => frame.read().map(|cancel| self.forward(Forward::Cancel(cancel))),
        };
        if let Err(e) = done {
            tracing::debug!("unreadable news: {e}");
        }
    }

    fn forward(&self, forward: Forward) {
        let _ = self.forwards.send(Arc::new(forward));
    }
}

pub(super) enum Waiter {
    Once(oneshot::Sender<Frame>),
    Many(mpsc::Sender<Frame>),
}

impl Waiter {
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Once(sender) => sender.is_closed(),
            Self::Many(sender) => sender.is_closed(),
        }
    }
}

/// Those who wait on one link. Dropping it answers them all. The reading and the writing half of a link run in one task,
/// so the lock is never contended.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<String, Waiter>>);

impl Waiting {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, id: String, waiter: Waiter) {
        self.table().insert(id, waiter);
    }

    pub(super) fn forget(&self, id: &str) {
        self.table().remove(id);
    }

    pub(super) fn clear(&self) {
        self.table().clear();
    }

    pub(super) fn sweep(&self) {
        self.table().retain(|_, waiter| !waiter.is_gone());
    }

    /// The frame comes back when nobody here waits for it.
    pub(super) fn answer(&self, id: &str, frame: Frame) -> Result<(), Frame> {
        let mut table = self.table();
        match table.remove_entry(id) {
            Some((_, Waiter::Once(sender))) => drop(sender.send(frame)),
            Some((id, Waiter::Many(sender))) => {
                // Full means that its reader is too slow: dropping the sender ends that stream, and nobody else waits.
                let keeps_up = sender.try_send(frame).is_ok();
                if keeps_up {
                    table.insert(id, Waiter::Many(sender));
                }
            }
            None => return Err(frame),
        }
        Ok(())
    }
}
