//! The task that owns the socket, and the table of those who wait for an answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use wire::peer::calls::McpCancel;
use wire::peer::mesh::SystemPush;
use wire::peer::{Body, ErrorBody, Head, close};

use super::hello::{self, Announce, Membership, Socket};
use super::{LinkState, Reconnect};
use crate::error::{ClientError, LooseError};

/// The broker pings every 30 s; a link that is silent for longer than this is dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);
const SWEEP_EVERY: Duration = Duration::from_secs(15);
const BACKOFF_S: [u64; 6] = [1, 2, 4, 8, 16, 30];
/// Frames that are written before the socket is flushed.
const BATCH: usize = 64;

/// A frame that came in, unread.
#[derive(Debug)]
pub(crate) struct Frame {
    text: Utf8Bytes,
}

impl Frame {
    pub(super) fn new(text: Utf8Bytes) -> Self {
        Self { text }
    }

    fn head(&self) -> Result<Head<'_>, ClientError> {
        serde_json::from_str(&self.text).map_err(|e| ClientError::Protocol(format!("not a frame: {e}")))
    }

    pub(super) fn kind(&self) -> Result<Cow<'_, str>, ClientError> {
        Ok(self.head()?.kind)
    }

    /// The body, when the frame is of its type; an `error` frame becomes the error.
    pub(super) fn read<R: Body + DeserializeOwned>(&self) -> Result<R, ClientError> {
        let kind = self.kind()?;
        if kind == R::TYPE {
            return serde_json::from_str(&self.text)
                .map_err(|e| ClientError::Protocol(format!("a broken `{kind}` frame: {e}")));
        }
        if kind == ErrorBody::TYPE {
            let loose: LooseError = serde_json::from_str(&self.text)
                .map_err(|e| ClientError::Protocol(format!("a broken `error` frame: {e}")))?;
            return Err(loose.into());
        }
        Err(ClientError::Protocol(format!("a `{kind}` frame in place of `{}`", R::TYPE)))
    }

    pub(super) fn publish(&self, pushes: &broadcast::Sender<Arc<SystemPush>>) {
        // Nobody listening is fine, and a push that we can't read is not worth the connection.
        match serde_json::from_str(&self.text) {
            Ok(push) => drop(pushes.send(Arc::new(push))),
            Err(e) => tracing::debug!("unreadable push: {e}"),
        }
    }
}

pub(super) enum Waiter {
    Once(oneshot::Sender<Frame>),
    Many(mpsc::Sender<Frame>),
}

impl Waiter {
    fn is_gone(&self) -> bool {
        match self {
            Self::Once(sender) => sender.is_closed(),
            Self::Many(sender) => sender.is_closed(),
        }
    }
}

pub(super) enum Command {
    Ask {
        id: u64,
        text: String,
        waiter: Waiter,
    },
    Forget {
        id: u64,
        cancel: bool,
    },
    /// A frame that nobody answers.
    Tell {
        text: String,
    },
    Close,
}

pub(super) struct Owner {
    pub membership: Membership,
    pub announce: Announce,
    pub reconnect: Reconnect,
    pub inbox: mpsc::Receiver<Command>,
    pub report: watch::Sender<LinkState>,
    pub pushes: broadcast::Sender<Arc<SystemPush>>,
}

enum End {
    Asked,
    Lost { why: String, is_final: bool },
}

impl End {
    fn lost(why: impl ToString) -> Self {
        Self::Lost { why: why.to_string(), is_final: false }
    }
}

/// The reading and the writing half run in one task, so the lock is never contended.
#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, Waiter>>);

impl Waiting {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    pub(super) async fn run(mut self, first: Socket) {
        let mut socket = first;
        loop {
            let waiting = Waiting::default();
            let end = self.serve(socket, &waiting).await;
            let (why, is_final) = match end {
                End::Asked => ("it was closed here".to_owned(), true),
                End::Lost { why, is_final } => (why, is_final || self.reconnect == Reconnect::Never),
            };
            // The reason must be known before the waiters are answered by dropping them.
            if is_final {
                self.report.send_replace(LinkState::Ended(why));
                return;
            }
            self.report.send_replace(LinkState::Down(why));
            drop(waiting);
            match self.connect_again().await {
                Some(again) => socket = again,
                None => return,
            }
        }
    }

    async fn serve(&mut self, socket: Socket, waiting: &Waiting) -> End {
        let (sink, stream) = socket.split();
        tokio::select! {
            end = read(stream, waiting, &self.pushes) => end,
            end = write(sink, waiting, &mut self.inbox) => end,
        }
    }

    async fn connect_again(&mut self) -> Option<Socket> {
        for attempt in 0_usize.. {
            let base = BACKOFF_S[attempt.min(BACKOFF_S.len() - 1)];
            tokio::time::sleep(jittered(base)).await;
            match hello::connect(&self.membership, &self.announce, &self.pushes).await {
                Ok((socket, ack)) => {
                    self.report.send_replace(LinkState::Up(Arc::new(ack)));
                    return Some(socket);
                }
                Err(error) => {
                    let is_final = error.code().is_some_and(|code| code.class() == wire::Class::Denied);
                    tracing::debug!("connecting again failed: {error}");
                    if is_final {
                        self.report.send_replace(LinkState::Ended(error.to_string()));
                        return None;
                    }
                    self.report.send_replace(LinkState::Down(error.to_string()));
                }
            }
        }
        None
    }
}

/// Uniform in [0, base], so that the clients of a restarted broker do not return all at once.
fn jittered(base_s: u64) -> Duration {
    let mut bytes = [0_u8; 2];
    let _ = getrandom::fill(&mut bytes);
    Duration::from_millis(base_s * 1000 * u64::from(u16::from_le_bytes(bytes)) / u64::from(u16::MAX))
}

async fn read(
    mut stream: SplitStream<Socket>,
    waiting: &Waiting,
    pushes: &broadcast::Sender<Arc<SystemPush>>,
) -> End {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            biased;
            message = stream.next() => message,
            _ = sweep.tick() => {
                waiting.table().retain(|_, waiter| !waiter.is_gone());
                if heard.elapsed() > SILENCE_LIMIT {
                    return End::lost("the broker has been silent for too long");
                }
                continue;
            }
        };
        heard = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => route(Frame::new(text), waiting, pushes),
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) =
                    frame.map_or((close::NORMAL, String::new()), |f| (f.code.into(), f.reason.to_string()));
                // 4001 and 4002: kicked, banned.
                return End::Lost {
                    why: format!("closed ({code} {reason})"),
                    is_final: code == 4001 || code == close::BANNED,
                };
            }
            Some(Ok(_)) => {}
            Some(Err(e)) => return End::lost(e),
            None => return End::lost("the broker went away"),
        }
    }
}

fn route(frame: Frame, waiting: &Waiting, pushes: &broadcast::Sender<Arc<SystemPush>>) {
    let (is_push, id) = match frame.head() {
        Ok(head) => (head.kind == SystemPush::TYPE, head.req_id.and_then(|id| id.parse::<u64>().ok())),
        Err(e) => return tracing::warn!("{e}"),
    };
    if is_push {
        return frame.publish(pushes);
    }
    let Some(id) = id else {
        return tracing::debug!("a frame that answers nothing of ours");
    };
    let mut table = waiting.table();
    match table.remove(&id) {
        Some(Waiter::Once(sender)) => drop(sender.send(frame)),
        Some(Waiter::Many(sender)) => {
            // Full means that its reader is too slow: dropping the sender ends that stream, and nobody else waits.
            let keeps_up = sender.try_send(frame).is_ok();
            if keeps_up {
                table.insert(id, Waiter::Many(sender));
            }
        }
        None => {}
    }
}

async fn write(
    mut sink: SplitSink<Socket, Message>,
    waiting: &Waiting,
    inbox: &mut mpsc::Receiver<Command>,
) -> End {
    loop {
        let Some(mut command) = inbox.recv().await else { return End::Asked };
        for _ in 0..BATCH {
            if matches!(command, Command::Close) {
                let _ = sink.send(Message::Close(None)).await;
                return End::Asked;
            }
            if let Some(text) = frame_of(command, waiting)
                && let Err(e) = sink.feed(Message::text(text)).await
            {
                return End::lost(e);
            }
            match inbox.try_recv() {
                Ok(next) => command = next,
                Err(_) => break,
            }
        }
        if let Err(e) = sink.flush().await {
            return End::lost(e);
        }
    }
}

/// What to send for a command. Enters or removes the waiter.
fn frame_of(command: Command, waiting: &Waiting) -> Option<String> {
    match command {
        Command::Ask { id, text, waiter } => {
            // It may have given up while the link was down.
            if waiter.is_gone() {
                return None;
            }
            waiting.table().insert(id, waiter);
            Some(text)
        }
        Command::Forget { id, cancel } => {
            waiting.table().remove(&id);
            if !cancel {
                return None;
            }
            wire::peer::write(None, &McpCancel { request_id: id.to_string() }).ok()
        }
        Command::Tell { text } => Some(text),
        Command::Close => None,
    }
}
