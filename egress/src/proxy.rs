//! The HTTP proxy of a jail: the same checks by name, for clients that use one.
//!
//! Here: `CONNECT host:port` and `GET http://host/…`, the token, the answers. Not here: reading heads (`parse::http`).
//! Invariants: one request for each connection; without the token nothing is looked at; an address is no name.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::report::Verdict;

use crate::door;
use crate::gate::{self, Opening, Speech};
use crate::inject;
use crate::parse::http::{self, Authority, BadRequest, Request, Target};
use crate::relay::{self, Start};
use crate::service::{Refusal, Service};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// For the client to take our last words.
const PARTING: Duration = Duration::from_secs(1);
const USER: &str = "service";

/// What a light jail's clients must show. Never printed.
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(token: &str) -> Self {
        Self(STANDARD.encode(format!("{USER}:{token}")))
    }

    fn is_shown(&self, credentials: Option<&[u8]>) -> bool {
        let shown = credentials.and_then(|text| text.split_at_checked("Basic ".len()));
        shown.is_some_and(|(scheme, shown)| {
            scheme.eq_ignore_ascii_case(b"Basic ") && bool::from(shown.trim_ascii().ct_eq(self.0.as_bytes()))
        })
    }
}

pub(crate) async fn serve(service: &Service, token: Option<&Token>, mut client: TcpStream) {
    let mut bytes = Vec::new();
    let parse = |bytes: &[u8]| http::read(bytes).transpose();
    let Ok(request) = gate::gather(&mut client, &mut bytes, service.config.head_timeout, parse).await else {
        return relay::reset(client);
    };
    let request = match request {
        Ok(request) => request,
        Err(bad) => return part(client, &http::answer("400 Bad Request", "", explain(bad))).await,
    };
    if token.is_some_and(|token| !token.is_shown(request.credentials.as_deref())) {
        let challenge = "Proxy-Authenticate: Basic realm=\"claudemesh\"\r\n";
        let text = "the way out wants the token of this service\n";
        return part(client, &http::answer("407 Proxy Authentication Required", challenge, text)).await;
    }
    let early = bytes.split_off(request.length);
    let (Target::Connect(to) | Target::Absolute(to) | Target::Origin(to)) = request.target.clone();
    let ended = match &request.target {
        Target::Connect(_) => tunnel(service, &mut client, &to, early).await,
        Target::Absolute(_) => pass_on(service, &mut client, &to, request, &early).await,
        Target::Origin(_) => {
            let text = "this is a proxy: name the host in the target\n";
            return part(client, &http::answer("400 Bad Request", "", text)).await;
        }
    };
    match ended {
        Ok(()) => {}
        Err(Before(refusal)) => {
            door::book(service, (&to.host, to.port), refusal);
            part(client, &refused(&to, refusal)).await;
        }
        Err(After(refusal)) => {
            door::book(service, (&to.host, to.port), refusal);
            relay::reset(client);
        }
    }
}

/// Whether the client can still be told.
enum Failed {
    Before(Refusal),
    After(Refusal),
}
use Failed::{After, Before};

async fn tunnel(
    service: &Service,
    client: &mut TcpStream,
    to: &Authority,
    early: Vec<u8>,
) -> Result<(), Failed> {
    let (host, port) = (to.host.as_str(), to.port);
    let admitted = service.admit(host, port).map_err(Before)?;
    let server = service.connect(host, port, admitted).await.map_err(Before)?;
    client.write_all(ESTABLISHED).await.map_err(|_| After(Refusal::Gone))?;
    let limit = service.config.head_timeout;
    if let Some(injection) = service.rules.injection(host, port) {
        let hello = gate::opening(Speech::Tls, client, early, (host, port), limit).await.map_err(After)?;
        let streams = (client, hello.bytes, server);
        return inject::run(service, injection, streams, (host, port, admitted)).await.map_err(After);
    }
    let start = match Speech::on(port) {
        Speech::Any => Start::Unheard(early, host, limit),
        speech => {
            let opening = gate::opening(speech, client, early, (host, port), limit).await.map_err(After)?;
            Start::Checked(opening)
        }
    };
    door::relay(service, (client, server), (host, port, admitted), start).await.map_err(After)
}

async fn pass_on(
    service: &Service,
    client: &mut TcpStream,
    to: &Authority,
    request: Request,
    early: &[u8],
) -> Result<(), Failed> {
    let (host, port) = (to.host.as_str(), to.port);
    let admitted = service.admit(host, port).map_err(Before)?;
    if Speech::on(port) == Speech::Tls {
        return Err(Before(Refusal::Verdict(Verdict::NotTls)));
    }
    let server = service.connect(host, port, admitted).await.map_err(Before)?;
    let opening: Opening = gate::onward(request, early);
    door::relay(service, (client, server), (host, port, admitted), Start::Checked(opening))
        .await
        .map_err(After)
}

fn explain(bad: BadRequest) -> &'static str {
    match bad {
        BadRequest::NotHttp => "no HTTP/1 request\n",
        BadRequest::TooLong => "the head of the request is too long\n",
        BadRequest::Target => "the target must be host:port, or http://host/path, without a user\n",
        BadRequest::Host => "Host is missing, or another one than that of the target\n",
        BadRequest::Framing => "the length of the body is ambiguous\n",
    }
}

fn refused(to: &Authority, refusal: Refusal) -> Vec<u8> {
    let Authority { host, port } = to;
    let verdict = match refusal {
        Refusal::Verdict(verdict) => verdict,
        Refusal::Gone => Verdict::Unreachable,
    };
    let (status, text) = match verdict {
        Verdict::NotListed => (
            "403 Forbidden",
            format!("{host}:{port} is not allowed; allow with: claudemesh allow NAME {host}:{port}\n"),
        ),
        Verdict::PrivateAddress => ("403 Forbidden", format!("{host} means a private address\n")),
        Verdict::OverLimit => {
            ("429 Too Many Requests", "this service is over its limit of traffic\n".to_owned())
        }
        Verdict::NotTls => ("403 Forbidden", format!("port {port} is for TLS only\n")),
        Verdict::NameMismatch => ("403 Forbidden", format!("another host was asked for than {host}\n")),
        Verdict::Unreachable | Verdict::Allowed | Verdict::Learned => {
            ("502 Bad Gateway", format!("{host}:{port} can not be reached\n"))
        }
    };
    http::answer(status, "", &text)
}

/// Says it, and waits a little for the client to leave: unread bytes would turn our words into a reset.
async fn part(mut client: TcpStream, answer: &[u8]) {
    let parting = async {
        client.write_all(answer).await?;
        client.shutdown().await?;
        let mut rest = [0; 4096];
        while client.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whether it heard us or not, it is over.
    let _ = timeout(PARTING, parting).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token::new("secret");
        let shown = |text: &str| token.is_shown(Some(text.as_bytes()));
        assert!(shown("Basic c2VydmljZTpzZWNyZXQ=") && shown("basic  c2VydmljZTpzZWNyZXQ="));
        for wrong in [
            "Basic c2VydmljZTpzZWNyZX",
            "Bearer c2VydmljZTpzZWNyZXQ=",
            "Basic ",
            "Basic",
            "",
            "c2VydmljZTpzZWNyZXQ=",
        ] {
            assert!(!shown(wrong), "{wrong}");
        }
        assert!(!token.is_shown(None));
    }
}
