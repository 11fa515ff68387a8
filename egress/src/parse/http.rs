//! The head of one HTTP/1 request, as a proxy and as the listener on port 80 get it (RFC 9112).
//!
//! Here: the target, the host, the framing of the body; the head that goes on to the origin. Not here: who may be asked.
//! Invariants: the head that goes on is written anew, with one `Host`, which is the one that was checked; it asks the
//! origin to close, so that no second request rides along. What two readers could frame differently is refused.

use std::net::{IpAddr, Ipv6Addr};

/// Bytes of a request's head.
pub const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 100;
/// Of this connection only, or of nobody's concern but ours (RFC 9110 §7.6.1). Without `Upgrade` nothing can turn the
/// connection into something that is not HTTP.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "te", "upgrade", "http2-settings", "host", "content-length"];

/// A host and a port, as the client wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// In lowercase, without the final dot; an address in its usual spelling.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `CONNECT host:port`.
    Connect(Authority),
    /// `GET http://host/path`.
    Absolute(Authority),
    /// `GET /path`, with its `Host`.
    Origin(Authority),
}

/// How many bytes follow the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Length(u64),
    Chunked,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub target: Target,
    pub body: Body,
    /// Bytes of the head as it came.
    pub length: usize,
    /// The value of `Proxy-Authorization`.
    pub credentials: Option<Vec<u8>>,
    /// What the origin gets; empty for `CONNECT`.
    pub onward: Vec<u8>,
}

/// A request that is not passed on, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadRequest {
    NotHttp,
    TooLong,
    /// No single, plain host and port.
    Target,
    /// `Host` is missing, there twice, or another one than that of the target.
    Host,
    /// Nobody can tell for sure where the body ends.
    Framing,
}

/// Reads the first bytes of a connection. `None`: more are needed.
///
/// # Errors
/// [`BadRequest`].
pub fn read(bytes: &[u8]) -> Result<Option<Request>, BadRequest> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(BadRequest::TooLong);
        }
        Err(_) => return Err(BadRequest::NotHttp),
    };
    let (Some(method), Some(path), Some(version)) = (request.method, request.path, request.version) else {
        return Err(BadRequest::NotHttp);
    };
    let head = Head { method, path, version, fields: request.headers };
    let mut parsed = head.read()?;
    parsed.length = length;
    Ok(Some(parsed))
}

struct Head<'a> {
    method: &'a str,
    path: &'a str,
    /// 0 or 1, of HTTP/1.
    version: u8,
    fields: &'a [httparse::Header<'a>],
}

impl Head<'_> {
    fn read(&self) -> Result<Request, BadRequest> {
        let credentials = self.only("proxy-authorization").map_err(|_| BadRequest::NotHttp)?;
        let credentials = credentials.map(<[u8]>::to_vec);
        if self.method == "CONNECT" {
            let authority = authority(self.path, None).ok_or(BadRequest::Target)?;
            let (target, body) = (Target::Connect(authority), Body::Length(0));
            return Ok(Request { target, body, length: 0, credentials, onward: Vec::new() });
        }
        let host = self.host()?;
        let (target, path) = self.target(host)?;
        let body = self.body()?;
        let (Target::Connect(authority) | Target::Absolute(authority) | Target::Origin(authority)) = &target;
        let onward = self.onward(authority, &path, body);
        Ok(Request { target, body, length: 0, credentials, onward })
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// # Errors
    /// It is there more than once.
    fn only(&self, name: &str) -> Result<Option<&[u8]>, ()> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(()) } else { Ok(first) }
    }

    fn host(&self) -> Result<Option<Authority>, BadRequest> {
        match self.only("host") {
            Ok(Some(value)) => {
                let text = std::str::from_utf8(value).map_err(|_| BadRequest::Host)?;
                authority(text, Some(80)).map(Some).ok_or(BadRequest::Host)
            }
            Ok(None) if self.version == 0 => Ok(None),
            Ok(None) | Err(()) => Err(BadRequest::Host),
        }
    }

    /// The target, and the path for the origin.
    fn target(&self, host: Option<Authority>) -> Result<(Target, String), BadRequest> {
        if self.path.starts_with('/') || (self.path == "*" && self.method == "OPTIONS") {
            return Ok((Target::Origin(host.ok_or(BadRequest::Host)?), self.path.to_owned()));
        }
        let (scheme, rest) = self.path.split_at_checked("http://".len()).ok_or(BadRequest::Target)?;
        if !scheme.eq_ignore_ascii_case("http://") || rest.contains('#') {
            return Err(BadRequest::Target);
        }
        let (named, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let named = authority(named, Some(80)).ok_or(BadRequest::Target)?;
        if host.is_some_and(|host| host != named) {
            return Err(BadRequest::Host);
        }
        let path = match path {
            "" if self.method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok((Target::Absolute(named), path))
    }

    fn body(&self) -> Result<Body, BadRequest> {
        let length = self.only("content-length").map_err(|()| BadRequest::Framing)?;
        let coding = self.only("transfer-encoding").map_err(|()| BadRequest::Framing)?;
        match (length, coding) {
            (None, None) => Ok(Body::Length(0)),
            (Some(digits), None) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                let digits = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                digits.map(Body::Length).ok_or(BadRequest::Framing)
            }
            (None, Some(coding)) if self.version == 1 && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Body::Chunked)
            }
            _ => Err(BadRequest::Framing),
        }
    }

    fn onward(&self, authority: &Authority, path: &str, body: Body) -> Vec<u8> {
        let host = authority.to_text(80);
        let mut head =
            format!("{} {path} HTTP/1.{}\r\nHost: {host}\r\n", self.method, self.version).into_bytes();
        for field in self.fields {
            let name = field.name.to_ascii_lowercase();
            if HOP_BY_HOP.contains(&name.as_str()) || name.starts_with("proxy-") {
                continue;
            }
            head.extend_from_slice(field.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(field.value);
            head.extend_from_slice(b"\r\n");
        }
        // A length of zero is said only by those who said it: most requests have no body at all.
        if let (Body::Length(length), Some(_)) = (body, self.all("content-length").next()) {
            head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        head.extend_from_slice(b"Connection: close\r\n\r\n");
        head
    }
}

impl Authority {
    fn to_text(&self, default: u16) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

/// `host:port`; without a port only if there is a default. No user, no spaces, no escapes.
pub fn authority(text: &str, default: Option<u16>) -> Option<Authority> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<Ipv6Addr>().ok()?.to_string(), port)
        }
        None => {
            let at = text.find(':').unwrap_or(text.len());
            let host = text[..at].strip_suffix('.').unwrap_or(&text[..at]).to_ascii_lowercase();
            (host, &text[at..])
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok()?
        }
        Some(_) => return None,
        None if port.is_empty() => default?,
        None => return None,
    };
    let is_host = wire::egress::is_host_name(&host) || host.parse::<IpAddr>().is_ok();
    (is_host && port != 0).then_some(Authority { host, port })
}

/// A short answer of our own, after which the connection ends.
pub fn answer(status: &str, extra: &str, text: &str) -> Vec<u8> {
    let length = text.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n{extra}Connection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> Result<Request, BadRequest> {
        read(text.as_bytes()).map(|request| request.expect("a whole head"))
    }

    fn at(host: &str, port: u16) -> Authority {
        Authority { host: host.into(), port }
    }

    #[test]
    fn connect_names_a_host_and_a_port() {
        let head =
            "CONNECT API.GitHub.com:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\n\r\n";
        let parsed = request(&format!("{head}early")).expect("a request");
        assert_eq!(parsed.target, Target::Connect(at("api.github.com", 443)));
        assert_eq!(parsed.credentials.as_deref(), Some(&b"Basic eA=="[..]));
        assert_eq!(parsed.length, head.len());
        for length in 0..head.len() {
            assert_eq!(read(&head.as_bytes()[..length]), Ok(None), "{length} bytes");
        }
    }

    #[test]
    fn an_authority_is_plain_or_refused() {
        for (text, host, port) in [
            ("a.com:443", "a.com", 443),
            ("A.com.:1", "a.com", 1),
            ("10.0.0.1:80", "10.0.0.1", 80),
            ("[::1]:80", "::1", 80),
            ("[0:0::1]:80", "::1", 80),
            ("a.com", "a.com", 80),
        ] {
            assert_eq!(authority(text, Some(80)), Some(at(host, port)), "{text}");
        }
        for text in [
            "",
            ":80",
            "a.com:",
            "a.com:0",
            "a.com:65536",
            "a.com:+80",
            "a.com:080000",
            "a.com:80:80",
            "u@a.com:80",
            "u:p@a.com:80",
            "a.com@b.com",
            "a com",
            "a.com..",
            "a%2ecom",
            "[::1",
            "[::1]80",
            "[a.com]:80",
            "::1",
            "a.com/",
            "a.com\\b",
            "é.com",
            "a.com:८",
        ] {
            assert_eq!(authority(text, Some(80)), None, "{text}");
        }
        assert_eq!(authority("a.com", None), None);
    }

    #[test]
    fn an_absolute_target_becomes_a_plain_one_without_the_proxys_fields() {
        let parsed = request(
            "POST HTTP://A.com?x=1 HTTP/1.1\r\nhost: a.COM:80\r\nProxy-Connection: keep-alive\r\n\
             Proxy-Authorization: Basic x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\
             TE: trailers\r\nX-Kept: 1\r\nContent-Length: 03\r\n\r\nabc",
        )
        .expect("a request");
        assert_eq!(parsed.target, Target::Absolute(at("a.com", 80)));
        assert_eq!(parsed.body, Body::Length(3));
        assert_eq!(
            String::from_utf8_lossy(&parsed.onward),
            "POST /?x=1 HTTP/1.1\r\nHost: a.com\r\nX-Kept: 1\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        );
        let other = request("GET http://a.com:8080 HTTP/1.0\r\n\r\n").expect("a request");
        assert_eq!(
            String::from_utf8_lossy(&other.onward),
            "GET / HTTP/1.0\r\nHost: a.com:8080\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_host_that_is_not_the_targets_is_refused() {
        for text in [
            "GET http://a.com/ HTTP/1.1\r\nHost: b.com\r\n\r\n",
            "GET http://a.com/ HTTP/1.1\r\nHost: a.com:81\r\n\r\n",
            "GET http://a.com/ HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: a.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com, b.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        ] {
            assert_eq!(request(text), Err(BadRequest::Host), "{text}");
        }
        let origin = request("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").expect("a request");
        assert_eq!(origin.target, Target::Origin(at("a.com", 80)));
    }

    #[test]
    fn targets_that_are_no_plain_host_are_refused() {
        for target in [
            "https://a.com/",
            "ftp://a.com/",
            "http://u@a.com/",
            "http://u:p@a.com/",
            "http:///",
            "http://",
            "a.com:80",
            "http://a.com/#x",
            "*",
            "http:/a.com/",
            "http://a.com:x/",
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: a.com\r\n\r\n");
            assert_eq!(request(&text), Err(BadRequest::Target), "{target}");
        }
        for target in ["a.com", "http://a.com", "u@a.com:443", "/", "a.com:443/x"] {
            assert_eq!(
                request(&format!("CONNECT {target} HTTP/1.1\r\n\r\n")),
                Err(BadRequest::Target),
                "{target}"
            );
        }
    }

    #[test]
    fn bodies_that_could_be_framed_in_two_ways_are_refused() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length: 1, 1",
            "Content-Length: ",
            "Content-Length: 99999999999999999999999",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a.com\r\n{fields}\r\n\r\n");
            assert_eq!(request(&text), Err(BadRequest::Framing), "{fields}");
        }
        let old = "POST / HTTP/1.0\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(request(old), Err(BadRequest::Framing));
        let chunked = request("POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: Chunked\r\n\r\n")
            .expect("a request");
        assert_eq!(chunked.body, Body::Chunked);
        assert!(String::from_utf8_lossy(&chunked.onward).contains("Transfer-Encoding: Chunked\r\n"));
    }

    #[test]
    fn what_is_not_http_is_refused_at_once_and_what_never_ends_at_the_bound() {
        for text in [
            "\u{16}\u{3}\u{1}",
            "PRI * HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.com\r\n\r\n",
            "SSH-2.0-x\r\n",
        ] {
            assert_eq!(read(text.as_bytes()), Err(BadRequest::NotHttp), "{text}");
        }
        let folded = "GET / HTTP/1.1\r\nHost: a.com\r\nX: 1\r\n Host: b.com\r\n\r\n";
        assert_eq!(read(folded.as_bytes()), Err(BadRequest::NotHttp));
        let endless = format!("GET /{}", "a".repeat(MAX_HEAD));
        assert_eq!(read(endless.as_bytes()), Err(BadRequest::TooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(read(many.as_bytes()), Err(BadRequest::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn what_goes_on_is_one_head_with_one_host(
            path in "(/|http://a.com|\\*|a.com:1)[ -~]{0,12}",
            field in "[A-Za-z-]{1,18}: ?[ -~]{0,12}(\r\n|\n|\r)?[ -~]{0,12}",
        ) {
            let text = format!("GET {path} HTTP/1.1\r\nHost: a.com\r\n{field}\r\n\r\n");
            if let Ok(Some(request)) = read(text.as_bytes()) {
                let again = read(&request.onward).expect("it can be read again").expect("it is whole");
                prop_assert_eq!(again.length, request.onward.len());
                prop_assert_eq!(again.target, Target::Origin(at("a.com", 80)));
                prop_assert_eq!(again.onward, request.onward);
                prop_assert!(again.credentials.is_none());
            }
        }
    }
}
