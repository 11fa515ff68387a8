//! The data folder of `up`: who holds it, and where things are in it.
//!
//! ```text
//! DATA/up.lock         held by the running `up`; its text is the process id
//! DATA/broker.db       SQLite
//! DATA/broker.key      root keys of the stored secrets, 0600
//! DATA/runner/         artefacts, service data, uploads
//! DATA/runner.sock     the runner's API, 0600
//! DATA/runner.log      what the runner says; the one before is runner.log.1
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use client::config::{private_folder, write_private};
use vault::AtRestKey;
use wire::Secret;

use crate::args::{DataArgs, KeyArgs};
use crate::env;
use crate::failure::Failure;
use crate::settings::secret_file;

/// A socket path must fit `sun_path`.
const MAX_SOCKET_PATH: usize = 100;
/// As a unit names it: `LoadCredential=claudemesh-encryption-key:PATH`.
const CREDENTIAL: &str = "claudemesh-encryption-key";

#[derive(Debug, Clone)]
pub struct DataFolder(PathBuf);

/// Held for the life of `up`; the kernel lets go of it whatever happens to us.
pub struct Held(#[expect(dead_code, reason = "it is held, never read")] File);

impl DataFolder {
    pub fn of(args: &DataArgs) -> Result<Self, Failure> {
        let path = match &args.data {
            Some(path) => path.clone(),
            None => env::default_data_folder()?,
        };
        let path = std::path::absolute(&path)
            .map_err(|e| Failure::user(format!("cannot use {}: {e}", path.display())))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn database_url(&self) -> String {
        format!("sqlite:{}", self.join("broker.db").display())
    }

    pub fn runner_socket(&self) -> PathBuf {
        self.join("runner.sock")
    }

    /// Creates the folder and takes the lock.
    pub fn hold(&self) -> Result<Held, Failure> {
        private_folder(&self.0).map_err(|e| self.unusable(&e))?;
        self.make_ours()?;
        if self.runner_socket().as_os_str().len() > MAX_SOCKET_PATH {
            let message = format!("{} is too long a path for a socket in it", self.0.display());
            return Err(Failure::user(message).with_cure("Choose a shorter one with --data."));
        }
        let mut file = self.open_lock().map_err(|e| self.unusable(&e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(self.in_use(&mut file)),
            Err(TryLockError::Error(e)) => return Err(self.unusable(&e)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|e| self.unusable(&e))?;
        Ok(Held(file))
    }

    /// Whoever may write here may put a socket of their own where our runner's is, and would be trusted with the vault.
    fn make_ours(&self) -> Result<(), Failure> {
        let us = nix::unistd::geteuid();
        let folder = std::fs::metadata(&self.0).map_err(|e| self.unusable(&e))?;
        if folder.uid() != us.as_raw() {
            let message = format!("{} belongs to another user", self.0.display());
            return Err(Failure::user(message).with_cure("Use a folder of your own with --data."));
        }
        // Services of root's runner have uids of their own and, where there are no namespaces, walk through here. They can't list
        // it, and each file in it is private.
        let mode = if us.is_root() { 0o711 } else { folder.mode() & 0o777 & !0o022 };
        let ours = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&self.0, ours).map_err(|e| self.unusable(&e))?;
        let socket = self.runner_socket();
        // Left by somebody who could write here before.
        if std::fs::symlink_metadata(&socket).is_ok_and(|found| found.uid() != us.as_raw()) {
            std::fs::remove_file(&socket).map_err(|e| self.unusable(&e))?;
        }
        Ok(())
    }

    /// The process id of the `up` that runs on this folder.
    pub fn holder(&self) -> Option<i32> {
        let mut file = OpenOptions::new().read(true).open(self.join("up.lock")).ok()?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => read_pid(&mut file),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    fn open_lock(&self) -> std::io::Result<File> {
        let path = self.join("up.lock");
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn in_use(&self, file: &mut File) -> Failure {
        let who = read_pid(file).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        let message = format!("claudemesh runs already on {}{who}", self.0.display());
        Failure::user(message).with_cure("Stop it with `claudemesh down`, or use another folder with --data.")
    }

    fn unusable(&self, error: &std::io::Error) -> Failure {
        Failure::platform(format!("cannot use {}: {error}", self.0.display()))
    }

    /// The keys of the environment, a named file or systemd; else the folder's own, made when there is none.
    pub fn at_rest_roots(&self, args: &KeyArgs) -> Result<Vec<AtRestKey>, Failure> {
        let given = given_roots(args)?;
        if !given.is_empty() {
            return Ok(given);
        }
        let path = self.join("broker.key");
        if path.exists() {
            return read_roots(&secret_file(&path)?, &path.display().to_string());
        }
        // A new key beside an old database would make every stored secret unreadable, and only later would anybody notice.
        if self.join("broker.db").exists() {
            let message = format!("{} is gone, and it opens the secrets in broker.db", path.display());
            return Err(
                Failure::user(message).with_cure("Put the key back, or start with an empty --data folder.")
            );
        }
        let key = AtRestKey::generate();
        write_private(&path, format!("{}\n", key.to_hex().as_str()).as_bytes())
            .map_err(|e| self.unusable(&e))?;
        tracing::warn!(
            "made {}, which opens what is encrypted in the database: keep a copy of it, not beside the database's; \
             in production give a key by BROKER_ENCRYPTION_KEY, --key-file or a systemd credential",
            path.display()
        );
        Ok(vec![key])
    }
}

/// BROKER_ENCRYPTION_KEY, or the file that `--key-file` names, or what systemd hands over; empty when nobody gives one. Of
/// several keys the first seals, the others open what was sealed before.
pub fn given_roots(args: &KeyArgs) -> Result<Vec<AtRestKey>, Failure> {
    match (env::encryption_key(), &args.key_file) {
        (Some(_), Some(_)) => {
            Err(Failure::user("both BROKER_ENCRYPTION_KEY and a key file are given; use one"))
        }
        (Some(keys), None) => read_roots(&keys, "BROKER_ENCRYPTION_KEY"),
        (None, Some(path)) => read_roots(&secret_file(path)?, &path.display().to_string()),
        (None, None) => match env::credential(CREDENTIAL) {
            Some(path) => read_roots(&secret_file(&path)?, &path.display().to_string()),
            None => Ok(Vec::new()),
        },
    }
}

/// Keys with commas or white space between them.
fn read_roots(text: &Secret, from: &str) -> Result<Vec<AtRestKey>, Failure> {
    let bad = || Failure::user(format!("{from} does not hold keys: 64 hex digits are wanted for each"));
    let texts = text.expose().split(|c: char| c == ',' || c.is_whitespace()).filter(|text| !text.is_empty());
    let keys: Vec<AtRestKey> = texts.map(AtRestKey::from_hex).collect::<Result<_, _>>().map_err(|_| bad())?;
    if keys.is_empty() { Err(bad()) } else { Ok(keys) }
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(DataFolder);

    impl Scratch {
        fn new() -> Self {
            let mut bytes = [0_u8; 8];
            getrandom::fill(&mut bytes).unwrap();
            Self(DataFolder(std::env::temp_dir().join(format!("cm-data-{}", hex::encode(bytes)))))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.0.path());
        }
    }

    fn no_key() -> KeyArgs {
        KeyArgs { key_file: None }
    }

    #[test]
    fn a_second_up_is_told_who_holds_the_folder() {
        let Scratch(data) = &Scratch::new();
        assert_eq!(data.holder(), None);
        let held = data.hold().unwrap();
        let refused = data.hold().err().unwrap();
        assert!(refused.message.contains(&format!("pid {}", std::process::id())), "{}", refused.message);
        assert_eq!(data.holder(), Some(std::process::id().try_into().unwrap()));
        drop(held);
        assert_eq!(data.holder(), None);
        data.hold().unwrap();
    }

    #[test]
    fn nobody_else_can_put_a_runner_where_ours_is_looked_for() {
        use std::os::unix::fs::lchown;
        let Scratch(data) = &Scratch::new();
        std::fs::create_dir(data.path()).unwrap();
        std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        drop(data.hold().unwrap());
        assert_eq!(std::fs::metadata(data.path()).unwrap().permissions().mode() & 0o022, 0);
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root can give files away");
            return;
        }
        std::fs::write(data.runner_socket(), "").unwrap();
        drop(data.hold().unwrap());
        assert!(data.runner_socket().exists(), "our own stays");
        lchown(data.runner_socket(), Some(4711), None).unwrap();
        drop(data.hold().unwrap());
        assert!(!data.runner_socket().exists());
        lchown(data.path(), Some(4711), None).unwrap();
        assert!(data.hold().err().unwrap().message.contains("another user"));
    }

    #[test]
    fn the_key_is_made_once_private_and_never_replaced_beside_a_database() {
        let Scratch(data) = &Scratch::new();
        data.hold().unwrap();
        let ids = |roots: Vec<AtRestKey>| roots.iter().map(|key| key.id().to_owned()).collect::<Vec<_>>();
        let key = ids(data.at_rest_roots(&no_key()).unwrap());
        let path = data.join("broker.key");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((ids(data.at_rest_roots(&no_key()).unwrap()), key.len()), (key, 1));
        std::fs::write(data.join("broker.db"), "").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(data.at_rest_roots(&no_key()).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_key_file_holds_one_key_or_several_and_a_wrong_one_is_not_echoed() {
        let Scratch(data) = &Scratch::new();
        data.hold().unwrap();
        let path = data.join("key");
        std::fs::write(&path, "ab".repeat(32) + "\n").unwrap();
        let args = KeyArgs { key_file: Some(path.clone()) };
        let first = given_roots(&args).unwrap().remove(0);
        for between in [",", "\n", " ,\r\n"] {
            let text = format!("{}{between}{}{between}", "ab".repeat(32), "cd".repeat(32));
            std::fs::write(&path, text).unwrap();
            let roots = given_roots(&args).unwrap();
            assert_eq!((roots.len(), roots[0].id()), (2, first.id()), "the first seals");
            assert_ne!(roots[1].id(), first.id());
        }
        for wrong in
            ["hunter2".to_owned(), format!("{},hunter2", "ab".repeat(32)), ",".into(), "ab".repeat(31)]
        {
            std::fs::write(&path, &wrong).unwrap();
            let message = given_roots(&args).err().unwrap().message;
            assert!(!message.contains("hunter2") && !message.contains("abab"), "{message}");
        }
    }
}
