//! What an instance may not exceed, and the words for it when it did.
//!
//! Here: watching the data directory and the kills in the control group, blaming a limit for an end. Not here: the
//! limits themselves (crate `jail`), ending (see [`crate::instance`]).
//! Invariant: a limit is blamed on evidence; what is guessed is worded as a guess.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jail::cgroup::GroupEvents;
use jail::{Ending, Exit};
use tokio::task::spawn_blocking;
use wire::ErrorCode;
use wire::spec::Limits;

use crate::cell::Cell;

const EVERY: Duration = Duration::from_secs(2);
/// Files and directories; more would fill a file system's table of them.
const MAX_ENTRIES: usize = 200_000;
/// A directory with more than this in its path can't be measured by path.
const MAX_PATH: usize = 4000;

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
            // Also when the kernel chose another process than the server: what is left is not the service any more.
            if cell.events().await.is_some_and(|events| events.oom_kills > 0) {
                return self.out_of_memory();
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

/// Stops at the first thing that is too much. Follows no link; a file of several names counts once; of a sparse file
/// counts what is there.
fn measure(home: &Path, limit: u64) -> Held {
    let mut held = Held::default();
    let mut seen = HashSet::new();
    let mut waiting = vec![home.to_owned()];
    while let Some(dir) = waiting.pop() {
        if dir.as_os_str().len() > MAX_PATH {
            held.is_hidden = true;
            return held;
        }
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            // It is the server's to remove, also while we look.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(_) => {
                held.is_hidden = true;
                return held;
            }
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            held.entries += 1;
            if meta.nlink() == 1 || meta.is_dir() || seen.insert(meta.ino()) {
                held.bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                waiting.push(entry.path());
            }
            if held.bytes > limit || held.entries > MAX_ENTRIES {
                return held;
            }
        }
    }
    held
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

    #[test]
    fn what_can_not_be_measured_is_too_much() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut deep = dir.path().to_owned();
        while deep.as_os_str().len() < MAX_PATH {
            deep.push("x".repeat(200));
            if std::fs::create_dir(&deep).is_err() {
                break;
            }
        }
        let held = measure(dir.path(), 1 << 40);
        assert!(held.is_hidden && over(held, 1 << 40).is_some(), "{held:?}");
        let many = Held { entries: MAX_ENTRIES + 1, ..Held::default() };
        assert!(over(many, MIB).is_some());
    }
}
