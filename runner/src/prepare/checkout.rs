//! One folder of a git repository, for a command of a person's own: the same fetch as for a deploy, with small limits.
//!
//! Not here: what is in the folder, and where a deploy puts its sources ([`super::job`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::address::{GitSource, authority};
use super::error::PrepareError;
use super::git::{self, Job};
use super::store::Store;
use super::tree::Limits;

const MAX_FETCH: u64 = 64 << 20;
const LIMITS: Limits = Limits { bytes: 128 << 20, files: 20_000 };
const PATIENCE: Duration = Duration::from_secs(120);

/// Fetches what the reference means now below `scratch`, an empty folder, and answers where `folder` of it is. Without a token;
/// https only, and plain http on this machine.
///
/// # Errors
/// [`PrepareError`].
pub async fn checkout_of(
    url: &str,
    reference: Option<&str>,
    folder: Option<&str>,
    scratch: &Path,
) -> Result<PathBuf, PrepareError> {
    let host = authority(url).map(|host| host.rsplit_once(':').map_or(host, |(host, _)| host));
    let is_here = matches!(host, Some("127.0.0.1" | "[::1]" | "localhost"));
    let schemes: Vec<String> =
        ["https"].into_iter().chain(is_here.then_some("http")).map(str::to_owned).collect();
    let source = GitSource::parse(url, reference, folder, &schemes)?;
    let store = Arc::new(Store::open(&scratch.join("store"))?);
    let staging = Arc::new(store.staging()?);
    let subdir = source.subdir.clone();
    // One for each step: a job whose step has ended is cancelled.
    let job = || {
        let silent = Arc::new(|_: &str, _: &str| {});
        Arc::new(Job::new(source.clone(), None, silent, (MAX_FETCH, LIMITS), Arc::clone(&staging)))
    };
    let threads = Arc::new(Semaphore::new(1));
    let commit = git::off_thread(&threads, job(), PATIENCE, git::resolve).await?;
    let into = scratch.join("tree");
    let target = into.clone();
    git::off_thread(&threads, job(), PATIENCE, move |job| git::checkout(job, &commit, &target)).await?;
    git::project_dir(&into, subdir.as_deref())
}
