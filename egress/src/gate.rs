//! The first bytes of a connection: do they speak to the host that was looked up?
//!
//! Here: waiting for them, within a bound and a deadline, and the check. Not here: reading them (see [`crate::parse`]).
//! Invariant: no byte of the client goes on before the check that its port asks for has passed.
//!
//! Port 443 wants a ClientHello, port 80 an HTTP request, both with the right name. On other ports the server may speak
//! first; but a ClientHello there must name the right host, too.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use wire::report::Verdict;

use crate::parse::http::{self, Authority, BadRequest, Body, Request, Target};
use crate::parse::sni::{self, Hello};
use crate::service::Refusal;

/// Pieces that a head may come in: each is read anew from the start, so that a drip of bytes must not go on for ever.
const MAX_PIECES: usize = 512;
const PIECE: usize = 4096;
/// The first byte of every TLS handshake.
const HANDSHAKE: u8 = 22;

/// What the bytes on a port must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Tls,
    Http,
    Any,
}

/// What goes on to the server at once, and how much of the rest.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) bytes: Vec<u8>,
    /// `None`: all of it.
    pub(crate) rest: Option<u64>,
}

/// Why no head was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// The client left without a word.
    Silent,
    Incomplete,
}

impl Speech {
    pub(crate) fn on(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            80 => Self::Http,
            _ => Self::Any,
        }
    }
}

/// Reads more until `parse` has an answer.
pub(crate) async fn gather<T>(
    client: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    limit: Duration,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, Short> {
    let reading = async {
        for _ in 0..MAX_PIECES {
            if let Some(found) = parse(bytes) {
                return Ok(found);
            }
            bytes.reserve(PIECE);
            match client.read_buf(bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) if bytes.is_empty() => return Err(Short::Silent),
                Ok(0) | Err(_) => return Err(Short::Incomplete),
            }
        }
        Err(Short::Incomplete)
    };
    timeout(limit, reading).await.unwrap_or(Err(Short::Incomplete))
}

/// What the client says first, on a port where it must say something.
pub(crate) async fn opening(
    speech: Speech,
    client: &mut (impl AsyncRead + Unpin),
    mut early: Vec<u8>,
    (host, port): (&str, u16),
    limit: Duration,
) -> Result<Opening, Refusal> {
    match speech {
        Speech::Tls => {
            let hello = gather(client, &mut early, limit, whole_hello).await.map_err(refusal)?;
            check(&hello, host)?;
            Ok(Opening { bytes: early, rest: None })
        }
        Speech::Http => {
            let parse = |bytes: &[u8]| http::read(bytes).transpose();
            let request = gather(client, &mut early, limit, parse).await.map_err(refusal)?;
            let request = request.map_err(|bad| Refusal::Verdict(verdict(bad)))?;
            let is_right = matches!(&request.target, Target::Origin(Authority { host: h, port: p }) if h == host && *p == port);
            if !is_right {
                return Err(Refusal::Verdict(Verdict::NameMismatch));
            }
            Ok(onward(request, &early))
        }
        Speech::Any => sniff(client, early, host, limit).await,
    }
}

/// Waits for the first byte as long as it takes; only a ClientHello is read to its end.
async fn sniff(
    client: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    host: &str,
    limit: Duration,
) -> Result<Opening, Refusal> {
    if bytes.is_empty() {
        bytes.reserve(PIECE);
        client.read_buf(&mut bytes).await.map_err(|_| Refusal::Gone)?;
    }
    if bytes.first() == Some(&HANDSHAKE) {
        let hello = gather(client, &mut bytes, limit, whole_hello).await.map_err(refusal)?;
        // Another protocol may begin with this byte.
        if hello != Hello::NotTls {
            check(&hello, host)?;
        }
    }
    Ok(Opening { bytes, rest: None })
}

/// The head that the origin gets, and what is there of the body.
pub(crate) fn onward(request: Request, bytes: &[u8]) -> Opening {
    let body = &bytes[request.length.min(bytes.len())..];
    let mut opening = Opening { bytes: request.onward, rest: None };
    match request.body {
        Body::Chunked => opening.bytes.extend_from_slice(body),
        Body::Length(length) => {
            let here = usize::try_from(length).map_or(body.len(), |length| length.min(body.len()));
            opening.bytes.extend_from_slice(&body[..here]);
            opening.rest = Some(length - here as u64);
        }
    }
    opening
}

fn whole_hello(bytes: &[u8]) -> Option<Hello> {
    Some(sni::read(bytes)).filter(|hello| *hello != Hello::More)
}

fn check(hello: &Hello, host: &str) -> Result<(), Refusal> {
    match hello {
        Hello::Name(name) if name == host => Ok(()),
        Hello::Name(_) | Hello::NoName => Err(Refusal::Verdict(Verdict::NameMismatch)),
        Hello::NotTls | Hello::More => Err(Refusal::Verdict(Verdict::NotTls)),
    }
}

fn refusal(short: Short) -> Refusal {
    match short {
        Short::Silent => Refusal::Gone,
        Short::Incomplete => Refusal::Verdict(Verdict::NotTls),
    }
}

fn verdict(bad: BadRequest) -> Verdict {
    match bad {
        BadRequest::Host | BadRequest::Target => Verdict::NameMismatch,
        BadRequest::NotHttp | BadRequest::TooLong | BadRequest::Framing => Verdict::NotTls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::sni::tests::hello;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn said(speech: Speech, port: u16, mut bytes: &[u8]) -> Result<Opening, Refusal> {
        opening(speech, &mut bytes, Vec::new(), ("a.com", port), LIMIT).await
    }

    fn refused(verdict: Verdict) -> Result<Opening, Refusal> {
        Err(Refusal::Verdict(verdict))
    }

    #[tokio::test]
    async fn tls_must_name_the_host() {
        let right = hello("a.com");
        let passed = said(Speech::Tls, 443, &right).await.expect("it passes");
        assert_eq!((passed.bytes, passed.rest), (right, None));
        assert_eq!(said(Speech::Tls, 443, &hello("b.com")).await, refused(Verdict::NameMismatch));
        assert_eq!(said(Speech::Tls, 443, b"GET / HTTP/1.1\r\n").await, refused(Verdict::NotTls));
        assert_eq!(said(Speech::Tls, 443, &hello("a.com")[..40]).await, refused(Verdict::NotTls));
        assert_eq!(said(Speech::Tls, 443, b"").await, Err(Refusal::Gone));
    }

    #[tokio::test]
    async fn http_must_name_the_host_and_no_second_request_rides_along() {
        let two = b"POST /x HTTP/1.1\r\nHost: a.com\r\nContent-Length: 2\r\n\r\nokGET / HTTP/1.1\r\nHost: b.com\r\n\r\n";
        let passed = said(Speech::Http, 80, two).await.expect("it passes");
        assert_eq!(
            String::from_utf8_lossy(&passed.bytes),
            "POST /x HTTP/1.1\r\nHost: a.com\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        );
        assert_eq!(passed.rest, Some(0));
        for other in
            ["GET / HTTP/1.1\r\nHost: b.com\r\n\r\n", "GET http://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n"]
        {
            assert_eq!(said(Speech::Http, 80, other.as_bytes()).await, refused(Verdict::NameMismatch));
        }
        assert_eq!(said(Speech::Http, 80, &hello("a.com")).await, refused(Verdict::NotTls));
    }

    #[tokio::test]
    async fn elsewhere_only_tls_is_looked_into() {
        assert_eq!(said(Speech::Any, 22, b"SSH-2.0-x\r\n").await.expect("it passes").bytes, b"SSH-2.0-x\r\n");
        assert_eq!(said(Speech::Any, 22, b"").await.expect("it passes").bytes, b"");
        assert_eq!(said(Speech::Any, 22, &[22, 0, 1, 2]).await.expect("it passes").bytes, [22, 0, 1, 2]);
        assert_eq!(said(Speech::Any, 8443, &hello("b.com")).await, refused(Verdict::NameMismatch));
        said(Speech::Any, 8443, &hello("a.com")).await.expect("it passes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_never_ends_is_not_waited_for() {
        let (mut client, mut far) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut far, &[22, 3, 1]).await.expect("room");
        let answer = opening(Speech::Tls, &mut client, Vec::new(), ("a.com", 443), LIMIT).await;
        assert_eq!(answer, refused(Verdict::NotTls));
    }

    #[tokio::test]
    async fn a_head_in_single_bytes_is_given_up() {
        let (mut client, mut far) = tokio::io::duplex(1);
        let drip = async {
            let head = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2 * MAX_PIECES]].concat();
            tokio::io::AsyncWriteExt::write_all(&mut far, &head).await
        };
        let reading = opening(Speech::Http, &mut client, Vec::new(), ("a.com", 80), LIMIT);
        tokio::select! {
            answer = reading => assert_eq!(answer, refused(Verdict::NotTls)),
            _ = drip => unreachable!("nobody reads so much"),
        }
    }
}
