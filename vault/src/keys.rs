//! Key pairs, vault keys that a mesh's owner signs, and grants of them to runners.
//!
//! Not here: entries (see [`crate::entry`]), where a private key lies.
//! Invariant: no private half leaves here but sealed, or by [`BoxKey::to_bytes`] to who keeps it.

use std::fmt;

use sha2::{Digest, Sha256};
use wire::vault::{BoxPublic, Grant, KeyId, RunnerId, VaultKey};
use wire::{MeshId, PublicKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::framing::{framed, sha256_hex, statement, verify};
use crate::{Refused, Signer, boxed};

const MEMBER_PURPOSE: &[u8] = b"claudemesh/vault/v1/member-box";
const KEY_PURPOSE: &str = "claudemesh/vault/v1/vault-key";
const GRANT_PURPOSE: &str = "claudemesh/vault/v1/grant";
const COPY_PURPOSE: &str = "claudemesh/vault/v1/owner-copy";
const TRIAL_PURPOSE: &str = "claudemesh/vault/v1/trial";

/// An X25519 private key (RFC 7748). No `Clone`, no `Serialize`; its `Debug` says nothing; zeroed on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct BoxKey([u8; 32]);

impl BoxKey {
    /// From the operating system's random numbers.
    pub fn generate() -> Self {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).expect("the operating system has random numbers");
        key
    }

    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }

    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// A member's own key, derived from the seed of their ed25519 key (HKDF-SHA256), not converted from it.
    pub fn of_member(seed: &[u8; 32]) -> Self {
        let mut key = Self([0; 32]);
        hkdf::Hkdf::<Sha256>::new(None, seed)
            .expand(MEMBER_PURPOSE, &mut key.0)
            .expect("32 bytes are one block of HKDF-SHA256");
        key
    }

    pub fn public(&self) -> BoxPublic {
        BoxPublic::parse(&hex::encode(boxed::public_of(&self.0))).expect("32 bytes in hex are a public key")
    }

    pub(crate) fn open(&self, info: &str, aad: &[u8], sealed: &str) -> Result<Zeroizing<Vec<u8>>, Refused> {
        boxed::open(&self.0, info, aad, sealed)
    }

    fn from_opened(bytes: &[u8]) -> Result<Self, Refused> {
        bytes.try_into().map(Self::from_bytes).map_err(|_| Refused::Damaged)
    }
}

impl fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[box key]")
    }
}

pub fn runner_id(public: &BoxPublic) -> RunnerId {
    RunnerId::parse(&digest(public)[..32]).expect("hex is a runner id")
}

pub fn key_id(public: &BoxPublic) -> KeyId {
    KeyId::parse(&digest(public)[..16]).expect("hex is a key id")
}

fn digest(public: &BoxPublic) -> String {
    hex::encode(Sha256::digest(bytes_of(public)))
}

fn bytes_of(public: &BoxPublic) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(public.as_str(), &mut bytes).expect("a box public key is 64 hex digits");
    bytes
}

/// # Errors
/// [`Refused::Form`] when nothing can be sealed to this key.
pub(crate) fn seal_to(to: &BoxPublic, info: &str, aad: &[u8], plain: &[u8]) -> Result<String, Refused> {
    boxed::seal(&bytes_of(to), info, aad, plain)
}

/// Signs a vault key. `owner` is the mesh's owner.
pub fn certify(
    owner: &dyn Signer,
    mesh: &MeshId,
    number: i64,
    public: &BoxPublic,
    created_ms: i64,
) -> VaultKey {
    let mut key = VaultKey {
        number,
        kid: key_id(public),
        public: public.clone(),
        created_ms,
        signature: String::new(),
    };
    key.signature = owner.sign(&key_statement(owner.public(), mesh, &key));
    key
}

/// Whether this is a vault key that `owner` signed for this mesh.
///
/// # Errors
/// [`Refused`].
pub fn check_key(owner: &PublicKey, mesh: &MeshId, key: &VaultKey) -> Result<(), Refused> {
    if key.number < 1 {
        return Err(Refused::Form("the number of a vault key is below 1"));
    }
    if key.kid != key_id(&key.public) {
        return Err(Refused::Form("the id of a vault key is that of another key"));
    }
    verify(owner, &key.signature, &key_statement(owner, mesh, key))?;
    // Who seals an entry counts on this: a point of small order is no key.
    seal_to(&key.public, TRIAL_PURPOSE, &[], &[]).map(|_| ())
}

fn key_statement(owner: &PublicKey, mesh: &MeshId, key: &VaultKey) -> String {
    let VaultKey { number, kid, public, created_ms, signature: _ } = key;
    let (number, created) = (number.to_string(), created_ms.to_string());
    let fields = [mesh.as_str(), owner.as_str(), &number, kid.as_str(), public.as_str(), &created];
    statement(KEY_PURPOSE, &fields)
}

/// Seals the private half of a vault key to a runner, and signs that.
///
/// # Errors
/// [`Refused::Form`] when the runner's key is none that anything can be sealed to.
pub fn grant(owner: &dyn Signer, mesh: &MeshId, key: &BoxKey, runner: &BoxPublic) -> Result<Grant, Refused> {
    let mut grant = Grant {
        runner: runner_id(runner),
        kid: key_id(&key.public()),
        signer: owner.public().clone(),
        sealed: String::new(),
        signature: String::new(),
    };
    grant.sealed = seal_to(runner, GRANT_PURPOSE, &grant_frame(mesh, &grant), &key.0)?;
    grant.signature = owner.sign(&grant_statement(mesh, &grant));
    Ok(grant)
}

/// Whether the signer that the grant names signed it for this mesh. Only its runner can say whether it opens.
///
/// # Errors
/// [`Refused::Signature`].
pub fn check_grant(mesh: &MeshId, grant: &Grant) -> Result<(), Refused> {
    verify(&grant.signer, &grant.signature, &grant_statement(mesh, grant))
}

/// The vault key of a grant to this runner. The signature is checked against the signer that the grant names; whether that
/// is the mesh's owner, the caller knows.
///
/// # Errors
/// [`Refused`].
pub fn accept(runner: &BoxKey, mesh: &MeshId, grant: &Grant) -> Result<BoxKey, Refused> {
    check_grant(mesh, grant)?;
    if grant.runner != runner_id(&runner.public()) {
        return Err(Refused::Form("the grant is to another runner"));
    }
    let opened = runner.open(GRANT_PURPOSE, &grant_frame(mesh, grant), &grant.sealed)?;
    let key = BoxKey::from_opened(&opened)?;
    if key_id(&key.public()) == grant.kid { Ok(key) } else { Err(Refused::Damaged) }
}

fn grant_frame(mesh: &MeshId, grant: &Grant) -> Vec<u8> {
    let Grant { runner, kid, signer, sealed: _, signature: _ } = grant;
    framed(GRANT_PURPOSE, &[mesh.as_str(), runner.as_str(), kid.as_str(), signer.as_str()])
}

fn grant_statement(mesh: &MeshId, grant: &Grant) -> String {
    let Grant { runner, kid, signer, sealed, signature: _ } = grant;
    let sealed = sha256_hex(sealed.as_bytes());
    statement(GRANT_PURPOSE, &[mesh.as_str(), runner.as_str(), kid.as_str(), signer.as_str(), &sealed])
}

/// Seals the private half of a vault key to its owner, as base64. `owner` is the owner's own [`BoxKey::of_member`].
pub fn keep_copy(owner: &BoxPublic, mesh: &MeshId, key: &BoxKey) -> String {
    seal_to(owner, COPY_PURPOSE, &copy_frame(owner, mesh, &key.public()), &key.0)
        .expect("the owner's own key is no point of small order")
}

/// Opens what [`keep_copy`] sealed; it must be the private half of `public`.
///
/// # Errors
/// [`Refused`].
pub fn open_copy(owner: &BoxKey, mesh: &MeshId, public: &BoxPublic, copy: &str) -> Result<BoxKey, Refused> {
    let opened = owner.open(COPY_PURPOSE, &copy_frame(&owner.public(), mesh, public), copy)?;
    let key = BoxKey::from_opened(&opened)?;
    if key.public() == *public { Ok(key) } else { Err(Refused::Damaged) }
}

fn copy_frame(owner: &BoxPublic, mesh: &MeshId, public: &BoxPublic) -> Vec<u8> {
    framed(COPY_PURPOSE, &[mesh.as_str(), owner.as_str(), public.as_str()])
}

#[cfg(test)]
mod tests;
