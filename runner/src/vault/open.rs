//! Opening the entries of one service for one start of it.
//!
//! ```text
//!   consents ─┐                       all faults of a start together
//!   entries ──┴─► checked ─► remembered (disk) ─► judged ─► keys ─► written down (disk) ─► opened
//! ```
//!
//! Here: what has to be true before a value is opened, and the opening. Not here: what happens to the values.
//! Invariant: a value leaves here only after a line about it is on disk, and only when its owner signed both it and the
//! service as it is to run. A refusal names variables and references, never a value.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use vault::consent::{self, Wanted};
use vault::{BoxKey, Refused};
use wire::runner::Apply;
use wire::spec::Pin;
use wire::vault::{ConsentDoc, EntryKind, MAX_ENV_VALUE, Opening, VaultEntry, VaultName, VaultRef};
use wire::{ErrorCode, PublicKey, ServiceKey};
use zeroize::Zeroizing;

use super::Vault;
use super::ledger::BookError;
use super::seen::Seen;
use crate::logs::now_ms;

/// With fewer, threads cost more than they bring.
const FEW: usize = 4;

/// Why an instance is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Start,
    Restart,
    Wake,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Wake => "wake",
        }
    }
}

/// The service that is to start, as it is.
pub struct Start<'a> {
    pub key: &'a ServiceKey,
    pub apply: &'a Apply,
    pub pin: &'a Pin,
    pub why: Why,
}

/// An opened value, for one variable.
pub struct Value {
    pub variable: String,
    /// Where it appears; the variable then holds this path.
    pub file: Option<String>,
    pub bytes: Zeroizing<Vec<u8>>,
}

/// What is wrong with one reference, the worst first: of several kinds the first is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Damaged(&'static str, String),
    Stale(&'static str, String),
    NoCaller,
    Missing,
    NotText,
    NoConsent(PublicKey),
    Locked,
    NotTrusted,
}

impl Fault {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Damaged(..) => ErrorCode::VaultDamaged,
            Self::Stale(..) => ErrorCode::VaultStale,
            Self::NoCaller | Self::Missing => ErrorCode::VaultMissing,
            Self::NotText => ErrorCode::VaultError,
            Self::NoConsent(_) => ErrorCode::AwaitingConsent,
            Self::Locked => ErrorCode::VaultLocked,
            Self::NotTrusted => ErrorCode::RunnerNotTrusted,
        }
    }

    fn of(what: &'static str, refused: &Refused) -> Self {
        Self::Damaged(what, refused.to_string())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what, why) => write!(f, "{what} is not taken: {why}"),
            Self::Stale(what, why) => write!(f, "{what} is older than one that was seen before: {why}"),
            Self::NoCaller => f.write_str("it means the caller's entry, and nobody is named as the caller"),
            Self::Missing => f.write_str("there is no such entry"),
            Self::NotText => write!(
                f,
                "the value is no text without zero bytes of at most {MAX_ENV_VALUE} bytes; refer to it as a file"
            ),
            Self::NoConsent(owner) => {
                write!(f, "its owner {:.8}… has not agreed to the service as it is now", owner.as_str())
            }
            Self::Locked => f.write_str("the runner's own key is not open"),
            Self::NotTrusted => f.write_str("the mesh's owner has not let this runner open it"),
        }
    }
}

/// Why nothing was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The code, and each reference with what is wrong with it.
    #[error("{1}")]
    References(ErrorCode, String),
    #[error("nothing was opened: {0}")]
    Ledger(String),
}

impl Refusal {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::References(code, _) => *code,
            Self::Ledger(_) => ErrorCode::LedgerFailed,
        }
    }

    /// Of the worst kind all; other kinds are heard of once these are mended.
    fn of(mut faults: Vec<(String, Fault)>) -> Option<Self> {
        faults.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        let code = faults.first()?.1.code();
        let told = faults.iter().filter(|(_, fault)| fault.code() == code);
        let told: Vec<String> = told.map(|(name, fault)| format!("{name}: {fault}")).collect();
        Some(Self::References(code, told.join("; ")))
    }
}

impl From<BookError> for Refusal {
    fn from(e: BookError) -> Self {
        Self::Ledger(e.to_string())
    }
}

/// One reference, and what it leads to.
struct Found<'a> {
    variable: &'a str,
    reference: &'a VaultRef,
    entry: &'a VaultEntry,
}

impl Found<'_> {
    fn name(&self) -> String {
        name(self.variable, self.reference)
    }
}

fn name(variable: &str, reference: &VaultRef) -> String {
    format!("{variable} ({})", reference.text())
}

/// The newest good consent of one signer, or why there is none.
type Agreed = Result<ConsentDoc, Fault>;

impl Vault {
    /// Opens everything that the spec refers to, or nothing. Blocks: it waits for the disk.
    pub fn open(&self, start: &Start<'_>) -> Result<Vec<Value>, Refusal> {
        if start.apply.spec.vault.is_empty() {
            return Ok(vec![]);
        }
        let found = self.judge(start)?;
        if !consent::is_env_of(&start.apply.spec, &start.apply.secrets) {
            let message = "the plain variables are not those that were signed with the service".to_owned();
            return Err(Refusal::References(ErrorCode::VaultDamaged, message));
        }
        let keys = self.keys_for(start.key, &found)?;
        self.write_down(start, &found)?;
        let opened = open_all(start.key, &found, &keys);
        let mut faults = vec![];
        let mut values = vec![];
        for (found, bytes) in found.iter().zip(opened) {
            match bytes.map_err(|e| Fault::of("the entry", &e)).and_then(|bytes| found.value(bytes)) {
                Ok(value) => values.push(value),
                Err(fault) => faults.push((found.name(), fault)),
            }
        }
        Refusal::of(faults).map_or(Ok(values), Err)
    }

    /// Everything that can be said without a key. What was seen is on disk afterwards.
    fn judge<'a>(&self, start: &Start<'a>) -> Result<Vec<Found<'a>>, Refusal> {
        let (spec, material) = (&start.apply.spec, &start.apply.vault);
        let mut seen = self.seen();
        let seen = seen.as_mut().map_err(|message| Refusal::Ledger(message.clone()))?;
        let agreed = self.agreed(start, seen);
        let (mut found, mut faults) = (vec![], vec![]);
        for (variable, reference) in &spec.vault {
            let Some(owner) = reference.owner.as_ref().or(material.caller.as_ref()) else {
                faults.push((name(variable, reference), Fault::NoCaller));
                continue;
            };
            match self.entry(start, owner, &reference.key, seen) {
                Err(fault) => faults.push((name(variable, reference), fault)),
                Ok(entry) => match agreed.get(owner) {
                    Some(Ok(doc))
                        if doc.min_versions.get(&reference.key).is_none_or(|n| *n <= entry.version) =>
                    {
                        found.push(Found { variable, reference, entry });
                    }
                    Some(Ok(_)) => {
                        let why = format!("version {} is below what its owner agreed to", entry.version);
                        faults.push((name(variable, reference), Fault::Stale("the entry", why)));
                    }
                    Some(Err(fault)) => faults.push((name(variable, reference), fault.clone())),
                    None => faults.push((name(variable, reference), Fault::NoConsent(owner.clone()))),
                },
            }
        }
        seen.keep()
            .map_err(|e| Refusal::Ledger(format!("what was seen could not be written down: {}", e.kind())))?;
        Refusal::of(faults).map_or(Ok(found), Err)
    }

    /// The newest version of an entry, if it is what its owner signed and nothing older than was seen.
    fn entry<'a>(
        &self,
        start: &Start<'a>,
        owner: &PublicKey,
        key: &VaultName,
        seen: &mut Seen,
    ) -> Result<&'a VaultEntry, Fault> {
        let all = start.apply.vault.entries.iter().filter(|entry| entry.owner == *owner && entry.key == *key);
        let entry = all.max_by_key(|entry| entry.version).ok_or(Fault::Missing)?;
        self.check_entry(&start.key.mesh, entry).map_err(|e| Fault::of("the entry", &e))?;
        let highest = seen.version(&start.key.mesh, owner, key, entry.version);
        if entry.version < highest {
            let why = format!("version {} after version {highest}", entry.version);
            return Err(Fault::Stale("the entry", why));
        }
        if entry.kind == EntryKind::Gone { Err(Fault::Missing) } else { Ok(entry) }
    }

    /// Of each signer the newest consent that covers the service. Every floor that was signed counts, whatever else the
    /// consent was for.
    fn agreed(&self, start: &Start<'_>, seen: &mut Seen) -> BTreeMap<PublicKey, Agreed> {
        let (mesh, service) = (&start.key.mesh, start.key.name.plain());
        let pin = consent::pin(start.pin);
        let wanted = Wanted { mesh, service, spec: &start.apply.spec, pin: &pin };
        let mut agreed: BTreeMap<PublicKey, Agreed> = BTreeMap::new();
        for offered in &start.apply.vault.consents {
            let before = agreed.get(&offered.signer);
            match self.check_consent(offered) {
                Ok(doc) if doc.mesh == *mesh && doc.service.as_str() == service => {
                    seen.floor(mesh, &offered.signer, service, doc.floor);
                    let is_newer = !matches!(before, Some(Ok(other)) if other.serial >= doc.serial);
                    if is_newer && consent::covers(&doc, &wanted) {
                        agreed.insert(offered.signer.clone(), Ok(doc));
                    }
                }
                Ok(_) => {}
                Err(e) if before.is_none() => {
                    agreed.insert(offered.signer.clone(), Err(Fault::of("the consent", &e)));
                }
                Err(_) => {}
            }
        }
        // One that was withdrawn is none any more.
        agreed.retain(|signer, outcome| match outcome {
            Ok(doc) => doc.serial >= seen.floor(mesh, signer, service, 0),
            Err(_) => true,
        });
        agreed
    }

    fn keys_for(&self, key: &ServiceKey, found: &[Found<'_>]) -> Result<Vec<Arc<BoxKey>>, Refusal> {
        let keys = self.keys();
        let fault = if keys.keeper.own().is_some() { Fault::NotTrusted } else { Fault::Locked };
        let (mut held, mut faults) = (vec![], vec![]);
        for one in found {
            let kid = one.entry.wrap.as_ref().map(|wrap| &wrap.kid);
            match kid.and_then(|kid| keys.held.key(&key.mesh, kid)).filter(|_| fault != Fault::Locked) {
                Some(key) => held.push(key.clone()),
                None => faults.push((one.name(), fault.clone())),
            }
        }
        Refusal::of(faults).map_or(Ok(held), Err)
    }

    fn write_down(&self, start: &Start<'_>, found: &[Found<'_>]) -> Result<(), Refusal> {
        let runner = self.runner_id().ok_or_else(|| Refusal::Ledger("the runner has no key".to_owned()))?;
        // Two references to one entry are one opening.
        let entries: BTreeMap<_, _> =
            found.iter().map(|f| ((&f.entry.owner, &f.entry.key), f.entry)).collect();
        let at_ms = now_ms();
        let openings = entries.into_values().map(|entry| Opening {
            seq: 0,
            at_ms,
            runner: runner.clone(),
            mesh: start.key.mesh.clone(),
            owner: entry.owner.clone(),
            key: entry.key.clone(),
            version: entry.version,
            service: start.key.name.clone(),
            generation: start.apply.generation.0,
            caller: start.key.name.caller(),
            reason: start.why.as_str().to_owned(),
        });
        match &mut *self.book() {
            Ok(book) => Ok(book.write(openings)?),
            Err(message) => Err(Refusal::Ledger(message.clone())),
        }
    }
}

impl Found<'_> {
    /// A variable holds text; anything may be a file.
    fn value(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Value, Fault> {
        let is_text =
            bytes.len() <= MAX_ENV_VALUE && !bytes.contains(&0) && std::str::from_utf8(&bytes).is_ok();
        if self.reference.file.is_none() && !is_text {
            return Err(Fault::NotText);
        }
        let (variable, file) = (self.variable.to_owned(), self.reference.file.clone());
        Ok(Value { variable, file, bytes })
    }
}

/// HPKE takes a tenth of a millisecond each: many are spread over the processors.
fn open_all(
    key: &ServiceKey,
    found: &[Found<'_>],
    keys: &[Arc<BoxKey>],
) -> Vec<Result<Zeroizing<Vec<u8>>, Refused>> {
    let pairs: Vec<_> = found.iter().zip(keys).collect();
    let open = |pairs: &[(&Found<'_>, &Arc<BoxKey>)]| -> Vec<_> {
        pairs.iter().map(|(found, held)| vault::entry::open(held, &key.mesh, found.entry)).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    if pairs.len() < FEW || threads == 1 {
        return open(&pairs);
    }
    let share = pairs.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let shares: Vec<_> = pairs.chunks(share).map(|share| scope.spawn(move || open(share))).collect();
        // A panic would be a bug in the cipher; it goes on in the thread that asked.
        let joined =
            shares.into_iter().map(|one| one.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        joined.flatten().collect()
    })
}
