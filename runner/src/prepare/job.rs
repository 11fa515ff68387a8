//! One preparation: read the source, resolve it, reuse or build its artefact, say how it starts.
//!
//! Not here: how each kind of source is fetched and installed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use wire::isolation::Policy;
use wire::spec::{Pin, ServiceSpec, Source};
use wire::{ErrorCode, Secret};

use super::age::MinAge;
use super::entry::Project;
use super::error::PrepareError;
use super::git;
use super::launch::{Launch, choose};
use super::npm::{self, Resolved};
use super::project::{self, Wishes};
use super::step::{Bed, Bench, InCells};
use super::store::{Record, Staging, artefact_key};
use super::tools::Tools;
use super::wanted::{Exact, Wanted};
use super::{Inner, Prepared, ProgressSink, archive, bundle, entry, ground, pypi, setting, tree};

const MAX_FILES: u64 = 200_000;
/// Where a git or archive source is, relative to the tree; the Python environment is beside it.
const SOURCE_DIR: &str = "src";

/// An installed tree, not sealed yet.
struct Built {
    pin: Pin,
    launches: Vec<Launch>,
    is_bundle: bool,
    project: String,
    interpreter: Option<PathBuf>,
}

pub(crate) struct Preparation<'a> {
    inner: &'a Arc<Inner>,
    tools: &'a Arc<Tools>,
    spec: &'a ServiceSpec,
    token: Option<&'a Secret>,
    policy: &'a Policy,
    progress: &'a ProgressSink,
    wanted: Wanted,
}

impl<'a> Preparation<'a> {
    pub(crate) fn new(
        inner: &'a Arc<Inner>,
        tools: &'a Arc<Tools>,
        spec: &'a ServiceSpec,
        token: Option<&'a Secret>,
        policy: &'a Policy,
        progress: &'a ProgressSink,
    ) -> Result<Self, PrepareError> {
        let wanted = Wanted::read(&spec.source, &inner.config.git_schemes, &inner.store.dir("blobs"))?;
        if let Some(wanted) = &spec.entry {
            entry::check_wanted(wanted)?;
        }
        if spec.args.iter().any(|arg| arg.contains('\0')) {
            return Err(PrepareError::new(
                ErrorCode::InvalidArgs,
                "an argument has a NUL character; leave it out",
            ));
        }
        Ok(Self { inner, tools, spec, token, policy, progress, wanted })
    }

    pub(crate) async fn run(self, pin: Option<&Pin>) -> Result<Prepared, PrepareError> {
        if let Some(pin) = pin {
            self.wanted.check_pin(pin)?;
            if let Some(record) = self.inner.store.find(&pin.artefact)
                && self.may_reuse(&record)
                && self.is_intact(&record).await?
            {
                return self.finish(&record);
            }
        }
        let staging = Arc::new(self.inner.store.staging()?);
        let bench = self.bench(&staging);
        let exact = match pin {
            Some(pin) => Exact {
                name: pin.name.clone(),
                version: pin.version.clone(),
                integrity: pin.integrity.clone(),
                lock: Some(pin.lock.clone()).filter(|lock| !lock.is_empty()),
            },
            None => self.resolve(&bench, &staging).await?,
        };
        let request = self.wanted.request(&exact, self.spec, self.tools).key();
        let lock = self.inner.request_lock(&request);
        let _alone = lock.lock().await;
        let known = match &exact.lock {
            Some(lock) => self.inner.store.find(&artefact_key(&request, lock)),
            None => self.inner.store.find_request(&request),
        };
        if let Some(record) = known
            && self.is_intact(&record).await?
        {
            self.say("install", "already installed");
            return self.finish(&record);
        }
        let _slot =
            self.inner.slots.acquire().await.map_err(|_| PrepareError::lost("waiting for other installs"))?;
        let built = self.build(&bench, &staging, &exact).await?;
        let record = self.store(request, built, staging, &bench).await?;
        self.finish(&record)
    }

    /// Which file of a source is started, and how it was installed, is in an artefact but in no pin. Who agreed to give a
    /// service their secrets agreed to the spec, so it is not enough that somebody names an artefact of the same source.
    fn may_reuse(&self, record: &Record) -> bool {
        let Pin { name, version, integrity, .. } = record.pin.clone();
        let exact = Exact { name, version, integrity, lock: None };
        self.spec.vault.is_empty()
            || record.request == self.wanted.request(&exact, self.spec, self.tools).key()
    }

    /// False when it was changed since its installation; it is set aside then.
    async fn is_intact(&self, record: &Arc<Record>) -> Result<bool, PrepareError> {
        match self.inner.check(&record.pin.artefact).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == ErrorCode::Tampered => {
                self.say("install", &error.to_string());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn say(&self, step: &str, line: &str) {
        (self.progress)(step, line);
    }

    fn limits(&self) -> tree::Limits {
        tree::Limits { bytes: self.inner.config.max_artefact_bytes, files: MAX_FILES }
    }

    fn bench(&self, staging: &Arc<Staging>) -> Bench {
        Bench {
            tools: Arc::clone(self.tools),
            progress: Arc::clone(self.progress),
            staging: staging.path().to_owned(),
            cache: self.inner.store.dir("cache"),
            timeout: self.inner.config.step_timeout,
            limits: self.limits(),
            min_age: MinAge::seconds(self.policy.min_release_age_s),
            bed: Bed::Cells(Box::new(InCells {
                staging: Arc::clone(staging),
                cells: Arc::clone(&self.inner.cells),
                least: self
                    .spec
                    .isolation
                    .map_or(self.policy.min_isolation, |own| own.max(self.policy.min_isolation)),
                registries: Arc::clone(&self.inner.registries),
                lease: tokio::sync::OnceCell::new(),
            })),
            n_steps: AtomicU64::new(1),
            is_tainted: AtomicBool::new(false),
        }
    }

    async fn resolve(&self, bench: &Bench, staging: &Arc<Staging>) -> Result<Exact, PrepareError> {
        match &self.wanted {
            Wanted::Npm(wanted) => {
                let Resolved { version, integrity } = npm::resolve(bench, wanted).await?;
                Ok(Exact {
                    name: wanted.name.clone(),
                    version,
                    integrity: integrity.unwrap_or_default(),
                    lock: None,
                })
            }
            Wanted::Py(wanted) => {
                let locked = pypi::resolve(bench, wanted, self.spec.allow_scripts).await?;
                let (version, integrity) = (locked.version, locked.integrity);
                Ok(Exact { name: wanted.name.clone(), version, integrity, lock: Some(locked.lock) })
            }
            Wanted::Git(source) => {
                let job = self.git_job(source, staging);
                let version =
                    git::off_thread(&self.inner.fetches, job, self.inner.config.step_timeout, git::resolve)
                        .await?;
                self.say("fetch", &format!("commit {version}"));
                Ok(Exact { name: source.url.clone(), integrity: version.clone(), version, lock: None })
            }
            Wanted::Archive { sha256, .. } => {
                let label = match &self.spec.source {
                    Source::Archive { label, .. } if !label.is_empty() => label.as_str(),
                    _ => "archive",
                };
                Ok(Exact {
                    name: label.to_owned(),
                    version: sha256.clone(),
                    integrity: sha256.clone(),
                    lock: None,
                })
            }
        }
    }

    fn git_job(&self, source: &super::address::GitSource, staging: &Arc<Staging>) -> Arc<git::Job> {
        let limits = (self.inner.config.max_source_bytes, self.limits());
        Arc::new(git::Job::new(
            source.clone(),
            self.token,
            Arc::clone(self.progress),
            limits,
            Arc::clone(staging),
        ))
    }

    async fn build(
        &self,
        bench: &Bench,
        staging: &Arc<Staging>,
        exact: &Exact,
    ) -> Result<Built, PrepareError> {
        let tree = staging.tree();
        let lock = exact.lock.as_deref();
        let pin = |integrity: &str, lock: String| Pin {
            kind: self.wanted.kind().to_owned(),
            name: exact.name.clone(),
            version: exact.version.clone(),
            integrity: integrity.to_owned(),
            artefact: String::new(),
            lock,
        };
        match &self.wanted {
            Wanted::Npm(wanted) => {
                let integrity = Some(exact.integrity.clone()).filter(|i| !i.is_empty());
                let resolved = Resolved { version: exact.version.clone(), integrity };
                let what = (wanted.name.as_str(), &resolved);
                let made = npm::install(bench, &tree, what, lock, self.spec.allow_scripts).await?;
                let pin = pin(&made.integrity, made.lock);
                let (is_bundle, project, interpreter) = (false, String::new(), None);
                Ok(Built { pin, launches: made.launches, is_bundle, project, interpreter })
            }
            Wanted::Py(wanted) => {
                let lock = lock.ok_or_else(|| PrepareError::lost("resolving the package"))?;
                pypi::install(bench, &tree, lock, self.spec.allow_scripts, &wanted.spec()).await?;
                let launches = pypi::launches(&tree, &wanted.name)?;
                let interpreter = project::interpreter(&tree);
                let pin = pin(&exact.integrity, lock.to_owned());
                Ok(Built { pin, launches, is_bundle: false, project: String::new(), interpreter })
            }
            Wanted::Git(_) | Wanted::Archive { .. } => {
                let project = self.fetch_source(bench, staging, exact).await?;
                let place = Project { tree: &tree, project: &project, wanted: self.spec.entry.as_deref() };
                let (runtime, allow_scripts) = (self.spec.runtime, self.spec.allow_scripts);
                let made = project::install(bench, place, &Wishes { runtime, allow_scripts, lock }).await?;
                let pin = pin(&exact.integrity, made.lock);
                let is_bundle = made.launch.is_none();
                let launches = made.launch.into_iter().collect();
                Ok(Built { pin, launches, is_bundle, project, interpreter: made.interpreter })
            }
        }
    }

    /// Puts the source below `tree/src`; answers the project's directory relative to the tree.
    async fn fetch_source(
        &self,
        bench: &Bench,
        staging: &Arc<Staging>,
        exact: &Exact,
    ) -> Result<String, PrepareError> {
        let tree = staging.tree();
        let into = tree.join(SOURCE_DIR);
        let dir = match &self.wanted {
            Wanted::Git(source) => {
                let (job, commit, target) =
                    (self.git_job(source, staging), exact.version.clone(), into.clone());
                let fetch = move |job: &git::Job| git::checkout(job, &commit, &target);
                git::off_thread(&self.inner.fetches, job, bench.timeout, fetch).await?;
                git::project_dir(&into, source.subdir.as_deref())?
            }
            Wanted::Archive { format, blob, .. } => {
                if !blob.is_file() {
                    let message =
                        "the archive is not on the runner (any more); upload it again by deploying again";
                    return Err(PrepareError::new(ErrorCode::UploadNotFound, message));
                }
                self.say("fetch", "unpacking the archive");
                let (blob, format, limits, held) =
                    (blob.clone(), *format, self.limits(), Arc::clone(staging));
                let unpacked = tokio::task::spawn_blocking(move || {
                    let _held = held;
                    archive::unpack(&blob, format, &into, limits)
                });
                unpacked.await.map_err(|_| PrepareError::lost("unpacking the archive"))??
            }
            Wanted::Npm(_) | Wanted::Py(_) => return Err(PrepareError::lost("fetching a package")),
        };
        let relative = dir.strip_prefix(&tree).map_err(|_| PrepareError::lost("finding the project"))?;
        relative
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| PrepareError::refused("the folder's name is not UTF-8"))
    }

    async fn store(
        &self,
        request: String,
        built: Built,
        staging: Arc<Staging>,
        bench: &Bench,
    ) -> Result<Arc<Record>, PrepareError> {
        self.say("install", "sealing");
        let uids = bench.uids();
        let (store, limits) = (Arc::clone(&self.inner.store), self.limits());
        let sealed = tokio::task::spawn_blocking(move || {
            let interpreters: Vec<PathBuf> = built.interpreter.into_iter().collect();
            let size = tree::seal(&staging.tree(), limits, &interpreters, &uids)?;
            let venv = staging.tree().join(pypi::VENV).is_dir().then(|| pypi::VENV.to_owned());
            let mut record = Record::new(request, built.pin, built.launches);
            record.bundle = built.is_bundle;
            record.project = built.project;
            record.venv = venv;
            (record.bytes, record.files) = (size.bytes, size.files);
            store.publish(&staging, record)
        });
        sealed.await.map_err(|_| PrepareError::lost("sealing the artefact"))?
    }

    /// How the spec starts the artefact. Reads at most one small file, so that a warm start stays quick.
    fn finish(&self, record: &Record) -> Result<Prepared, PrepareError> {
        let tree = self.inner.store.tree(&record.pin.artefact);
        let cwd = tree.join(&record.project);
        let mut env = self.environment(record, &tree);
        let launch = if record.bundle {
            let manifest = bundle::read(&cwd)?.ok_or_else(|| PrepareError::lost("reading the bundle"))?;
            let has_args = !self.spec.args.is_empty();
            let (launch, own) = manifest.launch(&tree, &record.project, &self.spec.env_names, has_args)?;
            // A bundle may set its own variables, but not change how programs are found and loaded.
            env.extend(own.into_iter().filter(|(name, _)| is_harmless(name)));
            launch
        } else {
            self.choose(record)?.clone()
        };
        let mut argv = launch.argv(&tree, &cwd, self.tools)?;
        argv.extend(self.spec.args.iter().cloned());
        let interpreter = record.venv.as_ref().map(|venv| tree.join(venv).join("bin/python"));
        let mut read_only = ground::shown_to_servers(self.tools, &tree, interpreter.as_deref());
        let (certificates, bundles) = setting::certificates();
        env.extend(certificates.into_iter().filter(|(name, _)| !env_has(&self.spec.env_names, name)));
        read_only.extend(bundles);
        ground::plain(&mut read_only);
        Ok(Prepared { pin: record.pin.clone(), argv, cwd, env, read_only })
    }

    fn choose<'r>(&self, record: &'r Record) -> Result<&'r Launch, PrepareError> {
        match (&self.spec.source, &self.wanted) {
            (Source::Npx { bin, .. }, Wanted::Npm(wanted)) => {
                choose(&record.launches, bin.as_deref(), wanted.last_part())
            }
            (Source::Uvx { bin, .. }, Wanted::Py(wanted)) => {
                choose(&record.launches, bin.as_deref(), &wanted.name)
            }
            _ => choose(&record.launches, None, ""),
        }
    }

    fn environment(&self, record: &Record, tree: &Path) -> Vec<(String, String)> {
        let venv = record.venv.as_ref().map(|venv| tree.join(venv));
        let bin = venv.as_ref().map(|venv| venv.join("bin"));
        let mut env = vec![
            ("PATH".to_owned(), self.tools.run_path(bin.as_deref())),
            ("NODE_ENV".to_owned(), "production".to_owned()),
            // The tree is read-only and its bytecode is there.
            ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
        ];
        env.extend(venv.map(|venv| ("VIRTUAL_ENV".to_owned(), venv.to_string_lossy().into_owned())));
        env
    }
}

fn env_has(names: &[String], name: &str) -> bool {
    names.iter().any(|named| named == name)
}

fn is_harmless(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let loads = ["PATH", "NODE_OPTIONS", "BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONHOME", "HOME", "TMPDIR"];
    !loads.contains(&upper.as_str())
        && !upper.starts_with("LD_")
        && !name.is_empty()
        && !name.contains(['=', '\0'])
}
