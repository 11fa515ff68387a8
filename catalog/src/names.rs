//! What services and tools are called at clients.
//!
//! | where | name | whole name at the client |
//! |---|---|---|
//! | in the mesh's own server | [`svc_name`] `svc__<service>__<tool>` | `mcp__claudemesh__svc__<service>__<tool>` |
//! | as a server of its own | [`native_server`] `mesh-<service>`, [`native_tool`] `<tool>` | `mcp__mesh-<service>__<tool>` |
//!
//! Invariants: a whole name has at most 64 characters, all of `[A-Za-z0-9_-]` (OpenAI-style clients refuse more); the same
//! service and tool always get the same name; different ones get different names, except where SHA-256 cut to 32 bits
//! collides inside one service, which [`collision`] finds at deploy. A name splits in one way only, because a
//! service name has no `__` and does not end in `_`.
//!
//! A name that fits is used as it is. One that had to be changed ends with `_` and eight hex digits of a hash, and so does one
//! that only looks like that: otherwise somebody could pick the changed name of something else.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use wire::ServiceName;

/// Characters of a whole name.
const MAX: usize = 64;
/// `mcp__claudemesh__`, which the client puts before the tools of the mesh's own server.
const MESH_PREFIX: usize = 17;
/// `mcp__` before and `__` after the name of a server.
const SERVER_FRAME: usize = 7;
/// Characters of a service inside a name. A longer one is cut to 15, `-` and the hash.
const MAX_SERVICE: usize = 24;
/// Hex digits of a hash inside a name.
const HASH: usize = 8;

/// The tool's name in the mesh's own server: `svc__<service>__<tool>`.
pub fn svc_name(service: &ServiceName, tool: &str) -> String {
    let room = MAX - MESH_PREFIX - "svc____".len();
    let service_text = service.as_str();
    if service_text.len() + tool.len() <= room && is_plain(tool) && !is_cut_service(service_text) {
        return format!("svc__{service_text}__{tool}");
    }
    let short = short_service(service);
    let tool = changed(service, tool, room - short.len());
    format!("svc__{short}__{tool}")
}

/// The name of the service as a server of its own: `mesh-<service>`.
pub fn native_server(service: &ServiceName) -> String {
    format!("mesh-{}", short_service(service))
}

/// The tool's name in the service's own server.
pub fn native_tool(service: &ServiceName, tool: &str) -> String {
    let room = MAX - SERVER_FRAME - native_server(service).len();
    if tool.len() <= room && is_plain(tool) { tool.to_owned() } else { changed(service, tool, room) }
}

/// Two tools of one service that clients could not tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    pub first: String,
    pub second: String,
    /// The name that both would get.
    pub name: String,
}

/// The first two tools that would get the same name; also a tool that is listed twice.
pub fn collision<'a>(service: &ServiceName, tools: impl IntoIterator<Item = &'a str>) -> Option<Collision> {
    let (mut in_mesh, mut native) = (HashMap::new(), HashMap::new());
    for tool in tools {
        for (seen, name) in
            [(&mut in_mesh, svc_name(service, tool)), (&mut native, native_tool(service, tool))]
        {
            if let Some(first) = seen.insert(name.clone(), tool) {
                return Some(Collision { first: first.to_owned(), second: tool.to_owned(), name });
            }
        }
    }
    None
}

/// The tool that a client means by `name`: the server's own name for it, or one of ours.
pub fn resolve<'a>(
    service: &ServiceName,
    tools: impl IntoIterator<Item = &'a str> + Clone,
    name: &str,
) -> Option<&'a str> {
    let exact = tools.clone().into_iter().find(|tool| *tool == name);
    exact.or_else(|| {
        let mut tools = tools.into_iter();
        tools.find(|tool| svc_name(service, tool) == name || native_tool(service, tool) == name)
    })
}

/// Fits as it is, and can't be taken for a changed name.
fn is_plain(tool: &str) -> bool {
    let looks_changed = tool.rsplit_once('_').is_some_and(|(_, end)| is_hash(end));
    !tool.is_empty() && tool.bytes().all(is_allowed) && !looks_changed
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn is_hash(text: &str) -> bool {
    text.len() == HASH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The tool in at most `room` characters, ending in the hash of service and tool.
fn changed(service: &ServiceName, tool: &str, room: usize) -> String {
    let allowed = tool.chars().map(|c| if c.is_ascii() && is_allowed(c as u8) { c } else { '_' });
    let kept: String = allowed.take(room - HASH - 1).collect();
    format!("{kept}_{}", hash(&[service.as_str(), tool]))
}

fn short_service(service: &ServiceName) -> String {
    let text = service.as_str();
    if !is_cut_service(text) {
        return text.to_owned();
    }
    let kept: String = text.chars().take(MAX_SERVICE - HASH - 1).collect();
    format!("{kept}-{}", hash(&[text]))
}

/// Too long, or in the form that a too long one gets.
fn is_cut_service(text: &str) -> bool {
    let looks_cut = text.len() == MAX_SERVICE && text.rsplit_once('-').is_some_and(|(_, end)| is_hash(end));
    text.len() > MAX_SERVICE || looks_cut
}

fn hash(fields: &[&str]) -> String {
    hex::encode(&Sha256::digest(fields.join("\0"))[..HASH / 2])
}

#[cfg(test)]
mod tests;
