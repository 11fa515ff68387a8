//! Where the files of one group are, and what each version calls them.
//!
//! Here: limits, readings. Not here: finding the place (see [`super::place`]), ending (see [`super::removal`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{number, read, value_of, write, write_if_there};
use super::{GroupEvents, GroupLimits, GroupUsage};

/// The kernel's own default, and short enough that a throttled server still answers in time.
const PERIOD_US: u64 = 100_000;
/// The kernel refuses less than a millisecond.
const LEAST_MILLI_CPUS: u32 = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    V2(PathBuf),
    V1(Hierarchies),
}

/// Version 1 has a tree for each controller; some may be one and the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchies {
    pub(super) memory: PathBuf,
    pub(super) pids: PathBuf,
    pub(super) cpu: PathBuf,
    /// Only counts, so that a machine without it will do.
    pub(super) cpuacct: Option<PathBuf>,
}

impl Layout {
    pub(super) fn version(&self) -> &'static str {
        match self {
            Self::V2(_) => "v2",
            Self::V1(_) => "v1",
        }
    }

    pub(super) fn below(&self, name: &str) -> Self {
        match self {
            Self::V2(directory) => Self::V2(directory.join(name)),
            Self::V1(trees) => Self::V1(Hierarchies {
                memory: trees.memory.join(name),
                pids: trees.pids.join(name),
                cpu: trees.cpu.join(name),
                cpuacct: trees.cpuacct.as_ref().map(|tree| tree.join(name)),
            }),
        }
    }

    /// Each once.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        match self {
            Self::V2(directory) => vec![directory.clone()],
            Self::V1(Hierarchies { memory, pids, cpu, cpuacct }) => {
                let all = [Some(memory), Some(pids), Some(cpu), cpuacct.as_ref()];
                let mut each: Vec<PathBuf> = Vec::new();
                for directory in all.into_iter().flatten() {
                    if !each.contains(directory) {
                        each.push(directory.clone());
                    }
                }
                each
            }
        }
    }

    /// Names of the groups that are in here, in any of the trees.
    pub(super) fn names_below(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for directory in self.directories() {
            let Ok(entries) = fs::read_dir(directory) else { continue };
            let groups = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(groups.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names
    }

    /// All directories or none.
    pub(super) fn make(&self) -> io::Result<()> {
        let all = self.directories();
        for (made, directory) in all.iter().enumerate() {
            if let Err(error) = fs::create_dir(directory) {
                for made in &all[..made] {
                    let _ = fs::remove_dir(made);
                }
                return Err(io::Error::new(error.kind(), format!("{}: {error}", directory.display())));
            }
        }
        Ok(())
    }

    pub(super) fn limit(&self, limits: GroupLimits) -> io::Result<()> {
        let GroupLimits { memory_bytes, pids, milli_cpus } = limits;
        let (memory_bytes, pids) = (memory_bytes.to_string(), pids.to_string());
        match self {
            Self::V2(directory) => {
                write(directory, "memory.max", &memory_bytes)?;
                write_if_there(directory, "memory.swap.max", "0")?;
                // Half a server is worse than none: the killer might take the server and leave the bomb.
                write(directory, "memory.oom.group", "1")?;
                write(directory, "pids.max", &pids)?;
            }
            Self::V1(trees) => {
                write(&trees.memory, "memory.limit_in_bytes", &memory_bytes)?;
                // Memory and swap together, so never less than memory alone: second.
                write_if_there(&trees.memory, "memory.memsw.limit_in_bytes", &memory_bytes)?;
                write(&trees.pids, "pids.max", &pids)?;
            }
        }
        self.set_cpu(milli_cpus)
    }

    pub(super) fn set_cpu(&self, milli_cpus: Option<u32>) -> io::Result<()> {
        let quota = milli_cpus.map(|milli| u64::from(milli.max(LEAST_MILLI_CPUS)) * PERIOD_US / 1000);
        match self {
            Self::V2(directory) => {
                let quota = quota.map_or("max".to_owned(), |us| us.to_string());
                write(directory, "cpu.max", &format!("{quota} {PERIOD_US}"))
            }
            Self::V1(Hierarchies { cpu, .. }) => {
                write(cpu, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                let unlimited = || write(cpu, "cpu.cfs_quota_us", "-1");
                let Some(quota) = quota else { return unlimited() };
                match write(cpu, "cpu.cfs_quota_us", &quota.to_string()) {
                    // Version 1 refuses more than a group above has. Then that one's quota is the one that holds.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => unlimited(),
                    done => done,
                }
            }
        }
    }

    pub(super) fn usage(&self) -> io::Result<GroupUsage> {
        let (memory, idle, pids, cpu_ms) = match self {
            Self::V2(directory) => (
                number(directory, "memory.current")?,
                value_of(directory, "memory.stat", "inactive_file")?,
                number(directory, "pids.current")?,
                value_of(directory, "cpu.stat", "usage_usec")? / 1000,
            ),
            Self::V1(trees) => (
                number(&trees.memory, "memory.usage_in_bytes")?,
                value_of(&trees.memory, "memory.stat", "total_inactive_file")?,
                number(&trees.pids, "pids.current")?,
                trees.cpuacct.as_deref().map_or(Ok(0), |tree| number(tree, "cpuacct.usage"))? / 1_000_000,
            ),
        };
        let pids = u32::try_from(pids).unwrap_or(u32::MAX);
        Ok(GroupUsage { memory_bytes: memory.saturating_sub(idle), pids, cpu_ms })
    }

    pub(super) fn events(&self) -> io::Result<GroupEvents> {
        let (oom_kills, pids) = match self {
            Self::V2(directory) => (value_of(directory, "memory.events", "oom_kill")?, directory),
            Self::V1(trees) => (value_of(&trees.memory, "memory.oom_control", "oom_kill")?, &trees.pids),
        };
        Ok(GroupEvents { oom_kills, pids_refused: value_of(pids, "pids.events", "max")? })
    }
}

/// Hands controllers on to the groups below.
pub(super) fn hand_on(directory: &Path, controllers: &[&str]) -> io::Result<()> {
    let present = read(directory, "cgroup.subtree_control")?;
    let missing =
        controllers.iter().filter(|name| !present.split_ascii_whitespace().any(|has| has == **name));
    let wanted: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    write(directory, "cgroup.subtree_control", &wanted.join(" "))
}
