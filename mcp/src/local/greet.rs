//! The words with a local server: which era it speaks, what its tools are.
//!
//! Not here: its process, calls (see [`super::LocalServer`]).

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use wire::RawJson;

use super::LocalError;
use crate::raw::{self, Object};
use crate::stdio::{Answer, Peer};

/// The newest revision with `initialize`.
const LEGACY: &str = "2025-11-25";
const MODERN: &str = "2026-07-28";
const PREFIX: &str = "io.modelcontextprotocol/";
const MAX_PAGES: usize = 100;

/// How it wants to be spoken to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Era {
    is_modern: bool,
    has_tools: bool,
}

impl Era {
    /// Params of these members, which are JSON, and of what every request of the era carries.
    pub(super) fn params(self, members: &[(&str, &str)]) -> String {
        let mut params = Object::default();
        for (name, value) in members {
            params.put(name, value);
        }
        if self.is_modern {
            params.put("_meta", &modern_meta());
        }
        params.end().get().to_owned()
    }
}

fn us() -> serde_json::Value {
    json!({ "name": "claudemesh", "version": env!("CARGO_PKG_VERSION") })
}

fn modern_meta() -> String {
    let mut meta = Object::default();
    meta.put(&format!("{PREFIX}protocolVersion"), &raw::quote(MODERN));
    meta.put(&format!("{PREFIX}clientCapabilities"), "{}");
    meta.put(&format!("{PREFIX}clientInfo"), &us().to_string());
    meta.end().get().to_owned()
}

/// `initialize`, and `server/discover` where that is refused.
pub(super) async fn greet(peer: &Peer) -> Result<Era, LocalError> {
    let params = json!({ "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": us() }).to_string();
    let refusal = match ask(peer, "initialize", &params).await? {
        Answer::Result(result) => {
            let has_tools = has_tools("initialize", &result)?;
            peer.notify("notifications/initialized", None);
            return Ok(Era { is_modern: false, has_tools });
        }
        Answer::Error(error) => message(&error),
    };
    let modern = Era { is_modern: true, has_tools: true };
    match ask(peer, "server/discover", &modern.params(&[])).await? {
        Answer::Result(result) => Ok(Era { has_tools: has_tools("server/discover", &result)?, ..modern }),
        Answer::Error(_) => Err(LocalError::Protocol(format!("it refused `initialize`: {refusal}"))),
    }
}

fn has_tools(method: &str, greeting: &RawJson) -> Result<bool, LocalError> {
    #[derive(Deserialize)]
    struct Capabilities {
        tools: Option<IgnoredAny>,
    }
    #[derive(Deserialize)]
    struct Greeting {
        capabilities: Capabilities,
    }
    let greeting: Greeting = read(method, greeting)?;
    Ok(greeting.capabilities.tools.is_some())
}

/// All pages.
pub(super) async fn tools(peer: &Peer, era: Era) -> Result<Vec<RawJson>, LocalError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        tools: Vec<RawJson>,
        #[serde(default)]
        next_cursor: Option<String>,
    }
    let (mut tools, mut cursor) = (Vec::new(), None::<String>);
    if !era.has_tools {
        return Ok(tools);
    }
    for _ in 0..MAX_PAGES {
        let quoted = cursor.as_deref().map(raw::quote);
        let members: Vec<_> = quoted.iter().map(|cursor| ("cursor", cursor.as_str())).collect();
        let page: Page = match ask(peer, "tools/list", &era.params(&members)).await? {
            Answer::Result(result) => read("tools/list", &result)?,
            Answer::Error(error) => return Err(LocalError::Protocol(message(&error))),
        };
        tools.extend(page.tools);
        match page.next_cursor.filter(|cursor| !cursor.is_empty()) {
            Some(next) => cursor = Some(next),
            None => return Ok(tools),
        }
    }
    Err(LocalError::Protocol(format!("`tools/list` has more than {MAX_PAGES} pages")))
}

/// A server of the modern era tells of changes only to who listens. Ends when it does not let us.
pub(super) async fn listen(peer: &Peer, era: Era) {
    if era.is_modern && era.has_tools {
        let params = era.params(&[("notifications", r#"{"toolsListChanged":true}"#)]);
        let _ = peer.ask("subscriptions/listen", Some(&params)).await;
    }
}

async fn ask(peer: &Peer, method: &str, params: &str) -> Result<Answer, LocalError> {
    let gone = |_| LocalError::Ended(format!("while it was asked `{method}`"));
    peer.ask(method, Some(params)).await.map_err(gone)
}

fn read<'a, T: Deserialize<'a>>(method: &str, result: &'a RawJson) -> Result<T, LocalError> {
    serde_json::from_str(result.get())
        .map_err(|error| LocalError::Protocol(format!("its answer to `{method}`: {error}")))
}

/// Of a JSON-RPC error object.
pub(super) fn message(error: &RawJson) -> String {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    serde_json::from_str::<Error>(error.get())
        .map_or_else(|_| "the server answered with an error".to_owned(), |error| error.message)
}

/// The modern way to ask the client: the answer would be another call.
pub(super) fn asks_for_input(result: &RawJson) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        #[serde(default)]
        result_type: Option<String>,
    }
    let kind = serde_json::from_str::<Kind>(result.get());
    kind.is_ok_and(|kind| kind.result_type.as_deref() == Some("input_required"))
}
