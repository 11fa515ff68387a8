//! The runtimes and package managers of this machine: where they are, which version they have, and what a jail must show
//! of the file system so that they run.
//!
//! Here: the search (`$CLAUDEMESH_TOOLS/bin`, then `PATH`). Not here: their configuration ([`super::setting`],
//! [`super::registries`]).
//! Invariant: a tool's path has no symbolic link on it, and lies below `/usr` or one of its roots.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::process::Command;
use tokio_process_stream::{Item, ProcessLineStream};
use wire::ErrorCode;

use super::error::PrepareError;
use super::output::clean;

const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// A tool that sources may need, with the arguments that make it say what it is.
const KNOWN: [(&str, &[&str], &[&str]); 7] = [
    // The running executable, not a version manager's shim: a shim needs an environment that the jail does not have.
    ("node", &["node"], &["-p", "process.version + ' ' + process.execPath"]),
    ("npm", &["npm"], &["--version"]),
    ("uv", &["uv"], &["--version"]),
    ("python", &["python3", "python"], &["-I", "-c", PYTHON_PROBE]),
    ("bun", &["bun"], &["--version"]),
    ("pnpm", &["pnpm"], &["--version"]),
    ("yarn", &["yarn"], &["--version"]),
];
const PYTHON_PROBE: &str = "import sys, platform; print(platform.python_version(), getattr(sys, '_base_executable', None) or sys.executable, sys.base_prefix)";
/// Always in a jail's view.
const SYSTEM: &str = "/usr";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) version: String,
    pub(crate) path: PathBuf,
    /// What it needs besides `/usr`. Never a whole home.
    pub(crate) roots: Vec<PathBuf>,
}

impl Tool {
    fn at(version: String, file: &Path, prefix: Option<&Path>) -> Self {
        let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let roots = match prefix.and_then(|prefix| prefix.canonicalize().ok()) {
            Some(prefix) if prefix.starts_with(SYSTEM) && path.starts_with(SYSTEM) => Vec::new(),
            // The base of a Python that lies elsewhere than its executable.
            Some(prefix) if is_own(&prefix) && !path.starts_with(&prefix) => {
                [vec![prefix], roots_of(&path)].concat()
            }
            Some(prefix) if is_own(&prefix) => vec![prefix],
            _ => roots_of(&path),
        };
        Self { version, path, roots }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    found: BTreeMap<&'static str, Tool>,
    path: OsString,
}

impl Tools {
    pub(crate) async fn find() -> Self {
        let dirs = search_dirs();
        let path = std::env::join_paths(&dirs).unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        let none = Self { found: BTreeMap::new(), path };
        Self { found: none.missing().await, ..none }
    }

    /// The same tools and those that were installed since, if any were.
    pub(crate) async fn look_again(&self) -> Option<Self> {
        let mut found = self.missing().await;
        if found.is_empty() {
            return None;
        }
        found.extend(self.found.clone());
        Some(Self { found, ..self.clone() })
    }

    /// Asks those that are not found yet.
    async fn missing(&self) -> BTreeMap<&'static str, Tool> {
        let dirs: Vec<PathBuf> = std::env::split_paths(&self.path).collect();
        let wanted = KNOWN.iter().filter(|(name, ..)| !self.found.contains_key(name));
        let probes = wanted.map(|(name, files, args)| {
            let file = files.iter().find_map(|file| executable(&dirs, file));
            async move { Some((*name, probe(&file?, args, &self.path).await?)) }
        });
        futures_util::future::join_all(probes).await.into_iter().flatten().collect()
    }

    /// For tests: stand-ins that need no probe.
    #[cfg(test)]
    pub(crate) fn of(tools: &[(&'static str, &Path)]) -> Self {
        let tool = |path: &Path| Tool { version: "1".into(), path: path.to_owned(), roots: Vec::new() };
        Self { found: tools.iter().map(|(name, path)| (*name, tool(path))).collect(), ..Self::default() }
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Tool, PrepareError> {
        self.found.get(name).ok_or_else(|| {
            PrepareError::new(
                ErrorCode::RuntimeMissing,
                format!("this source needs `{name}`, which the runner does not have; install it there (`make setup`)"),
            )
        })
    }

    /// `node 20.20.2`, in the order of the table above.
    pub(crate) fn list(&self) -> Vec<String> {
        let describe = |(name, ..): &(&str, _, _)| Some(format!("{name} {}", self.found.get(name)?.version));
        KNOWN.iter().filter_map(describe).collect()
    }

    /// The versions that decide what an installed tree looks like.
    pub(crate) fn versions(&self, names: &[&str]) -> BTreeMap<String, String> {
        names.iter().filter_map(|n| Some((n.to_string(), self.found.get(n)?.version.clone()))).collect()
    }

    /// Those that were found.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &Tool)> {
        self.found.iter().map(|(name, tool)| (*name, tool))
    }

    /// What a hosted server can start by name, and so must see.
    pub(crate) fn runtime_roots(&self) -> Vec<PathBuf> {
        let runtimes = ["node", "bun", "python"].iter().filter_map(|name| self.found.get(name));
        runtimes.flat_map(|tool| tool.roots.clone()).collect()
    }

    /// `PATH` of the hosted server: the runtimes' own directories and the system's.
    pub(crate) fn run_path(&self, first: Option<&Path>) -> String {
        let mut dirs: Vec<PathBuf> = first.into_iter().map(Path::to_owned).collect();
        let runtimes = ["node", "bun", "python"].iter().filter_map(|n| self.found.get(n)?.path.parent());
        dirs.extend(runtimes.map(Path::to_owned));
        dirs.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
        let mut seen = std::collections::HashSet::new();
        dirs.retain(|dir| seen.insert(dir.clone()));
        std::env::join_paths(dirs).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

fn search_dirs() -> Vec<PathBuf> {
    let own = std::env::var_os("CLAUDEMESH_TOOLS").map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A relative entry would be looked up in a staging directory, that is, in a stranger's files.
    own.into_iter().chain(std::env::split_paths(&path)).filter(|dir| dir.is_absolute()).collect()
}

fn executable(dirs: &[PathBuf], file: &str) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    dirs.iter().map(|dir| dir.join(file)).find(runs)
}

/// What a jail must show of a program outside `/usr`: the installation that it is part of where that holds nothing else,
/// else its package, else only the file.
pub(crate) fn roots_of(program: &Path) -> Vec<PathBuf> {
    if program.starts_with(SYSTEM) {
        return Vec::new();
    }
    let installation = program.parent().filter(|dir| dir.ends_with("bin")).and_then(Path::parent);
    if let Some(prefix) = installation.filter(|prefix| prefix.join("lib").is_dir() && is_own(prefix)) {
        return vec![prefix.to_owned()];
    }
    let has_manifest = |dir: &&Path| dir.join("package.json").is_file();
    let package = program.ancestors().skip(1).take(3).find(has_manifest).filter(|dir| is_own(dir));
    vec![package.unwrap_or(program).to_owned()]
}

/// Whether a directory holds an installation and nothing of a person's: below the top, no home, nothing that one lies
/// in, and not the part of a home that all programs share.
fn is_own(dir: &Path) -> bool {
    let own_home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let is_home = |path: &Path| {
        own_home.as_deref() == Some(path)
            || path == Path::new("/root")
            || path.parent() == Some(Path::new("/home"))
    };
    let holds_ours = own_home.as_ref().is_some_and(|home| home.starts_with(dir));
    let is_shared = dir.ends_with(".local") && dir.parent().is_some_and(is_home);
    dir.components().count() > 2 && !is_home(dir) && !holds_ours && !is_shared
}

/// Last line of output: `[name] [v]VERSION [PATH [PREFIX]]`.
async fn probe(file: &Path, args: &[&str], path: &OsString) -> Option<Tool> {
    let mut command = Command::new(file);
    command.args(args).env_clear().env("PATH", path).env("LANG", "C.UTF-8").current_dir("/");
    if let Some(home) = std::env::var_os("HOME") {
        command.env("HOME", home);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    let mut said = ProcessLineStream::try_from(command).ok()?;
    let mut last = String::new();
    let listening = async {
        loop {
            match said.next().await? {
                Item::Stdout(line) if !line.trim().is_empty() => last = line,
                Item::Stdout(_) | Item::Stderr(_) => {}
                Item::Done(ended) => return ended.ok(),
            }
        }
    };
    tokio::time::timeout(PROBE_LIMIT, listening).await.ok()?.filter(|ended| ended.success())?;
    let line = clean(&last);
    let mut words = line.split_whitespace().skip_while(|word| !word.contains(|c: char| c.is_ascii_digit()));
    let version = words.next()?.trim_start_matches('v').to_owned();
    let real = words.next().map(PathBuf::from).filter(|p| p.is_absolute() && p.is_file());
    let prefix = words.next().map(PathBuf::from).filter(|p| p.is_absolute() && p.is_dir());
    Some(Tool::at(version, real.as_deref().unwrap_or(file), prefix.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tool_that_was_installed_since_is_found_by_looking_again() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools { path: dir.path().into(), ..Tools::of(&[]) };
        assert_eq!(tools.get("bun").unwrap_err().code(), ErrorCode::RuntimeMissing);
        assert!(tools.look_again().await.is_none(), "nothing is new");
        let file = dir.path().join("bun");
        std::fs::write(&file, "#!/bin/sh\necho 1.2.3\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tools = tools.look_again().await.unwrap();
        let found = tools.get("bun").unwrap();
        assert_eq!((found.version.as_str(), &found.path), ("1.2.3", &file.canonicalize().unwrap()));
        assert!(tools.look_again().await.is_none());
    }

    #[test]
    fn a_jail_is_shown_an_installation_but_never_a_home() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for made in ["py/bin", "py/lib", "m/node_modules/pnpm/bin", "lone"] {
            std::fs::create_dir_all(root.join(made)).unwrap();
        }
        std::fs::write(root.join("m/node_modules/pnpm/package.json"), "{}").unwrap();
        assert_eq!(roots_of(&root.join("py/bin/python3")), [root.join("py")]);
        assert_eq!(
            roots_of(&root.join("m/node_modules/pnpm/bin/pnpm.cjs")),
            [root.join("m/node_modules/pnpm")]
        );
        assert_eq!(roots_of(&root.join("lone/bun")), [root.join("lone/bun")]);
        assert!(roots_of(Path::new("/usr/bin/node")).is_empty());
        for home in ["/root", "/root/.local", "/home", "/home/ann", "/home/x/.local", "/opt", "/"] {
            assert!(!is_own(Path::new(home)), "{home}");
        }
        assert!(is_own(Path::new("/root/.pyenv/versions/3.11.7")) && is_own(Path::new("/opt/node")));
    }
}
