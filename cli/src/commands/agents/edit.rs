//! A change of somebody else's file: shown, asked for, backed up, and written whole or not at all.
//!
//! Invariant: nobody's change is lost. The file is locked, read again before it is written, and replaced by renaming; what
//! does not parse is not touched; a symbolic link stays one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::text::{Document, Fault, Format, Shape, keys};
use crate::failure::Failure;

/// A configuration of Claude Code may hold the history of years.
const LARGEST: u64 = 64 << 20;
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// When the lock of a program that ended without removing it is nobody's any more.
const STALE_LOCK: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("{path}: {fault}")]
    Text { path: PathBuf, fault: Fault },
    #[error("{0} is not UTF-8 text, or too large")]
    NotText(PathBuf),
    #[error("{0} is a link that leads nowhere")]
    Dangling(PathBuf),
    #[error("{0} is read-only")]
    ReadOnly(PathBuf),
    #[error("{0} was changed meanwhile")]
    Changed(PathBuf),
    #[error("{0} is being written by another program")]
    Busy(PathBuf),
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl From<EditError> for Failure {
    fn from(error: EditError) -> Self {
        let cure = match &error {
            EditError::Text { fault: Fault::Syntax { .. }, .. } => "Mend the file; nothing was changed.",
            EditError::Text { .. } | EditError::NotText(_) | EditError::Dangling(_) => {
                "Look at the file; nothing was changed."
            }
            EditError::ReadOnly(_) => "If it is yours to change, `chmod u+w` it; nothing was changed.",
            EditError::Changed(_) | EditError::Busy(_) => "Try again.",
            EditError::Io { .. } => "Check the file and its folder.",
        };
        Self::user(error.to_string()).with_cure(cure)
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EditError {
    move |source| EditError::Io { what, path: path.to_owned(), source }
}

/// A text on its way to be another.
pub struct Draft {
    pub document: Document,
    /// What had to be made around our own things, outermost first.
    pub created: Vec<Vec<String>>,
}

impl Draft {
    pub fn read(format: Format, text: &str) -> Result<Self, Fault> {
        Ok(Self { document: Document::read(format, text)?, created: Vec::new() })
    }

    pub fn set(&mut self, path: &[&str], shape: &Shape) -> Result<(), Fault> {
        let missing = self.missing(path, path.len());
        self.document.set(path, shape)?;
        self.created.extend(missing);
        Ok(())
    }

    pub fn push(&mut self, path: &[&str], shape: &Shape) -> Result<(), Fault> {
        let missing = self.missing(path, path.len() + 1);
        self.document.push(path, shape)?;
        self.created.extend(missing);
        Ok(())
    }

    /// Takes out what was made around our things, where nothing else has come into it.
    pub fn remove_created(&mut self) -> Result<(), Fault> {
        for path in self.created.iter().rev() {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let is_empty = self.document.at(&path).is_some_and(|value| {
                value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty)
            });
            if is_empty {
                self.document.remove(&keys(&path))?;
            }
        }
        Ok(())
    }

    /// The containers of a path that are not there.
    fn missing(&self, path: &[&str], below: usize) -> Vec<Vec<String>> {
        let depths = (1..below).filter(|depth| self.document.at(&path[..*depth]).is_none());
        depths.map(|depth| path[..depth].iter().map(|key| (*key).to_owned()).collect()).collect()
    }
}

/// A file as it was read. One that is not there is empty.
#[derive(Debug, Clone)]
pub struct Original {
    /// As it is named.
    pub path: PathBuf,
    /// Where its bytes are.
    pub real: PathBuf,
    pub text: Option<String>,
}

impl Original {
    pub fn read(path: &Path) -> Result<Self, EditError> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(path).is_ok() {
                    return Err(EditError::Dangling(path.to_owned()));
                }
                return Ok(Self { path: path.to_owned(), real: path.to_owned(), text: None });
            }
            Err(e) => return Err(io_error("read", path)(e)),
        };
        let meta = fs::metadata(&real).map_err(io_error("read", path))?;
        if !meta.is_file() || meta.len() > LARGEST {
            return Err(EditError::NotText(path.to_owned()));
        }
        let bytes = fs::read(&real).map_err(io_error("read", path))?;
        let text = String::from_utf8(bytes).map_err(|_| EditError::NotText(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), real, text: Some(text) })
    }

    pub fn draft(&self, format: Format) -> Result<Draft, EditError> {
        Draft::read(format, self.text.as_deref().unwrap_or_default()).map_err(|fault| self.fault(fault))
    }

    pub fn fault(&self, fault: Fault) -> EditError {
        EditError::Text { path: self.path.clone(), fault }
    }
}

/// What a file becomes. `None`: it goes.
#[derive(Debug, Clone)]
pub struct Change {
    pub original: Original,
    pub after: Option<String>,
    /// The folder whose presence tells Claude Code that somebody writes.
    pub foreign_lock: Option<PathBuf>,
    /// The text is one that we wrote, and what was before it is kept already.
    pub is_ours: bool,
}

impl Change {
    pub fn is_needed(&self) -> bool {
        self.original.text != self.after
    }

    /// Writes it; gives the backup of what was there, unless that was ours.
    pub async fn write(&self) -> Result<Option<PathBuf>, EditError> {
        let path = &self.original.path;
        let folder = self.original.real.parent().ok_or_else(|| EditError::NotText(path.clone()))?;
        if !folder.is_dir() {
            client::config::private_folder(folder).map_err(io_error("make the folder of", path))?;
        }
        let _turn = lock_folder(folder, path).await?;
        let _foreign = match &self.foreign_lock {
            Some(lock) => Some(ForeignLock::take(lock, path).await?),
            None => None,
        };
        let now = Original::read(path)?;
        if now.text != self.original.text || now.real != self.original.real {
            return Err(EditError::Changed(path.clone()));
        }
        // Renaming would get by it, but somebody has meant it: a program that makes this file, for one.
        if fs::metadata(&now.real).is_ok_and(|meta| meta.mode() & 0o222 == 0) {
            return Err(EditError::ReadOnly(path.clone()));
        }
        let backup = match &now.text {
            Some(text) if !self.is_ours => Some(back_up(&now.real, text)?),
            _ => None,
        };
        match &self.after {
            Some(text) => replace(&now.real, text)?,
            None => fs::remove_file(&now.real).map_err(io_error("remove", path))?,
        }
        Ok(backup)
    }
}

/// A turn at the files of a folder. The folder itself is locked: it outlives every renaming, and nothing lies beside the file.
pub async fn lock_folder(folder: &Path, path: &Path) -> Result<File, EditError> {
    let turn = File::open(folder).map_err(io_error("lock", folder))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match turn.try_lock() {
            Ok(()) => return Ok(turn),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(fs::TryLockError::WouldBlock) => return Err(EditError::Busy(path.to_owned())),
            Err(fs::TryLockError::Error(e)) => return Err(io_error("lock", folder)(e)),
        }
    }
}

/// Claude Code's lock of its own file; other programs have none.
pub fn foreign_lock(file: &Path) -> Option<PathBuf> {
    let is_claude = file.file_name().is_some_and(|name| name == ".claude.json");
    is_claude.then(|| file.with_file_name(".claude.json.lock"))
}

/// `<file>.lock`, a folder: who can make it may write. This is how Claude Code keeps its sessions apart.
struct ForeignLock(PathBuf);

impl ForeignLock {
    async fn take(lock: &Path, path: &Path) -> Result<Self, EditError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match fs::create_dir(lock) {
                Ok(()) => return Ok(Self(lock.to_owned())),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let since = fs::metadata(lock).and_then(|meta| meta.modified());
                    let age = since.ok().and_then(|since| since.elapsed().ok());
                    if age.is_some_and(|age| age > STALE_LOCK) {
                        let _ = fs::remove_dir(lock);
                    } else if Instant::now() > deadline {
                        return Err(EditError::Busy(path.to_owned()));
                    }
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(e) => return Err(io_error("lock", path)(e)),
            }
        }
    }
}

impl Drop for ForeignLock {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// `<file>.claudemesh-<UTC time>.bak`, as readable as the file itself.
fn back_up(real: &Path, text: &str) -> Result<PathBuf, EditError> {
    let meta = fs::metadata(real).map_err(io_error("read", real))?;
    let time = chrono::Utc::now().format("%Y%m%dT%H%M%S%.3fZ");
    let mut name = real.file_name().unwrap_or_default().to_owned();
    name.push(format!(".claudemesh-{time}.bak"));
    let backup = real.with_file_name(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&backup)
        .map_err(io_error("write", &backup))?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| like(&file, &meta)).and_then(|()| file.sync_all());
    written.map_err(io_error("write", &backup))?;
    Ok(backup)
}

/// Owner and mode of another file. Whoever is not root can only have their own.
fn like(file: &File, meta: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
        // A group that we are not in stays out; the mode never grows by that.
        let _ = fchown(file, Some(meta.uid()), Some(meta.gid()));
    }
    file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))
}

fn replace(real: &Path, text: &str) -> Result<(), EditError> {
    let folder = real.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        let mut new = tempfile::Builder::new().prefix(".claudemesh-").tempfile_in(folder)?;
        new.write_all(text.as_bytes())?;
        if let Ok(meta) = fs::metadata(real) {
            like(new.as_file(), &meta)?;
        }
        new.as_file().sync_all()?;
        new.persist(real).map_err(|e| e.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(io_error("write", real))
}

#[cfg(test)]
mod tests;
