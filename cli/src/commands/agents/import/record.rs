//! What stood in the entries that `import` replaced. It holds the secrets that stood there: mode 0600, until it is deleted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::found::Place;
use crate::commands::agents::clients::Style;
use crate::commands::agents::edit::lock_folder;
use crate::commands::agents::text::Format;
use crate::failure::Failure;

const FILE: &str = "import-record.json";

#[derive(Clone, Serialize, Deserialize)]
pub struct Item {
    pub file: PathBuf,
    pub path: Vec<String>,
    pub service: String,
    is_toml: bool,
    is_vector: bool,
    /// The text of the entry.
    pub raw: String,
}

impl Item {
    pub fn of(place: &Place, service: &str, raw: String) -> Self {
        Self {
            file: place.file.clone(),
            path: place.path.clone(),
            service: service.to_owned(),
            is_toml: place.format == Format::Toml,
            is_vector: place.style == Style::Vector,
            raw,
        }
    }

    pub fn format(&self) -> Format {
        if self.is_toml { Format::Toml } else { Format::Json }
    }

    pub fn style(&self) -> Style {
        if self.is_vector { Style::Vector } else { Style::Parts { has_type: false } }
    }
}

pub fn path(config: &Path) -> PathBuf {
    config.join(FILE)
}

pub fn load(config: &Path) -> Result<Vec<Item>, Failure> {
    let path = path(config);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            // Not with the text that is wrong: it may be a secret.
            .map_err(|_| Failure::user(format!("{} is not a record of an import", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Failure::user(format!("cannot read {}: {e}", path.display()))),
    }
}

/// In place of what was known of that entry.
pub async fn add(config: &Path, item: Item) -> Result<(), Failure> {
    let _turn = lock_folder(config, config).await?;
    let mut items = load(config)?;
    items.retain(|known| known.file != item.file || known.path != item.path);
    items.push(item);
    save(config, &items)
}

/// What is back where it was.
pub async fn remove(config: &Path, done: &[Item]) -> Result<(), Failure> {
    let _turn = lock_folder(config, config).await?;
    let mut items = load(config)?;
    items.retain(|item| !done.iter().any(|done| done.file == item.file && done.path == item.path));
    save(config, &items)
}

/// None of them: the file goes.
pub fn save(config: &Path, items: &[Item]) -> Result<(), Failure> {
    let path = path(config);
    let failed = |e: std::io::Error| Failure::platform(format!("cannot write {}: {e}", path.display()));
    if items.is_empty() {
        return match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(()),
        };
    }
    let text = serde_json::to_vec(items)
        .map_err(|e| Failure::platform(format!("cannot write {}: {e}", path.display())))?;
    client::config::private_folder(config).map_err(failed)?;
    client::config::write_private(&path, &text).map_err(failed)
}
