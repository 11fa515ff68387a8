//! Key pairs, vault keys that a mesh's owner signs, and grants of them to runners.
//!
//! Not here: entries (see [`crate::entry`]), where a private key lies.

use wire::vault::{BoxPublic, Grant, KeyId, RunnerId, VaultKey};
use wire::{MeshId, PublicKey};
use zeroize::Zeroizing;

use crate::{Refused, Signer};

/// An X25519 private key (RFC 7748). No `Clone`, no `Serialize`; its `Debug` says nothing; zeroed on drop.
pub struct BoxKey(());

impl BoxKey {
    /// From the operating system's random numbers.
    pub fn generate() -> Self {
        unimplemented!()
    }

    pub fn from_bytes(_bytes: &[u8; 32]) -> Self {
        unimplemented!()
    }

    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        unimplemented!()
    }

    /// A member's own key, derived from the seed of their ed25519 key (HKDF-SHA256), not converted from it.
    pub fn of_member(_seed: &[u8; 32]) -> Self {
        unimplemented!()
    }

    pub fn public(&self) -> BoxPublic {
        unimplemented!()
    }
}

pub fn runner_id(_public: &BoxPublic) -> RunnerId {
    unimplemented!()
}

pub fn key_id(_public: &BoxPublic) -> KeyId {
    unimplemented!()
}

/// Signs a vault key. `owner` is the mesh's owner.
pub fn certify(
    _owner: &dyn Signer,
    _mesh: &MeshId,
    _number: i64,
    _public: &BoxPublic,
    _created_ms: i64,
) -> VaultKey {
    unimplemented!()
}

/// Whether this is a vault key that `owner` signed for this mesh.
///
/// # Errors
/// [`Refused`].
pub fn check_key(_owner: &PublicKey, _mesh: &MeshId, _key: &VaultKey) -> Result<(), Refused> {
    unimplemented!()
}

/// Seals the private half of a vault key to a runner, and signs that.
pub fn grant(_owner: &dyn Signer, _mesh: &MeshId, _key: &BoxKey, _runner: &BoxPublic) -> Grant {
    unimplemented!()
}

/// The vault key of a grant to this runner. The signature is checked against the signer that the grant names; whether that
/// is the mesh's owner, the caller knows.
///
/// # Errors
/// [`Refused`].
pub fn accept(_runner: &BoxKey, _mesh: &MeshId, _grant: &Grant) -> Result<BoxKey, Refused> {
    unimplemented!()
}

/// Seals the private half of a vault key to its owner, as base64.
pub fn keep_copy(_owner: &BoxPublic, _mesh: &MeshId, _key: &BoxKey) -> String {
    unimplemented!()
}

/// Opens what [`keep_copy`] sealed; it must be the private half of `public`.
///
/// # Errors
/// [`Refused`].
pub fn open_copy(
    _owner: &BoxKey,
    _mesh: &MeshId,
    _public: &BoxPublic,
    _copy: &str,
) -> Result<BoxKey, Refused> {
    unimplemented!()
}
