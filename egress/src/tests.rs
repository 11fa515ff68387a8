//! Doors with real sockets. The fake addresses are some of 127/8, which are local on every machine: a listener on
//! 0.0.0.0 then sees them as a jail's listener sees 11.198/15.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::SystemTime;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wire::report::{EgressDecision, Verdict};

use super::*;
use crate::parse::sni::tests::hello;

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(10);
const TOKEN: &str = "a-token";

pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("within the time of a test")
}

pub(crate) fn rules(allow: &[&str]) -> Rules {
    Rules {
        allow: allow.iter().map(|rule| wire::EgressRule::parse(rule).expect(rule)).collect(),
        ..Rules::default()
    }
}

fn learning() -> Rules {
    Rules { learn_until: Some(SystemTime::now() + Duration::from_secs(60)), ..rules(&[]) }
}

/// One service in its jail, and a host of the Internet that it talks to.
pub(crate) struct World {
    pub(crate) ledger: Arc<Ledger>,
    serving: JoinHandle<io::Result<()>>,
    dns: SocketAddr,
    pub(crate) proxy: SocketAddr,
    /// Real ports of the doors, by the port that they stand for.
    doors: HashMap<u16, u16>,
    pub(crate) host: tokio::net::TcpListener,
}

pub(crate) struct Plan {
    pub(crate) rules: Rules,
    pub(crate) config: EgressConfig,
    /// Besides `a.com`, which is the host.
    pub(crate) names: Vec<(&'static str, Vec<SocketAddr>)>,
}

impl Default for Plan {
    fn default() -> Self {
        // The host of the tests is on the loopback.
        let private = ["a.com", "a.com:80", "a.com:22", "b.com", "c.com:8443"];
        let private = private.map(|host| PrivateHost::parse(host).expect(host)).into();
        let config = EgressConfig { private, ..EgressConfig::default() };
        Self { rules: rules(&["a.com", "a.com:80", "a.com:22"]), config, names: Vec::new() }
    }
}

impl Plan {
    pub(crate) async fn start(self) -> World {
        let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host_at = host.local_addr().expect("bound");
        let mut table: HashMap<_, _> =
            ["a.com", "b.com", "c.com"].map(|n| (n.to_owned(), vec![host_at])).into();
        table.extend(self.names.into_iter().map(|(name, at)| (name.to_owned(), at)));
        let egress = Egress {
            config: Arc::new(self.config),
            range: Range { first: Ipv4Addr::new(127, 64, 0, 1), count: 1000 },
            resolver: Resolver::Table(Arc::new(table)),
        };
        let bind = |ip| TcpListener::bind((ip, 0)).expect("a port");
        let doors = Doors {
            dns: UdpSocket::bind("127.0.0.1:0").expect("a port"),
            proxy: bind(Ipv4Addr::LOCALHOST),
            ports: [22, 80, 443, 8443].map(|port| (port, bind(Ipv4Addr::UNSPECIFIED))).into(),
        };
        let (dns, proxy) = (doors.dns.local_addr().expect("bound"), doors.proxy.local_addr().expect("bound"));
        let at =
            |(port, listener): &(u16, TcpListener)| (*port, listener.local_addr().expect("bound").port());
        let numbers = doors.ports.iter().map(at).collect();
        let ledger = Arc::new(Ledger::default());
        let booked = ledger.clone();
        let serving = tokio::spawn(async move { egress.serve(doors, self.rules, booked).await });
        World { ledger, serving, dns, proxy, doors: numbers, host }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl World {
    /// The answer code and the address.
    async fn look_up(&self, name: &str, kind: u16) -> (u8, Option<Ipv4Addr>) {
        let mut packet = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            packet.push(u8::try_from(label.len()).expect("short"));
            packet.extend(label.bytes());
        }
        packet.push(0);
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1]);
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        socket.send_to(&packet, self.dns).await.expect("sent");
        let mut answer = [0; 512];
        let length = soon(socket.recv(&mut answer)).await.expect("an answer");
        assert_eq!(answer[..2], packet[..2], "the id comes back");
        let address =
            (answer[7] == 1).then(|| <[u8; 4]>::try_from(&answer[length - 4..length]).expect("four"));
        (answer[3] & 15, address.map(Ipv4Addr::from))
    }

    /// As a program in the jail does it: look the name up, connect to the address.
    pub(crate) async fn connect(&self, name: &str, port: u16) -> TcpStream {
        let (code, address) = self.look_up(name, 1).await;
        assert_eq!(code, 0, "{name} has an address");
        self.connect_to(address.expect("an address"), port).await
    }

    async fn connect_to(&self, address: Ipv4Addr, port: u16) -> TcpStream {
        TcpStream::connect((address, self.doors[&port])).await.expect("the door is open")
    }

    async fn at_host(&self) -> TcpStream {
        soon(self.host.accept()).await.expect("a connection").0
    }

    async fn at_proxy(&self, head: &str) -> String {
        let mut client = TcpStream::connect(self.proxy).await.expect("the door is open");
        client.write_all(head.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.expect("an answer");
        answer
    }

    /// Waits for it: a decision may be booked a little later than the client hears of it.
    pub(crate) async fn booked(&self, host: &str, port: u16, verdict: Verdict) -> EgressDecision {
        let mut changes = self.ledger.changes();
        soon(async {
            loop {
                changes.borrow_and_update();
                let is_it =
                    |d: &EgressDecision| (d.host.as_str(), d.port, d.verdict) == (host, port, verdict);
                if let Some(found) = self.ledger.decisions().into_iter().find(is_it) {
                    return found;
                }
                changes.changed().await.expect("the ledger is there");
            }
        })
        .await
    }
}

pub(crate) async fn assert_reset(client: &mut TcpStream) {
    let error = soon(client.read(&mut [0; 1])).await.expect_err("a reset, and no end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

async fn read_exactly(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    soon(stream.read_exact(&mut bytes)).await.expect("bytes");
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

#[tokio::test]
async fn an_allowed_host_is_reached_and_its_bytes_are_counted() {
    let world = Plan::default().start().await;
    let mut client = world.connect("A.com", 443).await;
    let hello = hello("a.com");
    client.write_all(&hello).await.expect("sent");
    let mut server = world.at_host().await;
    read_exactly(&mut server, &hello).await;
    server.write_all(b"welcome").await.expect("sent");
    read_exactly(&mut client, b"welcome").await;
    let decision = world.booked("a.com", 443, Verdict::Allowed).await;
    assert_eq!((decision.sent_bytes, decision.received_bytes, decision.count), (hello.len() as u64, 7, 1));
}

#[tokio::test]
async fn names_without_a_rule_have_no_address_and_are_booked_once() {
    let world = Plan::default().start().await;
    for kind in [1, 28, 65, 1] {
        assert_eq!(world.look_up("evil.com", kind).await, (3, None));
    }
    assert_eq!(world.booked("evil.com", 443, Verdict::NotListed).await.count, 1);
    let (code, address) = world.look_up("a.com", 1).await;
    assert_eq!((code, address.map(|a| a.octets()[..2].to_vec())), (0, Some(vec![127, 64])), "a fake one");
    assert_eq!(world.look_up("a.com", 28).await, (0, None));
    assert_eq!(world.look_up("x.a.com", 1).await.0, 3);
}

#[tokio::test]
async fn addresses_that_mean_no_name_are_refused() {
    let world = Plan { rules: learning(), ..Plan::default() }.start().await;
    for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 64, 0, 9)] {
        let mut client = world.connect_to(address, 443).await;
        assert_reset(&mut client).await;
        world.booked(&address.to_string(), 443, Verdict::NotListed).await;
    }
}

#[tokio::test]
async fn a_name_is_allowed_on_the_ports_of_its_rules_only() {
    let world = Plan { rules: rules(&["c.com:8443"]), ..Plan::default() }.start().await;
    let mut client = world.connect("c.com", 443).await;
    assert_reset(&mut client).await;
    world.booked("c.com", 443, Verdict::NotListed).await;
    let mut client = world.connect("c.com", 8443).await;
    client.write_all(b"hi").await.expect("sent");
    read_exactly(&mut world.at_host().await, b"hi").await;
}

#[tokio::test]
async fn names_that_mean_private_addresses_are_refused() {
    let any_port = |ip: &str| SocketAddr::new(ip.parse::<IpAddr>().expect(ip), 9);
    let private = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1"].map(any_port).to_vec();
    let world = Plan {
        rules: rules(&["rebound.com", "meta.com"]),
        names: vec![("rebound.com", private), ("meta.com", vec![any_port("169.254.169.254")])],
        config: EgressConfig {
            private: rules(&["meta.com"]).allow.into_iter().map(Into::into).collect(),
            ..EgressConfig::default()
        },
    }
    .start()
    .await;
    for name in ["rebound.com", "meta.com"] {
        let mut client = world.connect(name, 443).await;
        client.write_all(&hello(name)).await.expect("sent");
        assert_reset(&mut client).await;
        world.booked(name, 443, Verdict::PrivateAddress).await;
    }
}

#[tokio::test]
async fn the_systems_own_name_is_found_and_refused() {
    // Through the resolver of this machine, whatever it has for the name: it is this machine.
    let service =
        Service::new(Arc::default(), rules(&["host.test"]), Arc::default(), FAKES, Resolver::System);
    let refused = soon(service.connect("localhost", 443, Verdict::Allowed)).await.expect_err("refused");
    assert_eq!(refused, service::Refusal::Verdict(Verdict::PrivateAddress));
}

#[tokio::test]
async fn learned_names_are_public_or_refused() {
    let world = Plan { rules: learning(), ..Plan::default() }.start().await;
    // `a.com` is a private name of the operator, and no rule names it.
    let mut client = world.connect("a.com", 443).await;
    client.write_all(&hello("a.com")).await.expect("sent");
    assert_reset(&mut client).await;
    world.booked("a.com", 443, Verdict::PrivateAddress).await;
    let mut client = world.connect("new.com", 22).await;
    assert_reset(&mut client).await;
    world.booked("new.com", 22, Verdict::NotListed).await;
    assert_eq!(world.look_up("localhost", 1).await.0, 3);
    assert_eq!(world.look_up("10.0.0.1", 1).await.0, 3);
}

#[tokio::test]
async fn tls_for_another_host_and_anything_but_tls_are_refused() {
    let world = Plan::default().start().await;
    for (said, verdict) in [
        (hello("evil.com"), Verdict::NameMismatch),
        (hello("10.0.0.1"), Verdict::NameMismatch),
        (b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n".to_vec(), Verdict::NotTls),
    ] {
        let mut client = world.connect("a.com", 443).await;
        client.write_all(&said).await.expect("sent");
        assert_reset(&mut client).await;
        world.booked("a.com", 443, verdict).await;
        // The connection to the host may have been made; nothing was said on it.
        let mut server = world.at_host().await;
        assert_eq!(soon(server.read(&mut [0; 1])).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn http_goes_on_with_the_checked_host_and_ends_after_one_request() {
    let world = Plan::default().start().await;
    let mut client = world.connect("a.com", 80).await;
    let two = "GET /1 HTTP/1.1\r\nHost: a.com\r\nProxy-X: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: evil.com\r\n\r\n";
    client.write_all(two.as_bytes()).await.expect("sent");
    let mut server = world.at_host().await;
    read_exactly(&mut server, b"GET /1 HTTP/1.1\r\nHost: a.com\r\nConnection: close\r\n\r\n").await;
    client.write_all(b"GET /3 HTTP/1.1\r\nHost: evil.com\r\n\r\n").await.expect("sent");
    client.shutdown().await.expect("shut");
    assert_eq!(soon(server.read(&mut [0; 1])).await.expect("an end"), 0, "no second request");
    server.write_all(b"answer").await.expect("sent");
    read_exactly(&mut client, b"answer").await;
    let mut client = world.connect("a.com", 80).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n").await.expect("sent");
    assert_reset(&mut client).await;
    world.booked("a.com", 80, Verdict::NameMismatch).await;
}

#[tokio::test]
async fn a_server_may_speak_first_where_it_is_neither_tls_nor_http() {
    let world = Plan::default().start().await;
    let mut client = world.connect("a.com", 22).await;
    let mut server = world.at_host().await;
    server.write_all(b"SSH-2.0-x\r\n").await.expect("sent");
    read_exactly(&mut client, b"SSH-2.0-x\r\n").await;
    client.write_all(b"SSH-2.0-y\r\n").await.expect("sent");
    read_exactly(&mut server, b"SSH-2.0-y\r\n").await;
    let mut hidden = world.connect("a.com", 22).await;
    let _server = world.at_host().await;
    hidden.write_all(&hello("evil.com")).await.expect("sent");
    assert_reset(&mut hidden).await;
    world.booked("a.com", 22, Verdict::NameMismatch).await;
}

#[tokio::test]
async fn one_side_may_end_before_the_other() {
    let world = Plan::default().start().await;
    let mut client = world.connect("a.com", 22).await;
    client.write_all(b"question").await.expect("sent");
    client.shutdown().await.expect("shut");
    let mut server = world.at_host().await;
    let mut question = String::new();
    soon(server.read_to_string(&mut question)).await.expect("the end of it");
    assert_eq!(question, "question");
    let long = vec![7; 1 << 20];
    let (sent, answer) = tokio::join!(
        async {
            server.write_all(&long).await?;
            server.shutdown().await
        },
        async {
            let mut answer = Vec::new();
            soon(client.read_to_end(&mut answer)).await.expect("the end of it");
            answer
        },
    );
    sent.expect("sent");
    assert!(answer == long);
    assert_eq!(world.booked("a.com", 22, Verdict::Allowed).await.received_bytes, 1 << 20);
}

#[tokio::test]
async fn a_reset_of_the_host_reaches_the_client() {
    let world = Plan::default().start().await;
    let mut client = world.connect("a.com", 22).await;
    relay::reset(world.at_host().await);
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn a_client_that_says_too_little_is_not_waited_for() {
    let mut plan = Plan::default();
    plan.config.head_timeout = Duration::from_millis(50);
    let world = plan.start().await;
    let mut client = world.connect("a.com", 443).await;
    client.write_all(&hello("a.com")[..20]).await.expect("sent");
    assert_reset(&mut client).await;
    world.booked("a.com", 443, Verdict::NotTls).await;
    let mut client = TcpStream::connect(world.proxy).await.expect("the door is open");
    client.write_all(b"CONNECT a.com").await.expect("sent");
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn an_idle_connection_ends() {
    let mut plan = Plan::default();
    plan.config.idle_timeout = Duration::from_millis(50);
    let world = plan.start().await;
    let mut client = world.connect("a.com", 22).await;
    let _server = world.at_host().await;
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_refused_until_one_ends() {
    let mut plan = Plan::default();
    plan.config.max_connections = 2;
    let world = plan.start().await;
    let mut first = world.connect("a.com", 22).await;
    let server = world.at_host().await;
    let _second = world.connect("a.com", 22).await;
    let _other = world.at_host().await;
    let mut third = world.connect("a.com", 22).await;
    assert_reset(&mut third).await;
    world.booked("a.com", 22, Verdict::OverLimit).await;
    let mut at_proxy = TcpStream::connect(world.proxy).await.expect("the door is open");
    assert_reset(&mut at_proxy).await;
    drop(server);
    // Its end arrives when the place is about to be free.
    assert_eq!(soon(first.read(&mut [0; 1])).await.unwrap_or(0), 0);
    drop(first);
    soon(async {
        loop {
            let mut again = world.connect("a.com", 22).await;
            if again.write_all(b"again").await.is_ok()
                && let Ok(Ok((mut server, _))) = timeout(Duration::from_millis(50), world.host.accept()).await
            {
                return read_exactly(&mut server, b"again").await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_above_the_daily_cap_end_the_connection_and_keep_others_out() {
    let mut plan = Plan::default();
    plan.config.max_daily_bytes = 100_000;
    let world = plan.start().await;
    let mut client = world.connect("a.com", 22).await;
    let mut server = world.at_host().await;
    let flood = async { while server.write_all(&[7; 8192]).await.is_ok() {} };
    let mut received = 0;
    let reading = async {
        let mut bytes = [0; 8192];
        while let Ok(1..) = client.read(&mut bytes).await.inspect(|n| received += n) {}
    };
    soon(async { tokio::join!(flood, reading) }).await;
    assert!(received <= 100_000, "{received}");
    world.booked("a.com", 22, Verdict::OverLimit).await;
    let mut client = world.connect("a.com", 443).await;
    assert_reset(&mut client).await;
    world.booked("a.com", 443, Verdict::OverLimit).await;
    assert!(world.at_proxy("CONNECT a.com:22 HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 429 "));
}

#[tokio::test]
async fn what_nobody_answers_is_unreachable() {
    let gone =
        tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let mut plan = Plan { names: vec![("b.com", vec![gone])], ..Plan::default() };
    plan.rules = rules(&["b.com", "nowhere.com:22"]);
    let world = plan.start().await;
    let mut client = world.connect("b.com", 443).await;
    client.write_all(&hello("b.com")).await.expect("sent");
    assert_reset(&mut client).await;
    world.booked("b.com", 443, Verdict::Unreachable).await;
    let mut client = world.connect("nowhere.com", 22).await;
    assert_reset(&mut client).await;
    world.booked("nowhere.com", 22, Verdict::Unreachable).await;
}

#[tokio::test]
async fn the_second_address_is_tried_when_the_first_does_not_answer() {
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let gone =
        tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let at = vec!["169.254.1.1:1".parse().expect("an address"), gone, host.local_addr().expect("bound")];
    let world =
        Plan { rules: rules(&["b.com"]), names: vec![("b.com", at)], ..Plan::default() }.start().await;
    let mut client = world.connect("b.com", 443).await;
    client.write_all(&hello("b.com")).await.expect("sent");
    soon(host.accept()).await.expect("a connection");
}

#[tokio::test]
async fn dropping_the_service_closes_its_connections() {
    let world = Plan::default().start().await;
    let mut client = world.connect("a.com", 22).await;
    let mut server = world.at_host().await;
    world.serving.abort();
    assert_eq!(soon(client.read(&mut [0; 1])).await.unwrap_or(0), 0);
    assert_eq!(soon(server.read(&mut [0; 1])).await.unwrap_or(0), 0);
    soon(async { while TcpStream::connect(world.proxy).await.is_ok() {} }).await;
}

#[tokio::test]
async fn the_proxy_makes_tunnels_and_checks_what_goes_through() {
    let world = Plan::default().start().await;
    let mut client = TcpStream::connect(world.proxy).await.expect("the door is open");
    // A hasty client sends its ClientHello along.
    let hasty =
        [b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n".as_slice(), &hello("a.com")].concat();
    client.write_all(&hasty).await.expect("sent");
    let mut server = world.at_host().await;
    read_exactly(&mut server, &hello("a.com")).await;
    server.write_all(b"welcome").await.expect("sent");
    read_exactly(&mut client, b"HTTP/1.1 200 Connection established\r\n\r\nwelcome").await;
    let mut fronted = TcpStream::connect(world.proxy).await.expect("the door is open");
    fronted.write_all(b"CONNECT a.com:443 HTTP/1.1\r\n\r\n").await.expect("sent");
    read_exactly(&mut fronted, b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    fronted.write_all(&hello("evil.com")).await.expect("sent");
    assert_reset(&mut fronted).await;
    world.booked("a.com", 443, Verdict::NameMismatch).await;
}

#[tokio::test]
async fn the_proxy_refuses_in_words() {
    let world = Plan::default().start().await;
    for (head, status, text) in [
        ("CONNECT evil.com:443 HTTP/1.1", "403", "allow with: claudemesh allow NAME evil.com:443"),
        ("CONNECT a.com:8443 HTTP/1.1", "403", "allow with: claudemesh allow NAME a.com:8443"),
        ("CONNECT 127.0.0.1:22 HTTP/1.1", "403", "127.0.0.1:22 is not allowed"),
        ("CONNECT [::1]:22 HTTP/1.1", "403", "is not allowed"),
        ("CONNECT u@a.com:443 HTTP/1.1", "400", "without a user"),
        ("GET http://169.254.169.254/ HTTP/1.0", "403", "is not allowed"),
        ("GET http://a.com:443/ HTTP/1.0", "403", "for TLS only"),
        ("GET / HTTP/1.1\r\nHost: a.com", "400", "this is a proxy"),
        ("GET https://a.com/ HTTP/1.0", "400", "the target must be"),
    ] {
        let answer = world.at_proxy(&format!("{head}\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{head}: {answer}"
        );
    }
    let mismatch = world.at_proxy("GET http://a.com/ HTTP/1.1\r\nHost: evil.com\r\n\r\n").await;
    assert!(mismatch.starts_with("HTTP/1.1 400 ") && mismatch.contains("Host is missing"), "{mismatch}");
    for address in ["127.0.0.1", "::1"] {
        world.booked(address, 22, Verdict::NotListed).await;
    }
    world.booked("evil.com", 443, Verdict::NotListed).await;
}

/// The proxy of a light jail, whose only host is `a.com`.
pub(crate) struct Light {
    at: SocketAddr,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) host: tokio::net::TcpListener,
    serving: JoinHandle<io::Result<()>>,
}

impl Light {
    async fn start() -> Self {
        let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let table = HashMap::from([("a.com".to_owned(), vec![host.local_addr().expect("bound")])]);
        let plan = Plan::default();
        let resolver = Resolver::Table(Arc::new(table));
        let egress = Egress { config: Arc::new(plan.config), range: FAKES, resolver };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("bound");
        let ledger = Arc::new(Ledger::default());
        let booked = ledger.clone();
        let serving =
            tokio::spawn(
                async move { egress.serve_proxy(listener, TOKEN.to_owned(), plan.rules, booked).await },
            );
        Self { at, ledger, host, serving }
    }

    async fn ask(&self, credentials: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.at).await.expect("the door is open");
        let head = format!("GET http://a.com/x HTTP/1.1\r\nHost: a.com\r\n{credentials}\r\n");
        client.write_all(head.as_bytes()).await.expect("sent");
        client
    }
}

impl Drop for Light {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tokio::test]
async fn a_light_jails_proxy_wants_the_token() {
    let light = Light::start().await;
    let wrong = "Proxy-Authorization: Basic c2VydmljZTp3cm9uZw==\r\n";
    for wrong in ["", wrong, "Proxy-Authorization: Bearer a-token\r\n"] {
        let mut answer = String::new();
        soon(light.ask(wrong).await.read_to_string(&mut answer)).await.expect("an answer");
        assert!(
            answer.starts_with("HTTP/1.1 407 ") && answer.contains("Proxy-Authenticate: Basic"),
            "{answer}"
        );
    }
    assert!(light.ledger.decisions().is_empty());
    // base64 of "service:a-token"
    let mut client = light.ask("Proxy-Authorization: Basic c2VydmljZTphLXRva2Vu\r\n").await;
    let (mut server, _) = soon(light.host.accept()).await.expect("a connection");
    read_exactly(&mut server, b"GET /x HTTP/1.1\r\nHost: a.com\r\nConnection: close\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("sent");
    drop(server);
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.expect("an answer");
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\n\r\n");
}

/// Runs a program with the variables that a light jail's server gets; `None`: it is not installed.
async fn run(proxy: SocketAddr, argv: &[&str]) -> Option<String> {
    let mut command = tokio::process::Command::new(argv[0]);
    let url = format!("http://service:{TOKEN}@{proxy}");
    command
        .args(&argv[1..])
        .env("http_proxy", &url)
        .env("https_proxy", &url)
        .env("no_proxy", "")
        .kill_on_drop(true);
    match soon(command.output()).await {
        Ok(output) => Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{}: {error}", argv[0]);
            println!("skipped: {}: {error}", argv[0]);
            None
        }
    }
}

#[tokio::test]
async fn curl_and_python_use_the_proxy_as_it_is() {
    let light = Light::start().await;
    let serve = async {
        loop {
            let (mut server, _) = light.host.accept().await.expect("a connection");
            let mut head = [0; 4096];
            let length = server.read(&mut head).await.expect("a request");
            assert!(String::from_utf8_lossy(&head[..length]).contains("Host: a.com\r\n"));
            server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome").await.expect("sent");
        }
    };
    let clients = async {
        let python = |url| format!("import urllib.request as r; print(r.urlopen({url:?}, timeout=5).read())");
        let (open, shut) = (python("http://a.com/"), python("https://evil.com/"));
        for argv in [&["curl", "-sS", "http://a.com/"][..], &["python3", "-c", &open]] {
            assert!(run(light.at, argv).await.is_none_or(|said| said.contains("welcome")), "{argv:?}");
        }
        for argv in [&["curl", "-sS", "https://evil.com/"][..], &["python3", "-c", &shut]] {
            assert!(run(light.at, argv).await.is_none_or(|said| said.contains("403")), "{argv:?}");
        }
    };
    tokio::select! {
        () = serve => unreachable!("it serves for ever"),
        () = clients => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn no_packet_stops_the_dns(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let world = Plan::default().start().await;
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            for packet in packets {
                socket.send_to(&packet, world.dns).await.expect("sent");
            }
            assert_eq!(world.look_up("a.com", 1).await.0, 0);
        });
    }
}
