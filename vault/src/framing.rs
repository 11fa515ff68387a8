//! The bytes that are sealed or signed: fields with their lengths, a purpose first.
//!
//! Here: framing, hashing and checking of signatures. Not here: which fields; that is each kind's own matter.
//! Invariant: different lists of fields give different bytes, and what was signed for one purpose serves no other.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use wire::PublicKey;

use crate::Refused;

/// `purpose` and each field with its length (8 bytes, big-endian) before it, so that ("ab", "c") and ("a", "bc") differ.
pub(crate) fn framed(purpose: &str, fields: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in std::iter::once(&purpose).chain(fields) {
        bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(field.as_bytes());
    }
    bytes
}

/// The text that is signed: the purpose, so that it can be told from every other text that a member signs, and the hash
/// of the framed fields.
pub(crate) fn statement(purpose: &str, fields: &[&str]) -> String {
    format!("{purpose}\n{}", sha256_hex(&framed(purpose, fields)))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Strict ed25519 (RFC 8032, no weak keys), lowercase hex only: one spelling of one signature.
pub(crate) fn verify(signer: &PublicKey, signature: &str, text: &str) -> Result<(), Refused> {
    let mut key = [0_u8; 32];
    let mut bytes = [0_u8; 64];
    let spelled = !signature.bytes().any(|b| b.is_ascii_uppercase())
        && hex::decode_to_slice(signature, &mut bytes).is_ok()
        && hex::decode_to_slice(signer.as_str(), &mut key).is_ok();
    if !spelled {
        return Err(Refused::Signature);
    }
    VerifyingKey::from_bytes(&key)
        .and_then(|key| key.verify_strict(text.as_bytes(), &Signature::from_bytes(&bytes)))
        .map_err(|_| Refused::Signature)
}

/// Base64 with padding; a text that [`from_base64`] takes has no second spelling.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn from_base64(text: &str) -> Result<Vec<u8>, Refused> {
    STANDARD.decode(text).map_err(|_| Refused::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_of_base64_is_read() {
        assert_eq!(from_base64("AQI=").unwrap(), [1, 2]);
        for odd in ["AQI", "AQJ=", "AQI==", "AQI=\n", " AQI=", "AQ-_", "A"] {
            assert_eq!(from_base64(odd), Err(Refused::Damaged), "{odd:?}");
        }
    }

    #[test]
    fn fields_that_join_to_the_same_text_are_framed_differently() {
        assert_ne!(framed("p", &["ab", "c"]), framed("p", &["a", "bc"]));
        assert_ne!(framed("p", &["a"]), framed("p", &["a", ""]));
        assert_ne!(framed("p", &["\u{e9}"]), framed("p", &["e\u{301}"]));
        assert_ne!(framed("p", &["a\0b"]), framed("p", &["a", "b"]));
        assert_ne!(framed("pa", &["b"]), framed("p", &["ab"]));
    }

    #[test]
    fn a_weak_key_signs_nothing() {
        // The neutral point: with it a signature of zeros matches every text, unless the check is strict.
        let weak = PublicKey::parse(&format!("01{}", "00".repeat(31))).unwrap();
        let signature = format!("01{}", "00".repeat(63));
        assert_eq!(verify(&weak, &signature, "anything"), Err(Refused::Signature));
    }

    mod any {
        use proptest::prelude::*;

        use super::*;

        /// Reads a frame back: what can be read back in one way only is injective.
        fn fields_of(mut bytes: &[u8]) -> Vec<String> {
            let mut fields = Vec::new();
            while let Some((len, rest)) = bytes.split_at_checked(8) {
                let len = u64::from_be_bytes(len.try_into().unwrap()) as usize;
                fields.push(String::from_utf8(rest[..len].to_vec()).unwrap());
                bytes = &rest[len..];
            }
            assert!(bytes.is_empty());
            fields
        }

        proptest! {
            #[test]
            fn a_frame_has_one_reading(fields in prop::collection::vec(".{0,12}", 1..8)) {
                let borrowed: Vec<&str> = fields.iter().map(String::as_str).collect();
                prop_assert_eq!(fields_of(&framed(borrowed[0], &borrowed[1..])), fields);
            }

            #[test]
            fn different_fields_are_framed_differently(
                one in prop::collection::vec("[ab\0]{0,3}", 0..4),
                two in prop::collection::vec("[ab\0]{0,3}", 0..4),
            ) {
                let frame = |fields: &[String]| {
                    framed("p", &fields.iter().map(String::as_str).collect::<Vec<_>>())
                };
                prop_assert_eq!(frame(&one) == frame(&two), one == two);
            }
        }
    }
}
