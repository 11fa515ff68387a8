//! What the kernel counts a server's processes under: their cgroups, and their rank when memory runs out.
//!
//! Here: joining the groups that the spec names, and the rank. Not here: making groups and their limits (see
//! [`crate::cgroup`]).
//! Invariant: both hold before the first instruction of a foreign program, and are inherited by all that it starts.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sys::raw;

/// A server is to be killed before the runner and before most of what else there is on the machine.
const WORSE: i32 = 500;
const WORST: i32 = 1000;

/// Puts a process into each group.
pub(crate) fn join(groups: &[PathBuf], process: Pid) -> Result<(), SetupError> {
    groups.iter().try_for_each(|group| {
        let list = group.join("cgroup.procs");
        // Never made: a directory that is no cgroup would take the file.
        let joined = OpenOptions::new().write(true).open(&list);
        let joined = joined.and_then(|mut list| list.write_all(process.to_string().as_bytes()));
        joined.map_err(|error| build(Step::Cgroup, list.display(), raw(&error)))
    })
}

/// The helper's own `oom_score_adj`, which its children inherit.
#[derive(Debug)]
pub(crate) struct Rank {
    file: File,
    own: i32,
}

impl Rank {
    /// Called while the helper can still be dumped: afterwards the file is root's, but stays open.
    pub(crate) fn open() -> std::io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open("/proc/self/oom_score_adj")?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let own = text.trim().parse().map_err(|_| std::io::ErrorKind::InvalidData)?;
        Ok(Self { file, own })
    }

    /// What is forked from now on is killed sooner.
    pub(crate) fn worsen(&mut self) -> std::io::Result<()> {
        self.write((self.own + WORSE).min(WORST))
    }

    /// The helper itself as before, for it must outlive the server to report its end. Refused, it has the server's rank,
    /// and the kernel still takes the larger one.
    pub(crate) fn restore(mut self) {
        let _ = self.write(self.own);
    }

    fn write(&mut self, rank: i32) -> std::io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(rank.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_no_cgroup_is_a_failed_step_and_gets_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let failure = join(&[dir.path().into()], Pid::this()).unwrap_err();
        assert_eq!(failure.step(), Step::Cgroup);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
