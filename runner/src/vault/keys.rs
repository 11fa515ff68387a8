//! The vault keys that this runner holds, in memory only, and who may give them.
//!
//! Here: taking what a broker passes on of grants, and the mesh owner whom the first grant named. Not here: the key that
//! opens grants (see [`super::custody`]).
//! Invariant: after a list was taken, exactly its keys are held of the mesh; one that is refused changes nothing. A mesh
//! never changes its owner.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vault::{BoxKey, Refused};
use wire::vault::{Grants, KeyId};
use wire::{ErrorCode, MeshId, PublicKey};

use super::custody::OwnKey;
use super::file;

/// Vault keys of one mesh: the newest, and those that something is still sealed to.
const MOST: usize = 64;

pub struct Held {
    path: PathBuf,
    owners: BTreeMap<MeshId, PublicKey>,
    keys: BTreeMap<MeshId, BTreeMap<KeyId, Arc<BoxKey>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    #[error("the runner's own key is not open")]
    Locked,
    #[error("more than {MOST} vault keys of one mesh")]
    TooMany,
    #[error("the grant of vault key {0} is not taken: {1}")]
    Damaged(KeyId, Refused),
    #[error("the grant of vault key {0} is not taken: it is of another owner than the mesh had before")]
    OtherOwner(KeyId),
    #[error("whose mesh it is could not be written down: {0}")]
    Write(io::ErrorKind),
}

impl GrantError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Locked => ErrorCode::VaultLocked,
            Self::TooMany => ErrorCode::InvalidArgs,
            Self::Damaged(..) | Self::OtherOwner(_) => ErrorCode::VaultDamaged,
            Self::Write(_) => ErrorCode::DiskFull,
        }
    }
}

impl Held {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let mut held = Self::empty(directory);
        held.owners = file::read_json(&held.path)?.unwrap_or_default();
        Ok(held)
    }

    pub fn empty(directory: &Path) -> Self {
        Self { path: directory.join("owners.json"), owners: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// Holds exactly these. Whether that changed anything.
    pub fn take(&mut self, own: &OwnKey, mesh: &MeshId, grants: &Grants) -> Result<bool, GrantError> {
        if grants.grants.len() > MOST {
            return Err(GrantError::TooMany);
        }
        let before = self.keys.get(mesh);
        let mut owner = self.owners.get(mesh).cloned();
        let mut keys = BTreeMap::new();
        for grant in &grants.grants {
            let key = vault::keys::accept(&own.key, mesh, grant)
                .map_err(|e| GrantError::Damaged(grant.kid.clone(), e))?;
            if *owner.get_or_insert_with(|| grant.signer.clone()) != grant.signer {
                return Err(GrantError::OtherOwner(grant.kid.clone()));
            }
            let key = Arc::new(key);
            super::keep_off_swap(&key);
            keys.insert(grant.kid.clone(), key);
        }
        if let Some(owner) = owner.filter(|_| !self.owners.contains_key(mesh)) {
            let mut owners = self.owners.clone();
            owners.insert(mesh.clone(), owner);
            file::write_json(&self.path, &owners).map_err(|e| GrantError::Write(e.kind()))?;
            self.owners = owners;
        }
        let is_same = before.map_or(keys.is_empty(), |before| before.keys().eq(keys.keys()));
        if keys.is_empty() {
            self.keys.remove(mesh);
        } else {
            self.keys.insert(mesh.clone(), keys);
        }
        Ok(!is_same)
    }

    pub fn key(&self, mesh: &MeshId, kid: &KeyId) -> Option<&Arc<BoxKey>> {
        self.keys.get(mesh)?.get(kid)
    }

    pub fn holds_any(&self, mesh: &MeshId) -> bool {
        self.keys.contains_key(mesh)
    }

    pub fn list(&self) -> BTreeMap<MeshId, Vec<KeyId>> {
        self.keys.iter().map(|(mesh, keys)| (mesh.clone(), keys.keys().cloned().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Person;
    use super::*;

    #[test]
    fn a_mesh_keeps_its_first_owner_also_over_a_restart_and_when_it_has_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let own = OwnKey::from(BoxKey::generate());
        let mesh = MeshId::parse(&"m".repeat(32)).unwrap();
        let (owner, other, key) = (Person::new(1), Person::new(2), BoxKey::generate());
        let grant =
            |who: &Person, runner: &OwnKey| vault::keys::grant(who, &mesh, &key, &runner.public).unwrap();
        let list = |grants: &[wire::vault::Grant]| Grants { grants: grants.to_vec() };
        let mut held = Held::open(dir.path()).unwrap();
        assert_eq!(held.take(&own, &mesh, &list(&[])), Ok(false));
        let good = grant(&owner, &own);
        assert_eq!(held.take(&own, &mesh, &list(std::slice::from_ref(&good))), Ok(true));
        assert_eq!(held.take(&own, &mesh, &list(std::slice::from_ref(&good))), Ok(false));
        let foreign = grant(&other, &own);
        let kid = foreign.kid.clone();
        let refused = held.take(&own, &mesh, &list(&[good.clone(), foreign.clone()]));
        assert_eq!(refused, Err(GrantError::OtherOwner(kid.clone())));
        assert!(held.key(&mesh, &kid).is_some(), "a refused list changes nothing");
        let elsewhere = grant(&owner, &OwnKey::from(BoxKey::generate()));
        assert!(matches!(held.take(&own, &mesh, &list(&[elsewhere])), Err(GrantError::Damaged(..))));
        assert_eq!(held.take(&own, &mesh, &list(&[])), Ok(true));
        assert!(!held.holds_any(&mesh));
        let mut held = Held::open(dir.path()).unwrap();
        let refused = held.take(&own, &mesh, &list(&[foreign]));
        assert_eq!(refused, Err(GrantError::OtherOwner(kid)));
        assert_eq!(held.take(&own, &mesh, &list(&[good])), Ok(true));
    }
}
