//! What the kernel counts a server's processes under: their cgroups, and their rank when memory runs out.
//!
//! Here: joining the groups that the spec names, and the rank. Not here: making groups and their limits (see
//! [`crate::cgroup`]).
//! Invariant: both hold before the first instruction of a foreign program, and are inherited by all that it starts.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::ForkResult;

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sys::privilege::fork_into;
use crate::sys::raw;

/// A server is to be killed before the runner and before most of what else there is on the machine.
const WORSE: i32 = 500;
const WORST: i32 = 1000;

/// The spec's groups, opened by the helper, which has the right to; joined by the process that is forked from it.
///
/// Moving a whole process makes the kernel wait until no other process forks or ends: 10 ms and more. There are two ways
/// without: to be forked into the group (version 2), and to move oneself as a single thread (version 1).
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// Where a process is moved by writing its number, 0 for oneself.
    list: File,
    path: PathBuf,
    /// Version 2: to be forked into.
    directory: Option<File>,
}

impl Groups {
    pub(crate) fn open(groups: &[PathBuf]) -> Result<Self, SetupError> {
        let open = |path: &PathBuf| {
            Group::open(path).map_err(|error| build(Step::Cgroup, path.display(), raw(&error)))
        };
        Ok(Self { groups: groups.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Forks, into the group of version 2 if there is one and the kernel can. Then that one is joined in the child.
    pub(crate) fn fork(&mut self, namespaces: CloneFlags) -> Result<ForkResult, Errno> {
        let unified = self
            .groups
            .iter()
            .enumerate()
            .find_map(|(place, group)| Some((place, group.directory.as_ref()?)));
        if let Some((place, directory)) = unified
            && let Ok(forked) = fork_into(namespaces, Some(directory.as_fd()))
        {
            self.groups.remove(place);
            return Ok(forked);
        }
        // Containers refuse the other call. What else was wrong, this one or the joining will say.
        fork_into(namespaces, None)
    }

    /// Puts the calling process, which has one thread, into the groups that it is not in yet.
    pub(crate) fn join(&mut self) -> Result<(), SetupError> {
        self.groups.drain(..).try_for_each(|mut group| {
            let joined = group.list.write_all(b"0");
            joined.map_err(|error| build(Step::Cgroup, group.path.display(), raw(&error)))
        })
    }
}

impl Group {
    /// The list is never made: a directory that is no cgroup would take the file.
    fn open(path: &Path) -> std::io::Result<Self> {
        let open = |name| OpenOptions::new().write(true).open(path.join(name));
        let (list, directory) = match open("tasks") {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                (open("cgroup.procs")?, Some(File::open(path)?))
            }
            list => (list?, None),
        };
        Ok(Self { list, path: path.into(), directory })
    }
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
        let failure = Groups::open(&[dir.path().into()]).unwrap_err();
        assert_eq!(failure.step(), Step::Cgroup);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
