//! One authenticated connection to a broker.
//!
//! Here: the handle that callers hold, requests and calls. Not here: the task that owns the link ([`socket`], [`session`]), the
//! hello ([`hello`]), answers of several frames ([`stream`]).
//! Invariant: everybody who waits gets an answer. The table of waiters belongs to the task that owns the socket; when
//! the socket ends the table is dropped, and that answers them all.

mod frame;
mod hello;
mod inbox;
mod session;
mod socket;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use wire::RawJson;
use wire::peer::Body;
use wire::peer::calls::{McpCall, McpCallResult, McpRequest, McpRequestResult};
use wire::peer::hello::HelloAck;
use wire::peer::live::{McpCallForward, McpCallForwardCancel};
use wire::peer::mesh::SystemPush;

pub(crate) use hello::now_ms;
pub use hello::{Announce, Membership};
pub use session::SessionStatus;
pub use stream::{
    CallEvent, CallStream, DeployEvent, DeployStream, ListenEvent, ListenStream, LogEvent, LogStream,
    RequestEvent, RequestStream,
};

use crate::error::ClientError;
use crate::identity::random_hex;
use frame::{Frame, News, Waiter};
use inbox::{Command, Ids, Inbox, Nature};
use session::Session;
use socket::{Ends, LEAVE_LIMIT, Link};

/// What happens when the socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    Never,
    /// Connect again after 1, 2, 4 … 30 s (with jitter) until the handle is dropped or the broker says that the member
    /// is gone. Requests made meanwhile wait for the link within their own deadline.
    Forever,
}

#[derive(Debug, Clone)]
pub enum LinkState {
    Up(Arc<HelloAck>),
    /// Lost; the next attempt is under way.
    Down(String),
    /// Lost for good.
    Ended(String),
}

/// Why a link is down that was never up, and may be soon.
const CONNECTING: &str = "connecting";

impl LinkState {
    /// The broker was not reached, or was lost.
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Up(_) => false,
            Self::Down(why) => why != CONNECTING,
            Self::Ended(_) => true,
        }
    }
}

/// Requests that nobody answers are given up after this long.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(20);
/// The broker's own default for calls.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The broker answers at the deadline of a call; its answer must have time to arrive.
const CALL_GRACE: Duration = Duration::from_secs(5);
/// A request that waits for a link is given up after this long.
const SEND_LIMIT: Duration = Duration::from_secs(30);
const COMMAND_QUEUE: usize = 1024;
const PUSH_QUEUE: usize = 256;
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default, Clone)]
pub struct CallOptions {
    /// Default 30 s, at most 10 minutes.
    pub deadline: Option<Duration>,
    /// `_meta` of the MCP request.
    pub meta: Option<RawJson>,
}

/// Where the processes of one session meet: `<dir>/<16 hex>.{lock,sock}`, both 0600, the directory 0700.
#[derive(Debug, Clone)]
pub struct SessionPlace {
    pub dir: std::path::PathBuf,
    /// Names the session among those of this member on this machine.
    pub session_id: String,
}

/// See [`Connection::forwards`].
#[derive(Debug)]
pub enum Forward {
    Call(McpCallForward),
    Cancel(McpCallForwardCancel),
}

pub struct Connection {
    commands: mpsc::Sender<Command>,
    ids: Ids,
    state: watch::Receiver<LinkState>,
    news: News,
    closing: Arc<Notify>,
    /// How long [`Connection::close`] may take.
    patience: Duration,
    /// Holds one task; dropping the connection aborts it.
    task: JoinSet<()>,
}

impl Connection {
    /// Connects and says hello.
    ///
    /// # Errors
    /// When the broker is not reachable, or refuses the hello.
    pub async fn open(
        membership: Membership,
        announce: Announce,
        reconnect: Reconnect,
    ) -> Result<Self, ClientError> {
        let news = News::new(PUSH_QUEUE);
        let (socket, ack) = hello::connect(&membership, &announce, &news).await?;
        let (mut connection, mut ends) = Self::unlinked(None, news, LinkState::Up(Arc::new(ack)));
        connection.task.spawn(async move {
            let (membership, announce, ends) = (&membership, &announce, &mut ends);
            Link { membership, announce, reconnect, ends, shared: None }.run(Some(socket)).await;
        });
        Ok(connection)
    }

    /// Joins the link of a session: the first process of it holds the connection to the broker, the others reach the
    /// broker through that process, and when it ends another takes over. Returns at once: until the link is up,
    /// [`Connection::state`] is `Down` and requests wait for it within their own deadline. Reconnects for ever.
    #[must_use]
    pub fn join(membership: Membership, announce: Announce, place: &SessionPlace) -> Self {
        let prefix: Arc<str> = random_hex()[..12].into();
        let state = LinkState::Down(CONNECTING.to_owned());
        let (mut connection, ends) = Self::unlinked(Some(Arc::clone(&prefix)), News::new(PUSH_QUEUE), state);
        connection.patience += LEAVE_LIMIT;
        let session = Session { membership, announce, place: place.clone(), prefix, ends };
        connection.task.spawn(session.run());
        connection
    }

    fn unlinked(prefix: Option<Arc<str>>, news: News, state: LinkState) -> (Self, Ends) {
        let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
        let (report, state) = watch::channel(state);
        let closing = Arc::new(Notify::new());
        let ends =
            Ends { inbox: Inbox::new(inbox), report, news: news.clone(), closing: Arc::clone(&closing) };
        let task = JoinSet::new();
        let ids = Ids::new(prefix);
        (Self { commands, ids, state, news, closing, patience: CLOSE_LIMIT, task }, ends)
    }

    /// What the broker asks of this connection as the host of live servers, from now on. In a shared session every process
    /// gets all of it; a call of a server that is not one's own is ignored.
    pub fn forwards(&self) -> broadcast::Receiver<Arc<Forward>> {
        self.news.forwards.subscribe()
    }

    /// One frame that nobody answers.
    ///
    /// # Errors
    /// When the link is gone for good.
    pub async fn tell<B: Body + Serialize>(&self, body: &B) -> Result<(), ClientError> {
        let text = wire::peer::write(None, body)
            .map_err(|e| ClientError::Local(format!("cannot write the frame: {e}")))?;
        self.commands.send(Command::Tell { text }).await.map_err(|_| self.closed())
    }

    /// What the broker said to the latest hello; `None` while the link is down.
    pub fn hello(&self) -> Option<Arc<HelloAck>> {
        match &*self.state.borrow() {
            LinkState::Up(ack) => Some(Arc::clone(ack)),
            LinkState::Down(_) | LinkState::Ended(_) => None,
        }
    }

    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// System events from now on. A receiver that falls 256 behind is told how many it missed.
    pub fn pushes(&self) -> broadcast::Receiver<Arc<SystemPush>> {
        self.news.pushes.subscribe()
    }

    /// One frame out, one frame of type `R` back.
    ///
    /// # Errors
    /// The broker's `error` frame, a lost link, no answer in time.
    pub async fn request<B, R>(&self, body: &B) -> Result<R, ClientError>
    where
        B: Body + Serialize,
        R: Body + DeserializeOwned,
    {
        self.request_within(REQUEST_DEADLINE, body).await
    }

    /// [`Connection::request`], for what takes long.
    ///
    /// # Errors
    /// As [`Connection::request`].
    pub async fn request_within<B, R>(&self, deadline: Duration, body: &B) -> Result<R, ClientError>
    where
        B: Body + Serialize,
        R: Body + DeserializeOwned,
    {
        self.ask(body, deadline, Nature::Errand).await?.read()
    }

    /// Calls a tool. Arguments and result stay raw JSON, byte for byte. Dropping the future cancels the call.
    ///
    /// # Errors
    /// Only when there is no answer at all: what the broker or the server answered, errors too, is in the result.
    pub async fn call_raw(
        &self,
        server: &str,
        tool: &str,
        args: Option<RawJson>,
        options: CallOptions,
    ) -> Result<McpCallResult, ClientError> {
        let deadline = options.deadline.unwrap_or(CALL_DEADLINE);
        let call = McpCall {
            server_name: server.to_owned(),
            tool_name: tool.to_owned(),
            args,
            deadline_ms: options.deadline.map(whole_ms),
            meta: options.meta,
        };
        self.ask(&call, deadline + CALL_GRACE, Nature::Call).await?.read()
    }

    /// Any MCP request that the broker allows. Dropping the future cancels it.
    ///
    /// # Errors
    /// As [`Connection::call_raw`].
    pub async fn mcp_request(&self, request: &McpRequest) -> Result<McpCallResult, ClientError> {
        let deadline = request.deadline_ms.map_or(CALL_DEADLINE, Duration::from_millis);
        let McpRequestResult(result) =
            self.ask(request, deadline + CALL_GRACE, Nature::Call).await?.read()?;
        Ok(result)
    }

    /// Ends the connection politely: what was sent before is written out first. A link that other processes of the session use
    /// waits a moment for what they have under way.
    pub async fn close(mut self) {
        let end = async {
            if self.commands.send(Command::Close).await.is_ok() {
                self.closing.notify_one();
                self.task.join_next().await;
            }
        };
        let _ = tokio::time::timeout(self.patience, end).await;
    }

    async fn ask<B: Body + Serialize>(
        &self,
        body: &B,
        deadline: Duration,
        nature: Nature,
    ) -> Result<Frame, ClientError> {
        let (waiter, answer) = oneshot::channel();
        let guard = self.post(body, Waiter::Once(waiter), nature).await?;
        let answer = async {
            tokio::select! {
                biased;
                answer = answer => Some(answer),
                () = out_of_reach(&self.state) => None,
            }
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(None) => Err(ClientError::Unsent(SEND_LIMIT.as_secs())),
            Ok(Some(Ok(frame))) => {
                guard.disarm();
                Ok(frame)
            }
            Ok(Some(Err(_))) => {
                guard.disarm();
                Err(self.closed())
            }
            Err(_) => Err(ClientError::Timeout(deadline.as_secs())),
        }
    }

    /// Queues the frame. The guard makes the owner forget the waiter (and cancel the request) when it is dropped.
    async fn post<B: Body + Serialize>(
        &self,
        body: &B,
        waiter: Waiter,
        nature: Nature,
    ) -> Result<Forgetter, ClientError> {
        let id = self.ids.next();
        let text = wire::peer::write(Some(&id), body)
            .map_err(|e| ClientError::Local(format!("cannot write the request: {e}")))?;
        let sent = self.commands.send(Command::Ask { id: id.clone(), nature, text, waiter });
        match tokio::time::timeout(REQUEST_DEADLINE, sent).await {
            Ok(Ok(())) => {
                let cancel = nature != Nature::Errand;
                Ok(Forgetter { id, cancel, commands: Some(self.commands.clone()) })
            }
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(ClientError::Timeout(REQUEST_DEADLINE.as_secs())),
        }
    }

    fn closed(&self) -> ClientError {
        closed(&self.state)
    }
}

/// Until there was no link for [`SEND_LIMIT`]. A request that was sent is answered when its link ends, so who still waits then
/// was never sent.
async fn out_of_reach(state: &watch::Receiver<LinkState>) {
    let mut state = state.clone();
    let is_down = |state: &LinkState| matches!(state, LinkState::Down(_));
    while state.wait_for(is_down).await.is_ok() {
        if tokio::time::timeout(SEND_LIMIT, state.wait_for(|now| !is_down(now))).await.is_err() {
            return;
        }
    }
    // The end of the link answers.
    std::future::pending().await
}

fn closed(state: &watch::Receiver<LinkState>) -> ClientError {
    let why = match &*state.borrow() {
        LinkState::Up(_) => "the link was replaced".to_owned(),
        LinkState::Down(why) | LinkState::Ended(why) => why.clone(),
    };
    ClientError::Closed(why)
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the owner that nobody waits any more.
struct Forgetter {
    id: String,
    cancel: bool,
    commands: Option<mpsc::Sender<Command>>,
}

impl Forgetter {
    /// One frame that nobody answers.
    async fn tell<B: Body + Serialize>(&self, body: &B) -> Result<(), ClientError> {
        let text = wire::peer::write(None, body)
            .map_err(|e| ClientError::Local(format!("cannot write the answer: {e}")))?;
        let gone = || ClientError::Closed("the link is gone".to_owned());
        let Some(commands) = &self.commands else { return Err(gone()) };
        commands.send(Command::Tell { text }).await.map_err(|_| gone())
    }

    fn disarm(mut self) {
        self.commands = None;
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            // A full queue loses this; the owner sweeps waiters that are gone.
            let _ =
                commands.try_send(Command::Forget { id: std::mem::take(&mut self.id), cancel: self.cancel });
        }
    }
}
