//! What every service of this runner shares, and where on disk things are.
//!
//! Here: configuration, workshop, events, paths. Not here: services.
//! Invariant: a path under the data directory is made of checked ids only. What ran without a secret's owner having agreed
//! to it never wrote into a directory that is `HOME` of what gets this secret.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wire::ServiceKey;
use wire::runner::Apply;

use crate::cell::Cells;
use crate::config::RunnerConfig;
use crate::events::Events;
use crate::prepare::Workshop;
use crate::vault::Vault;

/// An artefact this young may belong to a deploy that no report names yet.
const YOUNG: Duration = Duration::from_secs(600);

pub struct Shop {
    pub config: RunnerConfig,
    pub workshop: Workshop,
    pub events: Events,
    pub cells: Arc<Cells>,
    pub vault: Arc<Vault>,
    prepared: Mutex<Vec<(Instant, String)>>,
}

impl Shop {
    pub fn new(config: RunnerConfig, workshop: Workshop, cells: Arc<Cells>, vault: Vault) -> Self {
        let (vault, events) = (Arc::new(vault), Events::default());
        Self { config, workshop, events, cells, vault, prepared: Mutex::default() }
    }

    pub fn note_prepared(&self, artefact: &str) {
        let mut prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.retain(|(at, _)| at.elapsed() < YOUNG);
        prepared.push((Instant::now(), artefact.to_owned()));
    }

    /// Artefacts that were prepared a short while ago.
    pub fn young_artefacts(&self) -> Vec<String> {
        let prepared = self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        prepared.iter().filter(|(at, _)| at.elapsed() < YOUNG).map(|(_, name)| name.clone()).collect()
    }

    /// Every directory of what a service may keep. Blocks.
    ///
    /// # Errors
    /// It is not known what there is.
    pub fn data_of(&self, key: &ServiceKey) -> io::Result<Vec<PathBuf>> {
        let found = match std::fs::read_dir(self.homes_of_mesh(key)) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(e),
        };
        let paths: Vec<PathBuf> =
            found.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
        Ok(paths.into_iter().filter(|path| is_of(path, key.name.as_str())).collect())
    }

    /// `HOME` of a generation. Programs load code from there (`~/.local/lib`, `~/.node_modules`), and a generation without
    /// secrets needs nobody's signature. So those with references have one of their own, shared only with others whose
    /// references have the same owners, who agreed to all that ever ran there.
    pub fn home_of(&self, key: &ServiceKey, apply: &Apply) -> PathBuf {
        self.homes_of_mesh(key).join(directory_name(key, apply)).join("home")
    }

    /// `HOME` of the generations without references.
    pub fn plain_home_of(&self, key: &ServiceKey) -> PathBuf {
        self.homes_of_mesh(key).join(key.name.as_str()).join("home")
    }

    fn homes_of_mesh(&self, key: &ServiceKey) -> PathBuf {
        self.config.data.join("services").join(key.mesh.as_str())
    }

    /// Where the cells' temporary directories are; emptied when the runner starts.
    pub fn tmp_root(&self) -> PathBuf {
        self.config.data.join("tmp")
    }
}

/// In no name of a service.
const OF_OWNERS: char = '+';

fn directory_name(key: &ServiceKey, apply: &Apply) -> String {
    if apply.spec.vault.is_empty() {
        return key.name.as_str().to_owned();
    }
    let caller = apply.vault.caller.as_ref();
    let owners: BTreeSet<_> =
        apply.spec.vault.values().filter_map(|reference| reference.owner.as_ref().or(caller)).collect();
    let mut digest = Sha256::new();
    for owner in owners {
        // All of one length.
        digest.update(owner.as_str());
    }
    // So much of it that nobody finds a key of theirs that gives the same.
    format!("{}{OF_OWNERS}{}", key.name, hex::encode(&digest.finalize()[..16]))
}

fn is_of(path: &Path, name: &str) -> bool {
    let rest = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_prefix(name));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(OF_OWNERS))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn name(caller: Option<&str>, owners: &[Option<&str>]) -> String {
        let reference = |owner: &Option<&str>| json!({"key": "k", "owner": owner.map(|o| o.repeat(32))});
        let vault: serde_json::Map<String, Value> =
            owners.iter().enumerate().map(|(n, owner)| (format!("V{n}"), reference(owner))).collect();
        let apply = json!({
            "generation": 1, "proven": false, "secrets": {"env": {}},
            "spec": {"source": {"type": "npx", "package": "x"}, "vault": vault},
            "vault": {"caller": caller.map(|caller| caller.repeat(32))},
        });
        let key = ServiceKey {
            mesh: wire::MeshId::parse(&"m".repeat(32)).unwrap(),
            name: wire::ServiceName::parse("app").unwrap(),
        };
        directory_name(&key, &serde_json::from_value(apply).unwrap())
    }

    #[test]
    fn a_home_is_of_the_same_owners_or_of_nobody() {
        assert_eq!(name(None, &[]), "app");
        let of_one = name(None, &[Some("aa")]);
        assert!(of_one.starts_with("app+") && of_one.len() == 4 + 32, "{of_one}");
        assert_eq!(name(None, &[Some("aa"), Some("aa")]), of_one);
        assert_eq!(name(Some("bb"), &[Some("aa")]), of_one, "a caller whose entries it does not get");
        assert_eq!(name(Some("aa"), &[None]), of_one);
        let of_two = name(None, &[Some("aa"), Some("bb")]);
        assert_eq!(name(None, &[Some("bb"), Some("aa")]), of_two);
        assert_eq!(name(Some("bb"), &[Some("aa"), None]), of_two);
        let all: BTreeSet<_> =
            [of_one, of_two, name(None, &[Some("bb")]), name(Some("cc"), &[None]), name(None, &[None])]
                .into();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn the_directories_of_a_service_are_found_and_no_others() {
        let of = |file: &str| is_of(&Path::new("/data/services/m").join(file), "app");
        assert!(of("app") && of("app+0123") && !of("app2") && !of("ap") && !of("app-x+0123") && !of("x"));
        assert!(!of(&format!("app.{}", "U".repeat(32))), "a caller's instance is a service of its own");
    }
}
