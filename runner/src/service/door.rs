//! The way in for calls: straight to the connection of the instance that serves, without a hop through its owner.
//!
//! Here: waiting for a service that is starting, waking one that sleeps, going to the next instance when one closed
//! before the request left. Not here: what a call means.
//! Invariant: a request that may have reached a server is never sent again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use wire::ErrorCode;
use wire::report::Reason;

use crate::mcp::client::{EventSink, InFlight};
use crate::mcp::{CallError, Client, Reply};

/// What a caller finds. Written by the owner task only.
#[derive(Clone)]
pub enum Door {
    Open(Client),
    /// A ring wakes the service.
    Asleep,
    /// Starting, or waiting to start again; with the reason when it failed before.
    Soon(Option<Arc<Reason>>),
    /// It will not serve by itself.
    Shut(Arc<Reason>),
    Removed,
}

/// Rings and waits.
#[derive(Clone)]
pub struct Doorbell {
    door: watch::Receiver<Door>,
    wake: Arc<Notify>,
}

/// A request as the peer sent it.
pub struct Ask<'a> {
    pub method: &'a str,
    pub params: Option<&'a str>,
    pub events: Option<EventSink>,
    pub deadline: Instant,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum DoorError {
    #[error("the service did not become ready before the deadline{}", because(.0))]
    Starting(Option<Arc<Reason>>),
    #[error("{}", .0.message)]
    Failed(Arc<Reason>),
    #[error("the service is stopped")]
    Stopped,
    #[error("the server did not answer before the deadline")]
    Deadline,
    #[error(transparent)]
    Call(#[from] CallError),
}

fn because(reason: &Option<Arc<Reason>>) -> String {
    reason.as_ref().map(|reason| format!(": {}", reason.message)).unwrap_or_default()
}

impl DoorError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Starting(_) => ErrorCode::ServiceStarting,
            Self::Failed(_) => ErrorCode::ServiceFailed,
            Self::Stopped => ErrorCode::ServiceStopped,
            Self::Deadline => ErrorCode::CallTimeout,
            Self::Call(e) => e.code(),
        }
    }

    /// Last lines of the process that said why.
    pub fn stderr(&self) -> &[String] {
        match self {
            Self::Starting(Some(reason)) | Self::Failed(reason) => &reason.stderr,
            _ => &[],
        }
    }
}

impl Doorbell {
    pub fn new(door: watch::Receiver<Door>, wake: Arc<Notify>) -> Self {
        Self { door, wake }
    }

    /// Asks and waits for the answer. Dropping the future cancels the call at the server.
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Reply, DoorError> {
        let mut door = self.door.clone();
        loop {
            let mut call = self.enter(&mut door, &ask).await?;
            match timeout_at(ask.deadline, call.answer()).await {
                Ok(Err(CallError::NotSent)) => wait_for_change(&mut door, ask.deadline, None).await?,
                Ok(answer) => return Ok(answer?),
                Err(_) => {
                    call.cancel("the deadline has passed");
                    return Err(DoorError::Deadline);
                }
            }
        }
    }

    /// Puts the request in the queue of an instance that takes it.
    async fn enter(&self, door: &mut watch::Receiver<Door>, ask: &Ask<'_>) -> Result<InFlight, DoorError> {
        loop {
            let seen = door.borrow_and_update().clone();
            let reason = match seen {
                Door::Open(client) => match client.call(ask.method, ask.params, ask.events.clone()) {
                    Err(CallError::NotSent) => None,
                    taken => return Ok(taken?),
                },
                Door::Asleep => {
                    self.wake.notify_one();
                    None
                }
                Door::Soon(reason) => reason,
                Door::Shut(reason) => return Err(DoorError::Failed(reason)),
                Door::Removed => return Err(DoorError::Stopped),
            };
            wait_for_change(door, ask.deadline, reason).await?;
        }
    }
}

async fn wait_for_change(
    door: &mut watch::Receiver<Door>,
    deadline: Instant,
    reason: Option<Arc<Reason>>,
) -> Result<(), DoorError> {
    match timeout_at(deadline, door.changed()).await {
        Ok(Ok(())) => Ok(()),
        // The owner task is gone, and the service with it.
        Ok(Err(_)) => Err(DoorError::Stopped),
        Err(_) => Err(DoorError::Starting(reason)),
    }
}

/// The longest deadline that is taken from a caller.
pub const LONGEST_CALL: Duration = Duration::from_secs(24 * 3600);

/// Milliseconds from now, bounded.
pub fn deadline_in(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms).min(LONGEST_CALL)
}
