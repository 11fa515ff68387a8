//! Edits of one member of a JSON object that leave every other byte as it was written.
//!
//! Here: reading and replacing top-level members. Not here: what they mean.

use serde_json::value::RawValue;
use wire::RawJson;

use crate::raw::Members;

/// The value of a member; of a doubled one the last, as most readers do.
pub fn member<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let Members(members) = Members::read(object.get())?;
    members.into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// The text of a member that is a string.
pub fn text_member(object: &RawValue, name: &str) -> Option<String> {
    serde_json::from_str(member(object, name)?.get()).ok()
}

/// The object with this member's value replaced, or the member put in front. `None` when it is no object.
pub fn with_member(object: &RawValue, name: &str, value: &str) -> Option<RawJson> {
    let text = object.get();
    let Members(members) = Members::read(text)?;
    let mut edited = String::with_capacity(text.len() + value.len() + name.len() + 8);
    let mut done = 0;
    let mut found = false;
    for (_, old) in members.iter().filter(|(key, _)| key == name) {
        // A borrowed value is a part of the text, so the difference of the addresses is its place.
        let start = old.get().as_ptr().addr() - text.as_ptr().addr();
        edited.push_str(&text[done..start]);
        edited.push_str(value);
        done = start + old.get().len();
        found = true;
    }
    if !found {
        let open = text.find('{')? + 1;
        edited.push_str(&text[..open]);
        edited.push_str(&serde_json::to_string(name).ok()?);
        edited.push(':');
        edited.push_str(value);
        if !members.is_empty() {
            edited.push(',');
        }
        done = open;
    }
    edited.push_str(&text[done..]);
    RawValue::from_string(edited).ok()
}

/// [`with_member`] with a text as the value.
pub fn with_text(object: &RawValue, name: &str, text: &str) -> Option<RawJson> {
    with_member(object, name, &serde_json::to_string(text).ok()?)
}

/// A value that serializes for sure, as raw JSON.
pub fn of<T: serde::Serialize + ?Sized>(value: &T) -> RawJson {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawJson::from(RawValue::NULL.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawJson {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn only_the_named_member_changes() {
        let tool = raw(
            r#"{ "title":"\u00e9", "n":1.0e2 ,"na\u006de" : "echo", "inner":{"name":"kept"}, "_meta":{"a/b":[1, 2.50]} }"#,
        );
        let renamed = with_text(&tool, "name", "svc__a__echo").unwrap();
        assert_eq!(
            renamed.get(),
            r#"{ "title":"\u00e9", "n":1.0e2 ,"na\u006de" : "svc__a__echo", "inner":{"name":"kept"}, "_meta":{"a/b":[1, 2.50]} }"#
        );
        assert_eq!(text_member(&renamed, "name").unwrap(), "svc__a__echo");
        assert_eq!(member(&tool, "n").unwrap().get(), "1.0e2");
    }

    #[test]
    fn a_doubled_member_is_replaced_twice_so_that_no_reader_sees_the_old_one() {
        let renamed = with_text(&raw(r#"{"name":"a","x":1,"name":"b"}"#), "name", "c").unwrap();
        assert_eq!(renamed.get(), r#"{"name":"c","x":1,"name":"c"}"#);
    }

    #[test]
    fn an_absent_member_is_put_in_and_what_is_no_object_is_refused() {
        assert_eq!(with_text(&raw("{}"), "name", "c").unwrap().get(), r#"{"name":"c"}"#);
        assert_eq!(with_text(&raw(r#"{"x":1}"#), "name", "c").unwrap().get(), r#"{"name":"c","x":1}"#);
        for other in ["[]", "1", "\"name\"", "null"] {
            assert!(with_text(&raw(other), "name", "c").is_none(), "{other}");
        }
    }
}
