//! How a failed request is told to a peer: one shape for every handler.
//!
//! Here: [`FrameError`], and the rule that an internal failure shows an id and never its source.
//! Not here: deciding which code fits; each deciding module has its own enum with `code()`.

use wire::ErrorCode;
use wire::peer::ErrorBody;
use wire::report::Reason;

use crate::runner::RunnerError;
use crate::store::StoreError;

/// An `error` frame in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameError {
    pub code: ErrorCode,
    pub message: String,
    pub stderr: Vec<String>,
}

impl FrameError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), stderr: Vec::new() }
    }

    pub fn not_found(name: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("no service `{}` in this mesh", shown(name)))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgs, message)
    }

    /// Logs the source under a fresh id; the peer sees the id only.
    pub fn internal(source: &(dyn std::error::Error + 'static)) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let id = &id[..12];
        tracing::error!(error.id = id, error = source, "request failed inside: {source}");
        Self::new(ErrorCode::Internal, format!("internal failure {id}; the broker's log tells more"))
    }

    pub fn of_reason(reason: &Reason) -> Self {
        Self { code: reason.code, message: reason.message.clone(), stderr: reason.stderr.clone() }
    }

    pub fn body(self) -> ErrorBody {
        let Self { code, message, stderr } = self;
        ErrorBody { code, message, stderr }
    }
}

impl From<StoreError> for FrameError {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<RunnerError> for FrameError {
    fn from(error: RunnerError) -> Self {
        match error {
            RunnerError::Unavailable | RunnerError::Lost => Self::new(error.code(), error.to_string()),
            RunnerError::Refused(failure) => {
                Self { code: failure.code, message: failure.message, stderr: failure.stderr }
            }
            RunnerError::Nonsense(_) => Self::internal(&error),
        }
    }
}

/// Text of a client inside a message: short and without control characters.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}
