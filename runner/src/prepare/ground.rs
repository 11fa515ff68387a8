//! The directories of one install step, and whose they are.
//!
//! Here: its private home and temporary directory, the operator's files in it, links to the tools, giving directories to
//! the step's uid. Not here: what the step runs ([`super::step`]), the values of its environment ([`super::setting`]).
//! Invariant: a home serves one step; what the operator's files say is gone with it.
//!
//! ```text
//! staging/job-…/  artefact/tree  what becomes the artefact: writable
//!                 work           requirements and locks: writable
//!                 own            cache of steps that run foreign code: writable for those
//!                 bin            node, npm, uv, …: links, read-only
//!                 steps/N/       home, tmp
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use super::setting::{Places, Reach, rewrite_paths, step_env};
use super::tools::{Tools, roots_of};
use super::tree;

/// Where package managers keep what the operator has told them, relative to the home.
const SETTINGS: [&str; 5] =
    [".npmrc", ".netrc", ".config/uv/uv.toml", ".config/pip/pip.conf", ".pip/pip.conf"];
/// A larger file is no setting and no bundle of certificates.
const MAX_SETTING: u64 = 4 << 20;

/// What a step is made of, before its directories are.
pub(super) struct Lay<'a> {
    pub(super) tools: &'a Tools,
    pub(super) staging: &'a Path,
    /// Shared by all steps that run no foreign code.
    pub(super) cache: &'a Path,
    pub(super) reach: Reach,
    /// `None`: the runner's own.
    pub(super) uid: Option<u32>,
    /// Among this preparation's steps.
    pub(super) number: u64,
    pub(super) more_env: Vec<(OsString, OsString)>,
}

/// Ready for the step. Its home and its temporary directory are removed when it is dropped.
pub(super) struct Ground {
    dir: PathBuf,
    pub(super) home: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) env: Vec<(String, String)>,
    pub(super) read_only: Vec<PathBuf>,
    pub(super) writable: Vec<PathBuf>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.dir) {
            tracing::warn!("a step's home is removed with its staging directory, later: {error}");
        }
    }
}

/// Where files of ours for the steps are, and theirs for us.
pub(super) fn work_dir(staging: &Path) -> PathBuf {
    staging.join("work")
}

pub(super) fn own_cache(staging: &Path) -> PathBuf {
    staging.join("own")
}

/// Blocks. `io::Error`s name nothing of the operator's.
pub(super) fn lay(order: Lay<'_>) -> io::Result<Ground> {
    let Lay { tools, staging, reach, uid, .. } = order;
    let dir = staging.join("steps").join(order.number.to_string());
    private_dir(&dir)?;
    let (home, tmp) = (dir.join("home"), dir.join("tmp"));
    let bin = staging.join("bin");
    let cache = match reach {
        Reach::Registry => shared_cache(order.cache, uid)?,
        Reach::Project => own_cache(staging),
    };
    let writable = vec![staging.join("artefact/tree"), work_dir(staging), cache];
    for place in &writable {
        fs::create_dir_all(place)?;
    }
    // From here on what was made is removed if something fails.
    let mut ground = Ground { dir, home, tmp, env: Vec::new(), read_only: vec![bin.clone()], writable };
    private_dir(&ground.home)?;
    private_dir(&ground.tmp)?;
    link_tools(tools, &bin)?;
    ground.read_only.extend(tools.all().flat_map(|(_, tool)| tool.roots.clone()));
    let mut env = step_env(tools, reach, &Places { bin: &bin, cache: &ground.writable[2] });
    if reach == Reach::Registry {
        copy_settings(&ground.home)?;
    }
    show_named(&mut env, &mut ground)?;
    env.extend(order.more_env);
    ground.env = text_of(env);
    plain(&mut ground.read_only);
    if let Some(uid) = uid {
        // Not the cache: it is large, and given once.
        let own = if reach == Reach::Project { 3 } else { 2 };
        for place in ground.writable.iter().take(own).chain([&ground.home, &ground.tmp]) {
            give(place, uid)?;
        }
    }
    Ok(ground)
}

fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The operator may have made it a link to another disk.
fn shared_cache(cache: &Path, uid: Option<u32>) -> io::Result<PathBuf> {
    let cache = cache.canonicalize()?;
    match uid {
        Some(uid) if fs::symlink_metadata(&cache)?.uid() != uid => give(&cache, uid).map(|()| cache),
        _ => Ok(cache),
    }
}

/// The directory itself last: until then its owner says that it is not done. Links are given, never followed; a file of
/// several names that is not ours is left.
pub(super) fn give(dir: &Path, uid: u32) -> io::Result<()> {
    let mut dirs = vec![dir.to_owned()];
    let mut next = 0;
    // Not by descending: a stranger decides how deep it is.
    while let Some(dir) = dirs.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                dirs.push(path);
            } else if meta.uid() != uid && (meta.nlink() == 1 || meta.is_symlink()) {
                lchown(&path, Some(uid), Some(uid))?;
            }
        }
    }
    for dir in dirs.iter().rev() {
        if fs::symlink_metadata(dir)?.uid() != uid {
            lchown(dir, Some(uid), Some(uid))?;
        }
    }
    Ok(())
}

/// Names on the `PATH` that do not depend on how the tools were installed.
fn link_tools(tools: &Tools, bin: &Path) -> io::Result<()> {
    match fs::create_dir(bin) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    for (name, tool) in tools.all() {
        symlink(&tool.path, bin.join(name))?;
        if name == "python" {
            symlink(&tool.path, bin.join("python3"))?;
        }
    }
    Ok(())
}

/// Into the step's home, for its eyes only.
fn copy_settings(home: &Path) -> io::Result<()> {
    let Some(operators) = std::env::var_os("HOME").map(PathBuf::from) else { return Ok(()) };
    for name in SETTINGS {
        copy_setting(&operators.join(name), &home.join(name))?;
    }
    Ok(())
}

fn copy_setting(from: &Path, to: &Path) -> io::Result<()> {
    let text = match fs::metadata(from) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_SETTING => fs::read(from)?,
        _ => return Ok(()),
    };
    if let Some(parent) = to.parent() {
        private_dir(parent)?;
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?.write_all(&text)
}

/// Makes what the variables name be there: folders (of wheels, say) as they are, files as copies, which the step may
/// read whoever owns them.
fn show_named(env: &mut BTreeMap<OsString, OsString>, ground: &mut Ground) -> io::Result<()> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let copies = ground.home.join(".operator");
    let skip: Vec<PathBuf> = ground.read_only.iter().chain(&ground.writable).cloned().collect();
    rewrite_paths(env, |path| {
        if skip.iter().any(|known| path.starts_with(known)) {
            return Some(path.to_owned());
        }
        if path.is_dir() {
            // A home is no folder of wheels.
            let is_deep = path.components().count() > 2;
            return is_deep.then(|| {
                folders.push(path.to_owned());
                path.to_owned()
            });
        }
        let copy = copies.join(files.len().to_string());
        files.push((path.to_owned(), copy.clone()));
        Some(copy)
    });
    ground.read_only.extend(folders);
    files.iter().try_for_each(|(from, to)| copy_setting(from, to))
}

fn text_of(env: BTreeMap<OsString, OsString>) -> Vec<(String, String)> {
    let pair =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    env.into_iter().filter_map(pair).collect()
}

/// Sorted, each once, and nothing that lies below another.
pub(super) fn plain(paths: &mut Vec<PathBuf>) {
    paths.sort();
    paths.dedup_by(|below, kept| below.starts_with(kept));
}

/// What a hosted server must see of the machine: what its `PATH` names, and the interpreter that its environment leads to.
pub(super) fn shown_to_servers(tools: &Tools, tree: &Path, interpreter: Option<&Path>) -> Vec<PathBuf> {
    let mut shown = tools.runtime_roots();
    shown.push(tree.to_owned());
    let real = interpreter.and_then(|link| link.canonicalize().ok());
    if let Some(python) = real.filter(|python| !shown.iter().any(|seen| python.starts_with(seen))) {
        shown.extend(roots_of(&python));
    }
    plain(&mut shown);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_s_home_is_private_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        fs::create_dir(&cache).unwrap();
        let tools = Tools::of(&[("python", Path::new("/usr/bin/env"))]);
        let lay_for = |reach, number| {
            let staging = dir.path();
            lay(Lay { tools: &tools, staging, cache: &cache, reach, uid: None, number, more_env: Vec::new() })
                .unwrap()
        };
        let trusted = lay_for(Reach::Registry, 1);
        assert_eq!(fs::metadata(&trusted.home).unwrap().mode() & 0o777, 0o700);
        assert!(trusted.writable.contains(&cache.canonicalize().unwrap()));
        let home = trusted.home.clone();
        drop(trusted);
        assert!(!home.exists());
        let foreign = lay_for(Reach::Project, 2);
        assert!(!foreign.writable.contains(&cache), "{:?}", foreign.writable);
        assert!(fs::read_dir(&foreign.home).unwrap().next().is_none(), "no file of the operator's");
        assert!(dir.path().join("bin/python3").exists());
    }

    #[test]
    fn paths_below_others_and_doubles_are_left_out() {
        let mut paths = ["/b", "/a/x", "/a", "/ab", "/b"].map(PathBuf::from).to_vec();
        plain(&mut paths);
        assert_eq!(paths, ["/a", "/ab", "/b"].map(PathBuf::from));
    }

    #[test]
    fn a_setting_is_copied_for_its_step_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("npmrc"), dir.path().join("home/.npmrc"));
        copy_setting(&from, &to).unwrap();
        assert!(!to.exists(), "nothing to copy");
        fs::write(&from, "token").unwrap();
        copy_setting(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o600);
    }
}
