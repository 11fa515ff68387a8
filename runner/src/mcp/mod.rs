//! The MCP client of one hosted server, over its stdin and stdout.
//!
//! Here: [`frame`] (bytes), [`client`] and [`caller`] (how the rest of the runner asks), [`conn`] (the task that owns the
//! pipes), [`handshake`] (both eras), [`lists`] (all pages), [`tuning`]
//! (subscriptions). Not here: processes, restarts, HTTP.
//! Invariant: what is not understood passes through; only ids that are pending count.

pub mod caller;
pub mod client;
pub mod conn;
pub mod frame;
mod giant;
pub mod handshake;
pub mod lists;
pub mod notice;
pub mod tuning;

pub use client::{CallError, Client, Reply};
pub use conn::{End, Limits, connect};
pub use notice::Changed;
