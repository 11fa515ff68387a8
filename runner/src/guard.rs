//! What an instance may not exceed, and the words for it when it did.
//!
//! Here: watching the data directory and the kills in the control group, blaming a limit for an end. Not here: the
//! limits themselves (crate `jail`), ending (see [`crate::instance`]).
//! Invariant: a limit is blamed on evidence; what is guessed is worded as a guess.

use std::collections::HashSet;
use std::fs::ReadDir;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jail::cgroup::GroupEvents;
use jail::{Ending, Exit};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use tokio::task::spawn_blocking;
use wire::ErrorCode;
use wire::spec::Limits;

use crate::cell::Cell;

const EVERY: Duration = Duration::from_secs(2);
/// Files and directories; more would fill a file system's table of them.
const MAX_ENTRIES: usize = 200_000;
/// Levels of directories. Each costs us two descriptors while we look.
const MAX_DEPTH: usize = 100;

/// Without a control group: how often all processes together may hold what one may.
const HERD: u64 = 3;

/// Which limit, and a sentence for people.
pub type Blame = (ErrorCode, String);

pub struct Guard {
    home: PathBuf,
    limits: Limits,
    disk_bytes: AtomicU64,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bytes: u64,
    entries: usize,
    /// It was arranged so that it can't be measured.
    is_hidden: bool,
}

impl Guard {
    pub fn new(home: PathBuf, limits: Limits) -> Self {
        Self { home, limits, disk_bytes: AtomicU64::new(0) }
    }

    /// Of the data directory, as it was last measured.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Waits until the cell must be ended for what it holds or for what the kernel had to kill in it.
    pub async fn exceeded(&self, cell: &Cell) -> Blame {
        loop {
            if let Some(blame) = self.disk().await {
                return blame;
            }
            let events = cell.events().await;
            // Also when the kernel chose another process than the server: what is left is not the service any more.
            if events.is_some_and(|events| events.oom_kills > 0) {
                return self.out_of_memory();
            }
            // Without a group nothing holds the memory of all processes together.
            if events.is_none()
                && let Some(used) = cell.usage().await
                && let Some(blame) = self.herd(used.memory_bytes)
            {
                return blame;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Measures; something when it is too much.
    pub async fn disk(&self) -> Option<Blame> {
        let (home, limit) = (self.home.clone(), u64::from(self.limits.disk_mb) << 20);
        // One that panics measured nothing; the next one may.
        let held = spawn_blocking(move || measure(&home, limit)).await.ok()?;
        self.disk_bytes.store(held.bytes, Ordering::Relaxed);
        over(held, limit).map(|message| (ErrorCode::DiskExceeded, message))
    }

    /// Which limit a server that ended by itself ran into. `words`: the last lines that it wrote.
    pub fn blame(&self, exit: Option<&Exit>, events: Option<GroupEvents>, words: &[String]) -> Option<Blame> {
        let has_failed = exit.is_some_and(|exit| exit.ending != Ending::Code(0));
        let pids = self.limits.pids;
        let refused = match events {
            Some(events) if events.oom_kills > 0 => return Some(self.out_of_memory()),
            // The group counts itself; without one, it's the helper's guess.
            None if has_failed && (exit.is_some_and(|exit| exit.oom_hint) || speak_of(words, &OF_MEMORY)) => {
                let memory = self.limits.memory_mb;
                let message = format!(
                    "the server probably needed more than the {memory} MiB of memory that it may have; raise `--memory`"
                );
                return Some((ErrorCode::OutOfMemory, message));
            }
            Some(events) if events.pids_refused > 0 => "was refused",
            None if speak_of(words, &OF_PROCESSES) => "was probably refused",
            _ => return None,
        };
        let message = format!(
            "the server ended after it {refused} more than {pids} processes and threads; raise `--pids`"
        );
        has_failed.then_some((ErrorCode::TooManyProcesses, message))
    }

    /// `bytes`: of all processes, those that several of them share as often as they do. So more than the limit is no
    /// evidence yet.
    fn herd(&self, bytes: u64) -> Option<Blame> {
        let (memory, used) = (self.limits.memory_mb, bytes >> 20);
        let message = format!(
            "the processes of the service hold {used} MiB of memory, more than {HERD} times the {memory} MiB that it may have; \
             raise `--memory`"
        );
        (used > HERD * u64::from(memory)).then_some((ErrorCode::OutOfMemory, message))
    }

    fn out_of_memory(&self) -> Blame {
        let memory = self.limits.memory_mb;
        let message = format!(
            "the service needed more than the {memory} MiB of memory that it may have; raise `--memory`"
        );
        (ErrorCode::OutOfMemory, message)
    }
}

/// How runtimes say that they got no memory.
const OF_MEMORY: [&str; 6] = [
    "out of memory",
    "Array buffer allocation failed",
    "MemoryError",
    "memory allocation of",
    "std::bad_alloc",
    "Cannot allocate memory",
];
/// How runtimes say that they got no thread or process.
const OF_PROCESSES: [&str; 4] =
    ["can't start new thread", "spawn EAGAIN", "fork: Resource temporarily unavailable", "fork: retry"];

fn speak_of(words: &[String], signs: &[&str]) -> bool {
    words.iter().any(|line| signs.iter().any(|sign| line.contains(sign)))
}

fn over(held: Held, limit: u64) -> Option<String> {
    let (used, most) = (held.bytes.div_ceil(1 << 20), limit >> 20);
    let entries = held.entries;
    if held.is_hidden {
        Some(
            "the service's data directory holds directories that can't be measured: too deep, or closed"
                .to_owned(),
        )
    } else if held.bytes > limit {
        Some(format!(
            "the service's data directory holds {used} MiB of the {most} MiB that it may; raise `--disk`"
        ))
    } else if entries > MAX_ENTRIES {
        Some(format!("the service's data directory holds more than {MAX_ENTRIES} files"))
    } else {
        None
    }
}

/// Stops at the first thing that is too much. By descriptor, one a level: a link that takes the place of a directory while
/// we look is not followed, and no arrangement of directories costs us more memory than there are levels. A file of several
/// names counts once; of a sparse file counts what is there.
fn measure(home: &Path, limit: u64) -> Held {
    let mut held = Held::default();
    let mut seen = HashSet::new();
    let mut way = Vec::new();
    match Level::open(AT_FDCWD, home) {
        Ok(top) => way.push(top),
        Err(errno) => held.is_hidden = !is_gone(errno),
    }
    while let Some(level) = way.last_mut() {
        let Some(entry) = level.entries.next() else {
            way.pop();
            continue;
        };
        // It is the server's to remove, also while we look.
        let Ok(entry) = entry else { continue };
        let Ok(meta) = entry.metadata() else { continue };
        held.entries += 1;
        if meta.nlink() == 1 || meta.is_dir() || seen.insert(meta.ino()) {
            held.bytes += meta.blocks() * 512;
        }
        if meta.is_dir() {
            match Level::open(&level.dir, Path::new(&entry.file_name())) {
                Ok(below) => way.push(below),
                Err(errno) => held.is_hidden = !is_gone(errno),
            }
        }
        held.is_hidden |= way.len() > MAX_DEPTH;
        if held.is_hidden || held.bytes > limit || held.entries > MAX_ENTRIES {
            return held;
        }
    }
    held
}

/// A directory on the way to what is looked at.
struct Level {
    dir: OwnedFd,
    entries: ReadDir,
}

impl Level {
    fn open(parent: impl AsFd, name: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(parent, name, flags, Mode::empty())?;
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        let entries = entries.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(Self { dir, entries })
    }
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn guard() -> Guard {
        Guard::new("/nowhere".into(), Limits::default())
    }

    fn exit(ending: Ending, oom_hint: bool) -> Exit {
        Exit { ending, oom_hint, max_rss_kb: 0, cpu_ms: 0 }
    }

    #[test]
    fn a_limit_is_blamed_for_what_the_kernel_counted() {
        let code = |exit: &Exit, events, words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            guard().blame(Some(exit), events, &words).map(|(code, _)| code)
        };
        let quiet = Some(GroupEvents::default());
        let oom = Some(GroupEvents { oom_kills: 1, pids_refused: 9 });
        let pids = Some(GroupEvents { oom_kills: 0, pids_refused: 1 });
        let (killed, failed, well) = (Ending::Signal(9), Ending::Code(1), Ending::Code(0));
        assert_eq!(code(&exit(killed, false), oom, &[]), Some(ErrorCode::OutOfMemory));
        assert_eq!(code(&exit(failed, false), pids, &[]), Some(ErrorCode::TooManyProcesses));
        assert_eq!(code(&exit(well, false), pids, &[]), None, "it ended as it wished");
        assert_eq!(code(&exit(killed, true), quiet, &[]), None, "the group knows better than the guess");
        assert_eq!(code(&exit(killed, true), None, &[]), Some(ErrorCode::OutOfMemory));
        let words = ["RuntimeError: can't start new thread"];
        assert_eq!(code(&exit(failed, false), None, &words), Some(ErrorCode::TooManyProcesses));
        assert_eq!(code(&exit(failed, false), quiet, &words), None);
        let words = ["FATAL ERROR: Committing semi space failed. JavaScript heap out of memory"];
        assert_eq!(code(&exit(Ending::Signal(6), false), None, &words), Some(ErrorCode::OutOfMemory));
        assert_eq!(code(&exit(well, false), None, &words), None);
        assert_eq!(code(&exit(failed, false), None, &["boom"]), None);
    }

    #[test]
    fn a_directory_is_measured_by_what_it_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("deep")).expect("made");
        std::fs::write(path("deep/two"), vec![1; 2 << 20]).expect("written");
        std::fs::hard_link(path("deep/two"), path("again")).expect("linked");
        std::os::unix::fs::symlink("/usr", path("link")).expect("linked");
        std::fs::File::create(path("sparse")).expect("made").set_len(1 << 30).expect("stretched");
        let held = measure(dir.path(), 64 * MIB);
        assert_eq!(held.entries, 5);
        assert!((2 * MIB..3 * MIB).contains(&held.bytes), "{held:?}");
        assert_eq!(over(held, 64 * MIB), None);
        let text = over(measure(dir.path(), MIB), MIB).expect("too much");
        assert!(text.contains("of the 1 MiB"), "{text}");
    }

    /// Not as it should be: scenario 43u of docs/threat-model.md.
    #[test]
    fn a_file_without_a_name_is_not_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = tempfile::tempfile_in(dir.path()).expect("made");
        file.set_len(0).expect("empty");
        std::io::Write::write_all(&mut &file, &vec![1; 2 << 20]).expect("written");
        assert_eq!(measure(dir.path(), 64 * MIB).bytes, 0);
    }

    #[test]
    fn what_can_not_be_measured_is_too_much() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = |levels: usize| vec!["x"; levels].join("/");
        std::fs::create_dir_all(dir.path().join(deep(MAX_DEPTH - 1))).expect("made");
        let held = measure(dir.path(), 1 << 40);
        assert_eq!((held.entries, held.is_hidden), (MAX_DEPTH - 1, false));
        std::fs::create_dir_all(dir.path().join(deep(MAX_DEPTH))).expect("made");
        let held = measure(dir.path(), 1 << 40);
        assert!(held.is_hidden && over(held, 1 << 40).is_some(), "{held:?}");
        assert_eq!(measure(&dir.path().join("none"), MIB), Held::default(), "it will be made");
        let many = Held { entries: MAX_ENTRIES + 1, ..Held::default() };
        assert!(over(many, MIB).is_some());
    }

    #[test]
    fn a_link_is_not_followed_even_when_it_takes_the_place_of_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let (home, outside) = (dir.path().join("home"), dir.path().join("outside"));
        std::fs::create_dir(&home).expect("made");
        std::fs::create_dir(&outside).expect("made");
        std::fs::write(outside.join("file"), vec![1; 2 << 20]).expect("written");
        std::os::unix::fs::symlink(&outside, home.join("now-a-link")).expect("linked");
        let top = Level::open(AT_FDCWD, &home).expect("opened");
        assert!(Level::open(&top.dir, Path::new("now-a-link")).is_err_and(is_gone));
        assert!(measure(&home, 1 << 40).bytes < MIB);
    }
}
