//! JSON-RPC messages as bytes: what one is, how one is written, and the two edits that params may need.
//!
//! Here: reading the head of a message without touching its values, writing requests, editing `_meta`.
//! Not here: ids that are pending, pipes, limits (see [`super::conn`]).
//! Invariant: a value that is not edited leaves with the bytes it came with.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
pub use wire::depth::{MAX_DEPTH, is_too_deep};
use wire::members::Members;

/// The members of a JSON-RPC message that we look at. `null` counts as present.
#[derive(Deserialize)]
pub struct Head<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    pub id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub method: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub error: Option<&'a RawValue>,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// One message, sorted by what it asks of us.
pub enum Message<'a> {
    Result { id: &'a RawValue, result: &'a RawValue },
    Error { id: &'a RawValue, error: &'a RawValue },
    Request { id: &'a RawValue, method: Cow<'a, str>, params: Option<&'a RawValue> },
    Notification { method: Cow<'a, str>, params: Option<&'a RawValue> },
}

/// `None`: valid JSON perhaps, but not JSON-RPC.
pub fn read(text: &[u8]) -> Option<Message<'_>> {
    let head: Head<'_> = serde_json::from_slice(text).ok()?;
    sort(head)
}

fn sort(head: Head<'_>) -> Option<Message<'_>> {
    let Head { id, method, params, result, error } = head;
    match (id, method, result, error) {
        (Some(id), Some(method), None, None) => Some(Message::Request { id, method, params }),
        (None, Some(method), None, None) => Some(Message::Notification { method, params }),
        // Some servers write both members and leave one `null`.
        (Some(id), None, _, Some(error)) if error.get() != "null" => Some(Message::Error { id, error }),
        (Some(id), None, Some(result), _) => Some(Message::Result { id, result }),
        (Some(id), None, None, Some(error)) => Some(Message::Error { id, error }),
        _ => None,
    }
}

/// Appends one request line. `id` needs no escaping: we make it.
pub fn write_request(line: &mut Vec<u8>, id: &str, method: &str, params: Option<&str>) {
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":\"");
    line.extend_from_slice(id.as_bytes());
    line.extend_from_slice(b"\",");
    write_tail(line, method, params);
}

/// Appends one notification line.
pub fn write_notification(line: &mut Vec<u8>, method: &str, params: Option<&str>) {
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\",");
    write_tail(line, method, params);
}

fn write_tail(line: &mut Vec<u8>, method: &str, params: Option<&str>) {
    line.extend_from_slice(b"\"method\":");
    line.extend_from_slice(quote(method).as_bytes());
    if let Some(params) = params {
        line.extend_from_slice(b",\"params\":");
        on_one_line(line, params.as_bytes());
    }
    line.extend_from_slice(b"}\n");
}

/// A newline between tokens is legal JSON and would end our line early; inside strings it can not occur.
fn on_one_line(line: &mut Vec<u8>, json: &[u8]) {
    line.extend(json.iter().map(|&b| if b == b'\n' || b == b'\r' { b' ' } else { b }));
}

/// Appends the answer to a request of the server; `body` is `"result":…` or `"error":…`.
pub fn write_answer(line: &mut Vec<u8>, id: &RawValue, body: &[u8]) {
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    line.extend_from_slice(id.get().as_bytes());
    line.push(b',');
    on_one_line(line, body);
    line.extend_from_slice(b"}\n");
}

/// A JSON string literal.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `params` (or its `_meta`) is not an object, so what the protocol needs can not be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` must be an object")]
pub struct NotAnObject(pub &'static str);

/// What a request's params become on their way to the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing<'a> {
    pub params: Option<Cow<'a, str>>,
    /// The caller's own progress token (JSON), when it was replaced.
    pub caller_token: Option<String>,
}

/// Replaces `_meta.progressToken` by `our_token` where the caller sent one, and adds those of `required` (name,
/// JSON value) that `_meta` lacks. With neither, the params are not even looked at.
pub fn outgoing<'a>(
    params: Option<&'a str>,
    our_token: Option<&str>,
    required: &[(&'static str, String)],
) -> Result<Outgoing<'a>, NotAnObject> {
    let untouched = |params| Ok(Outgoing { params, caller_token: None });
    if required.is_empty() && (our_token.is_none() || params.is_none_or(|p| !p.contains("progressToken"))) {
        return untouched(params.map(Cow::Borrowed));
    }
    let mut members: Members<'_> =
        serde_json::from_str(params.unwrap_or("{}")).map_err(|_| NotAnObject("params"))?;
    let meta_at = members.0.iter().position(|(key, _)| key == "_meta");
    let meta_text = meta_at.map(|at| members.0.remove(at).1.get());
    let meta: Members<'_> =
        serde_json::from_str(meta_text.unwrap_or("{}")).map_err(|_| NotAnObject("params._meta"))?;
    let mut caller_token = None;
    let mut text = String::with_capacity(params.map_or(2, str::len) + 256);
    text.push('{');
    for (key, value) in &members.0 {
        push_member(&mut text, key, value.get());
    }
    open_member(&mut text, "_meta");
    text.push('{');
    for (key, value) in &meta.0 {
        match our_token {
            Some(token) if key == "progressToken" => {
                caller_token = Some(value.get().to_owned());
                push_member(&mut text, key, &quote(token));
            }
            _ => push_member(&mut text, key, value.get()),
        }
    }
    for (key, value) in required.iter().filter(|(name, _)| meta.0.iter().all(|(key, _)| key != name)) {
        push_member(&mut text, key, value);
    }
    text.push_str("}}");
    Ok(Outgoing { params: Some(Cow::Owned(text)), caller_token })
}

/// Puts `token` in place of `progressToken` in the params of a progress notification.
pub fn with_token(params: &RawValue, token: &str) -> Option<String> {
    let members: Members<'_> = serde_json::from_str(params.get()).ok()?;
    let mut text = String::with_capacity(params.get().len() + token.len() + 2);
    text.push('{');
    for (key, value) in &members.0 {
        push_member(&mut text, key, if key == "progressToken" { token } else { value.get() });
    }
    text.push('}');
    Some(text)
}

fn push_member(text: &mut String, key: &str, value: &str) {
    open_member(text, key);
    text.push_str(value);
}

fn open_member(text: &mut String, key: &str) {
    if !text.ends_with('{') {
        text.push(',');
    }
    text.push_str(&quote(key));
    text.push(':');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(params: &str, token: Option<&str>, required: &[(&'static str, String)]) -> Outgoing<'static> {
        let out = outgoing(Some(params), token, required).expect("an object");
        Outgoing { params: out.params.map(|p| Cow::Owned(p.into_owned())), caller_token: out.caller_token }
    }

    #[test]
    fn params_without_an_edit_keep_every_byte() {
        let odd = r#"{ "b":1.0e2, "a" : {"_meta":{"x":1}}, "big":123456789012345678901234567890 }"#;
        assert_eq!(outgoing(Some(odd), None, &[]).expect("ok").params.as_deref(), Some(odd));
        assert_eq!(outgoing(Some(odd), Some("t"), &[]).expect("ok").params.as_deref(), Some(odd));
        assert_eq!(outgoing(None, None, &[]).expect("ok").params, None);
    }

    #[test]
    fn the_callers_token_is_replaced_and_remembered() {
        let out = edited(r#"{"name":"x","_meta":{"progressToken":7,"k":1.0},"z":[]}"#, Some("ours"), &[]);
        assert_eq!(out.caller_token.as_deref(), Some("7"));
        let params = out.params.expect("params");
        assert_eq!(params, r#"{"name":"x","z":[],"_meta":{"progressToken":"ours","k":1.0}}"#);
    }

    #[test]
    fn modern_keys_are_added_only_where_the_caller_left_them_out() {
        let required = [("v", "\"1\"".to_owned()), ("c", "{}".to_owned())];
        let params = edited(r#"{"_meta":{"c":{"roots":{}}}}"#, None, &required).params.expect("params");
        assert_eq!(params, r#"{"_meta":{"c":{"roots":{}},"v":"1"}}"#);
        let none = outgoing(None, None, &required).expect("ok").params.expect("params");
        assert_eq!(none, r#"{"_meta":{"v":"1","c":{}}}"#);
    }

    #[test]
    fn params_that_are_no_object_are_refused_when_an_edit_is_needed() {
        let required = [("v", "1".to_owned())];
        assert_eq!(outgoing(Some("[1]"), None, &required), Err(NotAnObject("params")));
        assert_eq!(outgoing(Some(r#"{"_meta":3}"#), None, &required), Err(NotAnObject("params._meta")));
    }

    #[test]
    fn messages_are_sorted_and_other_json_is_not_a_message() {
        assert!(matches!(read(br#"{"id":1,"result":null}"#), Some(Message::Result { .. })));
        assert!(matches!(read(br#"{"result":{},"jsonrpc":"2.0","id":"a"}"#), Some(Message::Result { .. })));
        assert!(matches!(read(br#"{"id":null,"error":{"code":1}}"#), Some(Message::Error { .. })));
        assert!(matches!(read(br#"{"id":1,"method":"ping"}"#), Some(Message::Request { .. })));
        assert!(matches!(read(br#"{"method":"n\u0041"}"#), Some(Message::Notification { .. })));
        for other in [&br#"{"level":"info"}"#[..], b"[]", b"{", b"3", b"\"x\"", &[0xff, 0xfe]] {
            assert!(read(other).is_none());
        }
    }

    #[test]
    fn a_line_break_between_tokens_does_not_end_the_request() {
        let mut line = Vec::new();
        write_request(&mut line, "i", "tools/call", Some("{\n\"a\":\r\n1}"));
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok());
    }
}
