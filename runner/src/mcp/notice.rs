//! Notifications of a server: the parts of them that we read, and what callers get.
//!
//! Not here: whose they are (see [`super::conn`]).

use bytes::Bytes;
use serde_json::value::RawValue;

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
