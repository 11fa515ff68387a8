//! A filtered network: every connection of a server arrives at the runner, or nowhere.
//!
//! Here: real clients in the jail, this test as the runner that holds the listeners. Not here: answering by name (crate
//! `egress`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use jail::{Ending, JailSpec, Listeners, Network, Report, Step};
use support::findings::*;
use support::world::*;
use support::*;

fn filtered(ports: &[u16]) -> impl FnOnce(&mut JailSpec) + use<> {
    let ports = ports.to_vec();
    |spec| strict(spec).network = Network::Filtered { ports }
}

/// Up to the step that makes them.
fn listeners(run: &mut Run) -> Listeners {
    loop {
        match run.next() {
            Some(Report::Step { name: Step::Network }) => break,
            Some(Report::Step { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let listeners = run.jailed().take_listeners().expect("they come with the step");
    assert!(run.jailed().take_listeners().is_none(), "once");
    listeners
}

fn accepted(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    readable(listener.as_fd(), Instant::now() + LIMIT);
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let meant = stream.local_addr().unwrap();
    (stream, meant)
}

fn door(listeners: &Listeners, port: u16) -> &TcpListener {
    &listeners.ports.iter().find(|(of, _)| *of == port).unwrap().1
}

/// As this process's user and, when that is root, as an ordinary one.
fn users() -> Vec<Option<u32>> {
    if nix::unistd::getuid().is_root() { vec![None, Some(1000)] } else { vec![None] }
}

#[test]
fn a_connection_arrives_with_the_address_that_was_meant_and_any_other_fails_at_once() {
    let Some(python) = system("python3") else { return };
    let script = "import errno, socket, time\n\
        def attempt(family, kind, address):\n\
        \x20   started = time.monotonic()\n\
        \x20   try:\n\
        \x20       with socket.socket(family, kind) as s: s.connect(address); s.send(b'x')\n\
        \x20       word = 'in'\n\
        \x20   except OSError as error: word = errno.errorcode[error.errno]\n\
        \x20   print(word if time.monotonic() - started < 1 else 'late', flush=True)\n\
        with socket.create_connection(('11.198.0.5', 443)) as s:\n\
        \x20   s.sendall(b'hello')\n\
        \x20   print(s.recv(16).decode(), flush=True)\n\
        tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM\n\
        attempt(socket.AF_INET, tcp, ('8.8.8.8', 443))\n\
        attempt(socket.AF_INET, tcp, ('169.254.169.254', 80))\n\
        attempt(socket.AF_INET, udp, ('10.0.0.1', 53))\n\
        attempt(socket.AF_INET6, tcp, ('2001:4860:4860::8888', 443))\n\
        attempt(socket.AF_INET, tcp, ('11.198.0.5', 22))\n\
        attempt(socket.AF_INET, tcp, ('198.20.0.5', 443))\n\
        attempt(socket.AF_INET6, tcp, ('::1', 443))\n";
    for user in users() {
        let world = World::new();
        let argv = vec![python.clone(), "-c".into(), script.into()];
        let mut run = start_strict(&world, argv, user, filtered(&[443, 80, 443]));
        let listeners = listeners(&mut run);
        assert_eq!(listeners.ports.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [80, 443], "each once");
        let (mut stream, meant) = accepted(door(&listeners, 443));
        assert_eq!(meant, "11.198.0.5:443".parse().unwrap());
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        stream.write_all(b"answer").unwrap();
        drop(stream);
        let said: Vec<_> = (0..8).map(|_| run.line()).collect();
        let (away, shut) = ("ENETUNREACH", "ECONNREFUSED");
        assert_eq!(said, ["answer", away, away, away, away, shut, away, shut], "{user:?}");
        assert_eq!(run.gone().ending, Ending::Code(0));
    }
}

#[test]
fn a_name_is_asked_for_at_the_runner_and_the_proxys_port_may_be_a_rules_too() {
    let Some(python) = system("python3") else { return };
    let script = "import socket\n\
        print(socket.getaddrinfo('name.test', 3128, socket.AF_INET, socket.SOCK_STREAM)[0][4][0], flush=True)\n\
        a = socket.create_connection(('11.199.255.255', 3128)); b = socket.create_connection(('127.0.0.1', 3128))\n\
        input()\n";
    for user in users() {
        let world = World::new();
        let argv = vec![python.clone(), "-c".into(), script.into()];
        let mut run = start_strict(&world, argv, user, filtered(&[3128, 53]));
        let listeners = listeners(&mut run);
        assert_eq!(listeners.dns.local_addr().unwrap(), "127.0.0.1:53".parse().unwrap());
        readable(listeners.dns.as_fd(), Instant::now() + LIMIT);
        let mut query = [0; 512];
        let (length, client) = listeners.dns.recv_from(&mut query).unwrap();
        assert!(query[..length].windows(11).any(|part| part == b"\x04name\x04test\0"));
        // The question back as an answer with one address.
        let mut answer = query[..length].to_vec();
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        answer[8..12].fill(0);
        answer.truncate(12 + 11 + 4);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 11, 198, 0, 9]);
        listeners.dns.send_to(&answer, client).unwrap();
        assert_eq!(run.line(), "11.198.0.9");
        let (_a, meant) = accepted(door(&listeners, 3128));
        assert_eq!(meant, "11.199.255.255:3128".parse().unwrap());
        let (_b, meant) = accepted(&listeners.proxy);
        assert_eq!(meant, (Ipv4Addr::LOCALHOST, 3128).into());
        run.say("\n");
        assert_eq!(run.gone().ending, Ending::Code(0));
    }
}

#[test]
fn nobody_inside_holds_a_listener_and_nothing_else_listens() {
    let ports: Vec<u16> = (8001..=8128).collect();
    let world = World::new();
    let script = "cat /proc/net/tcp /proc/net/udp /proc/net/tcp6 /proc/net/udp6 | grep -c ' 0A \\| 07 '; ls -l /proc/self/fd; read l";
    let mut run = start_strict(&world, sh(script), None, filtered(&ports));
    let listeners = listeners(&mut run);
    assert_eq!(listeners.ports.len(), 128);
    let server = run.started();
    assert_eq!(run.line(), "130", "128 ports, DNS and the proxy");
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    let init = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let sockets = |pid: &str| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    if nix::unistd::getuid().is_root() {
        assert_eq!((sockets(&server.to_string()), sockets(&init)), (0, 1), "init has the tie alone");
        let helper = run.jailed().helper_pid().to_string();
        assert_eq!(sockets(&helper), 2, "the control socket and the tie");
    }
    run.say("\n");
    run.output();
    run.gone();
    drop(listeners);
}

#[test]
fn without_the_runner_a_connection_is_refused_and_a_port_of_the_view_can_not_be_taken() {
    let Some(python) = system("python3") else { return };
    let script = "import errno, socket\n\
        def attempt(act):\n\
        \x20   try: act(); print('done', flush=True)\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno], flush=True)\n\
        def listen(port, shared=False):\n\
        \x20   s = socket.socket()\n\
        \x20   if shared: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
        \x20   s.bind(('0.0.0.0', port)); s.listen(); kept.append(s)\n\
        kept = []\n\
        attempt(lambda: listen(8080)); attempt(lambda: listen(8080, True)); attempt(lambda: listen(80)); attempt(lambda: listen(8081))\n\
        input()\n\
        attempt(lambda: socket.create_connection(('11.198.0.1', 8080)))\n";
    let world = World::new();
    let mut run = start_strict(&world, vec![python, "-c".into(), script.into()], None, filtered(&[8080]));
    let listeners = listeners(&mut run);
    let said: Vec<_> = (0..4).map(|_| run.line()).collect();
    assert_eq!(said, ["EADDRINUSE", "EADDRINUSE", "EACCES", "done"]);
    drop(listeners);
    run.say("\n");
    assert_eq!(run.line(), "ECONNREFUSED");
    run.gone();
}

#[test]
fn an_unmodified_node_fetch_comes_out_at_the_door() {
    let Some(node) = system("node") else { return };
    let script = "fetch('http://11.198.0.7/path').then((r) => r.text()).then((t) => console.log(t))";
    let world = World::new();
    let mut run = start_strict(&world, vec![node, "-e".into(), script.into()], None, filtered(&[80, 443]));
    let listeners = listeners(&mut run);
    let (mut stream, meant) = accepted(door(&listeners, 80));
    assert_eq!(meant.to_string(), "11.198.0.7:80");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"GET /path HTTP/1.1\r\n"));
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
    assert_eq!(run.line(), "hello");
    run.gone();
}

#[test]
fn hostile_python_gets_nothing_by_a_filtered_network() {
    let Some(python) = system("python3").filter(|_| cfg!(target_arch = "x86_64")) else { return };
    for user in users() {
        let world = World::of(user);
        let file = world.path("code/probe.py").to_str().unwrap().to_owned();
        let mut run = start_strict(&world, vec![python.clone(), file], user, filtered(&[80, 443]));
        let listeners = listeners(&mut run);
        let found = findings(&mut run);
        assert_eq!(of_verdict(&found, "LEAK"), [], "leaks");
        assert_eq!(of_verdict(&found, "BROKEN"), [], "broken for honest servers");
        assert!(found.len() >= 150, "{} probes only", found.len());
        drop(listeners);
    }
}

#[test]
fn other_networks_have_no_listeners() {
    let world = World::new();
    for network in [Network::None, Network::Host] {
        let mut run = start_strict(&world, sh(":"), None, |spec| strict(spec).network = network);
        run.started();
        assert!(run.jailed().take_listeners().is_none());
        run.gone();
    }
}
