//! `import --undo` and `--forget`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::record::{self, Item};
use crate::args::WriteArgs;
use crate::commands::agents::edit::{Change, Original, foreign_lock};
use crate::commands::agents::show;
use crate::failure::Failure;
use crate::here::Here;

#[derive(Serialize)]
struct Done {
    restored: Vec<Vec<String>>,
    left: Vec<Vec<String>>,
}

pub async fn undo(here: &Here, write: WriteArgs) -> Result<(), Failure> {
    let items = record::load(&here.config_folder)?;
    if items.is_empty() {
        return Err(Failure::user("there is no record of an import"));
    }
    let mut files: BTreeMap<PathBuf, Vec<Item>> = BTreeMap::new();
    for item in items {
        files.entry(item.file.clone()).or_default().push(item);
    }
    let mut done = Done { restored: Vec::new(), left: Vec::new() };
    let mut services = Vec::new();
    for (file, items) in files {
        let restored = of_file(here, write, &file, items, &mut done.left).await?;
        services.extend(restored.iter().map(|item| item.service.clone()));
        done.restored.extend(restored.into_iter().map(|item| item.path));
    }
    if here.out.json {
        return here.out.document(&done);
    }
    for path in &done.restored {
        here.out.line(format!("{} is as it was", path.join(".")));
    }
    services.sort();
    services.dedup();
    if !services.is_empty() {
        here.out.remark(format!("still hosted: {}; remove with claudemesh rm NAME", services.join(", ")));
    }
    Ok(())
}

/// Gives what is back where it was. An entry that is not ours any more stays as it is.
async fn of_file(
    here: &Here,
    write: WriteArgs,
    file: &Path,
    items: Vec<Item>,
    left: &mut Vec<Vec<String>>,
) -> Result<Vec<Item>, Failure> {
    let Some(format) = items.first().map(Item::format) else { return Ok(items) };
    let original = Original::read(file)?;
    let mut draft = original.draft(format)?;
    let mut restored = Vec::new();
    for item in items {
        let path: Vec<&str> = item.path.iter().map(String::as_str).collect();
        let is_ours = |entry| item.style().read(entry).is_some_and(|program| program.is_ours());
        let is_free = draft.document.at(&path).is_none_or(is_ours);
        if is_free && draft.document.put_raw(&path, &item.raw).is_ok() {
            restored.push(item);
        } else {
            let path = item.path.join(".");
            here.out.remark(format!("{}: {path} was changed since; it stays", file.display()));
            left.push(item.path);
        }
    }
    let after = Some(draft.document.text().to_owned());
    let change = Change { foreign_lock: foreign_lock(file), original, after, is_ours: false };
    if !change.is_needed() {
        return Ok(Vec::new());
    }
    let shown = show::diff(&change, format);
    if write.dry_run {
        here.out.line(shown);
        return Ok(Vec::new());
    }
    if write.yes {
        here.out.remark(shown);
    } else {
        here.out.confirm(&shown, "Put this back?")?;
    }
    change.write().await?;
    // After each file: what is back is not in the record any more.
    record::remove(&here.config_folder, &restored).await?;
    Ok(restored)
}

pub fn forget(here: &Here, is_agreed: bool) -> Result<(), Failure> {
    let path = record::path(&here.config_folder);
    if !path.exists() {
        return Err(Failure::user("there is no record of an import"));
    }
    if !is_agreed {
        let shown = format!("{} is what `import --undo` needs", path.display());
        here.out.confirm(&shown, "Delete it?")?;
    }
    record::save(&here.config_folder, &[])?;
    here.out.line(format!("{} is deleted", path.display()));
    Ok(())
}
