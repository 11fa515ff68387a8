//! What `connect` wrote and what was there before, so that `disconnect` can give it back byte for byte.
//!
//! A note, no truth: without it, or when the file was changed since, our entries are taken out of the text as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::edit::lock_folder;
use crate::failure::Failure;

const FILE: &str = "client-edits.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Something of ours was there already.
    #[default]
    Unknown,
    /// There was no file.
    Absent,
    Backup(PathBuf),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Edit {
    /// Hash of the text that we wrote.
    pub after: String,
    #[serde(default)]
    pub before: Before,
    /// Containers that we made.
    #[serde(default)]
    pub created: Vec<Vec<String>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record {
    edits: BTreeMap<PathBuf, Edit>,
}

pub fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

impl Record {
    /// One that can not be read is none.
    pub fn load(config: &Path) -> Self {
        let text = std::fs::read_to_string(config.join(FILE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn of(&self, real: &Path) -> Option<&Edit> {
        self.edits.get(real)
    }

    /// What there was before, if the text is still the one that we wrote. The inner `None`: no file.
    pub fn restored(&self, real: &Path, text: &str) -> Option<Option<String>> {
        let edit = self.of(real).filter(|edit| edit.after == hash(text))?;
        match &edit.before {
            Before::Unknown => None,
            Before::Absent => Some(None),
            Before::Backup(path) => Some(Some(std::fs::read_to_string(path).ok()?)),
        }
    }

    /// The file is again what its backup holds, secrets and all: once is enough.
    pub fn forget_backup(&self, real: &Path) {
        if let Some(Edit { before: Before::Backup(path), .. }) = self.of(real) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Notes what was done to one file; `None`: nothing of ours is in it any more.
    pub async fn note(config: &Path, real: &Path, edit: Option<Edit>) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::platform(format!("cannot write {FILE}: {e}"));
        client::config::private_folder(config).map_err(failed)?;
        // Others note other files meanwhile.
        let _turn = lock_folder(config, config).await?;
        let mut record = Self::load(config);
        match edit {
            Some(edit) => record.edits.insert(real.to_owned(), edit),
            None => record.edits.remove(real),
        };
        let text = serde_json::to_string(&record)
            .map_err(|e| Failure::platform(format!("cannot write {FILE}: {e}")))?;
        client::config::write_private(&config.join(FILE), text.as_bytes()).map_err(failed)
    }
}
