//! How a server ends, in strict jails: the claims of `teardown.rs` once more.
//!
//! Here: nothing of its own. The support module chooses the isolation by the target's name.

#[path = "teardown.rs"]
mod teardown;
