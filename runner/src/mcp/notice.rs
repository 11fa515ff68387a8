//! Notifications of a server: the parts of them that we read, and what callers get.
//!
//! Not here: whose they are (see [`super::conn`]).

use bytes::Bytes;
use serde_json::value::RawValue;

/// How often the server said that a list of each kind changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    pub tools: u64,
    pub prompts: u64,
    pub resources: u64,
}

/// The `progressToken` of a progress notification.
pub fn token(params: &RawValue) -> Option<&RawValue> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Token<'a> {
        #[serde(borrow)]
        progress_token: &'a RawValue,
    }
    serde_json::from_str::<Token<'_>>(params.get()).ok().map(|said| said.progress_token)
}

/// One event of a call: the notification as its caller gets it.
pub fn event(method: &str, params: &str) -> Bytes {
    Bytes::from(format!(r#"{{"method":"{method}","params":{params}}}"#))
}

/// How grave a log message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u8);

const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

impl Level {
    pub fn parse(text: &str) -> Option<Self> {
        LEVELS.iter().position(|level| *level == text).and_then(|at| u8::try_from(at).ok()).map(Self)
    }

    pub fn as_str(self) -> &'static str {
        LEVELS[usize::from(self.0)]
    }
}

/// Of a log message, when it names one that is known.
pub fn level(params: &RawValue) -> Option<Level> {
    #[derive(serde::Deserialize)]
    struct Entry<'a> {
        #[serde(borrow)]
        level: std::borrow::Cow<'a, str>,
    }
    Level::parse(&serde_json::from_str::<Entry<'_>>(params.get()).ok()?.level)
}

/// The `uri` of a resource that was updated.
pub fn uri(params: &RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Updated {
        uri: String,
    }
    serde_json::from_str::<Updated>(params.get()).ok().map(|said| said.uri)
}

/// A request of the server, without its id.
pub fn request(method: &str, params: Option<&str>) -> Bytes {
    match params {
        Some(params) => event(method, params),
        None => Bytes::from(format!(r#"{{"method":"{method}"}}"#)),
    }
}

/// The `requestId` of a cancellation.
pub fn request_id(params: &RawValue) -> Option<&RawValue> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Cancelled<'a> {
        #[serde(borrow)]
        request_id: &'a RawValue,
    }
    serde_json::from_str::<Cancelled<'_>>(params.get()).ok().map(|said| said.request_id)
}

/// `level logger: data`, for people.
pub fn log_text(params: &RawValue) -> String {
    #[derive(serde::Deserialize, Default)]
    struct Entry<'a> {
        #[serde(default)]
        level: Option<String>,
        #[serde(default)]
        logger: Option<String>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let entry: Entry<'_> = serde_json::from_str(params.get()).unwrap_or_default();
    let data = entry.data.map_or("", RawValue::get);
    let data = serde_json::from_str::<String>(data).unwrap_or_else(|_| data.to_owned());
    let logger = entry.logger.map(|name| format!(" {name}")).unwrap_or_default();
    format!("[{}{logger}] {data}", entry.level.as_deref().unwrap_or("log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("json")
    }

    #[test]
    fn log_messages_read_well_whatever_their_data_is() {
        for (params, text) in [
            (r#"{"level":"info","data":"hi"}"#, "[info] hi"),
            (r#"{"level":"error","logger":"db","data":{"a":1}}"#, "[error db] {\"a\":1}"),
            (r#"{"data":[1]}"#, "[log] [1]"),
            (r#"[]"#, "[log] "),
        ] {
            assert_eq!(log_text(&raw(params)), text);
        }
        assert_eq!(token(&raw(r#"{"progressToken":7}"#)).map(RawValue::get), Some("7"));
        assert!(token(&raw("{}")).is_none());
    }
}
