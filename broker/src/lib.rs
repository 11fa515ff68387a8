//! The broker: the only thing that clients talk to.
//!
//! Here: identity, mesh routing, what people want hosted, and making the runner hold it. Not here: processes and
//! namespaces (the runner), the rules of who may do what (`catalog`), files and signals of the machine (the binary).
//!
//! ```text
//!   http ─┬─ peer ──▶ deploy, calls, members, invites ──▶ store
//!         │                │            │                   │
//!         └────────────────┴── views ◀──┴─── (snapshot) ◀───┘
//!                              observed ◀── reconcile ◀──▶ runner
//! ```

mod app;
mod approvals;
mod at_rest;
mod audit;
pub mod backup;
mod bootstrap;
mod callers;
mod calls;
mod clock;
mod commit;
mod config;
mod deploy;
mod describe;
mod error;
mod fresh;
mod http;
mod identity;
mod invites;
mod live;
mod members;
mod metrics;
mod observed;
mod peer;
mod policy;
mod reconcile;
mod runner;
mod skills;
mod status;
pub mod store;
mod vault;
mod views;

pub use ::vault::AtRestKey;
pub use app::{App, Broker, BuildError};
pub use at_rest::{AtRest, AtRestError, Rotated};
pub use bootstrap::{Bootstrapped, bootstrap};
pub use config::{Config, Limits, RunnerLink};
/// Read by who deploys, too, to hold it against what they are asked to sign.
pub use deploy::{InvalidDeploy, NewService};
