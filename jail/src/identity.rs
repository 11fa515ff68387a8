//! Who the server is: a uid of its own, and what must belong to it.
//!
//! Here: [`Identity`], what it owns, becoming it. Not here: which uid a service gets (the runner gives it).
//! Invariant: root never runs a server as itself, and nothing that another uid has used is given away.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{self, Gid, Uid};

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sys::raw;

/// Who the server is, outside and inside alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The helper is root, so the ids are others than its own.
    pub(crate) is_assumed: bool,
}

impl Identity {
    pub(crate) fn of(given: Option<u32>) -> Result<Self, SetupError> {
        let own = unistd::geteuid();
        let refuse = |what: &str| Err(build(Step::Identity, what, Errno::EPERM));
        match given {
            None if own.is_root() => refuse("the runner is root and gave the service no uid of its own"),
            Some(uid) if own.is_root() => Ok(Self { uid, gid: uid, is_assumed: true }),
            Some(uid) if uid != own.as_raw() => refuse("only root can give a service another uid"),
            _ => Ok(Self { uid: own.as_raw(), gid: unistd::getegid().as_raw(), is_assumed: false }),
        }
    }

    /// Root gives a directory away that nobody has used yet: its own, and empty. (Not only one that it has just made, for
    /// a helper may be killed between making and giving.) Any other must be the service's already.
    pub(crate) fn own(self, directory: &Path) -> Result<(), SetupError> {
        let failed = |error: std::io::Error| build(Step::Directories, directory.display(), raw(&error));
        let mut found = fs::symlink_metadata(directory).map_err(failed)?;
        let is_roots = self.is_assumed && found.is_dir() && found.uid() == 0;
        if is_roots && fs::read_dir(directory).map_err(failed)?.next().is_none() {
            lchown(directory, Some(self.uid), Some(self.gid)).map_err(failed)?;
            found = fs::symlink_metadata(directory).map_err(failed)?;
        }
        if found.uid() == self.uid && found.is_dir() {
            return Ok(());
        }
        let what = format!("{} is no directory of uid {}", directory.display(), self.uid);
        Err(build(Step::Directories, what, Errno::EPERM))
    }

    /// `/dev/stdout` opens the pipe again, which only its owner may.
    pub(crate) fn own_pipes(self, stdio: &[OwnedFd; 3]) -> Result<(), SetupError> {
        let failed = |errno| build(Step::Directories, "the standard streams", errno);
        for stream in stdio.iter().filter(|_| self.is_assumed) {
            let kind = fstat(stream).map_err(failed)?.st_mode & SFlag::S_IFMT.bits();
            if kind == SFlag::S_IFIFO.bits() {
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                unistd::fchown(stream, Some(uid), Some(gid)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl Identity {
    /// This process becomes it. In a strict jail root's uid means nothing in the new user namespace, and files can be made
    /// only by a uid that does; the capabilities that came with the namespace stay there.
    pub(crate) fn assume(self) -> Result<(), SetupError> {
        let Self { uid, gid, is_assumed } = self;
        let change = || {
            if is_assumed {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                unistd::setgroups(&[])?;
                unistd::setresgid(gid, gid, gid)?;
                unistd::setresuid(uid, uid, uid)?;
            }
            // Whatever the kernel made of it when the uid changed.
            prctl::set_dumpable(false)
        };
        change().map_err(|errno| build(Step::Identity, format!("uid {uid}"), errno))
    }
}
