//! Whether a tool is still the tool it was: a hash of each definition, and what differs between two lists.
//!
//! The hash is over the definition with its object keys sorted and its white space gone, so a server that only prints
//! its definitions in another order has not drifted.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use wire::RawJson;

/// What differs between two lists of tools, by tool name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

impl Drift {
    pub fn is_none(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The `name` of a tool definition, if it has one.
pub fn tool_name(definition: &RawJson) -> Option<String> {
    serde_json::from_str::<Named>(definition.get()).ok().map(|named| named.name)
}

/// SHA-256 (hex) of a definition in its canonical form.
pub fn fingerprint(definition: &RawJson) -> String {
    let mut canonical = String::new();
    // What is not a JSON value inside a JSON value does not exist; numbers too large for us hash as they were written.
    match serde_json::from_str::<Value>(definition.get()) {
        Ok(value) => write_canonical(&value, &mut canonical),
        Err(_) => canonical.push_str(definition.get()),
    }
    hex::encode(Sha256::digest(canonical))
}

/// Compares two lists. Definitions without a name are left out: clients can't call them either.
pub fn drift(before: &[RawJson], after: &[RawJson]) -> Drift {
    let index = |list: &[RawJson]| -> BTreeMap<String, String> {
        list.iter().filter_map(|tool| Some((tool_name(tool)?, fingerprint(tool)))).collect()
    };
    let (before, after) = (index(before), index(after));
    let missing_in = |from: &BTreeMap<String, String>, other: &BTreeMap<String, String>| -> Vec<String> {
        from.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
    };
    let differs = |(name, hash): (&String, &String)| {
        before.get(name).is_some_and(|old| old != hash).then(|| name.clone())
    };
    Drift {
        added: missing_in(&after, &before),
        removed: missing_in(&before, &after),
        changed: after.iter().filter_map(differs).collect(),
    }
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for value in list {
                write_canonical(value, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(list: &[&str]) -> Vec<RawJson> {
        list.iter()
            .map(|text| {
                RawJson::from(serde_json::value::RawValue::from_string((*text).into()).expect("JSON"))
            })
            .collect()
    }

    #[test]
    fn order_of_keys_and_white_space_are_not_drift() {
        let before = tools(&[r#"{"name":"a","inputSchema":{"type":"object","x":[1,2]}}"#]);
        let after = tools(&[r#"{ "inputSchema": {"x":[1, 2],"type":"object"}, "name": "a" }"#]);
        assert!(drift(&before, &after).is_none());
    }

    #[test]
    fn added_removed_and_changed_tools_are_named() {
        let before = tools(&[r#"{"name":"a"}"#, r#"{"name":"b","v":1}"#, r#"{"name":"c","l":[1,2]}"#]);
        let after = tools(&[r#"{"name":"d"}"#, r#"{"name":"b","v":2}"#, r#"{"name":"c","l":[2,1]}"#]);
        let found = drift(&before, &after);
        assert_eq!(found.added, ["d"]);
        assert_eq!(found.removed, ["a"]);
        assert_eq!(found.changed, ["b", "c"]);
    }

    #[test]
    fn definitions_that_only_look_alike_when_joined_differ() {
        let [a, b] = [r#"{"name":"a","v":["1,2"]}"#, r#"{"name":"a","v":["1","2"]}"#].map(|t| tools(&[t]));
        assert_eq!(drift(&a, &b).changed, ["a"]);
    }
}
