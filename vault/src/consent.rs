//! A member's agreement to a service as it is.
//!
//! Here: signing, reading and comparing. Not here: which serials were seen before, and when a consent is asked for.

use std::collections::{BTreeMap, BTreeSet};

use wire::spec::Pin;
use wire::vault::{Consent, ConsentDoc, ConsentPin};
use wire::{PublicKey, Secret};

use zeroize::Zeroizing;

use crate::framing::{framed, sha256_hex, statement, verify};
use crate::{Refused, Signer};

const ENV_PURPOSE: &str = "claudemesh/vault/v1/plain-env";
const CONSENT_PURPOSE: &str = "claudemesh/vault/v1/consent";

pub fn sign(signer: &dyn Signer, doc: &ConsentDoc) -> Consent {
    let doc = serde_json::to_string(doc).expect("a consent has only text keys");
    let signature = signer.sign(&consent_statement(signer.public(), &doc));
    Consent { signer: signer.public().clone(), doc, signature }
}

/// What was signed.
///
/// # Errors
/// [`Refused::Signature`], or [`Refused::Form`] when it is no document that this version understands.
pub fn check(consent: &Consent) -> Result<ConsentDoc, Refused> {
    verify(&consent.signer, &consent.signature, &consent_statement(&consent.signer, &consent.doc))?;
    let doc: ConsentDoc = serde_json::from_str(&consent.doc)
        .map_err(|_| Refused::Form("the consent is of a form that is not known here"))?;
    if doc.v != 1 {
        return Err(Refused::Form("the consent is of a version that is not known here"));
    }
    if doc.floor < 0 || doc.floor > doc.serial {
        return Err(Refused::Form("the consent's floor is not between 0 and its serial"));
    }
    if !doc.service.is_plain() {
        return Err(Refused::Form("a consent names a service, not the instance of a caller"));
    }
    Ok(doc)
}

fn consent_statement(signer: &PublicKey, doc: &str) -> String {
    statement(CONSENT_PURPOSE, &[signer.as_str(), doc])
}

/// What of a pin a consent names. The lock must be the whole one.
pub fn pin(pin: &Pin) -> ConsentPin {
    let Pin { kind, name, version, integrity, artefact: _, lock } = pin;
    ConsentPin {
        kind: kind.clone(),
        name: name.clone(),
        version: version.clone(),
        integrity: integrity.clone(),
        lock_sha256: if lock.is_empty() { String::new() } else { sha256_hex(lock.as_bytes()) },
    }
}

/// What binds plain variables into a spec.
pub fn env_digest(salt: &str, env: &BTreeMap<String, Secret>) -> String {
    let pairs = env.iter().flat_map(|(name, value)| [name.as_str(), value.expose()]);
    let fields: Vec<&str> = std::iter::once(salt).chain(pairs).collect();
    sha256_hex(&Zeroizing::new(framed(ENV_PURPOSE, &fields)))
}

/// Whether the plain variables are those that the spec was signed with.
pub fn is_env_of(spec: &wire::spec::ServiceSpec, secrets: &wire::spec::Secrets) -> bool {
    match (&spec.env_digest, &secrets.env_salt) {
        (None, _) => secrets.env.is_empty(),
        (Some(digest), Some(salt)) => *digest == env_digest(salt.expose(), &secrets.env),
        (Some(_), None) => false,
    }
}

/// Whether a consent covers this service as it is: same mesh, name, spec and pin. Whose consent it is, the caller asks.
pub fn covers(doc: &ConsentDoc, wanted: &Wanted<'_>) -> bool {
    let Wanted { mesh, service, spec, pin } = wanted;
    doc.mesh == **mesh && doc.service.as_str() == *service && doc.spec == **spec && doc.pin == **pin
}

/// A service as it is to run.
pub struct Wanted<'a> {
    pub mesh: &'a wire::MeshId,
    /// The plain name, of a caller's instance too.
    pub service: &'a str,
    pub spec: &'a wire::spec::ServiceSpec,
    pub pin: &'a ConsentPin,
}

/// The owners whose entries a spec refers to, each once, sorted; `caller` stands for the references without an owner.
pub fn owners(spec: &wire::spec::ServiceSpec, caller: Option<&PublicKey>) -> Vec<PublicKey> {
    let owners: BTreeSet<&PublicKey> =
        spec.vault.values().filter_map(|reference| reference.owner.as_ref().or(caller)).collect();
    owners.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests;
