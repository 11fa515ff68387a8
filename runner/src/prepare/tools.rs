//! The runtimes and package managers of this machine: where they are and which version they have.
//!
//! Here: the search (`$CLAUDEMESH_TOOLS/bin`, then `PATH`) and the environment that every step gets. Both read the
//! runner's own environment, because there the operator configures registries, proxies and certificates.
//! Not here: the environment of the hosted server, which has none of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
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
const PYTHON_PROBE: &str = "import sys, platform; print(platform.python_version(), getattr(sys, '_base_executable', None) or sys.executable)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) version: String,
    pub(crate) path: PathBuf,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    found: BTreeMap<&'static str, Tool>,
    path: OsString,
    /// `setpriv` of util-linux: lets the kernel end a step whose runner was killed.
    setpriv: Option<PathBuf>,
}

impl Tools {
    pub(crate) async fn find() -> Self {
        let dirs = search_dirs();
        let path = std::env::join_paths(&dirs).unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        let setpriv = executable(&dirs, "setpriv");
        let none = Self { found: BTreeMap::new(), path, setpriv };
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
        let tool = |path: &Path| Tool { version: "1".into(), path: path.to_owned() };
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

    /// What to put before a program so that it dies with the runner, even when that is killed.
    pub(crate) fn leash(&self) -> Option<(&Path, [&'static str; 3])> {
        Some((self.setpriv.as_deref()?, ["--pdeathsig", "KILL", "--"]))
    }

    /// `PATH` of install steps.
    pub(crate) fn path(&self) -> &OsString {
        &self.path
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

/// Last line of output: `[name] [v]VERSION [PATH]`.
async fn probe(file: &Path, args: &[&str], path: &OsString) -> Option<Tool> {
    let mut command = Command::new(file);
    command.args(args).env_clear().env("PATH", path).env("LANG", "C.UTF-8").current_dir("/");
    if let Some(home) = std::env::var_os("HOME") {
        command.env("HOME", home);
    }
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PROBE_LIMIT, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = clean(text.lines().rfind(|line| !line.trim().is_empty())?);
    let mut words = line.split_whitespace().skip_while(|word| !word.contains(|c: char| c.is_ascii_digit()));
    let version = words.next().filter(|_| output.status.success())?.trim_start_matches('v').to_owned();
    let real = words.next().map(PathBuf::from).filter(|p| p.is_absolute() && p.is_file());
    Some(Tool { version, path: real.unwrap_or_else(|| file.to_owned()) })
}

/// What a step may see of the runner's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A package manager: the operator's registry, proxy and certificate configuration, and the home that holds it.
    Registry,
    /// The deployer's own build code: nothing of the operator's but proxies, certificates, and the addresses of the
    /// Python indexes without their logins, because building a Python project fetches its build tools.
    Project,
}

/// The environment of one step, from scratch. `scratch` is the step's private directory.
pub(crate) fn step_env(
    tools: &Tools,
    reach: Reach,
    scratch: &Path,
    cache: &Path,
) -> Vec<(OsString, OsString)> {
    let mut env = operators(std::env::vars_os(), reach);
    let home = match reach {
        Reach::Registry => std::env::var_os("HOME").unwrap_or_else(|| scratch.into()),
        Reach::Project => scratch.into(),
    };
    let cached = |dir: &str| cache.join(dir).into_os_string();
    let fixed: [(&str, OsString); 22] = [
        ("PATH", tools.path().clone()),
        ("HOME", home),
        ("TMPDIR", scratch.into()),
        ("LANG", "C.UTF-8".into()),
        ("CI", "true".into()),
        ("NO_COLOR", "1".into()),
        ("npm_config_cache", cached("npm")),
        ("npm_config_update_notifier", "false".into()),
        ("npm_config_loglevel", "warn".into()),
        ("UV_CACHE_DIR", cached("uv")),
        ("UV_PYTHON_DOWNLOADS", "never".into()),
        // Links into the cache would let one service poison the next one's install.
        ("UV_LINK_MODE", "copy".into()),
        ("UV_NO_PROGRESS", "1".into()),
        ("BUN_INSTALL_CACHE_DIR", cached("bun")),
        ("XDG_CACHE_HOME", cached("xdg")),
        ("YARN_CACHE_FOLDER", cached("yarn")),
        ("YARN_ENABLE_GLOBAL_CACHE", "false".into()),
        ("YARN_ENABLE_TELEMETRY", "0".into()),
        ("YARN_NODE_LINKER", "node-modules".into()),
        ("PYTHONDONTWRITEBYTECODE", "1".into()),
        ("GIT_TERMINAL_PROMPT", "0".into()),
        ("COREPACK_ENABLE_DOWNLOAD_PROMPT", "0".into()),
    ];
    env.extend(fixed.map(|(name, value)| (name.into(), value)));
    env.into_iter().collect()
}

/// What a step gets of the runner's own variables.
fn operators(vars: impl Iterator<Item = (OsString, OsString)>, reach: Reach) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    for (name, value) in vars {
        let Some(text) = name.to_str() else { continue };
        if is_network(text) || (reach == Reach::Registry && is_registry(text)) {
            // npm reads both spellings; two of one name would race.
            let name = if text.starts_with("NPM_CONFIG_") { text.to_lowercase().into() } else { name };
            env.insert(name, value);
        } else if is_python_index(text)
            && let Some(urls) = value.to_str()
        {
            let public: Vec<String> = urls.split_whitespace().map(without_login).collect();
            env.insert(name, public.join(" ").into());
        }
    }
    mirror_pip_index(&mut env);
    env
}

fn is_python_index(name: &str) -> bool {
    const INDEXES: [&str; 6] = [
        "UV_DEFAULT_INDEX",
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_EXTRA_INDEX_URL",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    ];
    INDEXES.contains(&name)
}

/// `[name=]scheme://user:password@host/path` without the user and the password.
fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[host..])
}

fn is_network(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let proxy = matches!(lower.as_str(), "http_proxy" | "https_proxy" | "no_proxy" | "all_proxy");
    let certificates =
        ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    proxy || certificates.contains(&name)
}

/// Registry configuration; not the options that would change where or how we install.
fn is_registry(name: &str) -> bool {
    const NOT: [&str; 24] = [
        "npm_config_global",
        "npm_config_prefix",
        "npm_config_local_prefix",
        "npm_config_location",
        "npm_config_cache",
        "npm_config_dry_run",
        "npm_config_ignore_scripts",
        "npm_config_script_shell",
        "npm_config_package_lock",
        "npm_config_package_lock_only",
        "npm_config_omit",
        "npm_config_include",
        "npm_config_only",
        "npm_config_production",
        "npm_config_json",
        "npm_config_workspace",
        "npm_config_workspaces",
        "npm_config_node_options",
        "uv_system_python",
        "uv_project_environment",
        "uv_target",
        "uv_prefix",
        "uv_python",
        "uv_no_build",
    ];
    let lower = name.to_ascii_lowercase();
    let prefixed = ["npm_config_", "uv_", "pip_"].iter().any(|prefix| lower.starts_with(prefix));
    prefixed && !NOT.contains(&lower.as_str())
}

/// uv does not read pip's variables, yet they are where most machines name their mirror.
fn mirror_pip_index(env: &mut BTreeMap<OsString, OsString>) {
    let has = |env: &BTreeMap<OsString, OsString>, name: &str| env.contains_key(&OsString::from(name));
    if !has(env, "UV_DEFAULT_INDEX")
        && !has(env, "UV_INDEX_URL")
        && let Some(url) = env.get(&OsString::from("PIP_INDEX_URL")).cloned()
    {
        env.insert("UV_DEFAULT_INDEX".into(), url);
    }
    if !has(env, "UV_INDEX")
        && !has(env, "UV_EXTRA_INDEX_URL")
        && let Some(urls) = env.get(&OsString::from("PIP_EXTRA_INDEX_URL")).cloned()
    {
        env.insert("UV_EXTRA_INDEX_URL".into(), urls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_settings_pass_and_settings_that_move_the_install_do_not() {
        for yes in ["npm_config_registry", "NPM_CONFIG_CAFILE", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"] {
            assert!(is_registry(yes), "{yes}");
        }
        for no in
            ["npm_config_prefix", "NPM_CONFIG_GLOBAL", "UV_PROJECT_ENVIRONMENT", "NODE_OPTIONS", "LD_PRELOAD"]
        {
            assert!(!is_registry(no) && !is_network(no), "{no}");
        }
    }

    #[test]
    fn own_build_code_sees_the_indexes_but_no_login() {
        let vars = [
            ("UV_DEFAULT_INDEX", "https://user:p%40ss@pypi.corp/simple"),
            ("UV_INDEX", "https://a@one/x@y own=https://u:p@w@two"),
            ("UV_INDEX_OWN_PASSWORD", "s3cr3t"),
            ("npm_config__authToken", "s3cr3t"),
            ("HTTPS_PROXY", "http://proxy"),
            ("CLAUDEMESH_X", "s3cr3t"),
        ];
        let get = |reach| operators(vars.iter().map(|(n, v)| (n.into(), v.into())), reach);
        let text = |env: &BTreeMap<OsString, OsString>, name: &str| env[&OsString::from(name)].clone();
        let own = get(Reach::Project);
        assert_eq!(own.len(), 3, "{own:?}");
        assert_eq!(text(&own, "UV_DEFAULT_INDEX"), "https://pypi.corp/simple");
        assert_eq!(text(&own, "UV_INDEX"), "https://one/x@y own=https://two");
        let registry = get(Reach::Registry);
        assert_eq!(text(&registry, "UV_DEFAULT_INDEX"), "https://user:p%40ss@pypi.corp/simple");
    }

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
        assert_eq!(tools.get("bun").unwrap(), &Tool { version: "1.2.3".into(), path: file });
        assert!(tools.look_again().await.is_none());
    }

    #[test]
    fn pip_s_mirror_is_uv_s_mirror_unless_uv_has_one() {
        let mut env = BTreeMap::from([("PIP_INDEX_URL".into(), OsString::from("https://mirror/simple"))]);
        mirror_pip_index(&mut env);
        assert_eq!(env[&OsString::from("UV_DEFAULT_INDEX")], "https://mirror/simple");
        let mut own: BTreeMap<OsString, OsString> =
            BTreeMap::from([("PIP_INDEX_URL".into(), "a".into()), ("UV_INDEX_URL".into(), "b".into())]);
        mirror_pip_index(&mut own);
        assert!(!own.contains_key(&OsString::from("UV_DEFAULT_INDEX")));
    }
}
