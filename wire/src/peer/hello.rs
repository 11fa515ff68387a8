//! `hello`, `session_hello` and `hello_ack` (peer-protocol reference §1.3–1.6).

use serde::{Deserialize, Serialize};

use super::body;
use super::hosting::ServiceOffer;

/// A group of a member; `role` is the free-form role inside the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// Client → broker. Keys and signatures stay text here: their checks have an order and texts of their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub mesh_id: String,
    pub member_id: String,
    pub pubkey: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_pubkey: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    pub session_id: String,
    pub pid: i64,
    /// Defaults to `""`: the original SDK leaves it out (D47).
    #[serde(default)]
    pub cwd: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Labels of this presence. They route messages; they never give access (design §8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Group>>,
    /// *Ours*: what this session is for. A label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Milliseconds since the epoch. Read as any JSON number, written as an integer.
    #[serde(serialize_with = "whole")]
    pub timestamp: f64,
    pub signature: String,
}

/// JavaScript prints whole numbers without a fraction; so do we.
#[expect(clippy::cast_possible_truncation, reason = "a time in milliseconds fits 53 bits")]
fn whole<S: serde::Serializer>(ms: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(*ms as i64)
}

/// The member key vouches for a session key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    pub session_pubkey: String,
    pub parent_member_pubkey: String,
    /// Milliseconds since the epoch.
    #[serde(serialize_with = "whole")]
    pub expires_at: f64,
    pub signature: String,
}

/// Client → broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionHello {
    pub mesh_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_member_id: Option<String>,
    pub parent_member_pubkey: String,
    pub session_pubkey: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_attestation: Option<Attestation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    pub session_id: String,
    pub pid: i64,
    #[serde(default)]
    pub cwd: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Group>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(serialize_with = "whole")]
    pub timestamp: f64,
    pub signature: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberProfile {
    pub role_tag: Option<String>,
    pub groups: Vec<Group>,
    pub message_mode: String,
}

/// Broker → client. `services` also answers `session_hello` (the original left it out).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloAck {
    pub presence_id: String,
    pub member_display_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_profile: Option<MemberProfile>,
    pub services: Vec<ServiceOffer>,
    /// *Ours*: `owner`, `admin`, `member` or `guest`.
    pub member_role: String,
    /// *Ours*: version of the broker.
    pub broker_version: String,
}

body! {
    Hello = "hello";
    SessionHello = "session_hello";
    HelloAck = "hello_ack";
}
