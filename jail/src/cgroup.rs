//! Control groups: limits of a whole service, and what it uses.
//!
//! Here: finding out what this machine lets us make (version 2 or 1), one group a service, its limits, readings, killing,
//! removal. Not here: putting the server into it (the helper does, see [`crate::JailSpec::cgroups`]).
//! Invariant: a group that was made is removed, by its owner or by the next runner's sweep.

mod claim;
mod files;
mod layout;
mod place;
mod removal;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use layout::Layout;
use place::Surroundings;

/// How long a drop waits for processes that are dying. What is left then is tried again with the next group.
const DROP_LIMIT: Duration = Duration::from_secs(1);
/// How long [`Group::kill`] waits; only a process in an uninterruptible call takes longer.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// For what dead runners of other names left; the rest is the next runner's.
const SWEEP_LIMIT: Duration = Duration::from_secs(3);
/// A name that no service has: ids of groups can't begin with a dot.
const PROBE: &str = ".probe";

/// Why this runner can make no groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {remedy}")]
pub struct Unavailable {
    pub what: String,
    /// What usually grants it.
    pub remedy: &'static str,
}

/// What holds for all processes of a group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// No swap besides.
    pub memory_bytes: u64,
    pub pids: u64,
    /// Thousandths of a processor, 10 at least; `None`: no quota yet, see [`Group::set_cpu`].
    pub milli_cpus: Option<u32>,
}

/// The place where this runner makes its groups. Groups may outlive it; then the place stays until the next sweep.
#[derive(Debug)]
pub struct Cgroups {
    layout: Layout,
    leftovers: Arc<Leftovers>,
    /// Held while this runner lives, so that no other one sweeps its groups away.
    _locks: Vec<File>,
}

/// One service's group. Dropping it kills what is in it and removes it: milliseconds, and a second at worst.
#[derive(Debug)]
pub struct Group {
    layout: Layout,
    leftovers: Arc<Leftovers>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Without the part of the page cache that the kernel can take back at once.
    pub memory_bytes: u64,
    pub pids: u32,
    /// 0 on a version 1 machine without `cpuacct`.
    pub cpu_ms: u64,
}

/// Counted since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupEvents {
    /// Processes killed for want of memory. Version 2 kills all of the group together; on version 1 the kernel takes one
    /// process, and the group's owner must end the rest.
    pub oom_kills: u64,
    /// Forks refused by the limit of processes.
    pub pids_refused: u64,
}

/// Groups that could not be removed when they were dropped.
#[derive(Debug, Default)]
struct Leftovers(Mutex<Vec<Layout>>);

impl Leftovers {
    fn add(&self, layout: Layout) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(layout);
    }

    fn retry(&self) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|layout| removal::remove(&layout.directories(), Instant::now()).is_err());
    }
}

impl Cgroups {
    /// Finds the controllers and makes the runner's own place, named `claudemesh-<name>`; removes what dead runners left
    /// there, those of other names too. Where version 2 demands it, this process and its kin move into a group `sup` of their own.
    ///
    /// # Errors
    /// [`Unavailable`] with what is missing and what usually grants it; also when a living runner has this name.
    pub fn find(name: &str) -> Result<Self, Unavailable> {
        Self::find_in(&Surroundings::read()?, name)
    }

    fn find_in(surroundings: &Surroundings, name: &str) -> Result<Self, Unavailable> {
        if !is_name(name) {
            return Err(Unavailable {
                what: format!("`{name}` is no name for a group"),
                remedy: "name the runner with letters, digits, - and _",
            });
        }
        let base = place::find(surroundings)?;
        let (layout, locks) = claim::claim(&base, name)?;
        claim::sweep_the_dead(&base, Instant::now() + SWEEP_LIMIT);
        let found = Self { layout, leftovers: Arc::default(), _locks: locks };
        found.sweep();
        let limits = GroupLimits { memory_bytes: 64 << 20, pids: 16, milli_cpus: Some(1000) };
        match found.make_unchecked(PROBE, limits) {
            Ok(_probe) => Ok(found),
            Err(error) => Err(place::unavailable(format!("no group with limits can be made: {error}"))),
        }
    }

    /// `v2` or `v1`.
    pub fn version(&self) -> &'static str {
        self.layout.version()
    }

    /// Makes a group. `id` is of letters, digits, `-` and `_`, and unique in this runner's life.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make(&self, id: &str, limits: GroupLimits) -> io::Result<Group> {
        if !is_name(id) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{id}` is no name for a group"),
            ));
        }
        self.leftovers.retry();
        self.make_unchecked(id, limits)
    }

    fn make_unchecked(&self, id: &str, limits: GroupLimits) -> io::Result<Group> {
        let layout = self.layout.below(id);
        layout.make()?;
        // From here on the drop removes it, whatever fails.
        let group = Group { layout, leftovers: Arc::clone(&self.leftovers) };
        group.layout.limit(limits)?;
        Ok(group)
    }

    /// Ends and removes all groups of the place. The locks say that their runner is dead.
    fn sweep(&self) {
        let stale: Vec<Layout> =
            self.layout.names_below().iter().map(|name| self.layout.below(name)).collect();
        // All are told to die before the first is waited for.
        for layout in &stale {
            let _ = removal::kill_once(&layout.directories());
        }
        for layout in stale {
            if removal::remove(&layout.directories(), Instant::now() + DROP_LIMIT).is_err() {
                self.leftovers.add(layout);
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.leftovers.retry();
        // Refused while there are groups; they and the place are the next sweep's.
        for directory in self.layout.directories() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl Group {
    /// For [`crate::JailSpec::cgroups`].
    pub fn directories(&self) -> Vec<PathBuf> {
        self.layout.directories()
    }

    /// Thousandths of a processor, 10 at least.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_cpu(&self, milli_cpus: u32) -> io::Result<()> {
        self.layout.set_cpu(Some(milli_cpus))
    }

    /// # Errors
    /// What the kernel said.
    pub fn usage(&self) -> io::Result<GroupUsage> {
        self.layout.usage()
    }

    /// # Errors
    /// What the kernel said.
    pub fn events(&self) -> io::Result<GroupEvents> {
        self.layout.events()
    }

    /// Kills every process in it and waits until it is empty: milliseconds, and five seconds at worst.
    ///
    /// # Errors
    /// What the kernel said; `TimedOut` when a process does not die.
    pub fn kill(&self) -> io::Result<()> {
        removal::kill(&self.layout.directories(), Instant::now() + KILL_LIMIT)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if removal::remove(&self.layout.directories(), Instant::now() + DROP_LIMIT).is_err() {
            self.leftovers.add(self.layout.clone());
        }
    }
}

/// Neither `.` nor a slash, so it names nothing outside the place. (Nor the probe; a file of the kernel's is there already.)
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=128).contains(&text.len()) && text.bytes().all(is_plain)
}
