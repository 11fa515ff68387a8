//! The broker's side of the runner's HTTP API (`wire::runner`).
//!
//! Here: requests, streams of lines, calls (over [`kept`] sockets), and what a failure means ([`RunnerError`]). Not here: when to
//! ask what (`reconcile`, `calls`), and whether a runner is connected ([`crate::observed::Observed`]).

mod kept;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use wire::report::ServiceReport;
use wire::runner::{Apply, Failure, Health, Retain, Retained};
use wire::vault::{BootKey, Grants, Opening, RunnerVault};
use wire::{ErrorCode, MeshId, Secret, ServiceKey};

use crate::config::RunnerLink;
use kept::Kept;
pub use kept::{BadAddress, OpenCall};

/// The longest line that a runner may send. Its own limit for one MCP message is half of it.
const MAX_LINE: usize = 32 << 20;
/// Kept sockets: as many as may run at once for one busy peer.
const IDLE_CONNECTIONS: usize = 256;
const CONNECT: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_secs(10);
/// A stop takes at most 5 s of grace per process; the rest is slack.
const REMOVAL: Duration = Duration::from_secs(30);
const BLOB: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// Nothing was sent.
    #[error("no runner is connected")]
    Unavailable,
    /// The request may have had an effect.
    #[error("the runner ended while it was working on this")]
    Lost,
    #[error("{}", .0.message)]
    Refused(Box<Failure>),
    /// The runner answered something that is not its API.
    #[error("the runner's answer makes no sense: {0}")]
    Nonsense(String),
}

impl RunnerError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unavailable => ErrorCode::RunnerUnavailable,
            Self::Lost => ErrorCode::RunnerLost,
            Self::Refused(failure) => failure.code,
            Self::Nonsense(_) => ErrorCode::Internal,
        }
    }

    fn of_transport(error: &reqwest::Error) -> Self {
        if error.is_connect() { Self::Unavailable } else { Self::Lost }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BadLink {
    #[error("the HTTP client for the runner could not be built: {0}")]
    Client(reqwest::Error),
    #[error(transparent)]
    Address(#[from] BadAddress),
}

/// One runner. Cheap to clone: the connections are shared.
#[derive(Clone)]
pub struct Runner {
    http: reqwest::Client,
    base: String,
    token: Option<Secret>,
    calls: Arc<Kept>,
}

impl Runner {
    /// # Errors
    /// [`BadLink`]; nothing is connected yet.
    pub fn new(link: &RunnerLink) -> Result<Self, BadLink> {
        let calls = Arc::new(Kept::new(link)?);
        let client =
            reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).tcp_nodelay(true).http1_only();
        let (client, base, token) = match link {
            RunnerLink::Unix(path) => (client.unix_socket(path.clone()), "http://runner".to_owned(), None),
            RunnerLink::Http { url, token } => {
                (client, url.trim_end_matches('/').to_owned(), Some(token.clone()))
            }
        };
        Ok(Self { http: client.build().map_err(BadLink::Client)?, base, token, calls })
    }

    /// # Errors
    /// [`RunnerError`].
    pub async fn health(&self) -> Result<Health, RunnerError> {
        let answer = send(self.request(Method::GET, "/health").timeout(SHORT)).await?;
        answer.json().await.map_err(|e| RunnerError::Nonsense(e.to_string()))
    }

    /// The stream of everything that the runner holds and that changes.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn events(&self) -> Result<Lines, RunnerError> {
        let request = self.request(Method::GET, "/v1/events");
        let opened =
            tokio::time::timeout(SHORT, send(request)).await.map_err(|_| RunnerError::Unavailable)?;
        Ok(Lines::new(opened?))
    }

    /// Makes a generation the wish.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn apply(&self, key: &ServiceKey, apply: &Apply) -> Result<ServiceReport, RunnerError> {
        let request = self.request(Method::PUT, &path(key, "")).timeout(SHORT).json(apply);
        let answer = send(request).await?;
        answer.json().await.map_err(|e| RunnerError::Nonsense(e.to_string()))
    }

    /// Ends the service's whole process tree; `purge` also removes its data. A service that the runner does not
    /// hold counts as gone.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn remove(&self, key: &ServiceKey, purge: bool) -> Result<(), RunnerError> {
        let query = if purge { "?purge=true" } else { "" };
        let request = self.request(Method::DELETE, &path(key, query)).timeout(REMOVAL);
        match send(request).await {
            Ok(_) => Ok(()),
            Err(RunnerError::Refused(failure)) if failure.code == ErrorCode::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Starts one MCP request.
    ///
    /// # Errors
    /// `Unavailable`: it was not sent; `Nonsense` when this is no runner.
    pub async fn call(&self, call: Utf8Bytes) -> Result<OpenCall, RunnerError> {
        self.calls.begin(call).await
    }

    /// Log lines, oldest first.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn logs(&self, key: &ServiceKey, lines: u32, follow: bool) -> Result<Lines, RunnerError> {
        let query = format!("/logs?lines={lines}&follow={follow}");
        let opened = send(self.request(Method::GET, &path(key, &query)));
        tokio::time::timeout(SHORT, opened).await.map_err(|_| RunnerError::Lost)?.map(Lines::new)
    }

    /// # Errors
    /// [`RunnerError`].
    pub async fn has_blob(&self, sha256: &str) -> Result<bool, RunnerError> {
        let request = self.request(Method::HEAD, &format!("/v1/blobs/{sha256}")).timeout(SHORT);
        let answer = request.send().await.map_err(|e| RunnerError::of_transport(&e))?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            other => Err(RunnerError::Nonsense(format!("status {other} for a blob"))),
        }
    }

    /// # Errors
    /// [`RunnerError`].
    pub async fn put_blob(&self, sha256: &str, bytes: Vec<u8>) -> Result<(), RunnerError> {
        let request = self.request(Method::PUT, &format!("/v1/blobs/{sha256}")).timeout(BLOB).body(bytes);
        send(request).await.map(drop)
    }

    /// Lets the runner drop every artefact and blob that is not named.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn retain(&self, retain: &Retain) -> Result<Retained, RunnerError> {
        let request = self.request(Method::POST, "/v1/artefacts/retain").timeout(BLOB).json(retain);
        let answer = send(request).await?;
        answer.json().await.map_err(|e| RunnerError::Nonsense(e.to_string()))
    }

    /// How it keeps its key, and what it can open.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn vault(&self) -> Result<RunnerVault, RunnerError> {
        json(self.request(Method::GET, "/v1/vault")).await
    }

    /// Opens the runner's key, or lets it make one.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn put_boot_key(&self, key: &BootKey) -> Result<RunnerVault, RunnerError> {
        json(self.request(Method::PUT, "/v1/vault/boot-key").json(key)).await
    }

    /// Everything that it may hold of a mesh.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn put_grants(&self, mesh: &MeshId, grants: &Grants) -> Result<RunnerVault, RunnerError> {
        json(self.request(Method::PUT, &format!("/v1/vault/meshes/{mesh}")).json(grants)).await
    }

    /// The next lines of its ledger. It may forget those up to `after`.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub async fn openings(&self, after: i64) -> Result<Vec<Opening>, RunnerError> {
        json(self.request(Method::GET, &format!("/v1/vault/openings?after={after}"))).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }
}

fn path(key: &ServiceKey, rest: &str) -> String {
    format!("/v1/services/{}/{}{rest}", key.mesh, key.name)
}

/// What a short request is answered with.
async fn json<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, RunnerError> {
    let answer = send(request.timeout(SHORT)).await?;
    answer.json().await.map_err(|e| RunnerError::Nonsense(e.to_string()))
}

async fn send(request: RequestBuilder) -> Result<Response, RunnerError> {
    let answer = request.send().await.map_err(|e| RunnerError::of_transport(&e))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.bytes().await.map_err(|e| RunnerError::of_transport(&e))?;
    match serde_json::from_slice::<Failure>(&body) {
        Ok(failure) => Err(RunnerError::Refused(Box::new(failure))),
        Err(_) => Err(RunnerError::Nonsense(format!("status {status} without a reason"))),
    }
}

/// The lines of a streamed answer. Dropping it ends the request at the runner.
pub struct Lines {
    answer: Response,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no newline.
    searched: usize,
}

impl Lines {
    fn new(answer: Response) -> Self {
        Self { answer, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line without its newline, or `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// `Lost` when the stream breaks, `Nonsense` when a line has no end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RunnerError> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(RunnerError::Nonsense("a line is longer than 32 MiB".into()));
            }
            match self.answer.chunk().await {
                // The common answer is one line in one chunk: no copy.
                Ok(Some(chunk)) if self.buffer.is_empty() => self.buffer = BytesMut::from(chunk),
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Ok(Some(self.buffer.split().freeze())),
                Err(_) => return Err(RunnerError::Lost),
            }
        }
    }

    fn take_line(&mut self) -> Option<Bytes> {
        let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + at + 1);
        line.truncate(line.len() - 1);
        self.searched = 0;
        Some(line.freeze())
    }
}
