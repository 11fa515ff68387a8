//! Whose a place is: a runner holds locks on its directories for as long as it lives, and the kernel lets go of them.
//!
//! Here: making and locking our own place, removing those of the dead. Not here: what is in a place.
//! Invariant: nothing is removed that a living runner has locked, and no two living runners have one place.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Unavailable;
use super::layout::Layout;
use super::place::{enable, refused};
use super::removal::{pause, remove};

const PREFIX: &str = "claudemesh-";
/// Another runner's sweep may hold a dead place's lock for as long as it takes to remove it.
const PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// Makes our place below `base`, or takes over that of a dead runner of our name.
pub(super) fn claim(base: &Layout, name: &str) -> Result<(Layout, Vec<File>), Unavailable> {
    let place = base.below(&format!("{PREFIX}{name}"));
    let directories = place.directories();
    let end = Instant::now() + PATIENCE;
    loop {
        for directory in &directories {
            match fs::create_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(refused(directory, &error));
                }
                _ => {}
            }
        }
        let mut locks = Vec::new();
        for directory in &directories {
            match lock(directory).map_err(|error| refused(directory, &error))? {
                Some(held) => locks.push(held),
                None => break,
            }
        }
        // Only now: until the lock was held, somebody could still remove what was opened.
        let is_whole = locks.len() == directories.len();
        if is_whole && directories.iter().zip(&locks).all(|(directory, held)| is_at(held, directory)) {
            if let Layout::V2(directory) = &place {
                enable(directory)?;
            }
            return Ok((place, locks));
        }
        if Instant::now() >= end {
            let first = directories.first().map(|path| path.display().to_string());
            return Err(Unavailable {
                what: format!("{} is in use by a living runner", first.unwrap_or_default()),
                remedy: "stop that runner, or give this one another name",
            });
        }
        drop(locks);
        pause(BETWEEN_TRIES);
    }
}

/// Ends and removes the places of runners that hold no lock any more.
pub(super) fn sweep_the_dead(base: &Layout, deadline: Instant) {
    for tree in base.directories() {
        let Ok(entries) = fs::read_dir(tree) else { continue };
        for place in entries.flatten().map(|entry| entry.path()) {
            let is_place = place.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
            if !is_place || !place.is_dir() || Instant::now() >= deadline {
                continue;
            }
            // Whatever goes wrong with another one's place: it is the next runner's to try.
            if let Ok(Some(_held)) = lock(&place) {
                let _ = remove(&[place], deadline);
            }
        }
    }
}

/// `None`: somebody else has it, or it is gone.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let opened = match File::open(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match opened.try_lock() {
        Ok(()) => Ok(Some(opened)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path still leads to what is open.
fn is_at(open: &File, path: &Path) -> bool {
    let number = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
    number(open.metadata()).is_some_and(|ours| number(fs::metadata(path)) == Some(ours))
}
