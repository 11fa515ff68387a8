//! One MCP request from a peer to a hosted server: the way that every tool call takes.
//!
//! Here: access, the wait for a runner that is away, the stream of answers, what the server asks meanwhile, the deadline. Not
//! here: frames (`peer::handlers`), sockets, what the server is (the runner knows), servers that are lent (`crate::live`).
//! Invariants: no SQL, no JSON trees: bytes are copied, never understood. A call that was sent is never sent again.
//! Dropping the future cancels the call down to the server.

use std::sync::Arc;
use std::time::Duration;

use catalog::access::{self, Action, Caller, Decision};
use catalog::quarantine::Unreadable;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wire::report::{Phase, Reason};
use wire::runner::{Failure, Rpc, RpcAsk, RpcCall, RpcDown, RpcLine};
use wire::{ErrorCode, RawJson, ServiceKey};

use crate::app::Broker;
use crate::callers::{self, CallerError};
use crate::live::LiveError;
use crate::metrics::{self, Outcome};
use crate::runner::{OpenCall, RunnerError};
use crate::views::{MeshView, ServiceView};

pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// Of `mcp_call`.
pub const MAX_CALL: Duration = Duration::from_secs(600);
/// Of `mcp_request`: people answer what servers ask, and clients know best how long they want to wait.
pub const MAX_REQUEST: Duration = Duration::from_secs(24 * 3600);
/// The runner ends a call at its deadline; only when it does not, the broker does.
const SLACK: Duration = Duration::from_secs(1);
/// How long a call that was not sent waits for a runner that is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// The runner says at once that a process ended, and a moment later what of.
const LAST_WORDS: Duration = Duration::from_millis(500);
const METHODS: &[&str] = &["tools/call", "prompts/get", "resources/read", "completion/complete"];

/// What a peer asks of a hosted server.
pub struct Call<'a> {
    pub caller: &'a Caller,
    pub view: &'a MeshView,
    pub server_name: &'a str,
    pub method: &'a str,
    pub params: Option<RawJson>,
    pub deadline: Duration,
    /// Whether progress and log notifications are wanted.
    pub events: bool,
    /// Whether the caller answers what the server asks of its client.
    pub asks: bool,
    /// The caller's connection; opaque to the runner.
    pub session: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The text that clients of the original protocol know.
    #[error("MCP server \"{0}\" not found in mesh")]
    NotFound(String),
    #[error(
        "`{0}` can not be asked of a hosted server; use one of tools/call, prompts/get, resources/read, completion/complete"
    )]
    Method(String),
    #[error("the request can not be written: {0}")]
    Unwritable(#[from] serde_json::Error),
    #[error("service `{0}` is stopped")]
    Stopped(String),
    #[error("service `{name}` never became ready: {reason}")]
    Failed { name: String, reason: String, stderr: Vec<String> },
    #[error("no answer before the deadline")]
    Deadline,
    #[error("service `{0}` did not become ready before the deadline")]
    NotReady(String),
    #[error("`{0}` is not what the service's owner approved; they can look at it and approve it")]
    Quarantined(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

impl CallError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::Method(_) | Self::Unreadable(_) => ErrorCode::InvalidArgs,
            Self::Quarantined(_) => ErrorCode::Quarantined,
            Self::Unwritable(_) => ErrorCode::Internal,
            Self::Stopped(_) => ErrorCode::ServiceStopped,
            Self::Failed { .. } => ErrorCode::ServiceFailed,
            Self::Deadline => ErrorCode::CallTimeout,
            Self::NotReady(_) => ErrorCode::ServiceStarting,
            Self::Cancelled => ErrorCode::CallCancelled,
            Self::Live(error) => error.code(),
            Self::Caller(error) => error.code(),
            Self::Runner(error) => error.code(),
        }
    }

    /// What the peer is told.
    pub fn into_failure(self) -> Failure {
        let code = self.code();
        let message = self.to_string();
        match self {
            Self::Runner(RunnerError::Refused(failure)) => *failure,
            Self::Failed { stderr, .. } | Self::Caller(CallerError::Failed(Reason { stderr, .. })) => {
                Failure { code, message, stderr, rpc: None }
            }
            _ => Failure { code, message, stderr: Vec::new(), rpc: None },
        }
    }

    fn outcome(&self) -> Outcome {
        match self.code() {
            ErrorCode::McpError => Outcome::McpError,
            ErrorCode::CallTimeout | ErrorCode::ServiceStarting => Outcome::Timeout,
            ErrorCode::CallCancelled => Outcome::Cancelled,
            ErrorCode::RunnerLost | ErrorCode::RunnerUnavailable | ErrorCode::InstanceLost => Outcome::Lost,
            _ => Outcome::Refused,
        }
    }
}

/// How long a caller wants to wait, within bounds.
pub fn deadline(asked_ms: Option<u64>, most: Duration) -> Duration {
    asked_ms.map_or(DEFAULT_DEADLINE, Duration::from_millis).clamp(Duration::from_millis(1), most)
}

/// A call that was sent. Dropping it cancels the call.
pub struct Ongoing {
    /// Where it went.
    pub key: ServiceKey,
    /// `None` after the last line.
    open: Option<OpenCall>,
    first: Option<RpcLine>,
    ends: Instant,
    meter: Meter,
}

/// One line of an answer.
#[derive(Debug)]
pub enum Said {
    /// A notification that belongs to the call.
    Event(RawJson),
    /// The server waits for an answer to this.
    Ask(RpcAsk),
    /// The result; there is nothing after it.
    Result(RawJson),
}

/// Counts a call however it ends; one that is dropped before its answer was cancelled.
struct Meter {
    begun: Instant,
    outcome: Outcome,
}

impl Drop for Meter {
    fn drop(&mut self) {
        metrics::call_ended(self.outcome, self.begun.elapsed().as_secs_f64());
    }
}

/// Sends a call on its way.
///
/// # Errors
/// [`CallError`].
pub async fn begin(broker: &Broker, call: Call<'_>) -> Result<Ongoing, CallError> {
    let begun = Instant::now();
    let mut meter = Meter { begun, outcome: Outcome::Cancelled };
    match send(broker, call, begun).await {
        Ok((key, (open, first), ends)) => {
            Ok(Ongoing { key, open: Some(open), first: Some(first), ends, meter })
        }
        Err(error) => {
            meter.outcome = error.outcome();
            Err(error)
        }
    }
}

async fn send(
    broker: &Broker,
    call: Call<'_>,
    begun: Instant,
) -> Result<(ServiceKey, (OpenCall, RpcLine), Instant), CallError> {
    if !METHODS.contains(&call.method) {
        return Err(CallError::Method(crate::error::shown(call.method)));
    }
    let service = callable(&call)?;
    let ends = begun + call.deadline;
    let key = callers::instance(broker, service, call.caller, ends).await?;
    let rpc = Rpc {
        method: call.method.to_owned(),
        params: call.params,
        deadline_ms: u64::try_from(call.deadline.as_millis()).unwrap_or(u64::MAX),
        events: call.events,
        asks: call.asks,
        session: Some(call.session.to_owned()),
        caller: call.view.key_of(&call.caller.member).cloned(),
    };
    let text = serde_json::to_string(&RpcCall { service: key.clone(), rpc })?;
    let opened = open(broker, &key, text.into(), ends).await?;
    Ok((key, opened, ends))
}

impl Ongoing {
    /// The next notification or question, or the result. Cancel-safe.
    ///
    /// # Errors
    /// [`CallError`]; there is nothing after it.
    pub async fn next(&mut self) -> Result<Said, CallError> {
        let said = self.read().await;
        match &said {
            Ok(Said::Event(_) | Said::Ask(_)) => return said,
            Ok(Said::Result(_)) => self.meter.outcome = Outcome::Ok,
            Err(error) => self.meter.outcome = error.outcome(),
        }
        if matches!(said, Ok(_) | Err(CallError::Runner(RunnerError::Refused(_))))
            && let Some(open) = self.open.take()
        {
            open.done();
        }
        said
    }

    async fn read(&mut self) -> Result<Said, CallError> {
        if let Some(first) = self.first.take() {
            return said(first);
        }
        let open = self.open.as_mut().ok_or(RunnerError::Lost)?;
        let next = timeout_at(self.ends + SLACK, line(open)).await.map_err(|_| CallError::Deadline)?;
        said(next?)
    }

    /// Answers what the server asked. When that can't be done any more, [`Self::next`] tells why.
    pub async fn answer(&mut self, answer: &RpcDown) {
        if let Some(open) = &mut self.open {
            // A runner that takes nothing any more must not hold the call beyond its deadline.
            let _ = timeout_at(self.ends + SLACK, open.tell(answer)).await;
        }
    }
}

pub(crate) async fn line(open: &mut OpenCall) -> Result<RpcLine, RunnerError> {
    let text = open.next().await?;
    serde_json::from_str(&text).map_err(|e| RunnerError::Nonsense(e.to_string()))
}

pub(crate) fn said(line: RpcLine) -> Result<Said, CallError> {
    match line {
        RpcLine { event: Some(event), ask: None, result: None, error: None } => Ok(Said::Event(event)),
        RpcLine { event: None, ask: Some(ask), result: None, error: None } => Ok(Said::Ask(ask)),
        RpcLine { event: None, ask: None, result: Some(result), error: None } => Ok(Said::Result(result)),
        RpcLine { event: None, ask: None, result: None, error: Some(failure) } => {
            Err(RunnerError::Refused(Box::new(failure)).into())
        }
        _ => Err(RunnerError::Nonsense("a line is one of event, ask, result, error".into()).into()),
    }
}

/// The service, when the caller may call it, nothing of what they ask is withheld, and people want it to run.
fn callable<'a>(call: &Call<'a>) -> Result<&'a ServiceView, CallError> {
    let service = theirs(call.view, call.caller, call.server_name)?;
    if let Some(quarantine) = service.quarantine_for(call.caller)
        && let Some(name) = quarantine.asked(call.method, call.params.as_ref())?
    {
        return Err(CallError::Quarantined(crate::error::shown(&name)));
    }
    if service.is_stopped() {
        return Err(CallError::Stopped(service.name().to_string()));
    }
    if let Some(reason) = service.failure() {
        return Err(CallError::Failed {
            name: service.name().to_string(),
            reason: reason.message.clone(),
            stderr: reason.stderr.clone(),
        });
    }
    Ok(service)
}

/// The service, when the caller may call it.
///
/// # Errors
/// `NotFound`, also when the caller may see it: nothing tells them more than that it is not theirs to call.
pub(crate) fn theirs<'a>(
    view: &'a MeshView,
    caller: &Caller,
    name: &str,
) -> Result<&'a Arc<ServiceView>, CallError> {
    let may_call = |service: &&Arc<ServiceView>| {
        access::decide(caller, Action::Call, Some(service.subject())) == Decision::Allow
    };
    let found = view.service(name).filter(may_call);
    found.ok_or_else(|| CallError::NotFound(crate::error::shown(name)))
}

/// With what the process died of, when it died under the call: a limit that was hit must not look like a fault of the server.
pub async fn explained(broker: &Broker, key: &ServiceKey, error: CallError) -> CallError {
    let CallError::Runner(RunnerError::Refused(mut failure)) = error else { return error };
    if failure.code == ErrorCode::InstanceLost
        && let Ok(why) = tokio::time::timeout(LAST_WORDS, fallen(broker, key)).await
    {
        failure.message = format!("{}: {why}", failure.message);
    }
    RunnerError::Refused(failure).into()
}

/// Waits until the service is seen down for a reason.
async fn fallen(broker: &Broker, key: &ServiceKey) -> String {
    loop {
        let revision = broker.observed.revision();
        let report = broker.observed.get(key);
        let serving = report.as_ref().and_then(|report| report.serving.as_ref());
        let down = serving.filter(|serving| !matches!(serving.phase, Phase::Ready | Phase::Idle));
        if let Some(reason) = down.and_then(|serving| serving.reason.as_ref()) {
            return reason.message.clone();
        }
        broker.observed.changed_since(revision).await;
    }
}

/// Sends the request and reads the first line. Waits for a runner that is away, and for one that is back but has not been
/// given the service yet; in both cases no server saw it.
async fn open(
    broker: &Broker,
    key: &ServiceKey,
    call: Utf8Bytes,
    ends: Instant,
) -> Result<(OpenCall, RpcLine), CallError> {
    let patience = (Instant::now() + PATIENCE).min(ends);
    loop {
        let revision = broker.observed.revision();
        let opened = timeout_at(ends + SLACK, begun(broker, call.clone())).await;
        match opened.map_err(|_| CallError::Deadline)? {
            Ok(opened) => return Ok(opened),
            Err(RunnerError::Unavailable) => {
                broker.reconciler.wake();
                let changed = broker.observed.changed_since(revision);
                if timeout_at(patience, changed).await.is_err() {
                    return Err(RunnerError::Unavailable.into());
                }
            }
            Err(RunnerError::Refused(failure)) if failure.code == ErrorCode::NotFound => {
                broker.reconciler.wake();
                let changed = broker.observed.changed_since(revision);
                if timeout_at(ends, changed).await.is_err() {
                    return Err(CallError::NotReady(key.name.to_string()));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// `Refused` with `not_found`: the runner does not hold the service.
pub(crate) async fn begun(broker: &Broker, call: Utf8Bytes) -> Result<(OpenCall, RpcLine), RunnerError> {
    let mut open = broker.runner.call(call).await?;
    let mut first = line(&mut open).await?;
    match first.error.take_if(|failure| failure.code == ErrorCode::NotFound) {
        Some(failure) => {
            open.done();
            Err(RunnerError::Refused(Box::new(failure)))
        }
        None => Ok((open, first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_a_default_and_bounds() {
        assert_eq!(deadline(None, MAX_CALL), Duration::from_secs(30));
        assert_eq!(deadline(Some(0), MAX_CALL), Duration::from_millis(1));
        assert_eq!(deadline(Some(u64::MAX), MAX_CALL), Duration::from_secs(600));
        assert_eq!(deadline(Some(u64::MAX), MAX_REQUEST), Duration::from_secs(86_400));
    }
}
