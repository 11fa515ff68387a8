//! The steps by which the forked child becomes the server.
//!
//! Here: everything between `fork` and `exec`, one error variant a step. Not here: the helper, which stays.
//! Invariant: the spec's environment is installed by the last call only, so it can't change how a step works.

mod limits;

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{self, Pid};

use crate::frame::{self, MAX_REPORT};
use crate::light::{Light, rules_path_sockets};
use crate::report::{Report, Step};
use crate::seccomp::{self, Filter};
use crate::spec::{BadSpec, JailSpec};
use crate::strict::confine::restrict_files;
use crate::sys;
use crate::view::View;

/// Characters. A path may be longer; but nobody reads the progress pipe before it is closed, so that all steps and a
/// failure have to fit into the smallest one, of two pages.
const MAX_MESSAGE: usize = 1000;

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
    /// Any other step of the construction.
    #[error("{step}: {what}: {errno}")]
    Build { step: Step, what: String, errno: Errno },
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
            Self::Build { step, .. } => *step,
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
            | Self::Build { errno, .. }
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
        let message = self.to_string().chars().take(MAX_MESSAGE).collect();
        Report::Failed { step: self.step(), errno, message }
    }
}

/// A failed step of the construction.
pub(crate) fn build(step: Step, what: impl ToString, errno: Errno) -> SetupError {
    SetupError::Build { step, what: what.to_string(), errno }
}

/// What holds the server besides its limits.
pub(crate) enum Confinement<'a> {
    /// The server does all steps itself, the helper's only child.
    Light(&'a Light),
    /// Init has built the view and dropped what can be dropped for both.
    Strict(&'a View),
}

/// The last step before `exec`: the one that is known to be done when the progress pipe closes without a failure.
pub(crate) const BEFORE_EXEC: Step = Step::Seccomp;

/// Runs in the forked child. `progress` closes by itself when the program is executed.
pub(crate) fn become_server(
    spec: &JailSpec,
    stdio: &[OwnedFd; 3],
    progress: &mut PipeWriter,
    confinement: Confinement<'_>,
) -> ! {
    let Err(failure) = construct(spec, stdio, progress, &confinement);
    tell(progress, &failure.report());
    sys::exit_now(127)
}

fn construct(
    spec: &JailSpec,
    stdio: &[OwnedFd; 3],
    progress: &mut PipeWriter,
    confinement: &Confinement<'_>,
) -> Result<Infallible, SetupError> {
    if let Confinement::Light(light) = confinement {
        light.assume()?;
        done(progress, Step::Identity);
        light.drop_capabilities()?;
        done(progress, Step::Capabilities);
    }
    unistd::setsid().map_err(SetupError::Session)?;
    done(progress, Step::Session);
    place_stdio(stdio).map_err(SetupError::Stdio)?;
    done(progress, Step::Stdio);
    unistd::chdir(&spec.cwd)
        .map_err(|errno| SetupError::WorkingDirectory { path: spec.cwd.clone(), errno })?;
    done(progress, Step::WorkingDirectory);
    limits::limit(&spec.limits, confinement)?;
    done(progress, Step::Limits);
    if let Confinement::Light(_) = confinement {
        nix::sys::prctl::set_no_new_privs().map_err(SetupError::NoNewPrivileges)?;
        done(progress, Step::NoNewPrivileges);
    }
    sys::default_dispositions();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(SetupError::Signals)?;
    done(progress, Step::Signals);
    confine(spec, progress, confinement)?;
    exec(spec)
}

/// From here on the process can do no more than the server will.
fn confine(
    spec: &JailSpec,
    progress: &mut PipeWriter,
    confinement: &Confinement<'_>,
) -> Result<(), SetupError> {
    let filter = match confinement {
        Confinement::Light(light) => {
            let kept: Vec<_> = light.descriptors().chain([progress.as_fd()]).collect();
            sys::close_all_but(&kept).map_err(SetupError::Descriptors)?;
            done(progress, Step::Descriptors);
            die_with(light.helper).map_err(SetupError::ParentDeath)?;
            done(progress, Step::ParentDeath);
            light.restrict()?;
            Filter::Light { path_sockets: rules_path_sockets() }
        }
        Confinement::Strict(view) => {
            sys::close_all_but(&[progress.as_fd()]).map_err(SetupError::Descriptors)?;
            done(progress, Step::Descriptors);
            restrict_files(spec, view)?;
            Filter::Strict
        }
    };
    done(progress, Step::Landlock);
    seccomp::install(filter)?;
    done(progress, Step::Seccomp);
    Ok(())
}

pub(crate) fn done(progress: &mut PipeWriter, name: Step) {
    tell(progress, &Report::Step { name });
}

/// Progress is worth nothing to a helper that is gone: its end is ours, too.
pub(crate) fn tell(progress: &mut PipeWriter, report: &Report) {
    if let Ok(bytes) = frame::encode(report, 256, MAX_REPORT) {
        let _ = progress.write_all(&bytes);
    }
}

fn place_stdio([stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), Errno> {
    unistd::dup2_stdin(stdin)?;
    unistd::dup2_stdout(stdout)?;
    unistd::dup2_stderr(stderr)
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
