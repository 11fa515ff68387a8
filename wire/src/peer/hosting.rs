//! Deploying, watching and calling services (hosting reference §1.4–1.15; peer-protocol reference §3.13, §3.15).
//!
//! The deploy family is snake_case and the call family camelCase, as in the original.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::body;
use super::trust::{Drift, Suspicion};
use crate::report::{EgressDecision, LogLine, Reason, Usage};
use crate::spec::{ArchiveFormat, Limits, Pin, Runtime};
use crate::vault::{ConsentAsk, RunAs};
use crate::{EgressRule, RawJson, Scope, Secret, Tier};

/// A service as `hello_ack` and the tools of an agent see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceOffer {
    pub name: String,
    pub description: String,
    /// `running` and the other words of hosting reference §1.3.
    pub status: String,
    /// Whole tool definitions as the server listed them.
    pub tools: Vec<RawJson>,
    pub deployed_by: String,
}

/// `mcp_deploy`, client → broker. Everything but `server_name` and `source` is optional.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct McpDeploy {
    pub server_name: String,
    pub source: DeploySource,
    #[serde(default)]
    pub config: DeployConfig,
    #[serde(default)]
    pub scope: Option<Scope>,
}

/// `zip` names an upload by its id (`POST /v1/uploads`). `uvx` works here, unlike in the original; `bin`, `ref`,
/// `subdir`, `format` and `label` are *ours*. `branch` is the original's word for `ref`, `auth` its word for a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum DeploySource {
    Npx {
        /// Defaults to the service name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        package: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bin: Option<String>,
    },
    Uvx {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        package: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bin: Option<String>,
    },
    Git {
        url: String,
        #[serde(default, alias = "branch", rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subdir: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        auth: Option<Secret>,
    },
    Zip {
        file_id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<ArchiveFormat>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
}

/// Unknown fields are refused: a setting that is accepted and not applied would be a lie.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployConfig {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// `HOST`, `HOST:PORT`, `*.DOMAIN:PORT`. Absent: as the service has it already, nowhere when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_allow: Option<Vec<String>>,
    /// *Ours*, like everything below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Tier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_stop_s: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_scripts: bool,
    /// *Ours*, like the rest: whose vault entries `$vault:KEY` in `env` means.
    #[serde(default, skip_serializing_if = "RunAs::is_deployer")]
    pub run_as: RunAs,
    /// Hosts whose requests get the vault's values in their headers, instead of the process in its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inject: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmasked_results: bool,
    /// For [`crate::spec::ServiceSpec::env_digest`]: whoever signs must know it. 16 to 128 characters; the broker makes one
    /// when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_salt: Option<Secret>,
}

/// `mcp_deploy_status`, broker → client: `building` at once, then one terminal status with the same `_reqId`:
/// `running`, `failed`, `stopped` or (*ours*) `awaiting_consent`, which [`super::vault::McpConsent`] answers. Answers deploy, update, rollback, start, stop and undeploy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct McpDeployStatus {
    pub server_name: String,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<RawJson>>,
    /// Readable text, as in the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// *Ours*, like everything below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// With `failed`: the generation that still serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<i64>,
    /// With `awaiting_consent`: what the owner of the secrets has to sign, sent to nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<Box<ConsentAsk>>,
}

/// One reference of a service to the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultUse {
    pub variable: String,
    /// As it was written.
    pub reference: String,
    /// Display name of the entry's owner; `None`: each caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The newest version; `None` when there is no such entry (any more), and for each caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
}

/// `mcp_deploy_progress` (*ours*), broker → the deploying client only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpDeployProgress {
    pub server_name: String,
    pub generation: i64,
    /// `fetch`, `install`, `build`, `start`.
    pub step: String,
    pub line: String,
}

macro_rules! named_request {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            pub server_name: String,
        }
    )* };
}

named_request! {
    /// Stops and removes a service with its data. Answer: `mcp_deploy_status` `stopped`.
    McpUndeploy;
    /// Resolves the source again (newest version of the range, newest commit of the ref) and deploys that.
    McpUpdate;
    /// *Ours*: goes back to the version that served before, as a new generation.
    McpRollback;
    /// *Ours*: ends the process and keeps everything else.
    McpStop;
    /// *Ours*: starts a stopped or failed service.
    McpStart;
    /// *Ours*: everything about one service. Answer: [`McpStatusResult`].
    McpStatus;
}

/// `mcp_logs`: answered by one `mcp_logs_result`; with `follow` (*ours*) later lines come as `mcp_logs_event` until
/// `mcp_cancel` or disconnect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpLogs {
    pub server_name: String,
    /// Default 50, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpLogsResult {
    pub server_name: String,
    /// `[stream] text`, as in the original.
    pub lines: Vec<String>,
    /// *Ours*: the same lines with time, stream and sequence.
    pub entries: Vec<LogLine>,
}

/// *Ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpLogsEvent {
    pub server_name: String,
    pub entries: Vec<LogLine>,
    /// Set on the last event: the stream has ended (service removed, runner lost).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// With `scope`: sets it. Always answered by [`McpScopeResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpScope {
    pub server_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpScopeResult {
    pub server_name: String,
    pub scope: Scope,
    /// Display name of the deployer.
    pub deployed_by: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpSchema {
    pub server_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
}

/// From the store, also while the service sleeps. Everything but `server_name` and `tools` is *ours*.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct McpSchemaResult {
    pub server_name: String,
    pub tools: Vec<RawJson>,
    /// Name that clients of the mesh see for each tool: `svc__<service>__<tool>`, or its short form.
    pub names: Vec<String>,
    pub prompts: Vec<RawJson>,
    pub resources: Vec<RawJson>,
    pub resource_templates: Vec<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpCatalog {}

/// Only what the caller may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpCatalogResult {
    pub services: Vec<ServiceStatus>,
}

/// *Ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpStatusResult {
    pub service: ServiceStatus,
}

/// The fields of the original's catalog (hosting reference §1.14); from `phase` on *ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    /// Always `mcp`.
    #[serde(rename = "type")]
    pub kind: String,
    pub description: String,
    pub status: String,
    pub tool_count: usize,
    pub deployed_by: String,
    pub scope: Scope,
    /// `npx`, `uvx`, `git`, `zip`.
    pub source_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// ISO 8601, UTC.
    pub created_at: String,
    pub phase: String,
    pub generation: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Of a service that works: why it did not the last time, in this life of its runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fall: Option<Reason>,
    /// The newest deploy, when it failed while an older generation serves on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_update: Option<FailedUpdate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// One line for people: `npm @scope/name@1.2.3`, `git https://… @ abc1234`.
    pub source: String,
    pub env_names: Vec<String>,
    /// Its references to the vault; to those who manage it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vault: Vec<VaultUse>,
    #[serde(default, skip_serializing_if = "RunAs::is_deployer")]
    pub run_as: RunAs,
    /// Hosts whose requests get the vault's values; to those who manage it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inject: Vec<EgressRule>,
    /// Its tools' results are passed on with the secrets that are in them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmasked_results: bool,
    pub args: Vec<String>,
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(default)]
    pub limits: Limits,
    /// The jail in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Where it may connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<EgressRule>,
    /// ISO 8601, UTC; in the future while it is being learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_until: Option<String>,
    /// What became of its connections, newest last. Only for those who may manage it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressDecision>,
    /// What changed since its owner approved it, and is withheld from others until they approve it. Only for those who may
    /// manage it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Texts in its tool definitions that look meant to deceive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspicions: Vec<Suspicion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub updated_at: String,
    /// Whether the caller may update, stop, remove and read the logs of it.
    pub manageable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpdate {
    pub generation: i64,
    pub reason: Reason,
}

body! {
    McpDeploy = "mcp_deploy";
    McpDeployStatus = "mcp_deploy_status";
    McpDeployProgress = "mcp_deploy_progress";
    McpUndeploy = "mcp_undeploy";
    McpUpdate = "mcp_update";
    McpRollback = "mcp_rollback";
    McpStop = "mcp_stop";
    McpStart = "mcp_start";
    McpStatus = "mcp_status";
    McpStatusResult = "mcp_status_result";
    McpLogs = "mcp_logs";
    McpLogsResult = "mcp_logs_result";
    McpLogsEvent = "mcp_logs_event";
    McpScope = "mcp_scope";
    McpScopeResult = "mcp_scope_result";
    McpSchema = "mcp_schema";
    McpSchemaResult = "mcp_schema_result";
    McpCatalog = "mcp_catalog";
    McpCatalogResult = "mcp_catalog_result";
}
