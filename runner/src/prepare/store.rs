//! The runner's content-addressed store: `artefacts/<key>/{artefact.json, tree/}`, filled from `staging/`.
//!
//! Here: keys, lookup, publishing, removal. Not here: what is in a tree.
//! Invariant: a directory below `artefacts/` is complete, sealed and on disk; it is renamed there in one step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use wire::spec::{Pin, Runtime};

use super::error::{Doing, PrepareError};
use super::launch::Launch;
use super::tree;

/// Changes when the layout or the meaning of [`Record`] does: older artefacts are then built anew.
const FORMAT: u32 = 1;
const RECORD: &str = "artefact.json";

/// Everything that decides what an installed tree looks like, but the lock that the install makes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    pub(crate) detail: BTreeMap<&'a str, String>,
    pub(crate) tools: BTreeMap<String, String>,
    pub(crate) runtime: Option<Runtime>,
    pub(crate) allow_scripts: bool,
}

impl Request<'_> {
    /// Equal requests have equal keys, in every process: maps are sorted, fields are in order.
    pub(crate) fn key(&self) -> String {
        let platform = (std::env::consts::OS, std::env::consts::ARCH);
        let text = serde_json::to_vec(&(FORMAT, platform, self)).unwrap_or_default();
        hex::encode(Sha256::digest(text))
    }
}

/// Name of the artefact: the request, and the lock that was made for it (empty when the source has its own).
pub(crate) fn artefact_key(request: &str, lock: &str) -> String {
    let lock = hex::encode(Sha256::digest(lock.as_bytes()));
    hex::encode(Sha256::digest(format!("{FORMAT}|{request}|{lock}").as_bytes()))
}

/// What `artefact.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) request: String,
    pub(crate) pin: Pin,
    /// Several for a package with several executables.
    pub(crate) launches: Vec<Launch>,
    /// The project is an MCPB bundle: its manifest says how it starts.
    pub(crate) bundle: bool,
    /// Project directory, relative to the tree.
    pub(crate) project: String,
    /// Python environment, relative to the tree.
    pub(crate) venv: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl Record {
    pub(crate) fn new(request: String, mut pin: Pin, launches: Vec<Launch>) -> Self {
        pin.artefact = artefact_key(&request, &pin.lock);
        let project = String::new();
        Self {
            format: FORMAT,
            request,
            pin,
            launches,
            bundle: false,
            project,
            venv: None,
            bytes: 0,
            files: 0,
        }
    }
}

pub(crate) struct Store {
    root: PathBuf,
    index: Mutex<HashMap<String, Arc<Record>>>,
    /// Cleaning that was handed to a thread, because a dropped future can not wait for it.
    pub(crate) cleaning: TaskTracker,
}

impl Store {
    /// Makes the directories, reads what is there, clears what a crash left.
    pub(crate) fn open(root: &Path) -> Result<Self, PrepareError> {
        for dir in ["artefacts", "staging", "blobs", "cache"] {
            fs::create_dir_all(root.join(dir)).doing("making the artefact store")?;
        }
        let root = root.canonicalize().doing("opening the artefact store")?;
        for left in fs::read_dir(root.join("staging")).doing("reading the staging directory")?.flatten() {
            tree::remove(&left.path()).doing("clearing the staging directory")?;
        }
        let mut index = HashMap::new();
        for entry in fs::read_dir(root.join("artefacts")).doing("reading the artefact store")?.flatten() {
            if let Some(record) = read_record(&entry.path()) {
                index.insert(record.pin.artefact.clone(), Arc::new(record));
            } else {
                tree::remove(&entry.path()).doing("removing an artefact of another version")?;
            }
        }
        Ok(Self { root, index: Mutex::new(index), cleaning: TaskTracker::new() })
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn tree(&self, artefact: &str) -> PathBuf {
        self.root.join("artefacts").join(artefact).join("tree")
    }

    fn index(&self) -> MutexGuard<'_, HashMap<String, Arc<Record>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, artefact: &str) -> Option<Arc<Record>> {
        let record = self.index().get(artefact).cloned()?;
        self.is_usable(&record).then_some(record)
    }

    /// An artefact of the same request, whatever lock it was made with.
    pub(crate) fn find_request(&self, request: &str) -> Option<Arc<Record>> {
        let found: Vec<_> = self.index().values().filter(|r| r.request == request).cloned().collect();
        found.into_iter().find(|record| self.is_usable(record))
    }

    /// It is on disk, and the Python that its environment links to is still there.
    fn is_usable(&self, record: &Record) -> bool {
        let tree = self.tree(&record.pin.artefact);
        match &record.venv {
            Some(venv) => tree.join(venv).join("bin/python").exists(),
            None => tree.exists(),
        }
    }

    pub(crate) fn staging(self: &Arc<Self>) -> Result<Staging, PrepareError> {
        let dir = tempfile::Builder::new()
            .prefix("job-")
            .tempdir_in(self.root.join("staging"))
            .doing("making a staging directory")?;
        // Removal is ours: it must cope with sealed trees.
        Ok(Staging { dir: dir.keep(), store: Arc::clone(self) })
    }

    /// Writes the record, flushes everything to disk, and renames the staged tree into the store. An artefact of that
    /// name that is there already stays, unless it is broken.
    pub(crate) fn publish(&self, staging: &Staging, record: Record) -> Result<Arc<Record>, PrepareError> {
        let key = record.pin.artefact.clone();
        if let Some(there) = self.find(&key) {
            return Ok(there);
        }
        let made = staging.path().join("artefact");
        let write = || {
            let path = made.join(RECORD);
            fs::write(&path, serde_json::to_vec_pretty(&record)?)?;
            let file = File::open(&path)?;
            // One flush of the file system instead of thousands of single ones.
            nix::unistd::syncfs(&file)?;
            let target = self.root.join("artefacts").join(&key);
            if target.exists() {
                fs::rename(&target, staging.path().join("broken"))?;
            }
            fs::rename(&made, &target)?;
            File::open(self.root.join("artefacts"))?.sync_all()
        };
        write().doing("storing the artefact")?;
        let record = Arc::new(record);
        self.index().insert(key, Arc::clone(&record));
        Ok(record)
    }

    /// Removes every artefact that `keeps` does not name. Answers how many and how large.
    pub(crate) fn sweep(self: &Arc<Self>, keeps: &HashSet<String>) -> Result<(usize, u64), PrepareError> {
        let gone: Vec<_> = {
            let mut index = self.index();
            let gone: Vec<_> = index.values().filter(|r| !keeps.contains(&r.pin.artefact)).cloned().collect();
            gone.iter().for_each(|record| drop(index.remove(&record.pin.artefact)));
            gone
        };
        for record in &gone {
            // Renamed first: a half-removed tree must never be found under an artefact's name.
            let grave = self.staging()?;
            let from = self.root.join("artefacts").join(&record.pin.artefact);
            fs::rename(from, grave.path().join("artefact")).doing("removing an artefact")?;
            tree::remove(grave.path()).doing("removing an artefact")?;
        }
        Ok((gone.len(), gone.iter().map(|record| record.bytes).sum()))
    }
}

fn read_record(dir: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()?;
    let named = dir.file_name()?.to_str()? == record.pin.artefact;
    (record.format == FORMAT && named && dir.join("tree").is_dir()).then_some(record)
}

/// A private directory of one preparation, removed when the last holder lets go.
pub(crate) struct Staging {
    dir: PathBuf,
    store: Arc<Store>,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// What becomes `artefacts/<key>/tree`.
    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.join("artefact/tree")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let dir = std::mem::take(&mut self.dir);
        let clean = move || {
            if let Err(error) = tree::remove(&dir) {
                tracing::warn!(
                    "a staging directory could not be removed and stays until the next start: {error}"
                );
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(self.store.cleaning.spawn_blocking_on(clean, &runtime)),
            Err(_) => clean(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(version: &'a str, tools: &[(&str, &str)]) -> Request<'a> {
        let tools = tools.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let detail = BTreeMap::from([("integrity", "sha512-x".to_owned())]);
        Request { kind: "npm", name: "a", version, detail, tools, runtime: None, allow_scripts: false }
    }

    fn record(request: &str, lock: &str) -> Record {
        let text = |s: &str| s.to_owned();
        let pin = Pin {
            kind: text("npm"),
            name: text("a"),
            version: text("1"),
            integrity: text("i"),
            artefact: String::new(),
            lock: text(lock),
        };
        Record::new(request.into(), pin, Vec::new())
    }

    #[test]
    fn a_key_depends_on_every_input_and_on_nothing_else() {
        let base = request("1", &[("node", "20"), ("npm", "11")]).key();
        assert_eq!(base, request("1", &[("npm", "11"), ("node", "20")]).key());
        assert_ne!(base, request("2", &[("node", "20"), ("npm", "11")]).key());
        assert_ne!(base, request("1", &[("node", "22"), ("npm", "11")]).key());
        let scripts = Request { allow_scripts: true, ..request("1", &[("node", "20"), ("npm", "11")]) };
        assert_ne!(base, scripts.key());
        assert_ne!(artefact_key(&base, ""), artefact_key(&base, "lock"));
        assert_eq!(base.len(), 64);
    }

    #[test]
    fn a_published_artefact_is_found_after_a_restart_and_staging_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let staging = store.staging().unwrap();
        fs::create_dir_all(staging.tree()).unwrap();
        let kept = store.publish(&staging, record("r", "lock")).unwrap();
        let crashed = std::mem::ManuallyDrop::new(store.staging().unwrap());
        drop(staging);
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.find(&kept.pin.artefact), Some(kept.clone()));
        assert_eq!(again.find_request("r"), Some(kept));
        assert!(!crashed.path().exists());
    }

    #[test]
    fn a_sweep_removes_what_nobody_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let keys: Vec<String> = ["a", "b"]
            .into_iter()
            .map(|request| {
                let staging = store.staging().unwrap();
                fs::create_dir_all(staging.tree()).unwrap();
                store.publish(&staging, record(request, "")).unwrap().pin.artefact.clone()
            })
            .collect();
        let (removed, _) = store.sweep(&HashSet::from([keys[0].clone()])).unwrap();
        assert_eq!(removed, 1);
        assert!(store.find(&keys[0]).is_some() && store.find(&keys[1]).is_none());
        assert!(!store.tree(&keys[1]).exists());
    }
}
