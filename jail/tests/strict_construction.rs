//! What a server finds when it starts, in strict jails: the claims of `construction.rs` once more.
//!
//! Here: nothing of its own. The support module chooses the isolation by the target's name.

#[path = "construction.rs"]
mod construction;
