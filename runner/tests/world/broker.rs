//! A broker's double that knows people with keys: it seals, signs, grants and applies as the real parts do, or not.

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use vault::{BoxKey, Signer, consent, entry, keys};
use wire::spec::{Pin, ServiceSpec};
use wire::vault::{BoxPublic, Consent, ConsentDoc, EntryKind, Grant, RunnerVault, VaultEntry, VaultName};
use wire::{MeshId, PublicKey, ServiceName};

use super::World;

pub const MESH: &str = super::MESH;
/// Longer than what is masked at least, and found nowhere by chance.
pub const CANARY: &str = "cnry-7f3a91-the-real-value";

pub fn mesh() -> MeshId {
    MeshId::parse(MESH).expect("a mesh")
}

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

    pub fn hex(&self) -> &str {
        self.public.as_str()
    }

    pub fn entry(&self, to: &BoxKey, key: &str, version: i64, kind: EntryKind, plain: &[u8]) -> VaultEntry {
        let (mesh, key) = (mesh(), VaultName::parse(key).expect("a name"));
        let new = entry::NewEntry { mesh: &mesh, key: &key, version, created_ms: 1 };
        match kind {
            EntryKind::Gone => entry::gone(self, &new),
            kind => entry::seal(self, &new, kind, &to.public(), plain),
        }
    }

    pub fn text(&self, to: &BoxKey, key: &str, version: i64, plain: &str) -> VaultEntry {
        self.entry(to, key, version, EntryKind::Env, plain.as_bytes())
    }

    pub fn grant(&self, key: &BoxKey, runner: &BoxPublic) -> Grant {
        keys::grant(self, &mesh(), key, runner).expect("it seals")
    }

    /// Agrees to the service as the wish has it.
    pub fn agree(&self, name: &str, wish: &Value, pin: &Pin) -> Consent {
        self.sign(&document(name, wish, pin))
    }

    pub fn sign(&self, doc: &ConsentDoc) -> Consent {
        consent::sign(self, doc)
    }
}

impl Signer for Person {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}

/// Number 10, everything before withdrawn.
pub fn document(name: &str, wish: &Value, pin: &Pin) -> ConsentDoc {
    let spec: ServiceSpec = serde_json::from_value(wish["spec"].clone()).expect("a spec");
    let service = ServiceName::parse(name).expect("a name");
    let (mesh, pin) = (mesh(), consent::pin(pin));
    ConsentDoc { v: 1, mesh, service, spec, pin, serial: 10, floor: 10, min_versions: [].into() }
}

pub fn boot_key(id: &str, byte: &str) -> Bytes {
    Bytes::from(json!({"boot_id": id, "key": byte.repeat(32)}).to_string())
}

impl World {
    pub async fn vault(&self) -> RunnerVault {
        let (status, vault) = self.send(Method::GET, "/v1/vault", Bytes::new()).await;
        assert_eq!(status, StatusCode::OK, "{vault}");
        serde_json::from_value(vault).expect("a vault")
    }

    pub async fn unlock(&self) {
        let (status, answer) = self.send(Method::PUT, "/v1/vault/boot-key", boot_key("b1", "ab")).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    pub async fn hold(&self, grants: &[Grant]) -> (StatusCode, Value) {
        let body = Bytes::from(json!({ "grants": grants }).to_string());
        self.send(Method::PUT, &format!("/v1/vault/meshes/{MESH}"), body).await
    }

    /// Lets this runner open what is sealed to `key`.
    pub async fn trust(&self, owner: &Person, key: &BoxKey) {
        let public = self.vault().await.public.expect("an open vault");
        let (status, answer) = self.hold(&[owner.grant(key, &public)]).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    /// Applies and waits until the generation is ready, held back or failed.
    pub async fn outcome(&self, name: &str, wish: &Value) -> Value {
        let (status, answer) = self.apply(name, wish).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        self.settled(name, wish).await
    }

    pub async fn settled(&self, name: &str, wish: &Value) -> Value {
        let generation = wish["generation"].clone();
        self.until(name, |report| {
            let of = |slot: &str| Some(&report[slot]).filter(|g| g["generation"] == generation).cloned();
            let found = of("candidate").or_else(|| of("serving"))?;
            matches!(found["phase"].as_str(), Some("ready" | "failed" | "waiting")).then_some(found)
        })
        .await
    }

    /// Waits until the generation waits with this code.
    pub async fn waits(&self, name: &str, code: &str) -> Value {
        self.until(name, |report| {
            let mut both = [&report["candidate"], &report["serving"]].into_iter();
            both.find(|g| g["phase"] == "waiting" && g["reason"]["code"] == code).cloned()
        })
        .await
    }

    /// The pin of the fixture, which is the same for each service of it.
    pub async fn pin(&self) -> Pin {
        self.pin_of(&self.wish(&[])).await
    }

    /// The pin of this one, which runs without secrets for it.
    pub async fn pin_of(&self, wish: &Value) -> Pin {
        let ready = self.deploy("for-its-pin", wish).await;
        assert_eq!(self.remove("for-its-pin").await, StatusCode::NO_CONTENT);
        serde_json::from_value(ready["pin"].clone()).expect("a pin")
    }

    pub async fn openings(&self, after: i64) -> Vec<Value> {
        let path = format!("/v1/vault/openings?after={after}");
        let (status, openings) = self.send(Method::GET, &path, Bytes::new()).await;
        assert_eq!(status, StatusCode::OK, "{openings}");
        openings.as_array().expect("a list").clone()
    }
}

/// Lets `wish` refer to this, and its results show what it was given.
pub fn refer(wish: &mut Value, variable: &str, owner: Option<&Person>, key: &str, file: Option<&str>) {
    let mut reference = json!({ "key": key });
    if let Some(owner) = owner {
        reference["owner"] = json!(owner.hex());
    }
    if let Some(file) = file {
        reference["file"] = json!(file);
    }
    wish["spec"]["vault"][variable] = reference;
    wish["spec"]["unmasked_results"] = json!(true);
}

pub fn material(entries: &[VaultEntry], consents: &[Consent]) -> Value {
    json!({ "entries": entries, "consents": consents })
}
