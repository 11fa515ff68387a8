//! `call`: one tool call, and how its result is shown.

use std::io::Read;

use client::CallOptions;
use serde::Deserialize;
use serde_json::Value;
use wire::RawJson;

use crate::args::CallArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::{plain, plain_line};
use crate::units;

/// More than any broker takes.
const MAX_STDIN: u64 = 64 << 20;
/// What `isError` ends with: the service's failure, not ours.
const TOOL_FAILED: u8 = 4;

pub async fn call(here: &Here, args: &CallArgs) -> Result<u8, Failure> {
    let arguments = arguments(args.args.as_deref())?;
    let connection = here.connect().await?;
    let options = CallOptions { deadline: Some(args.timeout), meta: None };
    let called = tokio::select! {
        answer = connection.call_raw(&args.name, &args.tool, arguments, options) => answer,
        // Leaving at once would leave the server working: dropping the call cancels it.
        _ = tokio::signal::ctrl_c() => Err(client::ClientError::Broker {
            code: Some(wire::ErrorCode::CallCancelled), message: "cancelled".to_owned(), stderr: Vec::new(),
        }),
    };
    connection.close().await;
    let mut answer = called?;
    let Some(result) = answer.result.take() else {
        return Err(Failure::of_call(answer, &args.name));
    };
    let shown = Shown::of(&result)?;
    if here.out.json {
        here.out.raw(result.get());
    } else {
        for part in &shown.parts {
            here.out.line(part);
        }
        if shown.is_error {
            here.out.remark("the tool says that it failed");
        }
    }
    Ok(if shown.is_error { TOOL_FAILED } else { 0 })
}

/// Checked here, so that a typing mistake costs no round trip; sent as it was written.
fn arguments(text: Option<&str>) -> Result<Option<RawJson>, Failure> {
    let text = match text {
        None => return Ok(None),
        Some("-") => stdin()?,
        Some(text) => text.to_owned(),
    };
    let wrong = |why: String| {
        Failure::user(format!("the arguments are not a JSON object: {why}"))
            .with_cure(r#"Quote it for the shell: '{"name":"value"}', or pass it on stdin with `-`."#)
    };
    let raw: RawJson = serde_json::from_str(text.trim()).map_err(|e| wrong(e.to_string()))?;
    if raw.get().starts_with('{') {
        Ok(Some(raw))
    } else {
        Err(wrong("it starts with something else than `{`".to_owned()))
    }
}

fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_STDIN)
        .read_to_string(&mut text)
        .map_err(|e| Failure::user(format!("cannot read the arguments from stdin: {e}")))?;
    Ok(text)
}

#[derive(Deserialize)]
struct CallResult {
    #[serde(default)]
    content: Vec<Value>,
    #[serde(default, rename = "structuredContent")]
    structured: Option<RawJson>,
    #[serde(default, rename = "isError")]
    is_error: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Shown {
    parts: Vec<String>,
    is_error: bool,
}

impl Shown {
    fn of(result: &RawJson) -> Result<Self, Failure> {
        let CallResult { content, structured, is_error } =
            serde_json::from_str(result.get()).map_err(|e| {
                Failure::of_code(
                    wire::ErrorCode::BadProtocol,
                    format!("the result is not what MCP defines: {e}"),
                )
            })?;
        let has_text = content.iter().any(|item| item.get("type").and_then(Value::as_str) == Some("text"));
        let mut parts: Vec<String> = content.iter().map(part).collect();
        if let (false, Some(structured)) = (has_text, structured) {
            let pretty = serde_json::from_str::<Value>(structured.get())
                .and_then(|value| serde_json::to_string_pretty(&value))
                .unwrap_or_else(|_| structured.get().to_owned());
            parts.push(plain(&pretty));
        }
        // Other results of the protocol (a newer era may ask for input) are shown whole rather than as nothing.
        if parts.is_empty()
            && content.is_empty()
            && result.get().len() > 2
            && !result.get().contains("\"content\"")
        {
            parts.push(plain(result.get()));
        }
        Ok(Self { parts, is_error })
    }
}

/// Text as text, everything else as a note of what it is.
fn part(item: &Value) -> String {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    match text("type") {
        Some("text") => plain(text("text").unwrap_or_default()),
        Some(kind @ ("image" | "audio")) => note(kind, text("mimeType"), text("data").map(decoded_size)),
        Some("resource_link") => format!("[resource {}]", plain_line(text("uri").unwrap_or("?"))),
        Some("resource") => resource(item.get("resource").unwrap_or(&Value::Null)),
        Some(kind) => format!("[{}]", plain_line(kind)),
        None => "[content without a type]".to_owned(),
    }
}

fn resource(resource: &Value) -> String {
    let text = |name: &str| resource.get(name).and_then(Value::as_str);
    match (text("text"), text("blob")) {
        (Some(body), _) => plain(body),
        (None, blob) => {
            let what = format!("resource {}", text("uri").unwrap_or("?"));
            note(&what, text("mimeType"), blob.map(decoded_size))
        }
    }
}

fn note(what: &str, mime: Option<&str>, size: Option<u64>) -> String {
    let mime = mime.map(|mime| format!(" {mime}")).unwrap_or_default();
    let size = size.map(|size| format!(" {}", units::size(size))).unwrap_or_default();
    plain_line(&format!("[{what}{mime}{size}]"))
}

/// Of base64, without decoding it.
fn decoded_size(base64: &str) -> u64 {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count().min(2);
    (base64.len() / 4 * 3).saturating_sub(padding) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: &str) -> Shown {
        Shown::of(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn text_is_plain_and_other_content_a_note() {
        let result = shown(
            r#"{"content":[{"type":"text","text":"hi\u001b[2J"},{"type":"image","mimeType":"image/png","data":"AAAA"},
                {"type":"resource_link","uri":"file:///x"},{"type":"resource","resource":{"uri":"a:b","text":"body"}},
                {"type":"resource","resource":{"uri":"a:b","mimeType":"x/y","blob":"AA=="}},{"type":"new"},{}],
                "structuredContent":{"a":1}}"#,
        );
        assert_eq!(
            result.parts,
            [
                r"hi\u{1b}[2J",
                "[image image/png 3 B]",
                "[resource file:///x]",
                "body",
                "[resource a:b x/y 1 B]",
                "[new]",
                "[content without a type]"
            ]
        );
        assert!(!result.is_error);
    }

    #[test]
    fn structured_content_is_shown_when_there_is_no_text() {
        assert_eq!(shown(r#"{"content":[],"structuredContent":{"a":1}}"#).parts, ["{\n  \"a\": 1\n}"]);
        assert_eq!(shown(r#"{"resultType":"input_required"}"#).parts, [r#"{"resultType":"input_required"}"#]);
        assert!(shown(r#"{"content":[],"isError":true}"#).is_error);
        assert_eq!(shown(r#"{"content":[]}"#).parts, Vec::<String>::new());
    }

    #[test]
    fn arguments_are_an_object_and_keep_their_bytes() {
        assert_eq!(arguments(Some(r#" {"a": 1.0} "#)).unwrap().unwrap().get(), r#"{"a": 1.0}"#);
        assert!(arguments(None).unwrap().is_none());
        for bad in ["", "[1]", "{", "a=b", "\"x\""] {
            assert!(arguments(Some(bad)).is_err(), "{bad}");
        }
    }
}
