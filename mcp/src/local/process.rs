//! The process of a local server, and all that it starts.
//!
//! Invariant: nothing of its process group outlives this value.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::LocalError;

/// How long it may take to go after its stdin was closed, and again after it was asked to.
const GRACE: Duration = Duration::from_secs(2);

pub(super) struct Process {
    child: Child,
    /// Its number is that of the child. While a member of it lives, nobody else gets that number.
    group: Option<Pid>,
}

impl Process {
    /// With our own environment and working directory; its stderr is ours.
    pub(super) fn spawn(argv: &[String]) -> Result<Self, LocalError> {
        let (program, args) = argv.split_first().ok_or(LocalError::NoCommand)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal of the terminal is for us: we end it in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| LocalError::Spawn { program: program.clone(), source })?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Once.
    pub(super) fn pipes(&mut self) -> (ChildStdout, ChildStdin) {
        let pipes = self.child.stdout.take().zip(self.child.stdin.take());
        pipes.expect("both were asked for, and nobody else takes them")
    }

    /// How it ended. Cancel-safe.
    pub(super) async fn wait(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => told(status),
            Err(error) => error.to_string(),
        }
    }

    /// Lets it go by itself, asks it, kills what is left. Answers how it ended, if it went by itself.
    pub(super) async fn end(mut self) -> Option<String> {
        let status = timeout(GRACE, self.child.wait()).await.ok().and_then(Result::ok);
        if status.is_none() {
            self.signal(Signal::SIGTERM);
            let _ = timeout(GRACE, self.child.wait()).await;
        }
        status.map(told)
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may be gone already.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

fn told(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".into(),
    }
}
