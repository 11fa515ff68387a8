//! What each era wants of params and results.
//!
//! Here: reading `_meta`, capabilities of clients, and the edits at the borders between eras; pure functions over raw JSON.
//! Not here: who is asked, and when.

use serde_json::value::RawValue;
use wire::RawJson;

use super::{About, code, error};
use crate::raw::{self, Members, Object, quote};
use crate::stdio::Answer;

pub(super) const MODERN: &str = "2026-07-28";
/// Oldest first.
pub(super) const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// Least first.
pub(super) const LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

const PREFIX: &str = "io.modelcontextprotocol/";
const KEY_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const KEY_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const KEY_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
const KEY_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const KEY_SERVER: &str = "io.modelcontextprotocol/serverInfo";
pub(super) const KEY_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// What a client can be asked.
#[derive(Debug, Clone)]
pub(super) struct Abilities {
    pub said: RawJson,
    roots: bool,
    sampling: bool,
    form: bool,
    url: bool,
}

impl Abilities {
    /// `None`: no object.
    pub(super) fn read(said: &RawValue) -> Option<Self> {
        let members = Members::read(said.get())?;
        let elicitation = members.get("elicitation").and_then(|e| Members::read(e.get()));
        let mode = |name: &str| elicitation.as_ref().is_some_and(|modes| modes.get(name).is_some());
        Some(Self {
            said: said.to_owned(),
            roots: members.get("roots").is_some(),
            sampling: members.get("sampling").is_some(),
            // Before there were modes, `{}` meant forms.
            form: elicitation.is_some() && (mode("form") || !mode("url")),
            url: mode("url"),
        })
    }

    pub(super) fn none() -> Self {
        let said = raw::raw("{}".to_owned());
        Self { said, roots: false, sampling: false, form: false, url: false }
    }

    /// Why the client is not to be bothered with a request of the server.
    pub(super) fn refuse(&self, method: &str, params: Option<&RawJson>) -> Option<Answer> {
        let mode = params.and_then(|params| Members::read(params.get())?.text("mode"));
        let is_able = match (method, mode.as_deref()) {
            ("roots/list", _) => self.roots,
            ("sampling/createMessage", _) => self.sampling,
            ("elicitation/create", None | Some("form")) => self.form,
            ("elicitation/create", Some("url")) => self.url,
            _ => false,
        };
        let why = match &mode {
            Some(mode) if mode == "url" => "the client does not do elicitation by URL",
            _ => "Method not found",
        };
        (!is_able).then(|| Answer::Error(error(code::UNKNOWN_METHOD, why)))
    }
}

/// What a modern request says about itself.
#[derive(Debug)]
pub(super) struct ModernHead {
    pub abilities: Abilities,
    /// Index in [`LEVELS`].
    pub log_level: Option<usize>,
}

/// The era of a request, by its `_meta`.
pub(super) enum Spoken {
    Legacy,
    Modern(ModernHead),
    /// Modern, and wrong.
    Refused(Answer),
}

pub(super) fn spoken(params: Option<&RawJson>) -> Spoken {
    let Some(params) = params.filter(|params| params.get().contains(KEY_VERSION)) else {
        return Spoken::Legacy;
    };
    let meta = Members::read(params.get()).and_then(|params| Members::read(params.get("_meta")?.get()));
    let Some(meta) = meta else { return Spoken::Legacy };
    let Some(said) = meta.get(KEY_VERSION) else { return Spoken::Legacy };
    let abilities = meta.get(KEY_CAPABILITIES).and_then(Abilities::read);
    match (meta.text(KEY_VERSION), abilities) {
        (None, _) => Spoken::Refused(missing(KEY_VERSION)),
        (Some(version), _) if version != MODERN => Spoken::Refused(unsupported(said)),
        (_, None) => Spoken::Refused(missing(KEY_CAPABILITIES)),
        (_, Some(abilities)) => {
            let level = meta.text(KEY_LEVEL);
            Spoken::Modern(ModernHead { abilities, log_level: level.as_deref().and_then(level_index) })
        }
    }
}

pub(super) fn missing(what: &str) -> Answer {
    let text = format!(
        "request _meta is missing or has malformed required fields: {what}; send `initialize` first, or speak {MODERN}"
    );
    Answer::Error(error(code::INVALID_PARAMS, &text))
}

fn unsupported(requested: &RawValue) -> Answer {
    let mut data = Object::default();
    data.put("requested", requested.get()).put("supported", &format!("[{}]", quote(MODERN)));
    let mut object = Object::default();
    object
        .put("code", &code::UNSUPPORTED_VERSION.to_string())
        .put("message", "\"Unsupported protocol version\"")
        .put("data", data.end().get());
    Answer::Error(object.end())
}

pub(super) fn level_index(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == level)
}

/// Whether a capability, or a member of one, is there and not `false`.
pub(super) fn declares(capabilities: &RawJson, name: &str, inner: Option<&str>) -> bool {
    let Some(outer) = Members::read(capabilities.get()).and_then(|c| c.get(name).map(RawValue::to_owned))
    else {
        return false;
    };
    let is_on = |value: &RawValue| !matches!(value.get(), "null" | "false");
    match inner {
        None => is_on(&outer),
        Some(inner) => Members::read(outer.get()).and_then(|o| o.get(inner).map(is_on)).unwrap_or(false),
    }
}

/// Capabilities as we keep them: each list may change, whether the server itself would say so or not.
fn capabilities(about: &About) -> RawJson {
    let Some(members) = Members::read(about.capabilities.get()) else { return about.capabilities.clone() };
    let lists: Vec<(&str, RawJson)> = ["tools", "prompts", "resources"]
        .into_iter()
        .filter_map(|name| {
            let list = Members::read(members.get(name)?.get())?;
            Some((name, list.write(|_| true, &[("listChanged", "true")])))
        })
        .collect();
    let put: Vec<(&str, &str)> = lists.iter().map(|(name, list)| (*name, list.get())).collect();
    members.write(|_| true, &put)
}

pub(super) fn initialize_result(about: &About, version: &str) -> RawJson {
    let mut object = Object::default();
    object
        .put("protocolVersion", &quote(version))
        .put("capabilities", capabilities(about).get())
        .put("serverInfo", about.server_info.get());
    if let Some(text) = &about.instructions {
        object.put("instructions", &quote(text));
    }
    object.end()
}

pub(super) fn discover_result(about: &About) -> RawJson {
    let mut meta = Object::default();
    meta.put(KEY_SERVER, about.server_info.get());
    let mut object = Object::default();
    object
        .put("resultType", "\"complete\"")
        .put("supportedVersions", &format!("[{}]", quote(MODERN)))
        .put("capabilities", capabilities(about).get());
    if let Some(text) = &about.instructions {
        object.put("instructions", &quote(text));
    }
    object.put("ttlMs", "0").put("cacheScope", "\"private\"").put("_meta", meta.end().get());
    object.end()
}

/// Params of a modern client for a legacy server: its own era's keys of `_meta` go, everybody else's stay.
pub(super) fn without_modern_meta(params: RawJson) -> RawJson {
    without_meta(params, |key| key.starts_with(PREFIX))
}

fn without_meta(params: RawJson, is_gone: impl Fn(&str) -> bool) -> RawJson {
    let Some(members) = Members::read(params.get()) else { return params };
    let Some(meta) = members.get("_meta").and_then(|meta| Members::read(meta.get())) else { return params };
    let kept = meta.write(|key| !is_gone(key), &[]);
    if kept.get() == "{}" {
        return members.write(|key| key != "_meta", &[]);
    }
    members.write(|_| true, &[("_meta", kept.get())])
}

/// Params of a modern server's notification for a legacy client, who knows nothing of streams, least of all of ours.
pub(super) fn without_subscription(params: RawJson) -> RawJson {
    if !params.get().contains(KEY_SUBSCRIPTION) {
        return params;
    }
    without_meta(params, |key| key == KEY_SUBSCRIPTION)
}

/// Params of a legacy client for a modern server, with answers to what it asked (`inputResponses`, `requestState`).
pub(super) fn with_modern_meta(
    params: Option<&RawJson>,
    abilities: &Abilities,
    client: Option<&RawJson>,
    level: Option<usize>,
    answers: &[(&str, &str)],
) -> RawJson {
    let members = params.and_then(|params| Members::read(params.get())).unwrap_or_default();
    let meta = members.get("_meta").and_then(|meta| Members::read(meta.get())).unwrap_or_default();
    let level = level.map(|level| quote(LEVELS[level]));
    let mut put = vec![(KEY_CAPABILITIES, abilities.said.get())];
    put.extend(client.map(|client| (KEY_CLIENT, client.get())));
    put.extend(level.as_ref().map(|level| (KEY_LEVEL, level.as_str())));
    let meta = meta.write(|_| true, &put);
    let mut put = answers.to_vec();
    put.push(("_meta", meta.get()));
    members.write(|_| true, &put)
}

/// A legacy server's result as a modern client wants it.
pub(super) fn modern_result(method: &str, result: RawJson) -> RawJson {
    let is_cached = matches!(
        method,
        "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" | "resources/read"
    ) && result_type(&result).is_none_or(|kind| kind == "complete");
    let mut wanted = vec![("resultType", "\"complete\"")];
    if is_cached {
        wanted.extend([("ttlMs", "0"), ("cacheScope", "\"private\"")]);
    }
    raw::with_missing(&result, &wanted)
}

/// A modern server's result as a legacy client knows it: as the same server would have said it to that client.
pub(super) fn legacy_result(method: &str, result: RawJson) -> RawJson {
    let Some(members) = Members::read(result.get()) else { return result };
    let is_cached = method.ends_with("/list") || method == "resources/read";
    let gone = |key: &str| match key {
        "resultType" => true,
        "ttlMs" | "cacheScope" => is_cached,
        _ => false,
    };
    let meta = members.get("_meta").and_then(|meta| Members::read(meta.get()));
    match meta.filter(|meta| meta.get(KEY_SERVER).is_some()) {
        None if !members.0.iter().any(|(key, _)| gone(key)) => result,
        None => members.write(|key| !gone(key), &[]),
        Some(meta) => {
            let kept = meta.write(|key| key != KEY_SERVER, &[]);
            if kept.get() == "{}" {
                return members.write(|key| key != "_meta" && !gone(key), &[]);
            }
            members.write(|key| !gone(key), &[("_meta", kept.get())])
        }
    }
}

pub(super) fn result_type(result: &RawJson) -> Option<String> {
    // Most results are large and have none: look before reading.
    if !result.get().contains("\"resultType\"") {
        return None;
    }
    Members::read(result.get())?.text("resultType")
}
