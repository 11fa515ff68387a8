//! The runner's vault, kept in step: its boot key handed over, the grants that it may hold, its ledger fetched.
//!
//! Here: one round of that, which looks at what is and does what is missing, and when a round is due. Not here: what opens
//! what (the runner), who may hold what (`crate::vault`).
//! Invariants: a boot key is stored, and its hand-over booked, before it is sent. After a link-up no service is given to the
//! runner before the first round has ended, well or not: it would wait for what is on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use vault::{AtRestKey, Sealed};
use wire::vault::{BootKey, Custody, Grant, Grants, KeyId, Opening, RunnerId, RunnerVault, VaultState};
use wire::{MeshId, Secret};

use super::Reconciler;
use super::finish::Done;
use crate::app::Broker;
use crate::clock;
use crate::runner::RunnerError;
use crate::store::{Act, ActKind, KnownRunner, StoreError};

/// What nobody tells of is found within this.
const EVERY: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// What a runner answers at most at once.
const PAGE: usize = 1000;
/// Pages of one round: a runner that never stops telling must not hold up what comes after.
const PAGES: usize = 20;
const MAX_LEDGER_ID: usize = 64;
const MAX_REASON: usize = 32;

#[derive(Debug, thiserror::Error)]
pub(super) enum RoundError {
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    #[error("it is locked under the boot key {0}, which this broker does not have")]
    Unknown(String),
    #[error("its boot key {0} does not open under this broker's keys")]
    Sealed(String),
    #[error("its ledger makes no sense")]
    Ledger,
    /// How many.
    #[error("{0} lines of its ledger are of meshes that never trusted it, or of entries that never were")]
    NotBelieved(u64),
}

/// When a round is due, in one life of the link.
pub(super) struct Rounds {
    /// Tells the rounds of this link from those of the one before.
    link: u64,
    is_running: bool,
    /// The first round has ended.
    pub(super) is_told: bool,
    is_due: bool,
    pub(super) next: Option<Instant>,
    /// Which state of the grants the last round began with.
    epoch: u64,
    pause: Duration,
    /// What was logged last, so that it is not logged again.
    said: Option<String>,
}

impl Rounds {
    pub(super) fn new(link: u64) -> Self {
        Self {
            link,
            is_running: false,
            is_told: false,
            is_due: true,
            next: None,
            epoch: 0,
            pause: FIRST_RETRY,
            said: None,
        }
    }

    /// Of the next link.
    pub(super) fn renew(&mut self) {
        *self = Self::new(self.link + 1);
    }

    /// Something was opened, most likely.
    pub(super) fn hurry(&mut self) {
        self.is_due = true;
    }

    pub(super) fn pass(&mut self, now: Instant) {
        if self.next.is_some_and(|next| next <= now) {
            self.next = None;
            self.is_due = true;
        }
    }
}

impl Reconciler {
    /// Begins a round when one is due and none is on its way.
    pub(super) fn go_round(&mut self) {
        let epoch = self.broker.vault_epoch.load(Ordering::Acquire);
        let rounds = &mut self.rounds;
        if rounds.is_running || !(rounds.is_due || rounds.epoch != epoch) {
            return;
        }
        (rounds.is_running, rounds.is_due, rounds.epoch, rounds.next) = (true, false, epoch, None);
        let (link, broker) = (rounds.link, Arc::clone(&self.broker));
        self.jobs.spawn(async move { Done::Round(link, round(&broker).await) });
    }

    pub(super) fn went_round(&mut self, link: u64, ended: Result<(), RoundError>) {
        let rounds = &mut self.rounds;
        if rounds.link != link {
            return;
        }
        (rounds.is_running, rounds.is_told) = (false, true);
        let said = ended.err().map(|error| error.to_string());
        rounds.pause = if said.is_some() { (rounds.pause * 2).min(EVERY) } else { FIRST_RETRY };
        rounds.next = Some(Instant::now() + if said.is_some() { rounds.pause } else { EVERY });
        if let Some(error) = said.as_ref().filter(|_| rounds.said != said) {
            tracing::warn!("the runner's vault: {error}");
        }
        rounds.said = said;
    }
}

async fn round(broker: &Broker) -> Result<(), RoundError> {
    let found = broker.runner.vault().await?;
    let (vault, boot_id) = match unlocked(broker, &found).await {
        Ok(unlocked) => unlocked,
        Err(error) => {
            let state = match &error {
                RoundError::Unknown(_) | RoundError::Sealed(_) => {
                    VaultState::Broken { message: error.to_string() }
                }
                _ => found.state.clone(),
            };
            broker.observed.set_vault(RunnerVault { state, ..found });
            return Err(error);
        }
    };
    broker.observed.set_vault(vault.clone());
    let (VaultState::Open, Some(runner)) = (&vault.state, vault.runner.clone()) else { return Ok(()) };
    remember(broker, &runner, &vault, boot_id).await?;
    let granted = grant(broker, &runner, &vault).await;
    fetch_openings(broker, &vault).await?;
    granted
}

/// The vault after it got its boot key, if it needs one, and the id of that.
async fn unlocked(broker: &Broker, found: &RunnerVault) -> Result<(RunnerVault, Option<String>), RoundError> {
    let boot_id = match (&found.state, found.custody) {
        (VaultState::New, Custody::Split) => new_boot_key(broker).await?,
        (VaultState::Locked { boot_id }, Custody::Split) => boot_id.clone(),
        _ => return Ok((found.clone(), None)),
    };
    let mut tx = broker.store.begin().await?;
    let sealed = tx.runners().boot_key(&boot_id).await?;
    let known = tx.runners().all().await?;
    let runner = known.into_iter().find(|known| known.boot_id.as_ref() == Some(&boot_id));
    let key = opened(broker, &boot_id, sealed)?;
    let act = Act {
        mesh: None,
        at_ms: clock::now_ms(),
        act: ActKind::BootKey,
        who: "broker".into(),
        entry: None,
        version: None,
        runner: runner.map(|runner| runner.runner),
    };
    tx.ledger().did(&act).await?;
    tx.commit().await?;
    let vault = broker.runner.put_boot_key(&BootKey { boot_id: boot_id.clone(), key }).await?;
    tracing::info!(target: "audit", "the runner got its boot key {boot_id}");
    Ok((vault, Some(boot_id)))
}

/// Makes a boot key, or takes one that was made and never used.
async fn new_boot_key(broker: &Broker) -> Result<String, RoundError> {
    let mut tx = broker.store.begin().await?;
    let used: BTreeSet<_> = tx.runners().all().await?.into_iter().filter_map(|known| known.boot_id).collect();
    if let Some((unused, _)) = tx.runners().boot_keys().await?.into_iter().find(|(id, _)| !used.contains(id))
    {
        return Ok(unused);
    }
    let boot_id = uuid::Uuid::new_v4().simple().to_string();
    let key = AtRestKey::generate().to_hex();
    let sealed = broker.at_rest.seal_boot_key(&boot_id, key.as_bytes());
    tx.runners().put_boot_key(&boot_id, &sealed, clock::now_ms()).await?;
    tx.commit().await?;
    Ok(boot_id)
}

fn opened(broker: &Broker, boot_id: &str, sealed: Option<Sealed>) -> Result<Secret, RoundError> {
    let sealed = sealed.ok_or_else(|| RoundError::Unknown(boot_id.to_owned()))?;
    let broken = || RoundError::Sealed(boot_id.to_owned());
    let plain = broker.at_rest.open_boot_key(boot_id, &sealed).map_err(|_| broken())?;
    let key = std::str::from_utf8(&plain).map_err(|_| broken())?;
    Ok(Secret::new(key))
}

/// So that its owner can trust it, also while it is away.
async fn remember(
    broker: &Broker,
    runner: &RunnerId,
    vault: &RunnerVault,
    boot_id: Option<String>,
) -> Result<(), StoreError> {
    let Some(public) = vault.public.clone() else { return Ok(()) };
    let mut tx = broker.store.begin().await?;
    let known = tx.runners().find(runner).await?;
    let boot_id = boot_id.or_else(|| known.as_ref().and_then(|known| known.boot_id.clone()));
    let is_known = known.is_some_and(|known| {
        (&known.public, known.custody, &known.boot_id) == (&public, vault.custody, &boot_id)
    });
    if is_known {
        return Ok(());
    }
    let custody = vault.custody;
    let known = KnownRunner { runner: runner.clone(), public, custody, boot_id, seen_at: clock::now_ms() };
    tx.runners().seen(&known).await?;
    tx.commit().await
}

/// Gives the runner the keys that it may hold, of each mesh where it holds others.
async fn grant(broker: &Broker, runner: &RunnerId, vault: &RunnerVault) -> Result<(), RoundError> {
    let mut tx = broker.store.read().await?;
    let mut wanted: BTreeMap<MeshId, Vec<Grant>> =
        vault.held.keys().map(|mesh| (mesh.clone(), Vec::new())).collect();
    for (mesh, grant) in tx.vault_keys().grants_to(runner).await? {
        wanted.entry(mesh).or_default().push(grant);
    }
    drop(tx);
    let mut ended = Ok(());
    for (mesh, grants) in wanted {
        let granted: BTreeSet<&KeyId> = grants.iter().map(|grant| &grant.kid).collect();
        let held: BTreeSet<&KeyId> = vault.held.get(&mesh).into_iter().flatten().collect();
        if granted == held {
            continue;
        }
        match broker.runner.put_grants(&mesh, &Grants { grants }).await {
            Ok(vault) => broker.observed.set_vault(vault),
            // Another mesh must not pay for it.
            Err(error) => ended = Err(error.into()),
        }
    }
    ended
}

/// Takes over what the runner wrote down. It may forget only what is stored here.
async fn fetch_openings(broker: &Broker, vault: &RunnerVault) -> Result<(), RoundError> {
    let ledger = vault.ledger.as_str();
    if !(1..=MAX_LEDGER_ID).contains(&ledger.len()) || !ledger.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(RoundError::Ledger);
    }
    let mut tx = broker.store.read().await?;
    let mut after = tx.ledger().last_seq(ledger).await?;
    drop(tx);
    let mut lies = 0;
    for _ in 0..PAGES {
        let openings = broker.runner.openings(after).await?;
        let n_lines = openings.len() as u64;
        let Some(last) = openings.last().map(|last| last.seq) else { break };
        let now = clock::now_ms();
        let openings = plausible(vault, after, openings, now)?;
        after = last;
        let mut tx = broker.store.begin().await?;
        lies += n_lines - tx.ledger().opened(ledger, &openings, now).await?;
        tx.commit().await?;
        if n_lines < PAGE as u64 {
            break;
        }
    }
    if lies == 0 { Ok(()) } else { Err(RoundError::NotBelieved(lies)) }
}

/// The lines that a runner may write, in the order of its ledger.
fn plausible(
    vault: &RunnerVault,
    mut after: i64,
    mut openings: Vec<Opening>,
    now: i64,
) -> Result<Vec<Opening>, RoundError> {
    for opening in &mut openings {
        if opening.seq <= std::mem::replace(&mut after, opening.seq) {
            return Err(RoundError::Ledger);
        }
        // A clock that runs ahead would put these lines before all others for ever.
        opening.at_ms = opening.at_ms.clamp(0, now);
        let reason = &opening.reason;
        if reason.len() > MAX_REASON || !reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            opening.reason = "other".into();
        }
    }
    // A key that is in memory only is another one after each start, and the ledger goes on.
    openings.retain(|one| Some(&one.runner) == vault.runner.as_ref() || vault.custody == Custody::Memory);
    Ok(openings)
}
