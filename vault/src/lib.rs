//! Secrets: bytes in, bytes out.
//!
//! Here: what a member seals and only a trusted runner opens ([`entry`], [`keys`], [`consent`]), what the broker encrypts
//! for itself at rest ([`AtRestKey`], [`KeyRing`]), and the masking of known values ([`Redactor`]).
//! Not here: where keys live, who may store what, any database, network or clock.
//! Invariant: nothing opens in another place than it was sealed for. Every text that is sealed or signed begins with
//! its purpose, and every field has its length before it.

mod boxed;
pub mod consent;
pub mod entry;
mod framing;
pub mod keys;
pub mod passphrase;
mod redact;
mod ring;
mod seal;
#[cfg(test)]
mod testing;

pub use keys::BoxKey;
pub use redact::{MASK, Redactor, SHORTEST};
pub use ring::{KeyRing, RingError};
pub use seal::{AtRestKey, BadKey, OpenError, Sealed};
use wire::PublicKey;

/// Who signs: a member with their ed25519 key.
pub trait Signer {
    fn public(&self) -> &PublicKey;
    /// The signature in hex (RFC 8032).
    fn sign(&self, text: &str) -> String;
}

/// Why something sealed or signed is not taken. Says nothing of what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not signed by who it says, or changed since.
    #[error("the signature does not match")]
    Signature,
    /// Sealed to another key.
    #[error("it is sealed to another key ({0})")]
    OtherKey(wire::vault::KeyId),
    /// Cut, changed, moved from another place, or not sealed at all. One kind on purpose: the difference would help only
    /// an attacker.
    #[error("it is damaged")]
    Damaged,
    /// Not of the form that it must have, e.g. a version below 1.
    #[error("{0}")]
    Form(&'static str),
}
