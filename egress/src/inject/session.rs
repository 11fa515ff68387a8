//! One connection to a host that gets secrets: TLS on both sides, HTTP/1.1 in between.
//!
//! Here: the two handshakes, which requests and answers pass and what is changed in them. Not here: the exchange itself
//! (see [`super::swap`], [`super::mask`]).
//! Invariants: the host is checked before the jail's handshake goes on; both directions are parsed and written anew, so
//! that no request can be framed in two ways; nothing but HTTP/1 ever passes, for an upgrade is refused.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    ACCEPT_ENCODING, ALT_SVC, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST,
    HeaderMap, HeaderName, HeaderValue, IF_RANGE, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wire::report::Verdict;

use super::Injection;
use super::mask::Masked;
use super::stream::{Again, Metered};
use crate::door;
use crate::ledger::Traffic;
use crate::parse::http;
use crate::relay::{self, Meter};
use crate::service::{Refusal, Service};

const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 100;
/// For the next head, whole: a client keeps connections open between its requests.
const NEXT_HEAD: Duration = Duration::from_secs(75);
const HTTPS: u16 = 443;
/// Of one connection only (RFC 9110 §7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, CONTENT_LENGTH];
const MORE_HOP_BY_HOP: [&str; 5] =
    ["keep-alive", "proxy-connection", "http2-settings", "proxy-authorization", "proxy-authenticate"];

type Reply = BoxBody<Bytes, hyper::Error>;

/// Books the connection and keeps it until it ends. The streams: the client, what was read of it, the server.
///
/// # Errors
/// It was refused, or cut off.
pub(crate) async fn run(
    service: &Service,
    injection: &Arc<Injection>,
    (client, hello, mut server): (&mut TcpStream, Vec<u8>, TcpStream),
    (host, port, admitted): (&str, u16, Verdict),
) -> Result<(), Refusal> {
    let traffic = service.record(host, port, admitted);
    let meter = Meter::new(&service.ledger, traffic.clone(), service.config.max_daily_bytes);
    let ended = {
        let work = converse(
            service,
            injection,
            (Again::new(hello, client), Metered::new(&mut server, &meter)),
            (host, port, traffic),
        );
        tokio::select! {
            ended = work => ended,
            () = meter.idle(service.config.idle_timeout) => Err(Refusal::Gone),
        }
    };
    let ended = if meter.is_over() { Err(Refusal::Verdict(Verdict::OverLimit)) } else { ended };
    if ended.is_err() {
        relay::reset(server);
    }
    ended
}

async fn converse(
    service: &Service,
    injection: &Arc<Injection>,
    (client, server): (Again<'_>, Metered<'_>),
    (host, port, traffic): (&str, u16, Arc<Traffic>),
) -> Result<(), Refusal> {
    let unreachable = Refusal::Verdict(Verdict::Unreachable);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| unreachable)?;
    let connecting = TlsConnector::from(injection.outward.clone()).connect(name, server);
    let server = timeout(service.config.connect_timeout, connecting).await.map_err(|_| unreachable)?;
    let server = server.map_err(|error| {
        tracing::warn!(host = service.rules.shown(host), %error, "a host that gets secrets could not be checked, so it gets none");
        unreachable
    })?;
    let as_host = injection.authority.as_host(host).map_err(|error| {
        tracing::error!(host = service.rules.shown(host), %error, "no certificate could be made for a host that gets secrets");
        unreachable
    })?;
    let accepting = TlsAcceptor::from(as_host).accept(client);
    let not_tls = Refusal::Verdict(Verdict::NotTls);
    let client = timeout(service.config.head_timeout, accepting).await.map_err(|_| not_tls)?;
    // It does not trust us, or does not speak HTTP/1.
    let client = client.map_err(|_| not_tls)?;

    let mut origin = hyper::client::conn::http1::Builder::new();
    origin.max_header_size(MAX_HEAD).max_headers(MAX_FIELDS);
    let (sender, origin) = origin.handshake(TokioIo::new(server)).await.map_err(|_| unreachable)?;
    let exchange = Exchange { service, injection, host, port, traffic, sender: Mutex::new(sender) };
    let mut front = hyper::server::conn::http1::Builder::new();
    front.max_header_size(MAX_HEAD).max_headers(MAX_FIELDS).auto_date_header(false);
    front.timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD.min(service.config.idle_timeout));
    let front = front.serve_connection(TokioIo::new(client), service_fn(|request| exchange.answer(request)));
    let (mut front, mut origin) = (pin!(front), pin!(origin));
    let mut has_left = false;
    loop {
        tokio::select! {
            ended = front.as_mut() => return match ended {
                // A client that asks nothing more for a while may come back, on another connection.
                Err(error) if !error.is_timeout() => Err(Refusal::Gone),
                _ => Ok(()),
            },
            _ = origin.as_mut(), if !has_left => {
                // The jail learns of it as of the end of a connection that it could use again.
                has_left = true;
                front.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What a request on this connection is held against.
struct Exchange<'a> {
    service: &'a Service,
    injection: &'a Arc<Injection>,
    host: &'a str,
    port: u16,
    traffic: Arc<Traffic>,
    sender: Mutex<SendRequest<Incoming>>,
}

/// Why a request is not passed on, or its answer not passed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    Target,
    Host,
    TooLong,
    Upgrade,
    Encoding,
}

impl Exchange<'_> {
    /// # Errors
    /// The host went away, or did not speak HTTP/1: so does the connection to the jail.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Reply>, hyper::Error> {
        let bad = match self.prepare(request) {
            Ok((request, is_head, has_secret)) => {
                let mut sender = self.sender.lock().await;
                sender.ready().await?;
                if has_secret {
                    self.traffic.injected.fetch_add(1, Ordering::Relaxed);
                }
                let answer = sender.send_request(request).await?;
                match self.back(answer, is_head, has_secret) {
                    Ok(answer) => return Ok(answer),
                    Err(bad) => bad,
                }
            }
            Err(bad) => bad,
        };
        if let Some(verdict) = bad.verdict() {
            door::book(self.service, (self.host, self.port), Refusal::Verdict(verdict));
        }
        Ok(bad.answer())
    }

    /// What the host gets; whether it asks for a head only; whether there is a secret in it.
    fn prepare(&self, request: Request<Incoming>) -> Result<(Request<Incoming>, bool, bool), Bad> {
        let (mut head, body) = request.into_parts();
        let is_head = head.method == Method::HEAD;
        if head.method == Method::CONNECT || head.uri.authority().is_some() || head.uri.scheme().is_some() {
            return Err(Bad::Target);
        }
        check_host(&head.headers, (self.host, self.port))?;
        let was_empty = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
        strip(&mut head.headers);
        for name in [EXPECT, ACCEPT_ENCODING] {
            head.headers.remove(name);
        }
        // An answer that is packed can't be looked through.
        head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        match body.size_hint().exact() {
            Some(0) if was_empty => drop(head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"))),
            Some(_) => {}
            None => drop(head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
        }
        let has_secret = self.injection.swap.apply(&mut head.headers).map_err(|_| Bad::TooLong)?;
        if has_secret {
            // A secret that comes back in parts would not be known.
            head.headers.remove(RANGE);
            head.headers.remove(IF_RANGE);
        }
        head.version = Version::HTTP_11;
        head.extensions.clear();
        Ok((Request::from_parts(head, body), is_head, has_secret))
    }

    fn back(
        &self,
        answer: Response<Incoming>,
        is_head: bool,
        has_secret: bool,
    ) -> Result<Response<Reply>, Bad> {
        let (mut head, body) = answer.into_parts();
        if head.status.is_informational() {
            return Err(Bad::Upgrade);
        }
        let mut encodings = head.headers.get_all(CONTENT_ENCODING).iter();
        let is_packed = encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
        if is_packed && has_secret && !is_head && !body.is_end_stream() {
            return Err(Bad::Encoding);
        }
        // Of an answer without a body it says how long the body would be.
        let length = head.headers.get(CONTENT_LENGTH).cloned().filter(|_| body.is_end_stream());
        strip(&mut head.headers);
        // Another way to the same host, which would go past us.
        head.headers.remove(ALT_SVC);
        self.injection.mask.headers(&mut head.headers);
        if let Some(length) = length {
            head.headers.insert(CONTENT_LENGTH, length);
        }
        head.version = Version::HTTP_11;
        // The words of the status are the host's, too.
        head.extensions.clear();
        Ok(Response::from_parts(head, Masked::new(body, self.injection.mask.clone()).boxed()))
    }
}

/// The one `Host`, which is the name that TLS asked for.
fn check_host(headers: &HeaderMap, (host, port): (&str, u16)) -> Result<(), Bad> {
    let mut named = headers.get_all(HOST).iter();
    let (Some(named), None) = (named.next(), named.next()) else { return Err(Bad::Host) };
    let named = named.to_str().ok().and_then(|named| http::authority(named, Some(HTTPS)));
    let is_right = named.is_some_and(|named| named.host == host && named.port == port);
    is_right.then_some(()).ok_or(Bad::Host)
}

/// Takes away what holds for one connection only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| name != HOST)
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in MORE_HOP_BY_HOP {
        headers.remove(name);
    }
}

impl Bad {
    /// `None`: nothing of ours was against it.
    fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Target | Self::Host => Some(Verdict::NameMismatch),
            Self::Upgrade => Some(Verdict::NotTls),
            Self::TooLong | Self::Encoding => None,
        }
    }

    fn answer(self) -> Response<Reply> {
        let (status, text) = match self {
            Self::Target => (StatusCode::BAD_REQUEST, "the target must be a path\n"),
            Self::Host => (StatusCode::MISDIRECTED_REQUEST, "Host must be the name that was connected to\n"),
            Self::TooLong => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "with the secrets in place a header would be too long\n",
            ),
            Self::Upgrade => {
                (StatusCode::BAD_GATEWAY, "to a host that gets secrets no connection is upgraded\n")
            }
            Self::Encoding => (
                StatusCode::BAD_GATEWAY,
                "the host packed an answer to a request with a secret, so it can't be looked through\n",
            ),
        };
        let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed();
        let mut answer = Response::new(body);
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        answer
    }
}
