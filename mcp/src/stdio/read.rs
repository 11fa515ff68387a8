//! The reading half: lines become messages.

use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc;
use wire::RawJson;

use super::{Answer, Incoming, Peer};
use crate::front::error;

/// Longest message of a client.
const LONGEST: usize = 64 << 20;
const FIRST_BUFFER: usize = 8 << 10;
/// A line buffer that grew beyond this is given back.
const KEPT_BUFFER: usize = 64 << 10;

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;

/// Reads until the client closes its side, breaks it, or nobody takes what it says.
pub(super) async fn all(input: impl AsyncRead + Unpin, peer: Peer, incoming: mpsc::Sender<Incoming>) {
    let mut input = BufReader::with_capacity(FIRST_BUFFER, input);
    let mut line = Vec::new();
    loop {
        peer.shared.caught_up().await;
        let message = match next_line(&mut input, &mut line).await {
            Ok(Line::Whole) if line.iter().all(u8::is_ascii_whitespace) => None,
            Ok(Line::Whole) => message(&line, &peer),
            Ok(Line::TooLong) => {
                refuse(&peer, None, INVALID_REQUEST, "the message is longer than 64 MiB");
                Some(Incoming::Nonsense)
            }
            Ok(Line::End) => return,
            Err(e) => return tracing::debug!("cannot read from the client: {e}"),
        };
        line.clear();
        if line.capacity() > KEPT_BUFFER {
            line = Vec::new();
        }
        if let Some(message) = message
            && incoming.send(message).await.is_err()
        {
            return;
        }
    }
}

enum Line {
    Whole,
    TooLong,
    End,
}

/// A last line without a line break counts as a line.
async fn next_line(input: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<Line> {
    let mut is_too_long = false;
    loop {
        let bytes = input.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(match (line.is_empty(), is_too_long) {
                (_, true) => Line::TooLong,
                (true, false) => Line::End,
                (false, false) => Line::Whole,
            });
        }
        let end = memchr::memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + part.len() > LONGEST {
            is_too_long = true;
            *line = Vec::new();
        }
        if !is_too_long {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(if is_too_long { Line::TooLong } else { Line::Whole });
        }
    }
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    jsonrpc: Option<String>,
    #[serde(default, deserialize_with = "present")]
    id: Option<RawJson>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default, deserialize_with = "present")]
    params: Option<RawJson>,
    #[serde(default, deserialize_with = "present")]
    result: Option<RawJson>,
    #[serde(default, deserialize_with = "present")]
    error: Option<RawJson>,
}

/// `null` is something else than nothing.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RawJson>, D::Error> {
    RawJson::deserialize(from).map(Some)
}

/// `None`: dealt with.
fn message(line: &[u8], peer: &Peer) -> Option<Incoming> {
    let message: Message = match serde_json::from_slice(line) {
        Ok(message) => message,
        Err(e) => {
            refuse_unread(line, &e, peer);
            return Some(Incoming::Nonsense);
        }
    };
    let has_id = message.id.is_some();
    let id = message.id.filter(|id| matches!(id.get().as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9')));
    let params = message.params.filter(|params| params.get() != "null");
    if message.jsonrpc.as_deref() != Some("2.0") {
        refuse(peer, id.as_ref(), INVALID_REQUEST, "`jsonrpc` must be \"2.0\"");
        return Some(Incoming::Nonsense);
    }
    if params.as_ref().is_some_and(|params| !params.get().starts_with('{')) {
        refuse(peer, id.as_ref(), INVALID_REQUEST, "`params` must be an object");
        return Some(Incoming::Nonsense);
    }
    match (id, message.method, message.result, message.error) {
        (Some(id), Some(method), None, None) => Some(Incoming::Request { id, method, params }),
        (None, Some(method), None, None) if !has_id => Some(Incoming::Notification { method, params }),
        (Some(id), None, Some(result), None) => {
            peer.settle(&id, Answer::Result(result));
            None
        }
        (Some(id), None, None, Some(error)) => {
            peer.settle(&id, Answer::Error(error));
            None
        }
        // An error without an id: the client could not read something of ours. There is nobody to tell.
        (None, None, None, Some(_)) => None,
        (id, ..) => {
            refuse(peer, id.as_ref(), INVALID_REQUEST, "neither a request, a notification nor an answer");
            Some(Incoming::Nonsense)
        }
    }
}

fn refuse_unread(line: &[u8], why: &serde_json::Error, peer: &Peer) {
    if line.trim_ascii_start().starts_with(b"[") {
        return refuse(peer, None, INVALID_REQUEST, "batches are not supported: send one message a line");
    }
    match why.classify() {
        // The text of the error may repeat what the client sent, but only to that client.
        serde_json::error::Category::Data => {
            refuse(peer, None, INVALID_REQUEST, &format!("not a JSON-RPC message: {why}"));
        }
        _ => refuse(peer, None, PARSE_ERROR, &format!("not JSON: {why}")),
    }
}

fn refuse(peer: &Peer, id: Option<&RawJson>, code: i64, message: &str) {
    let null = serde_json::value::RawValue::NULL.to_owned();
    peer.answer(id.unwrap_or(&null), &Answer::Error(error(code, message)));
}
