//! What a caller may see and do, and what things are called at clients. Pure: the same record and the same caller give
//! the same answer.
//!
//! Not here: the store, sockets, frames.

pub mod access;
pub mod drift;
pub mod names;
pub mod quarantine;
pub mod suspicion;

pub use access::{Action, Caller, Decision, Role, Subject, decide, may_call, may_see};
