//! What is: how a runner describes the services it holds.

use serde::{Deserialize, Serialize};

use crate::spec::Pin;
use crate::{ErrorCode, Generation, RawJson, ServiceKey, Tier};

/// Where an instance is in its life. See ARCHITECTURE.md for the drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Fetching,
    Installing,
    Starting,
    Ready,
    /// Stopped for lack of calls; a call wakes it.
    Idle,
    /// Crashed; waits before the next start.
    /// Prepared, and held back until it may open its secrets; the reason says what is missing.
    Waiting,
    Backoff,
    /// Crashed too often; tries again rarely.
    CrashLoop,
    Stopping,
    Stopped,
    /// Never became ready; nothing tries again by itself.
    Failed,
}

impl Phase {
    /// The status words of the original protocol (hosting reference §1.3).
    pub fn status(self) -> &'static str {
        match self {
            Self::Fetching => "building",
            Self::Installing | Self::Starting => "installing",
            Self::Ready | Self::Idle => "running",
            Self::Waiting => "waiting",
            Self::Backoff => "restarting",
            Self::CrashLoop => "crashed",
            Self::Stopping | Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Installing => "installing",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Backoff => "backoff",
            Self::CrashLoop => "crash_loop",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Why something is not as wished. `stderr` holds the last lines of the process that said why (at most 20).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
}

/// One generation of a service as the runner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationReport {
    pub generation: Generation,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// While it works: why it did not the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fall: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Restarts since the generation first became ready.
    pub restarts: u32,
    /// Milliseconds since the epoch of the last `ready`; `None` while no process is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_since_ms: Option<i64>,
    /// Process id of the server on the runner's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Sampled; `None` while no process is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The jail in force; `None` while no process is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
}

/// What the processes of a service use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the cgroup, or else resident bytes added up over the processes.
    pub memory_bytes: u64,
    /// Processes and threads in a cgroup, or else processes.
    pub pids: u32,
    /// Processor time since the start, in milliseconds; `None` without a cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Of the data directory.
    pub disk_bytes: u64,
}

/// What became of connections of a service to one host and port, in one life of the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressDecision {
    /// As the service named it; an address when it named none.
    pub host: String,
    pub port: u16,
    pub verdict: Verdict,
    pub count: u64,
    /// Milliseconds since the epoch.
    pub last_ms: i64,
    #[serde(default)]
    pub sent_bytes: u64,
    #[serde(default)]
    pub received_bytes: u64,
    /// Requests into which the way out put a secret.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub injected: u64,
}

/// Serde calls it with a reference.
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allowed,
    /// Allowed because the service is being learned.
    Learned,
    /// No rule covers it.
    NotListed,
    /// The name means a private, loopback, link-local, metadata or carrier-grade NAT address.
    PrivateAddress,
    /// The TLS server name, or the HTTP `Host`, is another one than was looked up.
    NameMismatch,
    /// Neither TLS nor HTTP on a port where it must be one of them.
    NotTls,
    /// Too many connections at once, or too many bytes.
    OverLimit,
    /// Nobody knows the name, or the host can not be reached.
    Unreachable,
}

impl Verdict {
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed | Self::Learned)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Learned => "learned",
            Self::NotListed => "not_listed",
            Self::PrivateAddress => "private_address",
            Self::NameMismatch => "name_mismatch",
            Self::NotTls => "not_tls",
            Self::OverLimit => "over_limit",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A service as the runner sees it: the generation that serves, and the one that may replace it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub service: ServiceKey,
    /// Grows with every change of this service in one life of the runner.
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<GenerationReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<GenerationReport>,
    /// Newest last, at most 100, in one life of the runner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressDecision>,
}

/// Everything a ready instance listed, each item exactly as the server said it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lists {
    pub generation: Generation,
    /// Protocol revision that was agreed, e.g. `2025-11-25` or `2026-07-28`.
    pub protocol: String,
    /// `serverInfo` of the server.
    pub server_info: RawJson,
    /// `capabilities` of the server.
    pub capabilities: RawJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    pub tools: Vec<RawJson>,
    pub prompts: Vec<RawJson>,
    pub resources: Vec<RawJson>,
    pub resource_templates: Vec<RawJson>,
}

/// One line of a service's log ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counts from 1 in one life of the runner; a follower that reconnects asks for what comes after.
    pub seq: u64,
    pub at_ms: i64,
    /// `stderr`, `stdout` (what was not JSON-RPC), `install`, or `runner` (our own words).
    pub stream: String,
    pub text: String,
}
