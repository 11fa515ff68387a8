//! Which processes belong to a directory: the orphan count of every test.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A live process that points into a test's directory by argument, environment, working directory or executable.
#[derive(Debug, Clone)]
pub struct Found {
    pub pid: i32,
    pub parent: i32,
    pub command: String,
}

/// Every live process of `root`, zombies left out: they run nothing and their parent is about to see them.
pub fn of(root: &Path) -> Vec<Found> {
    let needle = root.to_string_lossy().into_owned();
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter_map(|pid| look(pid, &needle))
        .collect()
}

fn look(pid: i32, needle: &str) -> Option<Found> {
    let dir = Path::new("/proc").join(pid.to_string());
    let (state, parent) = state_and_parent(&dir)?;
    if state == 'Z' || state == 'X' {
        return None;
    }
    let text =
        |name: &str| String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()).into_owned();
    let link = |name: &str| fs::read_link(dir.join(name)).map(|path| path.to_string_lossy().into_owned());
    let command = text("cmdline").replace('\0', " ");
    let touches = command.contains(needle)
        || text("environ").contains(needle)
        || link("cwd").is_ok_and(|path| path.contains(needle));
    touches.then_some(Found { pid, parent, command })
}

fn state_and_parent(dir: &Path) -> Option<(char, i32)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The command may hold spaces and parentheses; the fields start after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether this process runs. A zombie does not.
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(&Path::new("/proc").join(pid.to_string()))
        .is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

pub fn parent_of(pid: i32) -> Option<i32> {
    state_and_parent(&Path::new("/proc").join(pid.to_string())).map(|(_, parent)| parent)
}

/// `kill -9`; a process that is gone already is fine.
pub fn kill_9(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

pub fn terminate(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
}
