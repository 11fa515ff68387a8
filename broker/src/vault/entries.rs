//! Entries of ours: storing a version, and what their owner sees of them.

use catalog::access::Action;
use vault::entry;
use wire::peer::vault::{VaultHistoryResult, VaultListResult, VaultListed, VaultPutResult};
use wire::vault::{EntryKind, MAX_ENTRIES, VaultEntry, VaultName};

use super::{Asker, VaultError};
use crate::clock;
use crate::commit::commit;
use crate::deploy;
use crate::store::{Act, ActKind, EntryLine, Tx, Wanted};
use crate::views::ServiceView;

/// Names that one member may ever have used: of a removed entry the version must be remembered for ever.
const MAX_NAMES: usize = 10 * MAX_ENTRIES;

/// Stores the next version of an entry of the caller; services that hold it follow.
///
/// # Errors
/// [`VaultError`].
pub async fn put(asker: Asker<'_>, version: VaultEntry) -> Result<VaultPutResult, VaultError> {
    let Asker { broker, caller, view: _ } = asker;
    let is_gone = version.kind == EntryKind::Gone;
    if !is_gone && !asker.may(Action::KeepSecrets) {
        return Err(VaultError::Forbidden("guests keep no secrets in the vault"));
    }
    if version.owner != *asker.key()? {
        return Err(VaultError::Forbidden("an entry is stored by its owner only"));
    }
    entry::check(&caller.mesh, &version)?;
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    fits(&mut tx, asker, &version).await?;
    tx.entries().put(&caller.mesh, &version, clock::now_ms()).await?;
    let VaultEntry { owner, key, version, kind, .. } = version;
    let services = deploy::vault_changed(broker, &mut tx, &caller.mesh, (&owner, &key), kind).await?;
    let act = asker.act(if is_gone { ActKind::Removed } else { ActKind::Set });
    tx.ledger().did(&Act { entry: Some((owner, key.clone())), version: Some(version), ..act }).await?;
    commit(broker, &caller.mesh, tx).await?;
    let services = services.into_iter().map(|service| service.name.to_string()).collect();
    Ok(VaultPutResult { key: key.to_string(), version, services })
}

/// Whether this version can follow what is there.
async fn fits(tx: &mut Tx, asker: Asker<'_>, version: &VaultEntry) -> Result<(), VaultError> {
    let (mesh, owner) = (&asker.caller.mesh, &version.owner);
    if tx.entries().envelope(mesh, owner, &version.key).await?.is_some() {
        return Err(VaultError::Conflict("an entry of another form has this name; delete it first"));
    }
    let newest = tx.entries().newest_bare(mesh, owner, &version.key).await?;
    let is_there = newest.as_ref().is_some_and(|newest| newest.kind != EntryKind::Gone);
    if version.kind == EntryKind::Gone && !is_there {
        return Err(VaultError::NoEntry(version.key.clone()));
    }
    if newest.as_ref().map_or(0, |newest| newest.version).checked_add(1) != Some(version.version) {
        return Err(VaultError::Conflict("this is not the next version of the entry; look again"));
    }
    if let Some(wrap) = &version.wrap {
        let to = tx.vault_keys().newest(mesh).await?;
        if to.is_none_or(|to| to.kid != wrap.kid) {
            return Err(VaultError::KeyRetired);
        }
    }
    asker.has_room(tx, &version.key, &version.content).await?;
    if !is_there && tx.entries().count(mesh, owner).await? >= MAX_ENTRIES {
        return Err(VaultError::TooMuch("you have as many entries as a member may have: 1,000"));
    }
    if newest.is_none() && tx.entries().count_names(mesh, owner).await? >= MAX_NAMES {
        return Err(VaultError::TooMuch("you have used as many names as a member may use: 10,000"));
    }
    Ok(())
}

/// The caller's entries of both forms, by name.
///
/// # Errors
/// [`VaultError`].
pub async fn list(asker: Asker<'_>) -> Result<VaultListResult, VaultError> {
    let (mesh, owner) = (&asker.caller.mesh, asker.key()?);
    let mut tx = asker.broker.store.read().await?;
    let lines = tx.entries().list(mesh, owner).await?;
    let envelopes = tx.entries().envelopes(mesh, owner).await?;
    drop(tx);
    let mut entries: Vec<VaultListed> = lines.into_iter().map(|line| listed(asker, line)).collect();
    entries.extend(envelopes.into_iter().map(|envelope| VaultListed {
        key: envelope.key.to_string(),
        entry_type: envelope.entry_type,
        mount_path: envelope.mount_path,
        description: envelope.description,
        updated_at: clock::iso(envelope.updated_at),
        version: None,
        kid: None,
        last_used_at: None,
        used_by: Vec::new(),
    }));
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(VaultListResult { entries })
}

fn listed(asker: Asker<'_>, line: EntryLine) -> VaultListed {
    let EntryLine { key, version, kind, kid, stored_at, last_used_at } = line;
    let used_by = asker.view.services().filter(|service| refers(asker, service, &key));
    VaultListed {
        used_by: used_by.map(|service| service.name().to_string()).collect(),
        key: key.to_string(),
        entry_type: kind.as_str().to_owned(),
        mount_path: None,
        description: None,
        updated_at: clock::iso(stored_at),
        version: Some(version),
        kid,
        last_used_at: last_used_at.map(clock::iso),
    }
}

/// Whether the wanted state of a service refers to this entry of the caller. A reference without an owner means the
/// deployer's entry, as far as is known before others call.
fn refers(asker: Asker<'_>, service: &ServiceView, key: &VaultName) -> bool {
    let own = asker.view.key_of(&asker.caller.member);
    let deployer = asker.view.key_of(service.deployed_by());
    service.row().wanted != Wanted::Gone
        && service
            .spec()
            .vault
            .values()
            .any(|reference| reference.key == *key && reference.owner.as_ref().or(deployer) == own)
}

/// The versions of an entry of the caller, newest first.
///
/// # Errors
/// [`VaultError`].
pub async fn history(asker: Asker<'_>, key: &str) -> Result<VaultHistoryResult, VaultError> {
    let key = VaultName::parse(key)?;
    let mut tx = asker.broker.store.read().await?;
    let versions = tx.entries().history(&asker.caller.mesh, asker.key()?, &key).await?;
    if versions.is_empty() {
        return Err(VaultError::NoEntry(key));
    }
    Ok(VaultHistoryResult { key: key.to_string(), versions })
}
