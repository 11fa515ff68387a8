//! Runs one install step in a cell of its own: streamed, bounded in time, memory, processes and disk, ended whole.
//!
//! Here: what a step may reach ([`Reach`]), its uid, its output, its end. Not here: which steps a source needs, and what
//! a failed one means (`npm`, `pypi`, `project`); its directories ([`super::ground`]).
//! Invariant: when [`Bench::run`] returns, its jail has said that no process of the step is left; when it is dropped, they
//! are being killed. After the first step that may have run foreign code no step gets a login any more.
//!
//! Fetching from git and unpacking archives happen in the runner itself: they are our code, they run nothing that they
//! fetch, and all that they write goes through the rules of [`super::unpack`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jail::{Ending, Report};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use wire::report::Reason;
use wire::{ErrorCode, Tier};

use super::age::MinAge;
use super::error::{Doing, PrepareError};
use super::ground::{self, Ground, Lay};
use super::heard::{Heard, Pipes};
use super::registries::Registries;
use super::setting::Reach;
use super::store::Staging;
use super::tools::Tools;
use super::{ProgressSink, tree};
use crate::cell::{Cell, CellOrder, Cells, Ended as CellEnd, UidLease};
use crate::warden::Life;

/// How often the disk use of a running step is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// From the end of a step to the last byte of its output.
const LAST_WORDS: Duration = Duration::from_secs(5);
const MEMORY_MB: u32 = 2048;
const PIDS: u32 = 512;
const OPEN_FILES: u32 = 4096;

/// What all steps of one preparation share.
pub(crate) struct Bench {
    pub(crate) tools: Arc<Tools>,
    pub(crate) progress: ProgressSink,
    /// Private directory of this preparation.
    pub(crate) staging: PathBuf,
    /// The package managers' downloads, for steps that run no foreign code.
    pub(crate) cache: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) limits: tree::Limits,
    pub(crate) min_age: MinAge,
    pub(crate) bed: Bed,
    pub(crate) n_steps: AtomicU64,
    /// Foreign code may have run, and have left anything in the tree.
    pub(crate) is_tainted: AtomicBool,
}

/// Where steps run.
pub(crate) enum Bed {
    Cells(Box<InCells>),
    /// For tests of what is run: notes it instead.
    #[cfg(test)]
    Noted(std::sync::Mutex<Vec<String>>, fn(&Step<'_>)),
}

pub(crate) struct InCells {
    pub(crate) staging: Arc<Staging>,
    pub(crate) cells: Arc<Cells>,
    /// No step runs in a weaker jail than the service will.
    pub(crate) least: Tier,
    pub(crate) registries: Arc<tokio::sync::Mutex<Option<Registries>>>,
    /// One uid for all foreign steps of this preparation: held until what they made is sealed or removed.
    pub(crate) lease: OnceCell<Option<UidLease>>,
}

pub(crate) struct Step<'a> {
    /// `fetch`, `install` or `build`.
    pub(crate) name: &'static str,
    /// As in [`Tools::get`].
    pub(crate) tool: &'a str,
    pub(crate) args: Vec<String>,
    pub(crate) cwd: &'a Path,
    pub(crate) reach: Reach,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Keep stdout as the answer instead of showing it.
    pub(crate) capture: bool,
}

impl<'a> Step<'a> {
    pub(crate) fn new(name: &'static str, tool: &'a str, cwd: &'a Path, args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { name, tool, args, cwd, reach: Reach::Registry, env: Vec::new(), capture: false }
    }

    pub(crate) fn captured(mut self) -> Self {
        self.capture = true;
        self
    }

    /// May run code of the source or of its dependencies.
    pub(crate) fn foreign(mut self) -> Self {
        self.reach = Reach::Project;
        self
    }

    pub(crate) fn foreign_if(self, is_foreign: bool) -> Self {
        if is_foreign { self.foreign() } else { self }
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) tail: Vec<String>,
}

impl Ended {
    /// The tail as one line of single spaces, for matching phrases that a tool may have wrapped.
    pub(crate) fn text(&self) -> String {
        self.tail.iter().flat_map(|line| line.split_whitespace()).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn success_or(
        self,
        code: ErrorCode,
        message: impl Into<String>,
    ) -> Result<Self, PrepareError> {
        if self.success { Ok(self) } else { Err(PrepareError::new(code, message).with_lines(self.tail)) }
    }
}

impl Bench {
    pub(crate) fn say(&self, step: &str, line: &str) {
        (self.progress)(step, line);
    }

    /// Whose files the tree may hold when it is sealed; empty when the runner is not root.
    pub(crate) fn uids(&self) -> Vec<u32> {
        match &self.bed {
            Bed::Cells(bed) => bed.uids(),
            #[cfg(test)]
            Bed::Noted(..) => Vec::new(),
        }
    }

    /// Where requirements and locks are written, by us and by steps.
    pub(crate) fn work(&self) -> Result<PathBuf, PrepareError> {
        let work = ground::work_dir(&self.staging);
        std::fs::create_dir_all(&work).doing("making a staging directory")?;
        Ok(work)
    }

    /// The cache that a step of this reach has.
    pub(crate) fn cache_of(&self, reach: Reach) -> PathBuf {
        match reach {
            Reach::Registry => self.cache.canonicalize().unwrap_or_else(|_| self.cache.clone()),
            Reach::Project => ground::own_cache(&self.staging),
        }
    }

    /// Runs a step to its end. `Ok` also when it failed: its caller knows what its output means.
    pub(crate) async fn run(&self, mut step: Step<'_>) -> Result<Ended, PrepareError> {
        if step.reach == Reach::Project {
            self.is_tainted.store(true, Ordering::Relaxed);
        } else if self.is_tainted.load(Ordering::Relaxed) {
            step.reach = Reach::Project;
        }
        match &self.bed {
            Bed::Cells(bed) => self.run_in_cell(bed, step).await,
            #[cfg(test)]
            Bed::Noted(noted, then) => {
                let line = format!("{:?} {} {}", step.reach, step.tool, step.args.join(" "));
                noted.lock().unwrap().push(line);
                then(&step);
                Ok(Ended { success: true, stdout: Vec::new(), tail: Vec::new() })
            }
        }
    }

    /// For tests of what would be run: `then` stands in for its doing.
    #[cfg(test)]
    pub(crate) fn noting(staging: &Path, then: fn(&Step<'_>)) -> Self {
        Self {
            tools: Arc::new(Tools::of(
                &["uv", "python", "npm", "node"].map(|tool| (tool, Path::new("/usr/bin/env"))),
            )),
            progress: Arc::new(|_: &str, _: &str| {}),
            staging: staging.to_owned(),
            cache: staging.join("cache"),
            timeout: Duration::from_secs(60),
            limits: tree::Limits { bytes: 1 << 20, files: 1000 },
            min_age: MinAge::default(),
            bed: Bed::Noted(std::sync::Mutex::default(), then),
            n_steps: AtomicU64::default(),
            is_tainted: AtomicBool::default(),
        }
    }

    /// `REACH TOOL ARGUMENTS` of every step so far.
    #[cfg(test)]
    pub(crate) fn noted(&self) -> Vec<String> {
        match &self.bed {
            Bed::Noted(noted, _) => noted.lock().unwrap().clone(),
            Bed::Cells(_) => Vec::new(),
        }
    }

    async fn run_in_cell(&self, bed: &InCells, step: Step<'_>) -> Result<Ended, PrepareError> {
        let tier = bed.cells.tier(bed.least)?;
        let uid = bed.uid(step.reach).await?;
        let registries = bed.registries(&self.tools).await;
        let ground = Arc::new(self.lay(bed, &step, uid).await?);
        let (stdio, mut pipes) = Pipes::new().doing("making pipes")?;
        let order = self.order(&step, &ground, uid, stdio, tier, &registries)?;
        let cell = bed.cells.open(order).await?;
        let heard = self.listen(&step, &cell, &mut pipes).await;
        let end = cell.end().await;
        let events = cell.events().await;
        // Its home holds the operator's settings.
        let _ = spawn_blocking(move || drop(ground)).await;
        let ended = heard?;
        if end != CellEnd::Confirmed {
            let message = "processes of an install step could not be ended; look at the runner's log";
            return Err(PrepareError::new(ErrorCode::JailFailed, message).with_lines(ended.tail));
        }
        if !ended.success && events.is_some_and(|events| events.oom_kills > 0) {
            let message = format!("`{}` used more than {MEMORY_MB} MiB of memory", step.tool);
            return Err(PrepareError::new(ErrorCode::OutOfMemory, message).with_lines(ended.tail));
        }
        judge_disk(ended)
    }

    async fn lay(&self, bed: &InCells, step: &Step<'_>, uid: Option<u32>) -> Result<Ground, PrepareError> {
        let (tools, staging, cache) = (Arc::clone(&self.tools), self.staging.clone(), self.cache.clone());
        let (reach, more_env) = (step.reach, step.env.clone());
        let number = self.n_steps.fetch_add(1, Ordering::Relaxed);
        let lay = move || {
            let (tools, staging, cache) = (&*tools, staging.as_path(), cache.as_path());
            ground::lay(Lay { tools, staging, cache, reach, uid, number, more_env })
        };
        let laid = Arc::clone(&bed.staging).occupy(lay).await;
        let laid = laid.map_err(|_| PrepareError::lost("making a step's directories"))?;
        laid.doing("making a step's directories")
    }

    fn order(
        &self,
        step: &Step<'_>,
        ground: &Ground,
        uid: Option<u32>,
        stdio: jail::Stdio,
        tier: Tier,
        registries: &Registries,
    ) -> Result<CellOrder, PrepareError> {
        let program = self.tools.get(step.tool)?.path.to_string_lossy().into_owned();
        Ok(CellOrder {
            name: step.name.to_owned(),
            argv: std::iter::once(program).chain(step.args.iter().cloned()).collect(),
            env: ground.env.clone().into(),
            secret_files: vec![],
            cwd: step.cwd.to_owned(),
            home: ground.home.clone(),
            tmp: Some(ground.tmp.clone()),
            read_only: ground.read_only.clone(),
            writable: ground.writable.clone(),
            uid,
            limits: wire::spec::Limits {
                memory_mb: MEMORY_MB,
                pids: PIDS,
                disk_mb: u32::try_from(self.limits.bytes >> 20).unwrap_or(u32::MAX).max(1),
                open_files: open_files(),
                ..Default::default()
            },
            rules: egress::Rules { allow: registries.rules.clone(), ..egress::Rules::default() },
            trust: None,
            private: registries.rules.clone(),
            ledger: Arc::default(),
            tier,
            stdio,
        })
    }

    /// Until the step has ended and said its last words, or has to be stopped.
    async fn listen(&self, step: &Step<'_>, cell: &Cell, pipes: &mut Pipes) -> Result<Ended, PrepareError> {
        let mut heard = Heard::new(self, step);
        let mut watch = tokio::time::interval_at(Instant::now() + WATCH_EVERY, WATCH_EVERY);
        let mut life = cell.life();
        let mut deadline = Instant::now() + self.timeout;
        let mut outcome = None;
        while outcome.is_none() || pipes.are_open() {
            let is_over = |life: &Life| life.exit.is_some() || life.failed.is_some() || life.gone;
            let over = async { life.wait_for(is_over).await.map(|life| life.clone()).unwrap_or_default() };
            tokio::select! {
                chunk = pipes.out.read(), if pipes.out.is_open() => heard.stdout(chunk),
                chunk = pipes.err.read(), if pipes.err.is_open() => heard.stderr(chunk),
                life = over, if outcome.is_none() => {
                    outcome = Some(life);
                    deadline = deadline.min(Instant::now() + LAST_WORDS);
                }
                () = tokio::time::sleep_until(deadline) => match outcome {
                    Some(_) => break,
                    None => return Err(self.timed_out(step, heard)),
                },
                _ = watch.tick() => tree::check_size(&self.staging, self.limits).await?,
            }
        }
        match outcome {
            Some(Life { exit: Some(exit), .. }) => Ok(heard.end(exit.ending == Ending::Code(0))),
            Some(Life { failed: Some(Report::Failed { step: at, message, .. }), .. }) => {
                let message = format!("the jail of `{}` could not be built ({at:?}): {message}", step.tool);
                Err(PrepareError::new(ErrorCode::JailFailed, message))
            }
            _ => Err(PrepareError::new(ErrorCode::JailFailed, "the jail of an install step broke down")),
        }
    }

    fn timed_out(&self, step: &Step<'_>, heard: Heard<'_>) -> PrepareError {
        let (tool, seconds) = (step.tool, self.timeout.as_secs());
        let message = format!("`{tool}` was stopped after {seconds} s; deploy again, a warm cache is faster");
        PrepareError::new(ErrorCode::InstallTimeout, message).with_lines(heard.end(false).tail)
    }
}

impl InCells {
    async fn uid(&self, reach: Reach) -> Result<Option<u32>, PrepareError> {
        if reach == Reach::Registry {
            return Ok(self.cells.installer_uid());
        }
        let lease =
            self.lease.get_or_try_init(async || self.cells.fresh_uid().doing("finding a free uid")).await?;
        Ok(lease.as_ref().map(UidLease::uid))
    }

    fn uids(&self) -> Vec<u32> {
        let lease = self.lease.get().and_then(|lease| lease.as_ref()).map(UidLease::uid);
        self.cells.installer_uid().into_iter().chain(lease).collect()
    }

    async fn registries(&self, tools: &Tools) -> Registries {
        let mut known = self.registries.lock().await;
        match &*known {
            Some(registries) if registries.is_complete => registries.clone(),
            _ => known.insert(Registries::ask(tools).await).clone(),
        }
    }
}

/// Not more than the runner may have itself, which only root could give.
fn open_files() -> u32 {
    use nix::sys::resource::{Resource, getrlimit};
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    OPEN_FILES.min(u32::try_from(hard).unwrap_or(u32::MAX))
}

fn judge_disk(ended: Ended) -> Result<Ended, PrepareError> {
    let full = ["ENOSPC", "No space left on device", "os error 28"];
    if !ended.success && ended.tail.iter().any(|line| full.iter().any(|mark| line.contains(mark))) {
        return Err(PrepareError::disk_full().with_lines(ended.tail));
    }
    Ok(ended)
}

impl From<Reason> for PrepareError {
    fn from(reason: Reason) -> Self {
        Self::new(reason.code, reason.message).with_lines(reason.stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_foreign_code_no_step_of_the_preparation_has_a_login() {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::noting(dir.path(), |_| {});
        for step in [
            Step::new("install", "npm", dir.path(), &["ci"]),
            Step::new("build", "npm", dir.path(), &["run", "build"]).foreign(),
            Step::new("install", "npm", dir.path(), &["prune"]),
        ] {
            bench.run(step).await.unwrap();
        }
        assert_eq!(bench.noted(), ["Registry npm ci", "Project npm run build", "Project npm prune"]);
    }

    #[test]
    fn a_full_disk_is_recognised_in_the_output_of_a_failed_step() {
        let ended = |success| Ended {
            success,
            stdout: Vec::new(),
            tail: vec!["npm error ENOSPC: no space".to_owned()],
        };
        assert_eq!(judge_disk(ended(false)).err().unwrap().code(), ErrorCode::DiskFull);
        assert!(judge_disk(ended(true)).is_ok(), "a package may be called so");
    }
}
