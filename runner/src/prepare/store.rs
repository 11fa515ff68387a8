//! The runner's content-addressed store: `artefacts/<key>/{artefact.json, tree/}`, filled from `staging/`.
//!
//! Here: keys, lookup, publishing, removal. Not here: what is in a tree.
//! Invariant: a directory below `artefacts/` is complete, sealed and on disk; it is renamed there in one step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use wire::ErrorCode;
use wire::spec::{Pin, Runtime};

use super::error::{Doing, PrepareError};
use super::integrity::{self, State};
use super::launch::Launch;
use super::tree;

/// Changes when the layout or the meaning of [`Record`] does: older artefacts are then built anew.
const FORMAT: u32 = 2;
const RECORD: &str = "artefact.json";
/// Trees that are kept although they were changed after their installation.
const MAX_ASIDE: usize = 4;
/// An answer of [`Store::find`] is in use before anyone can name it to [`Store::sweep`].
pub(crate) const GRACE: Duration = Duration::from_secs(10 * 60);

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
    /// SHA-256 of the manifest, in which every file's is.
    pub(crate) manifest: String,
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
            manifest: String::new(),
        }
    }
}

/// How long killed processes may still write.
const DYING: Duration = Duration::from_secs(10);

pub(crate) struct Store {
    root: PathBuf,
    index: Mutex<HashMap<String, Kept>>,
    /// Directories below `staging/` that could not be removed; every sweep tries again.
    left: Mutex<Vec<PathBuf>>,
    /// What was handed to a thread, because a dropped future can not wait for it: cleaning, and work in what is cleaned.
    pub(crate) cleaning: TaskTracker,
}

struct Kept {
    record: Arc<Record>,
    /// When it was last found or published; not known of those that were there at the start.
    touched: Option<Instant>,
}

impl Kept {
    fn now(record: Arc<Record>) -> Self {
        Self { record, touched: Some(Instant::now()) }
    }
}

impl Store {
    /// Makes the directories, reads what is there, clears what a crash left. What can not be cleared is no reason not
    /// to start.
    pub(crate) fn open(root: &Path) -> Result<Self, PrepareError> {
        for dir in ["artefacts", "staging", "blobs", "cache"] {
            fs::create_dir_all(root.join(dir)).doing("making the artefact store")?;
        }
        let root = root.canonicalize().doing("opening the artefact store")?;
        let mut index = HashMap::new();
        for entry in fs::read_dir(root.join("artefacts")).doing("reading the artefact store")?.flatten() {
            if let Some(record) = read_record(&entry.path()) {
                let (key, record) = (record.pin.artefact.clone(), Arc::new(record));
                index.insert(key, Kept { record, touched: None });
            } else if let Err(error) = fs::rename(entry.path(), root.join("staging").join(entry.file_name()))
            {
                tracing::warn!("an artefact of another version stays until the next start: {error}");
            }
        }
        let left = fs::read_dir(root.join("staging")).doing("reading the staging directory")?;
        let left = left.flatten().map(|entry| entry.path()).collect();
        let (index, left) = (Mutex::new(index), Mutex::new(left));
        let store = Self { root, index, left, cleaning: TaskTracker::new() };
        store.remove_left();
        Ok(store)
    }

    fn left(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left());
        left.into_iter().for_each(|dir| self.remove_staged(dir));
    }

    /// As [`Self::remove_staged`], of a preparation that may have been dropped: the processes of its step are being
    /// killed, and until they are gone they may write.
    fn remove_patiently(&self, dir: PathBuf) {
        let end = Instant::now() + DYING;
        while tree::remove(&dir).is_err() && Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.remove_staged(dir);
    }

    fn remove_staged(&self, dir: PathBuf) {
        if let Err(error) = tree::remove(&dir) {
            tracing::warn!("a staging directory could not be removed, which is tried again later: {error}");
            self.left().push(dir);
        }
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn tree(&self, artefact: &str) -> PathBuf {
        self.root.join("artefacts").join(artefact).join("tree")
    }

    fn index(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, artefact: &str) -> Option<Arc<Record>> {
        let record = {
            let mut index = self.index();
            let kept = index.get_mut(artefact)?;
            kept.touched = Some(Instant::now());
            Arc::clone(&kept.record)
        };
        self.is_usable(&record).then_some(record)
    }

    /// An artefact of the same request, whatever lock it was made with.
    pub(crate) fn find_request(&self, request: &str) -> Option<Arc<Record>> {
        let keys: Vec<String> = {
            let index = self.index();
            let same = index.iter().filter(|(_, kept)| kept.record.request == request);
            same.map(|(key, _)| key.clone()).collect()
        };
        keys.iter().find_map(|key| self.find(key))
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

    /// Whether a tree is still what was sealed; one that is not is set aside, so that it is installed again. Looks at
    /// every entry and reads only what seems to have changed. Blocks.
    ///
    /// # Errors
    /// `tampered`, or the tree can not be read.
    pub(crate) fn check(&self, artefact: &str) -> Result<(), PrepareError> {
        let dir = self.root.join("artefacts").join(artefact);
        let manifest = match self.index().get(artefact) {
            Some(kept) => kept.record.manifest.clone(),
            None => {
                return Err(PrepareError::new(
                    ErrorCode::Tampered,
                    "the artefact is not in the store (any more)",
                ));
            }
        };
        let what = match integrity::check(&dir, &manifest) {
            Ok(State::AsSealed) => return Ok(()),
            Ok(State::Changed(path)) => format!("`{path}` was changed since it was installed"),
            Err(error) => format!("it can not be read: {error}"),
        };
        tracing::error!(artefact, "an installed tree is not what was installed, so it is set aside: {what}");
        self.set_aside(artefact)?;
        Err(PrepareError::new(
            ErrorCode::Tampered,
            format!("{what}; the files were set aside and are installed again"),
        ))
    }

    /// Keeps the newest few for whoever wants to know what happened.
    fn set_aside(&self, artefact: &str) -> Result<(), PrepareError> {
        let aside = self.root.join("tampered");
        fs::create_dir_all(&aside).doing("setting an artefact aside")?;
        self.index().remove(artefact);
        let target = aside.join(artefact);
        if target.exists() {
            tree::remove(&target).doing("setting an artefact aside")?;
        }
        let moved = fs::rename(self.root.join("artefacts").join(artefact), &target);
        match moved {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            moved => moved.doing("setting an artefact aside")?,
        }
        let mut kept: Vec<(SystemTime, PathBuf)> = fs::read_dir(&aside)
            .doing("reading what was set aside")?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| *path != target)
            .collect();
        kept.sort();
        let too_many = (kept.len() + 1).saturating_sub(MAX_ASIDE);
        kept.into_iter().take(too_many).for_each(|(_, path)| self.remove_staged(path));
        Ok(())
    }

    /// Writes the record, flushes everything to disk, and renames the staged tree into the store. An artefact of that
    /// name that is there already stays, unless it is broken.
    pub(crate) fn publish(&self, staging: &Staging, mut record: Record) -> Result<Arc<Record>, PrepareError> {
        let key = record.pin.artefact.clone();
        if let Some(there) = self.find(&key) {
            return Ok(there);
        }
        let made = staging.path().join("artefact");
        record.manifest = integrity::record(&made).doing("reading the installed tree")?;
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
        self.index().insert(key, Kept::now(Arc::clone(&record)));
        Ok(record)
    }

    /// Removes every artefact that `keeps` does not name and that was not touched for `grace`. Answers how many and how
    /// large. One that can not be removed stays, and is removed by a later call.
    pub(crate) fn sweep(
        self: &Arc<Self>,
        keeps: &HashSet<String>,
        grace: Duration,
    ) -> Result<(usize, u64), PrepareError> {
        self.remove_left();
        let grave = self.staging()?;
        let (mut removed, mut bytes) = (0, 0);
        // Renamed first: a half-removed tree must never be found under an artefact's name. With the index locked:
        // nobody finds it meanwhile, or stores one of the same name that would be renamed instead.
        self.index().retain(|key, kept| {
            let is_fresh = kept.touched.is_some_and(|at| at.elapsed() < grace);
            if is_fresh || keeps.contains(key) {
                return true;
            }
            match fs::rename(self.root.join("artefacts").join(key), grave.path().join(key)) {
                Ok(()) => {}
                // Somebody else removed it, so there is nothing to keep an entry for.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
                Err(error) => {
                    tracing::warn!("an artefact could not be removed, which is tried again later: {error}");
                    return true;
                }
            }
            removed += 1;
            bytes += kept.record.bytes;
            false
        });
        self.remove_staged(grave.path().to_owned());
        Ok((removed, bytes))
    }

    /// Takes the package managers' downloads away at once; removing them goes on after the return. Nothing may be using
    /// them.
    pub(crate) fn clear_cache(self: &Arc<Self>) -> Result<(), PrepareError> {
        let (cache, grave) = (self.dir("cache"), self.staging()?);
        fs::rename(&cache, grave.path().join("cache")).doing("clearing the download cache")?;
        fs::create_dir_all(cache).doing("making the download cache")
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

    /// Does something in it on another thread; it stays until that is done, also when nobody waits for it any more.
    pub(crate) fn occupy<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let store = Arc::clone(&self.store);
        store.cleaning.spawn_blocking(move || {
            let done = work();
            drop(self);
            done
        })
    }

    /// What becomes `artefacts/<key>/tree`.
    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.join("artefact/tree")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let dir = std::mem::take(&mut self.dir);
        let store = Arc::clone(&self.store);
        let clean = move || store.remove_patiently(dir);
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
    fn a_changed_artefact_is_set_aside_and_not_found_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let keys: Vec<String> = (0..6).map(|n| published(&store, &format!("r{n}"))).collect();
        for key in &keys {
            assert!(store.check(key).is_ok());
            fs::write(store.tree(key).join("added"), "").unwrap();
            assert_eq!(store.check(key).unwrap_err().code(), ErrorCode::Tampered);
            assert!(store.find(key).is_none());
            assert!(dir.path().join("tampered").join(key).join("tree/added").exists());
        }
        assert_eq!(fs::read_dir(dir.path().join("tampered")).unwrap().count(), MAX_ASIDE);
        let again = published(&store, "r0");
        assert_eq!(again, keys[0]);
        assert!(store.check(&again).is_ok() && store.find(&again).is_some());
    }

    #[test]
    fn a_change_is_found_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let key = published(&Arc::new(Store::open(dir.path()).unwrap()), "r");
        let store = Store::open(dir.path()).unwrap();
        assert!(store.check(&key).is_ok());
        fs::write(store.tree(&key).join("added"), "").unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().check(&key).unwrap_err().code(), ErrorCode::Tampered);
    }

    fn published(store: &Arc<Store>, request: &str) -> String {
        let staging = store.staging().unwrap();
        fs::create_dir_all(staging.tree()).unwrap();
        store.publish(&staging, record(request, "")).unwrap().pin.artefact.clone()
    }

    #[test]
    fn a_sweep_spares_what_was_just_published_or_found() {
        let dir = tempfile::tempdir().unwrap();
        let key = published(&Arc::new(Store::open(dir.path()).unwrap()), "r");
        let none = HashSet::new();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        assert!(store.find_request("r").is_some());
        assert_eq!(store.sweep(&none, GRACE).unwrap().0, 0, "found");
        let other = published(&store, "s");
        assert_eq!(store.sweep(&none, GRACE).unwrap().0, 0, "published");
        let store = Arc::new(Store::open(dir.path()).unwrap());
        assert_eq!(store.sweep(&none, GRACE).unwrap().0, 2, "nobody asked since the start");
        assert!(!store.tree(&key).exists() && !store.tree(&other).exists());
    }

    #[test]
    fn what_can_not_be_removed_stops_neither_the_start_nor_a_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let keys = ["a", "b", "c"].map(|request| published(&store, request));
        // A file in place of the artefacts' folder fails every rename, also for root.
        let (artefacts, aside) = (store.dir("artefacts"), store.dir("aside"));
        fs::rename(&artefacts, &aside).unwrap();
        fs::write(&artefacts, b"").unwrap();
        assert_eq!(store.sweep(&HashSet::new(), Duration::ZERO).unwrap().0, 0);
        fs::remove_file(&artefacts).unwrap();
        fs::rename(&aside, &artefacts).unwrap();
        assert!(keys.iter().all(|key| store.find(key).is_some()), "still in the index");
        assert_eq!(store.sweep(&HashSet::new(), Duration::ZERO).unwrap().0, 3);

        // A path through a file can not be removed by anyone.
        fs::write(store.dir("file"), b"").unwrap();
        store.remove_staged(store.dir("file").join("x"));
        assert_eq!(store.left().len(), 1);
        fs::remove_file(store.dir("file")).unwrap();
        store.sweep(&HashSet::new(), GRACE).unwrap();
        assert!(store.left().is_empty(), "tried again");
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
        let (removed, _) = store.sweep(&HashSet::from([keys[0].clone()]), Duration::ZERO).unwrap();
        assert_eq!(removed, 1);
        assert!(store.find(&keys[0]).is_some() && store.find(&keys[1]).is_none());
        assert!(!store.tree(&keys[1]).exists());
    }
}
