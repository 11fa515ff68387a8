//! Ending what is in a group, and removing the group.
//!
//! Here: killing by `cgroup.kill` or by hand, waiting within a deadline, `rmdir`. Not here: who decides it.
//! Invariant: a signal goes only to a process that is in the group; every wait ends at its deadline.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{SIGKILL, SIGSTOP};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::files::{pids, write};
use crate::sys;

/// Groups within groups: we make none, so a sweep that meets more has met something else.
const DEPTH: usize = 4;
/// Looks at a group that forks while it is being stopped. Its limit of processes bounds how far it can grow.
const LOOKS: usize = 16;

/// Kills all, waits until the group is empty, removes it. One try when the deadline is now.
pub(super) fn remove(directories: &[PathBuf], deadline: Instant) -> io::Result<()> {
    let killed = kill(directories, deadline);
    for directory in directories {
        remove_tree(directory, deadline, DEPTH)?;
    }
    // What could be removed was empty.
    match killed {
        Err(error) if directories.iter().any(|directory| directory.exists()) => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn kill(directories: &[PathBuf], deadline: Instant) -> io::Result<()> {
    loop {
        let dying = kill_once(directories)?;
        if dying.is_empty() && is_empty(directories)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a process of the group does not die"));
        }
        match directories {
            [directory] if directory.join("cgroup.events").exists() => until_empty(directory, deadline)?,
            _ => until_dead(&dying, deadline)?,
        }
    }
}

/// Tells all of the group to die. The handles are of those that had to be told one by one.
pub(super) fn kill_once(directories: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let mut by_hand = Vec::new();
    for directory in directories.iter().filter(|directory| directory.exists()) {
        // Takes forks under way with it, and groups below. Since Linux 5.14.
        if !directory.join("cgroup.kill").exists() || write(directory, "cgroup.kill", "1").is_err() {
            by_hand.push(directory);
        }
    }
    // A stopped process neither forks nor makes room for a fork below the limit.
    let mut seen = BTreeMap::new();
    for _ in 0..LOOKS {
        let before = seen.len();
        for (pid, handle) in members(&by_hand)? {
            seen.entry(pid).or_insert_with(|| {
                let _ = sys::pidfd_signal(&handle, SIGSTOP);
                handle
            });
        }
        if seen.len() == before {
            break;
        }
    }
    for handle in seen.values() {
        // An error means that it has just ended.
        let _ = sys::pidfd_signal(handle, SIGKILL);
    }
    Ok(seen.into_values().collect())
}

/// A number may be another process's by the time that there is a handle: whoever is listed before and after is the group's.
fn members(directories: &[&PathBuf]) -> io::Result<Vec<(i32, OwnedFd)>> {
    let mut found = Vec::new();
    for directory in directories {
        let listed = pids(directory)?;
        let handles = listed.into_iter().filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?)));
        let handles: Vec<_> = handles.collect();
        let still = pids(directory)?;
        found.extend(handles.into_iter().filter(|(pid, _)| still.contains(pid)));
    }
    Ok(found)
}

fn is_empty(directories: &[PathBuf]) -> io::Result<bool> {
    for directory in directories.iter().filter(|directory| directory.exists()) {
        let is_populated = match fs::read_to_string(directory.join("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "populated 1"),
            Err(_) => !pids(directory)?.is_empty(),
        };
        if is_populated {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Version 2 wakes whoever waits on `cgroup.events`.
fn until_empty(directory: &Path, deadline: Instant) -> io::Result<()> {
    let mut events = File::open(directory.join("cgroup.events"))?;
    let mut text = String::new();
    loop {
        text.clear();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().all(|line| line != "populated 1") || Instant::now() >= deadline {
            return Ok(());
        }
        wait(&events, PollFlags::POLLPRI, deadline)?;
    }
}

fn until_dead(dying: &[OwnedFd], deadline: Instant) -> io::Result<()> {
    for handle in dying {
        wait(handle, PollFlags::POLLIN, deadline)?;
    }
    // A process that has ended may be listed for a moment longer, and version 1 has no event for its leaving.
    pause(Duration::from_millis(1));
    Ok(())
}

fn wait(fd: impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), events)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_tree(directory: &Path, deadline: Instant, depth: usize) -> io::Result<()> {
    if let Some(depth) = depth.checked_sub(1)
        && let Ok(entries) = fs::read_dir(directory)
    {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let below = entry.path();
            kill(std::slice::from_ref(&below), deadline)?;
            remove_tree(&below, deadline, depth)?;
        }
    }
    let mut patience = Duration::from_millis(1);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A dying task is counted until the kernel has put it away, and nothing tells when.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                pause(patience);
                patience = (patience * 2).min(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "there is no event to wait for; the callers have deadlines")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}
