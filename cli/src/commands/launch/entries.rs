//! The MCP servers of a session, as Claude Code's `--mcp-config` takes them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value, json};

/// The entry that pushes. Claude Code takes pushes only over the legacy era, so it is an entry of its own.
pub const CHANNEL: &str = "claudemesh-channel";

pub struct Session {
    pub id: String,
    pub mesh: String,
    /// When it is not the usual one.
    pub config_folder: Option<OsString>,
    pub display_name: Option<String>,
    pub role: Option<String>,
    pub groups: Option<String>,
}

impl Session {
    /// What every process of the session reads (`client::SessionEnv`).
    pub fn variables(&self) -> BTreeMap<&'static str, OsString> {
        let mut all = BTreeMap::from([
            ("CLAUDEMESH_SESSION_ID", OsString::from(&self.id)),
            ("CLAUDEMESH_MESH", OsString::from(&self.mesh)),
        ]);
        all.extend(self.config_folder.clone().map(|folder| ("CLAUDEMESH_CONFIG_DIR", folder)));
        let labels = [
            ("CLAUDEMESH_DISPLAY_NAME", &self.display_name),
            ("CLAUDEMESH_ROLE", &self.role),
            ("CLAUDEMESH_GROUPS", &self.groups),
        ];
        // An empty one hides what a session around this one has set.
        all.extend(labels.map(|(name, value)| (name, OsString::from(value.clone().unwrap_or_default()))));
        all
    }
}

pub fn document(exe: &Path, session: &Session, services: &[String], has_channel: bool) -> Value {
    // Claude Code replaces `${…}`. It hands its own environment down, so that what can't be written is there all the same.
    let env: Map<String, Value> = session
        .variables()
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.into_string().ok()?)))
        .filter(|(_, value)| !value.contains("${"))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let server = |args: &[&str]| json!({"type": "stdio", "command": exe, "args": args, "env": env});
    let mut servers = Map::new();
    servers.insert("claudemesh".to_owned(), server(&["mcp"]));
    if has_channel {
        servers.insert(CHANNEL.to_owned(), server(&["mcp", "--channel"]));
    }
    for name in services {
        servers.insert(format!("mesh-{name}"), server(&["mcp", "--service", name]));
    }
    json!({ "mcpServers": servers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session {
            id: "s".into(),
            mesh: "acme".into(),
            config_folder: None,
            display_name: Some("${HOME}".into()),
            role: None,
            groups: Some("eng:lead".into()),
        }
    }

    #[test]
    fn each_service_is_an_entry_whose_name_does_not_change_between_sessions() {
        let document = document(Path::new("/bin/claudemesh"), &session(), &["echo".into()], false);
        let servers = document["mcpServers"].as_object().unwrap();
        assert_eq!(servers.keys().collect::<Vec<_>>(), ["claudemesh", "mesh-echo"]);
        assert_eq!(servers["mesh-echo"]["args"], json!(["mcp", "--service", "echo"]));
        assert_eq!(servers["mesh-echo"]["command"], "/bin/claudemesh");
        assert_eq!(servers["mesh-echo"]["env"]["CLAUDEMESH_SESSION_ID"], "s");
        assert_eq!(servers["mesh-echo"]["env"]["CLAUDEMESH_GROUPS"], "eng:lead");
    }

    #[test]
    fn what_claude_code_would_expand_is_only_in_the_environment() {
        let document = document(Path::new("/bin/claudemesh"), &session(), &[], true);
        assert!(document["mcpServers"][CHANNEL]["env"].get("CLAUDEMESH_DISPLAY_NAME").is_none());
        assert_eq!(session().variables()["CLAUDEMESH_DISPLAY_NAME"], "${HOME}");
    }
}
