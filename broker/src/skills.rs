//! Skills of the mesh: who shares and removes one, how large it may be, and who hears of it.
//!
//! Not here: rows (`store::skills`), how a skill looks to an agent (clients), files on a disk (the CLI).
//! Invariant: a path inside a bundle never leads out of the folder that it is written to.

use std::collections::{BTreeMap, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use catalog::access::{self, Action, Caller, Decision, Subject};
use wire::depth::{MAX_DEPTH, is_too_deep};
use wire::peer::skills::{ShareSkill, Skill as WireSkill, SkillEntry, SkillEvent, SkillFile, is_bundle_path};
use wire::{ErrorCode, MeshId, Scope, ServiceName};

use crate::app::Broker;
use crate::clock;
use crate::error::FrameError;
use crate::peer::events;
use crate::store::{Skill, SkillRow};
use crate::views::MeshView;

const MAX_INSTRUCTIONS: usize = 256 << 10;
const MAX_DESCRIPTION: usize = 2000;
const MAX_TAGS: usize = 32;
const MAX_TAG: usize = 64;
const MAX_MANIFEST: usize = 64 << 10;
const MAX_FILES: usize = 200;
const MAX_FILES_BYTES: usize = 4 << 20;
const MAX_OF_MESH: i64 = 500;
/// All skills of a mesh together.
const MAX_BYTES_OF_MESH: i64 = 128 << 20;

/// Makes or replaces a skill.
///
/// # Errors
/// `invalid_name`, `invalid_args`, `too_large`, `forbidden`, `limit`.
pub async fn share(broker: &Broker, caller: &Caller, frame: ShareSkill) -> Result<String, FrameError> {
    let skill = read(caller, frame)?;
    let (mesh, name) = (&caller.mesh, skill.row.name.clone());
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    let author = tx.skills().author(mesh, &name).await?;
    let subject = author.as_ref().map(|author| Subject { mesh, deployed_by: author, scope: &Scope::Mesh });
    if access::decide(caller, Action::ShareSkill, subject) != Decision::Allow {
        let message = match subject {
            Some(_) => "the name is taken by a skill of another member",
            None => "guests may not share skills",
        };
        return Err(FrameError::new(ErrorCode::Forbidden, message));
    }
    let (others, bytes) = tx.skills().others(mesh, &name).await?;
    if others >= MAX_OF_MESH {
        return Err(FrameError::new(ErrorCode::Limit, format!("a mesh has at most {MAX_OF_MESH} skills")));
    }
    if bytes + skill.size > MAX_BYTES_OF_MESH {
        let most = MAX_BYTES_OF_MESH >> 20;
        let message = format!("all skills of a mesh take at most {most} MiB");
        return Err(FrameError::new(ErrorCode::Limit, message));
    }
    tx.skills().put(mesh, &skill).await?;
    tx.commit().await?;
    tell(broker, caller, "skill_shared", &name);
    Ok(name)
}

/// `false` when there is none.
///
/// # Errors
/// `forbidden`.
pub async fn remove(broker: &Broker, caller: &Caller, name: &str) -> Result<bool, FrameError> {
    let mesh = &caller.mesh;
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(mesh).await?;
    let Some(author) = tx.skills().author(mesh, name).await? else { return Ok(false) };
    let subject = Subject { mesh, deployed_by: &author, scope: &Scope::Mesh };
    if access::decide(caller, Action::RemoveSkill, Some(subject)) != Decision::Allow {
        let message = "only the skill's author and admins may do this";
        return Err(FrameError::new(ErrorCode::Forbidden, message));
    }
    tx.skills().remove(mesh, name).await?;
    tx.commit().await?;
    tell(broker, caller, "skill_removed", name);
    Ok(true)
}

/// # Errors
/// When the store fails.
pub async fn find(broker: &Broker, view: &MeshView, name: &str) -> Result<Option<WireSkill>, FrameError> {
    let mut tx = broker.store.read().await?;
    let found = tx.skills().find(&view.mesh().id, name).await?;
    Ok(found.map(|skill| {
        let Skill { row, instructions, files, size: _ } = skill;
        WireSkill {
            author: view.name_of(&row.author),
            created_at: clock::iso(row.created_at),
            name: row.name,
            description: row.description,
            tags: row.tags,
            manifest: row.manifest,
            instructions,
            files,
        }
    }))
}

/// # Errors
/// When the store fails.
pub async fn list(
    broker: &Broker,
    view: &MeshView,
    query: Option<&str>,
) -> Result<Vec<SkillEntry>, FrameError> {
    let mut tx = broker.store.read().await?;
    let rows = tx.skills().list(&view.mesh().id).await?;
    let wanted = query.map(str::to_lowercase).unwrap_or_default();
    let speaks_of = |row: &SkillRow| {
        let texts = [&row.name, &row.description].into_iter().chain(&row.tags);
        texts.into_iter().any(|text| text.to_lowercase().contains(&wanted))
    };
    let entries = rows.into_iter().filter(speaks_of).map(|row| SkillEntry {
        author: view.name_of(&row.author),
        created_at: clock::iso(row.created_at),
        name: row.name,
        description: row.description,
        tags: row.tags,
        manifest: row.manifest,
        files: row.files,
    });
    Ok(entries.collect())
}

fn tell(broker: &Broker, caller: &Caller, event: &str, name: &str) {
    let data = SkillEvent { name: name.to_owned(), by: caller.display_name.clone() };
    let mesh: &MeshId = &caller.mesh;
    events::tell_members(&broker.presences, mesh, (event, &data), |_| true);
}

fn read(caller: &Caller, frame: ShareSkill) -> Result<Skill, FrameError> {
    let ShareSkill { name, description, instructions, tags, manifest, files } = frame;
    let name = ServiceName::parse(&name).ok().filter(ServiceName::is_plain).ok_or_else(|| {
        let rule = "1-64 chars, alphanumeric/hyphens/underscores, starting with alphanumeric, no `__`, not ending in `_`";
        FrameError::new(ErrorCode::InvalidName, format!("name: {rule}"))
    })?;
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(too_large(format!("instructions: at most {MAX_INSTRUCTIONS} bytes")));
    }
    if description.chars().count() > MAX_DESCRIPTION {
        return Err(FrameError::invalid(format!("description: at most {MAX_DESCRIPTION} characters")));
    }
    let is_tag =
        |tag: &String| (1..=MAX_TAG).contains(&tag.chars().count()) && !tag.chars().any(char::is_control);
    if tags.len() > MAX_TAGS || !tags.iter().all(is_tag) {
        let message = format!("tags: at most {MAX_TAGS}, each of 1 to {MAX_TAG} characters");
        return Err(FrameError::invalid(message));
    }
    if let Some(manifest) = &manifest {
        if manifest.get().len() > MAX_MANIFEST {
            return Err(too_large(format!("manifest: at most {MAX_MANIFEST} bytes")));
        }
        if !manifest.get().starts_with('{') || is_too_deep(manifest.get().as_bytes()) {
            let rule = format!("manifest: a JSON object that is nested at most {MAX_DEPTH} deep");
            return Err(FrameError::invalid(rule));
        }
    }
    let size = instructions.len() + bundle_size(&files)?;
    let mut paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    paths.sort();
    let row = SkillRow {
        name: name.to_string(),
        author: caller.member.clone(),
        description,
        tags,
        manifest,
        created_at: clock::now_ms(),
        files: paths,
    };
    Ok(Skill { row, instructions, files, size: i64::try_from(size).unwrap_or(i64::MAX) })
}

fn too_large(message: String) -> FrameError {
    FrameError::new(ErrorCode::TooLarge, message)
}

/// Bytes of the files, which can be written into one folder.
fn bundle_size(files: &[SkillFile]) -> Result<usize, FrameError> {
    if files.len() > MAX_FILES {
        return Err(too_large(format!("files: at most {MAX_FILES}")));
    }
    let mut size = 0;
    // Whether something is a file, or a folder of one.
    let mut places: BTreeMap<&str, bool> = BTreeMap::new();
    let mut folded = HashSet::new();
    for (at, file) in files.iter().enumerate() {
        let rule = |rule: &str| FrameError::invalid(format!("files[{at}].{rule}"));
        if !is_bundle_path(&file.path) {
            return Err(rule("path: relative, with `/`, without `..`, and not SKILL.md"));
        }
        // On some file systems `A` and `a` are one file.
        if !folded.insert(file.path.to_lowercase()) {
            return Err(rule("path: a second file of the same name"));
        }
        let folders = file.path.match_indices('/').map(|(end, _)| (&file.path[..end], false));
        for (place, is_file) in folders.chain([(file.path.as_str(), true)]) {
            if places.insert(place, is_file).is_some_and(|before| before || is_file) {
                return Err(rule("path: a file and a folder of the same name"));
            }
        }
        size += BASE64.decode(&file.content).map_err(|_| rule("content: base64"))?.len();
        if size > MAX_FILES_BYTES {
            return Err(too_large(format!("files: at most {MAX_FILES_BYTES} bytes in all")));
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &str) -> SkillFile {
        SkillFile { path: path.into(), content: content.into(), executable: false }
    }

    #[test]
    fn a_bundle_can_be_written_into_one_folder_and_nowhere_else() {
        let good = [file("a/b.txt", "aGVsbG8="), file("a/c", ""), file("d", "eA==")];
        assert_eq!(bundle_size(&good).ok(), Some(6));
        for bad in [
            vec![file("../a", "")],
            vec![file("/etc/passwd", "")],
            vec![file("a", ""), file("a/b", "")],
            vec![file("a/b", ""), file("a", "")],
            vec![file("a", ""), file("A", "")],
            vec![file("skill.md", "")],
            vec![file("a", "no base64!")],
        ] {
            let code = bundle_size(&bad).err().map(|error| error.code);
            assert_eq!(code, Some(ErrorCode::InvalidArgs), "{bad:?}");
        }
        let many: Vec<_> = (0..=MAX_FILES).map(|n| file(&format!("f{n}"), "")).collect();
        assert_eq!(bundle_size(&many).err().map(|error| error.code), Some(ErrorCode::TooLarge));
        let large = BASE64.encode(vec![0_u8; MAX_FILES_BYTES + 1]);
        assert_eq!(
            bundle_size(&[file("f", &large)]).err().map(|error| error.code),
            Some(ErrorCode::TooLarge)
        );
    }
}
