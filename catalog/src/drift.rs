//! Whether a tool is still the tool it was: a hash of each definition, and what differs between two lists.
//!
//! The hash is over the definition with its object keys sorted and its white space gone, so a server that only prints
//! its definitions in another order has not drifted.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
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

#[derive(serde::Deserialize)]
struct Named {
    name: String,
}

/// The `name` of a tool definition, if it has one.
pub fn tool_name(definition: &RawJson) -> Option<String> {
    serde_json::from_str::<Named>(definition.get()).ok().map(|named| named.name)
}

/// A definition as JSON text that is the same for every spelling of it: keys sorted, no white space. A definition that
/// says a key twice stays as it was written, because readers differ in which of them they take.
pub fn canonical(definition: &RawJson) -> String {
    // What is not a JSON value inside a JSON value does not exist; what is too deep or too large for us stays as it is.
    match serde_json::from_str::<Canonical>(definition.get()) {
        Ok(value) => {
            let mut text = String::new();
            value.write(&mut text);
            text
        }
        Err(_) => definition.get().to_owned(),
    }
}

/// SHA-256 (hex) of a definition in its canonical form.
pub fn fingerprint(definition: &RawJson) -> String {
    hex::encode(Sha256::digest(canonical(definition)))
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

/// A JSON value whose objects have each key once.
enum Canonical {
    Scalar(Value),
    List(Vec<Canonical>),
    Object(BTreeMap<String, Canonical>),
}

impl Canonical {
    fn write(&self, out: &mut String) {
        match self {
            Self::Scalar(value) => out.push_str(&value.to_string()),
            Self::List(list) => {
                out.push('[');
                for (n, value) in list.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { "," });
                    value.write(out);
                }
                out.push(']');
            }
            Self::Object(map) => {
                out.push('{');
                for (n, (key, value)) in map.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { "," });
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

impl<'de> Deserialize<'de> for Canonical {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Canonical;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Canonical, E> {
        Ok(Canonical::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Canonical, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Canonical::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Canonical, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Canonical>()? {
            if members.insert(key, value).is_some() {
                return Err(de::Error::custom("a key is there twice"));
            }
        }
        Ok(Canonical::Object(members))
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
    fn a_key_that_is_there_twice_is_not_the_same_as_once() {
        let [shown, hidden] = [r#"{"name":"a","d":"evil","d":"nice"}"#, r#"{"name":"a","d":"nice"}"#]
            .map(|text| tools(&[text]));
        assert_ne!(fingerprint(&shown[0]), fingerprint(&hidden[0]));
    }

    #[test]
    fn the_canonical_form_is_json_of_the_same_value() {
        let text = r#"{ "z": [ ], "a": [1, -2, 1.5, null, true, {"k":"\u00e4\n"}], "e": { } }"#;
        let canonical = canonical(&tools(&[text])[0]);
        assert_eq!(canonical, r#"{"a":[1,-2,1.5,null,true,{"k":"ä\n"}],"e":{},"z":[]}"#);
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(value(&canonical), value(text));
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
