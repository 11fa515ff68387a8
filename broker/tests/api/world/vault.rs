//! The vault of the runner that keeps its word, and members who seal and sign.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer as _, SigningKey};
use vault::{BoxKey, Signer, consent, entry, keys};
use wire::report::Reason;
use wire::runner::Apply;
use wire::vault::{
    BootKey, BoxPublic, Consent, ConsentAsk, ConsentDoc, Custody, EntryKind, Grants, KeyId, Opening,
    RunnerVault, VaultEntry, VaultKey, VaultName, VaultState,
};
use wire::{ErrorCode, MeshId, PublicKey, Secret, ServiceKey, ServiceName};

/// What of a runner's vault outlives its process is its boot key, its own key and its ledger.
pub struct FakeVault {
    pub custody: Custody,
    /// Under which its key lies on its disk.
    boot: Option<(String, Secret)>,
    key: BoxKey,
    is_open: bool,
    held: BTreeMap<MeshId, BTreeMap<KeyId, BoxKey>>,
    openings: Vec<Opening>,
    ledger: String,
    /// What each signer has withdrawn.
    floors: BTreeMap<PublicKey, i64>,
}

impl Default for FakeVault {
    fn default() -> Self {
        Self {
            custody: Custody::Split,
            boot: None,
            key: BoxKey::generate(),
            is_open: false,
            held: BTreeMap::new(),
            openings: Vec::new(),
            ledger: uuid::Uuid::new_v4().simple().to_string(),
            floors: BTreeMap::new(),
        }
    }
}

impl FakeVault {
    pub fn public(&self) -> BoxPublic {
        self.key.public()
    }

    /// The process ended.
    pub fn forget(&mut self) {
        self.is_open = false;
        self.held.clear();
    }

    /// Its disk is another one's.
    pub fn lie_under(&mut self, boot_id: &str) {
        self.boot = Some((boot_id.to_owned(), Secret::new("00".repeat(32))));
    }

    pub fn describe(&self) -> RunnerVault {
        let state = match &self.boot {
            _ if self.is_open => VaultState::Open,
            Some((boot_id, _)) => VaultState::Locked { boot_id: boot_id.clone() },
            None => VaultState::New,
        };
        let public = self.is_open.then(|| self.key.public());
        let held = self.held.iter().map(|(mesh, keys)| (mesh.clone(), keys.keys().cloned().collect()));
        RunnerVault {
            custody: self.custody,
            state,
            runner: public.as_ref().map(keys::runner_id),
            public,
            held: held.collect(),
            last_opening: self.openings.last().map_or(0, |opening| opening.seq),
            ledger: self.ledger.clone(),
        }
    }

    /// `false` when it is another one's.
    pub fn unlock(&mut self, boot: BootKey) -> bool {
        let BootKey { boot_id, key } = boot;
        let known = self.boot.get_or_insert((boot_id.clone(), key.clone()));
        let fits = *known == (boot_id, key);
        self.is_open |= fits;
        fits
    }

    pub fn hold(&mut self, mesh: MeshId, grants: &Grants) -> bool {
        let accepted = grants.grants.iter().map(|grant| {
            let key = keys::accept(&self.key, &mesh, grant).ok()?;
            Some((grant.kid.clone(), key))
        });
        let accepted: Option<BTreeMap<_, _>> = accepted.collect();
        let Some(accepted) = accepted else { return false };
        self.held.insert(mesh, accepted);
        true
    }

    pub fn openings(&self, after: i64) -> Vec<Opening> {
        self.openings.iter().filter(|opening| opening.seq > after).cloned().collect()
    }

    /// Writes a line of something that it did not open.
    pub fn claim(&mut self, change: impl FnOnce(&mut Opening)) {
        let first = self.openings.first().expect("it opened something").clone();
        let seq = i64::try_from(self.openings.len()).expect("few") + 1;
        let mut opening = Opening { seq, ..first };
        change(&mut opening);
        self.openings.push(opening);
    }

    fn see_floors(&mut self, consents: &[Consent]) {
        for one in consents {
            let floor = consent::check(one).expect("signed").floor;
            let seen = self.floors.entry(one.signer.clone()).or_default();
            *seen = floor.max(*seen);
        }
    }

    /// The values by variable, as a real runner opens them, or why it would not.
    pub fn open(
        &mut self,
        service: &ServiceKey,
        apply: &Apply,
        pin: &wire::spec::Pin,
    ) -> Result<BTreeMap<String, String>, Reason> {
        let mut values = BTreeMap::new();
        let material = &apply.vault;
        if apply.spec.vault.is_empty() {
            return Ok(values);
        }
        if !self.is_open {
            return Err(refused(ErrorCode::VaultLocked, "no boot key"));
        }
        let plain = ServiceName::parse(service.name.plain()).expect("a name");
        let wanted = consent::Wanted {
            mesh: &service.mesh,
            service: plain.as_str(),
            spec: &apply.spec,
            pin: &consent::pin(pin),
        };
        self.see_floors(&material.consents);
        for owner in consent::owners(&apply.spec, material.caller.as_ref()) {
            let floor = self.floors.get(&owner).copied().unwrap_or_default();
            let agreed = |one: &&Consent| {
                let covers =
                    |doc: wire::vault::ConsentDoc| doc.serial >= floor && consent::covers(&doc, &wanted);
                one.signer == owner && consent::check(one).is_ok_and(covers)
            };
            if material.consents.iter().find(agreed).is_none() {
                return Err(refused(ErrorCode::AwaitingConsent, "nobody agreed to this"));
            }
        }
        for (variable, reference) in &apply.spec.vault {
            let owner = reference.owner.as_ref().or(material.caller.as_ref()).expect("whose");
            let entry = material.entries.iter().find(|e| e.owner == *owner && e.key == reference.key);
            let Some(entry) = entry.filter(|entry| entry.kind != EntryKind::Gone) else {
                let message = format!("{variable} ({})", reference.text());
                return Err(refused(ErrorCode::VaultMissing, &message));
            };
            entry::check(&service.mesh, entry).expect("signed");
            let kid = &entry.wrap.as_ref().expect("a wrap").kid;
            let key = self.held.get(&service.mesh).and_then(|held| held.get(kid));
            let Some(key) = key else {
                return Err(refused(ErrorCode::RunnerNotTrusted, "this key is not held"));
            };
            let value = entry::open(key, &service.mesh, entry).expect("opens");
            values.insert(variable.clone(), String::from_utf8(value.to_vec()).expect("text"));
            self.openings.push(Opening {
                seq: i64::try_from(self.openings.len()).expect("few") + 1,
                at_ms: super::peer::now_ms(),
                runner: keys::runner_id(&self.key.public()),
                mesh: service.mesh.clone(),
                owner: owner.clone(),
                key: entry.key.clone(),
                version: entry.version,
                service: service.name.clone(),
                generation: apply.generation.0,
                caller: service.name.caller(),
                reason: "start".into(),
            });
        }
        Ok(values)
    }
}

fn refused(code: ErrorCode, message: &str) -> Reason {
    Reason { code, message: message.into(), stderr: vec![] }
}

/// A member who seals and signs.
pub struct Member {
    key: SigningKey,
    public: PublicKey,
}

impl Member {
    pub fn of(seed: u8) -> Self {
        let key = super::key(seed);
        Self { public: super::public(&key), key }
    }

    pub fn sealed(&self, mesh: &MeshId, key: &str, version: i64, to: &VaultKey, value: &str) -> VaultEntry {
        let key = VaultName::parse(key).expect("a name");
        let new = entry::NewEntry { mesh, key: &key, version, created_ms: super::peer::now_ms() };
        entry::seal(self, &new, EntryKind::Env, &to.public, value.as_bytes())
    }

    pub fn gone(&self, mesh: &MeshId, key: &str, version: i64) -> VaultEntry {
        let key = VaultName::parse(key).expect("a name");
        entry::gone(self, &entry::NewEntry { mesh, key: &key, version, created_ms: super::peer::now_ms() })
    }

    /// Agrees to exactly what is asked.
    pub fn consent(&self, mesh: &MeshId, ask: &ConsentAsk, serial: i64) -> Consent {
        self.consent_to(mesh, ask, serial, |_| {})
    }

    /// Agrees to something else.
    pub fn consent_to(
        &self,
        mesh: &MeshId,
        ask: &ConsentAsk,
        serial: i64,
        change: impl FnOnce(&mut ConsentDoc),
    ) -> Consent {
        let ConsentAsk { service, generation: _, spec, pin, versions, previous: _ } = ask.clone();
        let mut doc = ConsentDoc {
            v: 1,
            mesh: mesh.clone(),
            service,
            spec,
            pin,
            serial,
            floor: 0,
            min_versions: versions,
        };
        change(&mut doc);
        consent::sign(self, &doc)
    }
}

impl Signer for Member {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}
