//! Answers that a model reads: texts, refusals with code and cure, and how they look in MCP.
//!
//! Invariant: what others wrote is shown with its invisible and control characters spelled out; a refusal says what to do.

use client::ClientError;
use serde_json::json;
use wire::peer::calls::McpCallResult;
use wire::report::Reason;
use wire::{ErrorCode, RawJson};

use super::splice;
use crate::stdio::Answer;

/// Why a tool did not do what it was asked: a text that names the cause, its code and the cure.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Refusal {
    pub fn of_code(code: ErrorCode, message: &str, name: &str) -> Self {
        let cure = code.cure().replace("NAME", name);
        Self(format!("{message} ({code})\n{cure}"))
    }

    pub fn of_reason(reason: &Reason, name: &str) -> Self {
        let Self(mut text) = Self::of_code(reason.code, &reason.message, name);
        add_lines(&mut text, &reason.stderr);
        Self(text)
    }

    /// Of an error of the link or the broker; `name` is the service that it is about.
    pub fn of_client(error: &ClientError, name: &str) -> Self {
        let Self(mut text) = match (error.code(), error) {
            (Some(code), _) => Self::of_code(code, &error.to_string(), name),
            (
                None,
                ClientError::Unreachable { .. }
                | ClientError::Closed(_)
                | ClientError::Timeout(_)
                | ClientError::Unsent(_),
            ) => Self(format!("{error}\n{AWAY}")),
            (None, _) => Self(error.to_string()),
        };
        add_lines(&mut text, error.stderr());
        Self(text)
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::of_client(&error, "NAME")
    }
}

pub const AWAY: &str =
    "The broker of the mesh is away; this server connects again by itself. `claudemesh doctor` tells more.";

fn add_lines(text: &mut String, lines: &[String]) {
    if !lines.is_empty() {
        text.push_str("\nits last lines:\n");
        text.push_str(&lines.join("\n"));
    }
}

/// A tool's result of one text.
pub fn tool_text(text: &str, is_error: bool) -> RawJson {
    let text = wire::text::printable(text);
    splice::of(&json!({ "content": [{ "type": "text", "text": text }], "isError": is_error }))
}

pub fn told(outcome: Result<String, Refusal>) -> Answer {
    Answer::Result(match outcome {
        Ok(text) => tool_text(&text, false),
        Err(Refusal(text)) => tool_text(&text, true),
    })
}

/// What the broker or the server answered to a call. The server's own result and error stay as they are; anything else is
/// something that the model should read, so it is a result that says so.
pub fn call_answer(result: McpCallResult, server: &str) -> Answer {
    let McpCallResult { result, error, code, stderr, rpc } = result;
    if let Some(result) = result {
        return Answer::Result(result);
    }
    if let Some(rpc) = rpc {
        return Answer::Error(rpc);
    }
    let message = error.unwrap_or_else(|| "the call failed without a reason".to_owned());
    let refusal = match code {
        Some(code) => Refusal::of_reason(&Reason { code, message, stderr }, server),
        None => Refusal(message),
    };
    told(Err(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_code_the_cure_and_the_service() {
        let error = ClientError::Broker {
            code: Some(ErrorCode::ServiceStopped),
            message: "echo is stopped".into(),
            stderr: vec!["bye".into()],
        };
        let Refusal(text) = Refusal::of_client(&error, "echo");
        assert_eq!(
            text,
            "echo is stopped (service_stopped)\nStart it with `claudemesh start echo`.\nits last lines:\nbye"
        );
    }

    #[test]
    fn a_result_and_an_error_of_the_server_pass_untouched() {
        let raw = |text: &str| serde_json::value::RawValue::from_string(text.to_owned()).unwrap();
        let result =
            McpCallResult { result: Some(raw(r#"{"content" : [],"n":1.0e1}"#)), ..Default::default() };
        let Answer::Result(passed) = call_answer(result, "a") else { panic!("a result") };
        assert_eq!(passed.get(), r#"{"content" : [],"n":1.0e1}"#);
        let rpc = McpCallResult {
            rpc: Some(raw(r#"{"code": -1}"#)),
            error: Some("x".into()),
            ..Default::default()
        };
        let Answer::Error(passed) = call_answer(rpc, "a") else { panic!("an error") };
        assert_eq!(passed.get(), r#"{"code": -1}"#);
    }

    #[test]
    fn text_of_others_can_not_hide_anything() {
        let text = tool_text("a\u{202e}b\u{1b}[2J", false);
        assert!(text.get().contains(r"a\\u{202e}b\\u{1b}[2J"), "{text}");
    }
}
