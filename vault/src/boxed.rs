//! HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; one message for one key.
//!
//! Text form: base64 of encapsulated key ‖ ciphertext ‖ tag. Not here: what is sealed, and the fields that bind it.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;

use crate::Refused;
use crate::framing::{from_base64, to_base64};

pub(crate) type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
pub(crate) type Public = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapped = <X25519HkdfSha256 as Kem>::EncappedKey;

const ENCAPPED: usize = 32;
const TAG: usize = 16;

/// Bytes of what [`seal`] makes of so many bytes.
pub(crate) const fn sealed_len(plain: usize) -> usize {
    ENCAPPED + plain + TAG
}

/// # Errors
/// [`Refused::Form`] when the point is of small order: nobody could keep a secret that is sealed to it.
pub(crate) fn seal(to: &[u8; 32], info: &str, aad: &[u8], plain: &[u8]) -> Result<String, Refused> {
    let weak = || Refused::Form("nothing can be sealed to such a key");
    let to = Public::from_bytes(to).map_err(|_| weak())?;
    let (encapped, ciphertext) = hpke::single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &to,
        info.as_bytes(),
        plain,
        aad,
    )
    .map_err(|_| weak())?;
    let mut sealed = encapped.to_bytes().to_vec();
    sealed.extend_from_slice(&ciphertext);
    Ok(to_base64(&sealed))
}

/// # Errors
/// [`Refused::Damaged`].
pub(crate) fn open(
    with: &[u8; 32],
    info: &str,
    aad: &[u8],
    sealed: &str,
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let sealed = from_base64(sealed)?;
    let (encapped, ciphertext) = sealed.split_at_checked(ENCAPPED).ok_or(Refused::Damaged)?;
    let encapped = Encapped::from_bytes(encapped).map_err(|_| Refused::Damaged)?;
    let with = Private::from_bytes(with).map_err(|_| Refused::Damaged)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &with,
        &encapped,
        info.as_bytes(),
        ciphertext,
        aad,
    )
    .map(Zeroizing::new)
    .map_err(|_| Refused::Damaged)
}

pub(crate) fn public_of(private: &[u8; 32]) -> [u8; 32] {
    let private = Private::from_bytes(private).expect("32 bytes are an X25519 key");
    X25519HkdfSha256::sk_to_pk(&private).to_bytes().into()
}

#[cfg(test)]
mod tests;
