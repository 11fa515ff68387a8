//! The vault as services use it: what a generation's references are opened with, and what follows when an entry changes.
//!
//! Here: finding the entries and consents of a generation, their fingerprint, which references lead nowhere. Not here:
//! agreeing ([`super::consent`]), storing entries (`crate::vault`), opening them (the runner; the broker can't).
//! Invariant: what is given to the runner and what the fingerprint is made of are read in the same way.

use std::collections::BTreeSet;

use catalog::access::{self, Action, Caller, Decision};
use sha2::{Digest, Sha256};
use vault::consent::{self, Wanted as Covered};
use wire::egress::Host;
use wire::peer::hosting::VaultUse;
use wire::spec::ServiceSpec;
use wire::vault::{Consent, ConsentDoc, EntryKind, Material, RunAs, VaultEntry, VaultName, VaultRef};
use wire::{EgressRule, MeshId, PublicKey, ServiceKey, Tier};

use super::versions::version_of;
use super::{DeployError, Version, write};
use crate::app::Broker;
use crate::clock;
use crate::store::{Service, StoreError, StoredGeneration, Tx, Wanted};
use crate::views::{MeshView, ServiceView};

/// Consents of one member that a generation of unknown pin is given with.
const MAX_CONSENTS: usize = 4;

/// Names the entries and consents that a service was given with: equal ones open the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark([u8; 32]);

impl Mark {
    /// Each field with its length before it, so that ("ab", "c") and ("a", "bc") differ.
    pub fn of<'a>(fields: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for field in fields {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// Reads what [`Self::to_hex`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    fn of_material(material: &Material) -> Self {
        let Material { entries, consents, caller } = material;
        let mut fields = vec!["entries"];
        // The signature covers everything but the wrap.
        for VaultEntry { signature, wrap, .. } in entries {
            fields.push(signature);
            fields.push(wrap.as_ref().map_or("", |wrap| wrap.kid.as_str()));
        }
        fields.push("consents");
        fields.extend(consents.iter().map(|consent| consent.signature.as_str()));
        fields.push("caller");
        fields.extend(caller.as_ref().map(PublicKey::as_str));
        Self::of(fields)
    }
}

/// With what the references of a generation are opened; `None` when it has none. `caller`: whose instance it is under
/// [`RunAs::Caller`]; without one, that of the service's deployer, which lists the tools for all.
pub(crate) async fn material(
    tx: &mut Tx,
    stored: &StoredGeneration,
    caller: Option<&PublicKey>,
) -> Result<Option<Material>, StoreError> {
    find(tx, stored, caller, Content::Whole).await
}

/// The fingerprint of [`material`].
pub(crate) async fn mark(
    tx: &mut Tx,
    stored: &StoredGeneration,
    caller: Option<&PublicKey>,
) -> Result<Option<Mark>, StoreError> {
    Ok(find(tx, stored, caller, Content::Left).await?.as_ref().map(Mark::of_material))
}

/// The fingerprint of what was found before.
pub(crate) fn mark_of(material: &Material) -> Mark {
    Mark::of_material(material)
}

/// Also without references an instance of [`RunAs::Caller`] must know whose it is.
pub(crate) fn needs_material(spec: &ServiceSpec) -> bool {
    !spec.vault.is_empty() || spec.run_as == RunAs::Caller
}

/// Whether the sealed values are wanted, too: they may be large.
#[derive(Clone, Copy)]
enum Content {
    Whole,
    Left,
}

async fn find(
    tx: &mut Tx,
    stored: &StoredGeneration,
    caller: Option<&PublicKey>,
    content: Content,
) -> Result<Option<Material>, StoreError> {
    if !needs_material(&stored.spec) {
        return Ok(None);
    }
    let caller = whose(tx, stored, caller).await?;
    let mesh = &stored.key.mesh;
    let mut entries = Vec::new();
    for (owner, key) in referred(&stored.spec, caller.as_ref()) {
        if !is_member(tx, mesh, &owner).await? {
            continue;
        }
        let newest = match content {
            Content::Whole => tx.entries().newest(mesh, &owner, &key).await?,
            Content::Left => tx.entries().newest_bare(mesh, &owner, &key).await?,
        };
        entries.extend(newest);
    }
    let mut consents = Vec::new();
    for owner in consent::owners(&stored.spec, caller.as_ref()) {
        let found = consents_of(tx, stored, &owner).await?;
        if found.is_empty() {
            consents.extend(witness_of(tx, stored, &owner).await?);
        }
        consents.extend(found.into_iter().map(|(consent, _)| consent));
    }
    Ok(Some(Material { entries, consents, caller }))
}

/// Entries of somebody who was removed stay where they are, and open nothing.
async fn is_member(tx: &mut Tx, mesh: &MeshId, owner: &PublicKey) -> Result<bool, StoreError> {
    let member = tx.members().by_pubkey(mesh, owner).await?;
    Ok(member.is_some_and(|member| !member.is_revoked()))
}

/// The key behind the references without an owner; `None` when there are none.
async fn whose(
    tx: &mut Tx,
    stored: &StoredGeneration,
    caller: Option<&PublicKey>,
) -> Result<Option<PublicKey>, StoreError> {
    match (stored.spec.run_as, caller) {
        (RunAs::Deployer, _) => Ok(None),
        (RunAs::Caller, Some(caller)) => Ok(Some(caller.clone())),
        (RunAs::Caller, None) => {
            let Some(service) = tx.services().find(&stored.key).await? else { return Ok(None) };
            deployer(tx, &service).await
        }
    }
}

/// The key of who deployed the service first.
async fn deployer(tx: &mut Tx, service: &Service) -> Result<Option<PublicKey>, StoreError> {
    let member = tx.members().by_id(&service.key.mesh, &service.deployed_by).await?;
    Ok(member.map(|member| member.pubkey))
}

/// Each entry that a spec refers to, once.
fn referred(spec: &ServiceSpec, caller: Option<&PublicKey>) -> BTreeSet<(PublicKey, VaultName)> {
    let each = spec.vault.values();
    each.filter_map(|one| Some((one.owner.as_ref().or(caller)?.clone(), one.key.clone()))).collect()
}

/// The newest consent of a member to a generation as it is. As long as nobody knows its pin, one to any pin will do: the
/// runner knows it.
pub(crate) async fn consent_of(
    tx: &mut Tx,
    stored: &StoredGeneration,
    signer: &PublicKey,
) -> Result<Option<(Consent, ConsentDoc)>, StoreError> {
    Ok(consents_of(tx, stored, signer).await?.into_iter().next())
}

/// Newest first, one for each pin that the generation may turn out to have.
async fn consents_of(
    tx: &mut Tx,
    stored: &StoredGeneration,
    signer: &PublicKey,
) -> Result<Vec<(Consent, ConsentDoc)>, StoreError> {
    let all = tx.consents().by(&stored.key, signer).await?;
    let read = all.into_iter().filter_map(|one| serde_json::from_str(&one.doc).ok().map(|doc| (one, doc)));
    let read: Vec<(Consent, ConsentDoc)> = read.collect();
    let floor = read.iter().map(|(_, doc)| doc.floor).max().unwrap_or_default();
    let known = stored.pin.as_ref().map(consent::pin);
    let mut found: Vec<(Consent, ConsentDoc)> = Vec::new();
    for (one, doc) in read {
        let (mesh, service) = (&stored.key.mesh, stored.key.name.as_str());
        let pin = known.as_ref().unwrap_or(&doc.pin);
        let is_covered = consent::covers(&doc, &Covered { mesh, service, spec: &stored.spec, pin });
        let is_new = found.iter().all(|(_, newer)| newer.pin != doc.pin);
        let is_wanted = is_covered && is_new && doc.serial >= floor && found.len() < MAX_CONSENTS;
        // What does not check was not written by us; the runner would refuse it, too.
        if is_wanted && consent::check(&one).is_ok() {
            found.push((one, doc));
        }
    }
    Ok(found)
}

/// A consent to the same pin of another state of the service. It opens nothing; but a runner takes a lock from us only when an
/// owner of the secrets has signed it, and installs the same again while the new state waits for its signature.
async fn witness_of(
    tx: &mut Tx,
    stored: &StoredGeneration,
    signer: &PublicKey,
) -> Result<Option<Consent>, StoreError> {
    let Some(pin) = stored.pin.as_ref().map(consent::pin) else { return Ok(None) };
    let all = tx.consents().by(&stored.key, signer).await?;
    let names_it = |one: &Consent| consent::check(one).is_ok_and(|doc| doc.pin == pin);
    Ok(all.into_iter().find(names_it))
}

/// Whether what is asked of the vault can come true: every reference has its entry, and values come only to where they may.
pub(super) async fn leads_somewhere(
    tx: &mut Tx,
    view: &MeshView,
    (caller, existing): (&Caller, Option<&Service>),
    spec: &ServiceSpec,
) -> Result<(), DeployError> {
    let mut each = spec.vault.values();
    if spec.isolation == Some(Tier::Light) && each.any(|one| one.file.is_some()) {
        return Err(DeployError::FileInLight);
    }
    inject_is_allowed(spec)?;
    // Under `Caller` it is the service's deployer whose instance lists the tools.
    let deployer = existing.map_or(&caller.member, |service| &service.deployed_by);
    let missing = missing(tx, &caller.mesh, spec, view.key_of(deployer)).await?;
    if missing.is_empty() { Ok(()) } else { Err(DeployError::Missing(missing)) }
}

/// Hosts are not added to the network by themselves: what a service may reach is what its deployer wrote there.
fn inject_is_allowed(spec: &ServiceSpec) -> Result<(), DeployError> {
    let refuse = |message: String| Err(DeployError::Inject(message));
    if !spec.inject.is_empty() && spec.vault.values().all(|one| one.file.is_some()) {
        return refuse("nothing to inject: no variable of config.env is a `$vault:KEY`".into());
    }
    let is_allowed = |rule: &&EgressRule| {
        let covered = |host: &String| spec.network.iter().any(|known| known.covers(host, rule.port));
        spec.network.contains(rule) || matches!(&rule.host, Host::Name(host) if covered(host))
    };
    match spec.inject.iter().find(|rule| !is_allowed(rule)) {
        Some(rule) => {
            refuse(format!("the service may not connect to `{rule}`; add it to config.network_allow"))
        }
        None => Ok(()),
    }
}

/// References of a spec that lead to no entry, as `VARIABLE ($vault:key)`.
pub(crate) async fn missing(
    tx: &mut Tx,
    mesh: &MeshId,
    spec: &ServiceSpec,
    caller: Option<&PublicKey>,
) -> Result<Vec<String>, StoreError> {
    let mut missing = Vec::new();
    for (variable, reference) in &spec.vault {
        if version(tx, mesh, reference, caller).await?.is_none() {
            missing.push(format!("{variable} ({})", reference.text()));
        }
    }
    Ok(missing)
}

async fn version(
    tx: &mut Tx,
    mesh: &MeshId,
    reference: &VaultRef,
    caller: Option<&PublicKey>,
) -> Result<Option<i64>, StoreError> {
    let Some(owner) = reference.owner.as_ref().or(caller) else { return Ok(None) };
    let newest = tx.entries().newest_bare(mesh, owner, &reference.key).await?;
    Ok(newest.filter(|entry| entry.kind != EntryKind::Gone).map(|entry| entry.version))
}

/// The references of a service for somebody who manages it; empty for everybody else.
///
/// # Errors
/// [`StoreError`].
pub async fn uses(
    broker: &Broker,
    (caller, view): (&Caller, &MeshView),
    service: &ServiceView,
) -> Result<Vec<VaultUse>, StoreError> {
    let mut uses = Vec::new();
    let manages = access::decide(caller, Action::Update, Some(service.subject())) == Decision::Allow;
    if service.spec().vault.is_empty() || !manages {
        return Ok(uses);
    }
    let mut tx = broker.store.read().await?;
    for (variable, reference) in &service.spec().vault {
        uses.push(VaultUse {
            variable: variable.clone(),
            reference: reference.text(),
            owner: reference.owner.as_ref().map(|owner| view.name_of_key(owner)),
            version: version(&mut tx, &service.key().mesh, reference, None).await?,
        });
    }
    Ok(uses)
}

/// What follows from the next version of an entry, in the transaction that stores it: who runs with it gets the new value by
/// a new generation, who holds a removed one is stopped. Answers these services; commit with [`crate::commit`].
///
/// # Errors
/// [`DeployError`].
pub(crate) async fn vault_changed(
    broker: &Broker,
    tx: &mut Tx,
    mesh: &MeshId,
    (owner, key): (&PublicKey, &VaultName),
    kind: EntryKind,
) -> Result<Vec<ServiceKey>, DeployError> {
    let is_it = |of: &PublicKey, name: &VaultName| of == owner && name == key;
    if kind == EntryKind::Gone {
        return Ok(stop_holders(tx, mesh, is_it).await?);
    }
    let mut renewed = Vec::new();
    for (service, deployer) in running(tx, mesh).await? {
        let Some(target) = tx.generations().find(&service.key, service.target).await? else { continue };
        if refers(&target.spec, deployer.as_ref(), is_it) {
            let by = target.deployed_by.clone();
            let version = Version { starts: false, ..version_of(broker, tx, target).await? };
            write(broker, tx, &service.key, (service.latest.0, &by, &service.scope), version).await?;
            renewed.push(service.key);
        }
    }
    Ok(renewed)
}

/// Who is removed from the mesh takes their secrets along: what runs with them stops.
pub(crate) async fn owner_left(
    tx: &mut Tx,
    mesh: &MeshId,
    owner: &PublicKey,
) -> Result<Vec<ServiceKey>, StoreError> {
    stop_holders(tx, mesh, |of, _| of == owner).await
}

async fn stop_holders(
    tx: &mut Tx,
    mesh: &MeshId,
    is_it: impl Fn(&PublicKey, &VaultName) -> bool,
) -> Result<Vec<ServiceKey>, StoreError> {
    let mut stopped = Vec::new();
    for (service, deployer) in running(tx, mesh).await? {
        let Some(target) = tx.generations().find(&service.key, service.target).await? else { continue };
        let mut holds = refers(&target.spec, deployer.as_ref(), &is_it);
        // While a target is untried, the version before it runs and holds what it was given.
        if !target.proven
            && let Some(before) = tx.generations().previous_proven(&target.key, target.generation).await?
        {
            holds |= refers(&before.spec, deployer.as_ref(), &is_it);
        }
        if holds {
            tx.services().set_wanted(&service.key, Wanted::Stopped, clock::now_ms()).await?;
            stopped.push(service.key);
        }
    }
    Ok(stopped)
}

/// What people want to run in a mesh, and the keys of who deployed it.
async fn running(tx: &mut Tx, mesh: &MeshId) -> Result<Vec<(Service, Option<PublicKey>)>, StoreError> {
    let mut running = Vec::new();
    for service in tx.services().list(mesh).await? {
        if service.wanted == Wanted::Running {
            let deployer = deployer(tx, &service).await?;
            running.push((service, deployer));
        }
    }
    Ok(running)
}

fn refers(
    spec: &ServiceSpec,
    caller: Option<&PublicKey>,
    is_it: impl Fn(&PublicKey, &VaultName) -> bool,
) -> bool {
    referred(spec, caller).iter().any(|(owner, key)| is_it(owner, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_its_fields_and_not_of_their_joined_text() {
        assert_eq!(Mark::of(["a", "b"]), Mark::of(["a", "b"]));
        for other in [vec!["ab"], vec!["a", "b", ""], vec!["b", "a"], vec!["", "ab"]] {
            assert_ne!(Mark::of(["a", "b"]), Mark::of(other.clone()), "{other:?}");
        }
        let mark = Mark::of(["x"]);
        assert_eq!(Mark::parse(&mark.to_hex()), Some(mark));
        assert_eq!(Mark::parse("00"), None);
    }
}
