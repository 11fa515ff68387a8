//! Real TLS on both sides: a client that trusts the cell's CA, and a host with a CA of its own.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wire::report::Verdict;

use super::*;
use crate::tests::{Plan, World, assert_reset, rules, soon};

const CANARY: &str = "canary-7f3a/+secret=value";
const BIG: usize = 8 << 20;

/// What the host got, as text: the request line and headers; then the length of the body, and its beginning.
type Heard = mpsc::UnboundedReceiver<(String, usize, String)>;

struct Rig {
    world: World,
    injection: Arc<Injection>,
    heard: Heard,
    /// The host's PEM file, and what serves it.
    ca: tempfile::NamedTempFile,
    _host: JoinSet<()>,
}

fn pki(names: &[&str]) -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = pem(params.self_signed(&key).expect("signed").der());
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("signed");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a certificate");
    (ca, Arc::new(config))
}

/// `plan.rules.inject` is made of `hosts`.
async fn rig(mut plan: Plan, hosts: &[&str], certified: &[&str]) -> Rig {
    let (ca, tls) = pki(certified);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), ca).expect("written");
    let values = vec![Zeroizing::new(CANARY.as_bytes().to_vec())];
    let injection = Injection::new(rules(hosts).allow, values, Some(file.path())).expect("made");
    let injection = Arc::new(injection);
    plan.rules.inject = Some(injection.clone());
    let mut world = plan.start().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listener = std::mem::replace(&mut world.host, unused);
    let (tell, heard) = mpsc::unbounded_channel();
    let mut host = JoinSet::new();
    host.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (TlsAcceptor::from(tls.clone()), tell.clone());
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request| reply(request, &tell));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Rig { world, injection, heard, ca: file, _host: host }
}

type Reply = BoxBody<Bytes, Infallible>;

async fn reply(
    request: Request<Incoming>,
    tell: &mpsc::UnboundedSender<(String, usize, String)>,
) -> Result<Response<Reply>, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut said = format!("{} {}\n", head.method, head.uri);
    for (name, value) in &head.headers {
        said += &format!("{name}: {}\n", value.to_str().expect("text"));
    }
    let (mut length, mut begin) = (0, Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap_or_default();
        length += data.len();
        begin.extend_from_slice(&data[..data.len().min(4096usize.saturating_sub(begin.len()))]);
    }
    let begin = String::from_utf8_lossy(&begin).into_owned();
    let _ = tell.send((said.clone(), length, begin.clone()));
    let full = |text: String| Full::new(Bytes::from(text)).boxed();
    let answer = Response::builder();
    let built = match head.uri.path() {
        "/big" => {
            let chunks = (0..BIG / 65536).map(|_| Ok(Frame::data(Bytes::from(vec![b'c'; 65536]))));
            answer.body(StreamBody::new(futures_of(chunks)).boxed())
        }
        "/packed" => answer.header("content-encoding", "gzip").body(full(said)),
        "/upgrade" => answer
            .status(101)
            .header("upgrade", "x")
            .header("connection", "upgrade")
            .body(full(String::new())),
        "/close" => answer.header("connection", "close").body(full("bye".into())),
        "/redirect" => answer
            .status(302)
            .header("location", format!("https://b.com/?t={CANARY}"))
            .body(full(String::new())),
        _ => answer
            .header(
                "x-echo",
                head.headers.get("authorization").cloned().unwrap_or_else(|| "none".parse().expect("text")),
            )
            .header("alt-svc", "h3=\":443\"")
            .body(full(said + &begin)),
    };
    Ok(built.expect("an answer"))
}

/// A stream of what is there already.
fn futures_of<T>(items: impl Iterator<Item = T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::iter(items)
}

fn trusting(pem: &str, alpn: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(der.expect("PEM")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

impl Rig {
    fn placeholder(&self) -> &str {
        self.injection.placeholders().next().expect("one")
    }

    async fn open(&self, host: &'static str, port: u16) -> TlsStream<TcpStream> {
        let stream = self.world.connect(host, port).await;
        let connector = trusting(self.injection.ca_pem(), &[]);
        soon(connector.connect(ServerName::try_from(host).expect("a name"), stream)).await.expect("TLS")
    }

    /// Sends it on a connection of its own, and reads to the end.
    async fn say(&self, request: &str) -> String {
        let mut stream = self.open("a.com", 443).await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // The end may be a reset.
        let _ = soon(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn hear(&mut self) -> (String, usize, String) {
        soon(self.heard.recv()).await.expect("a request")
    }

    fn heard_nothing(&mut self) {
        assert!(self.heard.try_recv().is_err());
    }
}

async fn usual() -> Rig {
    rig(Plan::default(), &["a.com"], &["a.com"]).await
}

#[tokio::test]
async fn the_host_gets_the_value_and_the_jail_gets_the_placeholder_back() {
    let mut rig = usual().await;
    let token = rig.placeholder().to_owned();
    let answer = rig
        .say(&format!(
            "POST /x?q={token} HTTP/1.1\r\nHost: a.com\r\nAuthorization: Bearer {token}\r\nUser-Agent: {token}\r\nAccept-Encoding: gzip\r\n\
             Range: bytes=0-3\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{token}",
            token.len()
        ))
        .await;
    let (head, _, body) = rig.hear().await;
    assert!(head.contains(&format!("authorization: Bearer {CANARY}\n")), "{head}");
    assert!(
        head.starts_with(&format!("POST /x?q={token}\n")) && head.contains(&format!("user-agent: {token}\n")),
        "{head}"
    );
    assert!(head.contains("accept-encoding: identity\n") && !head.contains("range"), "{head}");
    assert_eq!(body, token, "a body is nobody's to change");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("canary"), "{answer}");
    assert!(
        answer.contains(&format!("x-echo: Bearer {token}\r\n")) && !answer.contains("alt-svc"),
        "{answer}"
    );
    assert!(answer.contains(&format!("authorization: Bearer {token}\n")), "{answer}");
    let decision = rig.world.booked("a.com", 443, Verdict::Allowed).await;
    assert_eq!((decision.count, decision.injected), (1, 1));
    assert!(decision.sent_bytes > 500 && decision.received_bytes > 500);
}

#[tokio::test]
async fn the_password_of_basic_credentials_is_exchanged_and_masked() {
    let mut rig = usual().await;
    let said = STANDARD.encode(format!("me:{}", rig.placeholder()));
    let answer = rig
        .say(&format!(
            "GET / HTTP/1.1\r\nHost: a.com:443\r\nAuthorization: Basic {said}\r\nConnection: close\r\n\r\n"
        ))
        .await;
    let meant = STANDARD.encode(format!("me:{CANARY}"));
    assert!(rig.hear().await.0.contains(&format!("authorization: Basic {meant}\n")));
    assert!(!answer.contains(&meant[4..30]), "{answer}");
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other_pipelined_or_not() {
    let mut rig = usual().await;
    let token = rig.placeholder().to_owned();
    let mut stream = rig.open("a.com", 443).await;
    let one = format!("GET /n HTTP/1.1\r\nHost: a.com\r\nX-Api-Key: {token}\r\n\r\n");
    let last = "GET /close HTTP/1.1\r\nHost: a.com\r\n\r\n";
    stream.write_all(format!("{one}{one}{one}").as_bytes()).await.expect("sent");
    for _ in 0..3 {
        assert!(rig.hear().await.0.contains(&format!("x-api-key: {CANARY}\n")));
    }
    stream.write_all(last.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("the host's end is ours");
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4, "{answer}");
    assert!(answer.contains("bye") && !answer.contains("canary"), "{answer}");
    assert_eq!(rig.world.booked("a.com", 443, Verdict::Allowed).await.injected, 3);
}

#[tokio::test]
async fn requests_that_two_could_read_differently_are_refused_or_written_anew() {
    let mut rig = usual().await;
    let token = rig.placeholder().to_owned();
    for (head, status) in [
        ("GET / HTTP/1.1\r\nHost: b.com", 421),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com", 421),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nHost: a.com", 421),
        ("GET / HTTP/1.1\r\nHost: a.com:8443", 421),
        ("GET / HTTP/1.1\r\nHost: u@a.com", 421),
        ("GET / HTTP/1.1\r\nX: y", 421),
        ("GET / HTTP/1.0\r\nX: y", 421),
        ("GET https://b.com/ HTTP/1.1\r\nHost: a.com", 400),
        ("GET http://a.com/ HTTP/1.1\r\nHost: a.com", 400),
        ("CONNECT a.com:443 HTTP/1.1\r\nHost: a.com", 400),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nX: y\r\n folded", 400),
        ("GET / HTTP/1.1\r\nHost : a.com", 400),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nX: a\rb", 400),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nX: a\0b", 400),
        ("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        ("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: +1", 400),
        ("POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked, gzip", 400),
        ("POST / HTTP/1.0\r\nHost: a.com\r\nTransfer-Encoding: chunked", 400),
        ("PRI * HTTP/2.0", 400),
    ] {
        let answer = rig.say(&format!("{head}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n")).await;
        assert!(
            answer.get(8..13) == Some(&format!(" {status} ")) || (status == 400 && answer.is_empty()),
            "{head}: {answer}"
        );
        rig.heard_nothing();
    }
    rig.world.booked("a.com", 443, Verdict::NameMismatch).await;
    let many = "X: y\r\n".repeat(101);
    let long = format!("X: {}\r\n", "y".repeat(70_000));
    for extra in [many, long] {
        let answer =
            rig.say(&format!("GET / HTTP/1.1\r\nHost: a.com\r\n{extra}Connection: close\r\n\r\n")).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
        rig.heard_nothing();
    }
    // Both lengths: one of them is left, and what follows is a request of its own, which is held against the rules, too.
    let both = "POST /one HTTP/1.1\r\nHost: a.com\r\nContent-Length: 49\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
                GET /two HTTP/1.1\r\nHost: b.com\r\n\r\n";
    rig.say(both).await;
    let (head, length, _) = rig.hear().await;
    assert!(head.starts_with("POST /one\n") && length == 0 && !head.contains("content-length: 49"), "{head}");
    rig.heard_nothing();
}

#[tokio::test]
async fn headers_of_one_connection_stay_on_it() {
    let mut rig = usual().await;
    rig.say(
        "GET / HTTP/1.1\r\nHost: a.com\r\nConnection: close, X-Gone, Host\r\nX-Gone: 1\r\nTE: trailers\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: x\r\nProxy-Authorization: y\r\nKeep-Alive: 5\r\nExpect: 100-continue\r\n\r\n",
    )
    .await;
    let head = rig.hear().await.0;
    let names: Vec<_> = head.lines().skip(1).filter_map(|line| line.split(':').next()).collect();
    assert_eq!(names, ["host", "accept-encoding"]);
}

#[tokio::test]
async fn an_answer_that_can_not_be_looked_through_is_kept_back() {
    let mut rig = usual().await;
    let token = rig.placeholder().to_owned();
    for path in ["/packed", "/upgrade"] {
        let answer = rig
            .say(&format!(
                "GET {path} HTTP/1.1\r\nHost: a.com\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("canary"), "{answer}");
        assert!(rig.hear().await.0.contains(CANARY));
    }
    let answer = rig.say("GET /packed HTTP/1.1\r\nHost: a.com\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "without a secret there is nothing to hide: {answer}");
    let answer = rig
        .say(&format!(
            "GET /redirect HTTP/1.1\r\nHost: a.com\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(answer.contains(&format!("location: https://b.com/?t={token}\r\n")), "{answer}");
}

#[tokio::test]
async fn other_hosts_other_ports_and_plain_http_get_no_value() {
    let plan = Plan { rules: rules(&["a.com", "a.com:80", "b.com", "c.com:8443"]), ..Plan::default() };
    // A rule of port 80 is there, and still nothing is put into plain HTTP.
    let mut rig = rig(plan, &["a.com", "a.com:80", "c.com:8443"], &["a.com", "b.com", "c.com"]).await;
    let token = rig.placeholder().to_owned();
    let request = |host: &str| {
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n")
    };
    // Redirected to b.com, a client shows its placeholder there: it sees the real certificate, and so no way out of ours.
    let stream = rig.world.connect("b.com", 443).await;
    let ours = trusting(rig.injection.ca_pem(), &[]);
    assert!(soon(ours.connect(ServerName::try_from("b.com").expect("a name"), stream)).await.is_err());
    let theirs = trusting(&std::fs::read_to_string(rig.ca.path()).expect("read"), &[]);
    let stream = rig.world.connect("b.com", 443).await;
    let mut stream =
        soon(theirs.connect(ServerName::try_from("b.com").expect("a name"), stream)).await.expect("TLS");
    stream.write_all(request("b.com").as_bytes()).await.expect("sent");
    assert!(rig.hear().await.0.contains(&format!("authorization: {token}\n")));
    assert_eq!(rig.world.booked("b.com", 443, Verdict::Allowed).await.injected, 0);
    // Another port of a rule.
    let mut stream = rig.open("c.com", 8443).await;
    stream.write_all(request("c.com:8443").as_bytes()).await.expect("sent");
    assert!(rig.hear().await.0.contains(CANARY));
    // Another SNI on the address of a.com.
    let stream = rig.world.connect("a.com", 443).await;
    let fronted = trusting(rig.injection.ca_pem(), &[]);
    assert!(soon(fronted.connect(ServerName::try_from("b.com").expect("a name"), stream)).await.is_err());
    rig.world.booked("a.com", 443, Verdict::NameMismatch).await;
    // No TLS at all.
    let mut stream = rig.world.connect("a.com", 443).await;
    stream.write_all(request("a.com").as_bytes()).await.expect("sent");
    assert_reset(&mut stream).await;
    rig.heard_nothing();
}

#[tokio::test]
async fn plain_http_to_the_host_of_a_rule_keeps_its_placeholder() {
    let values = vec![Zeroizing::new(CANARY.as_bytes().to_vec())];
    let injection =
        Arc::new(Injection::new(rules(&["a.com", "a.com:80"]).allow, values, None).expect("made"));
    let mut plan = Plan::default();
    plan.rules.inject = Some(injection.clone());
    let world = plan.start().await;
    let token = injection.placeholders().next().expect("one");
    let request =
        format!("GET / HTTP/1.1\r\nHost: a.com\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n");
    let mut direct = world.connect("a.com", 80).await;
    let mut by_proxy = TcpStream::connect(world.proxy).await.expect("the door is open");
    let absolute = request.replace("GET /", "GET http://a.com/");
    for (client, request) in [(&mut direct, &request), (&mut by_proxy, &absolute)] {
        client.write_all(request.as_bytes()).await.expect("sent");
        let (mut server, _) = soon(world.host.accept()).await.expect("a connection");
        let mut got = vec![0; 4096];
        let length = soon(server.read(&mut got)).await.expect("a request");
        let got = String::from_utf8_lossy(&got[..length]);
        assert!(got.contains(token) && !got.contains("canary"), "{got}");
    }
    assert_eq!(world.booked("a.com", 80, Verdict::Allowed).await.injected, 0);
}

#[tokio::test]
async fn a_tunnel_of_the_proxy_is_no_way_around() {
    let mut rig = usual().await;
    let token = rig.placeholder().to_owned();
    let mut stream = TcpStream::connect(rig.world.proxy).await.expect("the door is open");
    stream.write_all(b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n").await.expect("sent");
    let mut established = [0; 39];
    soon(stream.read_exact(&mut established)).await.expect("an answer");
    let connector = trusting(rig.injection.ca_pem(), &[]);
    let connecting = connector.connect(ServerName::try_from("a.com").expect("a name"), stream);
    let mut stream = soon(connecting).await.expect("TLS with the cell's own authority");
    let request = format!("GET / HTTP/1.1\r\nHost: a.com\r\nX-Token: {token}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("an answer");
    assert!(rig.hear().await.0.contains(CANARY) && answer.contains(&token) && !answer.contains("canary"));
}

#[tokio::test]
async fn a_host_with_a_wrong_certificate_gets_nothing() {
    let mut rig = rig(Plan::default(), &["a.com"], &["b.com"]).await;
    let stream = rig.world.connect("a.com", 443).await;
    let connector = trusting(rig.injection.ca_pem(), &[]);
    assert!(soon(connector.connect(ServerName::try_from("a.com").expect("a name"), stream)).await.is_err());
    rig.world.booked("a.com", 443, Verdict::Unreachable).await;
    rig.heard_nothing();
}

#[tokio::test]
async fn clients_of_http_2_alone_are_refused() {
    let rig = usual().await;
    let connector = trusting(rig.injection.ca_pem(), &[b"h2"]);
    let stream = rig.world.connect("a.com", 443).await;
    assert!(soon(connector.connect(ServerName::try_from("a.com").expect("a name"), stream)).await.is_err());
    rig.world.booked("a.com", 443, Verdict::NotTls).await;
    let connector = trusting(rig.injection.ca_pem(), &[b"h2", b"http/1.1"]);
    let stream = rig.world.connect("a.com", 443).await;
    let stream =
        soon(connector.connect(ServerName::try_from("a.com").expect("a name"), stream)).await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(HTTP_1));
}

#[tokio::test]
async fn fifty_at_once_and_each_gets_its_own_answer() {
    let rig = usual().await;
    let token = rig.placeholder();
    let ask = |n: usize| {
        let rig = &rig;
        async move {
            let answer = rig
                .say(&format!(
                    "GET /{n}? HTTP/1.1\r\nHost: a.com\r\nX-Token: {token}\r\nConnection: close\r\n\r\n"
                ))
                .await;
            assert!(
                answer.contains(&format!("GET /{n}?\n"))
                    && answer.contains(token)
                    && !answer.contains("canary"),
                "{answer}"
            );
        }
    };
    soon(futures_util::future::join_all((0..50).map(ask))).await;
    assert_eq!(rig.world.booked("a.com", 443, Verdict::Allowed).await.injected, 50);
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let mut rig = usual().await;
    for framing in [format!("Content-Length: {BIG}"), "Transfer-Encoding: chunked".to_owned()] {
        let stream = rig.open("a.com", 443).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let is_chunked = framing.starts_with('T');
        let send = async {
            let head = format!("PUT /big HTTP/1.1\r\nHost: a.com\r\n{framing}\r\nConnection: close\r\n\r\n");
            writer.write_all(head.as_bytes()).await.expect("sent");
            for _ in 0..BIG / 65536 {
                if is_chunked {
                    writer.write_all(b"10000\r\n").await.expect("sent");
                }
                writer.write_all(&vec![b'c'; 65536]).await.expect("sent");
                if is_chunked {
                    writer.write_all(b"\r\n").await.expect("sent");
                }
            }
            if is_chunked {
                writer.write_all(b"0\r\n\r\n").await.expect("sent");
            }
            writer.flush().await.expect("sent");
        };
        let mut received = Vec::new();
        let read = async { reader.read_to_end(&mut received).await.expect("an answer") };
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(send, read) })
            .await
            .expect("in time");
        assert_eq!(rig.hear().await.1, BIG);
        assert_eq!(received.iter().filter(|byte| **byte == b'c').count() / 65536, BIG / 65536);
    }
}

#[tokio::test]
async fn the_daily_cap_and_silence_end_it() {
    let mut plan = Plan::default();
    plan.config.max_daily_bytes = 1 << 20;
    let limited = rig(plan, &["a.com"], &["a.com"]).await;
    let answer = limited.say("GET /big HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    assert!(answer.len() < 1 << 20);
    limited.world.booked("a.com", 443, Verdict::OverLimit).await;
    let mut plan = Plan::default();
    plan.config.idle_timeout = Duration::from_millis(100);
    let silent = rig(plan, &["a.com"], &["a.com"]).await;
    let mut stream = silent.open("a.com", 443).await;
    assert!(matches!(soon(stream.read(&mut [0; 1])).await, Ok(0) | Err(_)));
}

#[test]
fn values_that_fit_no_header_are_refused_by_their_place() {
    let make = |value: &[u8]| {
        let values = vec![Zeroizing::new(b"fine".to_vec()), Zeroizing::new(value.to_vec())];
        Injection::new(rules(&["a.com"]).allow, values, None)
    };
    for bad in [&b""[..], b"a\nb", b"a\r", b"\0", b" a", b"a ", "\u{e4}".as_bytes()] {
        assert!(matches!(make(bad), Err(InjectError::NotForHeaders(1))));
    }
    assert!(matches!(make(&[b'a'; MAX_VALUE + 1]), Err(InjectError::TooLong(1))));
    assert!(make(b"a b").is_ok());
    let absent = std::path::Path::new("/nowhere/ca.pem");
    assert!(matches!(Injection::new(vec![], vec![], Some(absent)), Err(InjectError::ExtraCa(_))));
}

#[test]
fn what_is_printed_shows_no_value_and_placeholders_differ() {
    let values = || vec![Zeroizing::new(CANARY.as_bytes().to_vec()); 2];
    let made = Injection::new(rules(&["a.com"]).allow, values(), None).expect("made");
    assert!(!format!("{made:?}").contains("canary"));
    let seen: std::collections::BTreeSet<_> = made.placeholders().collect();
    assert!(seen.len() == 2 && seen.iter().all(|one| one.len() == 38), "{seen:?}");
}

#[tokio::test]
async fn the_authority_vouches_for_the_hosts_of_its_rules_alone() {
    let injection = Injection::new(rules(&["a.com", "*.d.com"]).allow, vec![], None).expect("made");
    for (host, is_fine) in [("a.com", true), ("x.d.com", true), ("b.com", false)] {
        let (client, server) = tokio::io::duplex(1 << 16);
        let acceptor = TlsAcceptor::from(injection.authority.as_host(host).expect("made"));
        let connector = trusting(injection.ca_pem(), &[]);
        let name = ServerName::try_from(host).expect("a name");
        let (connected, _) =
            soon(async { tokio::join!(connector.connect(name, client), acceptor.accept(server)) }).await;
        assert_eq!(connected.is_ok(), is_fine, "{host}");
    }
}
