//! Killing a whole tree.
//!
//! Here: one sweep. Not here: repeating it until nothing is left, and reaping (see [`crate::helper`]).
//! Invariant: a signal goes only to the process that was seen, never to another one that got its pid.

use std::collections::HashSet;
use std::io;

use nix::libc::{SIGKILL, SIGSTOP};

use crate::process::{Process, descendants};
use crate::sys;

/// A tree that grows faster than this many looks is killed in the state it was seen; the next sweep goes on.
const LOOKS: usize = 16;

/// Stops everything below `root`, then kills it. Returns how many processes were seen alive.
///
/// Stopped first, for a process that watches its children would start a new one for each that dies before it does.
pub(crate) fn sweep(root: i32) -> io::Result<usize> {
    let mut stopped = HashSet::new();
    for _ in 0..LOOKS {
        let seen = living(root)?;
        let fresh: Vec<_> =
            seen.into_iter().filter(|process| stopped.insert((process.pid, process.started))).collect();
        if fresh.is_empty() {
            break;
        }
        fresh.iter().for_each(|process| signal(process, SIGSTOP));
    }
    let seen = living(root)?;
    seen.iter().for_each(|process| signal(process, SIGKILL));
    Ok(seen.len())
}

fn living(root: i32) -> io::Result<Vec<Process>> {
    Ok(descendants(root)?.into_iter().filter(|process| !process.is_zombie).collect())
}

fn signal(seen: &Process, signal: i32) {
    let Ok(handle) = sys::pidfd_open(seen.pid) else { return };
    // The handle may be on a newer process with the same pid; only the start time tells.
    let is_same = Process::read(seen.pid).is_some_and(|now| now.started == seen.started);
    if is_same {
        // An error means that it has just ended, which is what we want; the next sweep sees whether it has.
        let _ = sys::pidfd_signal(&handle, signal);
    }
}
