//! The life of the runner's process: open, listen, serve, end.
//!
//! Here: the order of these. Not here: what is served.
//! Invariant: when [`run`] returns, no process of any service is left.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wire::ErrorCode;

use crate::api::{self, App};
use crate::cell::Cells;
use crate::config::{Listen, RunnerConfig};
use crate::listen::{Bound, ListenError, Lock, private_dir};
use crate::prepare::{PrepareError, Workshop, WorkshopConfig, remove_tree};
use crate::shop::Shop;
use crate::table::Table;
use crate::vault::Vault;

/// How long the end waits for tools that were asked for their version.
const LAST_ANSWERS: Duration = Duration::from_secs(8);

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the artefact store can not be opened: {0}")]
    Store(#[from] PrepareError),
    #[error("finding out what jails can be built panicked")]
    Probe,
    #[error("opening the vault panicked")]
    Vault,
    #[error("signals can not be handled: {0}")]
    Signals(#[source] std::io::Error),
}

impl RunnerError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Listen(ListenError::InUse(_)) => ErrorCode::Conflict,
            Self::Listen(_) | Self::Signals(_) | Self::Probe | Self::Vault => ErrorCode::Internal,
            Self::Store(e) => e.code(),
        }
    }
}

/// Runs until SIGTERM, SIGINT, `POST /v1/shutdown` or too long without a broker.
pub async fn run(config: RunnerConfig) -> Result<(), RunnerError> {
    run_until(config, CancellationToken::new(), |_| {}).await
}

/// As [`run`], and until `ending`. `listening` hears the address once requests are taken.
pub async fn run_until(
    config: RunnerConfig,
    ending: CancellationToken,
    listening: impl FnOnce(&str),
) -> Result<(), RunnerError> {
    protect_memory();
    let signals = Signals::install().map_err(RunnerError::Signals)?;
    private_dir(&config.data)?;
    let _lock = Lock::take(&config.data.join("runner.lock"))?;
    let bound = Bound::bind(&config.listen).await?;
    let token = match &config.listen {
        Listen::Unix(_) => None,
        Listen::Tcp { token, .. } => Some(token.clone()),
    };
    let app = Arc::new(open(config, ending).await?);
    let ended = app.ended.clone();
    let address = bound.address();
    let router = api::router(app.clone(), token);
    let serving = bound.serve(router, ended.clone());
    let watching = async {
        tracing::info!("listening on {address}");
        listening(&address);
        wait_for_end(&app, signals).await;
        tracing::info!("ending: all services are being stopped");
        app.ending.cancel();
        // Streams stay open meanwhile, so that a broker hears what becomes of its services.
        app.table.end().await;
        ended.cancel();
    };
    // Here and not in a request: a client that does not wait for the slowest tool would cancel the search each time.
    let finding = async {
        let found = app.shop.workshop.find_tools();
        tokio::pin!(found);
        tokio::select! {
            () = &mut found => {}
            () = app.ending.cancelled() => {
                // Tools that were asked end by themselves; the children of a shim would outlive us.
                if tokio::time::timeout(LAST_ANSWERS, found).await.is_err() {
                    tracing::warn!("a tool did not say its version in time");
                }
            }
        }
    };
    tokio::join!(serving, watching, finding);
    Ok(())
}

/// Secrets are in it: no core dump, and no other process of this user may look.
fn protect_memory() {
    // Not 0: the kernel would still start a `core_pattern` that is a program; and no file is made of one byte (core(5)).
    let limited = setrlimit(Resource::RLIMIT_CORE, 1, 1);
    if let Err(e) = limited.and_then(|()| nix::sys::prctl::set_dumpable(false)) {
        tracing::warn!("the runner's memory is not protected: {e}");
    }
}

async fn open(config: RunnerConfig, ending: CancellationToken) -> Result<App, RunnerError> {
    let mut workshop = WorkshopConfig::new(config.data.clone());
    workshop.git_schemes.clone_from(&config.git_schemes);
    let build = build_of(&config.jail_exe).await;
    let for_cells = config.clone();
    // Tries each primitive in a child, which takes a moment.
    let cells = tokio::task::spawn_blocking(move || Cells::new(&for_cells)).await;
    let cells = Arc::new(cells.map_err(|_| RunnerError::Probe)?);
    let workshop = Workshop::open(workshop, cells.clone()).await?;
    let vault = open_vault(&config).await?;
    let shop = Arc::new(Shop::new(config, workshop, cells, vault));
    let tmp = shop.tmp_root();
    // What a killed runner left. A directory that can not be removed harms nobody: names are not used twice at once.
    let _ = tokio::task::spawn_blocking(move || remove_tree(&tmp)).await;
    Ok(App {
        table: Table::new(shop.clone()),
        shop,
        build,
        boot: random_hex(),
        started: Instant::now(),
        ending,
        ended: CancellationToken::new(),
    })
}

async fn open_vault(config: &RunnerConfig) -> Result<Vault, RunnerError> {
    let (custody, directory) = (config.custody, config.data.join("vault"));
    private_dir(&directory)?;
    let boot_key_file = config.boot_key_file.clone();
    let opened = move || Vault::new(custody, &directory, boot_key_file.as_deref());
    tokio::task::spawn_blocking(opened).await.map_err(|_| RunnerError::Vault)
}

async fn wait_for_end(app: &App, mut signals: Signals) {
    let orphaned = orphaned(app.shop.events.readers(), app.shop.config.orphan_timeout);
    tokio::select! {
        name = signals.next() => tracing::info!("{name} received"),
        () = app.ending.cancelled() => {}
        () = orphaned => tracing::warn!("no broker was attached for too long"),
    }
}

/// Ends when there was no reader for `limit`.
async fn orphaned(mut readers: watch::Receiver<usize>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        // The sender lives in the shop, which outlives this.
        let attached = tokio::time::timeout(limit, readers.wait_for(|n| *n > 0)).await.is_ok();
        if !attached {
            return;
        }
        if readers.wait_for(|n| *n == 0).await.is_err() {
            return std::future::pending().await;
        }
    }
}

struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Version, size and modification time of the executable, so that a broker sees a runner of another build. Not a
/// hash of its bytes: reading them would delay every restart.
pub async fn build_of(exe: &Path) -> String {
    let meta = tokio::fs::metadata(exe).await;
    let modified = meta.as_ref().ok().and_then(|m| m.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    match (meta, modified) {
        (Ok(meta), Some(at)) => format!("{} {:x}-{:x}", env!("CARGO_PKG_VERSION"), meta.len(), at.as_nanos()),
        _ => format!("{} unknown", env!("CARGO_PKG_VERSION")),
    }
}

fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runner_ends_only_after_the_whole_time_without_a_broker() {
        let (count, readers) = watch::channel(0);
        let limit = Duration::from_secs(600);
        let started = tokio::time::Instant::now();
        let visits = async {
            tokio::time::sleep(Duration::from_secs(500)).await;
            count.send_replace(1);
            tokio::time::sleep(Duration::from_secs(5000)).await;
            count.send_replace(0);
            tokio::time::sleep(Duration::from_secs(599)).await;
            assert_eq!(started.elapsed(), Duration::from_secs(6099));
        };
        tokio::join!(orphaned(readers, Some(limit)), visits);
        assert_eq!(started.elapsed(), Duration::from_secs(6100));
    }
}
