//! Writes a stranger's tree below one directory: every path is checked, every byte counted.
//!
//! Here: the rules that zip, tar and git share. Not here: the formats.
//! Invariant: nothing is written outside the root. Links are made last, so no entry can be written through one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use wire::ErrorCode;

use super::error::{Doing, PrepareError};
use super::tree::{Limits, leads_inside};

const MAX_PATH_BYTES: usize = 1_000;
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    File,
    Link,
}

pub(crate) struct Unpack {
    root: PathBuf,
    limits: Limits,
    seen: HashMap<PathBuf, Kind>,
    links: Vec<(PathBuf, PathBuf)>,
    bytes: u64,
    /// What more than the limit means: an honest source that is too big, or a bomb.
    over: ErrorCode,
}

impl Unpack {
    pub(crate) fn into(root: &Path, limits: Limits, over: ErrorCode) -> Result<Self, PrepareError> {
        fs::create_dir_all(root).doing("making a staging directory")?;
        let root = root.canonicalize().doing("making a staging directory")?;
        Ok(Self { root, limits, seen: HashMap::new(), links: Vec::new(), bytes: 0, over })
    }

    /// A directory may be named twice and may have been made by a file inside it.
    pub(crate) fn dir(&mut self, name: &str) -> Result<(), PrepareError> {
        let path = checked(name)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        self.claim(&path, Kind::Dir)?;
        fs::create_dir_all(self.root.join(path)).doing("unpacking")
    }

    pub(crate) fn file(&mut self, name: &str, runs: bool, from: &mut dyn Read) -> Result<(), PrepareError> {
        let path = checked(name)?;
        self.claim(&path, Kind::File)?;
        let target = self.root.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).doing("unpacking")?;
        }
        let mode = if runs { 0o755 } else { 0o644 };
        // `create_new`: never through or over something that is already there.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&target).doing("unpacking")?;
        self.copy(from, &mut file)
    }

    fn copy(&mut self, from: &mut dyn Read, to: &mut File) -> Result<(), PrepareError> {
        let mut buffer = [0; 64 << 10];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(&error)),
            };
            self.bytes += n as u64;
            if self.bytes > self.limits.bytes {
                return Err(self.too_much());
            }
            to.write_all(&buffer[..n]).doing("unpacking")?;
        }
    }

    /// Whether a file of this size may still come. Asked before one that can only be read whole into memory.
    pub(crate) fn has_room(&self, bytes: u64) -> Result<(), PrepareError> {
        if bytes > self.limits.bytes.saturating_sub(self.bytes) { Err(self.too_much()) } else { Ok(()) }
    }

    fn too_much(&self) -> PrepareError {
        let mib = self.limits.bytes >> 20;
        PrepareError::new(self.over, format!("the source unpacks to more than {mib} MiB; deploy less"))
    }

    /// Notes a link; [`Unpack::finish`] makes it.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> Result<(), PrepareError> {
        let path = checked(name)?;
        self.claim(&path, Kind::Link)?;
        let depth = path.components().count() - 1;
        if !stays_inside(target, depth) {
            return Err(rejected(format!("`{name}` is a link that leads out of it")));
        }
        self.links.push((path, target.into()));
        Ok(())
    }

    /// Takes the path, and its parents as directories. A path is taken once.
    fn claim(&mut self, path: &Path, kind: Kind) -> Result<(), PrepareError> {
        let shown = path.display();
        if path.as_os_str().is_empty() {
            return Err(rejected("an entry has no name".into()));
        }
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if *self.seen.entry(parent.to_owned()).or_insert(Kind::Dir) != Kind::Dir {
                return Err(rejected(format!("`{shown}` is inside something that is no folder")));
            }
        }
        let earlier = self.seen.insert(path.to_owned(), kind);
        if earlier.is_some_and(|earlier| (earlier, kind) != (Kind::Dir, Kind::Dir)) {
            return Err(rejected(format!("`{shown}` occurs twice")));
        }
        if self.seen.len() as u64 > self.limits.files {
            return Err(rejected(format!("it has more than {} entries", self.limits.files)));
        }
        Ok(())
    }

    /// Makes the links and checks where they really lead: links through links can leave although no single one does.
    pub(crate) fn finish(self) -> Result<(), PrepareError> {
        for (path, target) in &self.links {
            let full = self.root.join(path);
            if let Some(parent) = full.parent() {
                fs::create_dir_all(parent).doing("unpacking")?;
            }
            symlink(target, full).doing("unpacking")?;
        }
        for (path, _) in &self.links {
            if !leads_inside(&self.root, &self.root.join(path)) {
                return Err(rejected(format!("`{}` is a link that leads out of it", path.display())));
            }
        }
        Ok(())
    }
}

/// The relative path that a name means, or why it means none.
fn checked(name: &str) -> Result<PathBuf, PrepareError> {
    let bad =
        |why: &str| Err(rejected(format!("`{}` {why}", name.escape_debug().take(200).collect::<String>())));
    if name.len() > MAX_PATH_BYTES {
        return bad("is too long a path");
    }
    if name.starts_with('/') {
        return bad("is an absolute path");
    }
    if name.contains('\\') || name.chars().any(char::is_control) {
        return bad("has a backslash or control character in its path");
    }
    if name.as_bytes().get(1) == Some(&b':') && name.as_bytes()[0].is_ascii_alphabetic() {
        return bad("has a drive letter");
    }
    let mut path = PathBuf::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return bad("climbs with `..`"),
            part if part.len() > 255 => return bad("is too long a name"),
            part => path.push(part),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return bad("is nested too deeply");
    }
    Ok(path)
}

/// Whether a relative target read from `depth` folders below the root never climbs above it.
fn stays_inside(target: &str, depth: usize) -> bool {
    if target.is_empty() || target.starts_with('/') || target.contains(['\0', '\\']) {
        return false;
    }
    let mut depth = depth;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return false,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

pub(crate) fn rejected(why: String) -> PrepareError {
    PrepareError::new(ErrorCode::ArchiveRejected, format!("the source is not unpacked: {why}"))
}

/// A read error of the archive itself: our own limits travel as `io::Error` through the decoders.
pub(crate) fn damaged(error: &io::Error) -> PrepareError {
    if error.kind() == io::ErrorKind::StorageFull {
        return PrepareError::disk_full();
    }
    rejected(format!("it is damaged ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack() -> (tempfile::TempDir, Unpack) {
        let dir = tempfile::tempdir().unwrap();
        let unpack =
            Unpack::into(&dir.path().join("root"), Limits { bytes: 1000, files: 50 }, ErrorCode::TooBig)
                .unwrap();
        (dir, unpack)
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for bad in ["../x", "a/../../x", "/etc/passwd", "C:/x", "c:x", "a\\..\\x", "a\0b", "a/..", "x\ny"] {
            let (_dir, mut unpack) = unpack();
            let error = unpack.file(bad, false, &mut &b"x"[..]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ArchiveRejected, "{bad:?}");
        }
    }

    #[test]
    fn links_that_leave_the_root_are_refused() {
        for (name, target) in [("a", "/etc"), ("a", ".."), ("a/b", "../../x"), ("a", "b/../../x"), ("a", "")]
        {
            let (_dir, mut unpack) = unpack();
            assert!(unpack.link(name, target).is_err(), "{name} -> {target}");
        }
        let (dir, mut unpack) = unpack();
        unpack.file("real/file", false, &mut &b"x"[..]).unwrap();
        unpack.link("a/b", "../real/file").unwrap();
        unpack.finish().unwrap();
        assert_eq!(fs::read(dir.path().join("root/a/b")).unwrap(), b"x");
    }

    #[test]
    fn links_that_leave_only_together_are_refused() {
        let (_dir, mut unpack) = unpack();
        unpack.file("deep/x/y/f", false, &mut &b"x"[..]).unwrap();
        unpack.link("deep/x/y/up", "../../..").unwrap();
        unpack.link("out", "deep/x/y/up/..").unwrap();
        assert_eq!(unpack.finish().unwrap_err().code(), ErrorCode::ArchiveRejected);
    }

    #[test]
    fn a_dangling_link_that_leaves_through_another_is_refused() {
        // Whoever wrote to it later would make the file outside.
        let (_dir, mut unpack) = unpack();
        unpack.file("deep/x/y/f", false, &mut &b"x"[..]).unwrap();
        unpack.link("deep/x/y/up", "../../..").unwrap();
        unpack.link("package-lock.json", "deep/x/y/up/../../../evil").unwrap();
        assert_eq!(unpack.finish().unwrap_err().code(), ErrorCode::ArchiveRejected);
    }

    #[test]
    fn nothing_is_written_through_a_link_or_twice() {
        let (dir, mut unpack) = unpack();
        unpack.link("a", "b").unwrap();
        assert!(unpack.file("a/x", false, &mut &b"x"[..]).is_err());
        assert!(unpack.file("a", false, &mut &b"x"[..]).is_err());
        assert!(unpack.dir("a").is_err());
        unpack.file("f", false, &mut &b"x"[..]).unwrap();
        assert!(unpack.file("./f", false, &mut &b"y"[..]).is_err());
        assert_eq!(fs::read(dir.path().join("root/f")).unwrap(), b"x");
    }

    #[test]
    fn bytes_and_entries_are_counted() {
        let (_dir, mut one) = unpack();
        one.file("a", false, &mut &[0; 900][..]).unwrap();
        assert_eq!(one.file("b", false, &mut &[0; 200][..]).unwrap_err().code(), ErrorCode::TooBig);
        let (_dir, mut many) = unpack();
        let failed = (0..60).any(|n| many.dir(&format!("d{n}")).is_err());
        assert!(failed);
    }
}
