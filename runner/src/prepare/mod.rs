//! From a [`ServiceSpec`] to an installed, sealed, content-addressed artefact and the argument vector to start.
//!
//! ```text
//! resolve (network) ── request key ── found? ── yes ─────────────────────────────┐
//!      ▲                                  └─ no ─ fetch, install, build in staging ─ seal ─ publish ─ Prepared
//!      └ skipped when the pin's artefact is there: no network, no process
//! ```
//!
//! Here: the order of these steps, and what may run at once. Not here: starting anything, secrets of the service.
//! Invariant: dropping [`Workshop::prepare`] kills the running step and removes its staging directory.
//!
//! A deploy without a pin reuses an artefact of the same exact version with the dependencies that it was locked
//! with; newer dependencies come with a newer version, or when the artefact is gone.

mod address;
mod age;
mod archive;
mod blobs;
mod bundle;
mod checkout;
mod entry;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod git;
mod ground;
mod heard;
mod integrity;
mod job;
mod launch;
mod manager;
mod npm;
mod output;
mod project;
mod pypi;
mod python;
mod registries;
mod requirement;
mod setting;
mod step;
mod store;
mod tools;
mod tree;
mod unpack;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::Semaphore;
use wire::isolation::Policy;
use wire::runner::{Retain, Retained};
use wire::spec::{Pin, ServiceSpec};
use wire::{ErrorCode, Secret};

use crate::cell::Cells;
pub use checkout::checkout_of;
pub use error::PrepareError;
use registries::Registries;
use store::Store;
use tools::Tools;
pub(crate) use tree::remove as remove_tree;

/// Installs that run at the same time: they are bound by processor and disk, and one at a time would let a slow one
/// hold up all others.
const AT_ONCE: usize = 2;

/// Git fetches that run or hang at the same time. More than installs, because those that hang are not over.
const FETCHES: usize = 16;

/// Hears the output of the steps: `fetch`, `install` or `build`, and a line.
pub type ProgressSink = Arc<dyn Fn(&str, &str) + Send + Sync>;

#[derive(Debug, Clone)]
pub struct WorkshopConfig {
    pub root: PathBuf,
    /// URL schemes that git sources may have.
    pub git_schemes: Vec<String>,
    /// Most bytes that a git fetch may transfer.
    pub max_source_bytes: u64,
    pub max_artefact_bytes: u64,
    pub max_blob_bytes: u64,
    /// The package managers' downloads may grow past this until the next [`Workshop::retain`].
    pub max_cache_bytes: u64,
    /// For each step: fetch, install, build.
    pub step_timeout: Duration,
}

impl WorkshopConfig {
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            git_schemes: vec!["https".to_owned()],
            max_source_bytes: 256 << 20,
            max_artefact_bytes: 2 << 30,
            max_blob_bytes: 50 << 20,
            max_cache_bytes: 5 << 30,
            step_timeout: Duration::from_secs(300),
        }
    }
}

/// Ready to start. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub pin: Pin,
    /// Absolute program, entry, the spec's arguments.
    pub argv: Vec<String>,
    /// Project directory in the artefact; not writable.
    pub cwd: PathBuf,
    pub env: Vec<(String, String)>,
    /// What the server must see besides its home and the system's programs: the artefact's tree, runtimes, certificates.
    /// No symbolic link lies on the way to one.
    pub read_only: Vec<PathBuf>,
}

/// Makes artefacts. Clones share one store.
#[derive(Clone)]
pub struct Workshop {
    inner: Arc<Inner>,
}

struct Inner {
    config: WorkshopConfig,
    cells: Arc<Cells>,
    /// Asked for by the first install that needs them.
    registries: Arc<tokio::sync::Mutex<Option<Registries>>>,
    /// Found by whoever needs them first: asking every tool takes longer than a restart may. A missing one is looked
    /// for again when a source needs it.
    tools: tokio::sync::OnceCell<Mutex<Arc<Tools>>>,
    store: Arc<Store>,
    slots: Semaphore,
    fetches: Arc<Semaphore>,
    /// Held for reading by whoever may use the download cache, for writing by who takes it away.
    cache: Arc<tokio::sync::RwLock<()>>,
    /// One lock per request that is being worked on: the second of two equal deploys waits and reuses.
    requests: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Workshop {
    /// Makes the directories and clears what a crash left in staging. Every install step runs in one of the `cells`.
    ///
    /// # Errors
    /// The store's directory can not be made or read.
    pub async fn open(config: WorkshopConfig, cells: Arc<Cells>) -> Result<Self, PrepareError> {
        let root = config.root.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&root)).await;
        let store = store.map_err(|_| PrepareError::lost("opening the artefact store"))??;
        let inner = Inner {
            config,
            cells,
            registries: Arc::default(),
            tools: tokio::sync::OnceCell::new(),
            store: Arc::new(store),
            slots: Semaphore::new(AT_ONCE),
            fetches: Arc::new(Semaphore::new(FETCHES)),
            cache: Arc::default(),
            requests: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What this machine has, e.g. `node 20.20.2`; nothing until the tools were asked.
    pub fn known_tools(&self) -> Vec<String> {
        self.inner.tools.get().map(|tools| locked(tools).list()).unwrap_or_default()
    }

    /// Asks the tools, unless that was done.
    pub async fn find_tools(&self) {
        self.inner.tools().await;
    }

    /// Installs or reuses what the spec names. With a pin: exactly that, and without network if it is there. What is there
    /// is compared with what was sealed, and installed again when it differs.
    ///
    /// Cancel-safe: dropping the future kills the running step and removes its staging directory.
    /// The caller must count the artefact as in use for [`Workshop::retain`] as soon as it has the answer.
    ///
    /// # Errors
    /// A [`PrepareError`] with the code, the message for people and the last lines of the failed step.
    pub async fn prepare(
        &self,
        spec: &ServiceSpec,
        git_token: Option<&Secret>,
        pin: Option<&Pin>,
        policy: &Policy,
        progress: &ProgressSink,
    ) -> Result<Prepared, PrepareError> {
        let _uses_cache = self.inner.cache.read().await;
        let mut tools = self.inner.tools().await;
        let first =
            job::Preparation::new(&self.inner, &tools, spec, git_token, policy, progress)?.run(pin).await;
        // The operator may have done what the last such message said.
        match first {
            Err(error) if error.code() == ErrorCode::RuntimeMissing => {
                match self.inner.new_tools(&tools).await {
                    Some(found) => tools = found,
                    None => return Err(error),
                }
            }
            answer => return answer,
        }
        job::Preparation::new(&self.inner, &tools, spec, git_token, policy, progress)?.run(pin).await
    }

    /// Whether an artefact is still what was sealed: to be asked before every start that [`Workshop::prepare`] does not
    /// precede. Takes some milliseconds for thousands of files. One that was changed is set aside: prepare it again.
    ///
    /// # Errors
    /// `tampered`.
    pub async fn check(&self, artefact: &str) -> Result<(), PrepareError> {
        self.inner.check(artefact).await
    }

    pub fn has_blob(&self, sha256: &str) -> bool {
        blobs::path(&self.inner.store.dir("blobs"), sha256).is_ok_and(|path| path.is_file())
    }

    /// Stores an uploaded archive. An upload that breaks off or has other bytes than its name says leaves nothing.
    ///
    /// # Errors
    /// `invalid_args` for a wrong name or hash, `too_large`, `disk_full`.
    pub async fn put_blob<E: Display>(
        &self,
        sha256: &str,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), PrepareError> {
        blobs::put(&self.inner.store.dir("blobs"), sha256, self.inner.config.max_blob_bytes, body).await
    }

    /// Removes the artefacts that neither `keep` nor `in_use` names, and the blobs that `keep` does not name and that
    /// were not uploaded just now.
    ///
    /// Artefacts that were prepared just now stay as well. Empties the download cache when it is too large and nothing is
    /// being prepared.
    ///
    /// # Errors
    /// A directory of the store can not be read or written, or a blob can not be removed.
    pub async fn retain(&self, keep: &Retain, in_use: &HashSet<String>) -> Result<Retained, PrepareError> {
        let artefacts: HashSet<String> = keep.artefacts.iter().chain(in_use).cloned().collect();
        let keep_blobs: Vec<String> = keep.blobs.clone();
        let store = Arc::clone(&self.inner.store);
        let (cache, limit) = (Arc::clone(&self.inner.cache), self.inner.config.max_cache_bytes);
        let swept = tokio::task::spawn_blocking(move || {
            let (trees, tree_bytes) = store.sweep(&artefacts, store::GRACE)?;
            if tree::measure(&store.dir("cache")).bytes > limit
                && let Ok(_alone) = cache.try_write()
                && let Err(error) = store.clear_cache()
            {
                tracing::warn!("{error}; this is tried again later");
            }
            let keep = keep_blobs.iter().map(String::as_str).collect();
            let (files, file_bytes) = blobs::sweep(&store.dir("blobs"), &keep)?;
            Ok(Retained { removed: trees + files, freed_bytes: tree_bytes + file_bytes })
        });
        swept.await.map_err(|_| PrepareError::lost("removing artefacts"))?
    }

    /// Waits until the staging directories of ended and dropped preparations are removed.
    pub async fn settled(&self) {
        while !self.inner.store.cleaning.is_empty() {
            self.inner.store.cleaning.close();
            self.inner.store.cleaning.wait().await;
            self.inner.store.cleaning.reopen();
        }
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    async fn check(&self, artefact: &str) -> Result<(), PrepareError> {
        let (store, artefact) = (Arc::clone(&self.store), artefact.to_owned());
        let checked = tokio::task::spawn_blocking(move || store.check(&artefact)).await;
        checked.map_err(|_| PrepareError::lost("checking the artefact"))?
    }

    async fn tools(&self) -> Arc<Tools> {
        let tools = self.tools.get_or_init(|| async { Mutex::new(Arc::new(Tools::find().await)) }).await;
        Arc::clone(&locked(tools))
    }

    /// Looks again for the tools that are missing from `known`; `None` when they still are.
    async fn new_tools(&self, known: &Arc<Tools>) -> Option<Arc<Tools>> {
        let current = self.tools().await;
        if !Arc::ptr_eq(&current, known) {
            return Some(current); // another preparation looked meanwhile
        }
        let found = Arc::new(current.look_again().await?);
        *locked(self.tools.get()?) = Arc::clone(&found);
        Some(found)
    }

    fn request_lock(&self, request: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut requests = locked(&self.requests);
        requests.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = requests.get(request).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        requests.insert(request.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_download_cache_over_its_limit_is_emptied_unless_it_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let config = WorkshopConfig { max_cache_bytes: 3, ..WorkshopConfig::new(dir.path().to_owned()) };
        let listen = crate::Listen::Unix(dir.path().join("socket"));
        let runner = crate::RunnerConfig::new(dir.path().to_owned(), listen, "/bin/false".into());
        let workshop = Workshop::open(config, Arc::new(Cells::new(&runner))).await.unwrap();
        let file = dir.path().join("cache/file");
        let keep = Retain { artefacts: Vec::new(), blobs: Vec::new() };
        let retain = async || workshop.retain(&keep, &HashSet::new()).await.unwrap();
        std::fs::write(&file, b"1234").unwrap();
        let preparing = workshop.inner.cache.read().await;
        retain().await;
        assert!(file.exists(), "in use");
        drop(preparing);
        retain().await;
        assert!(!file.exists(), "over the limit");
        std::fs::write(&file, b"123").unwrap();
        retain().await;
        assert!(file.exists(), "within the limit");
    }
}
