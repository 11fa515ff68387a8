//! The runner's HTTP API. All bodies are JSON; streams are JSON lines.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /health` | | [`Health`] |
//! | `GET /v1/services` | | `[ServiceReport]` |
//! | `PUT /v1/services/{mesh}/{name}` | [`Apply`] | 202 `ServiceReport`; the same generation again changes nothing |
//! | `GET /v1/services/{mesh}/{name}` | | `ServiceReport`, 404 |
//! | `GET /v1/services/{mesh}/{name}/lists` | | `Lists`, 404 |
//! | `DELETE /v1/services/{mesh}/{name}?purge=true` | | 204 once the whole process tree is gone; `purge` also removes its data |
//! | `POST /v1/services/{mesh}/{name}/rpc` | [`Rpc`] | 200, a stream of [`RpcLine`]; dropping it cancels the call |
//! | `GET /v1/calls` (WebSocket) | one [`RpcCall`] at a time, [`RpcDown`] while it runs | a text message per [`RpcLine`]; after the last one the socket takes the next call; closing it cancels |
//! | `GET /v1/services/{mesh}/{name}/logs?lines=200&follow=true` | | stream of `LogLine` |
//! | `GET /v1/events` | | stream of [`Event`]: every service, then `synced`, then changes |
//! | `HEAD`, `PUT /v1/blobs/{sha256}` | raw bytes | 200 or 404; 201 |
//! | `POST /v1/artefacts/retain` | [`Retain`] | 200 [`Retained`]; artefacts that are not named and not in use are removed |
//! | `GET /v1/vault` | | [`RunnerVault`](crate::vault::RunnerVault) |
//! | `PUT /v1/vault/boot-key` | [`BootKey`](crate::vault::BootKey) | 200 `RunnerVault`; 409 `vault_locked` when it is another one's |
//! | `PUT /v1/vault/meshes/{mesh}` | [`Grants`](crate::vault::Grants) | 200 `RunnerVault`; services that waited for it start |
//! | `GET /v1/vault/openings?after=0` | | the next at most 1,000 [`Opening`](crate::vault::Opening)s, oldest first |
//! | `POST /v1/shutdown` | | 202; stops every service, then ends |
//!
//! A failure answers with its HTTP status and [`Failure`]. Over TCP each request carries
//! `Authorization: Bearer <token>`; on a unix socket the socket's file mode decides.

use serde::{Deserialize, Serialize};

use crate::isolation::{IsolationReport, Policy};
use crate::report::{Lists, ServiceReport};
use crate::spec::{Pin, Secrets, ServiceSpec};
use crate::vault::Material;
use crate::{ErrorCode, Generation, PublicKey, RawJson, ServiceKey};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `CARGO_PKG_VERSION` and a hash of the executable: a broker of another build replaces the runner.
    pub build: String,
    /// Random, new for each life of the runner.
    pub boot: String,
    pub pid: i32,
    pub uptime_s: u64,
    pub services: usize,
    /// Tools that were found, e.g. `node 20.20.2`.
    pub tools: Vec<String>,
    /// What jails it can build.
    pub isolation: IsolationReport,
}

/// Make this generation the wish.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    pub generation: Generation,
    pub spec: ServiceSpec,
    pub secrets: Secrets,
    /// Known after the first successful install; then exactly this is installed or reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// It has been ready before: failures are retried instead of final.
    pub proven: bool,
    /// What the mesh demands. The same generation with another policy is checked against it again.
    #[serde(default)]
    pub policy: Policy,
    /// For the references of the spec. The same generation with other material: what was waiting for it is tried again;
    /// what runs goes on.
    #[serde(default)]
    pub vault: Material,
}

/// One MCP request. `params` and everything in it goes to the server as it is, except `_meta.progressToken`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rpc {
    /// MCP method, e.g. `tools/call`.
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<RawJson>,
    /// Milliseconds from now until the caller stops waiting.
    pub deadline_ms: u64,
    /// Send progress and log notifications of this call as `event` lines.
    #[serde(default)]
    pub events: bool,
    /// The caller answers what the server asks of its client: `ask` lines, [`RpcDown`]. Only over `/v1/calls`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
    /// Which session calls: opaque. A server's own requests and log messages name no call, so they are passed on only
    /// while every call that it works on is of one session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Who calls. An instance of [`RunAs::Caller`](crate::vault::RunAs::Caller) answers nobody but its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<PublicKey>,
}

/// What opens a call on the kept socket of `/v1/calls`. The method [`LISTEN`] stays open: zero or more `event`, until it is
/// cancelled or the service goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct RpcCall {
    pub service: ServiceKey,
    pub rpc: Rpc,
}

/// Not MCP's: `params` is a [`Listen`]. The first line is an `event` with the method [`LISTENING`].
pub const LISTEN: &str = "claudemesh/listen";
pub const LISTENING: &str = "claudemesh/listening";

/// See [`crate::peer::calls::McpListen`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listen {
    #[serde(default)]
    pub resources: Vec<String>,
    #[serde(default)]
    pub log_level: Option<String>,
}

/// From the caller to the server's request.
#[derive(Debug, Serialize, Deserialize)]
pub struct RpcDown {
    pub ask: u64,
    /// Exactly one of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RawJson>,
}

/// What the server asks of its client while it works on this call.
#[derive(Debug, Serialize, Deserialize)]
pub struct RpcAsk {
    /// Counts within the call.
    pub ask: u64,
    /// `{method, params}`, secrets masked.
    pub request: RawJson,
}

/// Zero or more `event` and `ask`, then exactly one `result` or `error`. A struct of options, because serde buffers (and so
/// re-writes) raw JSON inside tagged enums.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RpcLine {
    /// A JSON-RPC notification `{method, params}` that belongs to this call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<RpcAsk>,
    /// The `result` member of the server's response, untouched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<RawJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// A failed request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
    /// Last lines of a process that said why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
    /// The server's own JSON-RPC error object, untouched (code [`ErrorCode::McpError`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpc: Option<RawJson>,
}

/// Exactly one member is present per line.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Event {
    /// First line of every stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<Health>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ServiceReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<ServiceLists>,
    /// `true` after the last service that existed when the stream began.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub synced: bool,
    /// Output of a fetch or install step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The service is gone from the runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<ServiceKey>,
    /// Sent every 10 s of silence, so that a dead link is noticed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beat: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceLists {
    pub service: ServiceKey,
    pub lists: Lists,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub service: ServiceKey,
    pub generation: Generation,
    /// `fetch`, `install`, `build` or `start`.
    pub step: String,
    pub line: String,
}

/// Names the artefacts that some generation may still need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retain {
    pub artefacts: Vec<String>,
    pub blobs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    pub removed: usize,
    pub freed_bytes: u64,
}
