//! Which runners may open the vault: its owner's word, given on this machine.
//!
//! Not here: the keys that they are given (see the parent), the next one (see [`super::rotation`]).

use std::collections::BTreeMap;

use vault::keys;
use wire::ErrorCode;
use wire::peer::vault::{RunnerListResult, RunnerRevoke, RunnerTrust};
use wire::vault::{BoxPublic, KeyId, RunnerId};

use super::{MeshVault, TRIES, is_race, refused, unproven};
use crate::error::ClientError;

impl MeshVault<'_> {
    /// Lets a runner open the mesh's vault: seals every vault key to it. Makes the first vault key if there is none.
    /// The owner knows from the runner's machine that this is its id.
    ///
    /// # Errors
    /// `forbidden` for everybody but the owner, `not_found` when no such runner is connected.
    pub async fn trust_runner(&mut self, id: &RunnerId) -> Result<(), ClientError> {
        let runners = self.runners().await?;
        let public = runners.into_iter().find(|runner| runner.id.as_ref() == Some(id));
        let public = public.and_then(|runner| runner.public).ok_or_else(|| {
            let message = format!("the broker knows no runner {id} whose vault is open");
            refused(ErrorCode::NotFound, message)
        })?;
        if keys::runner_id(&public) != *id {
            return Err(unproven(format!("the key that the broker offers for runner {id} is another one's")));
        }
        self.trust_key(&public).await.map(drop)
    }

    /// [`MeshVault::trust_runner`], for who has the runner's key from itself. Says whether anything had to be done.
    ///
    /// # Errors
    /// As [`MeshVault::trust_runner`].
    pub async fn trust_key(&mut self, runner: &BoxPublic) -> Result<bool, ClientError> {
        let id = keys::runner_id(runner);
        let mut tries = 0;
        loop {
            let keys = self.keys().await?;
            self.must_be_owner("trust a runner")?;
            let granted = self.granted().await?.remove(&id).unwrap_or_default();
            let is_known = self.entry.vault.runners.contains(runner);
            if is_known && !keys.is_empty() && keys.iter().all(|kept| granted.contains(&kept.key.kid)) {
                return Ok(tries > 0);
            }
            if tries == TRIES {
                let message = format!("the broker does not keep the grants for runner {id}");
                return Err(refused(ErrorCode::Conflict, message));
            }
            tries += 1;
            let grants = keys.iter().map(|kept| self.grant(&self.open(kept)?, runner));
            let grants = grants.collect::<Result<Vec<_>, _>>()?;
            self.learn(|trust| {
                trust.revoked.retain(|revoked| *revoked != id);
                if !trust.runners.contains(runner) {
                    trust.runners.push(runner.clone());
                }
            })?;
            // Looked at again afterwards: a rotation of the same moment has made a key that is not among these.
            let stored = match keys.as_slice() {
                [] => self.next_key(0, std::slice::from_ref(runner)).await.map(drop),
                _ => {
                    let stored =
                        self.connection.request::<_, RunnerListResult>(&RunnerTrust { grants }).await;
                    stored.map(drop)
                }
            };
            match stored {
                Err(error) if is_race(&error) || error.code() == Some(ErrorCode::NotFound) => {}
                done => done?,
            }
        }
    }

    /// [`MeshVault::trust_key`] without a person: not for a runner that its owner has revoked.
    ///
    /// # Errors
    /// As [`MeshVault::trust_runner`].
    pub async fn trust_own(&mut self, runner: &BoxPublic) -> Result<bool, ClientError> {
        self.learn(|_| ())?;
        if self.entry.vault.revoked.contains(&keys::runner_id(runner)) {
            return Ok(false);
        }
        self.trust_key(runner).await
    }

    /// Which keys the broker has a grant of, for each runner.
    pub(super) async fn granted(&self) -> Result<BTreeMap<RunnerId, Vec<KeyId>>, ClientError> {
        let listed = self.runners().await?.into_iter();
        Ok(listed.filter_map(|runner| Some((runner.id?, runner.granted))).collect())
    }

    /// Takes all grants from a runner. What it has held it may have kept: rotate then.
    ///
    /// # Errors
    /// `forbidden` for everybody but the owner, and the broker's refusal.
    pub async fn revoke_runner(&mut self, id: &RunnerId) -> Result<(), ClientError> {
        self.keys().await?;
        self.must_be_owner("revoke a runner")?;
        // Before anything else: from here on no rotation seals to it.
        self.learn(|trust| {
            trust.runners.retain(|runner| keys::runner_id(runner) != *id);
            if !trust.revoked.contains(id) {
                trust.revoked.push(id.clone());
            }
        })?;
        let _: RunnerListResult = self.connection.request(&RunnerRevoke { runner: id.clone() }).await?;
        Ok(())
    }
}
