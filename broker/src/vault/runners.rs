//! Which runners there are, and which of them may open what is in a mesh's vault: its owner says.

use std::collections::BTreeMap;

use catalog::access::Action;
use wire::peer::vault::{RunnerInfo, RunnerListResult};
use wire::vault::{Custody, Grant, KeyId, RunnerId, RunnerVault, VaultState};

use super::keys::check_grants;
use super::{Asker, VaultError};
use crate::commit::commit;
use crate::store::{Act, ActKind, KnownRunner};

/// # Errors
/// [`VaultError`].
pub async fn runners(asker: Asker<'_>) -> Result<RunnerListResult, VaultError> {
    if !asker.may(Action::KeepSecrets) {
        return Err(VaultError::Forbidden("guests keep no secrets in the vault"));
    }
    let mut tx = asker.broker.store.read().await?;
    let known = tx.runners().all().await?;
    let grants = tx.vault_keys().grants(&asker.caller.mesh).await?;
    drop(tx);
    let is_up = asker.broker.observed.link().is_up();
    Ok(RunnerListResult { runners: described(known, &grants, asker.broker.observed.vault(), is_up) })
}

fn described(
    known: Vec<KnownRunner>,
    grants: &[Grant],
    present: Option<RunnerVault>,
    is_up: bool,
) -> Vec<RunnerInfo> {
    let mut granted: BTreeMap<&RunnerId, Vec<KeyId>> = BTreeMap::new();
    for grant in grants {
        granted.entry(&grant.runner).or_default().push(grant.kid.clone());
    }
    let mut present = present.filter(|_| is_up);
    let mut runners = Vec::new();
    for KnownRunner { runner, public, custody, boot_id, seen_at: _ } in known {
        // A locked runner does not say who it is, but which boot key it wants.
        let is_it = |vault: &mut RunnerVault| match &vault.state {
            VaultState::Locked { boot_id: wanted } => Some(wanted) == boot_id.as_ref(),
            _ => vault.runner.as_ref() == Some(&runner),
        };
        let here = present.take_if(is_it);
        runners.push(RunnerInfo {
            granted: granted.remove(&runner).unwrap_or_default(),
            id: Some(runner),
            public: Some(public),
            custody,
            connected: here.is_some(),
            state: here
                .map_or(VaultState::Locked { boot_id: boot_id.unwrap_or_default() }, |vault| vault.state),
        });
    }
    if let Some(RunnerVault { custody, state, runner, public, .. }) = present {
        let granted = runner.as_ref().and_then(|runner| granted.remove(runner)).unwrap_or_default();
        runners.push(RunnerInfo { id: runner, public, custody, state, connected: true, granted });
    }
    // What was granted to a runner that nobody has met must be seen, or it could not be revoked.
    runners.extend(granted.into_iter().map(|(runner, granted)| RunnerInfo {
        id: Some(runner.clone()),
        public: None,
        custody: Custody::default(),
        state: VaultState::New,
        connected: false,
        granted,
    }));
    runners
}

/// Stores grants: each lets one runner hold one vault key.
///
/// # Errors
/// [`VaultError`].
pub async fn trust(asker: Asker<'_>, grants: Vec<Grant>) -> Result<RunnerListResult, VaultError> {
    asker.owns()?;
    check_grants(asker, &grants)?;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    let keys = tx.vault_keys().list(mesh).await?;
    if grants.iter().any(|grant| keys.iter().all(|stored| stored.key.kid != grant.kid)) {
        return Err(VaultError::NotFound("a grant is of no vault key of this mesh"));
    }
    let mut trusted: Vec<&RunnerId> = grants.iter().map(|grant| &grant.runner).collect();
    trusted.sort();
    trusted.dedup();
    for runner in trusted {
        let act = asker.act(ActKind::Trusted);
        tx.ledger().did(&Act { runner: Some(runner.clone()), ..act }).await?;
    }
    for grant in &grants {
        tx.vault_keys().grant(mesh, grant).await?;
    }
    commit(broker, mesh, tx).await?;
    asker.keys_changed();
    runners(asker).await
}

/// Takes every grant of this mesh from a runner.
///
/// # Errors
/// [`VaultError`].
pub async fn revoke(asker: Asker<'_>, runner: RunnerId) -> Result<RunnerListResult, VaultError> {
    asker.owns()?;
    let (broker, mesh) = (asker.broker, &asker.caller.mesh);
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    if tx.vault_keys().revoke(mesh, &runner).await? == 0 {
        return Err(VaultError::NotFound("nothing was granted to this runner"));
    }
    let act = asker.act(ActKind::Revoked);
    tx.ledger().did(&Act { runner: Some(runner), ..act }).await?;
    commit(broker, mesh, tx).await?;
    asker.keys_changed();
    runners(asker).await
}
