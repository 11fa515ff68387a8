//! What the end-to-end tests stand on.
//!
//! Here: a [`World`] (real processes, own directory, own port), a [`Peer`] that speaks raw frames and shares no code
//! with `client`, a git host, fixture servers. Not here: any claim about the product; those are in `tests/tests`.

#![expect(clippy::unwrap_used, reason = "test support: a step that fails is a test that fails")]

pub mod clients;
pub mod dice;
pub mod docker;
pub mod fixture;
pub mod git;
pub mod mcp_client;
pub mod peer;
pub mod person;
pub mod pg;
pub mod processes;
pub mod scan;
pub mod tap;
pub mod web;
pub mod world;

pub use dice::Dice;
pub use peer::Peer;
pub use person::{Person, Refusal};
pub use world::{Setup, World, eventually};
