//! Signing a service as it is to run. Whether it is what its owner wants, the caller has decided.

use std::collections::BTreeMap;
use std::path::Path;

use vault::consent;
use wire::ErrorCode;
use wire::vault::{Consent, ConsentAsk, ConsentDoc, VaultName};

use super::{local, refused};
use crate::config::{Config, MeshEntry, VaultTrust};
use crate::connection::now_ms;
use crate::error::ClientError;

/// What this member signed for the service the last time; `None` of a first time.
///
/// # Errors
/// `vault_damaged` when the broker offers something else than this member's own newest signature for this service.
pub fn previous(entry: &MeshEntry, ask: &ConsentAsk) -> Result<Option<ConsentDoc>, ClientError> {
    let damaged = |why: &str| {
        let message = format!("what the broker offers as your earlier consent to {}: {why}", ask.service);
        refused(ErrorCode::VaultDamaged, message)
    };
    let Some(signed) = &ask.previous else { return Ok(None) };
    let identity = entry.identity().map_err(local)?;
    if signed.signer != *identity.public() {
        return Err(damaged("it is somebody else's"));
    }
    let doc = consent::check(signed).map_err(|why| damaged(&why.to_string()))?;
    if doc.mesh != entry.mesh_id || doc.service.as_str() != ask.service.as_str() {
        return Err(damaged("it is for another service"));
    }
    // One that is signed anew from another machine is newer; an older one brings back what was taken away since.
    let is_newest = entry.vault.signed.get(&ask.service).is_none_or(|newest| doc.serial >= *newest);
    Ok(is_newest.then_some(doc))
}

/// Agrees to exactly what is asked, and writes down that it did. Every consent before the previous one is withdrawn; that
/// one stays, for the generation that serves until this one does.
///
/// # Errors
/// As [`previous`]; when the stored key of the member is damaged or the config can not be written.
pub fn sign(folder: &Path, entry: &MeshEntry, ask: &ConsentAsk) -> Result<Consent, ClientError> {
    let identity = entry.identity().map_err(local)?;
    let offered = previous(entry, ask)?.map_or(0, |doc| doc.serial);
    let earlier = entry.vault.signed.get(&ask.service).copied().unwrap_or_default().max(offered);
    let next =
        earlier.checked_add(1).ok_or_else(|| local("the serial of the earlier consent is the last"))?;
    let own = |name: &VaultName| {
        ask.spec.vault.values().any(|reference| {
            reference.key == *name && reference.owner.as_ref().is_none_or(|owner| owner == identity.public())
        })
    };
    let versions: BTreeMap<VaultName, i64> =
        ask.versions.iter().filter(|(name, _)| own(name)).map(|(name, at)| (name.clone(), *at)).collect();
    let doc = ConsentDoc {
        v: 1,
        mesh: entry.mesh_id.clone(),
        service: ask.service.clone(),
        spec: ask.spec.clone(),
        pin: ask.pin.clone(),
        serial: now_ms().max(next),
        floor: earlier,
        min_versions: versions,
    };
    let note = |trust: &mut VaultTrust| {
        let newest = trust.signed.entry(doc.service.clone()).or_default();
        *newest = doc.serial.max(*newest);
    };
    Config::learn(folder, &entry.mesh_id, note).map_err(local)?;
    Ok(consent::sign(&identity, &doc))
}
