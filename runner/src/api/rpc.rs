//! `POST …/rpc`: one request. The answer's bytes go out as they came in.
//!
//! Here: this route, and what it shares with the kept sockets of [`super::calls`]: a request borrowed from its text, lines.
//! Invariant: dropping the request, or the stream, cancels the call at the server.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use wire::runner::{Failure, LISTEN, RpcLine};
use wire::{ErrorCode, PublicKey};

use super::failure::{ApiError, parse};
use super::{App, Key};
use crate::mcp::Reply;
use crate::mcp::caller::{Caller, Ear, Said};
use crate::mcp::handshake::error_message;
use crate::service::ServiceHandle;
use crate::service::door::{Ask, DoorError, deadline_in};

/// Events of one call that wait for its caller to read; more are dropped, they are advice.
pub(super) const EVENTS: usize = 256;

/// `wire::runner::Rpc`, borrowed from the request's body.
#[derive(Deserialize)]
pub(super) struct Rpc<'a> {
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    deadline_ms: u64,
    #[serde(default)]
    pub events: bool,
    #[serde(default)]
    pub asks: bool,
    #[serde(default)]
    pub session: Option<Arc<str>>,
    #[serde(default)]
    pub caller: Option<PublicKey>,
}

impl Rpc<'_> {
    /// `sink`: where the server's words go; only those that the caller wants do.
    pub fn ask(&self, sink: Option<mpsc::Sender<Said>>) -> Ask<'_> {
        let ear = sink.map(|sink| Ear { sink, events: self.events, asks: self.asks });
        Ask {
            method: &self.method,
            params: self.params.map(RawValue::get),
            caller: self.caller.as_ref(),
            hears: Caller { session: self.session.clone(), ear },
            deadline: deadline_in(self.deadline_ms),
        }
    }
}

pub async fn call(State(app): State<Arc<App>>, Key(key): Key, body: Bytes) -> Result<Response, ApiError> {
    let rpc: Rpc<'_> = parse(&body)?;
    if rpc.asks || rpc.method == LISTEN {
        let why = "what the server asks, and listening to it, takes a socket of `/v1/calls`";
        return Err(ApiError::new(ErrorCode::InvalidArgs, why));
    }
    let service = app.table.find(&key).ok_or_else(ApiError::no_service)?;
    if rpc.events {
        drop(rpc);
        return Ok(json_lines(Body::from_stream(with_events(service, body))));
    }
    let answer = service.bell.ask(rpc.ask(None)).await;
    Ok(json_lines(Body::from(with_break(last_line(answer)))))
}

fn json_lines(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

type Answer = Pin<Box<dyn Future<Output = Result<Reply, DoorError>> + Send>>;

fn with_events(
    service: Arc<ServiceHandle>,
    body: Bytes,
) -> impl stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let (sink, events) = mpsc::channel::<Said>(EVENTS);
    let answer: Answer = Box::pin(async move {
        // Parsed before; borrowed again, because the stream outlives the handler.
        let rpc: Rpc<'_> = serde_json::from_slice(&body).expect("the handler has read it");
        service.bell.ask(rpc.ask(Some(sink))).await
    });
    until_answered(answer, events)
}

/// The answer is looked for first, so that neither it nor its deadline waits for a server that never stops talking.
fn until_answered(
    answer: Answer,
    events: mpsc::Receiver<Said>,
) -> impl stream::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold(Some((answer, events)), |running| async move {
        let (mut answer, mut events) = running?;
        tokio::select! {
            biased;
            answer = &mut answer => {
                // Events that came with the answer belong before it.
                let mut text = Vec::new();
                // No more than there can be now: the server may still be talking.
                for said in std::iter::from_fn(|| events.try_recv().ok()).take(EVENTS) {
                    text.extend_from_slice(&said_line(&said));
                }
                text.extend_from_slice(&with_break(last_line(answer)));
                Some((Ok(Bytes::from(text)), None))
            }
            Some(said) = events.recv() => Some((Ok(said_line(&said)), Some((answer, events)))),
        }
    })
}

fn said_line(said: &Said) -> Bytes {
    match said {
        Said::Event(event) => Bytes::from(with_break(event_line(event))),
        // Not reached: nothing is asked of a request that can not answer.
        Said::Ask(_) => Bytes::new(),
    }
}

pub(super) fn event_line(event: &[u8]) -> Vec<u8> {
    wrapped("{\"event\":", event)
}

/// Without its line break.
pub(super) fn last_line(answer: Result<Reply, DoorError>) -> Vec<u8> {
    match answer {
        Ok(Reply::Result(result)) => wrapped("{\"result\":", &result),
        Ok(Reply::Error(error)) => error_line(Failure {
            code: ErrorCode::McpError,
            message: error_message(&error),
            stderr: vec![],
            rpc: serde_json::from_slice(&error).ok(),
        }),
        Err(e) => error_line(Failure {
            code: e.code(),
            message: e.to_string(),
            stderr: e.stderr().to_vec(),
            rpc: None,
        }),
    }
}

pub(super) fn error_line(failure: Failure) -> Vec<u8> {
    let line = RpcLine { error: Some(failure), ..RpcLine::default() };
    serde_json::to_vec(&line).expect("wire types are plain JSON")
}

/// `{"name":` + raw JSON + `}`, and room for a line break; `raw` has none, as it came in one line.
fn wrapped(open: &str, raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(open.len() + raw.len() + 2);
    text.extend_from_slice(open.as_bytes());
    text.extend_from_slice(raw);
    text.push(b'}');
    text
}

fn with_break(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn a_server_that_never_stops_talking_does_not_keep_its_answer_back() {
        let (sink, events) = mpsc::channel(4);
        let (tell, told) = tokio::sync::oneshot::channel();
        let answer: Answer = Box::pin(async move { told.await.expect("told") });
        let mut lines = Box::pin(until_answered(answer, events));
        sink.try_send(Said::Event(Bytes::from_static(b"1"))).expect("room");
        assert_eq!(lines.next().await, Some(Ok(Bytes::from_static(b"{\"event\":1}\n"))));
        for event in [&b"2"[..], b"3"] {
            sink.try_send(Said::Event(Bytes::from_static(event))).expect("room");
        }
        tell.send(Ok(Reply::Result(Bytes::from_static(b"4")))).expect("awaited");
        let last = Bytes::from_static(b"{\"event\":2}\n{\"event\":3}\n{\"result\":4}\n");
        assert_eq!(lines.next().await, Some(Ok(last)), "with what came before it, in its order");
        assert_eq!(lines.next().await, None);
    }

    #[test]
    fn a_result_keeps_its_bytes_and_an_error_is_passed_on_whole() {
        let odd = br#"{ "a" : 1.0e2 }"#;
        let result = last_line(Ok(Reply::Result(Bytes::from_static(odd))));
        assert_eq!(&result[..], b"{\"result\":{ \"a\" : 1.0e2 }}");
        let read: RpcLine = serde_json::from_slice(&result).expect("a line");
        assert_eq!(read.result.expect("result").get().as_bytes(), odd);
        let error = br#"{"code":-32000, "message":"no","data":[1]}"#;
        let line: RpcLine =
            serde_json::from_slice(&last_line(Ok(Reply::Error(Bytes::from_static(error))))).expect("a line");
        let failure = line.error.expect("error");
        assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::McpError, "no"));
        assert_eq!(failure.rpc.expect("whole").get().as_bytes(), error);
    }
}
