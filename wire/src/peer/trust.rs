//! What a service may reach, how strongly it is kept apart, and what of it is believed. All of it is *ours*.

use serde::{Deserialize, Serialize};

use super::body;
use crate::runner::Health;
use crate::{Policy, Tier};

/// What differs between what was approved and what the server says now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Names exactly this set of changes: [`McpApprove`] must repeat it, so that nobody approves what they did not see.
    pub digest: String,
    pub changes: Vec<DriftChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftChange {
    /// `tool`, `prompt`, `instructions`, or `spec` for what the deployment itself is bound to.
    pub kind: String,
    pub name: String,
    /// The approved definition as JSON text; absent when it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The present one; absent when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    pub tool: String,
    /// For people, e.g. `U+202E right-to-left override in the description`.
    pub what: String,
}

/// *Ours*: changes where a service may connect to. Answered like a deploy: the changed list is a new generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpNetwork {
    pub server_name: String,
    /// Rules to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Rules to take away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Learn for so many minutes, 1 to 1440; 0 ends learning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn_minutes: Option<u32>,
}

/// *Ours*: the owner has seen this drift and takes it. Answered by [`McpStatusResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpApprove {
    pub server_name: String,
    /// [`Drift::digest`] of what was seen.
    pub digest: String,
}

/// *Ours*: reads the policy of the mesh, and sets what is given (admins only).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPolicy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_isolation: Option<Tier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_release_age_s: Option<u64>,
}

/// *Ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPolicyResult {
    pub policy: Policy,
}

/// *Ours*: what the runner is and can.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerStatus {}

/// *Ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerStatusResult {
    /// `None`: no runner is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Health>,
}

body! {
    McpNetwork = "mcp_network";
    McpApprove = "mcp_approve";
    MeshPolicy = "mesh_policy";
    MeshPolicyResult = "mesh_policy_result";
    RunnerStatus = "runner_status";
    RunnerStatusResult = "runner_status_result";
}
