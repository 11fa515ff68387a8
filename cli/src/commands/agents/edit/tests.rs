//! A file is changed whole or not at all.

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn change(path: &Path, after: Option<&str>) -> Change {
    let original = Original::read(path).unwrap();
    Change { original, after: after.map(str::to_owned), foreign_lock: None, is_ours: false }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_link_stays_a_link_and_mode_and_backup_are_kept() {
    let folder = folder();
    let real = folder.path().join("dotfiles.json");
    fs::write(&real, "{}").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link.json");
    std::os::unix::fs::symlink("dotfiles.json", &link).unwrap();
    let backup = change(&link, Some("{\"a\":1}")).write().await.unwrap().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), "{\"a\":1}");
    assert_eq!(fs::read_to_string(&backup).unwrap(), "{}");
    for path in [&real, &backup] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640, "{}", path.display());
    }
    assert_eq!(names(folder.path()).len(), 3, "nothing else is left: {:?}", names(folder.path()));
}

#[tokio::test]
async fn what_somebody_else_wrote_meanwhile_is_not_overwritten() {
    let folder = folder();
    let path = folder.path().join("a.json");
    fs::write(&path, "{}").unwrap();
    let change = change(&path, Some("{\"ours\":1}"));
    fs::write(&path, "{\"theirs\":1}").unwrap();
    assert!(matches!(change.write().await, Err(EditError::Changed(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"theirs\":1}");
    assert_eq!(names(folder.path()), ["a.json"], "no backup of nothing");
}

#[tokio::test]
async fn a_lock_that_its_owner_left_behind_is_taken_and_given_back() {
    let folder = folder();
    let (path, lock) = (folder.path().join("a.json"), folder.path().join("a.json.lock"));
    fs::create_dir(&lock).unwrap();
    let long_ago = std::time::SystemTime::now() - STALE_LOCK * 3;
    File::open(&lock).unwrap().set_modified(long_ago).unwrap();
    let change = Change { foreign_lock: Some(lock.clone()), ..change(&path, Some("{}")) };
    assert_eq!(change.write().await.unwrap(), None, "there was nothing to back up");
    assert_eq!(names(folder.path()), ["a.json"]);
}

#[test]
fn what_is_no_text_file_is_refused() {
    let folder = folder();
    let bytes = folder.path().join("bytes.json");
    fs::write(&bytes, [0xff, 0xfe]).unwrap();
    assert!(matches!(Original::read(&bytes), Err(EditError::NotText(_))));
    let link = folder.path().join("link.json");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    assert!(matches!(Original::read(&link), Err(EditError::Dangling(_))));
}

#[tokio::test]
async fn a_file_that_is_read_only_is_left_alone() {
    let folder = folder();
    let path = folder.path().join("a.json");
    fs::write(&path, "{}").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(change(&path, Some("{\"a\":1}")).write().await, Err(EditError::ReadOnly(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    assert_eq!(names(folder.path()), ["a.json"], "no backup of nothing");
}
