//! Kept sockets for calls: `GET /v1/calls` of the runner (`wire::runner`), one call at a time on each.
//!
//! Here: connecting, the idle ones, and whether one of them still leads to a living runner. Not here: what a call is
//! (`crate::calls`).
//! Invariants: a socket comes back only after the last line of its call; dropping a call closes its socket, which cancels it at
//! the runner. A call goes out a second time only when the first socket provably did not take it: WebSocket messages are taken
//! whole or not at all, so one whose writing failed was not.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};
use tokio_util::either::Either;
use wire::runner::RpcDown;

use super::{CONNECT, IDLE_CONNECTIONS, MAX_LINE, RunnerError};
use crate::config::RunnerLink;

/// A socket keeps room for the largest message that it ever wrote; one that wrote a larger one than this is not kept.
const SMALL: usize = 256 << 10;
/// The larger it is, the more is zeroed before each read.
const READ_BUFFER: usize = 16 << 10;
/// After so long without a sign of life, a machine is gone.
const SILENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/v1/calls";

type Socket = WebSocketStream<MaybeTlsStream<Either<TcpStream, UnixStream>>>;

#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    #[error("the runner's address is no URL")]
    Url,
    #[error("the runner's token can not be written into a header")]
    Token,
}

enum Address {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// The way to one runner's `/v1/calls`.
pub(super) struct Kept {
    address: Address,
    request: Request,
    connector: Connector,
    /// The last one back is the first one out: what a burst needed grows cold behind it.
    idle: Mutex<Vec<Socket>>,
}

impl Kept {
    pub(super) fn new(link: &RunnerLink) -> Result<Self, BadAddress> {
        let (address, uri, connector, token) = match link {
            RunnerLink::Unix(path) => {
                (Address::Unix(path.clone()), format!("ws://runner{PATH}"), Connector::Plain, None)
            }
            RunnerLink::Http { url, token } => {
                let (address, uri, connector) = over_tcp(url)?;
                (address, uri, connector, Some(token))
            }
        };
        let mut request = uri.into_client_request().map_err(|_| BadAddress::Url)?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|_| BadAddress::Token)?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(Self { address, request, connector, idle: Mutex::default() })
    }

    /// Sends what opens a call.
    pub(super) async fn begin(self: &Arc<Self>, call: Utf8Bytes) -> Result<OpenCall, RunnerError> {
        let is_large = call.len() > SMALL;
        while let Some(mut socket) = self.take() {
            if socket.send(Message::Text(call.clone())).await.is_ok() {
                return Ok(OpenCall { socket, is_large, home: Arc::clone(self) });
            }
        }
        let mut socket = self.connect().await?;
        match socket.send(Message::Text(call)).await {
            Ok(()) => Ok(OpenCall { socket, is_large, home: Arc::clone(self) }),
            Err(_) => Err(RunnerError::Unavailable),
        }
    }

    /// An idle socket that has nothing to say, not even that it was closed.
    fn take(&self) -> Option<Socket> {
        loop {
            let mut socket = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if is_silent(&mut socket) {
                return Some(socket);
            }
        }
    }

    fn put(&self, socket: Socket) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(socket);
        }
    }

    async fn connect(&self) -> Result<Socket, RunnerError> {
        let connected = tokio::time::timeout(CONNECT, self.shake_hands()).await;
        connected.map_err(|_| RunnerError::Unavailable)?.map_err(|error| match error {
            Error::Http(answer) => RunnerError::Nonsense(format!("status {} for {PATH}", answer.status())),
            _ => RunnerError::Unavailable,
        })
    }

    async fn shake_hands(&self) -> Result<Socket, Error> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MAX_LINE))
            .max_frame_size(Some(MAX_LINE));
        let stream = match &self.address {
            Address::Unix(path) => Either::Right(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                notice_silence(&stream)?;
                Either::Left(stream)
            }
        };
        let (request, connector) = (self.request.clone(), self.connector.clone());
        Ok(client_async_tls_with_config(request, stream, Some(config), Some(connector)).await?.0)
    }
}

/// A call that was sent. Dropping it closes its socket, which cancels the call.
pub struct OpenCall {
    socket: Socket,
    /// It wrote so much that it is not kept.
    is_large: bool,
    home: Arc<Kept>,
}

impl OpenCall {
    /// The next line. Cancel-safe.
    ///
    /// # Errors
    /// `Lost` when the socket ends, `Nonsense` when that is not a line.
    pub async fn next(&mut self) -> Result<Utf8Bytes, RunnerError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(line))) => return Ok(line),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => return Err(RunnerError::Nonsense("a line is text".into())),
                Some(Err(Error::Capacity(error))) => return Err(RunnerError::Nonsense(error.to_string())),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(RunnerError::Lost),
            }
        }
    }

    /// Answers what the server asked.
    ///
    /// # Errors
    /// `Lost` when the socket is closed.
    pub async fn tell(&mut self, answer: &RpcDown) -> Result<(), RunnerError> {
        let text = serde_json::to_string(answer).map_err(|e| RunnerError::Nonsense(e.to_string()))?;
        self.is_large |= text.len() > SMALL;
        self.socket.send(Message::text(text)).await.map_err(|_| RunnerError::Lost)
    }

    /// After its last line: the socket may take the next call.
    pub fn done(self) {
        if !self.is_large {
            self.home.put(self.socket);
        }
    }
}

/// A call may wait a day for its answer; that the other machine is gone must show earlier.
fn notice_silence(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(SILENCE / 2).with_interval(SILENCE / 6).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(SILENCE))
}

fn over_tcp(url: &str) -> Result<(Address, String, Connector), BadAddress> {
    let url = Url::parse(url).map_err(|_| BadAddress::Url)?;
    let host = url.host_str().ok_or(BadAddress::Url)?;
    let port = url.port_or_known_default().ok_or(BadAddress::Url)?;
    let (scheme, connector) = match url.scheme() {
        "http" => ("ws", Connector::Plain),
        "https" => ("wss", Connector::Rustls(trusting_the_system())),
        _ => return Err(BadAddress::Url),
    };
    let prefix = url.path().trim_end_matches('/');
    let uri = format!("{scheme}://{host}:{port}{prefix}{PATH}");
    // An address of IPv6 stands in brackets in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((Address::Tcp { host, port }, uri, connector))
}

/// As the other requests to the runner do.
fn trusting_the_system() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Whether the runner has said nothing since the last call: a socket that it has closed would lose the next one, and a line
/// too many would be taken for the next one's.
fn is_silent(socket: &mut Socket) -> bool {
    loop {
        match socket.next().now_or_never() {
            None => break,
            Some(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Some(_) => return false,
        }
    }
    // What the kernel has heard, and this thread was not told yet.
    let mut byte = [MaybeUninit::uninit()];
    let stream = match socket.get_ref() {
        MaybeTlsStream::Plain(stream) => stream,
        MaybeTlsStream::Rustls(tls) => tls.get_ref().0,
        _ => return false,
    };
    let heard = match stream {
        Either::Left(tcp) => SockRef::from(tcp).peek(&mut byte),
        Either::Right(unix) => SockRef::from(unix).peek(&mut byte),
    };
    heard.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;
    use tokio::net::UnixListener;

    type Served = WebSocketStream<UnixStream>;

    struct FakeRunner {
        _dir: TempDir,
        listener: UnixListener,
        kept: Arc<Kept>,
    }

    impl FakeRunner {
        fn new() -> Self {
            let dir = TempDir::new().expect("temp dir");
            let path = dir.path().join("r.sock");
            let listener = UnixListener::bind(&path).expect("binds");
            let kept = Arc::new(Kept::new(&RunnerLink::Unix(path)).expect("an address"));
            Self { _dir: dir, listener, kept }
        }

        async fn accept(&self) -> Served {
            let (stream, _) = self.listener.accept().await.expect("accepts");
            tokio_tungstenite::accept_async(stream).await.expect("a WebSocket")
        }

        /// A call over a new socket.
        async fn connected(&self, call: &str) -> (OpenCall, Served) {
            let (open, served) = tokio::join!(self.kept.begin(call.to_owned().into()), self.accept());
            (open.expect("begins"), served)
        }

        async fn refuses(&self) {
            let error = self.kept.begin("late".into()).await.err();
            assert!(matches!(error, Some(RunnerError::Unavailable)), "{error:?}");
        }
    }

    async fn heard(served: &mut Served) -> String {
        let message = served.next().await.expect("a message").expect("whole");
        message.into_text().expect("text").as_str().to_owned()
    }

    async fn answer(served: &mut Served, line: &'static str) {
        served.send(Message::text(line)).await.expect("written");
    }

    #[tokio::test]
    async fn a_socket_takes_the_next_call_after_the_last_line_of_one() {
        let runner = FakeRunner::new();
        let (mut first, mut served) = runner.connected("one").await;
        assert_eq!(heard(&mut served).await, "one");
        answer(&mut served, "1").await;
        assert_eq!(first.next().await.expect("a line").as_str(), "1");
        first.done();
        let mut second = runner.kept.begin("two".into()).await.expect("the same socket");
        assert_eq!(heard(&mut served).await, "two");
        second.tell(&RpcDown { ask: 7, result: None, error: None }).await.expect("told");
        assert_eq!(heard(&mut served).await, r#"{"ask":7}"#);
    }

    #[tokio::test]
    async fn a_socket_that_wrote_much_is_not_kept() {
        let runner = FakeRunner::new();
        let (mut first, mut served) = runner.connected("one").await;
        let large = serde_json::value::to_raw_value(&"x".repeat(SMALL)).expect("JSON");
        let answer = RpcDown { ask: 1, result: Some(large), error: None };
        let (told, heard) = tokio::join!(first.tell(&answer), async {
            assert_eq!(heard(&mut served).await, "one");
            heard(&mut served).await
        });
        told.expect("told");
        assert!(heard.len() > SMALL);
        first.done();
        assert!(!matches!(served.next().await, Some(Ok(_))), "closed");
    }

    #[tokio::test]
    async fn dropping_a_call_closes_its_socket_and_no_other_call_gets_it() {
        let runner = FakeRunner::new();
        let (first, mut served) = runner.connected("one").await;
        assert_eq!(heard(&mut served).await, "one");
        drop(first);
        assert!(!matches!(served.next().await, Some(Ok(_))), "closed");
        let (_second, mut served) = runner.connected("two").await;
        assert_eq!(heard(&mut served).await, "two");
    }

    #[tokio::test]
    async fn an_idle_socket_that_the_runner_closed_is_noticed_before_a_call_is_sent() {
        let runner = FakeRunner::new();
        let (first, served) = runner.connected("one").await;
        first.done();
        drop(served);
        let (_second, mut served) = runner.connected("two").await;
        assert_eq!(heard(&mut served).await, "two");
    }

    #[tokio::test]
    async fn a_socket_that_said_a_line_too_many_is_not_used_again() {
        let runner = FakeRunner::new();
        let (first, mut served) = runner.connected("one").await;
        answer(&mut served, "of somebody else").await;
        first.done();
        let (mut second, mut fresh) = runner.connected("two").await;
        answer(&mut fresh, "own").await;
        assert_eq!(second.next().await.expect("a line").as_str(), "own");
    }

    #[tokio::test]
    async fn a_call_that_was_taken_and_not_answered_is_lost_and_not_sent_again() {
        let runner = FakeRunner::new();
        let (mut call, mut served) = runner.connected("one").await;
        assert_eq!(heard(&mut served).await, "one");
        drop(served);
        assert!(matches!(call.next().await, Err(RunnerError::Lost)));
        assert!(futures_util::poll!(std::pin::pin!(runner.listener.accept())).is_pending());
    }

    #[tokio::test]
    async fn a_runner_that_is_away_was_sent_nothing() {
        let mut runner = FakeRunner::new();
        let (first, served) = runner.connected("one").await;
        first.done();
        drop(served);
        // Nobody listens at that path any more.
        runner.listener = UnixListener::bind(runner._dir.path().join("other.sock")).expect("binds");
        runner.refuses().await;
    }

    #[test]
    fn addresses_of_a_runner_over_tcp() {
        let token = wire::Secret::new("t0k");
        let kept = |url: &str| Kept::new(&RunnerLink::Http { url: url.into(), token: token.clone() });
        let plain = kept("http://[::1]:99/").expect("an address");
        assert!(matches!(&plain.address, Address::Tcp { host, port: 99 } if host == "::1"));
        assert_eq!(plain.request.uri(), "ws://[::1]:99/v1/calls");
        assert_eq!(plain.request.headers()[AUTHORIZATION], "Bearer t0k");
        assert!(kept("ftp://x").is_err() && kept("nonsense").is_err());
    }
}
