//! The slow work of a service: each job runs beside its owner task and comes back as one [`Outcome`].
//!
//! Here: what a job does. Not here: when (see [`super::state`]), what follows (see [`super::task`]).
//! Invariant: a job that is cancelled has cleaned up before it returns.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use egress::{Ledger, Rules};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::report::{Lists, Reason, Usage};
use wire::runner::Apply;
use wire::spec::ServiceSpec;
use wire::{ErrorCode, ServiceKey, Tier};

use super::secrets;
use crate::audience::Player;
use crate::cell::{CellOrder, Ended};
use crate::inject::{self, Arranged};
use crate::instance::{self, Instance, Launch, Manner, Pipes, StartError, superseded};
use crate::logs::{LogRing, Stream};
use crate::mcp::lists::Kinds;
use crate::mcp::{CallError, Changed, lists, tuning};
use crate::prepare::{Prepared, ProgressSink};
use crate::shop::Shop;
use crate::vault::Why;

/// Several `list_changed` in a row are one.
const CHANGES_SETTLE: Duration = Duration::from_millis(200);
/// The same for a server that says so whenever its lists were read.
const CHANGES_SETTLE_MOST: Duration = Duration::from_secs(60);
/// How long running calls may go on after their instance was replaced.
const DRAIN: Duration = Duration::from_secs(10);

pub enum Outcome {
    Prepared(Result<Prepared, Reason>),
    Started(Box<Result<(Instance, Lists), StartError>>),
    Lost(Arc<Instance>, Reason),
    Pinged(Arc<Instance>, Pong),
    Relisted(Arc<Instance>, Changes, Option<Lists>),
    Sampled(Arc<Instance>, Option<Usage>),
    Drained,
    Gone(Ended),
    /// Nothing follows from it.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pong {
    Answered,
    Missed,
    /// The connection is closing; its end is reported by itself.
    Void,
}

pub async fn prepare(
    shop: Arc<Shop>,
    key: ServiceKey,
    apply: Arc<Apply>,
    progress: ProgressSink,
    cancel: CancellationToken,
) -> Outcome {
    // Before anything is fetched: nothing that could not run here is worth it.
    if let Err(reason) = shop.cells.tier(least(&apply)) {
        return Outcome::Prepared(Err(reason));
    }
    let pin = secrets::signed_pin(&key, &apply);
    // Beside the work here, so that the start need not.
    let ahead = (!apply.vault.entries.is_empty()).then(|| {
        let (vault, apply) = (shop.vault.clone(), apply.clone());
        tokio::task::spawn_blocking(move || vault.look_ahead(&key, &apply))
    });
    let token = apply.secrets.git_token.as_ref();
    tokio::select! {
        prepared = shop.workshop.prepare(&apply.spec, token, pin, &apply.policy, &progress) => {
            if let Some(ahead) = ahead {
                // If it panicked, it does so again at the start, which says so.
                let _ = ahead.await;
            }
            if let Ok(prepared) = &prepared {
                shop.note_prepared(&prepared.pin.artefact);
            }
            Outcome::Prepared(prepared.map_err(|e| Reason {
                code: e.code(),
                message: e.to_string(),
                stderr: e.stderr().to_vec(),
            }))
        }
        // Dropping the other future kills its processes and removes what it made.
        () = cancel.cancelled() => Outcome::Prepared(Err(superseded())),
    }
}

/// The weakest jail that both the mesh and the deployer accept. With secrets it is the strict one unless the spec, which their
/// owner signs, says otherwise: what the mesh demands is the broker's word.
pub fn least(apply: &Apply) -> Tier {
    let demanded = apply.policy.min_isolation;
    let unsaid = if apply.spec.vault.is_empty() { demanded } else { Tier::Strict };
    apply.spec.isolation.unwrap_or(unsaid).max(demanded)
}

/// What a start needs besides its generation.
pub struct Start {
    pub shop: Arc<Shop>,
    pub key: ServiceKey,
    pub apply: Arc<Apply>,
    pub prepared: Arc<Prepared>,
    pub why: Why,
    /// Called once its secrets, if it has any, are open.
    pub opened: Box<dyn FnOnce() + Send>,
    pub log: Arc<LogRing>,
    pub ledger: Arc<Ledger>,
    pub cancel: CancellationToken,
}

pub async fn start(start: Start) -> Outcome {
    let cancel = start.cancel.clone();
    Outcome::Started(Box::new(match launch(start).await {
        Ok(launch) => instance::start(launch, &cancel).await,
        Err(failure) => Err(failure),
    }))
}

async fn launch(start: Start) -> Result<Launch, StartError> {
    let Start { shop, key, apply, prepared, why, opened, log, ledger, cancel: _ } = start;
    let tier = shop.cells.tier(least(&apply))?;
    secrets::fits(&apply.spec, tier)?;
    shop.workshop.check(&prepared.pin.artefact).await.map_err(|e| {
        let reason = Reason { code: e.code(), message: e.to_string(), stderr: e.stderr().to_vec() };
        // It was set aside: preparing again makes it anew.
        StartError { reason, is_gone: true }
    })?;
    let (home, uid) = settle(&shop, &key, &apply, &log).await?;
    // As late as can be: an opening is written down, and what stood in the way before would be one for nothing.
    let values = secrets::open(&shop.vault, &key, &apply, &prepared, why).await?;
    opened();
    let (stdio, pipes) = Pipes::new().map_err(|e| {
        let message = format!("no pipes: {e}");
        Reason { code: ErrorCode::JailFailed, message, stderr: vec![] }
    })?;
    let mut env = environment(&apply, &prepared, &home);
    let (redactor, veil) = (secrets::redactor(&values, &env), secrets::veil(&values, &env));
    let Arranged { values, injection, trust } =
        inject::arrange(&shop.config, &apply.spec, values, &mut env).await?;
    let secret_files = secrets::place(values, &mut env)?;
    Ok(Launch {
        cells: shop.cells.clone(),
        order: CellOrder {
            name: key.name.as_str().to_owned(),
            argv: argv(&apply, &prepared, &home),
            env: env.into(),
            secret_files,
            cwd: prepared.cwd.clone(),
            home,
            tmp: None,
            read_only: prepared.read_only.clone(),
            writable: vec![],
            uid,
            limits: apply.spec.limits,
            rules: Rules { inject: injection, veil, ..rules(&apply.spec) },
            trust,
            private: vec![],
            ledger,
            tier,
            stdio,
        },
        pipes,
        generation: apply.generation,
        log,
        redactor,
        masks_results: !apply.spec.unmasked_results,
        limits: shop.config.mcp,
        start_timeout: shop.config.start_timeout,
    })
}

async fn settle(
    shop: &Arc<Shop>,
    key: &ServiceKey,
    apply: &Apply,
    log: &LogRing,
) -> Result<(PathBuf, Option<u32>), Reason> {
    let (cells, home, plain) = (shop.cells.clone(), shop.home_of(key, apply), shop.plain_home_of(key));
    let settled = tokio::task::spawn_blocking(move || {
        let leaves_data = home != plain && !home.try_exists()? && plain.try_exists()?;
        Ok((cells.settle_home(&home)?, leaves_data))
    });
    let settled = settled.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    let (settled, leaves_data) = settled.map_err(|e: io::Error| {
        let is_full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let code = if is_full { ErrorCode::DiskFull } else { ErrorCode::JailFailed };
        let message = format!("the service's directories could not be made: {e}");
        Reason { code, message, stderr: vec![] }
    })?;
    if leaves_data {
        let (generation, words) = (apply.generation, "starts with an empty data directory");
        let why = "what ran without secrets may not leave files for what gets them";
        log.push(Stream::Runner, &format!("generation {generation} {words}: {why}"));
    }
    Ok(settled)
}

/// In an argument or a value of the deployer, stands for the service's own directory, whose path only the runner knows.
const HOME_MARK: &str = "${HOME}";

fn at_home(text: &str, home: &Path) -> String {
    text.replace(HOME_MARK, &home.to_string_lossy())
}

fn argv(apply: &Apply, prepared: &Prepared, home: &Path) -> Vec<String> {
    // The deployer's arguments are the last ones; a package's own are none of theirs.
    let own = prepared.argv.len().saturating_sub(apply.spec.args.len());
    let words = prepared.argv.iter().enumerate();
    words.map(|(n, word)| if n < own { word.clone() } else { at_home(word, home) }).collect()
}

fn environment(apply: &Apply, prepared: &Prepared, home: &Path) -> Vec<(String, String)> {
    // The deployer's values win over the workshop's defaults (`NODE_ENV`, say); a name can not occur twice.
    let mut env: BTreeMap<String, String> = prepared.env.iter().cloned().collect();
    env.extend(apply.secrets.env.iter().map(|(name, value)| (name.clone(), at_home(value.expose(), home))));
    // The jail sets these itself; those of the vault are put beside them.
    env.retain(|name, _| name != "HOME" && name != "TMPDIR" && !apply.spec.vault.contains_key(name));
    env.into_iter().collect()
}

fn rules(spec: &ServiceSpec) -> Rules {
    let after = |ms: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    Rules { allow: spec.network.clone(), learn_until: spec.learn_until_ms.map(after), ..Rules::default() }
}

pub async fn watch(instance: Arc<Instance>) -> Outcome {
    let reason = instance.lost().await;
    Outcome::Lost(instance, reason)
}

pub async fn halt(instance: Arc<Instance>, manner: Manner) -> Outcome {
    Outcome::Gone(instance.halt(manner).await)
}

pub async fn drain(instance: Arc<Instance>) -> Outcome {
    instance.client.drained(DRAIN).await;
    Outcome::Drained
}

/// `ping`, or in the modern era, which has none, `server/discover`. Any answer will do.
pub async fn ping(instance: Arc<Instance>, limit: Duration) -> Outcome {
    let method = if instance.client.is_modern() { "server/discover" } else { "ping" };
    let pong = match instance.client.ask(method, None, limit).await {
        Ok(_)
        | Err(CallError::TooLarge(_) | CallError::TooDeep(_) | CallError::Busy | CallError::BadParams(_)) => {
            Pong::Answered
        }
        Err(CallError::Silent(_)) => Pong::Missed,
        Err(CallError::NotSent | CallError::Lost) => Pong::Void,
    };
    Outcome::Pinged(instance, pong)
}

/// A server's `list_changed`, taken at a pace that it does not set.
pub struct Changes {
    seen: watch::Receiver<Changed>,
    /// What had changed when the lists were read last, and before that.
    read: (Changed, Changed),
    /// How long the last ones were given to settle.
    pause: Duration,
}

impl Changes {
    pub fn new(seen: watch::Receiver<Changed>) -> Self {
        Self { seen, read: Default::default(), pause: Duration::ZERO }
    }

    /// Of which kind the lists are that were read last because they changed.
    pub fn kinds(&self) -> Kinds {
        let (before, now) = self.read;
        Kinds {
            tools: before.tools != now.tools,
            prompts: before.prompts != now.prompts,
            resources: before.resources != now.resources,
        }
    }

    /// Waits for a change and for those that follow it; false when the connection is over. The wait doubles while
    /// there is less quiet before a change than the wait before it took.
    async fn settled(&mut self) -> bool {
        let quiet_from = Instant::now();
        if self.seen.changed().await.is_err() {
            return false;
        }
        let is_restless = quiet_from.elapsed() < self.pause;
        let next = if is_restless { self.pause * 2 } else { CHANGES_SETTLE };
        self.pause = next.min(CHANGES_SETTLE_MOST);
        let ended = async { while self.seen.changed().await.is_ok() {} };
        let is_open = tokio::time::timeout(self.pause, ended).await.is_err();
        self.read = (self.read.1, *self.seen.borrow());
        is_open
    }
}

/// Waits until the server says that a list changed, and reads all of them again.
pub async fn relist(instance: Arc<Instance>, mut changes: Changes, limit: Duration) -> Outcome {
    if !changes.settled().await {
        return Outcome::Over;
    }
    let lists = lists::read_all(&instance.client, &instance.greeting, instance.generation, limit).await;
    let lists = lists
        .inspect_err(
            |e| tracing::warn!(error = %e, "a server's changed lists could not be read; keeping the old"),
        )
        .ok();
    Outcome::Relisted(instance, changes, lists)
}

/// Asks a server for what those want to hear that listen, until it ends.
pub async fn attend(
    instance: Arc<Instance>,
    mut player: Player,
    begun: tuning::Begun,
    log: Arc<LogRing>,
) -> Outcome {
    let say = |text: &str| log.push(Stream::Runner, text);
    tuning::tune(&instance.client, instance.greeting.offers, &mut player, begun, say).await;
    Outcome::Over
}

pub async fn sample(instance: Arc<Instance>) -> Outcome {
    let usage = instance.usage().await;
    Outcome::Sampled(instance, usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_lists_change_with_each_reading_is_asked_ever_less_until_it_is_quiet() {
        let (tell, seen) = watch::channel(Changed::default());
        let mut changes = Changes::new(seen);
        let mut waits = vec![];
        for _ in 0..12 {
            tell.send_modify(|n| n.tools += 1);
            let from = Instant::now();
            assert!(changes.settled().await);
            waits.push(from.elapsed().as_millis());
        }
        assert_eq!(waits[..4], [200, 400, 800, 1600]);
        assert_eq!(waits[10..], [60_000, 60_000]);
        let quiet = async {
            tokio::time::sleep(CHANGES_SETTLE_MOST).await;
            tell.send_modify(|n| n.prompts += 1);
        };
        let from = Instant::now();
        assert!(tokio::join!(changes.settled(), quiet).0);
        assert_eq!(from.elapsed(), CHANGES_SETTLE_MOST + CHANGES_SETTLE);
        assert_eq!(changes.kinds(), Kinds { prompts: true, ..Kinds::default() });
        tell.send_modify(|n| n.tools += 1);
        let ended = async { drop(tell) };
        assert!(!tokio::join!(changes.settled(), ended).0, "it does not wait for a connection that is over");
    }
}
