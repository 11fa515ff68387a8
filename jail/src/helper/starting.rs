//! What the helper does before its loop: take the order, make itself ready, fork.
//!
//! Here: the first four steps, and the ear for the forked child's steps. Not here: the child's steps themselves.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::getsockname;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, ForkResult, Pid};

use super::{Outbox, Prepared};
use crate::frame::{self, FrameError, Inbox, MAX_SPEC};
use crate::identity::Identity;
use crate::light::Light;
use crate::process::{Process, oom_kills};
use crate::report::{Report, Step};
use crate::secret;
use crate::server::{self, BEFORE_EXEC, Confinement, SetupError, become_server};
use crate::spec::JailSpec;
use crate::standing::{Groups, Rank};
use crate::strict;
use crate::sys::{self, raw, rights};
use crate::view::Isolation;

/// For the order to arrive, and again for the child's steps. Both take milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

const RANK: &str = "rank when memory runs out";

/// The forked child, until it has executed the program.
pub(super) struct Starting {
    pub(super) progress: PipeReader,
    inbox: Inbox,
    last: Step,
    pub(super) deadline: Instant,
}

impl Starting {
    /// All reports that have arrived, and whether the pipe is closed, which `exec` does.
    pub(super) fn hear(&mut self) -> (Vec<Report>, bool) {
        let mut bytes = [0; 1024];
        let is_over = loop {
            match self.progress.read(&mut bytes) {
                Ok(0) => break true,
                Ok(length) => self.inbox.push(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        let mut reports = Vec::new();
        while let Ok(Some(report)) = self.inbox.next() {
            if let Report::Step { name } = report {
                self.last = name;
            }
            reports.push(report);
        }
        if is_over && !reports.iter().any(is_failure) {
            // The pipe closes when the program is executed, and when the process is killed before that.
            // After the last step only `exec` can close it without a word.
            reports.push(if self.last == BEFORE_EXEC {
                Report::Step { name: Step::Exec }
            } else {
                self.cut_short("was killed", None)
            });
        }
        (reports, is_over)
    }

    pub(super) fn timed_out(&self) -> Report {
        self.cut_short("hung for ten seconds", Some(Errno::ETIMEDOUT))
    }

    fn cut_short(&self, how: &str, errno: Option<Errno>) -> Report {
        let message = format!("the process that was to become the server {how} after step {}", self.last);
        Report::Failed { step: self.last, errno: errno.map(|errno| errno as i32), message }
    }
}

fn is_failure(report: &Report) -> bool {
    matches!(report, Report::Failed { .. })
}

/// The control socket is our stdin. Nothing else that we inherited may stay open.
pub(super) fn take_control() -> Result<UnixStream, &'static str> {
    let stdin = std::io::stdin();
    if getsockname::<nix::sys::socket::UnixAddr>(stdin.as_fd().as_raw_fd()).is_err() {
        return Err("`jail` is a role that the runner starts; there is nothing to do with it by hand");
    }
    sys::close_from(3).map_err(|_| "descriptors can't be closed: Linux 5.9 or newer is needed")?;
    let control = stdin.as_fd().try_clone_to_owned().map_err(|_| "no descriptor is free")?;
    let nothing = File::open("/dev/null").map_err(|_| "/dev/null can't be opened")?;
    unistd::dup2_stdin(nothing).map_err(|_| "stdin can't be replaced")?;
    Ok(UnixStream::from(control))
}

/// The steps up to the fork. The spec, with its secrets, does not outlive this call in the helper; nor do the caller's
/// streams, which only the server may hold open.
pub(super) fn prepare(control: &UnixStream, outbox: &mut Outbox) -> Result<Prepared, SetupError> {
    let mut done = |name| outbox.put(&Report::Step { name });
    let (mut spec, stdio) = receive(control)?;
    spec.check()?;
    done(Step::Spec);
    let (signals, mut rank) = supervise(control)?;
    done(Step::Supervise);
    umask(Mode::from_bits_truncate(0o077));
    make_directories(&spec)?;
    done(Step::Directories);
    Identity::of(spec.isolation.uid())?.own_pipes(&stdio)?;
    let oom_kills = oom_kills();
    let (progress, writer) = progress_pipe().map_err(SetupError::Fork)?;
    let supervised = |error| SetupError::Supervise { what: RANK, errno: raw(&error) };
    let (server, tie, last) = match spec.isolation.clone() {
        Isolation::Strict(view) => {
            rank.worsen().map_err(supervised)?;
            let (init, tie) = strict::launch(&mut spec, &view, &stdio, writer)?;
            (init, Some(tie), Step::Directories)
        }
        Isolation::Light(view) => {
            let light = Light::open(&spec, &view)?;
            done(Step::Sources);
            rank.worsen().map_err(supervised)?;
            let server = fork(&spec, &stdio, writer, &light)?;
            done(Step::Fork);
            (server, None, Step::Fork)
        }
    };
    rank.restore();
    spec.wipe();
    let deadline = Instant::now() + LIMIT;
    let starting = Starting { progress, inbox: Inbox::default(), last, deadline };
    Ok(Prepared { server, tie, starting, signals, memory_bytes: spec.limits.memory_bytes, oom_kills })
}

fn fork(
    spec: &JailSpec,
    stdio: &[OwnedFd; 3],
    mut progress: PipeWriter,
    light: &Light,
) -> Result<Pid, SetupError> {
    let mut groups = Groups::open(&spec.cgroups)?;
    match groups.fork(CloneFlags::empty()).map_err(SetupError::Fork)? {
        ForkResult::Child => {
            if let Err(failure) = groups.join() {
                server::tell(&mut progress, &failure.report());
                sys::exit_now(127)
            }
            server::done(&mut progress, Step::Cgroup);
            become_server(spec, stdio, &mut progress, Confinement::Light(light))
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

fn progress_pipe() -> Result<(PipeReader, PipeWriter), Errno> {
    let (reader, writer) = std::io::pipe().map_err(|error| raw(&error))?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

fn supervise(control: &UnixStream) -> Result<(SignalFd, Rank), SetupError> {
    let step = |what| move |errno| SetupError::Supervise { what, errno };
    // Out of the runner's group: a Ctrl-C meant for it must not reach us.
    unistd::setsid().map_err(step("session"))?;
    prctl::set_child_subreaper(true).map_err(step("subreaper role"))?;
    let rank = Rank::open().map_err(|error| step(RANK)(raw(&error)))?;
    // The server may have our uid: it must not read our memory, where the spec was.
    prctl::set_dumpable(false).map_err(step("memory protection"))?;
    SigSet::all().thread_block().map_err(step("signal mask"))?;
    let taken = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&taken.into_iter().collect(), flags).map_err(step("signals"))?;
    control.set_nonblocking(true).map_err(|error| step("control socket")(raw(&error)))?;
    // Without it the tree could not be seen, and so not be killed.
    Process::read(Pid::this().as_raw()).ok_or(Errno::ENOENT).map_err(step("view of /proc"))?;
    Ok((signals, rank))
}

fn make_directories(spec: &JailSpec) -> Result<(), SetupError> {
    let identity = Identity::of(spec.isolation.uid())?;
    spec.made_directories().into_iter().try_for_each(make_directory)?;
    spec.own_directories().into_iter().try_for_each(|directory| identity.own(directory))
}

fn make_directory(path: &Path) -> Result<(), SetupError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| SetupError::Directory { path: path.to_path_buf(), errno: raw(&error) })
}

fn receive(control: &UnixStream) -> Result<(JailSpec, [OwnedFd; 3]), SetupError> {
    let lost = |error: std::io::Error| SetupError::Receive("the control socket failed", Some(raw(&error)));
    control.set_read_timeout(Some(LIMIT)).map_err(lost)?;
    let (head, stdio) = receive_head(control)?;
    let bad = |error: FrameError| {
        SetupError::Receive(
            if matches!(error, FrameError::TooLong(_)) { "it is too long" } else { "it is malformed" },
            None,
        )
    };
    let mut body = vec![0; frame::body_length(head, MAX_SPEC).map_err(bad)?];
    let mut control = control;
    control.read_exact(&mut body).map_err(lost)?;
    let mut spec: JailSpec = frame::decode_body(&body).map_err(bad)?;
    secret::receive(&mut spec, control).map_err(lost)?;
    Ok((spec, stdio))
}

fn receive_head(control: &UnixStream) -> Result<([u8; 4], [OwnedFd; 3]), SetupError> {
    let mut head = [0; 4];
    let received = rights::receive(control, &mut head)
        .map_err(|errno| SetupError::Receive("the control socket failed", Some(errno)))?;
    if received.is_cut {
        return Err(SetupError::Receive("descriptors were lost", None));
    }
    let stdio = received
        .fds
        .try_into()
        .map_err(|_| SetupError::Receive("three descriptors must come with it", None))?;
    if received.length == head.len() {
        Ok((head, stdio))
    } else {
        Err(SetupError::Receive("its head is cut short", None))
    }
}
