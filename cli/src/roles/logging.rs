//! Where our log lines go: stderr, as text or JSON, filtered by RUST_LOG.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::env;

/// What is shown without RUST_LOG.
#[derive(Debug, Clone, Copy)]
pub enum Chatter {
    /// Only what a person must know; `up` shares the terminal with its own words.
    Warnings,
    Lifecycle,
}

pub fn start(chatter: Chatter, as_json: bool) {
    let default = match chatter {
        Chatter::Warnings => "warn",
        Chatter::Lifecycle => "info",
    };
    let filter = EnvFilter::new(env::log_filter().as_deref().unwrap_or(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start (in tests) keeps the first.
    let _ = if as_json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}

/// Commands are silent unless somebody looks for something.
pub fn log_for_commands() {
    if env::log_filter().is_some() {
        start(Chatter::Warnings, false);
    }
}

/// For a process that somebody else's program watches.
pub fn log_warnings() {
    start(Chatter::Warnings, false);
}
