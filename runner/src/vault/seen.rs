//! What this runner has seen before, so that nobody puts an older state back.
//!
//! Here: the highest version of each entry and the highest floor of the consents of each signer for each service, on disk.
//! Not here: whether what is told was signed (the caller has checked that).
//! Invariant: a number only grows, and what [`Seen::keep`] has returned for is on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::vault::VaultName;
use wire::{MeshId, PublicKey};

use super::file;

/// More than this is refused, not forgotten: what was forgotten could be put back.
const MOST: usize = 200_000;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    #[serde(default)]
    versions: BTreeMap<VaultName, i64>,
    /// By plain service name.
    #[serde(default)]
    floors: BTreeMap<String, i64>,
}

pub struct Seen {
    path: PathBuf,
    meshes: BTreeMap<MeshId, BTreeMap<PublicKey, Numbers>>,
    count: usize,
    is_kept: bool,
}

impl Seen {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("seen.json");
        let meshes: BTreeMap<MeshId, BTreeMap<PublicKey, Numbers>> =
            file::read_json(&path)?.unwrap_or_default();
        let all = meshes.values().flat_map(BTreeMap::values);
        let count = all.map(|numbers| numbers.versions.len() + numbers.floors.len()).sum();
        Ok(Self { path, meshes, count, is_kept: true })
    }

    fn numbers(&mut self, mesh: &MeshId, owner: &PublicKey) -> &mut Numbers {
        self.meshes.entry(mesh.clone()).or_default().entry(owner.clone()).or_default()
    }

    /// The highest version so far, this one included.
    pub fn version(&mut self, mesh: &MeshId, owner: &PublicKey, key: &VaultName, version: i64) -> i64 {
        let versions = &mut self.numbers(mesh, owner).versions;
        let before = versions.len();
        let highest = versions.entry(key.clone()).or_insert(0);
        let has_grown = *highest < version;
        *highest = version.max(*highest);
        let (highest, more) = (*highest, versions.len() - before);
        self.grown(has_grown, more);
        highest
    }

    /// The highest floor so far, this one included.
    pub fn floor(&mut self, mesh: &MeshId, signer: &PublicKey, service: &str, floor: i64) -> i64 {
        let floors = &mut self.numbers(mesh, signer).floors;
        let before = floors.len();
        let highest = floors.entry(service.to_owned()).or_insert(0);
        let has_grown = *highest < floor;
        *highest = floor.max(*highest);
        let (highest, more) = (*highest, floors.len() - before);
        self.grown(has_grown, more);
        highest
    }

    fn grown(&mut self, has_grown: bool, more: usize) {
        self.count += more;
        self.is_kept &= !has_grown;
    }

    /// Makes it last. Until that has worked once, nothing may be opened.
    pub fn keep(&mut self) -> io::Result<()> {
        if self.is_kept {
            return Ok(());
        }
        if self.count > MOST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        file::write_json(&self.path, &self.meshes)?;
        self.is_kept = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_is_remembered_over_a_restart_and_only_after_it_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = MeshId::parse(&"m".repeat(32)).unwrap();
        let owner = PublicKey::parse(&"ab".repeat(32)).unwrap();
        let key = VaultName::parse("token").unwrap();
        let open = || Seen::open(dir.path()).unwrap();
        let mut seen = open();
        assert_eq!(seen.version(&mesh, &owner, &key, 3), 3);
        assert_eq!(open().version(&mesh, &owner, &key, 1), 1, "not kept yet");
        seen.keep().unwrap();
        assert_eq!(seen.floor(&mesh, &owner, "echo", 7), 7);
        seen.keep().unwrap();
        let mut next = open();
        assert_eq!(next.version(&mesh, &owner, &key, 2), 3);
        assert_eq!(next.floor(&mesh, &owner, "echo", 0), 7);
        assert_eq!(next.floor(&mesh, &owner, "other", 0), 0);
    }

    #[test]
    fn what_could_not_be_kept_is_tried_again_and_not_taken_for_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mesh = MeshId::parse(&"m".repeat(32)).unwrap();
        let owner = PublicKey::parse(&"ab".repeat(32)).unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("seen.json~")).unwrap();
        seen.floor(&mesh, &owner, "echo", 7);
        assert!(seen.keep().is_err() && seen.keep().is_err());
        std::fs::remove_dir(dir.path().join("seen.json~")).unwrap();
        seen.keep().unwrap();
        assert_eq!(Seen::open(dir.path()).unwrap().floor(&mesh, &owner, "echo", 0), 7);
    }

    #[test]
    fn a_damaged_memory_is_an_error_and_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("seen.json"), "{").unwrap();
        assert!(Seen::open(dir.path()).is_err());
    }
}
