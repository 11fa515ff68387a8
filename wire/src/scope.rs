//! Who sees and calls a service. Two spellings are read, one is written.

use std::collections::BTreeSet;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Reads the short spelling (`"mesh"`, `{"group":"eng"}`) and the typed one (`{"type":"group","group":"eng"}`);
/// writes the typed one. `peers` entries are member ids or display names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Scope {
    /// Only the member that deployed it.
    #[default]
    Peer,
    Mesh,
    Peers {
        allow: BTreeSet<String>,
    },
    Group {
        group: String,
    },
    Groups {
        groups: BTreeSet<String>,
    },
    Role {
        role: String,
    },
}

const FORMS: &str = "`peer`, `mesh`, {peers: […]}, {group: …}, {groups: […]} or {role: …}";

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScopeVisitor)
    }
}

struct ScopeVisitor;

impl<'de> Visitor<'de> for ScopeVisitor {
    type Value = Scope;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "a scope: {FORMS}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scope, E> {
        match text {
            "peer" => Ok(Scope::Peer),
            "mesh" => Ok(Scope::Mesh),
            _ => Err(E::custom(format!("scope must be {FORMS}"))),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scope, A::Error> {
        let mut tag: Option<String> = None;
        let mut found: Option<Scope> = None;
        while let Some(key) = map.next_key::<String>()? {
            let scope = match key.as_str() {
                "type" => {
                    tag = Some(map.next_value()?);
                    continue;
                }
                "peers" | "allow" => Scope::Peers { allow: named(map.next_value()?)? },
                "group" => Scope::Group { group: group_name(map.next_value()?) },
                "groups" => {
                    let groups = named(map.next_value()?)?;
                    Scope::Groups { groups: groups.into_iter().map(group_name).collect() }
                }
                "role" => Scope::Role { role: map.next_value()? },
                _ => return Err(de::Error::custom(format!("unknown scope field; a scope is {FORMS}"))),
            };
            if found.replace(scope).is_some() {
                return Err(de::Error::custom("a scope names one audience, not two"));
            }
        }
        agree(tag.as_deref(), found).ok_or_else(|| de::Error::custom(format!("scope must be {FORMS}")))
    }
}

fn named<E: de::Error>(list: Vec<String>) -> Result<BTreeSet<String>, E> {
    if list.is_empty() || list.len() > 256 || list.iter().any(String::is_empty) {
        return Err(E::custom("a scope list holds 1 to 256 names"));
    }
    Ok(list.into_iter().collect())
}

fn group_name(name: String) -> String {
    name.strip_prefix('@').map(str::to_owned).unwrap_or(name)
}

fn agree(tag: Option<&str>, found: Option<Scope>) -> Option<Scope> {
    match (tag, found) {
        (None, Some(scope)) => Some(scope),
        (Some("peer"), None) => Some(Scope::Peer),
        (Some("mesh"), None) => Some(Scope::Mesh),
        (Some("peers"), Some(scope @ Scope::Peers { .. }))
        | (Some("group"), Some(scope @ Scope::Group { .. }))
        | (Some("groups"), Some(scope @ Scope::Groups { .. }))
        | (Some("role"), Some(scope @ Scope::Role { .. })) => Some(scope),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Scope, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn both_spellings_are_read_and_one_is_written() {
        for (short, typed) in [
            (r#""peer""#, r#"{"type":"peer"}"#),
            (r#""mesh""#, r#"{"type":"mesh"}"#),
            (r#"{"peers":["Ana","Bo"]}"#, r#"{"type":"peers","allow":["Ana","Bo"]}"#),
            (r#"{"group":"@eng"}"#, r#"{"type":"group","group":"eng"}"#),
            (r#"{"groups":["a","b"]}"#, r#"{"type":"groups","groups":["a","b"]}"#),
            (r#"{"role":"lead"}"#, r#"{"type":"role","role":"lead"}"#),
        ] {
            let scope = read(short).expect("short form");
            assert_eq!(read(typed).expect("typed form"), scope);
            assert_eq!(serde_json::to_string(&scope).expect("writes"), typed);
        }
    }

    #[test]
    fn anything_else_is_refused_rather_than_widened() {
        for bad in [
            "null",
            r#""everyone""#,
            "{}",
            r#"{"type":"cross_mesh","meshes":[]}"#,
            r#"{"peers":[]}"#,
            r#"{"type":"mesh","group":"x"}"#,
            r#"{"group":"x","role":"y"}"#,
            r#"{"group":["x"]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
