//! What format v1 sealed and signed once, this and every later version opens: `fixed/v1.json` was made when v1 came, with
//! fixed test keys, and is never made again.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::Deserialize;
use vault::{AtRestKey, BoxKey, KeyRing, Sealed, Signer, consent, entry, keys};
use wire::vault::{BoxPublic, Consent, EntryKind, Grant, VaultEntry, VaultKey};
use wire::{MeshId, PublicKey};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed {
    mesh: MeshId,
    owner_seed: String,
    runner_key: String,
    owner_box_public: BoxPublic,
    vault_key: VaultKey,
    vault_key_private: String,
    grant: Grant,
    owner_copy: String,
    entries: Vec<FixedEntry>,
    gone: VaultEntry,
    consent: Consent,
    at_rest: AtRest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedEntry {
    sealed_to: String,
    /// Base64.
    plain: String,
    entry: VaultEntry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtRest {
    root: String,
    records: Vec<Record>,
    mesh_key: MeshKey,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    context: Vec<String>,
    plain: String,
    sealed: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MeshKey {
    wrapped: String,
    record: Record,
}

fn fixed() -> Fixed {
    serde_json::from_str(include_str!("fixed/v1.json")).expect("the file is of its form")
}

fn bytes(text: &str) -> [u8; 32] {
    hex::decode(text).unwrap().try_into().unwrap()
}

struct Owner(SigningKey, PublicKey);

impl Signer for Owner {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.0.sign(text.as_bytes()).to_bytes())
    }
}

fn owner(fixed: &Fixed) -> Owner {
    let key = SigningKey::from_bytes(&bytes(&fixed.owner_seed));
    let public = PublicKey::parse(&hex::encode(key.verifying_key().to_bytes())).unwrap();
    Owner(key, public)
}

#[test]
fn entries_of_v1_check_and_open() {
    let fixed = fixed();
    // The last one was sealed by another implementation (tests/interop/entry.mjs).
    assert_eq!(fixed.entries.len(), 6);
    for FixedEntry { sealed_to, plain, entry } in &fixed.entries {
        entry::check(&fixed.mesh, entry).expect("signed");
        let opened = entry::open(&BoxKey::from_bytes(&bytes(sealed_to)), &fixed.mesh, entry).expect("opens");
        assert_eq!(*opened, STANDARD.decode(plain).unwrap(), "{}", entry.key);
    }
    entry::check(&fixed.mesh, &fixed.gone).expect("a removal");
    assert_eq!(fixed.gone.kind, EntryKind::Gone);
}

#[test]
fn keys_of_v1_are_the_same_keys() {
    let fixed = fixed();
    let owner = owner(&fixed);
    keys::check_key(owner.public(), &fixed.mesh, &fixed.vault_key).expect("signed");
    let granted = keys::accept(&BoxKey::from_bytes(&bytes(&fixed.runner_key)), &fixed.mesh, &fixed.grant);
    assert_eq!(*granted.expect("opens").to_bytes(), bytes(&fixed.vault_key_private));
    let own = BoxKey::of_member(&bytes(&fixed.owner_seed));
    assert_eq!(own.public(), fixed.owner_box_public);
    let copy = keys::open_copy(&own, &fixed.mesh, &fixed.vault_key.public, &fixed.owner_copy);
    assert_eq!(*copy.expect("opens").to_bytes(), bytes(&fixed.vault_key_private));
}

/// Ed25519 is deterministic: a changed text of what is signed shows here first.
#[test]
fn what_is_signed_today_is_what_v1_signed() {
    let fixed = fixed();
    let owner = owner(&fixed);
    let VaultKey { number, public, created_ms, .. } = &fixed.vault_key;
    assert_eq!(keys::certify(&owner, &fixed.mesh, *number, public, *created_ms), fixed.vault_key);
    let VaultEntry { key, version, created_ms, .. } = &fixed.gone;
    let new = entry::NewEntry { mesh: &fixed.mesh, key, version: *version, created_ms: *created_ms };
    assert_eq!(entry::gone(&owner, &new), fixed.gone);
}

#[test]
fn a_consent_of_v1_is_read_and_covers_its_service() {
    let fixed = fixed();
    let doc = consent::check(&fixed.consent).expect("signed");
    let json: serde_json::Value = serde_json::from_str(&fixed.consent.doc).unwrap();
    assert_eq!(serde_json::to_value(&doc).unwrap(), json);
    let wanted = consent::Wanted { mesh: &fixed.mesh, service: "github", spec: &doc.spec, pin: &doc.pin };
    assert!(consent::covers(&doc, &wanted));
    assert_eq!(consent::owners(&doc.spec, None), [owner(&fixed).public().clone()]);
}

#[test]
fn records_of_v1_open_under_the_root_and_under_a_mesh_key() {
    let AtRest { root, records, mesh_key } = fixed().at_rest;
    let open = |key: &AtRestKey, record: &Record| {
        let context: Vec<&str> = record.context.iter().map(String::as_str).collect();
        let opened = key.open(&context, &Sealed::from_stored(record.sealed.clone())).expect("opens");
        assert_eq!(*opened, record.plain.as_bytes());
    };
    assert_eq!(records.len(), 3);
    let key = AtRestKey::from_hex(&root).unwrap();
    records.iter().for_each(|record| open(&key, record));
    let ring = KeyRing::new(vec![AtRestKey::generate(), key]).unwrap();
    let wrapped = Sealed::from_stored(mesh_key.wrapped);
    open(&ring.unwrap_mesh_key(&fixed().mesh, &wrapped).expect("opens"), &mesh_key.record);
}
