//! People who sign, for this crate's tests.

use ed25519_dalek::{Signer, SigningKey};
use wire::PublicKey;

pub struct Person {
    key: SigningKey,
    public: PublicKey,
}

impl Person {
    pub fn new(seed: u8) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::parse(&hex::encode(key.verifying_key().as_bytes())).expect("a public key");
        Self { key, public }
    }
}

impl vault::Signer for Person {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}
