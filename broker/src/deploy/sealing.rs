//! Secrets at rest: sealed under the mesh's key before they are stored, opened only to be handed to the runner or to
//! be sealed again for another generation.
//!
//! Not here: the keys ([`crate::at_rest`]).

use vault::Sealed;
use wire::spec::Secrets;
use wire::{Generation, ServiceKey};
use zeroize::Zeroizing;

use crate::at_rest::{AtRest, AtRestError, secrets_context};
use crate::store::{StoredGeneration, Tx};

#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    /// Says nothing of the content.
    #[error("the opened secrets have an unknown form")]
    Form,
}

/// `None` when there is nothing to seal.
pub(crate) async fn seal(
    at_rest: &AtRest,
    tx: &mut Tx,
    key: &ServiceKey,
    generation: Generation,
    secrets: &Secrets,
) -> Result<Option<Sealed>, SealingError> {
    if *secrets == Secrets::default() {
        return Ok(None);
    }
    let plain = Zeroizing::new(serde_json::to_vec(secrets).map_err(|_| SealingError::Form)?);
    let generation = generation.to_string();
    Ok(Some(at_rest.seal(tx, &key.mesh, &secrets_context(key, &generation), &plain).await?))
}

pub(crate) async fn open(
    at_rest: &AtRest,
    tx: &mut Tx,
    stored: &StoredGeneration,
) -> Result<Secrets, SealingError> {
    let Some(sealed) = &stored.secrets else { return Ok(Secrets::default()) };
    let generation = stored.generation.to_string();
    let context = secrets_context(&stored.key, &generation);
    let plain = at_rest.open(tx, &stored.key.mesh, &context, sealed).await?;
    serde_json::from_slice(&plain).map_err(|_| SealingError::Form)
}

#[cfg(test)]
mod tests {
    use vault::AtRestKey;
    use wire::spec::{ServiceSpec, Source};
    use wire::{MemberId, MeshId, PublicKey, Secret, ServiceName};

    use super::*;
    use crate::store::{Store, StoreConfig};

    fn stored(mesh: &MeshId, name: &str, generation: i64, secrets: Option<Sealed>) -> StoredGeneration {
        StoredGeneration {
            key: ServiceKey { mesh: mesh.clone(), name: ServiceName::parse(name).expect("name") },
            generation: Generation(generation),
            spec: ServiceSpec::of(Source::Npx { package: "p".into(), bin: None }),
            secrets,
            pin: None,
            proven: false,
            deployed_by: MemberId::parse(&"U".repeat(32)).expect("member"),
            created_at: 0,
        }
    }

    #[tokio::test]
    async fn secrets_open_for_their_own_generation_only_and_none_are_not_sealed() {
        let dir = tempfile::TempDir::new().expect("temp dir");
        let url = format!("sqlite:{}", dir.path().join("broker.db").display());
        let store = Store::open(StoreConfig { url, max_connections: 2 }).await.expect("opens");
        let owner = |seed: &str| PublicKey::parse(&seed.repeat(32)).expect("key");
        let mesh = crate::bootstrap(&store, "acme", &owner("ab"), "Olga").await.expect("mesh").mesh;
        let other = crate::bootstrap(&store, "other", &owner("cd"), "Bo").await.expect("mesh").mesh;
        let at_rest = AtRest::new(vec![AtRestKey::generate()]).expect("a root");
        let mut tx = store.begin().await.expect("begins");
        let mut secrets = Secrets::default();
        secrets.env.insert("KEY".into(), Secret::new("hunter2"));
        let row = stored(&mesh, "a", 3, None);
        let sealed = seal(&at_rest, &mut tx, &row.key, row.generation, &secrets).await;
        let sealed = sealed.expect("seals").expect("some");
        assert!(!sealed.as_str().contains("hunter2"));
        let own = stored(&mesh, "a", 3, Some(sealed.clone()));
        assert_eq!(open(&at_rest, &mut tx, &own).await.expect("opens"), secrets);
        for (mesh, name, generation) in [(&mesh, "a", 4), (&mesh, "b", 3), (&other, "a", 3)] {
            let moved = stored(mesh, name, generation, Some(sealed.clone()));
            assert!(open(&at_rest, &mut tx, &moved).await.is_err());
        }
        let none = seal(&at_rest, &mut tx, &row.key, row.generation, &Secrets::default()).await;
        assert!(none.expect("ok").is_none());
    }
}
