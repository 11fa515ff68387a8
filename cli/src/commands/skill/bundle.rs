//! A skill as files of this machine: a folder, a zip, a SKILL.md, a folder in a git repository.
//!
//! Here: reading one with the bounds of `wire::peer::skills`, and writing one into a new folder. Invariant: neither follows a link or
//! leaves its folder.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use wire::ErrorCode;
use wire::peer::skills::{Skill, SkillFile, is_bundle_path};
use zip::ZipArchive;

use super::front;
use crate::archive::SKIPPED;
use crate::failure::Failure;
use crate::units;

const MAX_INSTRUCTIONS: u64 = 256 << 10;
const MAX_FILES: usize = 200;
const MAX_BYTES: u64 = 4 << 20;
/// The bundle's own limit, and room for what is no part of it.
const MAX_ZIP: u64 = 16 << 20;
const MAX_ZIP_ENTRIES: usize = 2000;
const MAIN: &str = "SKILL.md";

pub struct Bundle {
    /// The SKILL.md.
    pub text: String,
    pub files: Vec<SkillFile>,
    /// What the folder is called.
    pub folder: Option<String>,
}

/// What was found so far, within the bounds.
#[derive(Default)]
struct Found {
    main: Option<String>,
    files: Vec<SkillFile>,
    bytes: u64,
}

impl Found {
    /// `size`: what the file says that it holds; it is not believed.
    fn add(
        &mut self,
        path: &str,
        (content, size): (impl Read, u64),
        executable: bool,
    ) -> Result<(), Failure> {
        let is_main = path == MAIN;
        if !is_main && !is_bundle_path(path) {
            return Err(Failure::user(format!("`{}` can not be part of a skill", path.escape_debug())));
        }
        if !is_main && self.files.len() >= MAX_FILES {
            return Err(too_large(format!("a skill has at most {MAX_FILES} files")));
        }
        let left = if is_main { MAX_INSTRUCTIONS } else { MAX_BYTES - self.bytes };
        let most = || match is_main {
            true => too_large(format!("{MAIN} holds at most {}", units::size(MAX_INSTRUCTIONS))),
            false => too_large(format!("the files of a skill hold at most {}", units::size(MAX_BYTES))),
        };
        if size > left {
            return Err(most());
        }
        let mut bytes = Vec::new();
        content.take(left + 1).read_to_end(&mut bytes).map_err(|e| unreadable(Path::new(path), &e))?;
        let size = bytes.len() as u64;
        if size > left {
            return Err(most());
        }
        if is_main {
            let text = String::from_utf8(bytes).map_err(|_| Failure::user(format!("{MAIN} is not UTF-8")))?;
            self.main = Some(text);
            return Ok(());
        }
        self.bytes += size;
        self.files.push(SkillFile { path: path.to_owned(), content: BASE64.encode(bytes), executable });
        Ok(())
    }

    fn bundle(mut self, place: &str, folder: Option<String>) -> Result<Bundle, Failure> {
        let text = self.main.ok_or_else(|| {
            Failure::user(format!("{place} has no {MAIN}")).with_cure("Name the folder that holds it.")
        })?;
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Bundle { text, files: self.files, folder })
    }
}

pub fn of_path(path: &Path) -> Result<Bundle, Failure> {
    let meta = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if meta.is_dir() {
        return of_folder(path);
    }
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("zip")) {
        if meta.len() > MAX_ZIP {
            let message = format!("{} is larger than {}", path.display(), units::size(MAX_ZIP));
            return Err(too_large(message));
        }
        let bytes = fs::read(path).map_err(|e| unreadable(path, &e))?;
        return of_zip(&path.display().to_string(), &bytes);
    }
    let mut found = Found::default();
    let file = fs::File::open(path).map_err(|e| unreadable(path, &e))?;
    found.add(MAIN, (file, meta.len()), false)?;
    found.bundle(&path.display().to_string(), None)
}

fn of_folder(folder: &Path) -> Result<Bundle, Failure> {
    let root = folder.canonicalize().map_err(|e| unreadable(folder, &e))?;
    let mut found = Found::default();
    collect(&root, "", &mut found)?;
    let name = root.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    found.bundle(&folder.display().to_string(), name)
}

fn collect(folder: &Path, prefix: &str, found: &mut Found) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let entry = entry.map_err(|e| unreadable(folder, &e))?;
        let (path, name) = (entry.path(), entry.file_name());
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let name = name.to_str().ok_or_else(|| Failure::user(format!("{} is not UTF-8", path.display())))?;
        let inside = format!("{prefix}{name}");
        let meta = entry.metadata().map_err(|e| unreadable(&path, &e))?;
        if meta.is_symlink() {
            let message = format!("{} is a link, which a skill can not have", path.display());
            return Err(Failure::user(message).with_cure("Replace it by what it points to."));
        }
        if meta.is_dir() {
            // A path has at most 255 characters, so this ends.
            if inside.len() > 255 {
                return Err(Failure::user(format!("{} is too deep", path.display())));
            }
            collect(&path, &format!("{inside}/"), found)?;
        } else if meta.is_file() {
            let file = fs::File::open(&path).map_err(|e| unreadable(&path, &e))?;
            found.add(&inside, (file, meta.len()), meta.permissions().mode() & 0o111 != 0)?;
        }
        // Sockets, pipes and devices are not part of a skill.
    }
    Ok(())
}

fn of_zip(place: &str, bytes: &[u8]) -> Result<Bundle, Failure> {
    let rejected = |why: String| Failure::of_code(ErrorCode::ArchiveRejected, format!("{place}: {why}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| rejected(e.to_string()))?;
    if archive.len() > MAX_ZIP_ENTRIES {
        return Err(rejected(format!("it has more than {MAX_ZIP_ENTRIES} entries")));
    }
    let names = archive.file_names().map(|name| name.map(Cow::into_owned)).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|e| rejected(e.to_string()))?;
    let prefix = prefix_of(&names).ok_or_else(|| Failure::user(format!("{place} has no {MAIN}")))?;
    let mut found = Found::default();
    for at in 0..archive.len() {
        let entry = archive.by_index(at).map_err(|e| rejected(e.to_string()))?;
        let name = entry.name().map_err(|e| rejected(e.to_string()))?.into_owned();
        if entry.is_dir() || is_rubbish(&name) {
            continue;
        }
        if entry.is_symlink() {
            return Err(rejected(format!("`{}` is a link", name.escape_debug())));
        }
        let Some(inside) = name.strip_prefix(&prefix) else {
            let message = format!("`{}` is outside of the folder of {MAIN}", name.escape_debug());
            return Err(rejected(message));
        };
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        let size = entry.size();
        found.add(inside, (entry, size), executable)?;
    }
    let folder = prefix.trim_end_matches('/').rsplit('/').next().map(str::to_owned);
    found.bundle(place, folder.filter(|folder| !folder.is_empty()))
}

/// The folder of the SKILL.md that is least deep.
fn prefix_of(names: &[String]) -> Option<String> {
    let prefixes = names.iter().filter(|name| !is_rubbish(name)).filter_map(|name| name.strip_suffix(MAIN));
    let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('/'));
    prefixes.min_by_key(|prefix| prefix.matches('/').count()).map(str::to_owned)
}

/// What archivers of some systems add.
fn is_rubbish(name: &str) -> bool {
    name.starts_with("__MACOSX/") || name.rsplit('/').next() == Some(".DS_Store")
}

/// A folder of a repository; without one, its root.
pub async fn of_git(url: &str, reference: Option<&str>, folder: Option<&Path>) -> Result<Bundle, Failure> {
    let scratch =
        tempfile::tempdir().map_err(|e| Failure::platform(format!("no place for a checkout: {e}")))?;
    let folder = folder.map(|folder| {
        let text = folder.to_str().map(|text| text.trim_start_matches("./").to_owned());
        text.ok_or_else(|| Failure::user("the folder in the repository is not UTF-8"))
    });
    let folder = folder.transpose()?;
    let checkout = runner::prepare::checkout_of(url, reference, folder.as_deref(), scratch.path()).await;
    let checkout = checkout.map_err(|e| Failure::of_code(e.code(), e.to_string()))?;
    let bundle = of_folder(&checkout)?;
    if folder.is_some() {
        return Ok(bundle);
    }
    // The checkout's own name says nothing.
    let name =
        url.trim_end_matches('/').rsplit('/').next().map(|name| name.trim_end_matches(".git").to_owned());
    Ok(Bundle { folder: name, ..bundle })
}

/// Writes a skill into a folder that is empty or not there yet.
pub fn write(skill: &Skill, folder: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, e: &io::Error| Failure::user(format!("cannot write {}: {e}", path.display()));
    let mut files: Vec<(PathBuf, Vec<u8>, bool)> =
        vec![(folder.join(MAIN), front::write(skill).into_bytes(), false)];
    for SkillFile { path, content, executable } in &skill.files {
        // What a broker says is not believed: this is about our own disk.
        let bytes = BASE64.decode(content).ok().filter(|_| is_bundle_path(path));
        let bytes =
            bytes.ok_or_else(|| Failure::platform("the broker sent a file that can not be written"))?;
        files.push((folder.join(path), bytes, *executable));
    }
    fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
    if fs::read_dir(folder).map_err(|e| failed(folder, &e))?.next().is_some() {
        return Err(Failure::user(format!("{} is not empty", folder.display())));
    }
    for (path, bytes, executable) in files {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| failed(parent, &e))?;
        }
        let mode = if executable { 0o755 } else { 0o644 };
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(&bytes)).map_err(|e| failed(&path, &e))?;
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::user(format!("cannot read {}: {error}", path.display()))
}

fn too_large(message: String) -> Failure {
    Failure::of_code(ErrorCode::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn paths(bundle: &Bundle) -> Vec<(&str, bool)> {
        bundle.files.iter().map(|file| (file.path.as_str(), file.executable)).collect()
    }

    fn zipped(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, text) in entries {
            let mode = if name.ends_with(".sh") { 0o755 } else { 0o644 };
            zip.start_file(*name, SimpleFileOptions::default().unix_permissions(mode)).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn a_folder_is_read_without_what_tools_make() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("review");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        fs::write(root.join(".git/HEAD"), "x").unwrap();
        fs::write(root.join("SKILL.md"), "# Hi").unwrap();
        fs::write(root.join("sub/b.txt"), "b").unwrap();
        fs::write(root.join("a.sh"), "a").unwrap();
        fs::set_permissions(root.join("a.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = of_path(&root).unwrap();
        assert_eq!((bundle.text.as_str(), bundle.folder.as_deref()), ("# Hi", Some("review")));
        assert_eq!(paths(&bundle), [("a.sh", true), ("sub/b.txt", false)]);
        assert_eq!(of_path(&root.join("SKILL.md")).unwrap().files, []);
        symlink("/etc/passwd", root.join("evil")).unwrap();
        assert!(of_path(&root).err().unwrap().message.contains("is a link"));
        fs::remove_file(root.join("evil")).unwrap();
        fs::write(root.join("large"), vec![0; (4 << 20) + 1]).unwrap();
        assert_eq!(of_path(&root).err().unwrap().code, Some(ErrorCode::TooLarge));
        assert!(of_path(&root.join("sub")).err().unwrap().message.contains("has no SKILL.md"));
    }

    #[test]
    fn a_zip_is_read_from_the_folder_of_its_skill_and_hostile_ones_are_refused() {
        let good = zipped(&[
            ("r/SKILL.md", "# Hi"),
            ("r/x/a.sh", "a"),
            ("__MACOSX/r/._a", ""),
            ("r/sub/SKILL.md", ""),
        ]);
        let bundle = of_zip("z", &good).unwrap();
        assert_eq!((bundle.text.as_str(), bundle.folder.as_deref()), ("# Hi", Some("r")));
        assert_eq!(paths(&bundle), [("sub/SKILL.md", false), ("x/a.sh", true)]);
        for bad in [
            zipped(&[("SKILL.md", ""), ("../evil", "")]),
            zipped(&[("SKILL.md", ""), ("/etc/evil", "")]),
            zipped(&[("r/SKILL.md", ""), ("elsewhere", "")]),
            zipped(&[("a", "")]),
            b"PK no zip".to_vec(),
        ] {
            assert!(of_zip("z", &bad).is_err());
        }
        let mut link = ZipWriter::new(Cursor::new(Vec::new()));
        link.start_file("SKILL.md", SimpleFileOptions::default()).unwrap();
        link.add_symlink("l", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        assert!(of_zip("z", &link.finish().unwrap().into_inner()).is_err());
        let zeros = "\0".repeat((4 << 20) + 1);
        let bomb = zipped(&[("SKILL.md", ""), ("zeros", &zeros)]);
        assert!(bomb.len() < 100_000, "it is small as long as it is packed");
        assert_eq!(of_zip("z", &bomb).err().unwrap().code, Some(ErrorCode::TooLarge));
    }

    #[test]
    fn a_skill_is_written_into_a_new_folder_only_and_never_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str| SkillFile { path: path.into(), content: "YQ==".into(), executable: true };
        let mut skill = Skill {
            name: "s".into(),
            description: "d".into(),
            instructions: "# Hi".into(),
            tags: Vec::new(),
            author: String::new(),
            manifest: None,
            created_at: String::new(),
            files: vec![file("x/a.sh")],
        };
        let folder = dir.path().join("new/s");
        write(&skill, &folder).unwrap();
        let bundle = of_path(&folder).unwrap();
        assert_eq!(bundle.files, skill.files);
        assert!(bundle.text.ends_with("---\n\n# Hi"));
        assert!(write(&skill, &folder).err().unwrap().message.contains("not empty"));
        skill.files = vec![file("../evil")];
        assert!(write(&skill, &dir.path().join("other")).is_err());
        assert!(!dir.path().join("evil").exists() && !dir.path().join("other").exists());
    }
}
