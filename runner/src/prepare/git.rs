//! Git repositories through libgit2: reference to commit, a shallow fetch, and a checkout that runs nothing.
//!
//! Here: resolving, credentials, limits, checkout. Not here: what a URL may be ([`super::address`]), what is built.
//! Invariant: no git program, hook, filter or submodule is ever run or fetched; the token reaches one host only.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use git2::{
    AutotagOption, Cred, Direction, ErrorClass, FetchOptions, ObjectType, Oid, ProxyOptions, RemoteCallbacks,
    Repository, RepositoryInitOptions,
};
use tokio::sync::Semaphore;
use wire::{ErrorCode, Secret};

use super::ProgressSink;
use super::address::{GitSource, authority};
use super::error::{Doing, PrepareError};
use super::store::Staging;
use super::tree::Limits;
use super::unpack::{Unpack, rejected};

const MAX_LINK_BYTES: u64 = 4096;

/// One fetch, shared with the thread that does it.
pub(crate) struct Job {
    pub(crate) source: GitSource,
    pub(crate) token: Option<Secret>,
    pub(crate) progress: ProgressSink,
    /// Most bytes that may come over the network.
    pub(crate) max_fetch: u64,
    pub(crate) checkout: Limits,
    /// Held by the thread too: an abandoned fetch must not write into a directory that is gone.
    pub(crate) staging: Arc<Staging>,
    cancelled: AtomicBool,
    trouble: AtomicU8,
}

/// Why our own callbacks stopped libgit2, which reports only that they did.
const NONE: u8 = 0;
const WANTS_TOKEN: u8 = 1;
const REFUSES_TOKEN: u8 = 2;
const TOO_LARGE: u8 = 3;

impl Job {
    pub(crate) fn new(
        source: GitSource,
        token: Option<&Secret>,
        progress: ProgressSink,
        limits: (u64, Limits),
        staging: Arc<Staging>,
    ) -> Self {
        let (max_fetch, checkout) = limits;
        let (cancelled, trouble) = (AtomicBool::new(false), AtomicU8::new(NONE));
        Self { source, token: token.cloned(), progress, max_fetch, checkout, staging, cancelled, trouble }
    }
}

/// Tells the thread to stop, when nobody waits for it any more.
struct CancelOnDrop(Arc<Job>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread that may block, within the time limit.
///
/// libgit2 has no timeout of its own: the thread of a host that stays silent may never end. It keeps its place in
/// `threads`, so that such threads can not take over the pool that everything else uses too.
pub(crate) async fn off_thread<T: Send + 'static>(
    threads: &Arc<Semaphore>,
    job: Arc<Job>,
    limit: Duration,
    work: impl FnOnce(&Job) -> Result<T, PrepareError> + Send + 'static,
) -> Result<T, PrepareError> {
    let _cancel = CancelOnDrop(Arc::clone(&job));
    let seconds = limit.as_secs();
    let timeout = |message: String| PrepareError::new(ErrorCode::InstallTimeout, message);
    let until = tokio::time::Instant::now() + limit;
    let place = tokio::time::timeout_at(until, Arc::clone(threads).acquire_owned()).await.map_err(|_| {
        timeout(format!(
            "other fetches took every place for {seconds} s; deploy again later, or restart the runner if their hosts hang"
        ))
    })?;
    let place = place.map_err(|_| PrepareError::lost("waiting for other fetches"))?;
    let thread = tokio::task::spawn_blocking(move || {
        let _place = place;
        work(&job)
    });
    match tokio::time::timeout_at(until, thread).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(PrepareError::lost("fetching the repository")),
        Err(_) => Err(timeout(format!("fetching the repository was stopped after {seconds} s"))),
    }
}

/// The full commit id that the reference means now.
pub(crate) fn resolve(job: &Job) -> Result<String, PrepareError> {
    let wanted = job.source.reference.as_deref();
    (job.progress)("fetch", &format!("looking up {} of {}", wanted.unwrap_or("HEAD"), job.source.url));
    let heads = list(job)?;
    if let Some(commit) = pick(&heads, wanted) {
        return Ok(commit);
    }
    // An abbreviated id that is no tip: only the whole history can tell.
    let wanted = wanted.unwrap_or("HEAD");
    let is_abbreviated = (7..40).contains(&wanted.len()) && wanted.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_abbreviated {
        return Err(no_such_ref(wanted));
    }
    let repo = repository(job)?;
    fetch_refs(job, &repo, EVERYTHING, 0)?;
    let found = repo.find_commit_by_prefix(wanted).map(|commit| commit.id().to_string());
    found.map_err(|_| no_such_ref(wanted))
}

const EVERYTHING: &[&str] = &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];

fn no_such_ref(wanted: &str) -> PrepareError {
    PrepareError::new(
        ErrorCode::RefNotFound,
        format!("the repository has no branch, tag or commit `{wanted}`; check `--ref`"),
    )
}

/// Every reference that the server offers.
fn list(job: &Job) -> Result<Vec<(String, String)>, PrepareError> {
    let mut remote = git2::Remote::create_detached(job.source.url.as_str()).map_err(|e| explain(job, &e))?;
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    let connection = remote
        .connect_auth(Direction::Fetch, Some(callbacks(job)), Some(proxy))
        .map_err(|e| explain(job, &e))?;
    let heads = connection.list().map_err(|e| explain(job, &e))?;
    Ok(heads.iter().map(|head| (head.name().to_owned(), head.oid().to_string())).collect())
}

/// Branch before tag, as `git clone --branch` does; a tag means the commit that it points to.
fn pick(heads: &[(String, String)], wanted: Option<&str>) -> Option<String> {
    let find = |name: &str| heads.iter().find(|(n, _)| n == name).map(|(_, id)| id.clone());
    let Some(wanted) = wanted else { return find("HEAD") };
    let named = [
        format!("refs/heads/{wanted}"),
        format!("refs/tags/{wanted}^{{}}"),
        format!("refs/tags/{wanted}"),
        format!("{wanted}^{{}}"),
    ];
    let by_name = named.iter().find_map(|name| find(name));
    by_name.or_else(|| wanted.starts_with("refs/").then(|| find(wanted)).flatten()).or_else(|| {
        let lower = wanted.to_ascii_lowercase();
        let is_full = lower.len() == 40 && lower.bytes().all(|b| b.is_ascii_hexdigit());
        is_full.then_some(lower)
    })
}

fn repository(job: &Job) -> Result<Repository, PrepareError> {
    let dir = job.staging.path().join("repo.git");
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    let open = if dir.exists() { Repository::open_bare(&dir) } else { Repository::init_opts(&dir, &options) };
    open.map_err(|e| explain(job, &e))
}

fn fetch_refs(job: &Job, repo: &Repository, refs: &[&str], depth: i32) -> Result<(), PrepareError> {
    let mut remote = repo.remote_anonymous(&job.source.url).map_err(|e| explain(job, &e))?;
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks(job))
        .proxy_options(proxy)
        .download_tags(AutotagOption::None)
        .depth(depth);
    remote.fetch(refs, Some(&mut options), None).map_err(|e| explain(job, &e))
}

/// Fetches the commit, alone when the server allows it, and writes its files to `into`.
pub(crate) fn checkout(job: &Job, commit: &str, into: &Path) -> Result<(), PrepareError> {
    let repo = repository(job)?;
    let id = Oid::from_str(commit).map_err(|_| no_such_ref(commit))?;
    let has = |repo: &Repository| repo.find_commit(id).is_ok();
    if !has(&repo) {
        (job.progress)("fetch", &format!("fetching commit {commit}"));
        let named = job.source.reference.as_deref().filter(|r| !r.eq_ignore_ascii_case(commit));
        let first = match named {
            Some(name) if name.starts_with("refs/") => vec![format!("+{name}:refs/fetched")],
            Some(name) => vec![
                format!("+refs/heads/{name}:refs/fetched"),
                format!("+refs/tags/{name}:refs/fetched-tag"),
            ],
            None => vec![format!("+{commit}:refs/fetched")],
        };
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        // Not every server serves single commits or shallow histories; then everything is fetched.
        let shallow = fetch_refs(job, &repo, &first, 1);
        if job.trouble.load(Ordering::Relaxed) != NONE || job.cancelled.load(Ordering::Relaxed) {
            shallow?;
        }
        if !has(&repo) {
            fetch_refs(job, &repo, EVERYTHING, 0)?;
        }
    }
    let commit = repo.find_commit(id).map_err(|_| no_such_ref(commit))?;
    let mut out = Unpack::into(into, job.checkout, ErrorCode::TooBig)?;
    size_of(job, &repo, commit.tree_id(), &out)?;
    let tree = commit.tree().map_err(|e| explain(job, &e))?;
    write_tree(job, &repo, &tree, "", &mut out)?;
    out.finish()
}

fn write_tree(
    job: &Job,
    repo: &Repository,
    tree: &git2::Tree<'_>,
    prefix: &str,
    out: &mut Unpack,
) -> Result<(), PrepareError> {
    for entry in tree.iter() {
        if job.cancelled.load(Ordering::Relaxed) {
            return Err(PrepareError::lost("the checkout"));
        }
        let name = std::str::from_utf8(entry.name_bytes())
            .map_err(|_| rejected("a file name is not UTF-8".into()))?;
        if name.contains('/') || matches!(name.to_ascii_lowercase().as_str(), ".git" | "git~1" | "." | "..") {
            return Err(rejected(format!("an entry is called `{}`", name.escape_debug())));
        }
        let path = format!("{prefix}{name}");
        match entry.kind() {
            Some(ObjectType::Tree) => {
                out.dir(&path)?;
                size_of(job, repo, entry.id(), out)?;
                let tree = repo.find_tree(entry.id()).map_err(|e| explain(job, &e))?;
                write_tree(job, repo, &tree, &format!("{path}/"), out)?;
            }
            Some(ObjectType::Blob) => {
                let size = size_of(job, repo, entry.id(), out)?;
                if entry.filemode() == 0o120_000 && size > MAX_LINK_BYTES {
                    return Err(rejected(format!("the link `{path}` has no readable target")));
                }
                let blob = repo.find_blob(entry.id()).map_err(|e| explain(job, &e))?;
                match entry.filemode() {
                    0o120_000 => {
                        let target = std::str::from_utf8(blob.content())
                            .map_err(|_| rejected(format!("the link `{path}` has no readable target")))?;
                        out.link(&path, target)?;
                    }
                    mode => out.file(&path, mode & 0o111 != 0, &mut blob.content())?,
                }
            }
            Some(ObjectType::Commit) => {
                (job.progress)(
                    "fetch",
                    &format!("submodule `{path}` is not fetched; its folder stays empty"),
                );
                out.dir(&path)?;
            }
            _ => return Err(rejected(format!("`{path}` is of a kind that a tree can not have"))),
        }
    }
    Ok(())
}

/// An object is inflated whole when it is looked up, so its size is asked first: a few KiB may inflate to gigabytes.
fn size_of(job: &Job, repo: &Repository, id: Oid, out: &Unpack) -> Result<u64, PrepareError> {
    let header = repo.odb().and_then(|odb| odb.read_header(id));
    let size = header.map_err(|e| explain(job, &e))?.0 as u64;
    out.has_room(size)?;
    Ok(size)
}

/// The project folder of a checkout.
pub(crate) fn project_dir(checkout: &Path, subdir: Option<&str>) -> Result<PathBuf, PrepareError> {
    let Some(subdir) = subdir else { return Ok(checkout.to_owned()) };
    let root = checkout.canonicalize().doing("reading the checkout")?;
    let dir = root.join(subdir).canonicalize().ok().filter(|dir| dir.starts_with(&root) && dir.is_dir());
    dir.and_then(|dir| Some(checkout.join(dir.strip_prefix(&root).ok()?))).ok_or_else(|| {
        let message = format!("the repository has no folder `{subdir}`; check `--subdir`");
        PrepareError::new(ErrorCode::SubdirNotFound, message)
    })
}

fn callbacks(job: &Job) -> RemoteCallbacks<'_> {
    let mut callbacks = RemoteCallbacks::new();
    let mut tried = false;
    callbacks.credentials(move |url, _, _| {
        let same_host = authority(url).is_some_and(|host| Some(host) == authority(&job.source.url));
        let token = job.token.as_ref().filter(|_| same_host);
        match token {
            Some(token) if !std::mem::replace(&mut tried, true) => {
                Cred::userpass_plaintext("x-access-token", token.expose())
            }
            Some(_) => Err(stop(job, REFUSES_TOKEN)),
            None => Err(stop(job, WANTS_TOKEN)),
        }
    });
    let mut shown = Instant::now();
    callbacks.transfer_progress(move |progress| {
        let bytes = progress.received_bytes() as u64;
        if bytes > job.max_fetch {
            job.trouble.store(TOO_LARGE, Ordering::Relaxed);
            return false;
        }
        if shown.elapsed() > Duration::from_millis(500) {
            shown = Instant::now();
            let (have, all) = (progress.received_objects(), progress.total_objects());
            (job.progress)("fetch", &format!("{have} of {all} objects, {} KiB", bytes >> 10));
        }
        !job.cancelled.load(Ordering::Relaxed)
    });
    callbacks.sideband_progress(move |_| !job.cancelled.load(Ordering::Relaxed));
    callbacks
}

fn stop(job: &Job, trouble: u8) -> git2::Error {
    job.trouble.store(trouble, Ordering::Relaxed);
    git2::Error::from_str("stopped")
}

/// Our own reason first; then what libgit2 says.
fn explain(job: &Job, error: &git2::Error) -> PrepareError {
    let url = &job.source.url;
    let text = error.message();
    let denied = |message: String| PrepareError::new(ErrorCode::SourceDenied, message);
    match job.trouble.load(Ordering::Relaxed) {
        WANTS_TOKEN => {
            return denied(format!(
                "{url} asks for a credential: it is private or does not exist; deploy with `--git-token-file PATH`"
            ));
        }
        REFUSES_TOKEN => return denied(format!("{url} refuses the given token; check what it may read")),
        TOO_LARGE => {
            let message =
                format!("{url} is larger than {} MiB; deploy a smaller repository", job.max_fetch >> 20);
            return PrepareError::new(ErrorCode::TooBig, message);
        }
        _ => {}
    }
    if text.contains("No space left") {
        return PrepareError::disk_full();
    }
    match error.class() {
        ErrorClass::Http if text.contains("404") => PrepareError::new(
            ErrorCode::SourceNotFound,
            format!("there is no repository at {url}; check the spelling"),
        ),
        ErrorClass::Http if text.contains("403") || text.contains("401") => {
            denied(format!("{url} refuses access; check the token"))
        }
        ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Os => {
            let message = format!("{url} could not be reached ({text}); check the runner's network");
            PrepareError::new(ErrorCode::SourceUnreachable, message)
        }
        _ => PrepareError::new(ErrorCode::InstallFailed, format!("{url} could not be fetched: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;

    fn job(dir: &Path, bytes: u64) -> Arc<Job> {
        let store = Arc::new(Store::open(&dir.join("store")).unwrap());
        let source = GitSource { url: "https://h/x".into(), reference: None, subdir: None };
        let limits = (1 << 20, Limits { bytes, files: 100 });
        Arc::new(Job::new(
            source,
            None,
            Arc::new(|_: &str, _: &str| {}),
            limits,
            Arc::new(store.staging().unwrap()),
        ))
    }

    #[test]
    fn a_blob_that_inflates_past_the_limit_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init_bare(dir.path().join("repo")).unwrap();
        let blob = repo.blob(&vec![0; 8 << 20]).unwrap();
        for mode in [0o100_644, 0o120_000] {
            let mut tree = repo.treebuilder(None).unwrap();
            tree.insert("zeros", blob, mode).unwrap();
            let tree = repo.find_tree(tree.write().unwrap()).unwrap();
            let into = dir.path().join(format!("out-{mode:o}"));
            let job = job(dir.path(), 1 << 20);
            let mut out = Unpack::into(&into, job.checkout, ErrorCode::TooBig).unwrap();
            let error = write_tree(&job, &repo, &tree, "", &mut out).unwrap_err();
            assert_eq!(error.code(), ErrorCode::TooBig, "{mode:o}: {error}");
            assert_eq!(into.read_dir().unwrap().count(), 0, "{mode:o}: the blob was read and written");
        }
    }

    #[tokio::test]
    async fn a_hanging_fetch_keeps_its_place_and_nobody_waits_for_it_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), 1);
        let threads = Arc::new(Semaphore::new(1));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let short = Duration::from_millis(20);
        let hung = off_thread(&threads, Arc::clone(&job), short, move |_| {
            hang.recv().unwrap();
            Ok(())
        })
        .await;
        assert_eq!(hung.unwrap_err().code(), ErrorCode::InstallTimeout);
        assert_eq!(threads.available_permits(), 0, "the thread is still there");
        let next = off_thread(&threads, Arc::clone(&job), short, |_| Ok(())).await.unwrap_err();
        assert_eq!(next.code(), ErrorCode::InstallTimeout);
        assert!(next.to_string().contains("other fetches"), "{next}");
        release.send(()).unwrap();
        off_thread(&threads, job, Duration::from_secs(60), |_| Ok(())).await.unwrap();
    }

    #[test]
    fn a_reference_is_a_branch_then_a_peeled_tag_then_a_commit() {
        let (branch, tag, object) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let heads: Vec<(String, String)> = [
            ("HEAD", &branch),
            ("refs/heads/main", &branch),
            ("refs/tags/v1", &object),
            ("refs/tags/v1^{}", &tag),
        ]
        .map(|(name, id)| (name.to_owned(), id.clone()))
        .into();
        assert_eq!(pick(&heads, None), Some(branch.clone()));
        assert_eq!(pick(&heads, Some("main")), Some(branch.clone()));
        assert_eq!(pick(&heads, Some("refs/heads/main")), Some(branch));
        assert_eq!(pick(&heads, Some("v1")), Some(tag));
        assert_eq!(pick(&heads, Some(&"D".repeat(40))), Some("d".repeat(40)));
        assert_eq!(pick(&heads, Some("absent")), None);
    }
}
