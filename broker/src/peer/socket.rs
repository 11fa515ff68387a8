//! One WebSocket from upgrade to close.
//!
//! Here: reading in order, writing what the outbox holds, pings, the idle limit, the hello timeout and the close.
//! Not here: what a hello must prove (`super::admission`), what a frame does (`super::dispatch`).
//! Reading and writing run in one task side by side: a handler that waits for the store never stops the writing.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::admission;
use super::dispatch::Connection;
use super::outbox::{Closing, Outbox, Outgoing, Waiting, ping_payload};
use super::presence::Presence;
use crate::app::Broker;
use crate::error::FrameError;
use crate::metrics;

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// How long the last frames and the peer's answer to our close may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// What one message of the socket is to us.
enum Inbound {
    Text(Text),
    Nothing,
    End(Closing),
}

/// Text or binary, both UTF-8 (peer-protocol reference §1.1).
pub enum Text {
    Utf8(axum::extract::ws::Utf8Bytes),
    NotUtf8,
}

pub async fn serve(broker: Arc<Broker>, socket: WebSocket, shutdown: CancellationToken) {
    metrics::connection_opened();
    let limits = &broker.limits;
    let (outbox, mut outgoing) = Outbox::new(limits.send_queue, limits.send_queue_kib);
    let (mut sink, mut stream) = socket.split();
    let closing = {
        let reading = read(&broker, &outbox, &mut stream);
        let writing = write(&mut sink, &mut outgoing, limits.ping_every);
        tokio::select! {
            closing = reading => closing,
            () = writing => Closing::NORMAL,
            closing = outbox.ended() => closing,
            () = shutdown.cancelled() => Closing::SHUTDOWN,
        }
    };
    let goodbye = say_goodbye(&mut sink, &mut stream, &mut outgoing, closing);
    // A peer that does not listen any more has no claim on a clean close.
    let _ = timeout(GOODBYE, goodbye).await;
}

async fn read(broker: &Arc<Broker>, outbox: &Outbox, stream: &mut Stream) -> Closing {
    let Ok(turn) = broker.greetings.try_acquire() else {
        metrics::connection_refused("capacity");
        return Closing::CAPACITY;
    };
    let greeting = timeout(broker.limits.hello_timeout, greet(broker, outbox, stream));
    let presence = match greeting.await {
        Ok(Ok(presence)) => presence,
        Ok(Err(closing)) => return closing,
        Err(_) => {
            metrics::connection_refused("hello_timeout");
            let error = FrameError::new(wire::ErrorCode::HelloTimeout, "no hello in time");
            outbox.refuse(None, error).await;
            return Closing::HELLO_TIMEOUT;
        }
    };
    drop(turn);
    let _active = metrics::Active::enter();
    let left = Leave { broker, presence: &presence };
    let closing = converse(Connection::new(Arc::clone(broker), Arc::clone(&presence)), stream).await;
    drop(left);
    closing
}

/// Waits for a hello. Anything else is answered and waits on.
async fn greet(broker: &Arc<Broker>, outbox: &Outbox, stream: &mut Stream) -> Result<Arc<Presence>, Closing> {
    loop {
        match next(stream).await {
            Inbound::End(closing) => return Err(closing),
            Inbound::Nothing => {}
            Inbound::Text(text) => {
                if let Some(presence) = admission::admit(broker, outbox, &text).await? {
                    return Ok(presence);
                }
            }
        }
    }
}

/// Takes the connection out of the table also when its task is cut off.
struct Leave<'a> {
    broker: &'a Broker,
    presence: &'a Presence,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        admission::depart(self.broker, self.presence);
    }
}

async fn converse(mut connection: Connection, stream: &mut Stream) -> Closing {
    let idle_limit = connection.idle_limit();
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            // Cancel-safe: a message is taken whole or not at all.
            inbound = timeout_at(heard + idle_limit, next(stream)) => match inbound {
                Err(_) => return Closing::IDLE,
                Ok(Inbound::End(closing)) => return closing,
                Ok(Inbound::Nothing) => heard = Instant::now(),
                Ok(Inbound::Text(text)) => {
                    connection.frame(&text).await;
                    heard = Instant::now();
                }
            },
            () = connection.reap() => {}
        }
    }
}

async fn next(stream: &mut Stream) -> Inbound {
    match stream.next().await {
        None | Some(Ok(Message::Close(_))) => Inbound::End(Closing::NORMAL),
        Some(Ok(Message::Text(text))) => Inbound::Text(Text::Utf8(text)),
        Some(Ok(Message::Binary(bytes))) => Inbound::Text(match bytes.try_into() {
            Ok(text) => Text::Utf8(text),
            Err(_) => Text::NotUtf8,
        }),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Inbound::Nothing,
        // The WebSocket layer says only in words that its hard cap was reached.
        Some(Err(error)) if error.to_string().contains("Space limit exceeded") => {
            metrics::frame_rejected("too_large");
            Inbound::End(Closing::TOO_BIG)
        }
        Some(Err(_)) => Inbound::End(Closing::NORMAL),
    }
}

/// Never returns. When the peer does not take what is written, the reading side finds out and ends the connection
/// after it has executed what came before.
async fn write(sink: &mut Sink, outgoing: &mut Outgoing, ping_every: Duration) {
    let mut pings = interval_at(Instant::now() + ping_every, ping_every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let written = tokio::select! {
            waiting = outgoing.recv() => match waiting {
                Some(waiting) => write_all(sink, outgoing, waiting).await,
                None => pending().await,
            },
            _ = pings.tick() => sink.send(Message::Ping(ping_payload())).await,
        };
        if written.is_err() {
            // Nobody reads any more; what still comes is dropped so that no reply waits for room.
            while outgoing.recv().await.is_some() {}
            pending::<()>().await;
        }
    }
}

/// Everything that is queued goes out in one flush.
async fn write_all(sink: &mut Sink, outgoing: &mut Outgoing, first: Waiting) -> Result<(), axum::Error> {
    sink.feed(Message::Text(first.text.clone())).await?;
    while let Ok(waiting) = outgoing.try_recv() {
        sink.feed(Message::Text(waiting.text.clone())).await?;
    }
    sink.flush().await
}

async fn say_goodbye(sink: &mut Sink, stream: &mut Stream, outgoing: &mut Outgoing, closing: Closing) {
    while let Ok(waiting) = outgoing.try_recv() {
        if sink.feed(Message::Text(waiting.text.clone())).await.is_err() {
            return;
        }
    }
    let frame = CloseFrame { code: closing.code, reason: closing.reason.into() };
    if sink.send(Message::Close(Some(frame))).await.is_err() {
        return;
    }
    // Data that nobody reads turns our close into a reset, and the peer would not see the reason.
    while let Some(Ok(_)) = stream.next().await {}
}
