//! Why a request of a client failed.

use wire::peer::ErrorBody;
use wire::{Class, ErrorCode};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the broker at {url}: {why}")]
    Unreachable { url: String, why: String },
    /// The broker answered with an `error` frame or an HTTP error.
    #[error("{message}")]
    Broker { code: Option<ErrorCode>, message: String, stderr: Vec<String> },
    /// The socket ended while somebody waited for an answer.
    #[error("the connection to the broker ended: {0}")]
    Closed(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// There was no link for so long that the request was given up before it was sent.
    #[error("the broker could not be reached for {0} s; nothing was sent")]
    Unsent(u64),
    /// A stream was read too slowly and the broker could not be made to wait.
    #[error("the stream was read too slowly")]
    Lagged,
    #[error("the broker sent something unexpected: {0}")]
    Protocol(String),
    #[error("{0}")]
    Local(String),
    /// What the broker offers is not what somebody signed, or not what may be done with a vault. Nothing was sent.
    #[error("{message}")]
    Vault { code: ErrorCode, message: String },
}

impl ClientError {
    /// The broker's own code; `None` when the broker had no part in it.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker { code, .. } => *code,
            Self::Vault { code, .. } => Some(*code),
            Self::Unreachable { .. }
            | Self::Closed(_)
            | Self::Timeout(_)
            | Self::Unsent(_)
            | Self::Lagged
            | Self::Protocol(_)
            | Self::Local(_) => None,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Self::Broker { code, .. } => code.map_or(Class::Platform, ErrorCode::class),
            Self::Unreachable { .. }
            | Self::Closed(_)
            | Self::Timeout(_)
            | Self::Unsent(_)
            | Self::Lagged => Class::Unavailable,
            Self::Protocol(_) => Class::Platform,
            Self::Local(_) => Class::User,
            Self::Vault { code, .. } => code.class(),
        }
    }

    /// Last lines of a process that said why.
    pub fn stderr(&self) -> &[String] {
        match self {
            Self::Broker { stderr, .. } => stderr,
            _ => &[],
        }
    }

    /// Whether the same request may work once the link is back.
    pub fn is_link_loss(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Unreachable { .. })
    }
}

/// A newer broker may know codes that we do not: the message must not be lost for that.
#[derive(serde::Deserialize)]
pub(crate) struct LooseError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error: Option<HttpError>,
    #[serde(default)]
    stderr: Vec<String>,
}

/// `POST /join` answers `{ok:false, error:"invite_expired"}`, every other route `{error:{code, message}}`.
#[derive(serde::Deserialize)]
#[serde(from = "serde_json::Value")]
struct HttpError {
    code: String,
    message: String,
}

impl From<serde_json::Value> for HttpError {
    fn from(value: serde_json::Value) -> Self {
        let text = |name: &str| value.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        match value.as_str() {
            Some(word) => Self { code: word.to_owned(), message: word.to_owned() },
            None => Self { code: text("code"), message: text("message") },
        }
    }
}

impl From<LooseError> for ClientError {
    fn from(loose: LooseError) -> Self {
        let LooseError { mut code, mut message, error, stderr } = loose;
        if let Some(inner) = error {
            (code, message) = (inner.code, inner.message);
        }
        let known = read_code(&code);
        if message.is_empty() {
            message = code;
        }
        let message = match known {
            Some(code) if message == code.as_str() => code.cause().to_owned(),
            _ => message,
        };
        Self::Broker { code: known, message, stderr }
    }
}

impl From<ErrorBody> for ClientError {
    fn from(body: ErrorBody) -> Self {
        Self::Broker { code: Some(body.code), message: body.message, stderr: body.stderr }
    }
}

pub(crate) fn read_code(text: &str) -> Option<ErrorCode> {
    ErrorCode::ALL.iter().copied().find(|code| code.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> ClientError {
        serde_json::from_str::<LooseError>(json).unwrap().into()
    }

    #[test]
    fn a_code_of_a_newer_broker_keeps_its_message() {
        let error = read(r#"{"code":"from_the_future","message":"no"}"#);
        assert_eq!(error.code(), None);
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn a_bare_code_is_explained() {
        let error = read(r#"{"ok":false,"error":"invite_expired"}"#);
        assert_eq!(error.code(), Some(ErrorCode::InviteExpired));
        assert_eq!(error.to_string(), ErrorCode::InviteExpired.cause());
        assert_eq!(error.class(), Class::User);
        assert_eq!(read(r#"{"ok":false,"error":"peer_pubkey: 64 hex"}"#).to_string(), "peer_pubkey: 64 hex");
    }

    #[test]
    fn the_error_of_an_http_route_is_read() {
        let error = read(r#"{"error":{"code":"too_large","message":"at most 50 MiB"}}"#);
        assert_eq!(error.code(), Some(ErrorCode::TooLarge));
        assert_eq!(error.to_string(), "at most 50 MiB");
    }
}
