//! That many jails leave nothing behind, in strict jails: the claims of `leaks.rs` once more.
//!
//! Here: nothing of its own. The support module chooses the isolation by the target's name.

#[path = "leaks.rs"]
mod leaks;
