//! Runs one install step as a process group: streamed, bounded in time and disk, killed whole.
//!
//! Not here: which steps a source needs, and what a failed one means (`npm`, `pypi`, `project`).
//! Invariant: when [`Bench::run`] returns or is dropped, nothing of the step's process group is left.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio_process_stream::{Item, ProcessChunkStream};
use wire::ErrorCode;

use super::ProgressSink;
use super::error::{Doing, PrepareError};
use super::output::{LineCutter, Tail};
use super::tools::{Reach, Tools, step_env};
use super::tree;

/// Most of a captured answer that is kept (`npm view` of a range lists every version).
const CAPTURE_BYTES: usize = 4 << 20;
/// How often the disk use of a running step is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// What all steps of one preparation share.
pub(crate) struct Bench {
    pub(crate) tools: Arc<Tools>,
    pub(crate) progress: ProgressSink,
    /// Private directory of this preparation; `TMPDIR` is inside.
    pub(crate) staging: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) limits: tree::Limits,
}

pub(crate) struct Step<'a> {
    /// `fetch`, `install` or `build`.
    pub(crate) name: &'static str,
    /// As in [`Tools::get`], or an absolute path.
    pub(crate) tool: &'a str,
    pub(crate) args: Vec<OsString>,
    pub(crate) cwd: &'a Path,
    pub(crate) reach: Reach,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Keep stdout as the answer instead of showing it.
    pub(crate) capture: bool,
}

impl<'a> Step<'a> {
    pub(crate) fn new(name: &'static str, tool: &'a str, cwd: &'a Path, args: &[&str]) -> Self {
        let args = args.iter().map(OsString::from).collect();
        Self { name, tool, args, cwd, reach: Reach::Registry, env: Vec::new(), capture: false }
    }

    pub(crate) fn captured(mut self) -> Self {
        self.capture = true;
        self
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

/// Kills the group when the step ends in whatever way: also what a script left in the background.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL); // ESRCH: already gone, which is the goal
    }
}

impl Bench {
    pub(crate) fn say(&self, step: &str, line: &str) {
        (self.progress)(step, line);
    }

    /// Runs a step to its end. `Ok` also when it failed: its caller knows what its output means.
    pub(crate) async fn run(&self, step: Step<'_>) -> Result<Ended, PrepareError> {
        let (mut stream, group) = self.spawn(&step)?;
        let deadline = tokio::time::sleep(self.timeout);
        tokio::pin!(deadline);
        let mut watch = tokio::time::interval_at(tokio::time::Instant::now() + WATCH_EVERY, WATCH_EVERY);
        let mut heard = Heard::new(self, &step);
        let status = loop {
            tokio::select! {
                item = stream.next() => match item {
                    Some(Item::Stdout(chunk)) => heard.stdout(&chunk),
                    Some(Item::Stderr(chunk)) => heard.stderr(&chunk),
                    Some(Item::Done(status)) => break status.doing("waiting for an install step")?,
                    None => return Err(PrepareError::lost("an install step")),
                },
                () = &mut deadline => return Err(self.timed_out(&step, heard)),
                _ = watch.tick() => tree::check_size(&self.staging, self.limits).await?,
            }
        };
        drop(group);
        let ended = heard.end(status.success());
        let full = ["ENOSPC", "No space left on device", "os error 28"];
        if !ended.success && ended.tail.iter().any(|line| full.iter().any(|mark| line.contains(mark))) {
            return Err(PrepareError::disk_full().with_lines(ended.tail));
        }
        Ok(ended)
    }

    fn spawn(&self, step: &Step<'_>) -> Result<(ProcessChunkStream, Group), PrepareError> {
        let program = match Path::new(step.tool) {
            path if path.is_absolute() => path.to_owned(),
            _ => self.tools.get(step.tool)?.path.clone(),
        };
        let scratch = self.staging.join("tmp");
        std::fs::create_dir_all(&scratch).doing("making a staging directory")?;
        let mut command = match self.tools.leash() {
            Some((setpriv, args)) => {
                let mut command = Command::new(setpriv);
                command.args(args).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        command.args(&step.args).current_dir(step.cwd).env_clear();
        command.envs(step_env(&self.tools, step.reach, &scratch, &self.cache));
        command.envs(step.env.iter().map(|(name, value)| (name, value)));
        command.stdin(std::process::Stdio::null()).process_group(0).kill_on_drop(true);
        let stream =
            ProcessChunkStream::try_from(command).doing(&format!("starting `{}`", program.display()))?;
        let pid =
            stream.child().and_then(tokio::process::Child::id).ok_or_else(|| PrepareError::lost("a step"))?;
        let group = Group(Pid::from_raw(i32::try_from(pid).map_err(|_| PrepareError::lost("a step"))?));
        Ok((stream, group))
    }

    fn timed_out(&self, step: &Step<'_>, heard: Heard<'_>) -> PrepareError {
        let tool = Path::new(step.tool).file_name().unwrap_or_default().to_string_lossy();
        let seconds = self.timeout.as_secs();
        let message = format!("`{tool}` was stopped after {seconds} s; deploy again, a warm cache is faster");
        PrepareError::new(ErrorCode::InstallTimeout, message).with_lines(heard.end(false).tail)
    }
}

/// What a running step has said so far.
struct Heard<'a> {
    bench: &'a Bench,
    name: &'static str,
    capture: Option<Vec<u8>>,
    out: LineCutter,
    err: LineCutter,
    tail: Tail,
}

impl<'a> Heard<'a> {
    fn new(bench: &'a Bench, step: &Step<'_>) -> Self {
        let capture = step.capture.then(Vec::new);
        Self {
            bench,
            name: step.name,
            capture,
            out: LineCutter::default(),
            err: LineCutter::default(),
            tail: Tail::default(),
        }
    }

    fn stdout(&mut self, chunk: &[u8]) {
        match &mut self.capture {
            Some(kept) => kept.extend_from_slice(&chunk[..chunk.len().min(CAPTURE_BYTES - kept.len())]),
            None => self.out.push(chunk, |line| show(self.bench, self.name, &mut self.tail, line)),
        }
    }

    fn stderr(&mut self, chunk: &[u8]) {
        self.err.push(chunk, |line| show(self.bench, self.name, &mut self.tail, line));
    }

    fn end(mut self, success: bool) -> Ended {
        self.out.finish(|line| show(self.bench, self.name, &mut self.tail, line));
        self.err.finish(|line| show(self.bench, self.name, &mut self.tail, line));
        Ended { success, stdout: self.capture.unwrap_or_default(), tail: self.tail.into_lines() }
    }
}

fn show(bench: &Bench, step: &str, tail: &mut Tail, line: String) {
    bench.say(step, &line);
    tail.push(line);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    fn bench(staging: &Path, timeout: Duration, lines: Arc<Mutex<Vec<String>>>) -> Bench {
        Bench {
            tools: Arc::new(Tools::default()),
            progress: Arc::new(move |_: &str, line: &str| lines.lock().unwrap().push(line.to_owned())),
            staging: staging.to_owned(),
            cache: staging.join("cache"),
            timeout,
            limits: tree::Limits { bytes: 1 << 20, files: 1000 },
        }
    }

    fn sh<'a>(dir: &'a Path, script: &str) -> Step<'a> {
        Step::new("install", "/bin/sh", dir, &["-c", script]).env("PATH", "/usr/bin:/bin")
    }

    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    async fn until_gone(pid: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while alive(pid) {
            assert!(Instant::now() < deadline, "process {pid} is still there");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn output_is_streamed_and_a_failure_keeps_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let bench = bench(dir.path(), Duration::from_secs(20), lines.clone());
        let step = sh(dir.path(), "echo out; echo err >&2; exit 3");
        let ended = bench.run(step).await.unwrap();
        assert!(!ended.success);
        assert_eq!(lines.lock().unwrap().len(), 2);
        assert_eq!(ended.tail.len(), 2);
    }

    #[tokio::test]
    async fn a_timeout_kills_what_the_step_forked() {
        let dir = tempfile::tempdir().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let bench = bench(dir.path(), Duration::from_millis(500), lines.clone());
        let step = sh(dir.path(), "sleep 600 & echo $!; wait");
        let error = bench.run(step).await.err().expect("it never ends");
        assert_eq!(error.code(), ErrorCode::InstallTimeout);
        let pid = lines.lock().unwrap().first().cloned().expect("the child's pid");
        until_gone(&pid).await;
    }

    #[tokio::test]
    async fn a_child_left_in_the_background_does_not_outlive_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let bench = bench(dir.path(), Duration::from_secs(20), lines.clone());
        let script = "sleep 600 >/dev/null 2>&1 & echo $!";
        assert!(bench.run(sh(dir.path(), script)).await.unwrap().success);
        let pid = lines.lock().unwrap()[0].clone();
        until_gone(&pid).await;
    }

    #[tokio::test]
    async fn a_step_dies_with_a_runner_that_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut bench = bench(dir.path(), Duration::from_secs(60), lines.clone());
        bench.tools = Arc::new(Tools::find().await);
        if bench.tools.leash().is_none() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "setpriv is missing in CI");
            println!("skipped: setpriv not found");
            return;
        }
        let cwd = dir.path().to_owned();
        // A thread that ends without dropping anything is to its child what a killed process is.
        let killed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let step = sh(&cwd, "echo $$; exec sleep 600");
            let mut running = Box::pin(bench.run(step));
            let shown = async {
                while lines.lock().unwrap().is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            runtime.block_on(async {
                tokio::select! { _ = &mut running => {}, () = shown => {} }
            });
            std::mem::forget(running);
            std::mem::forget(runtime);
            lines.lock().unwrap()[0].clone()
        });
        let pid = tokio::task::spawn_blocking(|| killed.join()).await.unwrap().unwrap();
        until_gone(&pid).await;
    }

    #[tokio::test]
    async fn a_full_disk_is_recognised_in_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path(), Duration::from_secs(20), Arc::default());
        let script = "echo 'npm error ENOSPC: no space' >&2; exit 1";
        let error = bench.run(sh(dir.path(), script)).await.err().unwrap();
        assert_eq!(error.code(), ErrorCode::DiskFull);
    }

    #[tokio::test]
    async fn a_step_that_fills_the_staging_directory_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path(), Duration::from_secs(60), Arc::default());
        let script = "head -c 3000000 /dev/zero > big; exec sleep 600";
        let error = bench.run(sh(dir.path(), script)).await.err().unwrap();
        assert_eq!(error.code(), ErrorCode::TooBig);
    }
}
