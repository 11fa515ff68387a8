//! At-rest sealing: bytes in, sealed text out.
//!
//! Here: one root key ([`AtRestKey`]) that seals what the broker must store and must not store in clear.
//! Not here: where the root key lives, who may open what, any database, network or clock.
//! Invariant: each record has a key of its own, derived from a fresh salt, and that key is used once; so there is
//! no nonce to run out of. A record opens only under the context it was sealed for: moved to another row, it fails.

mod seal;

pub use seal::{AtRestKey, BadKey, OpenError, Sealed};
