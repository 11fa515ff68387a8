//! A new vault key, and everything sealed again to it while services run.
//!
//! Each step is one transaction of the broker, and each state in between is a whole vault: entries of both keys open, since
//! runners hold both. A rotation that was interrupted is finished by the next one.

use vault::entry;
use vault::keys::{BoxKey, runner_id};
use wire::ErrorCode;
use wire::peer::vault::{
    KeptKey, VaultKeyDrop, VaultKeysResult, VaultRewrap, VaultRewrapped, VaultWraps, VaultWrapsResult, WrapAt,
};
use wire::vault::{BoxPublic, KeyId, RunnerId, VaultKey, WrapOf};

use super::{MeshVault, TRIES, is_race, refused};
use crate::error::ClientError;

/// Of at most a thousand entries each. A broker whose count goes down for ever gets no more; what is done stays done.
const ROUNDS: usize = 200;

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This runner does not get the new key: it was trusted from elsewhere, or its grants were taken there.
    LeftOut { runner: RunnerId },
    /// The key is there; new values are sealed to it from now on.
    Made { number: i64 },
    /// Entries that are still sealed to an older key.
    Left { number: i64, entries: i64 },
    /// Nothing is sealed to this one any more.
    Dropped { number: i64 },
}

impl MeshVault<'_> {
    /// Makes the next vault key, seals every entry to it and forgets the older keys.
    ///
    /// # Errors
    /// `forbidden` for everybody but the owner; `vault_damaged` when an entry does not open under its key, which is then
    /// kept with that entry.
    pub async fn rotate(&mut self, mut tell: impl FnMut(Step)) -> Result<VaultKey, ClientError> {
        let (newest, older) = self.make_next(&mut tell).await?;
        tell(Step::Made { number: newest.number });
        for kept in &older {
            let private = self.open(kept)?;
            self.empty(kept, &private, &newest, &mut tell).await?;
            let drop = VaultKeyDrop { kid: kept.key.kid.clone() };
            let found: VaultKeysResult = self.connection.request(&drop).await?;
            self.proven(found)?;
            tell(Step::Dropped { number: kept.key.number });
        }
        Ok(newest)
    }

    async fn make_next(
        &mut self,
        tell: &mut impl FnMut(Step),
    ) -> Result<(VaultKey, Vec<KeptKey>), ClientError> {
        let mut tries = 0;
        loop {
            let older = self.keys().await?;
            self.must_be_owner("rotate the vault key")?;
            // A copy that does not open must be known before there is one more key.
            for kept in &older {
                self.open(kept)?;
            }
            let (runners, left_out) = self.receivers(&older).await?;
            let number = older.first().map_or(0, |kept| kept.key.number);
            match self.next_key(number, &runners).await {
                Ok(newest) => {
                    left_out.into_iter().for_each(|runner| tell(Step::LeftOut { runner }));
                    return Ok((newest.key, older));
                }
                Err(error) if is_race(&error) && tries + 1 < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Who gets the new key: whom the owner trusted here, and who holds one now by the broker's word, since its grants may
    /// have been taken on another machine of the owner's. And who of the one or the other gets none.
    async fn receivers(&self, older: &[KeptKey]) -> Result<(Vec<BoxPublic>, Vec<RunnerId>), ClientError> {
        let mut granted = self.granted().await?;
        granted.retain(|_, kids| older.iter().any(|kept| kids.contains(&kept.key.kid)));
        let trusted = self.entry.vault.runners.iter();
        let (runners, gone): (Vec<_>, Vec<_>) =
            trusted.partition(|runner| older.is_empty() || granted.contains_key(&runner_id(runner)));
        let strangers =
            granted.into_keys().filter(|id| runners.iter().all(|runner| runner_id(runner) != *id));
        let left_out = gone.into_iter().map(runner_id).chain(strangers).collect();
        Ok((runners.into_iter().cloned().collect(), left_out))
    }

    /// Until no entry is sealed to `old`. What is damaged is left as it is, and keeps nobody else's entries there.
    async fn empty(
        &self,
        old: &KeptKey,
        private: &BoxKey,
        newest: &VaultKey,
        tell: &mut impl FnMut(Step),
    ) -> Result<(), ClientError> {
        let from = &old.key.kid;
        let (mut least, mut left, mut stuck) = (i64::MAX, 0, 0);
        let (mut after, mut damaged) = (None, Vec::new());
        for _ in 0..ROUNDS {
            let page = VaultWraps { kid: from.clone(), after: after.take() };
            let found: VaultWrapsResult = self.connection.request(&page).await?;
            let Some(last) = found.wraps.last() else {
                // The end of a pass. Entries that changed meanwhile need another one; a broker that never gets on is not
                // waited for.
                stuck = if left < least { 0 } else { stuck + 1 };
                least = least.min(left);
                match (left, damaged.is_empty()) {
                    (0, _) => return Ok(()),
                    (_, false) => return Err(not_moved(damaged)),
                    _ if stuck > TRIES => break,
                    _ => continue,
                }
            };
            after = Some(WrapAt { owner: last.owner.clone(), key: last.key.clone() });
            let (wraps, broken) = self.rewrapped(found.wraps, private, newest, from);
            left = left.max(1);
            damaged.extend(broken);
            if wraps.is_empty() {
                continue;
            }
            let done: VaultRewrapped =
                self.connection.request(&VaultRewrap { from: from.clone(), wraps }).await?;
            left = done.left;
            tell(Step::Left { number: old.key.number, entries: left });
            if left == 0 {
                return Ok(());
            }
        }
        let message = format!("{left} entries stay sealed to vault key {}", old.key.number);
        Err(refused(ErrorCode::Conflict, message))
    }

    /// What can be sealed to the new key, and names of what is not what its owner sealed.
    fn rewrapped(
        &self,
        wraps: Vec<WrapOf>,
        private: &BoxKey,
        newest: &VaultKey,
        from: &KeyId,
    ) -> (Vec<WrapOf>, Vec<String>) {
        let (mut done, mut damaged) = (Vec::with_capacity(wraps.len()), Vec::new());
        for of in wraps {
            match entry::rewrap(private, &newest.public, &self.entry.mesh_id, &of) {
                Ok(wrap) if of.wrap.kid == *from => done.push(WrapOf { wrap, ..of }),
                _ => damaged.push(format!("{} version {} of {:.8}", of.key, of.version, of.owner.as_str())),
            }
        }
        (done, damaged)
    }
}

fn not_moved(mut damaged: Vec<String>) -> ClientError {
    damaged.truncate(10);
    let message = format!(
        "not what their owners sealed, and left as they are: {}; the old key is kept",
        damaged.join(", ")
    );
    refused(ErrorCode::VaultDamaged, message)
}
