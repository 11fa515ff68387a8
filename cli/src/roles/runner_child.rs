//! The runner beside `up`: found or started, watched, started again when it dies.
//!
//! It is a session of its own, so that a broker that is killed leaves it running; the next `up` finds it by its socket.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wire::Tier;
use wire::egress::PrivateHost;
use wire::runner::Health;

use super::data::DataFolder;
use super::runner::own_build;
use crate::failure::Failure;

/// A runner that no broker has watched for this long ends by itself.
const ORPHAN_TIMEOUT: &str = "600s";
const HEALTH_LIMIT: Duration = Duration::from_secs(2);
/// Services get 5 s to end, each in parallel.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const BACKOFF_MS: [u64; 6] = [0, 200, 500, 1000, 2000, 5000];
/// A runner that lived this long did not die of its start.
const STABLE: Duration = Duration::from_secs(30);
const MAX_LOG: u64 = 10 << 20;

pub struct RunnerChild {
    data: DataFolder,
    socket: PathBuf,
    http: reqwest::Client,
    /// `--private-host` for the runner.
    private: String,
}

/// A runner that answers. `child` is `None` for one that an earlier `up` has started.
struct Live {
    child: Option<Child>,
    pid: i32,
}

impl RunnerChild {
    pub fn new(data: DataFolder, private: &[PrivateHost]) -> Result<Self, Failure> {
        client::install_tls();
        let socket = data.runner_socket();
        let http = reqwest::Client::builder()
            .unix_socket(socket.clone())
            .no_proxy()
            .timeout(HEALTH_LIMIT)
            .build()
            .map_err(|e| Failure::platform(format!("no HTTP client: {e}")))?;
        let private = private.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Ok(Self { data, socket, http, private })
    }

    /// Until `ending`; then the runner and all services are stopped.
    pub async fn keep(self, ending: CancellationToken, is_up: impl FnOnce()) {
        let mut is_up = Some(is_up);
        let mut failures = 0_usize;
        let mut first = true;
        while !ending.is_cancelled() {
            let wait = Duration::from_millis(BACKOFF_MS[failures.min(BACKOFF_MS.len() - 1)]);
            if ending.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
            let started = Instant::now();
            // Not cut short: a runner that is left half started would have nobody to end it.
            let found = self.obtain(first).await;
            first = false;
            match found {
                Ok(mut live) => {
                    if let Some(tell) = is_up.take() {
                        tell();
                    }
                    if ending.run_until_cancelled(self.death_of(&mut live)).await.is_none() {
                        return self.stop(live).await;
                    }
                    warn!("the runner (pid {}) died; its services come back with the next one", live.pid);
                }
                Err(why) => warn!("the runner does not start: {why}; see {}", self.log().display()),
            }
            failures = if started.elapsed() > STABLE { 0 } else { failures + 1 };
        }
        // It may have come up while we were told to end.
        if let Some(health) = self.health().await {
            self.stop(Live { child: None, pid: health.pid }).await;
        }
    }

    /// The runner that is there, when it is of our build; else a new one.
    async fn obtain(&self, may_replace: bool) -> Result<Live, String> {
        if let Some(health) = self.health().await {
            // Compared once: a binary that was replaced since must not make us replace our own child for ever.
            if !may_replace || health.build == own_build().await {
                info!("attached to the runner (pid {}) with {} services", health.pid, health.services);
                return Ok(Live { child: None, pid: health.pid });
            }
            info!("the runner (pid {}) is of another build and is replaced", health.pid);
            self.stop(Live { child: None, pid: health.pid }).await;
        }
        self.start().await
    }

    async fn start(&self) -> Result<Live, String> {
        let log = open_log(&self.log()).map_err(|e| format!("no log file: {e}"))?;
        let errors = log.try_clone().map_err(|e| format!("no log file: {e}"))?;
        let exe = std::env::current_exe().map_err(|e| format!("our own path is unknown: {e}"))?;
        let mut listen = std::ffi::OsString::from("unix:");
        listen.push(&self.socket);
        let tools = crate::env::tools(&exe);
        let mut child = Command::new(exe)
            .arg("runner")
            .arg("--detach")
            .arg("--listen")
            .arg(listen)
            .arg("--data")
            .arg(self.data.join("runner"))
            .args(["--orphan-timeout", ORPHAN_TIMEOUT])
            // Given although it may be empty: what we were told counts, and not what the environment says.
            .arg(format!("--private-host={}", self.private))
            // The broker's secrets are none of the runner's business, and a service must not inherit them.
            .env_remove("BROKER_ENCRYPTION_KEY")
            .env_remove("DATABASE_URL")
            .envs(tools.map(|folder| ("CLAUDEMESH_TOOLS", folder)))
            .current_dir(self.data.path())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(false)
            .spawn()
            .map_err(|e| e.to_string())?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let answers = async {
            loop {
                match self.health().await {
                    Some(health) if health.pid == pid => return health.isolation.tier,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let came_up = tokio::select! {
            came_up = timeout(START_LIMIT, answers) => came_up.map_err(|_| "no answer in time".to_owned()),
            ended = child.wait() => Err(ended.map_or_else(|e| e.to_string(), |status| status.to_string())),
        };
        match came_up {
            Ok(tier) => {
                info!("the runner is up (pid {pid})");
                if let Some(weak) = weakness(tier) {
                    warn!("{weak}; `claudemesh doctor` says what is missing");
                }
                Ok(Live { child: Some(child), pid })
            }
            Err(why) => {
                let _ = child.kill().await;
                Err(why)
            }
        }
    }

    async fn death_of(&self, live: &mut Live) {
        match &mut live.child {
            Some(child) => drop(child.wait().await),
            // Not our child: nobody tells us, so we look.
            None => {
                while is_alive(live.pid) {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    async fn stop(&self, mut live: Live) {
        let asked = self.http.post("http://runner/v1/shutdown").send().await;
        if asked.is_err() {
            signal(live.pid, Signal::SIGTERM);
        }
        if timeout(STOP_LIMIT, self.death_of(&mut live)).await.is_err() {
            warn!("the runner (pid {}) does not end and is killed", live.pid);
            signal(live.pid, Signal::SIGKILL);
            let _ = timeout(HEALTH_LIMIT, self.death_of(&mut live)).await;
        }
    }

    async fn health(&self) -> Option<Health> {
        let response = self.http.get("http://runner/health").send().await.ok()?;
        response.json().await.ok()
    }

    fn log(&self) -> PathBuf {
        self.data.join("runner.log")
    }
}

/// Said when it starts, so that nobody learns it from the first deploy that is refused.
fn weakness(tier: Option<Tier>) -> Option<&'static str> {
    match tier {
        Some(Tier::Strict) => None,
        Some(Tier::Light) => {
            Some("this runner can build the light jail only, and a mesh demands strict at first")
        }
        None => Some("this runner can build no jail, so no service will start"),
    }
}

fn is_alive(pid: i32) -> bool {
    // A zombie still has its entry; it is dead for our purpose, but its parent reaps it at once.
    Path::new("/proc").join(pid.to_string()).exists()
}

fn signal(pid: i32, signal: Signal) {
    if pid > 1 {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Appends; a large one is put aside first, so that the two together stay bounded from start to start.
fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > MAX_LOG) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_put_aside() {
        let mut bytes = [0_u8; 8];
        getrandom::fill(&mut bytes).unwrap();
        let folder = std::env::temp_dir().join(format!("cm-log-{}", hex::encode(bytes)));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("runner.log");
        open_log(&path).unwrap().set_len(MAX_LOG + 1).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::metadata(folder.join("runner.log.1")).unwrap().len(), MAX_LOG + 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
