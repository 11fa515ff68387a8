//! The link to a broker: reading, writing, connecting again.
//!
//! Here: one WebSocket at a time, for this process and, in a shared session, for the processes that joined it
//! ([`Joiners`]). Not here: who of a session holds the link ([`super::session`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio_tungstenite::tungstenite::Message;
use wire::peer::close;
use wire::peer::hello::HelloAck;

use super::frame::{Frame, News, Waiting};
use super::hello::{self, Announce, Membership, Socket};
use super::inbox::{Command, Inbox, frame_of};
use super::session::Joiners;
use super::{LinkState, Reconnect};
use crate::error::ClientError;

/// The broker pings every 30 s; a link that is silent for longer than this is dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);
const SWEEP_EVERY: Duration = Duration::from_secs(15);
const BACKOFF_S: [u64; 6] = [1, 2, 4, 8, 16, 30];
/// Frames that are written before the socket is flushed.
const BATCH: usize = 64;
/// How long a link that is asked to end waits for the requests of other processes.
pub(super) const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// The task's side of a [`super::Connection`].
pub(super) struct Ends {
    pub inbox: Inbox,
    pub report: watch::Sender<LinkState>,
    pub news: News,
    /// [`Command::Close`] is on its way: so that nobody who does not read the inbox keeps the process waiting.
    pub closing: Arc<Notify>,
}

/// The processes that this link serves besides its own, and what they send.
pub(super) struct Shared<'a> {
    pub joiners: &'a Joiners,
    pub passed: mpsc::Receiver<Command>,
}

pub(super) struct Link<'a> {
    pub membership: &'a Membership,
    pub announce: &'a Announce,
    pub reconnect: Reconnect,
    pub ends: &'a mut Ends,
    pub shared: Option<Shared<'a>>,
}

enum End {
    Asked,
    Lost { why: String, is_final: bool, is_replaced: bool },
}

impl End {
    fn lost(why: impl ToString) -> Self {
        Self::Lost { why: why.to_string(), is_final: false, is_replaced: false }
    }
}

impl Link<'_> {
    /// Until the link ends for good. Without a socket the first attempt is made at once.
    pub(super) async fn run(mut self, first: Option<Socket>) {
        let mut socket = first;
        let mut attempt = 0;
        loop {
            let current = match socket.take() {
                Some(socket) => socket,
                None => match self.connect(attempt).await {
                    Some(socket) => socket,
                    None => return,
                },
            };
            let waiting = Waiting::default();
            match self.serve(current, &waiting).await {
                End::Asked => return self.end("it was closed here".to_owned()),
                End::Lost { why, is_final, .. } if is_final || self.reconnect == Reconnect::Never => {
                    // The reason must be known before the waiters are answered by dropping them.
                    self.tell_joiners(|joiners| joiners.ended(&why));
                    return self.end(why);
                }
                End::Lost { why, is_replaced, .. } => {
                    // Two that replace each other in turn should do so rarely.
                    attempt = if is_replaced { BACKOFF_S.len() } else { 1 };
                    self.down(&why);
                }
            }
        }
    }

    fn tell_joiners(&self, act: impl FnOnce(&Joiners)) {
        if let Some(shared) = &self.shared {
            act(shared.joiners);
        }
    }

    fn end(&self, why: String) {
        self.ends.report.send_replace(LinkState::Ended(why));
    }

    fn down(&self, why: &str) {
        self.ends.report.send_replace(LinkState::Down(why.to_owned()));
        self.tell_joiners(|joiners| joiners.down(why));
    }

    fn up(&self, ack: HelloAck) {
        self.tell_joiners(|joiners| joiners.up(&ack));
        self.ends.report.send_replace(LinkState::Up(Arc::new(ack)));
    }

    /// `None`: it was asked to end, or refused for good.
    async fn connect(&mut self, done: usize) -> Option<Socket> {
        let closing = Arc::clone(&self.ends.closing);
        tokio::select! {
            biased;
            () = closing.notified() => {
                self.end("it was closed here".to_owned());
                None
            }
            socket = self.attempts(done) => socket,
        }
    }

    async fn attempts(&self, done: usize) -> Option<Socket> {
        for attempt in done.. {
            if attempt > 0 {
                tokio::time::sleep(jittered(BACKOFF_S[(attempt - 1).min(BACKOFF_S.len() - 1)])).await;
            }
            match hello::connect(self.membership, self.announce, &self.ends.news).await {
                Ok((socket, ack)) => {
                    self.up(ack);
                    return Some(socket);
                }
                Err(error) => {
                    tracing::debug!("connecting failed: {error}");
                    if is_final(&error) {
                        let why = error.to_string();
                        self.tell_joiners(|joiners| joiners.ended(&why));
                        self.end(why);
                        return None;
                    }
                    self.down(&error.to_string());
                }
            }
        }
        None
    }

    async fn serve(&mut self, socket: Socket, waiting: &Waiting) -> End {
        let (mut sink, stream) = socket.split();
        let Ends { inbox, news, .. } = &mut *self.ends;
        let joiners = self.shared.as_ref().map(|shared| shared.joiners);
        let mut passed = self.shared.as_mut().map(|shared| &mut shared.passed);
        let writing = async {
            let end = write(&mut sink, waiting, inbox, &mut passed, joiners).await;
            if matches!(end, End::Asked) {
                if let Some(joiners) = joiners {
                    joiners.leave();
                    let rest = write(&mut sink, waiting, inbox, &mut passed, Some(joiners));
                    let _ = tokio::time::timeout(LEAVE_LIMIT, async {
                        tokio::select! { () = joiners.quiet() => {} _ = rest => {} }
                    })
                    .await;
                }
                let _ = sink.send(Message::Close(None)).await;
            }
            end
        };
        tokio::select! {
            end = read(stream, waiting, news, joiners) => end,
            end = writing => end,
        }
    }
}

fn is_final(error: &ClientError) -> bool {
    error.code().is_some_and(|code| code.class() == wire::Class::Denied)
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
    news: &News,
    joiners: Option<&Joiners>,
) -> End {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            biased;
            message = stream.next() => message,
            _ = sweep.tick() => {
                waiting.sweep();
                if heard.elapsed() > SILENCE_LIMIT {
                    return End::lost("the broker has been silent for too long");
                }
                continue;
            }
        };
        heard = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => route(Frame::new(text), waiting, news, joiners),
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) =
                    frame.map_or((close::NORMAL, String::new()), |f| (f.code.into(), f.reason.to_string()));
                // 4001 and 4002: kicked, banned.
                return End::Lost {
                    is_replaced: reason == "session_replaced",
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

/// In a session, news goes to all, and an answer to the process that asked.
pub(super) fn route(frame: Frame, waiting: &Waiting, news: &News, joiners: Option<&Joiners>) {
    let (kind, id) = match frame.head() {
        Ok(head) => (head.kind.into_owned(), head.req_id.map(std::borrow::Cow::into_owned)),
        Err(e) => return tracing::warn!("{e}"),
    };
    let Some(id) = id else {
        if News::is_news(&kind) {
            news.publish(&kind, &frame);
            if let Some(joiners) = joiners {
                joiners.publish(&frame);
            }
        } else {
            tracing::debug!("a frame that answers nothing of ours");
        }
        return;
    };
    if let (Err(frame), Some(joiners)) = (waiting.answer(&id, frame), joiners) {
        joiners.answer(&id, &frame);
    }
}

type Passed<'a> = Option<&'a mut mpsc::Receiver<Command>>;

/// Until it is told to close, or the socket fails.
async fn write(
    sink: &mut SplitSink<Socket, Message>,
    waiting: &Waiting,
    inbox: &mut Inbox,
    passed: &mut Passed<'_>,
    joiners: Option<&Joiners>,
) -> End {
    loop {
        let mut command = tokio::select! {
            biased;
            own = inbox.next() => match own { Some(command) => command, None => return End::Asked },
            other = other(passed) => other,
        };
        for _ in 0..BATCH {
            if matches!(command, Command::Close) {
                return match sink.flush().await {
                    Ok(()) => End::Asked,
                    Err(e) => End::lost(e),
                };
            }
            if let Some(text) = frame_of(command, waiting, joiners)
                && let Err(e) = sink.feed(Message::text(text)).await
            {
                return End::lost(e);
            }
            // In turn: one busy process must not keep the others waiting.
            let next = passed.as_mut().and_then(|passed| passed.try_recv().ok());
            match next.or_else(|| inbox.try_next()) {
                Some(next) => command = next,
                None => break,
            }
        }
        if let Err(e) = sink.flush().await {
            return End::lost(e);
        }
    }
}

async fn other(passed: &mut Passed<'_>) -> Command {
    match passed {
        Some(passed) => match passed.recv().await {
            Some(command) => command,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
