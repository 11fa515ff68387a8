//! The first words with a server: which era it speaks, and who it is.
//!
//! Here: `server/discover` (2026-07-28) and `initialize` (2024-11-05 to 2025-11-25). Of `rmcp` the runner uses, here and in
//! [`super::tuning`], its types for what *we* say. What the server says is kept as it came.
//! Not here: lists, restarts.

use std::time::Duration;

use rmcp::model::{ClientCapabilities, Implementation, InitializeRequestParams, ProtocolVersion};
use serde::Deserialize;
use wire::{ErrorCode, RawJson};

use super::client::{CallError, Client, Reply};

/// A server that says nothing to `server/discover` for this long may be waiting for `initialize`.
/// Real servers answer it with an error at once; Python may need 15 s before it reads anything.
const DISCOVER_SILENCE: Duration = Duration::from_secs(10);

const KEY_PROTOCOL: &str = "io.modelcontextprotocol/protocolVersion";
const KEY_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const KEY_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
const KEY_SERVER: &str = "io.modelcontextprotocol/serverInfo";

/// What the server said about itself.
#[derive(Debug)]
pub struct Greeting {
    pub protocol: String,
    pub server_info: RawJson,
    pub capabilities: RawJson,
    pub instructions: Option<String>,
    pub offers: Offers,
}

/// Which lists the server has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offers {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    /// Says that at least one of them may change.
    pub changes: bool,
    /// Tells of changes of single resources.
    pub subscribe: bool,
    pub logging: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the server refused `initialize`: {0}")]
    Refused(String),
    #[error("the server's answer to `{method}` is not valid MCP: {why}")]
    Invalid { method: &'static str, why: String },
    #[error("the server wants protocol `{0}`, which is not known")]
    Version(String),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl HandshakeError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(_) | Self::Invalid { .. } | Self::Version(_) => ErrorCode::BadProtocol,
            Self::Call(CallError::Silent(_)) => ErrorCode::StartTimeout,
            Self::Call(e) => e.code(),
        }
    }
}

/// Greets the server in the newest era that it speaks. Without an answer it waits `limit`.
pub async fn greet(client: &Client, limit: Duration) -> Result<Greeting, HandshakeError> {
    let params = format!(r#"{{"_meta":{{{}}}}}"#, joined(&modern_meta()));
    let mut modern = std::pin::pin!(client.ask("server/discover", Some(&params), limit));
    let early = tokio::time::timeout(DISCOVER_SILENCE.min(limit), modern.as_mut()).await;
    let greeting = match early {
        Ok(answer) => match discovered(answer)? {
            Some(greeting) => return Ok(accept_modern(client, greeting)),
            None => initialized(initialize(client, limit).await?)?,
        },
        Err(_) => tokio::select! {
            answer = modern => match discovered(answer)? {
                Some(greeting) => return Ok(accept_modern(client, greeting)),
                // The `initialize` that went out meanwhile is forgotten; this one gets the answer.
                None => initialized(initialize(client, limit).await?)?,
            },
            answer = initialize(client, limit) => initialized(answer?)?,
        },
    };
    client.tell("notifications/initialized", None);
    Ok(greeting)
}

fn accept_modern(client: &Client, greeting: Greeting) -> Greeting {
    client.require_meta(modern_meta());
    greeting
}

fn us() -> Implementation {
    Implementation::new("claudemesh", env!("CARGO_PKG_VERSION"))
}

fn modern_meta() -> Vec<(&'static str, String)> {
    let text = |value: serde_json::Result<String>| value.expect("plain JSON");
    vec![
        (KEY_PROTOCOL, text(serde_json::to_string(&ProtocolVersion::V_2026_07_28))),
        (KEY_CAPABILITIES, text(serde_json::to_string(&ClientCapabilities::default()))),
        (KEY_CLIENT, text(serde_json::to_string(&us()))),
    ]
}

/// What clients can, as they call: a server says once what it wants to know, and who calls comes and goes.
fn callers_capabilities() -> ClientCapabilities {
    let all = r#"{"roots":{},"sampling":{"tools":{}},"elicitation":{"form":{},"url":{}}}"#;
    serde_json::from_str(all).expect("capabilities")
}

fn joined(members: &[(&'static str, String)]) -> String {
    members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect::<Vec<_>>().join(",")
}

async fn initialize(client: &Client, limit: Duration) -> Result<Reply, CallError> {
    let params = InitializeRequestParams::new(callers_capabilities(), us())
        .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE);
    let params = serde_json::to_string(&params).expect("plain JSON");
    client.ask("initialize", Some(&params), limit).await
}

/// `None`: the server is of the legacy era.
fn discovered(answer: Result<Reply, CallError>) -> Result<Option<Greeting>, HandshakeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Discovered {
        supported_versions: Vec<String>,
        capabilities: RawJson,
        #[serde(default)]
        instructions: Option<String>,
        #[serde(default, rename = "_meta")]
        meta: Option<std::collections::BTreeMap<String, RawJson>>,
    }
    let Reply::Result(bytes) = answer? else { return Ok(None) };
    // Not a discover result: some servers answer anything with anything. `initialize` decides.
    let Ok(said) = serde_json::from_slice::<Discovered>(&bytes) else { return Ok(None) };
    let modern = ProtocolVersion::V_2026_07_28;
    if !said.supported_versions.iter().any(|version| version == modern.as_str()) {
        return Ok(None);
    }
    let server_info = said.meta.and_then(|mut meta| meta.remove(KEY_SERVER)).unwrap_or_else(no_object);
    Ok(Some(Greeting {
        protocol: modern.as_str().to_owned(),
        server_info,
        offers: offers(&said.capabilities),
        capabilities: said.capabilities,
        instructions: said.instructions,
    }))
}

fn initialized(answer: Reply) -> Result<Greeting, HandshakeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialized {
        protocol_version: String,
        capabilities: RawJson,
        #[serde(default)]
        server_info: Option<RawJson>,
        #[serde(default)]
        instructions: Option<String>,
    }
    let bytes = match answer {
        Reply::Result(bytes) => bytes,
        Reply::Error(bytes) => return Err(HandshakeError::Refused(error_message(&bytes))),
    };
    let said: Initialized = serde_json::from_slice(&bytes)
        .map_err(|e| HandshakeError::Invalid { method: "initialize", why: e.to_string() })?;
    let legacy = |version: &&ProtocolVersion| version.has_initialize();
    if !ProtocolVersion::KNOWN_VERSIONS.iter().filter(legacy).any(|v| v.as_str() == said.protocol_version) {
        return Err(HandshakeError::Version(crate::logs::clean(&said.protocol_version)));
    }
    Ok(Greeting {
        protocol: said.protocol_version,
        server_info: said.server_info.unwrap_or_else(no_object),
        offers: offers(&said.capabilities),
        capabilities: said.capabilities,
        instructions: said.instructions,
    })
}

fn no_object() -> RawJson {
    RawJson::from(serde_json::value::RawValue::from_string("{}".to_owned()).expect("an object"))
}

fn offers(capabilities: &RawJson) -> Offers {
    #[derive(Deserialize, Default)]
    struct Capabilities {
        tools: Option<Offer>,
        prompts: Option<Offer>,
        resources: Option<Offer>,
        logging: Option<serde::de::IgnoredAny>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Offer {
        list_changed: Option<bool>,
        subscribe: Option<bool>,
    }
    let said: Capabilities = serde_json::from_str(capabilities.get()).unwrap_or_default();
    let changes = [&said.tools, &said.prompts, &said.resources]
        .iter()
        .any(|offer| offer.as_ref().is_some_and(|o| o.list_changed == Some(true)));
    Offers {
        tools: said.tools.is_some(),
        prompts: said.prompts.is_some(),
        resources: said.resources.is_some(),
        changes,
        subscribe: said.resources.is_some_and(|offer| offer.subscribe == Some(true)),
        logging: said.logging.is_some(),
    }
}

/// The `message` of a JSON-RPC error object, for people.
pub fn error_message(error: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    let said = serde_json::from_slice::<Error>(error).map(|e| e.message);
    crate::logs::clean(&said.unwrap_or_else(|_| String::from_utf8_lossy(error).into_owned()))
}
