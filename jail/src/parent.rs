//! The runner's side: start a helper, hear its reports, tell it to stop.
//!
//! Here: [`spawn`] and [`Jailed`]; synchronous, with a descriptor to wait on. Not here: waiting policy, retries.
//! Invariant: a dropped [`Jailed`] closes its control socket, which kills the tree; its helper is reaped later by
//! [`reap_dropped`], so no zombie stays for longer than until the next spawn.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;

pub use crate::frame::FrameError;
use crate::frame::{self, Inbox, MAX_REPORT, MAX_SPEC};
use crate::listeners::Listeners;
use crate::report::{Command, Report};
use crate::secret;
use crate::spec::{BadSpec, JailSpec};
use crate::sys::rights;
use crate::{sys, tree};

/// For a helper that never reads its spec. An ordinary spec fits the socket's buffer and never waits.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// One finds all, but for what was forked meanwhile by more processes than a sweep can look at.
const FORCED_SWEEPS: usize = 10;

/// Helpers of dropped jails, still to be reaped.
static DROPPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// The server's ends of its three streams. Give it blocking ones: a server does not expect `EAGAIN`.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Why no helper was started. What fails in the helper is a [`Report::Failed`].
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("the spec is refused: {0}")]
    Spec(#[from] BadSpec),
    #[error("the spec can't be sent: {0}")]
    Encode(FrameError),
    #[error("no control socket could be made: {0}")]
    Socket(#[source] io::Error),
    #[error("the jail helper could not be started: {0}")]
    Start(#[source] io::Error),
    #[error("the jail helper did not take its spec: {0}")]
    Send(#[source] io::Error),
}

/// Why a jail can't be heard or told any more. Its tree is dead or dying.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the jail helper is gone")]
    Closed,
    #[error("the jail helper sent what no helper sends: {0}")]
    Frame(#[from] FrameError),
    #[error("the control socket failed: {0}")]
    Socket(#[source] io::Error),
}

/// One look at the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    Report(Report),
    /// Nothing now: wait until the descriptor is readable.
    Empty,
    /// The helper has closed its end. Without a [`Report::Gone`] before it, the helper itself was killed.
    Closed,
}

/// A helper and the server below it.
#[derive(Debug)]
pub struct Jailed {
    /// Taken only by `drop`.
    helper: Option<Child>,
    control: UnixStream,
    inbox: Inbox,
    listeners: Option<Listeners>,
}

/// Starts `exe` in the role [`crate::ROLE`] and hands it the spec and the streams. Does not wait for its reports.
pub fn spawn(exe: &Path, spec: &JailSpec, stdio: Stdio) -> Result<Jailed, SpawnError> {
    reap_dropped();
    spec.check()?;
    let order = frame::encode(spec, 4096, MAX_SPEC).map_err(SpawnError::Encode)?;
    let (control, theirs) = UnixStream::pair().map_err(SpawnError::Socket)?;
    control.set_write_timeout(Some(SEND_LIMIT)).map_err(SpawnError::Socket)?;
    // Nothing here may need `pre_exec`: std would fork the runner, with its heap and its secrets.
    let helper = process::Command::new(exe)
        .arg0("claudemesh")
        .arg(crate::ROLE)
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(process::Stdio::null())
        .stderr(process::Stdio::null())
        .spawn()
        .map_err(SpawnError::Start)?;
    let jailed = Jailed { helper: Some(helper), control, inbox: Inbox::default(), listeners: None };
    jailed.order(&order, &stdio).map_err(SpawnError::Send)?;
    secret::send(spec, &jailed.control).map_err(SpawnError::Send)?;
    jailed.control.set_nonblocking(true).map_err(SpawnError::Socket)?;
    Ok(jailed)
}

impl Jailed {
    fn order(&self, order: &[u8], stdio: &Stdio) -> io::Result<()> {
        let streams = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
        let sent = rights::send(&self.control, order, &streams, MsgFlags::empty())?;
        (&self.control).write_all(&order[sent..])
    }

    /// The helper's pid, for [`crate::usage`] and for logs.
    pub fn helper_pid(&self) -> u32 {
        self.helper.as_ref().map_or(0, Child::id)
    }

    /// The jail's sockets, once: there when the report of [`crate::Step::Network`] has been read.
    pub fn take_listeners(&mut self) -> Option<Listeners> {
        self.listeners.take()
    }

    /// Never waits. Call it until it says `Empty` or `Closed`.
    pub fn try_read_report(&mut self) -> Result<Reading, ControlError> {
        loop {
            if let Some(report) = self.inbox.next()? {
                return Ok(Reading::Report(report));
            }
            let mut bytes = [0; 4096];
            match rights::receive(&self.control, &mut bytes) {
                Ok(received) if received.is_cut => return Err(ControlError::Socket(Errno::EMFILE.into())),
                Ok(received) => {
                    self.keep(received.fds);
                    if received.length == 0 {
                        return Ok(Reading::Closed);
                    }
                    self.inbox.push(&bytes[..received.length]);
                }
                Err(Errno::EAGAIN) => return Ok(Reading::Empty),
                Err(Errno::EINTR) => {}
                // It went without reading our last command.
                Err(Errno::ECONNRESET) => return Ok(Reading::Closed),
                Err(errno) => return Err(ControlError::Socket(errno.into())),
            }
        }
    }

    /// Beside which report they came does not matter: there is one such message a jail.
    fn keep(&mut self, sockets: Vec<OwnedFd>) {
        if !sockets.is_empty() {
            self.listeners = Listeners::of(sockets);
        }
    }

    /// SIGTERM to the server's process group.
    pub fn terminate(&self) -> Result<(), ControlError> {
        self.command(Command::Terminate)
    }

    /// Kills the whole tree. [`Report::Gone`] says when it is done.
    pub fn kill(&self) -> Result<(), ControlError> {
        self.command(Command::Kill)
    }

    fn command(&self, command: Command) -> Result<(), ControlError> {
        let bytes = frame::encode(&command, 64, MAX_REPORT)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.control.as_raw_fd(), &bytes, flags) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(ControlError::Socket(ErrorKind::WriteZero.into())),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(ControlError::Closed),
            Err(errno) => Err(ControlError::Socket(errno.into())),
        }
    }

    /// The last resort, for a helper that does not answer [`Jailed::kill`] (the server can stop it with SIGSTOP): kills
    /// the tree from here, then the helper. Reads `/proc`; blocks for milliseconds.
    pub fn force_kill(&mut self) -> io::Result<()> {
        let Some(helper) = self.helper.as_mut() else { return Ok(()) };
        if helper.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(helper.id()).map_err(|_| ErrorKind::InvalidInput)?;
        // It is not reaped, so the pid is its own. Stopped, it can't be in our way; its children can't change parents.
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        for _ in 0..FORCED_SWEEPS {
            if tree::sweep(pid)? == 0 {
                break;
            }
        }
        helper.kill()
    }

    /// Whether the helper has ended, without waiting. Reaps it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.helper.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// Waits until the helper has ended, `limit` at most; `None` if it has not. Reaps it.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.try_wait()? {
            return Ok(Some(status));
        }
        let pid = i32::try_from(self.helper_pid()).map_err(|_| ErrorKind::InvalidInput)?;
        let handle = sys::pidfd_open(pid)?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return self.try_wait(),
            }
        }
    }
}

/// Readable when there is a report, or when the helper is gone.
impl AsFd for Jailed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl AsRawFd for Jailed {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.control.as_raw_fd()
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        // Not only this copy of the descriptor: the end of the connection is what the helper must see.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        if let Some(mut helper) = self.helper.take()
            && !matches!(helper.try_wait(), Ok(Some(_)))
        {
            DROPPED.lock().unwrap_or_else(PoisonError::into_inner).push(helper);
        }
    }
}

/// Reaps the helpers of dropped jails that have ended meanwhile, and says how many are still busy killing their trees.
/// [`spawn`] calls it; a runner that waits for all to be gone may, too.
pub fn reap_dropped() -> usize {
    let mut dropped = DROPPED.lock().unwrap_or_else(PoisonError::into_inner);
    dropped.retain_mut(|helper| matches!(helper.try_wait(), Ok(None)));
    dropped.len()
}
