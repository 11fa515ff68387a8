//! The slow work of a service: each job runs beside its owner task and comes back as one [`Outcome`].
//!
//! Here: what a job does. Not here: when (see [`super::state`]), what follows (see [`super::task`]).
//! Invariant: a job that is cancelled has cleaned up before it returns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jail::{Isolation, JailSpec, Limits};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::report::{Lists, Reason};
use wire::runner::Apply;
use wire::{ErrorCode, ServiceKey};

use crate::instance::{self, Ended, Instance, Launch, Manner, StartError, superseded};
use crate::logs::LogRing;
use crate::mcp::{CallError, handshake, lists};
use crate::prepare::{Prepared, ProgressSink};
use crate::shop::Shop;

/// Several `list_changed` in a row are one.
const CHANGES_SETTLE: Duration = Duration::from_millis(200);
/// The same for a server that says so whenever its lists were read.
const CHANGES_SETTLE_MOST: Duration = Duration::from_secs(60);
/// How long running calls may go on after their instance was replaced.
const DRAIN: Duration = Duration::from_secs(10);
/// Processes and threads a server may add; counted by uid, so generous.
const MAX_PROCESSES: u64 = 4096;

pub enum Outcome {
    Prepared(Result<Prepared, Reason>),
    Started(Box<Result<(Instance, Lists), StartError>>),
    Lost(Arc<Instance>, Reason),
    Pinged(Arc<Instance>, Pong),
    Relisted(Arc<Instance>, Changes, Option<Lists>),
    Sampled(Arc<Instance>, Option<u64>),
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
    apply: Arc<Apply>,
    progress: ProgressSink,
    cancel: CancellationToken,
) -> Outcome {
    let token = apply.secrets.git_token.as_ref();
    tokio::select! {
        prepared = shop.workshop.prepare(&apply.spec, token, apply.pin.as_ref(), &progress) => {
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

/// What a start needs besides its generation.
pub struct Start {
    pub shop: Arc<Shop>,
    pub key: ServiceKey,
    pub apply: Arc<Apply>,
    pub prepared: Arc<Prepared>,
    pub log: Arc<LogRing>,
    pub cancel: CancellationToken,
}

pub async fn start(start: Start) -> Outcome {
    let Start { shop, key, apply, prepared, log, cancel } = start;
    let places = match places(&shop, &key).await {
        Ok(places) => places,
        Err(e) => {
            let code = match e.kind() {
                std::io::ErrorKind::StorageFull => ErrorCode::DiskFull,
                _ => ErrorCode::JailFailed,
            };
            let message = format!("the service's directories could not be made: {e}");
            return Outcome::Started(Box::new(Err(Reason { code, message, stderr: vec![] }.into())));
        }
    };
    let launch = Launch {
        exe: shop.config.jail_exe.clone(),
        spec: jail_spec(&apply, &prepared, places),
        generation: apply.generation,
        log,
        limits: shop.config.mcp,
        start_timeout: shop.config.start_timeout,
    };
    Outcome::Started(Box::new(instance::start(launch, &cancel).await))
}

/// Home and tmp.
async fn places(shop: &Shop, key: &ServiceKey) -> std::io::Result<(PathBuf, PathBuf)> {
    let (home, tmp) = (shop.home_of(key), shop.new_tmp());
    for place in [&home, &tmp] {
        // The last component is left to the jail, which makes it with mode 0700.
        if let Some(parent) = place.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
    }
    Ok((home, tmp))
}

fn jail_spec(apply: &Apply, prepared: &Prepared, (home, tmp): (PathBuf, PathBuf)) -> JailSpec {
    // The deployer's values win over the workshop's defaults (`NODE_ENV`, say); a name can not occur twice.
    let mut env: BTreeMap<String, String> = prepared.env.iter().cloned().collect();
    env.extend(apply.secrets.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
    // The jail sets these itself.
    env.retain(|name, _| name != "HOME" && name != "TMPDIR");
    let limits = apply.spec.limits;
    JailSpec {
        argv: prepared.argv.clone(),
        env: env.into_iter().collect(),
        cwd: prepared.cwd.clone(),
        home,
        tmp,
        limits: Limits {
            memory_bytes: Some(u64::from(limits.memory_mb) << 20),
            max_processes: Some(MAX_PROCESSES),
            open_files: u64::from(limits.open_files),
            file_size_bytes: Some(u64::from(limits.file_size_mb) << 20),
        },
        // The strict construction is there and tested; it waits for egress by name, without which a server in it
        // would have either no network or the host's.
        isolation: Isolation::Light,
    }
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
        Ok(_) | Err(CallError::TooLarge(_) | CallError::Busy | CallError::BadParams(_)) => Pong::Answered,
        Err(CallError::Silent(_)) => Pong::Missed,
        Err(CallError::NotSent | CallError::Lost) => Pong::Void,
    };
    Outcome::Pinged(instance, pong)
}

/// A server's `list_changed`, taken at a pace that it does not set.
pub struct Changes {
    seen: watch::Receiver<u64>,
    /// How long the last ones were given to settle.
    pause: Duration,
}

impl Changes {
    pub fn new(seen: watch::Receiver<u64>) -> Self {
        Self { seen, pause: Duration::ZERO }
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
        tokio::time::timeout(self.pause, ended).await.is_err()
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

/// Holds the modern era's subscription open.
pub async fn listen(instance: Arc<Instance>) -> Outcome {
    handshake::listen(&instance.client, instance.greeting.offers).await;
    Outcome::Over
}

pub async fn sample(instance: Arc<Instance>) -> Outcome {
    let helper = instance.helper_pid();
    // Reads /proc, which blocks.
    let usage = tokio::task::spawn_blocking(move || jail::usage(helper)).await;
    Outcome::Sampled(instance, usage.ok().and_then(Result::ok).map(|usage| usage.rss_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_lists_change_with_each_reading_is_asked_ever_less_until_it_is_quiet() {
        let (tell, seen) = watch::channel(0);
        let mut changes = Changes::new(seen);
        let mut waits = vec![];
        for _ in 0..12 {
            tell.send_modify(|n| *n += 1);
            let from = Instant::now();
            assert!(changes.settled().await);
            waits.push(from.elapsed().as_millis());
        }
        assert_eq!(waits[..4], [200, 400, 800, 1600]);
        assert_eq!(waits[10..], [60_000, 60_000]);
        let quiet = async {
            tokio::time::sleep(CHANGES_SETTLE_MOST).await;
            tell.send_modify(|n| *n += 1);
        };
        let from = Instant::now();
        assert!(tokio::join!(changes.settled(), quiet).0);
        assert_eq!(from.elapsed(), CHANGES_SETTLE_MOST + CHANGES_SETTLE);
        tell.send_modify(|n| *n += 1);
        let ended = async { drop(tell) };
        assert!(!tokio::join!(changes.settled(), ended).0, "it does not wait for a connection that is over");
    }
}
