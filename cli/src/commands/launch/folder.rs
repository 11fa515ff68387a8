//! The folder of one session, and sweeping those whose session is over.
//!
//! Invariant: a folder is removed only under its own lock. `claude` inherits that lock, so that a session whose `launch` was
//! killed keeps its folder as long as it runs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

pub struct SessionFolder {
    path: PathBuf,
    _lock: File,
}

impl SessionFolder {
    /// Removes what dead sessions left in `all`, and makes a new one.
    pub fn make(all: &Path) -> io::Result<Self> {
        client::config::private_folder(all)?;
        // Nobody sweeps between a folder and its lock.
        let turn = File::open(all)?;
        turn.lock()?;
        sweep(all);
        let path = all.join(uuid::Uuid::new_v4().simple().to_string());
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::create_new(path.join("lock"))?;
        lock.lock()?;
        fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SessionFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn sweep(all: &Path) {
    for folder in fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_over = match File::open(folder.join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            // Its launch died before it had one.
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if is_over {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_sessions_keep_their_folders_and_dead_ones_do_not() {
        let scratch = tempfile::tempdir().unwrap();
        let all = scratch.path().join("launch");
        let live = SessionFolder::make(&all).unwrap();
        for (name, has_lock) in [("dead", true), ("unborn", false)] {
            fs::create_dir(all.join(name)).unwrap();
            fs::write(all.join(name).join("mcp.json"), "{}").unwrap();
            if has_lock {
                fs::write(all.join(name).join("lock"), "").unwrap();
            }
        }
        let next = SessionFolder::make(&all).unwrap();
        assert!(live.path().is_dir() && next.path().is_dir());
        assert_eq!(fs::read_dir(&all).unwrap().count(), 2);
        drop((live, next));
        assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
    }
}
