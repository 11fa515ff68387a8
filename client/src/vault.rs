//! A member's dealings with the mesh's vault: sealing here, so that a broker only ever stores.
//!
//! Here: which vault key is believed ([`MeshVault::keys`]), entries, trust in runners. Below: rotation, consent.
//! Not here: the cryptography (crate `vault`), who may store what (the broker), prompts (the command line).
//! Invariant: nothing is sealed to a key that the mesh's owner has not signed, and no private half to a runner that the
//! owner did not name on this machine.

mod consent;
mod rotation;
mod trust;

use std::path::PathBuf;

use vault::entry::{self, NewEntry};
use vault::keys::{self, BoxKey};
use wire::peer::vault::{
    KeptKey, RunnerInfo, RunnerList, RunnerListResult, VaultAck, VaultDelete, VaultHistory,
    VaultHistoryResult, VaultKeyPut, VaultKeys, VaultKeysResult, VaultLedger, VaultLedgerResult, VaultList,
    VaultListResult, VaultPut, VaultPutResult,
};
use wire::vault::{
    BoxPublic, EntryKind, Grant, MAX_ENV_VALUE, MAX_FILE_VALUE, VaultEntry, VaultKey, VaultName,
};
use wire::{ErrorCode, PublicKey};

pub use consent::{previous, sign};
pub use rotation::Step;

use crate::config::{Config, MeshEntry, VaultTrust};
use crate::connection::{Connection, now_ms};
use crate::error::ClientError;
use crate::identity::Identity;

/// How often a step is done again because somebody else was faster.
const TRIES: usize = 3;

/// The vault of one mesh, as one member sees it.
pub struct MeshVault<'c> {
    connection: &'c Connection,
    /// Of `config.json`, where what is learned is written down.
    folder: PathBuf,
    entry: MeshEntry,
    identity: Identity,
    is_owner_pinned: bool,
}

fn refused(code: ErrorCode, message: impl Into<String>) -> ClientError {
    ClientError::Vault { code, message: message.into() }
}

fn unproven(message: impl Into<String>) -> ClientError {
    refused(ErrorCode::VaultKeyUnproven, message)
}

fn local(error: impl std::fmt::Display) -> ClientError {
    ClientError::Local(error.to_string())
}

/// Whether somebody else changed the same thing meanwhile.
fn is_race(error: &ClientError) -> bool {
    matches!(error.code(), Some(ErrorCode::Conflict | ErrorCode::VaultKeyRetired))
}

impl<'c> MeshVault<'c> {
    /// # Errors
    /// When the stored key of the member is damaged.
    pub fn new(
        connection: &'c Connection,
        folder: impl Into<PathBuf>,
        entry: MeshEntry,
    ) -> Result<Self, ClientError> {
        let identity = entry.identity().map_err(local)?;
        Ok(Self { connection, folder: folder.into(), entry, identity, is_owner_pinned: false })
    }

    /// Whether the mesh's owner was not known here and has been taken from the broker's word, now and once.
    pub fn has_pinned_owner(&self) -> bool {
        self.is_owner_pinned
    }

    /// Forgets an owner that was taken from the broker's word just now.
    ///
    /// # Errors
    /// When the config can not be written.
    pub fn unpin(&mut self) -> Result<(), ClientError> {
        if !std::mem::take(&mut self.is_owner_pinned) {
            return Ok(());
        }
        self.learn(|trust| (trust.owner, trust.newest_key) = (None, 0))
    }

    /// The mesh's owner, as far as it is known here.
    pub fn owner(&self) -> Option<&PublicKey> {
        self.entry.vault.owner.as_ref()
    }

    pub fn is_owner(&self) -> bool {
        self.entry.vault.owner.as_ref() == Some(self.identity.public())
    }

    pub fn trusted_runners(&self) -> &[BoxPublic] {
        &self.entry.vault.runners
    }

    /// Writes down what is learned, beside what other commands have learned since this one began.
    fn learn(&mut self, act: impl FnOnce(&mut VaultTrust)) -> Result<(), ClientError> {
        self.entry.vault = Config::learn(&self.folder, &self.entry.mesh_id, act).map_err(local)?;
        Ok(())
    }

    /// The mesh's vault keys, newest first, each signed by the owner.
    ///
    /// # Errors
    /// `vault_key_unproven` when one is not, or when an older newest one is offered than was seen before.
    pub async fn keys(&mut self) -> Result<Vec<KeptKey>, ClientError> {
        let found: VaultKeysResult = self.connection.request(&VaultKeys {}).await?;
        self.proven(found)
    }

    fn proven(&mut self, found: VaultKeysResult) -> Result<Vec<KeptKey>, ClientError> {
        let VaultKeysResult { owner: named, keys } = found;
        // As the file says it now: whoever waits at a prompt has old news.
        self.learn(|_| ())?;
        let known = self.entry.vault.owner.clone();
        let is_new = known.is_none();
        let owner = known.unwrap_or(named);
        for kept in &keys {
            keys::check_key(&owner, &self.entry.mesh_id, &kept.key).map_err(|why| {
                unproven(format!("the vault key {} that the broker offers: {why}", kept.key.number))
            })?;
        }
        if !keys.is_sorted_by(|newer, older| newer.key.number > older.key.number) {
            return Err(unproven("the broker offers the vault keys out of order"));
        }
        let newest = keys.first().map_or(0, |kept| kept.key.number);
        let seen = self.entry.vault.newest_key;
        if newest < seen {
            let message = format!("the broker offers vault key {newest}, but there was a key {seen} already");
            return Err(unproven(message));
        }
        self.learn(|trust| {
            trust.owner.get_or_insert_with(|| owner.clone());
            trust.newest_key = trust.newest_key.max(newest);
        })?;
        if self.entry.vault.owner.as_ref() != Some(&owner) {
            return Err(unproven("another owner of the mesh has been written down meanwhile"));
        }
        self.is_owner_pinned |= is_new;
        Ok(keys)
    }

    /// The key to seal to.
    ///
    /// # Errors
    /// As [`MeshVault::keys`]; `vault_error` when the mesh has none yet.
    pub async fn newest_key(&mut self) -> Result<VaultKey, ClientError> {
        let newest = self.keys().await?.into_iter().next();
        newest.map(|kept| kept.key).ok_or_else(|| {
            let message =
                "the mesh has no vault key yet; its owner makes one with `claudemesh runner trust ID`";
            refused(ErrorCode::VaultError, message)
        })
    }

    /// Seals and stores the next version of an entry.
    ///
    /// # Errors
    /// As [`MeshVault::newest_key`], and the broker's refusal.
    pub async fn set(
        &mut self,
        key: &VaultName,
        kind: EntryKind,
        value: &[u8],
    ) -> Result<VaultPutResult, ClientError> {
        fits(kind, value)?;
        let mut tries = 0;
        loop {
            let to = self.newest_key().await?;
            let version = self.next_version(key).await?;
            let entry = entry::seal(&self.identity, &self.new_entry(key, version), kind, &to.public, value);
            match self.put(entry).await {
                Err(error) if is_race(&error) && tries + 1 < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    /// Stores that there is nothing any more. An entry of the original's form is deleted.
    ///
    /// # Errors
    /// `vault_missing` when there is no such entry, and the broker's refusal.
    pub async fn remove(&mut self, key: &VaultName) -> Result<VaultPutResult, ClientError> {
        let mut tries = 0;
        loop {
            let listed = self.list().await?.entries.into_iter().find(|entry| entry.key == key.as_str());
            let listed = listed.ok_or_else(|| missing(key))?;
            if listed.version.is_none() {
                return self.delete(key).await;
            }
            let version = self.next_version(key).await?;
            let entry = entry::gone(&self.identity, &self.new_entry(key, version));
            match self.put(entry).await {
                Err(error) if is_race(&error) && tries + 1 < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    fn new_entry<'a>(&'a self, key: &'a VaultName, version: i64) -> NewEntry<'a> {
        NewEntry { mesh: &self.entry.mesh_id, key, version, created_ms: now_ms() }
    }

    async fn put(&self, entry: VaultEntry) -> Result<VaultPutResult, ClientError> {
        self.connection.request(&VaultPut { entry }).await
    }

    async fn delete(&self, key: &VaultName) -> Result<VaultPutResult, ClientError> {
        let done: VaultAck = self.connection.request(&VaultDelete { key: key.as_str().to_owned() }).await?;
        match done.action.as_str() {
            "deleted" => Ok(VaultPutResult { key: done.key, version: 0, services: Vec::new() }),
            _ => Err(missing(key)),
        }
    }

    async fn next_version(&self, key: &VaultName) -> Result<i64, ClientError> {
        let versions = match self.history(key).await {
            Ok(found) => found.versions,
            Err(error) if error.code().is_some_and(is_absence) => Vec::new(),
            Err(error) => return Err(error),
        };
        let newest = versions.iter().map(|version| version.version).max().unwrap_or_default();
        newest.checked_add(1).ok_or_else(|| ClientError::Protocol("an impossible version of an entry".into()))
    }

    /// The caller's entries.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn list(&self) -> Result<VaultListResult, ClientError> {
        self.connection.request(&VaultList {}).await
    }

    /// # Errors
    /// The broker's refusal.
    pub async fn history(&self, key: &VaultName) -> Result<VaultHistoryResult, ClientError> {
        self.connection.request(&VaultHistory { key: key.as_str().to_owned() }).await
    }

    /// # Errors
    /// The broker's refusal.
    pub async fn ledger(&self, what: &VaultLedger) -> Result<VaultLedgerResult, ClientError> {
        self.connection.request(what).await
    }

    /// # Errors
    /// The broker's refusal.
    pub async fn runners(&self) -> Result<Vec<RunnerInfo>, ClientError> {
        let found: RunnerListResult = self.connection.request(&RunnerList {}).await?;
        Ok(found.runners)
    }

    fn must_be_owner(&self, what: &str) -> Result<(), ClientError> {
        if self.is_owner() {
            return Ok(());
        }
        Err(refused(ErrorCode::Forbidden, format!("only the mesh's owner can {what}")))
    }

    /// Makes the vault key after `number`, with grants for these runners, in one step.
    async fn next_key(&mut self, number: i64, runners: &[BoxPublic]) -> Result<KeptKey, ClientError> {
        let number = number.checked_add(1).ok_or_else(|| unproven("an impossible number of a vault key"))?;
        let private = BoxKey::generate();
        let mesh = &self.entry.mesh_id;
        let grants = runners.iter().map(|runner| self.grant(&private, runner));
        let grants = grants.collect::<Result<Vec<_>, _>>()?;
        let put = VaultKeyPut {
            key: keys::certify(&self.identity, mesh, number, &private.public(), now_ms()),
            owner_copy: keys::keep_copy(&self.identity.box_key().public(), mesh, &private),
            grants,
        };
        let found: VaultKeysResult = self.connection.request(&put).await?;
        let newest = self.proven(found)?.into_iter().next();
        let newest = newest.filter(|kept| kept.key == put.key);
        newest.ok_or_else(|| unproven("the broker did not take the new vault key"))
    }

    fn grant(&self, key: &BoxKey, runner: &BoxPublic) -> Result<Grant, ClientError> {
        keys::grant(&self.identity, &self.entry.mesh_id, key, runner).map_err(|why| {
            let id = keys::runner_id(runner);
            refused(ErrorCode::VaultError, format!("nothing can be sealed to runner {id}: {why}"))
        })
    }

    /// The private half of a vault key, from the owner's own copy.
    fn open(&self, kept: &KeptKey) -> Result<BoxKey, ClientError> {
        let number = kept.key.number;
        let damaged = |why: String| {
            refused(ErrorCode::VaultDamaged, format!("the owner's copy of vault key {number}: {why}"))
        };
        let copy = kept.owner_copy.as_deref().ok_or_else(|| damaged("the broker has none".to_owned()))?;
        keys::open_copy(&self.identity.box_key(), &self.entry.mesh_id, &kept.key.public, copy)
            .map_err(|why| damaged(why.to_string()))
    }
}

fn is_absence(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotFound | ErrorCode::VaultMissing)
}

fn missing(key: &VaultName) -> ClientError {
    refused(ErrorCode::VaultMissing, format!("you have no vault entry `{key}`"))
}

/// What a runner could not use is refused before it is sealed.
fn fits(kind: EntryKind, value: &[u8]) -> Result<(), ClientError> {
    let problem = match kind {
        EntryKind::Gone => "nothing can not be sealed".to_owned(),
        _ if value.is_empty() => "the value is empty".to_owned(),
        EntryKind::Env if value.len() > MAX_ENV_VALUE => {
            format!("a value for a variable is at most {} KiB; give it as a file", MAX_ENV_VALUE >> 10)
        }
        EntryKind::Env if value.contains(&0) || std::str::from_utf8(value).is_err() => {
            "a value for a variable is text without zero bytes; give it as a file".to_owned()
        }
        EntryKind::File if value.len() > MAX_FILE_VALUE => {
            format!("a file is at most {} KiB", MAX_FILE_VALUE >> 10)
        }
        EntryKind::Env | EntryKind::File => return Ok(()),
    };
    Err(refused(ErrorCode::VaultError, problem))
}

#[cfg(test)]
mod tests;
