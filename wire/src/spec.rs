//! What a person asks for: the spec of a service, and the pin that a deploy makes of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vault::{RunAs, VaultRef};
use crate::{EgressRule, Secret, Tier};

/// The whole desired state of one generation, without any secret value. Stored, shown and sent to the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    pub source: Source,
    /// Overrides detection for git and archive sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Arguments after the entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// For git and archive sources: the file (relative to the project) that is started instead of the detected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Names of the environment variables whose values travel in [`Secrets::env`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_names: Vec<String>,
    /// With references to the vault: what binds the values of [`Self::env_names`] into what is signed. Hex of a SHA-256 over
    /// [`Secrets::env_salt`], names and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_digest: Option<String>,
    #[serde(default)]
    pub limits: Limits,
    /// Stop the process after this long without a call; a call wakes it. `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_stop_s: Option<u32>,
    /// Let npm run the packages' install scripts. Off unless the deployer asks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_scripts: bool,
    /// Where it may connect to; nowhere when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<EgressRule>,
    /// Until then (milliseconds since the epoch) it may also connect to ports 80 and 443 of any public host, and each such
    /// host is recorded as learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_until_ms: Option<i64>,
    /// The weakest jail it may run in, where the mesh would allow a weaker one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Tier>,
    /// Environment variables (none of [`Self::env_names`]) that get their value from the vault when an instance starts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vault: BTreeMap<String, VaultRef>,
    /// Whose entries these are.
    #[serde(default, skip_serializing_if = "RunAs::is_deployer")]
    pub run_as: RunAs,
    /// The process gets only placeholders for the vault's values of variables; the way out puts the value into the header
    /// of a request over TLS to one of these hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inject: Vec<EgressRule>,
    /// Secrets in results of its tools are passed on instead of masked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmasked_results: bool,
}

impl ServiceSpec {
    /// This source, and everything else as it is when nobody asks.
    pub fn of(source: Source) -> Self {
        Self {
            source,
            runtime: None,
            args: Vec::new(),
            entry: None,
            env_names: Vec::new(),
            env_digest: None,
            limits: Limits::default(),
            idle_stop_s: None,
            allow_scripts: false,
            network: Vec::new(),
            learn_until_ms: None,
            isolation: None,
            vault: BTreeMap::new(),
            run_as: RunAs::Deployer,
            inject: Vec::new(),
            unmasked_results: false,
        }
    }
}

/// The values that never enter a [`ServiceSpec`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    #[serde(default)]
    pub env: BTreeMap<String, Secret>,
    /// So that nobody finds values by trying, who sees [`ServiceSpec::env_digest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_salt: Option<Secret>,
    /// Token for a private git repository, sent as the password of HTTP basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_token: Option<Secret>,
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// An npm package: `name`, `name@1.2.3`, `name@^1`, `@scope/name@tag`.
    Npx {
        package: String,
        /// Which executable, when the package has several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bin: Option<String>,
    },
    /// A PyPI requirement: `name`, `name==1.2`, `name[extra]`, `name@1.2`.
    Uvx {
        package: String,
        /// The console script, when it differs from the package (`uvx --from PACKAGE BIN`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bin: Option<String>,
    },
    Git {
        url: String,
        /// Branch, tag or commit id; the remote's default branch when absent.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subdir: Option<String>,
    },
    /// A zip, `.mcpb` or gzipped tar that was uploaded before; named by the SHA-256 of its bytes (lowercase hex).
    Archive {
        sha256: String,
        format: ArchiveFormat,
        /// The file or folder name on the deployer's machine, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        label: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFormat {
    /// zip, also `.mcpb` (a zip with `manifest.json`).
    Zip,
    /// gzipped tar, which `claudemesh deploy ./folder` makes.
    TarGz,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Node,
    Bun,
    Python,
}

/// Limits of a whole service: of all its processes together where the runner has cgroups, else of each process
/// (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// MiB of memory, files in its `/tmp` included. 64 to 65,536.
    pub memory_mb: u32,
    /// Thousandths of a processor. 10 to 256,000. Not applied while it starts.
    pub milli_cpus: u32,
    /// Processes and threads. 8 to 65,536.
    pub pids: u32,
    /// MiB of its data directory, and of the largest file. 1 to 1,048,576.
    #[serde(alias = "file_size_mb")]
    pub disk_mb: u32,
    /// Open files a process may have (`RLIMIT_NOFILE`). 64 to 65,536.
    pub open_files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // Real servers need 53 to 330 MiB resident.
        Self { memory_mb: 512, milli_cpus: 1000, pids: 128, disk_mb: 1024, open_files: 1024 }
    }
}

/// What exactly was fetched. Two deploys with equal pins run the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// `npm`, `pypi`, `git` or `archive`.
    pub kind: String,
    /// Package name, git URL without credentials, or archive label.
    pub name: String,
    /// Exact version, full commit id, or archive SHA-256.
    pub version: String,
    /// Integrity of the fetched thing: npm `sha512-…`, PyPI `sha256:…`, commit id, archive SHA-256.
    pub integrity: String,
    /// SHA-256 (hex) that names the installed artefact in the runner's store: source, lock file, tools, flags.
    pub artefact: String,
    /// The lock (`package-lock.json` text, or hashed requirements) that reproduces the whole dependency tree when the
    /// artefact is lost. Empty when the project carries its own lock file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lock: String,
}
