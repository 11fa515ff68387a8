//! A member's agreement to a service as it is.

use wire::PublicKey;
use wire::spec::Pin;
use wire::vault::{Consent, ConsentDoc, ConsentPin};

use crate::{Refused, Signer};

pub fn sign(_signer: &dyn Signer, _doc: &ConsentDoc) -> Consent {
    unimplemented!()
}

/// What was signed.
///
/// # Errors
/// [`Refused::Signature`], or [`Refused::Form`] when it is no document that this version understands.
pub fn check(_consent: &Consent) -> Result<ConsentDoc, Refused> {
    unimplemented!()
}

/// What of a pin a consent names. The lock must be the whole one.
pub fn pin(_pin: &Pin) -> ConsentPin {
    unimplemented!()
}

/// Whether a consent is of this signer and covers this service as it is: same mesh, name, spec and pin.
pub fn covers(_doc: &ConsentDoc, _wanted: &Wanted<'_>) -> bool {
    unimplemented!()
}

/// A service as it is to run.
pub struct Wanted<'a> {
    pub mesh: &'a wire::MeshId,
    /// The plain name, of a caller's instance too.
    pub service: &'a str,
    pub spec: &'a wire::spec::ServiceSpec,
    pub pin: &'a ConsentPin,
}

/// The owners whose entries a spec refers to; `caller` stands for the references without an owner.
pub fn owners(_spec: &wire::spec::ServiceSpec, _caller: Option<&PublicKey>) -> Vec<PublicKey> {
    unimplemented!()
}
