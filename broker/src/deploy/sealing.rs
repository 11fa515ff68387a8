//! Secrets at rest: sealed under the broker's key before they are stored, opened only to be handed to the runner or to
//! be sealed again for another generation.
//!
//! The context binds mesh, service and generation, so a sealed value moved to another row does not open.

use vault::{AtRestKey, OpenError, Sealed};
use wire::spec::Secrets;
use wire::{Generation, ServiceKey};

use crate::store::StoredGeneration;

#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    #[error("the sealed secrets do not open: {0}")]
    Open(#[from] OpenError),
    /// Says nothing of the content.
    #[error("the opened secrets have an unknown form")]
    Form,
}

/// `None` when there is nothing to seal.
pub(crate) fn seal(
    at_rest: &AtRestKey,
    key: &ServiceKey,
    generation: Generation,
    secrets: &Secrets,
) -> Result<Option<Sealed>, SealingError> {
    if *secrets == Secrets::default() {
        return Ok(None);
    }
    let plain = zeroize_later(serde_json::to_vec(secrets).map_err(|_| SealingError::Form)?);
    let generation = generation.to_string();
    Ok(Some(at_rest.seal(&context(key, &generation), &plain)))
}

pub(crate) fn open(at_rest: &AtRestKey, stored: &StoredGeneration) -> Result<Secrets, SealingError> {
    let Some(sealed) = &stored.secrets else { return Ok(Secrets::default()) };
    let generation = stored.generation.to_string();
    let plain = at_rest.open(&context(&stored.key, &generation), sealed)?;
    serde_json::from_slice(&plain).map_err(|_| SealingError::Form)
}

fn context<'a>(key: &'a ServiceKey, generation: &'a str) -> [&'a str; 4] {
    ["service-secrets", key.mesh.as_str(), key.name.as_str(), generation]
}

fn zeroize_later(bytes: Vec<u8>) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(bytes)
}

#[cfg(test)]
mod tests {
    use wire::spec::{ServiceSpec, Source};
    use wire::{MemberId, MeshId, Secret, ServiceName};

    use super::*;

    fn stored(name: &str, generation: i64, secrets: Option<Sealed>) -> StoredGeneration {
        let mesh = MeshId::parse(&"M".repeat(32)).expect("mesh");
        StoredGeneration {
            key: ServiceKey { mesh, name: ServiceName::parse(name).expect("name") },
            generation: Generation(generation),
            spec: ServiceSpec::of(Source::Npx { package: "p".into(), bin: None }),
            secrets,
            pin: None,
            proven: false,
            deployed_by: MemberId::parse(&"U".repeat(32)).expect("member"),
            created_at: 0,
        }
    }

    #[test]
    fn secrets_open_for_their_own_generation_only() {
        let at_rest = AtRestKey::generate();
        let mut secrets = Secrets::default();
        secrets.env.insert("KEY".into(), Secret::new("hunter2"));
        let row = stored("a", 3, None);
        let sealed = seal(&at_rest, &row.key, row.generation, &secrets).expect("seals").expect("some");
        assert!(!sealed.as_str().contains("hunter2"));
        assert_eq!(open(&at_rest, &stored("a", 3, Some(sealed.clone()))).expect("opens"), secrets);
        for moved in [stored("a", 4, Some(sealed.clone())), stored("b", 3, Some(sealed))] {
            assert!(open(&at_rest, &moved).is_err());
        }
    }

    #[test]
    fn no_secrets_are_not_sealed() {
        let at_rest = AtRestKey::generate();
        let row = stored("a", 1, None);
        assert!(seal(&at_rest, &row.key, row.generation, &Secrets::default()).expect("ok").is_none());
    }
}
