//! A member's ed25519 key pair.
//!
//! Text form of the secret: 128 hex digits, seed then public key (libsodium's order, peer-protocol reference §13.1).

use ed25519_dalek::{Signer as _, SigningKey};
use vault::{BoxKey, Signer};
use wire::{PublicKey, Secret};

#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    public: PublicKey,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    #[error("a secret key is 128 hex digits: seed and public key")]
    Form,
    #[error("the public half of the secret key does not belong to its seed")]
    Mismatch,
    #[error("the system gave no random bytes")]
    NoRandomness,
}

impl Identity {
    /// # Errors
    /// [`BadIdentity::NoRandomness`].
    pub fn generate() -> Result<Self, BadIdentity> {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(|_| BadIdentity::NoRandomness)?;
        Ok(Self::from_seed(seed))
    }

    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = SigningKey::from_bytes(&seed);
        let text = hex::encode(key.verifying_key().to_bytes());
        let public = PublicKey::parse(&text).expect("32 bytes in hex are a public key");
        Self { key, public }
    }

    /// # Errors
    /// When the text is not 128 hex digits whose halves belong together.
    pub fn from_secret(secret: &Secret) -> Result<Self, BadIdentity> {
        let mut both = [0_u8; 64];
        hex::decode_to_slice(secret.expose(), &mut both).map_err(|_| BadIdentity::Form)?;
        let (seed, public) = both.split_at(32);
        let identity = Self::from_seed(seed.try_into().map_err(|_| BadIdentity::Form)?);
        if identity.key.verifying_key().as_bytes() == public {
            Ok(identity)
        } else {
            Err(BadIdentity::Mismatch)
        }
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub fn secret(&self) -> Secret {
        Secret::new(hex::encode(self.key.to_keypair_bytes()))
    }

    /// Signature in hex.
    pub fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }

    /// What only this member opens: derived from the same seed, so that there is one secret to keep.
    pub fn box_key(&self) -> BoxKey {
        BoxKey::of_member(self.key.as_bytes())
    }
}

impl Signer for Identity {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &str) -> String {
        Self::sign(self, text)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// 16 random bytes in hex: session ids, prefixes of request ids.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => hex::encode(bytes),
        // Uniqueness, not secrecy, is what these need.
        Err(_) => format!("{:032x}", std::process::id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_vectors_are_reproduced() {
        let ana = Identity::from_seed([1; 32]);
        assert_eq!(ana.public().as_str(), "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c");
        let mesh = wire::MeshId::parse("M0000000000000000000000000000001").unwrap();
        let text = wire::canonical::hello(
            &mesh,
            "U0000000000000000000000000000001",
            ana.public().as_str(),
            1_700_000_000_000,
        );
        assert_eq!(
            ana.sign(&text),
            "630b2e6d91e5ddf92501aeb7e35dd39bad2a14e679744170c06a929a0896e39fee477eda71cccd4fec443375b88dfe1d5e3ef337777144a017eb1ec2c5487006"
        );
    }

    #[test]
    fn a_secret_survives_its_text_form_and_a_mixed_one_is_refused() {
        let ana = Identity::from_seed([1; 32]);
        let back = Identity::from_secret(&ana.secret()).unwrap();
        assert_eq!(back.public(), ana.public());
        let mixed = format!("{}{}", "01".repeat(32), "02".repeat(32));
        assert_eq!(Identity::from_secret(&Secret::new(mixed)).unwrap_err(), BadIdentity::Mismatch);
        assert_eq!(Identity::from_secret(&Secret::new("zz")).unwrap_err(), BadIdentity::Form);
    }
}
