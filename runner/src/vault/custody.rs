//! Where the runner's own private key lies, and what opens it.
//!
//! ```text
//!   split    New ──boot key──► Open     after a restart   Locked ──the same boot key──► Open
//!   file     as split, with a boot key that the operating system hands over: Open from the start
//!   memory   Open with a new key at each start
//!   any      Broken: the key file can not be used; it is never written over
//! ```
//!
//! Not here: which vault keys it opens (see [`super::keys`]).
//! Invariant: a key file that exists is never replaced, and a new key is made only where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vault::{AtRestKey, BoxKey, Sealed};
use wire::ErrorCode;
use wire::vault::{BootKey, BoxPublic, Custody, RunnerId, VaultState};

use super::file;

const PURPOSE: &str = "claudemesh/runner-key/v1";
const NAME: &str = "runner.key";

/// The runner's own key pair.
pub struct OwnKey {
    pub key: BoxKey,
    pub public: BoxPublic,
    pub id: RunnerId,
}

/// The private key, encrypted under a boot key. Its name is beside it, so that it can be asked for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    v: u32,
    boot_id: String,
    public: BoxPublic,
    sealed: Sealed,
}

enum Kept {
    New,
    Locked(KeyFile),
    Open(Arc<OwnKey>),
    Broken(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustodyError {
    #[error("not a boot key: a name of 1-64 letters, digits, `-` and `_`, and 64 hex digits")]
    Form,
    #[error("this runner gets its boot key from its own system, not from a broker")]
    NotTaken,
    #[error("the runner's key is encrypted under the boot key `{0}`, not under this one")]
    OtherBoot(String),
    #[error("this is not the boot key `{0}`, or the runner's key file is damaged")]
    WrongKey(String),
    #[error("{0}")]
    Broken(String),
    #[error("the runner's key could not be written: {0}")]
    Write(std::io::ErrorKind),
}

impl CustodyError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Form => ErrorCode::InvalidArgs,
            Self::NotTaken | Self::OtherBoot(_) | Self::WrongKey(_) | Self::Broken(_) => {
                ErrorCode::VaultLocked
            }
            Self::Write(_) => ErrorCode::DiskFull,
        }
    }
}

pub struct Keeper {
    custody: Custody,
    path: PathBuf,
    kept: Kept,
}

impl Keeper {
    /// `boot_key_file`: of custody `file`.
    pub fn open(custody: Custody, directory: &Path, boot_key_file: Option<&Path>) -> Self {
        let path = directory.join(NAME);
        let kept = match custody {
            Custody::Memory => Kept::Open(OwnKey::from(BoxKey::generate())),
            Custody::Split => read(&path),
            Custody::File => {
                let mut keeper = Self { custody, kept: read(&path), path: path.clone() };
                match given(boot_key_file).and_then(|(id, key)| keeper.take(&id, &key)) {
                    Ok(_) => keeper.kept,
                    Err(e) => Kept::Broken(e.to_string()),
                }
            }
        };
        Self { custody, path, kept }
    }

    pub fn custody(&self) -> Custody {
        self.custody
    }

    pub fn own(&self) -> Option<&Arc<OwnKey>> {
        match &self.kept {
            Kept::Open(own) => Some(own),
            _ => None,
        }
    }

    pub fn state(&self) -> VaultState {
        match &self.kept {
            Kept::New => VaultState::New,
            Kept::Locked(file) => VaultState::Locked { boot_id: file.boot_id.clone() },
            Kept::Open(_) => VaultState::Open,
            Kept::Broken(message) => VaultState::Broken { message: message.clone() },
        }
    }

    /// Something else beside the key can't be used; nothing is opened any more.
    pub fn give_up(&mut self, message: String) {
        self.kept = Kept::Broken(message);
    }

    /// Opens the key, or makes one under this boot key. Whether that changed anything.
    pub fn unlock(&mut self, boot: &BootKey) -> Result<bool, CustodyError> {
        if self.custody != Custody::Split {
            return Err(CustodyError::NotTaken);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=64).contains(&boot.boot_id.len()) || !boot.boot_id.bytes().all(plain) {
            return Err(CustodyError::Form);
        }
        let key = AtRestKey::from_hex(boot.key.expose()).map_err(|_| CustodyError::Form)?;
        self.take(&boot.boot_id, &key)
    }

    fn take(&mut self, boot_id: &str, key: &AtRestKey) -> Result<bool, CustodyError> {
        match &self.kept {
            Kept::New => {
                let own = OwnKey::from(BoxKey::generate());
                write(&self.path, &own, boot_id, key).map_err(|e| CustodyError::Write(e.kind()))?;
                self.kept = Kept::Open(own);
                Ok(true)
            }
            Kept::Locked(file) => {
                let own = unseal(file, boot_id, key)?;
                self.kept = Kept::Open(own);
                Ok(true)
            }
            // Also then a wrong one is no silent success: the broker would keep it for the next start.
            Kept::Open(_) => match read(&self.path) {
                Kept::Locked(file) => unseal(&file, boot_id, key).map(|_| false),
                Kept::Broken(message) => Err(CustodyError::Broken(message)),
                Kept::New | Kept::Open(_) => {
                    Err(CustodyError::Broken("the runner's key file is not there any more".to_owned()))
                }
            },
            Kept::Broken(message) => Err(CustodyError::Broken(message.clone())),
        }
    }
}

impl From<BoxKey> for OwnKey {
    fn from(key: BoxKey) -> Self {
        let public = key.public();
        Self { id: vault::keys::runner_id(&public), public, key }
    }
}

impl OwnKey {
    fn from(key: BoxKey) -> Arc<Self> {
        let own: Arc<Self> = Arc::new(key.into());
        super::keep_off_swap(&own.key);
        own
    }
}

/// The boot key that the operating system handed over, and a name for it.
fn given(path: Option<&Path>) -> Result<(String, AtRestKey), CustodyError> {
    let broken = |message: String| CustodyError::Broken(message);
    let path = path.ok_or_else(|| broken("custody `file` needs a boot key file".to_owned()))?;
    let text = std::fs::read_to_string(path).map(zeroize::Zeroizing::new);
    let text = text.map_err(|e| broken(format!("the boot key file can not be read: {}", e.kind())))?;
    let key = AtRestKey::from_hex(&text)
        .map_err(|_| broken("the boot key file does not hold 64 hex digits".to_owned()))?;
    Ok((format!("file-{}", key.id()), key))
}

fn read(path: &Path) -> Kept {
    match file::read_json::<KeyFile>(path) {
        Ok(None) => Kept::New,
        Ok(Some(file)) if file.v == 1 => Kept::Locked(file),
        Ok(Some(_)) => Kept::Broken("the runner's key file is of another version".to_owned()),
        Err(e) => Kept::Broken(format!("the runner's key file can not be used: {}", e.kind())),
    }
}

fn write(path: &Path, own: &OwnKey, boot_id: &str, key: &AtRestKey) -> std::io::Result<()> {
    let sealed = key.seal(&[PURPOSE, boot_id, own.public.as_str()], own.key.to_bytes().as_ref());
    let (boot_id, public) = (boot_id.to_owned(), own.public.clone());
    file::write_json(path, &KeyFile { v: 1, boot_id, public, sealed })
}

fn unseal(file: &KeyFile, boot_id: &str, key: &AtRestKey) -> Result<Arc<OwnKey>, CustodyError> {
    if file.boot_id != boot_id {
        return Err(CustodyError::OtherBoot(file.boot_id.clone()));
    }
    let wrong = || CustodyError::WrongKey(file.boot_id.clone());
    let opened = key.open(&[PURPOSE, boot_id, file.public.as_str()], &file.sealed);
    let opened = opened.map_err(|_| wrong())?;
    let bytes = <&[u8; 32]>::try_from(opened.as_slice()).map_err(|_| wrong())?;
    let own = OwnKey::from(BoxKey::from_bytes(bytes));
    if own.public == file.public { Ok(own) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use wire::Secret;

    use super::*;

    fn boot(id: &str, byte: &str) -> BootKey {
        BootKey { boot_id: id.to_owned(), key: Secret::new(byte.repeat(32)) }
    }

    fn split(directory: &Path) -> Keeper {
        Keeper::open(Custody::Split, directory, None)
    }

    #[test]
    fn the_same_boot_key_gives_the_same_runner_back_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = split(dir.path());
        assert_eq!(first.state(), VaultState::New);
        assert_eq!(first.unlock(&boot("b1", "ab")), Ok(true));
        assert_eq!(first.unlock(&boot("b1", "ab")), Ok(false), "it is open already");
        assert_eq!(first.unlock(&boot("b1", "cd")), Err(CustodyError::WrongKey("b1".to_owned())));
        let id = first.own().unwrap().id.clone();
        let bytes = std::fs::read(dir.path().join(NAME)).unwrap();
        let mut next = split(dir.path());
        assert_eq!(next.state(), VaultState::Locked { boot_id: "b1".to_owned() });
        assert_eq!(next.unlock(&boot("b2", "ab")), Err(CustodyError::OtherBoot("b1".to_owned())));
        assert_eq!(next.unlock(&boot("b1", "cd")), Err(CustodyError::WrongKey("b1".to_owned())));
        assert_eq!(next.unlock(&boot("b1", "xy")), Err(CustodyError::Form));
        assert!(next.own().is_none());
        assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), bytes, "untouched");
        assert_eq!(next.unlock(&boot("b1", "ab")), Ok(true));
        assert_eq!(next.own().unwrap().id, id);
    }

    #[test]
    fn a_damaged_key_file_is_never_replaced_by_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        split(dir.path()).unlock(&boot("b1", "ab")).unwrap();
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(7) {
            for bytes in [whole[..at].to_vec(), {
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                flipped
            }] {
                std::fs::write(&path, &bytes).unwrap();
                let mut keeper = split(dir.path());
                assert!(keeper.unlock(&boot("b1", "ab")).is_err(), "at {at}");
                assert!(keeper.own().is_none());
                assert_eq!(std::fs::read(&path).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_runner_takes_its_boot_key_from_where_its_custody_says() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("boot");
        let open = || Keeper::open(Custody::File, dir.path(), Some(&key));
        assert!(matches!(open().state(), VaultState::Broken { .. }), "no boot key, no new key");
        assert!(!dir.path().join(NAME).exists());
        std::fs::write(&key, format!("{}\n", "ab".repeat(32))).unwrap();
        let id = open().own().unwrap().id.clone();
        let mut again = open();
        assert_eq!(again.own().unwrap().id, id);
        assert_eq!(again.unlock(&boot("b1", "ab")), Err(CustodyError::NotTaken));
        std::fs::write(&key, "cd".repeat(32)).unwrap();
        assert!(matches!(open().state(), VaultState::Broken { .. }));
        let memory = || Keeper::open(Custody::Memory, dir.path(), None).own().unwrap().id.clone();
        assert_ne!(memory(), memory());
    }
}
