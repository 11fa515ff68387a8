//! The opening, with everything around it but a process.

use serde_json::json;
use vault::{BoxKey, consent, entry};
use wire::runner::Apply;
use wire::spec::Pin;
use wire::vault::{BootKey, ConsentDoc, Custody, EntryKind, Grants, VaultEntry, VaultName, VaultState};
use wire::{ErrorCode, MeshId, Secret, ServiceKey, ServiceName};

use super::testing::Person;
use super::{Refusal, Start, Vault, Why};

struct Bench {
    dir: tempfile::TempDir,
    vault: Vault,
    owner: Person,
    key: BoxKey,
    service: ServiceKey,
    pin: Pin,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(Custody::Split, dir.path(), None);
        let mesh = MeshId::parse(&"m".repeat(32)).unwrap();
        let service = ServiceKey { mesh, name: ServiceName::parse("app").unwrap() };
        let pin = json!({"kind": "npm", "name": "x", "version": "1", "integrity": "i", "artefact": "a"});
        let (owner, key, pin) = (Person::new(1), BoxKey::generate(), serde_json::from_value(pin).unwrap());
        Self { dir, vault, owner, key, service, pin }
    }

    fn unlocked(self) -> Self {
        self.vault.unlock(&BootKey { boot_id: "b".to_owned(), key: Secret::new("ab".repeat(32)) }).unwrap();
        self
    }

    fn trusted(self) -> Self {
        let bench = self.unlocked();
        let public = bench.vault.describe().public.unwrap();
        let grant = vault::keys::grant(&bench.owner, &bench.service.mesh, &bench.key, &public).unwrap();
        bench.vault.hold(&bench.service.mesh, &Grants { grants: vec![grant] }).unwrap();
        bench
    }

    fn entry(&self, key: &str, kind: EntryKind, plain: &[u8]) -> VaultEntry {
        let key = VaultName::parse(key).unwrap();
        let new = entry::NewEntry { mesh: &self.service.mesh, key: &key, version: 1, created_ms: 0 };
        entry::seal(&self.owner, &new, kind, &self.key.public(), plain)
    }

    /// Variables `V0`, `V1`, … that refer to these entries, with a good consent.
    fn apply(&self, entries: Vec<VaultEntry>) -> Apply {
        let mut apply: Apply = serde_json::from_value(json!({
            "generation": 1, "proven": false, "secrets": {}, "spec": {"source": {"type": "npx", "package": "x"}},
        }))
        .unwrap();
        for (n, entry) in entries.iter().enumerate() {
            let reference = json!({"owner": entry.owner, "key": entry.key});
            apply.spec.vault.insert(format!("V{n}"), serde_json::from_value(reference).unwrap());
        }
        let doc = ConsentDoc {
            v: 1,
            mesh: self.service.mesh.clone(),
            service: self.service.name.clone(),
            spec: apply.spec.clone(),
            pin: consent::pin(&self.pin),
            serial: 1,
            floor: 0,
            min_versions: [].into(),
        };
        apply.vault.consents.push(consent::sign(&self.owner, &doc));
        apply.vault.entries = entries;
        apply
    }

    fn open(&self, apply: &Apply) -> Result<Vec<(String, Vec<u8>)>, Refusal> {
        let start = Start { key: &self.service, apply, pin: &self.pin, why: Why::Start };
        let values = self.vault.open(&start)?;
        Ok(values.into_iter().map(|value| (value.variable.clone(), value.bytes.to_vec())).collect())
    }
}

#[test]
fn each_of_many_values_comes_out_under_its_own_variable_and_is_booked_once() {
    let bench = Bench::new().trusted();
    let entries = (0..50).map(|n| bench.entry(&format!("k{n}"), EntryKind::Env, format!("v{n}").as_bytes()));
    let apply = bench.apply(entries.collect());
    let values = bench.open(&apply).unwrap();
    assert_eq!(values.len(), 50);
    for (variable, value) in values {
        assert_eq!(value, format!("v{}", &variable[1..]).into_bytes());
    }
    let booked = bench.vault.openings(0).unwrap();
    assert_eq!(booked.iter().map(|o| o.seq).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    let keys: std::collections::BTreeSet<_> = booked.iter().map(|o| o.key.as_str().to_owned()).collect();
    assert_eq!(keys.len(), 50);
}

#[test]
fn two_references_to_one_entry_are_one_opening() {
    let bench = Bench::new().trusted();
    let one = bench.entry("k", EntryKind::Env, b"v");
    let apply = bench.apply(vec![one.clone(), one]);
    assert_eq!(bench.open(&apply).unwrap().len(), 2);
    assert_eq!(bench.vault.describe().last_opening, 1);
}

#[test]
fn what_can_be_mended_first_is_told_first_and_a_locked_runner_last() {
    let bench = Bench::new();
    let (a, b) = (bench.entry("a", EntryKind::Env, b"v"), bench.entry("b", EntryKind::Env, b"v"));
    let whole = bench.apply(vec![a, b]);
    let code = |bench: &Bench, apply: &Apply| bench.open(apply).unwrap_err().code();
    let mut apply = whole.clone();
    apply.vault.entries.remove(0);
    apply.vault.consents.clear();
    assert_eq!(code(&bench, &apply), ErrorCode::VaultMissing);
    apply.vault.entries.clone_from(&whole.vault.entries);
    assert_eq!(code(&bench, &apply), ErrorCode::AwaitingConsent);
    apply.vault.entries[1].version = 9;
    assert_eq!(code(&bench, &apply), ErrorCode::VaultDamaged);
    assert_eq!(code(&bench, &whole), ErrorCode::VaultLocked);
    let bench = bench.unlocked();
    assert_eq!(code(&bench, &whole), ErrorCode::RunnerNotTrusted);
    let bench = bench.trusted();
    assert_eq!(bench.open(&whole).unwrap().len(), 2);
}

#[test]
fn a_signature_that_was_good_once_is_good_for_that_entry_only() {
    let bench = Bench::new().trusted();
    let apply = bench.apply(vec![bench.entry("k", EntryKind::Env, b"v")]);
    bench.vault.look_ahead(&bench.service, &apply);
    bench.open(&apply).unwrap();
    for change in [
        (|e: &mut VaultEntry| e.created_ms += 1) as fn(&mut VaultEntry),
        |e| e.content.insert(0, 'A'),
        |e| e.kind = EntryKind::File,
        |e| e.version = 2,
    ] {
        let mut changed = apply.clone();
        change(&mut changed.vault.entries[0]);
        assert_eq!(bench.open(&changed).unwrap_err().code(), ErrorCode::VaultDamaged);
    }
}

#[test]
fn what_was_seen_that_can_not_be_read_or_written_keeps_everything_shut() {
    let bench = Bench::new().trusted();
    let apply = bench.apply(vec![bench.entry("k", EntryKind::Env, b"v")]);
    std::fs::create_dir(bench.dir.path().join("seen.json~")).unwrap();
    assert_eq!(bench.open(&apply).unwrap_err().code(), ErrorCode::LedgerFailed);
    assert_eq!(bench.vault.describe().last_opening, 0);
    std::fs::write(bench.dir.path().join("seen.json"), "{").unwrap();
    let vault = Vault::new(Custody::Memory, bench.dir.path(), None);
    let damaged = Bench { vault, dir: tempfile::tempdir().unwrap(), ..bench };
    assert_eq!(damaged.open(&apply).unwrap_err().code(), ErrorCode::LedgerFailed);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("owners.json"), "{").unwrap();
    let vault = Vault::new(Custody::Memory, dir.path(), None);
    assert!(matches!(vault.describe().state, VaultState::Broken { .. }));
    assert!(vault.hold(&damaged.service.mesh, &Grants::default()).is_err());
    assert_eq!(std::fs::read(dir.path().join("owners.json")).unwrap(), b"{", "untouched");
}

#[test]
fn a_value_that_is_no_text_is_no_variable_and_the_refusal_does_not_show_it() {
    let bench = Bench::new().trusted();
    let apply = bench.apply(vec![bench.entry("k", EntryKind::File, b"hunter2\0")]);
    let refusal = bench.open(&apply).unwrap_err();
    assert_eq!(refusal.code(), ErrorCode::VaultError);
    assert!(refusal.to_string().contains("V0 ($vault:k)") && !refusal.to_string().contains("hunter2"));
}
