//! The mesh's vault keys and their rotation, by the mesh's owner; and the rotation of the broker's own at-rest key.
//!
//! ```text
//! a rotation: put_key (what is new is sealed to it) → wraps, rewrap (until nothing is left) → drop_key
//! ```

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use catalog::access::Action;
use vault::{entry, keys as vault_keys};
use wire::peer::vault::{
    AtRestRotated, KeptKey, VaultKeyPut, VaultKeysResult, VaultRewrap, VaultRewrapped, VaultWraps,
    VaultWrapsResult,
};
use wire::vault::{Grant, KeyId, MAX_ENTRIES, RunnerId, VaultKey};

use super::{Asker, VaultError};
use crate::at_rest::Rotated;
use crate::commit::commit;
use crate::store::{Act, ActKind, Tx};

/// Longer than the sealed private half is in base64.
const MAX_COPY: usize = 1024;
const MAX_GRANTS: usize = 256;

/// # Errors
/// [`VaultError`].
pub async fn keys(asker: Asker<'_>) -> Result<VaultKeysResult, VaultError> {
    if !asker.may(Action::KeepSecrets) {
        return Err(VaultError::Forbidden("guests keep no secrets in the vault"));
    }
    let (mesh, is_owner) = (&asker.caller.mesh, asker.owns().is_ok());
    let mut tx = asker.broker.store.read().await?;
    let mut keys = Vec::new();
    for stored in tx.vault_keys().list(mesh).await? {
        let entries = tx.entries().count_sealed_to(mesh, &stored.key.kid).await?;
        let owner_copy = is_owner.then_some(stored.owner_copy);
        keys.push(KeptKey { key: stored.key, entries, owner_copy });
    }
    Ok(VaultKeysResult { owner: asker.view.mesh().owner_pubkey.clone(), keys })
}

/// Stores the next vault key, with its copy and grants.
///
/// # Errors
/// [`VaultError`].
pub async fn put_key(asker: Asker<'_>, frame: VaultKeyPut) -> Result<VaultKeysResult, VaultError> {
    asker.owns()?;
    let VaultKeyPut { key, owner_copy, grants } = frame;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    vault_keys::check_key(&asker.view.mesh().owner_pubkey, mesh, &key)?;
    if owner_copy.is_empty() || owner_copy.len() > MAX_COPY || BASE64.decode(&owner_copy).is_err() {
        return Err(VaultError::Args("owner_copy is base64 of at most 1,024 characters"));
    }
    check_grants(asker, &grants)?;
    if grants.iter().any(|grant| grant.kid != key.kid) {
        return Err(VaultError::Args("the grants are of another key"));
    }
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    tx.vault_keys().put(mesh, &key, &owner_copy).await?;
    book_trusted(&mut tx, asker, &grants).await?;
    for grant in &grants {
        tx.vault_keys().grant(mesh, grant).await?;
    }
    let act = asker.act(ActKind::Rotated);
    tx.ledger().did(&Act { version: Some(key.number), ..act }).await?;
    commit(broker, mesh, tx).await?;
    asker.keys_changed();
    keys(asker).await
}

/// Writes down which runners are trusted by these grants that were not before. Before the grants are stored.
async fn book_trusted(tx: &mut Tx, asker: Asker<'_>, grants: &[Grant]) -> Result<(), VaultError> {
    let known = tx.vault_keys().grants(&asker.caller.mesh).await?;
    let known: BTreeSet<&RunnerId> = known.iter().map(|grant| &grant.runner).collect();
    let new: BTreeSet<&RunnerId> = grants.iter().map(|grant| &grant.runner).collect();
    for runner in new.difference(&known) {
        let act = asker.act(ActKind::Trusted);
        tx.ledger().did(&Act { runner: Some((*runner).clone()), ..act }).await?;
    }
    Ok(())
}

/// What of grants can be checked without opening them.
pub(super) fn check_grants(asker: Asker<'_>, grants: &[Grant]) -> Result<(), VaultError> {
    if grants.len() > MAX_GRANTS {
        return Err(VaultError::Args("at most 256 grants at a time"));
    }
    for grant in grants {
        if grant.signer != asker.view.mesh().owner_pubkey {
            return Err(VaultError::Forbidden("a grant is signed by the owner of the mesh"));
        }
        vault_keys::check_grant(&asker.caller.mesh, grant)?;
    }
    Ok(())
}

/// What is sealed to a key, of every member.
///
/// # Errors
/// [`VaultError`].
pub async fn wraps(asker: Asker<'_>, frame: &VaultWraps) -> Result<VaultWrapsResult, VaultError> {
    asker.owns()?;
    let mut tx = asker.broker.store.read().await?;
    let wraps =
        tx.entries().wraps_of(&asker.caller.mesh, &frame.kid, frame.after.as_ref(), MAX_ENTRIES).await?;
    Ok(VaultWrapsResult { wraps })
}

/// Replaces wraps to `from` by wraps to the newest key, in one step.
///
/// # Errors
/// [`VaultError`].
pub async fn rewrap(asker: Asker<'_>, frame: VaultRewrap) -> Result<VaultRewrapped, VaultError> {
    asker.owns()?;
    let VaultRewrap { from, wraps } = frame;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    if wraps.len() > MAX_ENTRIES {
        return Err(VaultError::Args("at most 1,000 wraps at a time"));
    }
    for of in &wraps {
        entry::check_wrap(&of.wrap)?;
    }
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    let newest = tx.vault_keys().newest(mesh).await?;
    let fits = |newest: &VaultKey| newest.kid != from && wraps.iter().all(|of| of.wrap.kid == newest.kid);
    let newest = newest.filter(fits).ok_or(VaultError::KeyRetired)?;
    if tx.entries().rewrap(mesh, (&from, &newest.kid), &wraps).await? > 0 {
        let act = asker.act(ActKind::Rewrapped);
        tx.ledger().did(&Act { version: Some(newest.number), ..act }).await?;
    }
    let left = tx.entries().count_sealed_to(mesh, &from).await?;
    commit(broker, mesh, tx).await?;
    Ok(VaultRewrapped { left })
}

/// Forgets a key that nothing needs.
///
/// # Errors
/// [`VaultError`].
pub async fn drop_key(asker: Asker<'_>, kid: &KeyId) -> Result<VaultKeysResult, VaultError> {
    asker.owns()?;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    let all = tx.vault_keys().list(mesh).await?;
    let Some(key) = all.into_iter().find(|stored| stored.key.kid == *kid) else {
        return Err(VaultError::NotFound("no such vault key"));
    };
    if !tx.vault_keys().drop_unused(mesh, kid).await? {
        return Err(VaultError::Conflict("entries are still sealed to this key, or it is the newest"));
    }
    let act = asker.act(ActKind::KeyDropped);
    tx.ledger().did(&Act { version: Some(key.key.number), ..act }).await?;
    commit(broker, mesh, tx).await?;
    asker.keys_changed();
    keys(asker).await
}

/// A new key for what the broker encrypts of this mesh.
///
/// # Errors
/// [`VaultError`].
pub async fn rotate_at_rest(asker: Asker<'_>) -> Result<AtRestRotated, VaultError> {
    asker.owns()?;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    let act = asker.act(ActKind::AtRest);
    let Rotated { key, records } = broker.at_rest.rotate(&broker.store, mesh, &act).await?;
    broker.views.changed(mesh);
    Ok(AtRestRotated { key, records })
}
