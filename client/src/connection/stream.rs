//! Requests that are answered by several frames: deploys, logs, calls with progress.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use wire::RawJson;
use wire::peer::Body;
use wire::peer::calls::{
    McpAsk, McpAskAnswer, McpCall, McpCallResult, McpListen, McpListening, McpRequest, McpRequestEvent,
    McpRequestResult,
};
use wire::peer::hosting::{McpDeployProgress, McpDeployStatus, McpLogs, McpLogsEvent, McpLogsResult};

use super::frame::{Frame, Waiter};
use super::inbox::Nature;
use super::{CALL_DEADLINE, CALL_GRACE, Connection, Forgetter, LinkState, SEND_LIMIT, closed, out_of_reach};
use crate::error::ClientError;

/// Fetching, installing and building may take this long in all.
const DEPLOY_DEADLINE: Duration = Duration::from_secs(45 * 60);
/// Frames that may wait for a slow reader before its stream is given up.
const STREAM_QUEUE: usize = 4096;

/// The frames of one request. Dropping it makes the owner forget it.
struct FrameStream {
    frames: mpsc::Receiver<Frame>,
    guard: Forgetter,
    state: watch::Receiver<LinkState>,
}

impl FrameStream {
    async fn open<B: Body + Serialize>(
        connection: &Connection,
        body: &B,
        nature: Nature,
    ) -> Result<Self, ClientError> {
        let (sender, frames) = mpsc::channel(STREAM_QUEUE);
        let guard = connection.post(body, Waiter::Many(sender), nature).await?;
        Ok(Self { frames, guard, state: connection.state.clone() })
    }

    async fn next(&mut self) -> Result<Frame, ClientError> {
        let frame = tokio::select! {
            biased;
            frame = self.frames.recv() => frame,
            () = out_of_reach(&self.state) => return Err(ClientError::Unsent(SEND_LIMIT.as_secs())),
        };
        match frame {
            Some(frame) => Ok(frame),
            None if matches!(&*self.state.borrow(), LinkState::Up(_)) => Err(ClientError::Lagged),
            None => Err(closed(&self.state)),
        }
    }

    async fn next_before(&mut self, deadline: Instant, limit: Duration) -> Result<Frame, ClientError> {
        tokio::time::timeout_at(deadline, self.next())
            .await
            .map_err(|_| ClientError::Timeout(limit.as_secs()))?
    }

    /// There is nothing left to cancel.
    fn finish(&mut self) {
        self.guard.cancel = false;
    }
}

#[derive(Debug)]
pub enum DeployEvent {
    /// Accepted, or further on its way.
    Status(McpDeployStatus),
    Progress(McpDeployProgress),
    /// The last event: `running`, `stopped`, `failed` or `awaiting_consent`.
    Done(McpDeployStatus),
}

/// Follows a deploy, update, rollback, start, stop or undeploy. Dropping it changes nothing: the broker carries on.
pub struct DeployStream {
    frames: FrameStream,
    deadline: Instant,
}

impl DeployStream {
    /// # Errors
    /// A refusal by the broker, a lost link (the broker carries on), no end within 45 minutes.
    pub async fn next(&mut self) -> Result<DeployEvent, ClientError> {
        let frame = self.frames.next_before(self.deadline, DEPLOY_DEADLINE).await?;
        if frame.kind()? == McpDeployProgress::TYPE {
            return frame.read().map(DeployEvent::Progress);
        }
        let status: McpDeployStatus = frame.read()?;
        let last = ["running", "stopped", "failed", "crashed", "awaiting_consent"];
        let is_last = last.contains(&status.status.as_str());
        Ok(if is_last { DeployEvent::Done(status) } else { DeployEvent::Status(status) })
    }
}

#[derive(Debug)]
pub enum LogEvent {
    /// The first answer: what the ring holds.
    Past(McpLogsResult),
    Later(McpLogsEvent),
}

/// Dropping it ends the stream at the broker.
pub struct LogStream {
    frames: FrameStream,
}

impl LogStream {
    /// # Errors
    /// A refusal by the broker, a lost link.
    pub async fn next(&mut self) -> Result<LogEvent, ClientError> {
        let frame = self.frames.next().await?;
        if frame.kind()? == McpLogsEvent::TYPE {
            let later: McpLogsEvent = frame.read()?;
            if later.end.is_some() {
                self.frames.finish();
            }
            return Ok(LogEvent::Later(later));
        }
        frame.read().map(LogEvent::Past)
    }
}

#[derive(Debug)]
pub enum CallEvent {
    /// A JSON-RPC notification `{method, params}` of this call.
    Notification(RawJson),
    Done(McpCallResult),
}

/// Dropping it cancels the call.
pub struct CallStream {
    frames: FrameStream,
    deadline: Instant,
    limit: Duration,
}

impl CallStream {
    /// # Errors
    /// Only when there is no answer at all; see [`Connection::call_raw`].
    pub async fn next(&mut self) -> Result<CallEvent, ClientError> {
        let frame = self.frames.next_before(self.deadline, self.limit).await?;
        if frame.kind()? == McpRequestEvent::TYPE {
            let McpRequestEvent { event } = frame.read()?;
            return Ok(CallEvent::Notification(event));
        }
        self.frames.finish();
        frame.read().map(CallEvent::Done)
    }
}

#[derive(Debug)]
pub enum RequestEvent {
    /// A JSON-RPC notification `{method, params}` of this request.
    Notification(RawJson),
    /// The server asks its client something; answer with [`RequestStream::answer`].
    Ask(McpAsk),
    Done(McpCallResult),
}

/// Dropping it cancels the request.
pub struct RequestStream {
    frames: FrameStream,
    deadline: Instant,
    limit: Duration,
}

impl RequestStream {
    /// # Errors
    /// Only when there is no answer at all; see [`Connection::call_raw`].
    pub async fn next(&mut self) -> Result<RequestEvent, ClientError> {
        let frame = self.frames.next_before(self.deadline, self.limit).await?;
        match frame.kind()?.as_ref() {
            McpRequestEvent::TYPE => {
                let McpRequestEvent { event } = frame.read()?;
                Ok(RequestEvent::Notification(event))
            }
            McpAsk::TYPE => frame.read().map(RequestEvent::Ask),
            _ => {
                self.frames.finish();
                let McpRequestResult(result) = frame.read()?;
                Ok(RequestEvent::Done(result))
            }
        }
    }

    /// `Err`: a JSON-RPC error object.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn answer(&self, ask: u64, answer: Result<RawJson, RawJson>) -> Result<(), ClientError> {
        let (result, error) = match answer {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        let request_id = self.frames.guard.id.clone();
        self.frames.guard.tell(&McpAskAnswer { request_id, ask, result, error }).await
    }
}

#[derive(Debug)]
pub enum ListenEvent {
    /// From now on nothing is missed.
    Listening,
    /// A JSON-RPC notification `{method, params}`.
    Notification(RawJson),
    /// The last event: the service is gone, or not to be called any more.
    Ended(McpCallResult),
}

/// Dropping it ends the subscription.
pub struct ListenStream {
    frames: FrameStream,
}

impl ListenStream {
    /// # Errors
    /// A lost link.
    pub async fn next(&mut self) -> Result<ListenEvent, ClientError> {
        let frame = self.frames.next().await?;
        match frame.kind()?.as_ref() {
            McpListening::TYPE => Ok(ListenEvent::Listening),
            McpRequestEvent::TYPE => {
                let McpRequestEvent { event } = frame.read()?;
                Ok(ListenEvent::Notification(event))
            }
            _ => {
                self.frames.finish();
                let McpRequestResult(result) = frame.read()?;
                Ok(ListenEvent::Ended(result))
            }
        }
    }
}

impl Connection {
    /// Any MCP request that the broker allows, with what the server says and asks meanwhile.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub async fn request_stream(&self, request: &McpRequest) -> Result<RequestStream, ClientError> {
        let limit = request.deadline_ms.map_or(CALL_DEADLINE, Duration::from_millis) + CALL_GRACE;
        let frames = FrameStream::open(self, request, Nature::Call).await?;
        Ok(RequestStream { frames, deadline: Instant::now() + limit, limit })
    }

    /// What a service says outside of requests.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub async fn listen(&self, listen: &McpListen) -> Result<ListenStream, ClientError> {
        Ok(ListenStream { frames: FrameStream::open(self, listen, Nature::Standing).await? })
    }

    /// Sends one frame of the deploy family ([`wire::peer::hosting`]) and follows it.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub async fn deploy<B: Body + Serialize>(&self, body: &B) -> Result<DeployStream, ClientError> {
        let frames = FrameStream::open(self, body, Nature::Errand).await?;
        Ok(DeployStream { frames, deadline: Instant::now() + DEPLOY_DEADLINE })
    }

    /// # Errors
    /// When the frame cannot be sent.
    pub async fn logs(&self, request: &McpLogs) -> Result<LogStream, ClientError> {
        let nature = if request.follow { Nature::Standing } else { Nature::Errand };
        let frames = FrameStream::open(self, request, nature).await?;
        Ok(LogStream { frames })
    }

    /// A call whose progress is wanted: set `meta` to an object with a `progressToken`.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub async fn call_with_events(&self, call: &McpCall) -> Result<CallStream, ClientError> {
        let limit = call.deadline_ms.map_or(CALL_DEADLINE, Duration::from_millis) + CALL_GRACE;
        let frames = FrameStream::open(self, call, Nature::Call).await?;
        Ok(CallStream { frames, deadline: Instant::now() + limit, limit })
    }
}
