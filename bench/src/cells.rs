//! A jail without a runner: started, awaited and ended from here.

use std::fs::{self, Permissions};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use jail::{Isolation, JailSpec, Jailed, LightView, Limits, Listeners, Network, Reading, Report, View};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// Far above those of runners.
const FIRST_UID: u32 = 400_001;

/// Where the jails of one measurement have their homes, and what their helper is.
pub struct Ground {
    exe: PathBuf,
    dir: TempDir,
    is_root: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Light,
    Strict,
}

pub struct Cell {
    jailed: Jailed,
    /// The server's, here to be kept open.
    pub stdin: PipeWriter,
    pub stdout: PipeReader,
}

impl Ground {
    /// # Errors
    /// No directory can be made.
    pub fn new(exe: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("claudemesh-bench-").tempdir()?;
        // A light jail has no view of its own: its uid must be able to pass.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        Ok(Self { exe: exe.to_owned(), dir, is_root: nix::unistd::geteuid().is_root() })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The `n`th jail of its kind, with a home and, as root, a uid of its own; a strict one has doors on these ports.
    ///
    /// # Errors
    /// When no helper starts.
    pub fn open(
        &self,
        kind: Kind,
        n: u32,
        argv: &[&str],
        read_only: &[PathBuf],
        ports: &[u16],
    ) -> Result<Cell> {
        let uid = self.is_root.then_some(FIRST_UID + n);
        let read_only = read_only.to_vec();
        let (name, isolation, tmp) = match kind {
            Kind::Light => {
                let tmp = self.dir.path().join(format!("light-{n}-tmp"));
                ("light", Isolation::Light(LightView { uid, read_only, ..LightView::default() }), tmp)
            }
            Kind::Strict => {
                let network = Network::Filtered { ports: ports.to_vec() };
                (
                    "strict",
                    Isolation::Strict(View { uid, network, read_only, ..View::default() }),
                    "/tmp".into(),
                )
            }
        };
        let spec = JailSpec {
            argv: argv.iter().map(|text| (*text).to_owned()).collect(),
            env: Vec::new(),
            cwd: "/".into(),
            home: self.dir.path().join(format!("{name}-{n}")),
            tmp,
            limits: Limits::default(),
            isolation,
            cgroups: Vec::new(),
            secret_files: vec![],
        };
        let (their_stdin, stdin) = std::io::pipe()?;
        let (stdout, their_stdout) = std::io::pipe()?;
        let stdio = jail::Stdio {
            stdin: their_stdin.into(),
            stderr: their_stdout.try_clone()?.into(),
            stdout: their_stdout.into(),
        };
        Ok(Cell { jailed: jail::spawn(&self.exe, &spec, stdio)?, stdin, stdout })
    }
}

impl Cell {
    /// Reads reports up to the first that `is_it`.
    ///
    /// # Errors
    /// When the jail can't be built, ends before, or nothing comes in time.
    pub fn until(&mut self, is_it: impl Fn(&Report) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.jailed.try_read_report()? {
                Reading::Report(report) if is_it(&report) => return Ok(()),
                Reading::Report(Report::Failed { step, message, .. }) => bail!("{step}: {message}"),
                Reading::Report(Report::Gone) | Reading::Closed => bail!("the jail ended"),
                Reading::Report(_) => {}
                Reading::Empty => {
                    let left = PollTimeout::try_from(end.saturating_duration_since(Instant::now()))?;
                    let n = poll(&mut [PollFd::new(self.jailed.as_fd(), PollFlags::POLLIN)], left)?;
                    ensure!(n > 0, "no report came in time");
                }
            }
        }
    }

    /// # Errors
    /// As [`Self::until`].
    pub fn started(&mut self) -> Result<()> {
        self.until(|report| matches!(report, Report::Started { .. }))
    }

    /// # Errors
    /// When the jail has none (any more).
    pub fn listeners(&mut self) -> Result<Listeners> {
        self.jailed.take_listeners().context("the jail sent no listeners")
    }

    pub fn helper(&self) -> u32 {
        self.jailed.helper_pid()
    }

    /// Awaits the end of the tree, which was told to end or ends by itself, and of its helper.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn gone(&mut self) -> Result<()> {
        self.until(|report| *report == Report::Gone)?;
        self.reap()
    }

    /// For a jail that has said that it is gone.
    ///
    /// # Errors
    /// When its helper stays.
    pub fn reap(&mut self) -> Result<()> {
        self.jailed.wait(PATIENCE)?.context("the helper does not end")?;
        Ok(())
    }

    /// # Errors
    /// As [`Self::until`].
    pub fn end(mut self) -> Result<()> {
        self.jailed.kill()?;
        self.gone()
    }
}
