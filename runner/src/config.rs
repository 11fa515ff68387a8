//! What a runner is told when it starts.
//!
//! Here: values only. Not here: reading them from arguments or the environment (the command line does that).

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use egress::EgressConfig;
use wire::vault::Custody;
use wire::{Secret, Tier};

use crate::mcp;

#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Artefacts, service data, blobs, temporary directories.
    pub data: PathBuf,
    pub listen: Listen,
    /// An executable with the jail role, normally our own.
    pub jail_exe: PathBuf,
    /// URL schemes that git sources may have.
    pub git_schemes: Vec<String>,
    /// End when no broker has read the events for this long.
    pub orphan_timeout: Option<Duration>,
    /// From the spawn of a server to its last list page.
    pub start_timeout: Duration,
    pub ping_every: Duration,
    pub ping_timeout: Duration,
    /// Memory use is sampled this often.
    pub sample_every: Duration,
    /// Largest body of a request but for blobs.
    pub max_body_bytes: usize,
    pub mcp: mcp::Limits,
    pub egress: EgressConfig,
    /// As root: the uids of services and of steps that run foreign code. Those of two runners must not overlap.
    pub uids: RangeInclusive<u32>,
    /// Whether limits are held by control groups where there are any.
    pub use_cgroups: bool,
    /// Jails are never built stronger than this, also where they could be.
    pub strongest: Tier,
    /// How its own key for the vault is kept.
    pub custody: Custody,
    /// The boot key of custody `file`: 64 hex digits.
    pub boot_key_file: Option<PathBuf>,
}

/// Where the API listens.
#[derive(Debug, Clone)]
pub enum Listen {
    /// Mode 0600: whoever may open it may do everything.
    Unix(PathBuf),
    /// Each request must carry the token.
    Tcp { addr: SocketAddr, token: Secret },
}

impl RunnerConfig {
    /// The defaults; `jail_exe` must answer `jail` as its first argument with [`jail::main`].
    pub fn new(data: PathBuf, listen: Listen, jail_exe: PathBuf) -> Self {
        Self {
            data,
            listen,
            jail_exe,
            git_schemes: vec!["https".to_owned()],
            orphan_timeout: None,
            start_timeout: Duration::from_secs(30),
            ping_every: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(5),
            sample_every: Duration::from_secs(10),
            max_body_bytes: 16 << 20,
            mcp: mcp::Limits::default(),
            egress: EgressConfig::default(),
            uids: 20_001..=39_999,
            use_cgroups: true,
            strongest: Tier::Strict,
            custody: Custody::Split,
            boot_key_file: None,
        }
    }
}
