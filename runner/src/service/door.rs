//! The way in for calls: straight to the connection of the instance that serves, without a hop through its owner.
//!
//! Here: waiting for a service that is starting, waking one that sleeps, going to the next instance when one closed
//! before the request left. Not here: what a call means.
//! Invariants: a request that may have reached a server is never sent again. An instance that runs as one member neither
//! answers nor wakes for another, whatever took whose place while the call waited.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use wire::report::Reason;
use wire::runner::Apply;
use wire::vault::RunAs;
use wire::{ErrorCode, PublicKey};

use crate::mcp::caller::Caller;
use crate::mcp::client::InFlight;
use crate::mcp::{CallError, Client, Reply};

/// What a caller finds. Written by the owner task only.
#[derive(Clone)]
pub enum Door {
    Open(Client, Serves),
    /// A ring wakes the service.
    Asleep(Serves),
    /// Starting, or waiting to start again; with the reason when it failed before.
    Soon(Option<Arc<Reason>>),
    /// It will not serve by itself.
    Shut(Arc<Reason>),
    Removed,
}

/// Whom an instance answers. It may hold secrets of one member, and then acts as that member for whoever calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serves {
    Everybody,
    Only(PublicKey),
    /// It runs as its caller, and nobody said who that is.
    Nobody,
}

impl Serves {
    pub fn of(apply: &Apply) -> Self {
        match (apply.spec.run_as, &apply.vault.caller) {
            (RunAs::Deployer, _) => Self::Everybody,
            (RunAs::Caller, Some(caller)) => Self::Only(caller.clone()),
            (RunAs::Caller, None) => Self::Nobody,
        }
    }

    pub fn admits(&self, caller: Option<&PublicKey>) -> Result<(), DoorError> {
        let is_admitted = match self {
            Self::Everybody => true,
            Self::Only(one) => caller == Some(one),
            Self::Nobody => false,
        };
        if is_admitted { Ok(()) } else { Err(DoorError::NotTheirs) }
    }
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
    /// On whose behalf.
    pub caller: Option<&'a PublicKey>,
    /// What of the server's words comes back meanwhile.
    pub hears: Caller,
    pub deadline: Instant,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum DoorError {
    #[error("the service did not become ready before the deadline{}", because(.0))]
    Starting(Option<Arc<Reason>>),
    #[error("{}", .0.message)]
    Failed(Arc<Reason>),
    #[error("this instance runs as another member")]
    NotTheirs,
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
            // What is missing is known to whoever can bring it by its own code.
            Self::Failed(reason) if reason.code.is_vault_wait() => reason.code,
            Self::Failed(_) => ErrorCode::ServiceFailed,
            Self::NotTheirs => ErrorCode::Forbidden,
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

    /// Waits until the service is removed. Cancel-safe.
    pub async fn removed(&self) {
        // A sender that is gone: so is the service.
        let _ = self.door.clone().wait_for(|door| matches!(door, Door::Removed)).await;
    }

    /// Whether this caller may hear of it, as far as that is known.
    pub fn admits(&self, caller: Option<&PublicKey>) -> Result<(), DoorError> {
        match &*self.door.borrow() {
            Door::Open(_, serves) | Door::Asleep(serves) => serves.admits(caller),
            Door::Soon(_) | Door::Shut(_) => Ok(()),
            Door::Removed => Err(DoorError::Stopped),
        }
    }

    /// Puts the request in the queue of an instance that takes it.
    async fn enter(&self, door: &mut watch::Receiver<Door>, ask: &Ask<'_>) -> Result<InFlight, DoorError> {
        loop {
            let seen = door.borrow_and_update().clone();
            let reason = match seen {
                Door::Open(client, serves) => {
                    serves.admits(ask.caller)?;
                    match client.call(ask.method, ask.params, ask.hears.clone()) {
                        Err(CallError::NotSent) => None,
                        taken => return Ok(taken?),
                    }
                }
                Door::Asleep(serves) => {
                    // Not even woken for somebody else: to wake it is to open secrets.
                    serves.admits(ask.caller)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: &str) -> PublicKey {
        PublicKey::parse(&seed.repeat(32)).expect("a key")
    }

    async fn asked(serves: Serves, caller: Option<&PublicKey>) -> (Result<Reply, DoorError>, bool) {
        let (_owner, door) = watch::channel(Door::Asleep(serves));
        let wake = Arc::new(Notify::new());
        let deadline = Instant::now() + Duration::from_millis(1);
        let ask = Ask { method: "tools/call", params: None, caller, hears: Caller::default(), deadline };
        let answer = Doorbell::new(door, wake.clone()).ask(ask).await;
        let was_rung = timeout_at(Instant::now(), wake.notified()).await.is_ok();
        (answer, was_rung)
    }

    #[tokio::test]
    async fn an_instance_of_one_member_does_not_even_wake_for_another() {
        let (ann, bo) = (key("ab"), key("cd"));
        for caller in [Some(&bo), None] {
            let (answer, was_rung) = asked(Serves::Only(ann.clone()), caller).await;
            assert!(matches!(answer, Err(DoorError::NotTheirs)) && !was_rung);
        }
        let (answer, was_rung) = asked(Serves::Nobody, Some(&ann)).await;
        assert!(matches!(answer, Err(DoorError::NotTheirs)) && !was_rung);
        for (serves, caller) in [(Serves::Only(ann.clone()), Some(&ann)), (Serves::Everybody, None)] {
            let (answer, was_rung) = asked(serves, caller).await;
            assert!(matches!(answer, Err(DoorError::Starting(None))) && was_rung);
        }
    }
}
