//! Whether an installed tree is still what was sealed: a manifest with every file's hash, and a quick stamp of its state.
//!
//! Here: both texts, and their comparison. Not here: what becomes of a changed tree ([`super::store`]).
//! Invariant: nothing in a tree can change without the stamp changing, but for somebody who can set a file's ctime; and a
//! changed stamp is believed only when the hashes of all contents are the same.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

const MANIFEST: &str = "manifest";
const STAMP: &str = "stamp";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    AsSealed,
    /// The first entry that differs.
    Changed(String),
}

/// Writes both beside the tree; answers the manifest's hash.
pub(super) fn record(artefact: &Path) -> io::Result<String> {
    let tree = artefact.join("tree");
    let manifest = manifest(&tree)?;
    fs::write(artefact.join(MANIFEST), &manifest)?;
    fs::write(artefact.join(STAMP), stamp(&tree)?)?;
    Ok(digest(&manifest))
}

/// Looks at every entry, and reads the contents only when the stamp differs: after a restore of a backup, say.
pub(super) fn check(artefact: &Path, digest_of_manifest: &str) -> io::Result<State> {
    let tree = artefact.join("tree");
    let now = stamp(&tree)?;
    if fs::read_to_string(artefact.join(STAMP)).is_ok_and(|sealed| sealed == now) {
        return Ok(State::AsSealed);
    }
    let found = manifest(&tree)?;
    if digest(&found) == digest_of_manifest {
        // Taken before the contents were read: what changed meanwhile is seen the next time.
        fs::write(artefact.join(STAMP), now)?;
        return Ok(State::AsSealed);
    }
    let sealed = fs::read_to_string(artefact.join(MANIFEST)).unwrap_or_default();
    Ok(State::Changed(first_difference(&sealed, &found)))
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// The paths of both are in the same order, so the first line that is not in both names one that differs.
fn first_difference(sealed: &str, found: &str) -> String {
    let path = |line: &str| line.splitn(5, ' ').last().unwrap_or_default().to_owned();
    let sealed_lines: std::collections::HashSet<&str> = sealed.lines().collect();
    let found_lines: std::collections::HashSet<&str> = found.lines().collect();
    let new = found.lines().find(|line| !sealed_lines.contains(line));
    let gone = || sealed.lines().find(|line| !found_lines.contains(line));
    new.or_else(gone).map(path).unwrap_or_default()
}

/// `KIND MODE SIZE HASH PATH` a line; the hash of a link is that of its text.
fn manifest(tree: &Path) -> io::Result<String> {
    let mut text = String::new();
    walk(tree, Path::new(""), &mut |path, meta| {
        let (kind, hash) = if meta.is_dir() {
            ('d', "-".to_owned())
        } else if meta.is_symlink() {
            let target = fs::read_link(tree.join(path))?;
            ('l', hex::encode(Sha256::digest(target.as_os_str().as_encoded_bytes())))
        } else if meta.is_file() {
            ('f', hash_of(&tree.join(path))?)
        } else {
            ('?', "-".to_owned())
        };
        let (mode, size) = (meta.mode() & 0o7777, if meta.is_dir() { 0 } else { meta.len() });
        let name = path.as_os_str().as_encoded_bytes().escape_ascii();
        text.push_str(&format!("{kind} {mode:o} {size} {hash} {name}\n"));
        Ok(())
    })?;
    Ok(text)
}

fn hash_of(path: &Path) -> io::Result<String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Of what the kernel says about every entry, without reading any. The kernel alone sets a ctime.
fn stamp(tree: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    walk(tree, Path::new(""), &mut |path, meta| {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update([0]);
        let size = if meta.is_dir() { 0 } else { meta.len() };
        for number in [u64::from(meta.mode()), u64::from(meta.uid()), meta.ino(), size] {
            hasher.update(number.to_le_bytes());
        }
        for time in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            hasher.update(time.to_le_bytes());
        }
        Ok(())
    })?;
    Ok(hex::encode(hasher.finalize()))
}

type Visit<'a> = dyn FnMut(&Path, &Metadata) -> io::Result<()> + 'a;

/// Every entry, the root first, in an order of names. `path` is relative to the root.
fn walk(root: &Path, path: &Path, visit: &mut Visit<'_>) -> io::Result<()> {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full)?;
    visit(path, &meta)?;
    if !meta.is_dir() {
        return Ok(());
    }
    let mut names = fs::read_dir(&full)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    names.iter().try_for_each(|name| walk(root, &path.join(name), visit))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn sealed() -> (tempfile::TempDir, String, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::write(tree.join("a/file"), "text").unwrap();
        fs::write(tree.join("a/other"), "more").unwrap();
        symlink("file", tree.join("a/link")).unwrap();
        let digest = record(dir.path()).unwrap();
        (dir, digest, tree)
    }

    #[test]
    fn an_untouched_tree_is_as_sealed() {
        let (dir, digest, _) = sealed();
        assert_eq!(check(dir.path(), &digest).unwrap(), State::AsSealed);
    }

    #[test]
    fn every_kind_of_change_is_found_and_named() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("a/file", |tree| {
                // As long as before, and dated as before.
                let file = tree.join("a/file");
                let before = fs::metadata(&file).unwrap().modified().unwrap();
                fs::write(&file, "tExt").unwrap();
                File::options().write(true).open(file).unwrap().set_modified(before).unwrap();
            }),
            ("a/new", |tree| fs::write(tree.join("a/new"), "").unwrap()),
            ("a/other", |tree| fs::remove_file(tree.join("a/other")).unwrap()),
            ("a/file", |tree| {
                fs::set_permissions(tree.join("a/file"), fs::Permissions::from_mode(0o755)).unwrap()
            }),
            ("a/link", |tree| {
                fs::remove_file(tree.join("a/link")).unwrap();
                symlink("other", tree.join("a/link")).unwrap();
            }),
            ("a/file", |tree| {
                fs::remove_file(tree.join("a/file")).unwrap();
                symlink("other", tree.join("a/file")).unwrap();
            }),
        ];
        for (n, (path, change)) in changes.into_iter().enumerate() {
            let (dir, digest, tree) = sealed();
            change(&tree);
            assert_eq!(check(dir.path(), &digest).unwrap(), State::Changed(path.into()), "change {n}");
        }
    }

    #[test]
    fn a_restored_tree_is_believed_by_its_contents() {
        let (dir, digest, tree) = sealed();
        fs::remove_file(tree.join("a/file")).unwrap();
        fs::write(tree.join("a/file"), "text").unwrap();
        let before = fs::read_to_string(dir.path().join(STAMP)).unwrap();
        assert_eq!(check(dir.path(), &digest).unwrap(), State::AsSealed);
        assert_ne!(
            fs::read_to_string(dir.path().join(STAMP)).unwrap(),
            before,
            "the next look is quick again"
        );
    }

    #[test]
    fn a_manifest_that_was_changed_along_is_not_believed() {
        let (dir, digest, tree) = sealed();
        fs::write(tree.join("a/file"), "evil").unwrap();
        record(dir.path()).unwrap();
        fs::write(tree.join("a/other"), "evil").unwrap();
        assert!(matches!(check(dir.path(), &digest).unwrap(), State::Changed(_)));
    }
}
