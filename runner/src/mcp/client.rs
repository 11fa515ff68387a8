//! How the rest of the runner asks a hosted server: calls with a place in the queue, and our own requests.
//!
//! Here: ids, the bound on calls in flight, cancelling by dropping. Not here: pipes and pending answers
//! (the connection task of [`super::conn`] owns both).
//! Invariant: every call that was taken is answered once, or its answer is dropped because nobody waits.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wire::ErrorCode;

use super::caller::Caller;
use super::frame::{self, NotAnObject};
use crate::audience::Audience;
use crate::masking::Masking;

/// Bytes of requests that may wait for a server that does not read.
const QUEUED_BYTES: usize = 64 << 20;

/// The `result` or `error` member of the server's response, as it came but for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Result(Bytes),
    Error(Bytes),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection closed before the request left: asking the next instance is safe.
    #[error("the request was not sent")]
    NotSent,
    #[error("the server ended while the call was running")]
    Lost,
    #[error("the server's answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the server's answer is nested more than {0} deep")]
    TooDeep(usize),
    #[error("too many calls of this service are waiting")]
    Busy,
    #[error(transparent)]
    BadParams(#[from] NotAnObject),
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl CallError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotSent | Self::Lost => ErrorCode::InstanceLost,
            Self::TooLarge(_) => ErrorCode::ResultTooLarge,
            Self::TooDeep(_) => ErrorCode::BadProtocol,
            Self::Busy => ErrorCode::Busy,
            Self::BadParams(_) => ErrorCode::InvalidArgs,
            Self::Silent(_) => ErrorCode::CallTimeout,
        }
    }
}

/// What the connection task is told.
pub(super) enum Order {
    Send {
        id: u64,
        line: Vec<u8>,
        waiter: Waiter,
    },
    Tell {
        line: Vec<u8>,
    },
    /// Nobody waits any more; `reason` makes it known to the server.
    Forget {
        id: u64,
        reason: Option<&'static str>,
    },
    /// To the server's own request of this number: `"result":…` or `"error":…`.
    Reply {
        number: u64,
        call: u64,
        body: Option<Vec<u8>>,
    },
    Close,
}

/// Who gets the answer. Dropping it answers [`CallError::Lost`].
pub(super) struct Waiter {
    pub reply: oneshot::Sender<Result<Reply, CallError>>,
    /// `None`: a request of our own.
    pub call: Option<Call>,
}

/// The call of a peer.
pub(super) struct Call {
    pub caller: Caller,
    /// Counts the calls of a connection.
    pub nth: u64,
    /// JSON of the caller's own progress token, when it sent one.
    pub token: Option<String>,
    /// Held until the answer, so that the queue is bounded from end to end.
    pub _place: OwnedSemaphorePermit,
}

/// A connection to one instance. Cheap to clone; the connection lives until [`Client::close`] or the server's end.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

pub(super) struct Shared {
    /// Random, so that a server can not guess the id of a question it was not asked.
    pub prefix: String,
    pub masking: Masking,
    orders: mpsc::UnboundedSender<Order>,
    audience: Mutex<Option<Arc<Audience>>>,
    places: Arc<Semaphore>,
    n_places: usize,
    pub queued: AtomicUsize,
    /// Ever made.
    calls: AtomicU64,
    /// `_meta` members that the modern era requires of every request; empty in the legacy era.
    required: OnceLock<Vec<(&'static str, String)>>,
    born: Instant,
    last_call_ms: AtomicU64,
    /// When the server last said anything.
    pub heard_ms: AtomicU64,
    pub ready: AtomicBool,
}

/// For [`Shared::prefix`].
pub(super) fn random_prefix() -> String {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    format!("cm-{}-", hex::encode(bytes))
}

/// Not the next one: a server that has seen one id knows nothing of another call's.
fn random_number() -> u64 {
    getrandom::u64().expect("the kernel gives random bytes").max(1)
}

impl Shared {
    // The channel needs no bound of its own: calls are bounded by `places`, and our own requests
    // are a handful per connection.
    pub fn new(
        prefix: String,
        orders: mpsc::UnboundedSender<Order>,
        n_places: usize,
        masking: Masking,
    ) -> Arc<Self> {
        Arc::new(Self {
            prefix,
            masking,
            orders,
            audience: Mutex::default(),
            places: Arc::new(Semaphore::new(n_places)),
            n_places,
            queued: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            required: OnceLock::new(),
            born: Instant::now(),
            last_call_ms: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
        })
    }

    pub fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The number inside an id that we made (JSON text, with quotes).
    pub fn number(&self, id: &str) -> Option<u64> {
        let text = id.strip_prefix('"')?.strip_suffix('"')?.strip_prefix(self.prefix.as_str())?;
        // Exactly as we write it: `+7` and `007` are ids that we never gave.
        if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
            None
        } else {
            text.parse().ok()
        }
    }

    pub fn audience(&self) -> Option<Arc<Audience>> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn id(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Puts a peer's request in the queue. `params` goes out as it is but for what the protocol needs in `_meta`.
    pub fn call(&self, method: &str, params: Option<&str>, caller: Caller) -> Result<InFlight, CallError> {
        let place = self.0.places.clone().try_acquire_owned().map_err(|_| CallError::Busy)?;
        if self.0.queued.load(Ordering::Relaxed) > QUEUED_BYTES {
            return Err(CallError::Busy);
        }
        self.0.last_call_ms.store(self.0.age_ms(), Ordering::Relaxed);
        self.send(method, params, Some((caller, place)))
    }

    /// Our own request, outside the bound on calls. Forgotten, not cancelled, when `limit` passes.
    pub async fn ask(&self, method: &str, params: Option<&str>, limit: Duration) -> Result<Reply, CallError> {
        let mut call = self.send(method, params, None)?;
        call.cancel_reason = None;
        match tokio::time::timeout(limit, call.answer()).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Silent(limit)),
        }
    }

    fn send(
        &self,
        method: &str,
        params: Option<&str>,
        caller: Option<(Caller, OwnedSemaphorePermit)>,
    ) -> Result<InFlight, CallError> {
        let number = random_number();
        let id = self.0.id(number);
        let required = self.0.required.get().map_or(&[][..], Vec::as_slice);
        let hears =
            caller.as_ref().is_some_and(|(caller, _)| caller.ear.as_ref().is_some_and(|ear| ear.events));
        let out = frame::outgoing(params, hears.then_some(id.as_str()), required)?;
        let mut line = Vec::with_capacity(out.params.as_ref().map_or(0, |p| p.len()) + method.len() + 96);
        frame::write_request(&mut line, &id, method, out.params.as_deref());
        let (reply, answer) = oneshot::channel();
        self.0.queued.fetch_add(line.len(), Ordering::Relaxed);
        // The answers to our own requests are what everybody sees: lists, and who the server says it is.
        let masks_result = caller.is_none() || self.0.masking.results;
        let nth = self.0.calls.fetch_add(1, Ordering::Relaxed);
        let call = caller.map(|(caller, place)| Call { caller, nth, token: out.caller_token, _place: place });
        let waiter = Waiter { reply, call };
        self.0.orders.send(Order::Send { id: number, line, waiter }).map_err(|_| CallError::NotSent)?;
        let cancel_reason = Some("the caller went away");
        Ok(InFlight { answer, number, done: false, masks_result, cancel_reason, client: self.clone() })
    }

    /// Our own request, outside the bound on calls. Cancelled at the server when it is dropped.
    pub fn open(&self, method: &str, params: Option<&str>) -> Result<InFlight, CallError> {
        let mut call = self.send(method, params, None)?;
        call.cancel_reason = Some("not wanted any more");
        Ok(call)
    }

    /// From now on what the server says outside of calls is told to these; `None`: to nobody.
    pub fn play_to(&self, audience: Option<Arc<Audience>>) {
        *self.0.audience.lock().unwrap_or_else(PoisonError::into_inner) = audience;
    }

    pub(super) fn reply(&self, number: u64, call: u64, body: Option<Vec<u8>>) {
        // A connection that is gone waits for no answer.
        let _ = self.0.orders.send(Order::Reply { number, call, body });
    }

    /// Waits until no request is taken any more.
    pub async fn ended(&self) {
        self.0.orders.closed().await;
    }

    /// Sends a notification.
    pub fn tell(&self, method: &str, params: Option<&str>) {
        let mut line = Vec::new();
        frame::write_notification(&mut line, method, params);
        self.0.queued.fetch_add(line.len(), Ordering::Relaxed);
        // A closed connection has nobody to tell.
        let _ = self.0.orders.send(Order::Tell { line });
    }

    /// Refuses further requests and, once what was taken has been written, closes the server's stdin.
    pub fn close(&self) {
        let _ = self.0.orders.send(Order::Close);
    }

    /// From now on each request carries these `_meta` members (name, JSON) unless the caller sent its own.
    pub fn require_meta(&self, members: Vec<(&'static str, String)>) {
        // Set once by the handshake; a second handshake on one connection does not happen.
        let _ = self.0.required.set(members);
    }

    pub fn is_modern(&self) -> bool {
        self.0.required.get().is_some()
    }

    /// The start is over: from now on, chatter on stdout is only logged.
    pub fn mark_ready(&self) {
        self.0.last_call_ms.store(self.0.age_ms(), Ordering::Relaxed);
        self.0.ready.store(true, Ordering::Relaxed);
    }

    /// Calls of peers that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.0.n_places - self.0.places.available_permits()
    }

    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// Whether both lead to the same connection.
    pub fn is(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How long nobody has called; zero while a call runs.
    pub fn unused_for(&self) -> Duration {
        if self.in_flight() > 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.0.age_ms().saturating_sub(self.0.last_call_ms.load(Ordering::Relaxed)))
    }

    /// How long the server has said nothing.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.0.age_ms().saturating_sub(self.0.heard_ms.load(Ordering::Relaxed)))
    }

    /// Waits until no call is running or `limit` has passed.
    pub async fn drained(&self, limit: Duration) {
        let all = u32::try_from(self.0.n_places).unwrap_or(u32::MAX);
        // Either way the caller goes on: what still runs then is answered with `instance_lost`.
        let _ = tokio::time::timeout(limit, self.0.places.acquire_many(all)).await;
    }
}

/// A request on its way. Dropping it before the answer cancels it at the server.
pub struct InFlight {
    answer: oneshot::Receiver<Result<Reply, CallError>>,
    number: u64,
    done: bool,
    masks_result: bool,
    cancel_reason: Option<&'static str>,
    client: Client,
}

impl InFlight {
    /// The answer, once. Until it has come, waiting can be given up and begun again.
    pub async fn answer(&mut self) -> Result<Reply, CallError> {
        let answer = (&mut self.answer).await;
        self.done = true;
        let masking = &self.client.0.masking;
        // Here and not in the connection's task, which all calls share.
        Ok(match answer.unwrap_or(Err(CallError::Lost))? {
            Reply::Result(result) if self.masks_result => Reply::Result(masking.large_json(result).await),
            Reply::Error(error) => Reply::Error(masking.large_json(error).await),
            unmasked @ Reply::Result(_) => unmasked,
        })
    }

    /// Cancels with words that the server sees.
    pub fn cancel(mut self, reason: &'static str) {
        self.cancel_reason = Some(reason);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.done {
            let order = Order::Forget { id: self.number, reason: self.cancel_reason };
            // A connection that is gone has nothing to forget.
            let _ = self.client.0.orders.send(order);
        }
    }
}
