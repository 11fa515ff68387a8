//! What a jail is asked to run, and the rules that a spec obeys.
//!
//! Here: [`JailSpec`], its check, its printing without secrets. Not here: applying it (see [`crate::server`]).
//! Invariant: no value of `env` and no secret reaches a message, and [`JailSpec::wipe`] leaves none in memory.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::secret::{self, SecretFile};
use crate::view::{Isolation, is_private_tmp, plain};

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// One server to run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// The program as an absolute path, then its arguments. No `PATH` is searched.
    pub argv: Vec<String>,
    /// The server's whole environment, but for `HOME` and `TMPDIR`, which are `home` and `tmp`. Holds secrets.
    #[serde(with = "secret::lengths")]
    pub env: Vec<(String, String)>,
    /// Where the server starts; it must exist.
    pub cwd: PathBuf,
    /// The server's `HOME`; made with mode 0700 if it is not there.
    pub home: PathBuf,
    /// The server's `TMPDIR`; made with mode 0700 if it is not there. In a strict jail `/tmp` is the private one, and no
    /// directory outside.
    pub tmp: PathBuf,
    pub limits: Limits,
    pub isolation: Isolation,
    /// Directories of cgroups (one for version 2, one a hierarchy for version 1) that the server joins before its first
    /// instruction.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// A strict jail only.
    #[serde(default)]
    pub secret_files: Vec<SecretFile>,
}

/// Resource limits, each put on every process of the tree on its own. `None`: as inherited. Core dumps are always off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// `RLIMIT_DATA`: private writable memory of one process. Not `RLIMIT_AS`, which kills V8 at its start.
    pub memory_bytes: Option<u64>,
    /// `RLIMIT_NPROC`: how many processes and threads may be added to those that the uid has when the server starts.
    /// The kernel counts by uid, so with a shared one a neighbour's later threads count too: choose it generously.
    /// In a strict jail it counts the jail's own alone, whoever the runner is.
    pub max_processes: Option<u64>,
    /// `RLIMIT_NOFILE`.
    pub open_files: u64,
    /// `RLIMIT_FSIZE`: the largest file a process may write.
    pub file_size_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: Some(1024 << 20),
            max_processes: None,
            open_files: 1024,
            file_size_bytes: Some(1024 << 20),
        }
    }
}

/// A spec that no jail is built for. Names the field, never a value of the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    #[error("`{0}` must be an absolute path")]
    NotAbsolute(&'static str),
    #[error("`{0}` holds a NUL character")]
    Nul(&'static str),
    #[error("an environment name is empty or holds `=`")]
    EnvName,
    #[error("the environment names `{0}` twice")]
    EnvTwice(String),
    #[error("the environment gives `{0}` a value other than the jail's own directory")]
    EnvOwned(&'static str),
    #[error("`{0}` must be spelled without `.`, `..` and needless slashes")]
    NotPlain(&'static str),
    #[error("{} is nothing that one server may be given", .0.display())]
    NotBindable(PathBuf),
    #[error("`{0}` lies inside another directory that the server can write")]
    Inside(&'static str),
    #[error("no server is given root or the uid that means none")]
    Uid,
    #[error("a private `/tmp` without room is of no use")]
    Tmpfs,
    #[error("a port is 0, or there are more than 128")]
    Ports,
    #[error("{} is no cgroup", .0.display())]
    NotCgroup(PathBuf),
    #[error("files of secrets need the strict jail")]
    SecretsNeedStrict,
    #[error("{} is not `/secrets/NAME` or `/run/secrets/NAME`, is there twice, or is in the way of one", .0.display())]
    SecretPath(PathBuf),
    #[error("the environment and the files of secrets are too much for one server")]
    TooMuch,
}

impl JailSpec {
    /// Refuses what could only fail later, or be understood in two ways.
    pub fn check(&self) -> Result<(), BadSpec> {
        let program = self.argv.first().map(Path::new);
        let paths = [
            ("argv[0]", program.unwrap_or(Path::new(""))),
            ("cwd", &self.cwd),
            ("home", &self.home),
            ("tmp", &self.tmp),
        ];
        for (field, path) in paths {
            if !path.is_absolute() {
                return Err(BadSpec::NotAbsolute(field));
            }
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                return Err(BadSpec::Nul(field));
            }
        }
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(BadSpec::Nul("argv"));
        }
        self.isolation.check(&self.home, &self.tmp)?;
        self.check_cgroups()?;
        self.check_env()?;
        if matches!(self.isolation, Isolation::Light(_)) && !self.secret_files.is_empty() {
            return Err(BadSpec::SecretsNeedStrict);
        }
        secret::check(self)
    }

    fn check_cgroups(&self) -> Result<(), BadSpec> {
        self.cgroups.iter().try_for_each(|group| {
            plain("cgroups", group)?;
            match group.strip_prefix(CGROUPS) {
                Ok(below) if below != Path::new("") => Ok(()),
                _ => Err(BadSpec::NotCgroup(group.clone())),
            }
        })
    }

    /// Directories outside that the server can write: they must be its own.
    pub(crate) fn own_directories(&self) -> Vec<&Path> {
        let made = self.made_directories().into_iter();
        made.chain(self.isolation.writable().iter().map(PathBuf::as_path)).collect()
    }

    /// Those of them that the helper makes.
    pub(crate) fn made_directories(&self) -> Vec<&Path> {
        let is_outside =
            |tmp: &Path| !(matches!(self.isolation, Isolation::Strict(_)) && is_private_tmp(tmp));
        let tmp = Some(self.tmp.as_path()).filter(|tmp| is_outside(tmp));
        [Some(self.home.as_path()), tmp].into_iter().flatten().collect()
    }

    fn check_env(&self) -> Result<(), BadSpec> {
        let mut names = HashSet::new();
        for (name, value) in &self.env {
            if name.is_empty() || name.contains('=') {
                return Err(BadSpec::EnvName);
            }
            if name.contains('\0') || value.contains('\0') {
                return Err(BadSpec::Nul("env"));
            }
            if !names.insert(name) {
                return Err(BadSpec::EnvTwice(name.clone()));
            }
            for (owned, directory) in [("HOME", &self.home), ("TMPDIR", &self.tmp)] {
                if name == owned && Path::new(value) != directory {
                    return Err(BadSpec::EnvOwned(owned));
                }
            }
        }
        Ok(())
    }

    /// Overwrites the environment's values and the secrets; nobody but the server has a use for them once it runs.
    pub(crate) fn wipe(&mut self) {
        for (_, value) in &mut self.env {
            value.zeroize();
        }
        self.secret_files.clear();
    }
}

/// Also of a spec that no jail came of.
impl Drop for JailSpec {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl fmt::Debug for JailSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { argv, env, cwd, home, tmp, limits, isolation, cgroups, secret_files } = self;
        // Arguments are a place for tokens too, so only the program is shown.
        f.debug_struct("JailSpec")
            .field("program", &argv.first())
            .field("arguments", &argv.len().saturating_sub(1))
            .field("env", &env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", cwd)
            .field("home", home)
            .field("tmp", tmp)
            .field("limits", limits)
            .field("isolation", isolation)
            .field("cgroups", cgroups)
            .field("files", secret_files)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JailSpec {
        JailSpec {
            argv: vec!["/bin/true".into(), "--token=argument-secret".into()],
            env: vec![("KEY".into(), "value-secret".into())],
            cwd: "/".into(),
            home: "/h".into(),
            tmp: "/t".into(),
            limits: Limits::default(),
            isolation: Isolation::Light(Default::default()),
            cgroups: vec![],
            secret_files: vec![],
        }
    }

    #[test]
    fn printing_a_spec_shows_names_and_no_values() {
        let text = format!("{:?}", spec());
        assert!(text.contains("KEY") && text.contains("/bin/true"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_spec_that_could_mean_two_things_is_refused() {
        type Change = fn(&mut JailSpec);
        let cases: [(Change, BadSpec); 12] = [
            (|s| s.argv.clear(), BadSpec::NotAbsolute("argv[0]")),
            (|s| s.argv[0] = "node".into(), BadSpec::NotAbsolute("argv[0]")),
            (|s| s.home = "home".into(), BadSpec::NotAbsolute("home")),
            (|s| s.argv.push("a\0b".into()), BadSpec::Nul("argv")),
            (|s| s.env.push(("N".into(), "a\0b".into())), BadSpec::Nul("env")),
            (|s| s.cgroups.push("/sys/fs/cgroup".into()), BadSpec::NotCgroup("/sys/fs/cgroup".into())),
            (|s| s.cgroups.push("/tmp/x".into()), BadSpec::NotCgroup("/tmp/x".into())),
            (|s| s.cgroups.push("/sys/fs/cgroup/../x".into()), BadSpec::NotPlain("cgroups")),
            (|s| s.env.push(("A=B".into(), String::new())), BadSpec::EnvName),
            (|s| s.env.push(("KEY".into(), String::new())), BadSpec::EnvTwice("KEY".into())),
            (|s| s.env.push(("HOME".into(), "/root".into())), BadSpec::EnvOwned("HOME")),
            (|s| s.env.push(("TMPDIR".into(), "/tmp".into())), BadSpec::EnvOwned("TMPDIR")),
        ];
        assert_eq!(spec().check(), Ok(()));
        for (change, refusal) in cases {
            let mut changed = spec();
            change(&mut changed);
            assert_eq!(changed.check(), Err(refusal));
        }
    }

    #[test]
    fn naming_the_jails_own_home_is_no_contradiction() {
        let mut same = spec();
        same.env.push(("HOME".into(), "/h".into()));
        assert_eq!(same.check(), Ok(()));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut value = serde_json::to_value(spec()).unwrap();
        value["network"] = true.into();
        assert!(serde_json::from_value::<JailSpec>(value).is_err());
    }

    #[test]
    fn wiping_leaves_no_value() {
        let mut wiped = spec();
        wiped.wipe();
        assert!(wiped.env.iter().all(|(_, value)| value.is_empty()));
    }
}
