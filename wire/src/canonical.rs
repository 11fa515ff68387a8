//! The byte strings that are signed. Fields are joined by `|`; numbers are plain decimal.
//!
//! Source: peer-protocol reference §5.3 for hello, attestation, session hello and invite v1; the HTTP
//! request string is ours.

use crate::{MemberId, MeshId};

/// Signed by the member key. `pubkey` exactly as sent.
pub fn hello(mesh: &MeshId, member: &str, pubkey: &str, timestamp_ms: i64) -> String {
    format!("{mesh}|{member}|{pubkey}|{timestamp_ms}")
}

/// Signed by the member key: vouches for a session key until `expires_at_ms`.
pub fn attestation(member_key: &str, session_key: &str, expires_at_ms: i64) -> String {
    format!("claudemesh-session-attest|{member_key}|{session_key}|{expires_at_ms}")
}

/// Signed by the session key.
pub fn session_hello(mesh: &MeshId, member_key: &str, session_key: &str, timestamp_ms: i64) -> String {
    format!("claudemesh-session-hello|{mesh}|{member_key}|{session_key}|{timestamp_ms}")
}

/// Signed by the mesh owner's key. `expires_at_s` is unix seconds.
pub fn invite_v1(
    mesh: &MeshId,
    slug: &str,
    broker_url: &str,
    expires_at_s: i64,
    root_key: &str,
    role_and_owner: (&str, &str),
) -> String {
    let (role, owner) = role_and_owner;
    format!("1|{mesh}|{slug}|{broker_url}|{expires_at_s}|{root_key}|{role}|{owner}")
}

/// Signed by the member key for one HTTP request; binds method, path and body.
pub fn http_request(
    mesh: &MeshId,
    member: &MemberId,
    timestamp_ms: i64,
    method_and_path: (&str, &str),
    body_sha256: &str,
) -> String {
    let (method, path) = method_and_path;
    format!("claudemesh-http|{mesh}|{member}|{timestamp_ms}|{method}|{path}|{body_sha256}")
}
