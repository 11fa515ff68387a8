//! A new vault key, and everything sealed again to it while services run.
//!
//! Each step is one transaction of the broker, and each state in between is a whole vault: entries of both keys open, since
//! runners hold both. A rotation that was interrupted is finished by the next one.

use vault::entry;
use vault::keys::BoxKey;
use wire::ErrorCode;
use wire::peer::vault::{
    KeptKey, VaultKeyDrop, VaultKeysResult, VaultRewrap, VaultRewrapped, VaultWraps, VaultWrapsResult,
};
use wire::vault::{KeyId, VaultKey, WrapOf};

use super::{MeshVault, TRIES, is_race, refused};
use crate::error::ClientError;

/// How far a rotation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
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
        let (newest, older) = self.make_next().await?;
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

    async fn make_next(&mut self) -> Result<(VaultKey, Vec<KeptKey>), ClientError> {
        let mut tries = 0;
        loop {
            let older = self.keys().await?;
            self.must_be_owner("rotate the vault key")?;
            // A copy that does not open must be known before there is one more key.
            for kept in &older {
                self.open(kept)?;
            }
            let number = older.first().map_or(0, |kept| kept.key.number);
            match self.next_key(number).await {
                Ok((newest, _)) => return Ok((newest.key, older)),
                Err(error) if is_race(&error) && tries + 1 < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Until no entry is sealed to `old`.
    async fn empty(
        &self,
        old: &KeptKey,
        private: &BoxKey,
        newest: &VaultKey,
        tell: &mut impl FnMut(Step),
    ) -> Result<(), ClientError> {
        let from = &old.key.kid;
        let mut least = i64::MAX;
        let mut stuck = 0;
        loop {
            let found: VaultWrapsResult = self.connection.request(&VaultWraps { kid: from.clone() }).await?;
            if found.wraps.is_empty() {
                return Ok(());
            }
            let wraps = self.rewrapped(found.wraps, private, newest, from)?;
            let done: VaultRewrapped =
                self.connection.request(&VaultRewrap { from: from.clone(), wraps }).await?;
            tell(Step::Left { number: old.key.number, entries: done.left });
            if done.left == 0 {
                return Ok(());
            }
            // Entries that change meanwhile are left out of a round; a broker that never gets on is not waited for.
            stuck = if done.left < least { 0 } else { stuck + 1 };
            least = least.min(done.left);
            if stuck > TRIES {
                let message = format!("{} entries stay sealed to vault key {}", done.left, old.key.number);
                return Err(refused(ErrorCode::Conflict, message));
            }
        }
    }

    fn rewrapped(
        &self,
        wraps: Vec<WrapOf>,
        private: &BoxKey,
        newest: &VaultKey,
        from: &KeyId,
    ) -> Result<Vec<WrapOf>, ClientError> {
        let (mut done, mut damaged) = (Vec::with_capacity(wraps.len()), Vec::new());
        for of in wraps {
            match entry::rewrap(private, &newest.public, &self.entry.mesh_id, &of) {
                Ok(wrap) if of.wrap.kid == *from => done.push(WrapOf { wrap, ..of }),
                _ => damaged.push(format!("{} version {}", of.key, of.version)),
            }
        }
        if done.is_empty() && !damaged.is_empty() {
            damaged.truncate(10);
            let message = format!(
                "not what their owners sealed, and left as they are: {}; the old key is kept",
                damaged.join(", ")
            );
            return Err(refused(ErrorCode::VaultDamaged, message));
        }
        Ok(done)
    }
}
