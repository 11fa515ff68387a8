//! Packing a folder into a gzipped tar.
//!
//! Invariant: the same files give the same bytes, so that the runner finds what it has installed before. Entries are sorted;
//! times, owners and permissions (but the executable bit) are left out.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::failure::Failure;
use crate::units;

/// Never part of a project: made by tools, and large.
pub const SKIPPED: [&str; 8] =
    ["node_modules", ".git", ".venv", "venv", "__pycache__", ".hg", ".svn", ".DS_Store"];
/// The broker refuses more; asking it would take the upload first.
pub const MAX_PACKED: u64 = 50 << 20;
const MAX_PLAIN: u64 = 512 << 20;
const MAX_ENTRIES: usize = 50_000;

pub struct Packed {
    pub bytes: Vec<u8>,
    pub files: usize,
}

/// # Errors
/// When the folder cannot be read, holds links that lead out of it, or is too large.
pub fn pack(folder: &Path) -> Result<Packed, Failure> {
    let root = folder.canonicalize().map_err(|e| unreadable(folder, &e))?;
    let mut entries = Vec::new();
    collect(&root, Path::new(""), &mut entries)?;
    entries.sort();
    let plain: u64 = entries.iter().map(|entry| entry.size).sum();
    if plain > MAX_PLAIN {
        return Err(too_big(&root, plain, MAX_PLAIN, &entries));
    }
    if entries.is_empty() {
        return Err(Failure::user(format!("{} holds no files", folder.display())));
    }
    // mtime 0 and no file name: gzip's own header must not differ either.
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    let mut builder = Builder::new(gzip);
    for entry in &entries {
        append(&mut builder, &root, entry).map_err(|e| unreadable(&root.join(&entry.path), &e))?;
    }
    let bytes = builder.into_inner().and_then(|gzip| gzip.finish()).map_err(|e| unreadable(folder, &e))?;
    if bytes.len() as u64 > MAX_PACKED {
        return Err(too_big(&root, bytes.len() as u64, MAX_PACKED, &entries));
    }
    Ok(Packed { bytes, files: entries.len() })
}

/// Reads an archive that exists already.
///
/// # Errors
/// When it cannot be read or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let size = fs::metadata(path).map_err(|e| unreadable(path, &e))?.len();
    if size > MAX_PACKED {
        let (size, limit) = (units::size(size), units::size(MAX_PACKED));
        return Err(Failure::of_code(
            wire::ErrorCode::TooLarge,
            format!("{} is {size}; the limit is {limit}", path.display()),
        ));
    }
    fs::read(path).map_err(|e| unreadable(path, &e))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    path: PathBuf,
    size: u64,
    link: Option<PathBuf>,
    is_executable: bool,
}

fn collect(root: &Path, inside: &Path, entries: &mut Vec<Entry>) -> Result<(), Failure> {
    let folder = root.join(inside);
    for found in fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
        let found = found.map_err(|e| unreadable(&folder, &e))?;
        let name = found.file_name();
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let path = inside.join(&name);
        let meta = found.metadata().map_err(|e| unreadable(&found.path(), &e))?;
        if meta.is_dir() {
            collect(root, &path, entries)?;
        } else if meta.is_file() {
            let is_executable = meta.permissions().mode() & 0o111 != 0;
            entries.push(Entry { path, size: meta.len(), link: None, is_executable });
        } else if meta.is_symlink() {
            let target = fs::read_link(found.path()).map_err(|e| unreadable(&found.path(), &e))?;
            if !stays_inside(inside, &target) {
                let message = format!("{} is a link that leads out of the folder", found.path().display());
                return Err(
                    Failure::user(message).with_cure("Replace it by what it points to, or leave it out.")
                );
            }
            entries.push(Entry { path, size: 0, link: Some(target), is_executable: false });
        }
        // Sockets, pipes and devices are not part of a project.
        if entries.len() > MAX_ENTRIES {
            return Err(Failure::user(format!("{} holds more than {MAX_ENTRIES} files", root.display())));
        }
    }
    Ok(())
}

fn stays_inside(folder: &Path, target: &Path) -> bool {
    let mut depth = folder.components().count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn append<W: Write>(builder: &mut Builder<W>, root: &Path, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(if entry.is_executable { 0o755 } else { 0o644 });
    if let Some(target) = &entry.link {
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        return builder.append_link(&mut header, &entry.path, target);
    }
    header.set_entry_type(EntryType::Regular);
    header.set_size(entry.size);
    // A file that shrinks or grows meanwhile must not break the archive: exactly `size` bytes are written.
    let file = fs::File::open(root.join(&entry.path))?;
    let mut exact = ExactRead { inner: file.take(entry.size), left: entry.size };
    builder.append_data(&mut header, &entry.path, &mut exact)
}

struct ExactRead<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for ExactRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left -= n as u64;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("the file changed while it was read"));
        }
        Ok(n)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::user(format!("cannot read {}: {error}", path.display()))
}

fn too_big(root: &Path, size: u64, limit: u64, entries: &[Entry]) -> Failure {
    let largest = entries.iter().max_by_key(|entry| entry.size);
    let (size, limit) = (units::size(size), units::size(limit));
    let message = format!("{} is {size}; the limit is {limit}", root.display());
    let cure = largest.map_or_else(String::new, |entry| {
        format!("The largest file is {} ({}).", entry.path.display(), units::size(entry.size))
    });
    Failure::of_code(wire::ErrorCode::TooLarge, message).with_cure(cure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let mut bytes = [0_u8; 8];
            getrandom::fill(&mut bytes).unwrap();
            let path = std::env::temp_dir().join(format!("cm-archive-{}", hex::encode(bytes)));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(packed: &Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.bytes.as_slice()));
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let (one, two) = (Scratch::new(), Scratch::new());
        for (folder, order) in [(&one, ["b/x.js", "a.txt"]), (&two, ["a.txt", "b/x.js"])] {
            for path in order {
                folder.write(path, path);
            }
            symlink("a.txt", folder.0.join("link")).unwrap();
        }
        let old = fs::File::options().write(true).open(one.0.join("a.txt")).unwrap();
        old.set_modified(std::time::UNIX_EPOCH).unwrap();
        let (packed, again) = (pack(&one.0).unwrap(), pack(&two.0).unwrap());
        assert_eq!(packed.bytes, again.bytes);
        assert_eq!(names(&packed), ["a.txt", "b/x.js", "link"]);
        assert_eq!(packed.files, 3);
        two.write("a.txt", "changed");
        assert_ne!(packed.bytes, pack(&two.0).unwrap().bytes);
    }

    #[test]
    fn what_tools_make_is_left_out_and_the_executable_bit_kept() {
        let folder = Scratch::new();
        folder.write("run.sh", "#!/bin/sh");
        folder.write("node_modules/x/index.js", "x");
        folder.write("src/__pycache__/x.pyc", "x");
        folder.write(".git/HEAD", "x");
        fs::set_permissions(folder.0.join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
        let packed = pack(&folder.0).unwrap();
        assert_eq!(names(&packed), ["run.sh"]);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.bytes.as_slice()));
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mode().unwrap(), 0o755);
        assert_eq!(entry.header().mtime().unwrap(), 0);
    }

    #[test]
    fn links_that_lead_out_and_empty_folders_are_refused() {
        let folder = Scratch::new();
        assert!(pack(&folder.0).is_err());
        folder.write("a/x", "x");
        symlink("../../etc/passwd", folder.0.join("a/evil")).unwrap();
        assert!(pack(&folder.0).err().unwrap().message.contains("leads out"));
        assert!(stays_inside(Path::new("a/b"), Path::new("../x")));
        assert!(!stays_inside(Path::new("a"), Path::new("/etc/passwd")));
        assert!(!stays_inside(Path::new(""), Path::new("b/../../x")));
    }
}
