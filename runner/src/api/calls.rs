//! `GET /v1/calls`: a kept WebSocket that carries one call after the other.
//!
//! Here: the socket: calls in, lines out, answers to what the server asks. Not here: what a call means (see
//! [`crate::service::door`]).
//! Invariants: each call gets one last line, and then the socket takes the next one. A socket that closes cancels its call.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::runner::{Failure, LISTEN};
use wire::{ErrorCode, ServiceKey};

use super::failure::ApiError;
use super::rpc::{EVENTS, Rpc, error_line, event_line, last_line};
use super::{App, listening};
use crate::mcp::caller::{Replier, Said};
use crate::mcp::frame;

/// How long the other side may refuse to read.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// `wire::runner::RpcCall`, borrowed from its message.
#[derive(Deserialize)]
pub(super) struct Call<'a> {
    pub service: ServiceKey,
    #[serde(borrow)]
    pub rpc: Rpc<'a>,
}

/// `wire::runner::RpcDown`, borrowed.
#[derive(Deserialize)]
struct Down<'a> {
    ask: u64,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// The socket can not be used any more.
#[derive(Debug)]
pub(super) struct Gone;

pub async fn open(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    let most = app.shop.config.max_body_bytes;
    upgrade
        .max_message_size(most)
        .max_frame_size(most)
        // All of it is zeroed before each read.
        .read_buffer_size(16 << 10)
        // Each line leaves at once.
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            let ended = app.ended.clone();
            let mut line = Line { socket };
            tokio::select! {
                Gone = converse(&app, &mut line) => {}
                () = ended.cancelled() => {}
            }
        })
}

async fn converse(app: &App, line: &mut Line) -> Gone {
    loop {
        let outcome = match line.hear().await {
            Ok(text) => take(app, line, &text).await,
            Err(gone) => return gone,
        };
        if let Err(gone) = outcome {
            return gone;
        }
    }
}

async fn take(app: &App, line: &mut Line, text: &str) -> Result<(), Gone> {
    let call: Call<'_> = match serde_json::from_str(text) {
        Ok(call) => call,
        // It crossed the last line of its call.
        Err(_) if serde_json::from_str::<Down<'_>>(text).is_ok() => return Ok(()),
        Err(e) => return line.refuse(ApiError::new(ErrorCode::InvalidArgs, e.to_string())).await,
    };
    let Some(service) = app.table.find(&call.service) else {
        return line.refuse(ApiError::no_service()).await;
    };
    if call.rpc.method == LISTEN {
        return listening::serve(&service, &call.rpc, line).await;
    }
    let (sink, said) = if call.rpc.events || call.rpc.asks {
        let (sink, said) = mpsc::channel(EVENTS);
        (Some(sink), Some(said))
    } else {
        (None, None)
    };
    let mut said = Saids { said, open: vec![], last: 0 };
    let mut answer = std::pin::pin!(service.bell.ask(call.rpc.ask(sink)));
    let answer = loop {
        tokio::select! {
            // The answer first, so that neither it nor its deadline waits for a server that never stops talking.
            biased;
            answer = &mut answer => break answer,
            text = line.hear() => said.answer(&text?)?,
            more = said.next() => line.say(said.line(more)).await?,
        }
    };
    for more in said.rest() {
        line.say(more).await?;
    }
    line.say(last_line(answer)).await
}

/// What the server says during one call, and what of it is a question without an answer.
struct Saids {
    said: Option<mpsc::Receiver<Said>>,
    open: Vec<(u64, Replier)>,
    last: u64,
}

impl Saids {
    async fn next(&mut self) -> Said {
        if let Some(said) = &mut self.said
            && let Some(said) = said.recv().await
        {
            return said;
        }
        // The answer comes next.
        std::future::pending().await
    }

    fn line(&mut self, said: Said) -> Vec<u8> {
        match said {
            Said::Event(event) => event_line(&event),
            Said::Ask(question) => {
                self.last += 1;
                self.open.push((self.last, question.reply));
                let mut line = format!("{{\"ask\":{{\"ask\":{},\"request\":", self.last).into_bytes();
                line.extend_from_slice(&question.request);
                line.extend_from_slice(b"}}");
                line
            }
        }
    }

    /// What came with the answer and belongs before it: no more than there can be now, the server may still be talking.
    /// A question is put to nobody any more.
    fn rest(&mut self) -> Vec<Vec<u8>> {
        let Some(said) = &mut self.said else { return vec![] };
        let events = std::iter::from_fn(|| said.try_recv().ok()).take(EVENTS);
        events
            .filter_map(|said| match said {
                Said::Event(event) => Some(event_line(&event)),
                Said::Ask(_) => None,
            })
            .collect()
    }

    /// Anything but an answer is no conversation: a second call before the end of the first, say.
    fn answer(&mut self, text: &str) -> Result<(), Gone> {
        let down: Down<'_> = serde_json::from_str(text).map_err(|_| Gone)?;
        // An answer may be given twice; the first one counts.
        let Some(at) = self.open.iter().position(|(number, _)| *number == down.ask) else { return Ok(()) };
        let (_, reply) = self.open.swap_remove(at);
        let (name, value) = match (down.result, down.error) {
            (Some(result), None) => ("result", result.get()),
            (None, Some(error)) => ("error", error.get()),
            // Dropped: the server hears that there is no answer.
            _ => return Ok(()),
        };
        if !frame::is_too_deep(value.as_bytes()) {
            reply.answer(format!("\"{name}\":{value}").into_bytes());
        }
        Ok(())
    }
}

/// The socket, as texts.
pub(super) struct Line {
    socket: WebSocket,
}

impl Line {
    /// Cancel-safe. Pings are answered below.
    pub async fn hear(&mut self) -> Result<Utf8Bytes, Gone> {
        loop {
            match self.socket.recv().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_) | Message::Close(_)) | Err(_)) | None => return Err(Gone),
            }
        }
    }

    pub async fn say(&mut self, line: Vec<u8>) -> Result<(), Gone> {
        // JSON that was read as such is UTF-8.
        let text = Utf8Bytes::try_from(line).map_err(|_| Gone)?;
        match timeout(WRITE_STALL, self.socket.send(Message::Text(text))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    pub async fn refuse(&mut self, e: ApiError) -> Result<(), Gone> {
        self.say(error_line(Failure::from(e))).await
    }
}
