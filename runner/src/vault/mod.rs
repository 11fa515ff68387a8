//! The runner's vault: its own key, the vault keys it was given, and the opening of entries.
//!
//! ```text
//!   boot key ─► custody ─► own key ─► keys (grants) ─► open ─► values of one start
//!                                                      │ └─ seen: nothing older
//!                                                      └─ ledger: written down first
//! ```
//!
//! Here: the one place that holds these together. Not here: the cryptography (crate `vault`), which service gets what
//! (see [`crate::service`]), the API (see [`crate::api`]).
//! Invariant: nothing that is secret is ever on this runner's disk but its own key, and that encrypted.

pub mod custody;
mod file;
pub mod keys;
mod ledger;
mod open;
mod seen;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use vault::Refused;
use wire::report::Reason;
use wire::runner::Apply;
use wire::spec::ServiceSpec;
use wire::vault::{
    BootKey, Consent, ConsentDoc, Custody, Grants, Opening, RunnerId, RunnerVault, VaultEntry,
};
use wire::{ErrorCode, MeshId, ServiceKey};

use self::custody::{CustodyError, Keeper};
use self::keys::{GrantError, Held};
use self::ledger::Book;
pub use self::open::{Refusal, Start, Value, Why};
use self::seen::Seen;

/// Signatures that were found good; forgotten all at once when there are too many.
const VERIFIED: usize = 8_192;

pub struct Vault {
    keys: Mutex<Keys>,
    /// Or why it can not be used.
    seen: Mutex<Result<Seen, String>>,
    /// The same.
    book: Mutex<Result<Book, String>>,
    verified: Mutex<HashSet<[u8; 32]>>,
    /// Grows with each change of what can be opened.
    changed: watch::Sender<u64>,
}

struct Keys {
    keeper: Keeper,
    held: Held,
}

/// A key that has come to its place. Best effort: most systems let each user lock some mebibytes.
fn keep_off_swap(key: &vault::BoxKey) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    if let Err(e) = jail::lock_in_memory(key) {
        TOLD.call_once(|| tracing::warn!("keys of the vault may be written to the swap space: {e}"));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vault {
    /// `directory` exists, and is for nobody else to read. What of it can't be used is said, and nothing is opened;
    /// services without secrets go on. Blocks.
    pub fn new(custody: Custody, directory: &Path, boot_key_file: Option<&Path>) -> Self {
        let mut keeper = Keeper::open(custody, directory, boot_key_file);
        let unusable = |what: &str, e: &std::io::Error| {
            let message = format!("{what} can not be used: {}", e.kind());
            tracing::error!("no secret will be opened: {message}");
            message
        };
        let held = Held::open(directory).unwrap_or_else(|e| {
            keeper.give_up(unusable("`owners.json`", &e));
            Held::empty(directory)
        });
        let seen = Seen::open(directory).map_err(|e| unusable("`seen.json`", &e));
        let book = Book::open(directory).map_err(|e| unusable("the ledger", &e));
        Self {
            keys: Mutex::new(Keys { keeper, held }),
            seen: Mutex::new(seen),
            book: Mutex::new(book),
            verified: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    pub fn describe(&self) -> RunnerVault {
        let (last_opening, ledger) = match &*self.book() {
            Ok(book) => (book.last(), book.id.clone()),
            Err(_) => (0, String::new()),
        };
        let Keys { keeper, held } = &*self.keys();
        RunnerVault {
            custody: keeper.custody(),
            state: keeper.state(),
            runner: keeper.own().map(|own| own.id.clone()),
            public: keeper.own().map(|own| own.public.clone()),
            held: held.list(),
            last_opening,
            ledger,
        }
    }

    /// Blocks: it may write the key file.
    pub fn unlock(&self, boot: &BootKey) -> Result<(), CustodyError> {
        if self.keys().keeper.unlock(boot)? {
            self.tell();
        }
        Ok(())
    }

    /// Holds exactly these keys of the mesh. Blocks: it may write whose mesh it is.
    pub fn hold(&self, mesh: &MeshId, grants: &Grants) -> Result<(), GrantError> {
        let has_changed = {
            let Keys { keeper, held } = &mut *self.keys();
            let own = keeper.own().ok_or(GrantError::Locked)?;
            held.take(own, mesh, grants)?
        };
        if has_changed {
            self.tell();
        }
        Ok(())
    }

    /// The next openings after this one; those up to it are booked elsewhere. Blocks.
    pub fn openings(&self, after: i64) -> Result<Vec<Opening>, String> {
        self.book().as_mut().map(|book| book.page(after)).map_err(|message| message.clone())
    }

    /// Counts the changes of what can be opened.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Why a service of this mesh may not have secrets (any more), if it has any.
    pub fn distrust(&self, mesh: &MeshId, spec: &ServiceSpec) -> Option<Reason> {
        if spec.vault.is_empty() || self.keys().held.holds_any(mesh) {
            return None;
        }
        let message = "the mesh's owner does not let this runner open its vault any more".to_owned();
        Some(Reason { code: ErrorCode::RunnerNotTrusted, message, stderr: vec![] })
    }

    /// Checks and remembers what is offered ahead of [`Vault::open`], which is quicker then, and also when it never comes to
    /// that. What is wrong is said there. Blocks.
    pub fn look_ahead(&self, key: &ServiceKey, apply: &Apply) {
        let material = &apply.vault;
        let is_meant = |entry: &VaultEntry| {
            apply.spec.vault.values().any(|reference| {
                reference.key == entry.key
                    && reference.owner.as_ref().or(material.caller.as_ref()) == Some(&entry.owner)
            })
        };
        let entries: Vec<_> = material
            .entries
            .iter()
            .filter(|entry| is_meant(entry) && self.check_entry(&key.mesh, entry).is_ok())
            .collect();
        let Ok(seen) = &mut *self.seen() else { return };
        for entry in entries {
            seen.version(&key.mesh, &entry.owner, &entry.key, entry.version);
        }
        // Whatever could not be kept is tried again before anything is opened.
        let _ = seen.keep();
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        lock(&self.keys)
    }

    fn seen(&self) -> MutexGuard<'_, Result<Seen, String>> {
        lock(&self.seen)
    }

    fn book(&self) -> MutexGuard<'_, Result<Book, String>> {
        lock(&self.book)
    }

    fn runner_id(&self) -> Option<RunnerId> {
        self.keys().keeper.own().map(|own| own.id.clone())
    }

    fn check_entry(&self, mesh: &MeshId, entry: &VaultEntry) -> Result<(), Refused> {
        let VaultEntry { owner, key, version, kind, created_ms, content, signature, wrap } = entry;
        let (version, created) = (version.to_string(), created_ms.to_string());
        let (kid, sealed) = wrap.as_ref().map_or(("", ""), |wrap| (wrap.kid.as_str(), wrap.sealed.as_str()));
        let mut digest = Sha256::new();
        let signed =
            [mesh.as_str(), owner.as_str(), key.as_str(), &version, kind.as_str(), &created, content];
        for field in signed.into_iter().chain([signature, kid, sealed]) {
            digest.update((field.len() as u64).to_be_bytes());
            digest.update(field);
        }
        let name: [u8; 32] = digest.finalize().into();
        if lock(&self.verified).contains(&name) {
            return Ok(());
        }
        vault::entry::check(mesh, entry)?;
        let mut verified = lock(&self.verified);
        if verified.len() >= VERIFIED {
            verified.clear();
        }
        verified.insert(name);
        Ok(())
    }

    fn check_consent(&self, consent: &Consent) -> Result<ConsentDoc, Refused> {
        vault::consent::check(consent)
    }
}
