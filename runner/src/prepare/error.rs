//! Why a source did not become an artefact: one message for people, one stable code, the last output lines.
//!
//! Not here: recognising what a package manager's output means; that is next to each package manager.

use std::fmt;
use std::io;

use wire::ErrorCode;

/// A failed preparation. `Display` is one sentence that says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareError {
    code: ErrorCode,
    message: String,
    stderr: Vec<String>,
}

impl PrepareError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), stderr: Vec::new() }
    }

    pub(crate) fn with_lines(mut self, lines: Vec<String>) -> Self {
        self.stderr = lines;
        self
    }

    /// An I/O failure of our own files. A full disk is told apart, because a person can cure it.
    pub(crate) fn io(doing: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
            return Self::disk_full();
        }
        Self::new(ErrorCode::Internal, format!("{doing}: {error}"))
    }

    pub(crate) fn disk_full() -> Self {
        Self::new(ErrorCode::DiskFull, "the runner's disk is full; free some space and deploy again")
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::SourceRefused, message)
    }

    /// A task of ours ended without an answer (a panic, or the runtime is going down).
    pub(crate) fn lost(doing: &str) -> Self {
        Self::new(ErrorCode::Internal, format!("{doing}: the task ended without an answer"))
    }

    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The last lines (at most 20) of the process that failed; empty when none ran.
    pub fn stderr(&self) -> &[String] {
        &self.stderr
    }
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PrepareError {}

/// Turns `io::Result` into ours, naming what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, PrepareError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str) -> Result<T, PrepareError> {
        self.map_err(|e| PrepareError::io(what, &e))
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: &str) -> Result<T, PrepareError> {
        self.map_err(|e| PrepareError::io(what, &e.into()))
    }
}
