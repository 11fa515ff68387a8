//! The words that every part of claudemesh shares: ids, specs, reports, frames and error codes.
//!
//! Here: types and their text forms. Not here: any I/O, any clock, any rule about who may do what
//! (that is `catalog::access`).

pub mod canonical;
pub mod depth;
pub mod egress;
pub mod error;
pub mod ids;
pub mod isolation;
pub mod members;
pub mod peer;
pub mod report;
pub mod runner;
pub mod scope;
pub mod secret;
pub mod spec;
pub mod text;
pub mod vault;

pub use egress::EgressRule;
pub use error::{Class, ErrorCode};
pub use ids::{BadId, Generation, MemberId, MeshId, PublicKey, ServiceKey, ServiceName};
pub use isolation::{Policy, Tier};
pub use scope::Scope;
pub use secret::Secret;

/// A JSON object whose values are passed through untouched, byte for byte.
pub type RawJson = Box<serde_json::value::RawValue>;
