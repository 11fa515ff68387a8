//! The runner: fetches, installs, jails and supervises MCP servers.
//!
//! Here: [`run()`] and the HTTP API that a broker uses (`wire::runner`). Not here: SQL, members, scopes, meshes' rules.
//! Invariant: the runner keeps no wish on disk; a broker applies all of them again after either of them restarted.
//!
//! ```text
//! api ──► table ──► service::task (one per service) ──► jobs: prepare, instance (jail + mcp)
//!   └─ rpc: service::door ──► mcp::client ──► mcp::conn (one per instance) ──► the server's stdin and stdout
//! ```

pub mod api;
pub mod audience;
pub mod cell;
pub mod config;
mod diagnosis;
pub mod events;
mod guard;
pub mod inject;
pub mod instance;
pub mod listen;
pub mod logs;
mod masking;
pub mod mcp;
pub mod prepare;
mod rate;
mod run;
pub mod service;
pub mod shop;
mod stderr;
pub mod table;
pub mod vault;
mod warden;

pub use config::{Listen, RunnerConfig};
pub use run::{RunnerError, build_of, run, run_until};
