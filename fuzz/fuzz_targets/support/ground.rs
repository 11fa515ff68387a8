//! A directory to unpack into, and what must hold afterwards.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use runner::prepare::fuzzing;
use wire::spec::ArchiveFormat;

pub(crate) struct Ground(tempfile::TempDir);

impl Ground {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// Whether it is refused or not: nothing lies outside the root, and nothing in it leads or reaches outside.
    pub(crate) fn unpack(&self, bytes: &[u8], format: ArchiveFormat) {
        let (blob, root) = (self.0.path().join("blob"), self.0.path().join("root"));
        fs::write(&blob, bytes).expect("written");
        let project = fuzzing::unpack(&blob, format, &root);
        let beside = fs::read_dir(self.0.path()).expect("readable").flatten();
        assert!(beside.map(|entry| entry.file_name()).all(|name| name == "blob" || name == "root"));
        assert!(fs::read(&blob).expect("readable") == bytes, "the blob is as it was");
        let is_whole = project.is_some();
        if let Some(project) = project {
            assert!(
                project.starts_with(root.canonicalize().expect("it is there")) || project.starts_with(&root)
            );
        }
        if root.exists() {
            inspect(&root, &root.canonicalize().expect("it is there"), is_whole);
        }
    }
}

/// A tree that was refused is thrown away, so its links are not looked at.
fn inspect(dir: &Path, root: &Path, is_whole: bool) {
    for entry in fs::read_dir(dir).expect("readable").flatten() {
        let kind = entry.file_type().expect("a type");
        let path = entry.path();
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{path:?} is a device or a pipe");
        if kind.is_dir() {
            inspect(&path, root, is_whole);
        } else if kind.is_symlink() && is_whole && path.exists() {
            let target = path.canonicalize().expect("it leads somewhere");
            assert!(target.starts_with(root), "{path:?} leads to {target:?}");
        }
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    gzip.write_all(bytes).and_then(|()| gzip.finish()).expect("memory takes it")
}
