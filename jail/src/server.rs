//! The steps by which the forked child becomes the server.
//!
//! Here: everything between `fork` and `exec`, one error variant a step. Not here: the helper, which stays.
//! Invariant: the spec's environment is installed by the last call only, so it can't change how a step works.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{self, Pid};

use crate::frame::{self, MAX_REPORT};
use crate::process::threads_of;
use crate::report::{Report, Step};
use crate::spec::{BadSpec, JailSpec, Limits};
use crate::sys;

/// Where the construction of a jail stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("the spec did not arrive: {0}")]
    Receive(&'static str, #[source] Option<Errno>),
    #[error("the spec is refused: {0}")]
    Spec(#[from] BadSpec),
    #[error("the helper could not set up its {what}: {errno}")]
    Supervise { what: &'static str, errno: Errno },
    #[error("directory {} could not be made: {errno}", path.display())]
    Directory { path: PathBuf, errno: Errno },
    #[error("no process could be forked: {0}")]
    Fork(#[source] Errno),
    #[error("no session could be opened: {0}")]
    Session(#[source] Errno),
    #[error("the standard streams could not be put in place: {0}")]
    Stdio(#[source] Errno),
    #[error("working directory {} could not be entered: {errno}", path.display())]
    WorkingDirectory { path: PathBuf, errno: Errno },
    #[error("{which:?} could not be set: {errno}")]
    Limit { which: Resource, errno: Errno },
    #[error("no_new_privs could not be set: {0}")]
    NoNewPrivileges(#[source] Errno),
    #[error("signals could not be unblocked: {0}")]
    Signals(#[source] Errno),
    #[error("inherited descriptors could not be closed: {0}")]
    Descriptors(#[source] Errno),
    #[error("the server could not be tied to its helper: {0}")]
    ParentDeath(#[source] Errno),
    #[error("{program} could not be executed: {errno}")]
    Exec { program: String, errno: Errno },
}

impl SetupError {
    pub(crate) fn step(&self) -> Step {
        match self {
            Self::Receive(..) | Self::Spec(_) => Step::Spec,
            Self::Supervise { .. } => Step::Supervise,
            Self::Directory { .. } => Step::Directories,
            Self::Fork(_) => Step::Fork,
            Self::Session(_) => Step::Session,
            Self::Stdio(_) => Step::Stdio,
            Self::WorkingDirectory { .. } => Step::WorkingDirectory,
            Self::Limit { .. } => Step::Limits,
            Self::NoNewPrivileges(_) => Step::NoNewPrivileges,
            Self::Signals(_) => Step::Signals,
            Self::Descriptors(_) => Step::Descriptors,
            Self::ParentDeath(_) => Step::ParentDeath,
            Self::Exec { .. } => Step::Exec,
        }
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Receive(_, errno) => *errno,
            Self::Spec(_) => None,
            Self::Supervise { errno, .. }
            | Self::Directory { errno, .. }
            | Self::WorkingDirectory { errno, .. }
            | Self::Limit { errno, .. }
            | Self::Exec { errno, .. }
            | Self::Fork(errno)
            | Self::Session(errno)
            | Self::Stdio(errno)
            | Self::NoNewPrivileges(errno)
            | Self::Signals(errno)
            | Self::Descriptors(errno)
            | Self::ParentDeath(errno) => Some(*errno),
        }
    }

    pub(crate) fn report(&self) -> Report {
        let errno = self.errno().map(|errno| errno as i32);
        Report::Failed { step: self.step(), errno, message: self.to_string() }
    }
}

/// Runs in the forked child. `progress` closes by itself when the program is executed.
pub(crate) fn become_server(
    spec: &JailSpec,
    stdio: &[OwnedFd; 3],
    mut progress: PipeWriter,
    helper: Pid,
) -> ! {
    let Err(failure) = construct(spec, stdio, &mut progress, helper);
    tell(&mut progress, &failure.report());
    sys::exit_now(127)
}

fn construct(
    spec: &JailSpec,
    stdio: &[OwnedFd; 3],
    progress: &mut PipeWriter,
    helper: Pid,
) -> Result<Infallible, SetupError> {
    let mut done = |name| tell(progress, &Report::Step { name });
    unistd::setsid().map_err(SetupError::Session)?;
    done(Step::Session);
    place_stdio(stdio).map_err(SetupError::Stdio)?;
    done(Step::Stdio);
    unistd::chdir(&spec.cwd)
        .map_err(|errno| SetupError::WorkingDirectory { path: spec.cwd.clone(), errno })?;
    done(Step::WorkingDirectory);
    limit(&spec.limits)?;
    done(Step::Limits);
    nix::sys::prctl::set_no_new_privs().map_err(SetupError::NoNewPrivileges)?;
    done(Step::NoNewPrivileges);
    sys::default_dispositions();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(SetupError::Signals)?;
    done(Step::Signals);
    sys::close_all_but(progress.as_fd()).map_err(SetupError::Descriptors)?;
    tell(progress, &Report::Step { name: Step::Descriptors });
    die_with(helper).map_err(SetupError::ParentDeath)?;
    tell(progress, &Report::Step { name: Step::ParentDeath });
    exec(spec)
}

/// Progress is worth nothing to a helper that is gone, and then PDEATHSIG ends us.
fn tell(progress: &mut PipeWriter, report: &Report) {
    if let Ok(bytes) = frame::encode(report, 256, MAX_REPORT) {
        let _ = progress.write_all(&bytes);
    }
}

fn place_stdio([stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), Errno> {
    unistd::dup2_stdin(stdin)?;
    unistd::dup2_stdout(stdout)?;
    unistd::dup2_stderr(stderr)
}

fn limit(limits: &Limits) -> Result<(), SetupError> {
    let Limits { memory_bytes, max_processes, open_files, file_size_bytes } = *limits;
    lower(Resource::RLIMIT_CORE, 0)?;
    lower(Resource::RLIMIT_NOFILE, open_files)?;
    if let Some(bytes) = file_size_bytes {
        lower(Resource::RLIMIT_FSIZE, bytes)?;
    }
    if let Some(bytes) = memory_bytes {
        lower(Resource::RLIMIT_DATA, bytes)?;
    }
    let uid = unistd::getuid();
    if let Some(processes) = max_processes.filter(|_| !uid.is_root()) {
        let which = Resource::RLIMIT_NPROC;
        let present = threads_of(uid.as_raw()).map_err(|error| SetupError::Limit {
            which,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })?;
        lower(which, present.saturating_add(processes))?;
    }
    Ok(())
}

/// Soft and hard alike, so that the server can't raise it again. Never above what we have ourselves: only root could.
fn lower(which: Resource, value: u64) -> Result<(), SetupError> {
    let set = || {
        let (_, hard) = getrlimit(which)?;
        let value = value.min(hard);
        setrlimit(which, value, value)
    };
    set().map_err(|errno| SetupError::Limit { which, errno })
}

/// After every step that would clear it. A helper that died before the call sends no signal, hence the look.
fn die_with(helper: Pid) -> Result<(), Errno> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if unistd::getppid() == helper { Ok(()) } else { Err(Errno::ESRCH) }
}

fn exec(spec: &JailSpec) -> Result<Infallible, SetupError> {
    let program = spec.argv.first().cloned().unwrap_or_default();
    let failed = |errno| SetupError::Exec { program: program.clone(), errno };
    let argv: Vec<CString> = spec
        .argv
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| failed(Errno::EINVAL))?;
    let env = environment(spec).map_err(|_| failed(Errno::EINVAL))?;
    let path = argv.first().ok_or_else(|| failed(Errno::ENOENT))?;
    unistd::execve(path, &argv, &env).map_err(failed)
}

fn environment(spec: &JailSpec) -> Result<Vec<CString>, NulError> {
    let owned = [("HOME", spec.home.as_path()), ("TMPDIR", spec.tmp.as_path())];
    let pair = |name: &str, value: &[u8]| CString::new([name.as_bytes(), b"=", value].concat());
    let mut env = Vec::with_capacity(spec.env.len() + owned.len());
    for (name, value) in &spec.env {
        if owned.iter().all(|(owned, _)| owned != name) {
            env.push(pair(name, value.as_bytes())?);
        }
    }
    for (name, directory) in owned {
        env.push(pair(name, bytes(directory))?);
    }
    Ok(env)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
