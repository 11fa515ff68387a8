//! The texts and the meta values of what is pushed.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wire::RawJson;
use wire::peer::hello::HelloAck;
use wire::peer::live::{McpCallForward, McpLiveEvent, McpRegistered};
use wire::peer::mesh::{McpCrashed, McpScopeChanged, McpUndeployed, Peer, PeerEvent};
use wire::peer::skills::SkillEvent;

use crate::raw::value;

/// Characters of one notification.
const MAX_CONTENT: usize = 2000;
/// Characters of a name or another short text of somebody's.
const MAX_NAME: usize = 100;
const MAX_TEXT: usize = 400;
/// Peers that the welcome names.
const MAX_PEERS: usize = 50;

pub struct Notice {
    content: String,
    /// Keys are identifiers of ours; values are texts.
    meta: Vec<(&'static str, String)>,
}

impl Notice {
    fn new(kind: &str, content: String) -> Self {
        Self { content, meta: vec![("kind", kind.to_owned())] }
    }

    fn with(mut self, key: &'static str, text: &str) -> Self {
        self.meta.push((key, name(text)));
        self
    }

    /// `{method, params}`.
    pub fn written(&self, mesh: &str) -> RawJson {
        let mut meta: Map<String, Value> =
            self.meta.iter().map(|(key, text)| ((*key).to_owned(), json!(text))).collect();
        meta.insert("mesh_slug".to_owned(), json!(name(mesh)));
        let content = clean(&self.content, MAX_CONTENT);
        value(&json!({
            "method": "notifications/claude/channel",
            "params": { "content": content, "meta": meta },
        }))
    }
}

/// At most so many characters, none of them with a power of its own, and no end of the element that a client puts around it.
fn clean(text: &str, most: usize) -> String {
    let text = wire::text::printable(text);
    let mut clean: String = text.chars().take(most).collect();
    if text.chars().nth(most).is_some() {
        clean.push('…');
    }
    let lower = clean.to_ascii_lowercase();
    let ends: Vec<usize> = lower.match_indices("</channel").map(|(at, _)| at).collect();
    for at in ends.into_iter().rev() {
        clean.insert(at + 1, ' ');
    }
    clean
}

fn name(text: &str) -> String {
    clean(&wire::text::printable_line(text), MAX_NAME)
}

fn short(text: &str) -> String {
    clean(&wire::text::printable_line(text), MAX_TEXT)
}

#[derive(Deserialize)]
struct Deployed {
    name: String,
    #[serde(default)]
    description: String,
    tool_count: usize,
    deployed_by: String,
}

#[derive(Deserialize)]
struct Updated {
    name: String,
    #[serde(default)]
    new_sha: Option<String>,
    #[serde(default)]
    tools: Vec<RawJson>,
}

fn read<'a, T: Deserialize<'a>>(data: &'a RawJson) -> Option<T> {
    serde_json::from_str(data.get()).ok()
}

/// What an event of the broker says; `None` for one that is no news to an agent.
pub fn event(event: &str, data: &RawJson) -> Option<Notice> {
    let (subject, text) = match event {
        "mcp_deployed" => {
            let Deployed { name: service, description, tool_count, deployed_by } = read(data)?;
            let (shown, by, about) = (name(&service), name(&deployed_by), short(&description));
            let about = if about.is_empty() { about } else { format!(" {about}.") };
            let text = format!(
                "[SERVICE] \"{shown}\" deployed ({tool_count} tools) by {by}.{about} Its tools are svc__{shown}__TOOL; \
                 if they are not in your list, mesh_tool_call reaches them (mesh_mcp_schema shows them)."
            );
            (("service", service), text)
        }
        "mcp_updated" => {
            let Updated { name: service, new_sha, tools } = read(data)?;
            let version = new_sha.map(|sha| format!(" to {}", name(&sha))).unwrap_or_default();
            let text = format!("[SERVICE] \"{}\" updated{version}, {} tools", name(&service), tools.len());
            (("service", service), text)
        }
        "mcp_undeployed" => {
            let McpUndeployed { name: service, by } = read(data)?;
            let text = format!("[SERVICE] \"{}\" is gone for you (by {})", name(&service), name(&by));
            (("service", service), text)
        }
        "mcp_scope_changed" => {
            let McpScopeChanged { name: service, scope, by } = read(data)?;
            let scope = short(&serde_json::to_string(&scope).unwrap_or_default());
            let text =
                format!("[SERVICE] scope of \"{}\" changed to {scope} by {}", name(&service), name(&by));
            (("service", service), text)
        }
        "mcp_crashed" => {
            let McpCrashed { name: service, error, restarts, .. } = read(data)?;
            let text = format!(
                "[SERVICE] \"{}\" failed ({restarts} restarts): {}. mesh_mcp_logs says more.",
                name(&service),
                short(&error)
            );
            (("service", service), text)
        }
        "skill_shared" | "skill_removed" => {
            let SkillEvent { name: skill, by } = read(data)?;
            let verb = if event == "skill_shared" { "shared" } else { "removed" };
            let text = format!("[SKILL] \"{}\" {verb} by {}", name(&skill), name(&by));
            (("skill", skill), text)
        }
        _ => other(event, data)?,
    };
    let (key, subject) = subject;
    Some(Notice::new("system", text).with("event", event).with(key, &subject))
}

/// Live servers and peers.
fn other(event: &str, data: &RawJson) -> Option<((&'static str, String), String)> {
    Some(match event {
        "mcp_registered" => {
            let McpRegistered { server_name, description, tools, hosted_by } = read(data)?;
            let text = format!(
                "[SERVER] {} lends \"{}\" ({} tools): {} Call it with mesh_tool_call.",
                name(&hosted_by),
                name(&server_name),
                tools.len(),
                short(&description)
            );
            (("server", server_name), text)
        }
        "mcp_unregistered" | "mcp_restored" => {
            let McpLiveEvent { server_name, hosted_by } = read(data)?;
            let verb = if event == "mcp_restored" { "is back" } else { "is not there any more" };
            let text = format!("[SERVER] \"{}\" of {} {verb}", name(&server_name), name(&hosted_by));
            (("server", server_name), text)
        }
        "peer_joined" | "peer_returned" | "peer_left" => {
            let peer: PeerEvent = read(data)?;
            let verb = if event == "peer_left" { "left" } else { "joined" };
            let text = format!("[PEER] {} {verb} the mesh", name(&peer.display_name));
            (("peer_name", peer.display_name), text)
        }
        _ => return None,
    })
}

pub fn missed(count: u64) -> Notice {
    let text = format!(
        "[MESH] {count} events were missed; mesh_mcp_catalog, mesh_mcp_list and list_peers show what is"
    );
    Notice::new("system", text).with("event", "missed")
}

/// A call of a server that the agent lends and answers.
pub fn call(call: &McpCallForward) -> Notice {
    let McpCallForward { call_id, server_name, tool_name, args, caller_name } = call;
    let head = format!(
        "[CALL] {} calls {} of your server \"{}\". Answer within 30 s: mesh_mcp_respond {{\"call_id\": \"{}\", \"result\": …}}. \
         If the arguments are cut, mesh_mcp_calls shows all of them.\nArguments: ",
        name(caller_name),
        name(tool_name),
        name(server_name),
        name(call_id)
    );
    let room = MAX_CONTENT.saturating_sub(head.chars().count());
    Notice::new("call", format!("{head}{}", clean(args.get(), room)))
        .with("call_id", call_id)
        .with("server", server_name)
        .with("tool", tool_name)
        .with("from_name", caller_name)
}

pub fn welcome(mesh: &str, hello: &HelloAck, peers: &[Peer]) -> Notice {
    let names: Vec<String> = peers.iter().take(MAX_PEERS).map(|peer| name(&peer.display_name)).collect();
    let services: Vec<String> =
        hello.services.iter().take(MAX_PEERS).map(|service| name(&service.name)).collect();
    let services = if services.is_empty() { "none".to_owned() } else { services.join(", ") };
    let text = format!(
        "[MESH] You are {} in the mesh \"{}\". {} peers are online: {}. Services: {services}.",
        name(&hello.member_display_name),
        name(mesh),
        peers.len(),
        names.join(", ")
    );
    let mut notice = Notice::new("welcome", text)
        .with("self_display_name", &hello.member_display_name)
        .with("self_role", &hello.member_role)
        .with("peer_count", &peers.len().to_string());
    // A text that is JSON, as the original's readers want it.
    notice.meta.push(("peer_names", json!(names).to_string()));
    notice
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta_rule(notice: &Notice) {
        let written: Value = serde_json::from_str(notice.written("acme").get()).unwrap();
        assert_eq!(written["method"], "notifications/claude/channel");
        let content = written["params"]["content"].as_str().unwrap();
        assert!(content.chars().count() <= MAX_CONTENT + 60, "{} characters", content.chars().count());
        assert!(!content.to_ascii_lowercase().contains("</channel"), "{content}");
        assert!(wire::text::hidden(content).is_empty(), "{content:?}");
        let meta = written["params"]["meta"].as_object().unwrap();
        for (key, value) in meta {
            let mut letters = key.chars();
            assert!(letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_'), "{key}");
            assert!(letters.all(|c| c.is_ascii_alphanumeric() || c == '_'), "{key}");
            assert!(value.is_string(), "{key} is {value}");
        }
    }

    const EVENTS: [&str; 12] = [
        "mcp_deployed",
        "mcp_updated",
        "mcp_undeployed",
        "mcp_scope_changed",
        "mcp_crashed",
        "skill_shared",
        "skill_removed",
        "mcp_registered",
        "mcp_unregistered",
        "mcp_restored",
        "peer_joined",
        "peer_left",
    ];

    /// Whatever members the event has, filled with one text.
    fn data(text: &str) -> RawJson {
        value(&json!({
            "name": text, "description": text, "tool_count": 3, "deployed_by": text, "scope": { "group": text },
            "tools": [text], "by": text, "error": text, "restarts": 1, "serverName": text, "hostedBy": text,
            "displayName": text, "pubkey": text, "new_sha": text, "prev_sha": null,
        }))
    }

    proptest! {
        #[test]
        fn every_event_keeps_the_rules_whatever_others_wrote(text in "(\\PC|[\\x00-\\x1f\u{202e}\u{200b}]|</channel>){0,600}") {
            for known in EVENTS {
                let notice = event(known, &data(&text)).unwrap_or_else(|| panic!("{known} is told"));
                meta_rule(&notice);
            }
            let args = value(&json!({ "text": text }));
            meta_rule(&call(&McpCallForward {
                call_id: "c".into(), server_name: text.clone(), tool_name: text.clone(), args, caller_name: text,
            }));
        }
    }

    #[test]
    fn an_event_is_told_in_words() {
        let notice = event("mcp_deployed", &data("weather")).unwrap();
        assert!(
            notice.content.starts_with("[SERVICE] \"weather\" deployed (3 tools) by weather."),
            "{}",
            notice.content
        );
        let written = notice.written("acme");
        assert!(
            written.get().contains(r#""mesh_slug":"acme""#)
                && written.get().contains(r#""service":"weather""#)
        );
    }

    #[test]
    fn an_event_that_nobody_knows_or_that_is_broken_is_not_told() {
        assert!(event("tick", &data("x")).is_none());
        assert!(event("mcp_deployed", &value(&json!({ "name": 1 }))).is_none());
    }
}
