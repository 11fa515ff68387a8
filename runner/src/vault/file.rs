//! Small files that are there as a whole or as they were before.
//!
//! Here: replacing one, so that a kill or a loss of power at any moment leaves the old bytes or the new ones, and reading
//! JSON. Not here: what is in them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes beside it, and moves that into its place. Mode 0600.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = beside(path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    sync_directory(path)
}

/// Makes the name of a new file last.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    name.into()
}

/// `None` when there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        // The text of the error could hold a part of the file.
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| io::ErrorKind::InvalidData.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_not_be_replaced_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"old").unwrap();
        // What a kill between writing and moving leaves is no hindrance; something that can't be written over is.
        std::fs::write(beside(&path), b"half").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        std::fs::create_dir(beside(&path)).unwrap();
        assert!(replace(&path, b"newer").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_is_no_json_is_an_error_and_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_json::<u8>(&path).unwrap(), None);
        std::fs::write(&path, "7 hunter2").unwrap();
        let error = read_json::<u8>(&path).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
