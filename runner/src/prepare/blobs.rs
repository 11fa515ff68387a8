//! Uploaded archives, named by the SHA-256 of their bytes.
//!
//! Not here: unpacking them. Invariant: a file below `blobs/` has exactly the bytes that its name says.

use std::collections::HashSet;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use wire::ErrorCode;

use super::error::{Doing, PrepareError};

/// An upload comes before the deploy that names it, so a fresh blob is kept although nobody names it.
const GRACE: Duration = Duration::from_secs(15 * 60);

pub(crate) fn path(dir: &Path, sha256: &str) -> Result<PathBuf, PrepareError> {
    let fits = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if fits { Ok(dir.join(sha256)) } else { Err(invalid("an archive is named by 64 lowercase hex digits")) }
}

fn invalid(message: &str) -> PrepareError {
    PrepareError::new(ErrorCode::InvalidArgs, message)
}

/// Streams an upload to disk and names it once its bytes are known to be the right ones.
pub(crate) async fn put<E: Display>(
    dir: &Path,
    sha256: &str,
    limit: u64,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<(), PrepareError> {
    let target = path(dir, sha256)?;
    if target.exists() {
        return Ok(());
    }
    let partial = tempfile::Builder::new().prefix(".upload-").tempfile_in(dir).doing("storing the upload")?;
    let mut file = tokio::fs::File::from_std(partial.reopen().doing("storing the upload")?);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    tokio::pin!(body);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| invalid(&format!("the upload broke off: {e}; send it again")))?;
        bytes += chunk.len() as u64;
        if bytes > limit {
            let message =
                format!("the archive is larger than {} MiB; leave out what is not needed", limit >> 20);
            return Err(PrepareError::new(ErrorCode::TooLarge, message));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.doing("storing the upload")?;
    }
    file.sync_all().await.doing("storing the upload")?;
    if hex::encode(hash.finalize()) != sha256 {
        return Err(invalid("the uploaded bytes do not have the SHA-256 that names them; send them again"));
    }
    partial.persist(&target).map_err(|e| PrepareError::io("storing the upload", &e.error))?;
    Ok(())
}

/// Removes blobs that `keep` does not name and that are not fresh. Answers how many and how large.
pub(crate) fn sweep(dir: &Path, keep: &HashSet<&str>) -> Result<(usize, u64), PrepareError> {
    let (mut removed, mut freed) = (0, 0);
    for entry in fs::read_dir(dir).doing("reading the uploads")?.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        // A clock that went back makes a blob look fresh, which only keeps it longer.
        let fresh = meta.modified().ok().is_none_or(|at| at.elapsed().map_or(true, |age| age < GRACE));
        if fresh || entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        fs::remove_file(entry.path()).doing("removing an upload")?;
        removed += 1;
        freed += meta.len();
    }
    Ok((removed, freed))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::stream;

    use super::*;

    fn body(chunks: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, String>> + use<> {
        stream::iter(chunks.iter().map(|c| Ok(Bytes::from_static(c))).collect::<Vec<_>>())
    }

    fn sha(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    #[tokio::test]
    async fn an_upload_is_kept_only_under_the_hash_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let name = sha(b"hello");
        put(dir.path(), &name, 10, body(&[b"hel", b"lo"])).await.unwrap();
        assert_eq!(fs::read(dir.path().join(&name)).unwrap(), b"hello");
        let wrong = put(dir.path(), &sha(b"other"), 10, body(&[b"hello"])).await.unwrap_err();
        assert_eq!(wrong.code(), ErrorCode::InvalidArgs);
        let large = put(dir.path(), &sha(b"x"), 3, body(&[b"hello"])).await.unwrap_err();
        assert_eq!(large.code(), ErrorCode::TooLarge);
        let broken = stream::iter([Ok(Bytes::from_static(b"he")), Err("gone")]);
        assert!(put(dir.path(), &sha(b"y"), 10, broken).await.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing partial is left");
    }

    #[tokio::test]
    async fn a_name_that_is_no_hash_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "", "ABCDEF", &sha(b"x").to_uppercase()] {
            assert!(put(dir.path(), name, 10, body(&[b"x"])).await.is_err(), "{name}");
        }
    }

    #[test]
    fn a_fresh_or_named_blob_survives_a_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(3600);
        for (name, at) in [("named", old), ("old", old), ("fresh", SystemTime::now())] {
            fs::File::create(dir.path().join(name)).unwrap().set_modified(at).unwrap();
        }
        assert_eq!(sweep(dir.path(), &HashSet::from(["named"])).unwrap().0, 1);
        assert!(!dir.path().join("old").exists());
        assert!(dir.path().join("fresh").exists());
    }
}
