//! Signing a service as it is to run. Whether it is what its owner wants, the caller has decided.

use std::collections::BTreeMap;

use vault::consent;
use wire::vault::{Consent, ConsentAsk, ConsentDoc, VaultName};
use wire::{ErrorCode, MeshId};

use super::{local, refused};
use crate::config::MeshEntry;
use crate::connection::now_ms;
use crate::error::ClientError;
use crate::identity::Identity;

/// What this member signed for the service the last time, as far as the broker tells; `None` of a first time.
///
/// # Errors
/// `vault_damaged` when the broker offers something else than this member's own signature for this service.
pub fn previous(
    identity: &Identity,
    mesh: &MeshId,
    ask: &ConsentAsk,
) -> Result<Option<ConsentDoc>, ClientError> {
    let Some(signed) = &ask.previous else { return Ok(None) };
    let damaged = |why: &str| {
        let message = format!("what the broker offers as your earlier consent to {}: {why}", ask.service);
        refused(ErrorCode::VaultDamaged, message)
    };
    if signed.signer != *identity.public() {
        return Err(damaged("it is somebody else's"));
    }
    let doc = consent::check(signed).map_err(|why| damaged(&why.to_string()))?;
    if doc.mesh != *mesh || doc.service.as_str() != ask.service.as_str() {
        return Err(damaged("it is for another service"));
    }
    Ok(Some(doc))
}

/// Agrees to exactly what is asked. Every consent before the previous one is withdrawn; that one stays, for the
/// generation that serves until this one does.
///
/// # Errors
/// As [`previous`]; when the stored key of the member is damaged.
pub fn sign(entry: &MeshEntry, ask: &ConsentAsk) -> Result<Consent, ClientError> {
    let identity = entry.identity().map_err(local)?;
    let earlier = previous(&identity, &entry.mesh_id, ask)?.map_or(0, |doc| doc.serial);
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
    Ok(consent::sign(&identity, &doc))
}
