//! Editing JSON without re-writing it: what is not named stays byte for byte.
//!
//! Here: the members of an object in order, putting members in and taking them out. Not here: what they mean.
//! Invariant: a value that is kept keeps its numbers, escapes, spacing and order of members.

use std::borrow::Cow;

use serde_json::value::RawValue;
use wire::RawJson;

/// The members of an object, in order, values untouched.
#[derive(Debug, Default)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// `None`: not an object.
    pub fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str::<wire::members::Members<'_>>(text).ok().map(|members| Self(members.0))
    }

    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// The member, when it is a string.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// Writes them again, with `put` in place of members of that name or at the end, and without those that `keep` refuses.
    pub fn write(&self, keep: impl Fn(&str) -> bool, put: &[(&str, &str)]) -> RawJson {
        let size: usize = self.0.iter().map(|(key, value)| key.len() + value.get().len() + 4).sum();
        let mut object = Object::with_capacity(size + 64);
        for (key, value) in self.0.iter().filter(|(key, _)| keep(key)) {
            let other = put.iter().find(|(name, _)| name == key);
            object.put(key, other.map_or(value.get(), |(_, value)| value));
        }
        for (name, value) in put.iter().filter(|(name, _)| self.get(name).is_none()) {
            object.put(name, value);
        }
        object.end()
    }
}

/// An object that is written member by member.
pub struct Object(String);

impl Default for Object {
    fn default() -> Self {
        Self::with_capacity(128)
    }
}

impl Object {
    pub fn with_capacity(bytes: usize) -> Self {
        let mut text = String::with_capacity(bytes);
        text.push('{');
        Self(text)
    }

    /// `value` is JSON.
    pub fn put(&mut self, key: &str, value: &str) -> &mut Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&quote(key));
        self.0.push(':');
        self.0.push_str(value);
        self
    }

    pub fn end(mut self) -> RawJson {
        self.0.push('}');
        raw(self.0)
    }
}

/// A JSON string literal.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Text that is known to be JSON, since it was put together from JSON.
pub fn raw(text: String) -> RawJson {
    RawValue::from_string(text).unwrap_or_else(|_| null())
}

pub fn value(value: &serde_json::Value) -> RawJson {
    raw(value.to_string())
}

fn null() -> RawJson {
    RawValue::NULL.to_owned()
}

/// Adds those members that the object lacks, at its end. What is there stays as it is, spacing too.
pub fn with_missing(object: &RawJson, wanted: &[(&str, &str)]) -> RawJson {
    let Some(members) = Members::read(object.get()) else { return object.clone() };
    let missing: Vec<_> = wanted.iter().filter(|(name, _)| members.get(name).is_none()).collect();
    let Some(open) = object.get().trim_end().strip_suffix('}').filter(|_| !missing.is_empty()) else {
        return object.clone();
    };
    let mut text = open.to_owned();
    let mut comma = !members.0.is_empty();
    for (name, value) in missing {
        if std::mem::replace(&mut comma, true) {
            text.push(',');
        }
        text.push_str(&quote(name));
        text.push(':');
        text.push_str(value);
    }
    text.push('}');
    raw(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> RawJson {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn what_is_not_named_stays_byte_for_byte() {
        let odd = r#"{ "b":1.0e2, "a" : {"x":[ 1 ]}, "é":"\u00e9","big":123456789012345678901234567890 }"#;
        assert_eq!(with_missing(&of(odd), &[("b", "2")]).get(), odd);
        let added = with_missing(&of(odd), &[("b", "2"), ("z", "\"q\"")]);
        assert_eq!(added.get(), odd.strip_suffix('}').unwrap().to_owned() + r#","z":"q"}"#);
        let members = Members::read(odd).unwrap();
        let written = members.write(|key| key != "a", &[("b", "3"), ("n", "null")]);
        let wanted = r#"{"b":3,"é":"\u00e9","big":123456789012345678901234567890,"n":null}"#;
        assert_eq!(written.get(), wanted);
    }

    #[test]
    fn empty_objects_and_other_values_are_survived() {
        assert_eq!(with_missing(&of("{ }"), &[("a", "1")]).get(), r#"{ "a":1}"#);
        assert_eq!(with_missing(&of("[1]"), &[("a", "1")]).get(), "[1]");
        assert!(Members::read("3").is_none());
    }
}
