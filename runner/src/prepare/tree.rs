//! Installed file trees: how large they are, whether they are safe to keep, sealing and removing them.
//!
//! Not here: where trees come from (`unpack`, the package managers) and where they are kept (`store`).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use wire::ErrorCode;

use super::error::{Doing, PrepareError};

/// Deepest nesting of an artefact. Real trees stay below 30.
const MAX_DEPTH: usize = 100;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// Size on disk. Entries that vanish while an installer works are not an error.
pub(crate) fn measure(root: &Path) -> Size {
    let mut size = Size::default();
    let mut seen = HashSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            size.files += 1;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino())) {
                size.bytes += meta.len();
            }
        }
    }
    size
}

/// Refuses a tree that has grown past the limit.
pub(crate) async fn check_size(root: &Path, limits: Limits) -> Result<(), PrepareError> {
    let root = root.to_owned();
    let size = tokio::task::spawn_blocking(move || measure(&root))
        .await
        .map_err(|_| PrepareError::lost("measuring the tree"))?;
    within(size, limits)
}

fn within(size: Size, limits: Limits) -> Result<(), PrepareError> {
    if size.bytes > limits.bytes || size.files > limits.files {
        let (mib, files) = (limits.bytes >> 20, limits.files);
        let message = format!("the installed tree is larger than {mib} MiB or {files} files; deploy less");
        return Err(PrepareError::new(ErrorCode::TooBig, message));
    }
    Ok(())
}

/// Reads a file that a stranger's step may have put there: a file and nothing else, and no link.
pub(crate) fn read_plain(path: &Path, most: u64) -> io::Result<String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > most {
        return Err(io::Error::other("it is no file, or too large"));
    }
    let mut text = String::new();
    file.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// Checks every entry, takes all write permission away, lets everybody read, and answers the size.
///
/// Links may lead out of `root` only to `interpreters`: a Python environment links to the machine's Python. `uids`: those
/// that the install ran as, where the runner is root, whose everything becomes.
pub(crate) fn seal(
    root: &Path,
    limits: Limits,
    interpreters: &[PathBuf],
    uids: &[u32],
) -> Result<Size, PrepareError> {
    let real_root = root.canonicalize().doing("reading the installed tree")?;
    let mut size = Size::default();
    let mut seen = HashSet::new();
    seal_dir(&real_root, 0, &mut |path, meta| {
        size.files += 1;
        if meta.is_symlink() {
            check_link(&real_root, path, interpreters)?;
        } else if meta.is_file() && (meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino()))) {
            size.bytes += meta.len();
        }
        within(size, limits)?;
        own(path, meta, uids)
    })?;
    let meta = real_root.symlink_metadata().doing("reading the installed tree")?;
    own(&real_root, &meta, uids)?;
    Ok(size)
}

fn own(path: &Path, meta: &Metadata, uids: &[u32]) -> Result<(), PrepareError> {
    match meta.uid() {
        _ if uids.is_empty() => Ok(()),
        0 => Ok(()),
        uid if uids.contains(&uid) => lchown(path, Some(0), Some(0)).doing("sealing the installed tree"),
        _ => Err(unsafe_tree(path, "belongs to somebody else")),
    }
}

type Visit<'a> = dyn FnMut(&Path, &Metadata) -> Result<(), PrepareError> + 'a;

fn seal_dir(dir: &Path, depth: usize, visit: &mut Visit<'_>) -> Result<(), PrepareError> {
    if depth > MAX_DEPTH {
        return Err(unsafe_tree(dir, "is nested too deeply"));
    }
    for entry in fs::read_dir(dir).doing("reading the installed tree")? {
        let path = entry.doing("reading the installed tree")?.path();
        let meta = path.symlink_metadata().doing("reading the installed tree")?;
        visit(&path, &meta)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            seal_dir(&path, depth + 1, visit)?;
        } else if kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket() {
            return Err(unsafe_tree(&path, "is a device, pipe or socket"));
        } else if kind.is_file() {
            if meta.mode() & 0o6000 != 0 {
                return Err(unsafe_tree(&path, "is setuid or setgid"));
            }
            // By itself a step's umask would keep the service out.
            chmod(&path, if meta.mode() & 0o111 == 0 { 0o444 } else { 0o555 })?;
        }
    }
    chmod(dir, 0o555)
}

fn chmod(path: &Path, mode: u32) -> Result<(), PrepareError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).doing("sealing the installed tree")
}

fn check_link(root: &Path, link: &Path, interpreters: &[PathBuf]) -> Result<(), PrepareError> {
    let is_interpreter = |target: PathBuf| interpreters.iter().any(|known| target.starts_with(known));
    if leads_inside(root, link) || link.canonicalize().is_ok_and(is_interpreter) {
        return Ok(());
    }
    Err(unsafe_tree(link, "is a link that leads out of the source"))
}

/// Whether a path below `root` stays there at every step, through all links and also where it names nothing yet: what it
/// names must not appear later outside.
pub(crate) fn leads_inside(root: &Path, path: &Path) -> bool {
    const MAX_LINKS: usize = 40;
    let Ok(relative) = path.strip_prefix(root) else { return false };
    let parts = |path: &Path| {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<OsString>>()
    };
    let (mut left, mut at, mut links) = (parts(relative), root.to_owned(), 0);
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) if at == root => return false,
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => {
                at.push(name);
                let Ok(text) = at.read_link() else { continue };
                links += 1;
                if text.is_absolute() || links > MAX_LINKS {
                    return false;
                }
                at.pop();
                left.extend(parts(&text));
            }
            _ => {}
        }
    }
    true
}

fn unsafe_tree(path: &Path, what: &str) -> PrepareError {
    // Only the end of the path: the rest is ours.
    let tail: PathBuf = path.iter().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    PrepareError::new(
        ErrorCode::ArchiveRejected,
        format!("`{}` {what}; such a tree is not run", tail.display()),
    )
}

/// Removes a tree, sealed or not, without following links. However deep a stranger has nested it, this takes a bounded
/// number of descriptors and a bounded stack: what lies too deep is moved up first.
pub(crate) fn remove(root: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = match fs::File::options().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(above) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => OwnedFd::from(opened?),
    };
    let mut last = Ok(());
    // An entry may appear while we work: a killed installer's last write.
    for _ in 0..10 {
        last = remove_at(&above, name);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn remove_at(above: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let top = match open_dir(above, name) {
        Ok(Some(top)) => top,
        Ok(None) => return gone(unlinkat(above, name, UnlinkatFlags::NoRemoveDir)),
        Err(error) => return gone(Err(error)),
    };
    let mut lift = Lift { top: &top, n_moved: 0 };
    loop {
        let before = lift.n_moved;
        lift.empty(&top, 0)?;
        if lift.n_moved == before {
            return gone(unlinkat(above, name, UnlinkatFlags::RemoveDir));
        }
    }
}

/// Where directories go that lie too deep.
struct Lift<'a> {
    top: &'a OwnedFd,
    n_moved: u64,
}

impl Lift<'_> {
    fn empty(&mut self, dir: &OwnedFd, depth: usize) -> io::Result<()> {
        // By descriptor: nobody can put a link in the place of the directory any more.
        for entry in fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))? {
            let name = entry?.file_name();
            match open_dir(dir, &name) {
                Ok(Some(below)) if depth < MAX_DEPTH => {
                    self.empty(&below, depth + 1)?;
                    gone(unlinkat(dir, name.as_os_str(), UnlinkatFlags::RemoveDir))?;
                }
                Ok(Some(_)) => self.lift(dir, &name)?,
                Ok(None) => gone(unlinkat(dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir))?,
                Err(error) => gone(Err(error))?,
            }
        }
        Ok(())
    }

    fn lift(&mut self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        loop {
            self.n_moved += 1;
            let free = format!(".moved-{}", self.n_moved);
            match renameat(dir, name, self.top, free.as_str()) {
                // That name is taken.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                moved => return gone(moved),
            }
        }
    }
}

/// Opens a directory so that it can be emptied, whatever its mode; `None`: it is something else, a link for example.
fn open_dir(above: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(above, name, flags, Mode::empty());
    let opened = match open() {
        Err(Errno::EACCES) => {
            fchmodat(above, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            open()
        }
        opened => opened,
    };
    match opened {
        Ok(dir) => fchmod(&dir, Mode::S_IRWXU).map(|()| Some(dir)),
        Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Somebody else may have removed it.
fn gone(done: Result<(), Errno>) -> io::Result<()> {
    match done {
        Err(Errno::ENOENT) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ROOMY: Limits = Limits { bytes: 1 << 20, files: 100 };

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), b"text").unwrap();
        (dir, root)
    }

    #[test]
    fn a_sealed_tree_has_no_write_permission_and_can_be_removed() {
        let (_dir, root) = tree();
        symlink("b/file", root.join("a/link")).unwrap();
        let size = seal(&root, ROOMY, &[], &[]).unwrap();
        assert_eq!(size, Size { bytes: 4, files: 4 });
        assert_eq!(root.join("a").metadata().unwrap().mode() & 0o222, 0);
        assert_eq!(root.join("a/b/file").metadata().unwrap().mode() & 0o222, 0);
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    /// Every level takes a descriptor and stack of whoever descends into it: a service must not end its runner so.
    #[test]
    fn a_tree_that_is_nested_without_end_is_removed_and_what_links_name_stays() {
        // In memory where that is there: disks take a minute for such a tree.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let (root, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), b"x").unwrap();
        symlink(&kept, root.join("a/b/link")).unwrap();
        let mut at = OwnedFd::from(fs::File::open(&root).unwrap());
        for _ in 0..30_000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        fchmod(&at, Mode::empty()).unwrap();
        drop(at);
        remove(&root).unwrap();
        assert!(!root.exists() && kept.join("file").exists());
        symlink(&kept, &root).unwrap();
        remove(&root).unwrap();
        assert!(
            root.symlink_metadata().is_err() && kept.join("file").exists(),
            "a link, and nothing behind it"
        );
        remove(&root).unwrap();
    }

    #[test]
    fn links_out_of_the_tree_are_refused_except_to_the_interpreter() {
        for target in ["/etc/passwd", "../../etc/passwd", "/nowhere/at/all", "../nowhere"] {
            let (_dir, root) = tree();
            symlink(target, root.join("link")).unwrap();
            assert_eq!(
                seal(&root, ROOMY, &[], &[]).unwrap_err().code(),
                ErrorCode::ArchiveRejected,
                "{target}"
            );
        }
        let (_dir, root) = tree();
        symlink("/bin/sh", root.join("python")).unwrap();
        let interpreter = Path::new("/bin/sh").canonicalize().unwrap();
        assert!(seal(&root, ROOMY, &[interpreter], &[]).is_ok());
    }

    #[test]
    fn links_that_leave_only_through_others_are_refused_even_where_they_name_nothing() {
        let (_dir, root) = tree();
        symlink("../..", root.join("a/b/up")).unwrap();
        symlink("a/b/up/../../nowhere", root.join("out")).unwrap();
        assert!(leads_inside(&root, &root.join("a/b/up")));
        assert!(!leads_inside(&root, &root.join("out")));
        symlink("loop", root.join("loop")).unwrap();
        assert!(!leads_inside(&root, &root.join("loop")));
        assert_eq!(seal(&root, ROOMY, &[], &[]).unwrap_err().code(), ErrorCode::ArchiveRejected);
    }

    #[test]
    fn a_sealed_tree_can_be_read_and_executed_by_everybody_and_belongs_to_the_runner() {
        let (_dir, root) = tree();
        fs::set_permissions(root.join("a"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(root.join("a/b/file"), Permissions::from_mode(0o700)).unwrap();
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            super::super::ground::give(&root, 20_001).unwrap();
            assert!(seal(&root, ROOMY, &[], &[20_002]).is_err(), "somebody else's");
        }
        let uids: &[u32] = if is_root { &[20_001] } else { &[] };
        seal(&root, ROOMY, &[], uids).unwrap();
        for path in [root.clone(), root.join("a"), root.join("a/b/file")] {
            let meta = path.metadata().unwrap();
            assert_eq!(
                (meta.mode() & 0o777, meta.uid()),
                (0o555, nix::unistd::geteuid().as_raw()),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_link_or_a_pipe_is_not_read() {
        let (dir, root) = tree();
        symlink("/etc/passwd", root.join("link")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["link", "pipe", "a", "none"] {
            assert!(read_plain(&root.join(name), 1 << 20).is_err(), "{name}");
        }
        assert_eq!(read_plain(&root.join("a/b/file"), 100).unwrap(), "text");
        assert!(read_plain(&root.join("a/b/file"), 3).is_err(), "too large");
        drop(dir);
    }

    #[test]
    fn setuid_files_and_pipes_are_refused() {
        let (_dir, root) = tree();
        fs::set_permissions(root.join("a/b/file"), Permissions::from_mode(0o4755)).unwrap();
        assert!(seal(&root, ROOMY, &[], &[]).is_err());
        let (_dir, root) = tree();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(seal(&root, ROOMY, &[], &[]).is_err());
    }

    #[test]
    fn a_tree_over_the_limit_is_too_big() {
        let (_dir, root) = tree();
        for limits in [Limits { bytes: 3, files: 100 }, Limits { bytes: 100, files: 2 }] {
            assert_eq!(seal(&root, limits, &[], &[]).unwrap_err().code(), ErrorCode::TooBig);
        }
    }
}
