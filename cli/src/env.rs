//! Every environment variable that this binary reads outside its flags (those are `env = …` in `args`).
//!
//! `docs/env-vars.md` lists them all; a test compares.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

fn home() -> Result<PathBuf, Failure> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).ok_or_else(|| {
        Failure::user("HOME is not set, so there is no place for the config")
            .with_cure("Set HOME, or CLAUDEMESH_CONFIG_DIR.")
    })
}

/// Where `config.json` is.
pub fn config_folder() -> Result<PathBuf, Failure> {
    match std::env::var_os("CLAUDEMESH_CONFIG_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => Ok(home()?.join(".claudemesh")),
    }
}

pub fn default_data_folder() -> Result<PathBuf, Failure> {
    Ok(home()?.join(".claudemesh").join("data"))
}

/// A value that the user named with `--env NAME`, so that it need not be in argv.
pub fn named_by_user(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The login name, for a first display name.
pub fn login_name() -> Option<String> {
    std::env::var("USER").ok().filter(|name| !name.is_empty())
}

pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
}

/// Whether a hook tells why nothing came of it.
pub fn hook_debug() -> bool {
    std::env::var_os("CLAUDEMESH_HOOK_DEBUG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Where installers of Claude Code put it, when that is not in PATH.
pub fn claude_folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/local/bin")];
    if let Ok(home) = home() {
        folders.splice(0..0, [home.join(".local/bin"), home.join(".claude/local")]);
    }
    folders
}

/// What Claude Code grants an MCP server is little for one that may have to be installed first, or that says much.
pub fn limits_of_claude() -> Vec<(&'static str, &'static str)> {
    let mut limits = Vec::new();
    if std::env::var_os("MCP_TIMEOUT").is_none() {
        limits.push(("MCP_TIMEOUT", "30000"));
    }
    if std::env::var_os("MAX_MCP_OUTPUT_TOKENS").is_none() {
        limits.push(("MAX_MCP_OUTPUT_TOKENS", "50000"));
    }
    limits
}

/// Folders that are searched for tools by `doctor`.
pub fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Where the runner of `up` looks for package managers first: what the operator says, else the `.tools` that
/// `make setup` fills in the checkout whose `target/<profile>/claudemesh` we are.
pub fn tools(exe: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("CLAUDEMESH_TOOLS").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named
        .or_else(|| Some(exe.ancestors().nth(3)?.join(".tools")).filter(|folder| folder.join("bin").is_dir()))
}

/// The root key of the secrets in the database, when no file is named.
pub fn encryption_key() -> Option<wire::Secret> {
    std::env::var("BROKER_ENCRYPTION_KEY").ok().filter(|key| !key.is_empty()).map(wire::Secret::new)
}

/// A file that systemd hands over (systemd.exec(5), credentials).
pub fn credential(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder).join(name)).filter(|path| path.is_file())
}

/// A URL with a password must not be in argv.
pub fn database_url() -> Option<wire::Secret> {
    std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()).map(wire::Secret::new)
}

/// Where programs keep their configuration: the home directory, and what their own variables say instead.
pub struct ClientFolders {
    pub home: PathBuf,
    pub claude: Option<PathBuf>,
    pub codex: Option<PathBuf>,
    pub gemini: Option<PathBuf>,
    pub xdg_config: PathBuf,
}

pub fn client_folders() -> Result<ClientFolders, Failure> {
    let home = home()?;
    let set = |value: Option<OsString>| value.filter(|folder| !folder.is_empty()).map(PathBuf::from);
    Ok(ClientFolders {
        claude: set(std::env::var_os("CLAUDE_CONFIG_DIR")),
        codex: set(std::env::var_os("CODEX_HOME")),
        gemini: set(std::env::var_os("GEMINI_CLI_HOME")),
        xdg_config: set(std::env::var_os("XDG_CONFIG_HOME")).unwrap_or_else(|| home.join(".config")),
        home,
    })
}

/// The folder of the configuration, where it is not the one that every process of this user finds by itself.
pub fn own_config_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CLAUDEMESH_CONFIG_DIR").filter(|folder| !folder.is_empty())?;
    std::path::absolute(folder).ok()
}
