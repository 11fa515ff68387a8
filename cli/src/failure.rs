//! Why a command failed, how it is said, and with which exit code the process ends.

use client::ClientError;
use client::config::ConfigError;
use serde::Serialize;
use wire::peer::calls::McpCallResult;
use wire::peer::hosting::McpDeployStatus;
use wire::report::Reason;
use wire::{Class, ErrorCode};

#[derive(Debug)]
pub struct Failure {
    pub code: Option<ErrorCode>,
    pub class: Class,
    pub message: String,
    /// Last lines of a process that said why.
    pub stderr: Vec<String>,
    /// What still works in spite of it.
    pub note: Option<String>,
    pub cure: Option<String>,
    /// The server's own JSON-RPC error object.
    pub rpc: Option<wire::RawJson>,
}

/// The one JSON document of a failed command under `--json`.
#[derive(Serialize)]
struct Document<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    class: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stderr: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rpc: Option<&'a wire::RawJson>,
}

impl Failure {
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            code: None,
            class,
            message: message.into(),
            stderr: Vec::new(),
            note: None,
            cure: None,
            rpc: None,
        }
    }

    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Class::User, message)
    }

    pub fn platform(message: impl Into<String>) -> Self {
        Self::new(Class::Platform, message)
    }

    pub fn with_cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    pub fn of_code(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut failure = Self::new(code.class(), message).with_cure(code.cure());
        failure.code = Some(code);
        failure
    }

    fn of_reason(reason: Reason) -> Self {
        let mut failure = Self::of_code(reason.code, reason.message);
        failure.stderr = reason.stderr;
        failure
    }

    /// A deploy, update, rollback or start that ended in `failed`.
    pub fn of_deploy(status: McpDeployStatus) -> Self {
        let name = status.server_name;
        let mut failure = match status.reason {
            Some(reason) => Self::of_reason(reason),
            None => Self::new(Class::Service, status.error.unwrap_or_else(|| "it failed".to_owned())),
        };
        failure.message = format!("{name}: {}", failure.message);
        failure.cure = failure.cure.map(|cure| cure.replace("NAME", &name));
        failure.note = Some(match status.serving {
            Some(generation) => format!("generation {generation} of {name} still serves"),
            None => format!("nothing serves {name}"),
        });
        failure
    }

    /// A call without a result.
    pub fn of_call(result: McpCallResult, server: &str) -> Self {
        let message = result.error.unwrap_or_else(|| "the call failed without a reason".to_owned());
        let mut failure = match result.code {
            Some(code) => Self::of_code(code, message),
            None => Self::new(Class::Service, message),
        };
        failure.cure = failure.cure.map(|cure| cure.replace("NAME", server));
        failure.stderr = result.stderr;
        failure.rpc = result.rpc;
        failure
    }

    pub fn code_text(&self) -> &'static str {
        self.code.map_or("", ErrorCode::as_str)
    }

    pub fn json(&self) -> String {
        let document = Document {
            error: Body {
                code: self.code_text(),
                class: self.class.as_str(),
                message: &self.message,
                stderr: &self.stderr,
                note: self.note.as_deref(),
                cure: self.cure.as_deref(),
                rpc: self.rpc.as_ref(),
            },
        };
        serde_json::to_string(&document).unwrap_or_else(|_| r#"{"error":{}}"#.to_owned())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        let mut failure = match error.code() {
            Some(code) => Self::of_code(code, message),
            None => Self::new(error.class(), message),
        };
        failure.stderr = error.stderr().to_vec();
        if matches!(error, ClientError::Unreachable { .. }) {
            failure.cure =
                Some("Is it running? Start it with `claudemesh up`, or see `claudemesh doctor`.".to_owned());
        }
        failure
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let class = match error {
            ConfigError::Io { .. } => Class::Platform,
            _ => Class::User,
        };
        Self::new(class, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_update_says_why_what_serves_and_what_to_do() {
        let status: McpDeployStatus = serde_json::from_str(
            r#"{"server_name":"echo","status":"failed","serving":2,
                "reason":{"code":"start_timeout","message":"no answer","stderr":["need a key"]}}"#,
        )
        .unwrap();
        let failure = Failure::of_deploy(status);
        assert_eq!(failure.class.exit_code(), 4);
        assert_eq!(failure.message, "echo: no answer");
        assert_eq!(failure.note.as_deref(), Some("generation 2 of echo still serves"));
        assert!(failure.cure.as_deref().unwrap().contains("claudemesh logs echo"));
        let json: serde_json::Value = serde_json::from_str(&failure.json()).unwrap();
        assert_eq!(json["error"]["code"], "start_timeout");
        assert_eq!(json["error"]["stderr"][0], "need a key");
    }

    #[test]
    fn the_class_of_the_code_decides_the_exit_code() {
        for (code, exit) in [
            (ErrorCode::Internal, 1),
            (ErrorCode::InvalidArgs, 2),
            (ErrorCode::NotFound, 3),
            (ErrorCode::StartExited, 4),
            (ErrorCode::RunnerLost, 5),
        ] {
            let error = ClientError::Broker { code: Some(code), message: "m".into(), stderr: vec![] };
            assert_eq!(Failure::from(error).class.exit_code(), exit, "{code}");
        }
        let lost = ClientError::Closed("x".into());
        assert_eq!(Failure::from(lost).class.exit_code(), 5);
    }
}
