//! Members, invites, peers and system events (peer-protocol reference §1.8, §3.1.5, §3.2.3; hosting reference §1.15, §4.2).

use serde::{Deserialize, Serialize};

use super::body;
use super::hello::Group;
use crate::report::Reason;
use crate::{RawJson, Scope};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPeers {}

/// Every presence of the mesh, the caller's own too, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersList {
    pub peers: Vec<Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Session key, else member key.
    pub pubkey: String,
    pub member_pubkey: String,
    pub display_name: String,
    pub status: String,
    pub summary: Option<String>,
    pub groups: Vec<Group>,
    pub session_id: String,
    pub connected_at: String,
    pub cwd: String,
    /// `control-plane` (made by `hello`) or `session`.
    pub peer_role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// *Ours*: what the session says it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What the caller's session is doing: `idle`, `working`, `dnd` (peer-protocol reference §3.2.1; (+) `needs_input`). Answered by
/// [`StatusSet`] when it carries a `_reqId`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStatus {
    pub status: String,
}

/// *Ours*: the original answers nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusSet {
    pub status: String,
}

/// Body of `POST /hook/set-status` (peer-protocol reference §8.1), signed like an upload. The session is looked for by
/// `session_id`, else by `pid` and `cwd`, else by `cwd`: among the presences of the member that signed, and nobody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    pub cwd: String,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// Answer to [`HookStatus`]. `pending`: there is no such session yet; it is set if one comes within 10 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatusSet {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_id: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// *Ours*: registers an invite that the mesh owner signed on their own machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteCreate {
    pub payload: InvitePayload,
    /// How often it may be used, 1 to 1000.
    pub max_uses: u32,
    #[serde(default)]
    pub preset: InvitePreset,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteCreated {
    pub token: String,
}

/// What an invite link holds: base64url (no padding) of this JSON (hosting reference §4.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitePayload {
    pub v: u8,
    pub mesh_id: String,
    pub mesh_slug: String,
    pub broker_url: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub mesh_root_key: String,
    /// `admin`, `member` or `guest`.
    pub role: String,
    pub owner_pubkey: String,
    pub signature: String,
}

/// Given to the new member; set by the inviter and never by the joiner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InvitePreset {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_tag: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// Body of `POST /join`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    pub invite_token: String,
    pub invite_payload: InvitePayload,
    pub peer_pubkey: String,
    pub display_name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    pub ok: bool,
    pub member_id: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_member: bool,
}

/// *Ours*: the members of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberListResult {
    pub members: Vec<MemberEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry {
    pub member_id: String,
    pub pubkey: String,
    pub display_name: String,
    /// `owner`, `admin`, `member`, `guest`.
    pub role: String,
    pub role_tag: Option<String>,
    pub groups: Vec<Group>,
    pub joined_at: String,
    pub revoked: bool,
}

/// *Ours*: an admin sets what the store holds about a member. Absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberUpdate {
    /// Member id or display name.
    pub member: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Group>>,
    /// `true` removes the member: connections close, services stop.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoke: bool,
}

/// Answer to [`MemberUpdate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberUpdated {
    pub member: MemberEntry,
}

/// `push` with `subtype: "system"`, broker → client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemPush {
    pub subtype: String,
    pub event: String,
    pub event_data: RawJson,
    pub message_id: String,
    pub mesh_id: String,
    pub sender_pubkey: String,
    pub priority: String,
    pub nonce: String,
    pub ciphertext: String,
    pub created_at: String,
}

/// `eventData` of `mcp_deployed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct McpDeployed {
    pub name: String,
    pub description: String,
    pub tool_count: usize,
    pub deployed_by: String,
    pub scope: Scope,
    pub tools: Vec<RawJson>,
}

/// `eventData` of `mcp_undeployed`; also sent to those who lost sight of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpUndeployed {
    pub name: String,
    pub by: String,
}

/// `eventData` of `mcp_updated`: another version serves, or the lists changed. `prev_sha` and `new_sha` are the exact
/// versions (for git: commit ids).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct McpUpdated {
    pub name: String,
    pub prev_sha: Option<String>,
    pub new_sha: Option<String>,
    pub tools: Vec<RawJson>,
}

/// `eventData` of `mcp_crashed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpCrashed {
    pub name: String,
    pub error: String,
    pub restarts: u32,
    /// *Ours*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// `eventData` of `mcp_scope_changed`, to those who see the service before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpScopeChanged {
    pub name: String,
    pub scope: Scope,
    pub by: String,
}

/// `eventData` of `peer_joined` and `peer_left`. Both `name` and `displayName`: clients read one or the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerEvent {
    pub name: String,
    pub display_name: String,
    pub pubkey: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Group>>,
}

body! {
    ListPeers = "list_peers";
    PeersList = "peers_list";
    InviteCreate = "invite_create";
    InviteCreated = "invite_created";
    MemberList = "member_list";
    MemberListResult = "member_list_result";
    MemberUpdate = "member_update";
    MemberUpdated = "member_updated";
    SystemPush = "push";
    SetStatus = "set_status";
    StatusSet = "status_set";
}
