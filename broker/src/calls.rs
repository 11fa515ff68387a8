//! One MCP request from a peer to a hosted server: the way that every tool call takes.
//!
//! Here: access, the wait for a runner that is away, the stream of answers, the deadline. Not here: frames
//! (`peer::handlers`), sockets, what the server is (the runner knows).
//! Invariants: no SQL, no JSON trees: bytes are copied, never understood. A call that was sent is never sent again.
//! Dropping the future cancels the call down to the server.

use std::time::Duration;

use bytes::Bytes;
use catalog::access::{self, Action, Caller, Decision};
use catalog::quarantine::Unreadable;
use tokio::time::{Instant, timeout_at};
use wire::report::{Phase, Reason};
use wire::runner::{Failure, Rpc, RpcLine};
use wire::{ErrorCode, RawJson, ServiceKey};

use crate::app::Broker;
use crate::callers::{self, CallerError};
use crate::metrics::{self, Outcome};
use crate::runner::{Lines, RunnerError};
use crate::views::{MeshView, ServiceView};

pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);
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
pub fn deadline(asked_ms: Option<u64>) -> Duration {
    asked_ms.map_or(DEFAULT_DEADLINE, Duration::from_millis).clamp(Duration::from_millis(1), MAX_DEADLINE)
}

/// A call that was sent. Dropping it cancels the call.
pub struct Ongoing {
    /// Where it went.
    pub key: ServiceKey,
    lines: Lines,
    ends: Instant,
    meter: Meter,
}

/// One line of an answer.
pub enum Said {
    /// A notification that belongs to the call.
    Event(RawJson),
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
        Ok((key, lines, ends)) => Ok(Ongoing { key, lines, ends, meter }),
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
) -> Result<(ServiceKey, Lines, Instant), CallError> {
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
        asks: false,
        session: None,
        caller: call.view.key_of(&call.caller.member).cloned(),
    };
    let body = Bytes::from(serde_json::to_vec(&rpc)?);
    let lines = open(broker, &key, body, ends).await?;
    Ok((key, lines, ends))
}

impl Ongoing {
    /// The next notification, or the result.
    ///
    /// # Errors
    /// [`CallError`]; there is nothing after it.
    pub async fn next(&mut self) -> Result<Said, CallError> {
        let said = self.read().await;
        match &said {
            Ok(Said::Event(_)) => {}
            Ok(Said::Result(_)) => self.meter.outcome = Outcome::Ok,
            Err(error) => self.meter.outcome = error.outcome(),
        }
        said
    }

    async fn read(&mut self) -> Result<Said, CallError> {
        let next = timeout_at(self.ends + SLACK, self.lines.next()).await.map_err(|_| CallError::Deadline)?;
        let line = next?.ok_or(RunnerError::Lost)?;
        let RpcLine { event, ask: _, result, error } =
            serde_json::from_slice(&line).map_err(|e| RunnerError::Nonsense(e.to_string()))?;
        match (event, result, error) {
            (Some(event), None, None) => Ok(Said::Event(event)),
            (None, Some(result), None) => Ok(Said::Result(result)),
            (None, None, Some(failure)) => Err(RunnerError::Refused(Box::new(failure)).into()),
            _ => Err(RunnerError::Nonsense("a line is one of event, result, error".into()).into()),
        }
    }
}

/// The service, when the caller may call it, nothing of what they ask is withheld, and people want it to run.
fn callable<'a>(call: &Call<'a>) -> Result<&'a ServiceView, CallError> {
    let unknown = || CallError::NotFound(crate::error::shown(call.server_name));
    let service = call.view.service(call.server_name).ok_or_else(unknown)?;
    if access::decide(call.caller, Action::Call, Some(service.subject())) != Decision::Allow {
        // Also when the caller may see it: nothing tells them more than that it is not theirs to call.
        return Err(unknown());
    }
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

/// Sends the request. Waits for a runner that is away, and for one that is back but has not been given the service
/// yet; in both cases nothing was sent.
async fn open(broker: &Broker, key: &ServiceKey, body: Bytes, ends: Instant) -> Result<Lines, CallError> {
    let patience = (Instant::now() + PATIENCE).min(ends);
    loop {
        let revision = broker.observed.revision();
        let answer = timeout_at(ends + SLACK, broker.runner.rpc(key, body.clone())).await;
        match answer.map_err(|_| CallError::Deadline)? {
            Ok(lines) => return Ok(lines),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_a_default_and_bounds() {
        assert_eq!(deadline(None), Duration::from_secs(30));
        assert_eq!(deadline(Some(0)), Duration::from_millis(1));
        assert_eq!(deadline(Some(u64::MAX)), Duration::from_secs(600));
    }
}
