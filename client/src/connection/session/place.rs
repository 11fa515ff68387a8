//! Where the processes of a session meet, and who of them holds the link: whoever has the lock.
//!
//! Invariant: the socket and the status file are touched by the holder of the lock and by nobody else. A holder that ends
//! removes its files; what a killed one leaves is replaced by the next, or swept away by another session's.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wire::{MemberId, MeshId};

use crate::connection::SessionPlace;

/// `sun_path` without its final zero.
const MAX_SOCKET_PATH: usize = 107;

/// The paths of one session of one member.
#[derive(Debug, Clone)]
pub(super) struct Meeting {
    folder: PathBuf,
    pub lock: PathBuf,
    pub socket: PathBuf,
    pub status: PathBuf,
    pub uid: u32,
}

/// While it lives, this process holds the link.
#[derive(Debug)]
pub(super) struct Hold {
    meeting: Meeting,
    _lock: File,
}

fn hash(parts: &[&[u8]]) -> String {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    let mut hex = hex::encode(sum.finalize());
    hex.truncate(16);
    hex
}

/// Without its ending.
pub(super) fn base(place: &SessionPlace, mesh: &MeshId, member: &MemberId) -> PathBuf {
    let session = place.session_id.as_bytes();
    place.dir.join(hash(&[mesh.as_str().as_bytes(), member.as_str().as_bytes(), session]))
}

/// Whether a process of the session lives: it has the lock.
pub(super) fn is_held(base: &Path) -> bool {
    match File::open(base.with_extension("lock")) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

impl Meeting {
    /// Makes the folder.
    pub(super) fn of(place: &SessionPlace, mesh: &MeshId, member: &MemberId) -> io::Result<Self> {
        let uid = own_uid()?;
        let base = base(place, mesh, member);
        own_folder(&place.dir, uid)?;
        let mut socket = base.with_extension("sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let short = PathBuf::from(format!("/tmp/claudemesh-{uid}"));
            own_folder(&short, uid)?;
            // Folders of several configurations meet there.
            let name = hash(&[fs::canonicalize(&place.dir)?.join(&base).as_os_str().as_encoded_bytes()]);
            socket = short.join(name).with_extension("sock");
        }
        Ok(Self {
            folder: place.dir.clone(),
            lock: base.with_extension("lock"),
            status: base.with_extension("status"),
            socket,
            uid,
        })
    }

    /// `None`: another process has it.
    pub(super) fn try_hold(&self) -> io::Result<Option<Hold>> {
        let Some(lock) = try_lock(&self.lock)? else { return Ok(None) };
        let hold = Hold { meeting: self.clone(), _lock: lock };
        match fs::remove_file(&self.socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(Some(hold)),
        }
    }

    /// Removes what killed holders of other sessions left here.
    pub(super) fn sweep(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let locks = entries.map(|entry| entry.path()).filter(|path| {
            path.extension().is_some_and(|extension| extension == "lock") && *path != self.lock
        });
        for lock in locks {
            if let Ok(Some(_held)) = try_lock(&lock) {
                let _ = fs::remove_file(lock.with_extension("sock"));
                let _ = fs::remove_file(lock.with_extension("status"));
                let _ = fs::remove_file(&lock);
            }
        }
    }
}

fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // A holder that ends removes its lock file: what we have locked may have lost its name since we opened it.
    let ours = file.metadata()?;
    let named = fs::metadata(path).is_ok_and(|named| (named.ino(), named.dev()) == (ours.ino(), ours.dev()));
    Ok(named.then_some(file))
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.meeting.socket);
        let _ = fs::remove_file(&self.meeting.status);
        // Last: from now on another may hold the link.
        let _ = fs::remove_file(&self.meeting.lock);
    }
}

fn own_uid() -> io::Result<u32> {
    let (one, _other) = tokio::net::UnixStream::pair()?;
    Ok(one.peer_cred()?.uid())
}

/// A folder that is ours and that nobody else can enter.
fn own_folder(folder: &Path, uid: u32) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != uid {
        let why = format!("{} is not a folder of ours", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
