//! The frames between peers and the broker: one JSON object per WebSocket text message.
//!
//! One struct per `type`; [`Head`] is read first, then the body by its type, so that an unknown or broken frame can
//! still be answered with its `_reqId`. Names and fields of the original protocol are kept (peer-protocol reference
//! §1–2, hosting reference §1); what we add is marked *ours*. Unknown fields of a frame are ignored, unknown fields of
//! a `source` or `config` are refused.

pub mod calls;
pub mod hello;
pub mod hosting;
pub mod live;
pub mod mesh;
pub mod skills;
pub mod trust;
pub mod vault;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::ErrorCode;

/// Close codes (peer-protocol reference §1.11, RFC 6455 §7.4).
pub mod close {
    pub const NORMAL: u16 = 1000;
    pub const GOING_AWAY: u16 = 1001;
    pub const POLICY: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
    pub const BANNED: u16 = 4002;
}

/// What every frame has in common.
#[derive(Debug, Deserialize)]
pub struct Head<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    #[serde(rename = "_reqId", borrow, default)]
    pub req_id: Option<Cow<'a, str>>,
}

/// The body of one frame type.
pub trait Body {
    const TYPE: &'static str;
}

macro_rules! body {
    ($($name:ty = $text:literal;)*) => { $(impl $crate::peer::Body for $name { const TYPE: &'static str = $text; })* };
}
pub(crate) use body;

/// Writes `{"type":…,"_reqId":…,<fields of body>}` without re-writing raw JSON inside `body`.
///
/// # Errors
/// When `body` does not serialize to a JSON object.
pub fn write<B: Body + Serialize>(req_id: Option<&str>, body: &B) -> Result<String, serde_json::Error> {
    let fields = serde_json::to_string(body)?;
    let inner = fields
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .ok_or_else(|| <serde_json::Error as serde::ser::Error>::custom("a frame body must be an object"))?;
    let mut text = String::with_capacity(fields.len() + 64);
    text.push_str("{\"type\":\"");
    text.push_str(B::TYPE);
    text.push('"');
    if let Some(id) = req_id {
        text.push_str(",\"_reqId\":");
        text.push_str(&serde_json::to_string(id)?);
    }
    if !inner.is_empty() {
        text.push(',');
        text.push_str(inner);
    }
    text.push('}');
    Ok(text)
}

/// `error`, broker → client. `details` is *ours*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub code: ErrorCode,
    pub message: String,
    /// Last lines of a process that said why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
}

body! { ErrorBody = "error"; }
