//! One hosted service: at most two generations of it, the one that serves and the one that may replace it.
//!
//! Here: [`state`] (what follows from what), [`task`] (the one owner), [`generation`] (what it holds per
//! generation), [`door`] (the way in for calls), [`wish`] (what may be asked for).
//! Not here: which services exist (see [`crate::table`]).

pub mod door;
pub mod generation;
mod jobs;
mod secrets;
pub mod state;
pub mod task;
pub mod wish;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use wire::report::{Lists, ServiceReport};
use wire::runner::Apply;
use wire::{ErrorCode, ServiceKey};

use crate::audience::Audience;
use crate::logs::LogRing;
use door::Doorbell;

/// What the owner task is asked. Answered, or dropped when the task has ended.
pub enum Command {
    Apply(Box<Apply>, oneshot::Sender<Result<ServiceReport, ApplyError>>),
    /// Answered once every process is gone.
    Remove {
        purge: bool,
        done: oneshot::Sender<Result<(), RemoveError>>,
    },
}

/// Everything but the owner task holds one of these.
#[derive(Clone)]
pub struct ServiceHandle {
    pub key: ServiceKey,
    pub commands: mpsc::Sender<Command>,
    pub bell: Doorbell,
    pub report: watch::Receiver<ServiceReport>,
    pub lists: watch::Receiver<Option<Arc<Lists>>>,
    pub log: Arc<LogRing>,
    pub audience: Arc<Audience>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the service is being removed; ask again in a moment")]
    Removing,
    #[error("this generation runs as another caller")]
    OtherCaller,
    #[error(transparent)]
    Wish(#[from] wish::BadWish),
}

impl ApplyError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Removing | Self::OtherCaller => ErrorCode::Conflict,
            Self::Wish(e) => e.code(),
        }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoveError {
    #[error("it is not certain that all processes of the service are gone")]
    Alive,
    #[error("the service's data could not be removed: {0}")]
    Data(String),
    #[error("the service's task ended")]
    Ended,
}

impl RemoveError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Alive | Self::Data(_) | Self::Ended => ErrorCode::Internal,
        }
    }
}
