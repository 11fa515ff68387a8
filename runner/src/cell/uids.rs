//! One uid a service, where the runner is root.
//!
//! Here: the pool, the homes that are its record, leases of steps that run foreign code. Not here: becoming a uid
//! (crate `jail`).
//! Invariant: a uid belongs to one home or to one lease at a time.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs package managers that run no foreign code, and owns their download cache.
pub const INSTALLER: u32 = 20_000;

pub struct Uids {
    pool: RangeInclusive<u32>,
    /// Below it: `MESH/DIRECTORY/home`.
    services: PathBuf,
    leased: Mutex<BTreeSet<u32>>,
}

/// A uid for as long as it is held.
pub struct UidLease {
    uid: u32,
    uids: Arc<Uids>,
}

impl UidLease {
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for UidLease {
    fn drop(&mut self) {
        self.uids.leased().remove(&self.uid);
    }
}

impl Uids {
    pub fn new(pool: RangeInclusive<u32>, services: PathBuf) -> Self {
        Self { pool, services, leased: Mutex::default() }
    }

    pub fn lease(self: &Arc<Self>) -> io::Result<UidLease> {
        let mut leased = self.leased();
        let uid = self.lowest_free(&leased)?;
        leased.insert(uid);
        Ok(UidLease { uid, uids: self.clone() })
    }

    /// The owner of this home; one is found for a home that is not there, or that no service's uid owns.
    pub fn settle(&self, home: &Path) -> io::Result<u32> {
        // Held to the end: the home is the record, so nobody may choose before it is written.
        let leased = self.leased();
        make_private(home)?;
        let meta = fs::symlink_metadata(home)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let owner = meta.uid();
        if self.pool.contains(&owner) {
            return Ok(owner);
        }
        let uid = self.lowest_free(&leased)?;
        give_away(home, uid)?;
        Ok(uid)
    }

    fn lowest_free(&self, leased: &BTreeSet<u32>) -> io::Result<u32> {
        let owners = self.owners()?;
        let is_free = |uid: &u32| !leased.contains(uid) && !owners.contains(uid);
        self.pool.clone().find(is_free).ok_or_else(|| io::Error::other("no uid is free for a service"))
    }

    fn owners(&self) -> io::Result<BTreeSet<u32>> {
        let mut owners = BTreeSet::new();
        for mesh in entries(&self.services)? {
            for service in entries(&mesh)? {
                match fs::symlink_metadata(service.join("home")) {
                    Ok(meta) => drop(owners.insert(meta.uid())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    // Unknown is not free.
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(owners)
    }

    fn leased(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing when it is not there (any more).
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// A directory of ours alone, with the way to it.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The home itself last: until then the record says that it is not done. Links are given, never followed; a file of
/// several names is left, since one of them may be somebody else's.
fn give_away(home: &Path, uid: u32) -> io::Result<()> {
    let mut waiting = entries(home)?;
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            waiting.extend(entries(&path)?);
        }
        if meta.is_dir() || meta.nlink() == 1 {
            lchown(&path, Some(uid), Some(uid))?;
        }
    }
    lchown(home, Some(uid), Some(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(dir: &Path) -> Arc<Uids> {
        Arc::new(Uids::new(20_001..=20_003, dir.to_owned()))
    }

    #[test]
    fn a_lease_ends_with_its_holder_and_an_empty_pool_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let uids = uids(dir.path());
        let held: Vec<UidLease> = (0..3).map(|_| uids.lease().expect("free")).collect();
        assert_eq!(held.iter().map(UidLease::uid).collect::<Vec<_>>(), [20_001, 20_002, 20_003]);
        assert!(uids.lease().is_err());
        drop(held);
        assert_eq!(uids.lease().expect("free again").uid(), 20_001);
    }

    #[test]
    fn the_owner_of_a_home_stays_its_uid_and_nobody_else_gets_it() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            return eprintln!("skipped: needs root");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let uids = uids(dir.path());
        let lease = uids.lease().expect("free");
        let (one, two) = (dir.path().join("m/one/home"), dir.path().join("m/two/home"));
        assert_eq!(uids.settle(&one).expect("settled"), 20_002, "the first is leased");
        assert_eq!(uids.settle(&two).expect("settled"), 20_003);
        drop(lease);
        assert_eq!(uids.settle(&one).expect("settled"), 20_002);
        let meta = fs::metadata(&one).expect("there");
        assert_eq!((meta.uid(), meta.mode() & 0o777), (20_002, 0o700));
        fs::remove_dir(&one).expect("removed");
        let (first, second) = (uids.lease().expect("free"), uids.lease().expect("free"));
        assert_eq!((first.uid(), second.uid()), (20_001, 20_002), "a home that is gone frees its uid");
    }

    #[test]
    fn an_older_runners_home_is_given_away_without_following_links() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            return eprintln!("skipped: needs root");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("m/one/home");
        fs::create_dir_all(home.join("deep")).expect("made");
        fs::write(dir.path().join("outside"), "").expect("written");
        fs::write(home.join("deep/file"), "").expect("written");
        std::os::unix::fs::symlink(dir.path().join("outside"), home.join("link")).expect("linked");
        let uid = uids(dir.path()).settle(&home).expect("settled");
        let owner = |path: PathBuf| fs::symlink_metadata(path).expect("there").uid();
        assert_eq!([owner(home.join("deep/file")), owner(home.join("link"))], [uid, uid]);
        assert_eq!(owner(dir.path().join("outside")), 0);
    }
}
