//! Processes as `/proc` shows them.
//!
//! Here: one reading of all processes, a tree's members, memory and count. Not here: signals (see [`crate::tree`]).
//! Invariant: a reading is a snapshot; whoever acts on it checks `(pid, started)` again.

use std::collections::HashMap;
use std::{fs, io};

use crate::sys;

/// One line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// Clock ticks from boot to the start: with the pid it names a process for good.
    pub(crate) started: u64,
    pub(crate) resident_pages: u64,
    pub(crate) is_zombie: bool,
}

impl Process {
    /// `None` when there is no such process (any more).
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(pid: i32, stat: &[u8]) -> Option<Self> {
        // The program's name stands in parentheses and may hold both parentheses and spaces: count from the last one.
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 2..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            is_zombie: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            resident_pages: fields.get(21)?.parse().unwrap_or(0),
        })
    }
}

/// All processes below `root`, without `root`; a parent stands before its children.
pub(crate) fn descendants(root: i32) -> io::Result<Vec<Process>> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(process) = Process::read(pid) {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

/// What a jail's tree uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory added up over the processes. What they share counts once where the kernel says how much that is, else
    /// once for each.
    pub rss_bytes: u64,
    /// Processes, without the helper, without the init of a strict jail and without zombies.
    pub processes: usize,
}

/// Memory and process count below a helper; nothing when there is no such helper.
pub fn usage(helper_pid: u32) -> io::Result<Usage> {
    let page = sys::page_bytes()?;
    let root = i32::try_from(helper_pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut usage = Usage::default();
    let below = descendants(root)?;
    let counted = below.iter().filter(|process| !process.is_zombie);
    for process in counted.filter(|process| process.parent != root || !is_init(process.pid)) {
        usage.rss_bytes += proportional(process.pid).unwrap_or(process.resident_pages * page);
        usage.processes += 1;
    }
    Ok(usage)
}

/// Its share of the memory that it has in common with others, where the kernel lets us ask: a herd that was forked from one
/// process would otherwise count the same pages for each.
fn proportional(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Whether this is the first process of a pid namespace of its own.
fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    inside.is_some_and(|pids| pids.split_ascii_whitespace().skip(1).last() == Some("1"))
}

/// Threads of all processes whose real uid is `uid`, which is what the kernel holds against `RLIMIT_NPROC`.
pub(crate) fn threads_of(uid: u32) -> io::Result<u64> {
    let mut threads = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("status");
        // Not a process, or gone between the listing and the reading.
        let Ok(status) = fs::read_to_string(path) else { continue };
        let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name));
        let owner = field("Uid:").and_then(|ids| ids.split_ascii_whitespace().next()?.parse().ok());
        if owner == Some(uid) {
            threads += field("Threads:").and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(1);
        }
    }
    Ok(threads)
}

/// How often the kernel has killed a process for want of memory since boot; 0 where it doesn't say.
pub(crate) fn oom_kills() -> u64 {
    let Ok(counters) = fs::read_to_string("/proc/vmstat") else { return 0 };
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_is_no_trap() {
        let stat = b"7 (a) R 1 (b) S 3 7 7 0 -1 0 0 0 0 0 1 2 0 0 20 0 5 0 4242 1000 33 184467";
        let process = Process::parse(7, stat).unwrap();
        let expected = Process { pid: 7, parent: 3, started: 4242, resident_pages: 33, is_zombie: false };
        assert_eq!(process, expected);
    }

    #[test]
    fn a_line_cut_short_is_no_process() {
        assert_eq!(Process::parse(7, b"7 (a"), None);
        assert_eq!(Process::parse(7, b"7 (a) S 3 7"), None);
    }

    #[test]
    fn this_process_is_found_below_its_parent() {
        let me = std::process::id() as i32;
        let parent = Process::read(me).unwrap().parent;
        assert!(descendants(parent).unwrap().iter().any(|process| process.pid == me));
    }
}
