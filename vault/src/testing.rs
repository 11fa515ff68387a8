//! Members and meshes for this crate's own tests, made of fixed bytes.

use ed25519_dalek::{Signer as _, SigningKey};
use wire::vault::VaultName;
use wire::{MeshId, PublicKey};

use crate::Signer;

pub(crate) struct Member {
    key: SigningKey,
    public: PublicKey,
}

pub(crate) fn member(seed: u8) -> Member {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let public = PublicKey::parse(&hex::encode(key.verifying_key().to_bytes())).unwrap();
    Member { key, public }
}

impl Signer for Member {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}

pub(crate) fn mesh(letter: char) -> MeshId {
    MeshId::parse(&letter.to_string().repeat(32)).unwrap()
}

pub(crate) fn name(text: &str) -> VaultName {
    VaultName::parse(text).unwrap()
}

/// Every text that differs from this one in the lowest bit of one byte, and every shorter one.
pub(crate) fn flipped_and_cut(text: &str) -> impl Iterator<Item = String> + '_ {
    let flipped = (0..text.len()).map(|at| {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] ^= 1;
        String::from_utf8(bytes).expect("the lowest bit keeps ASCII")
    });
    flipped.chain((0..text.len()).map(|end| text[..end].to_owned()))
}
