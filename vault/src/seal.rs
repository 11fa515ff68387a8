//! The record format `v1.<key id>.<base64(salt ‖ ciphertext ‖ tag)>`.
//!
//! record key = HKDF-SHA256 (RFC 5869) of the root with the record's 32 random bytes as salt and the framed context as
//! info; ciphertext = AES-256-GCM (NIST SP 800-38D) under that key, nonce zero, framed context as associated data.
//! The framed context is recomputed by whoever opens the record and never stored.
//!
//! Not here: several keys and their rotation (see [`crate::KeyRing`]).

use std::fmt;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const VERSION: &str = "v1";
const SALT: usize = 32;
const TAG: usize = 16;
const RECORD_PURPOSE: &str = "claudemesh/at-rest/v1/record";
const ID_PURPOSE: &[u8] = b"claudemesh/at-rest/v1/id";

/// The root key. No `Clone`, no `Serialize`; its `Debug` says nothing; zeroed on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct AtRestKey {
    root: [u8; 32],
    #[zeroize(skip)]
    id: String,
}

/// Text that is not a root key. Never echoes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an at-rest key is 64 hex digits")]
pub struct BadKey;

/// A sealed record in its text form. Safe to store and to back up; useless without the root key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Why a record does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Holds the id of the key that sealed it, for the operator who looks for that key.
    #[error("sealed under another key (id {0})")]
    WrongKey(String),
    /// Cut, changed, moved from another place, or not a sealed record at all. One kind on purpose: the difference
    /// would help only an attacker.
    #[error("the sealed record is damaged")]
    Damaged,
}

impl Sealed {
    /// Takes text from the store. Whether it is a record is found out by [`AtRestKey::open`].
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the key that sealed it, as it says itself; `None` when it is no record.
    pub fn key_id(&self) -> Option<&str> {
        let rest = self.0.strip_prefix(VERSION)?.strip_prefix('.')?;
        rest.split_once('.').map(|(id, _)| id).filter(|id| is_key_id(id))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[sealed]")
    }
}

impl AtRestKey {
    /// A new random key from the operating system.
    pub fn generate() -> Self {
        let mut root = Zeroizing::new([0_u8; 32]);
        getrandom::fill(root.as_mut()).expect("the operating system has random numbers");
        Self::from_root(&root)
    }

    /// Reads the text form; white space around it is ignored, since keys live in files.
    ///
    /// # Errors
    /// [`BadKey`] when it is not 64 hex digits.
    pub fn from_hex(text: &str) -> Result<Self, BadKey> {
        let mut root = Zeroizing::new([0_u8; 32]);
        hex::decode_to_slice(text.trim(), root.as_mut()).map_err(|_| BadKey)?;
        Ok(Self::from_root(&root))
    }

    /// The text form, for the file that keeps the key.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.root))
    }

    /// Eight hex digits that name the key and tell nothing about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Seals `plain` for one place, named by `context` (for example mesh, service, generation).
    pub fn seal(&self, context: &[&str], plain: &[u8]) -> Sealed {
        let mut record = vec![0_u8; SALT];
        getrandom::fill(&mut record).expect("the operating system has random numbers");
        let framed = self.framed(context);
        let sealed = self
            .cipher(&record, &framed)
            .encrypt(&Nonce::default(), Payload { msg: plain, aad: &framed })
            .expect("AES-GCM seals up to 64 GiB");
        record.extend_from_slice(&sealed);
        Sealed(format!("{VERSION}.{}.{}", self.id, BASE64.encode(record)))
    }

    /// Opens a record at the place for which it was sealed.
    ///
    /// # Errors
    /// [`OpenError::WrongKey`] when another root sealed it, [`OpenError::Damaged`] in every other case.
    pub fn open(&self, context: &[&str], sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let body = self.body(&sealed.0)?;
        let record = BASE64.decode(body).map_err(|_| OpenError::Damaged)?;
        if record.len() < SALT + TAG {
            return Err(OpenError::Damaged);
        }
        let (salt, ciphertext) = record.split_at(SALT);
        let framed = self.framed(context);
        self.cipher(salt, &framed)
            .decrypt(&Nonce::default(), Payload { msg: ciphertext, aad: &framed })
            .map(Zeroizing::new)
            .map_err(|_| OpenError::Damaged)
    }

    pub(crate) fn from_root(root: &[u8; 32]) -> Self {
        let mut tag = [0_u8; 32];
        expand(root, None, ID_PURPOSE, &mut tag);
        Self { root: *root, id: hex::encode(&Sha256::digest(tag)[..4]) }
    }

    /// For wrapping under another key only.
    pub(crate) fn root(&self) -> &[u8; 32] {
        &self.root
    }

    fn body<'a>(&self, text: &'a str) -> Result<&'a str, OpenError> {
        let mut parts = text.splitn(3, '.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(VERSION), Some(id), Some(body)) if id == self.id => Ok(body),
            (Some(VERSION), Some(id), Some(_)) if is_key_id(id) => Err(OpenError::WrongKey(id.to_owned())),
            _ => Err(OpenError::Damaged),
        }
    }

    fn cipher(&self, salt: &[u8], framed: &[u8]) -> Aes256Gcm {
        let mut key = Zeroizing::new([0_u8; 32]);
        expand(&self.root, Some(salt), framed, &mut key);
        Aes256Gcm::new_from_slice(key.as_ref()).expect("the key is 32 bytes")
    }

    /// Each field with its length before it, so that ("ab", "c") and ("a", "bc") differ.
    fn framed(&self, context: &[&str]) -> Vec<u8> {
        let mut framed = Vec::new();
        for field in [RECORD_PURPOSE, &self.id].iter().chain(context) {
            framed.extend_from_slice(&(field.len() as u64).to_be_bytes());
            framed.extend_from_slice(field.as_bytes());
        }
        framed
    }
}

impl fmt::Debug for AtRestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[at-rest key]")
    }
}

fn is_key_id(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn expand(root: &[u8; 32], salt: Option<&[u8]>, info: &[u8], out: &mut [u8; 32]) {
    Hkdf::<Sha256>::new(salt, root).expand(info, out).expect("32 bytes are one block of HKDF-SHA256");
}

#[cfg(test)]
mod tests;
