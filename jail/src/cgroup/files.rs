//! The kernel's small files: one value written, one key read.
//!
//! Here: errors that say which file it was. Not here: what the values mean.

use std::fs;
use std::io;
use std::path::Path;

pub(super) fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    fs::write(directory.join(file), value).map_err(|error| of_file(file, &error))
}

/// For a file that not every kernel has.
pub(super) fn write_if_there(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    match write(directory, file, value) {
        Err(_) if !directory.join(file).exists() => Ok(()),
        done => done,
    }
}

pub(super) fn read(directory: &Path, file: &str) -> io::Result<String> {
    fs::read_to_string(directory.join(file)).map_err(|error| of_file(file, &error))
}

pub(super) fn number(directory: &Path, file: &str) -> io::Result<u64> {
    read(directory, file)?.trim().parse().map_err(|_| strange(file))
}

/// The number behind `key` in a file of lines `key number`.
pub(super) fn value_of(directory: &Path, file: &str, key: &str) -> io::Result<u64> {
    let text = read(directory, file)?;
    find(&text, key).ok_or_else(|| strange(file))
}

fn find(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

/// The processes of a group. One that is outside our pid namespace is a 0, which is left out.
pub(super) fn pids(directory: &Path) -> io::Result<Vec<i32>> {
    let text = read(directory, "cgroup.procs")?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

fn strange(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} does not hold what it should"))
}

/// Keeps the kind; the number of the error is in the text.
fn of_file(file: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{file}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let events = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(find(events, "oom_kill"), Some(1));
        assert_eq!(find(events, "oom"), Some(2));
        assert_eq!(find(events, "kill"), None);
        assert_eq!(find("max many\n", "max"), None);
    }
}
