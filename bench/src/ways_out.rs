//! What a connection costs that leaves a strict jail by name, through the runner's side of it, against one over the
//! loopback without a jail; and how much goes through.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress::{Doors, Egress, EgressConfig, Ledger, Rules};
use jail::{Report, Step};
use tokio::task::JoinSet;
use wire::EgressRule;

use crate::cells::{Cell, Ground, Kind};
use crate::figures::{Samples, Table, time, verdict};

const ROUNDS: usize = 60;
const PER_ROUND: usize = 10;
const BULKS: usize = 5;
const BULK_BYTES: usize = 400_000_000;
const CHUNK: usize = 64 << 10;

/// The program that connects, in a jail or not: a path a line in, nanoseconds and bytes a line out.
struct Fetcher<W, R> {
    orders: W,
    answers: BufReader<R>,
}

/// # Errors
/// When a jail can't be built here, or no name but `localhost` means the loopback.
pub fn run(binary: &Path) -> Result<()> {
    let (name, address) = loopback_name()?;
    let target = TcpListener::bind(address)?;
    let port = target.local_addr()?.port();
    std::thread::spawn(move || serve(&target));
    let ground = Ground::new(binary)?;
    // Not where it was built: a jail that sees that directory would see too much.
    let program = ground.path().join("fetch");
    std::fs::copy(std::env::current_exe()?.with_file_name("fetch"), &program)
        .context("the program `fetch` is missing beside this one")?;

    let rule = EgressRule::parse(&format!("{name}:{port}"))?;
    let config = EgressConfig { private: vec![rule.clone().into()], ..EgressConfig::default() };
    let rules = Rules { allow: vec![rule], ..Rules::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let argv = [&*program.to_string_lossy(), &*name, &port.to_string()];
    let mut cell = ground.open(Kind::Strict, 0, &argv, std::slice::from_ref(&program), &rules.ports())?;
    cell.until(|report| *report == Report::Step { name: Step::Network })?;
    let sockets = cell.listeners()?;
    let doors = Doors { dns: sockets.dns, proxy: sockets.proxy, ports: sockets.ports };
    let mut serving = JoinSet::new();
    let egress = Egress::new(config);
    serving.spawn_on(
        async move { egress.serve(doors, rules, Arc::new(Ledger::default())).await },
        runtime.handle(),
    );
    cell.started()?;

    let mut child = Command::new(&program)
        .args([address.ip().to_string(), port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let measured = measure(&mut direct(&mut child)?, &mut jailed(&cell)?);
    child.kill()?;
    child.wait()?;
    cell.end()?;
    serving.abort_all();
    measured
}

fn direct(child: &mut Child) -> Result<Fetcher<impl std::io::Write + use<>, impl std::io::Read + use<>>> {
    let answers = BufReader::new(child.stdout.take().context("no stdout")?);
    Ok(Fetcher { orders: child.stdin.take().context("no stdin")?, answers })
}

fn jailed(cell: &Cell) -> Result<Fetcher<impl std::io::Write + use<>, impl std::io::Read + use<>>> {
    Ok(Fetcher { orders: cell.stdin.try_clone()?, answers: BufReader::new(cell.stdout.try_clone()?) })
}

impl<W: std::io::Write, R: std::io::Read> Fetcher<W, R> {
    fn get(&mut self, path: &str, expected: usize) -> Result<Duration> {
        writeln!(self.orders, "{path}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let (nanos, bytes) = line.trim().split_once(' ').with_context(|| format!("fetch said: {line}"))?;
        ensure!(bytes.parse::<usize>()? == expected, "{bytes} bytes came, not {expected}");
        Ok(Duration::from_nanos(nanos.parse()?))
    }
}

fn measure<A: std::io::Write, B: std::io::Read, C: std::io::Write, D: std::io::Read>(
    direct: &mut Fetcher<A, B>,
    jailed: &mut Fetcher<C, D>,
) -> Result<()> {
    let (mut alone, mut through) = (Samples::default(), Samples::default());
    for round in 0..=ROUNDS {
        for _ in 0..PER_ROUND {
            let times = (direct.get("/small", 2)?, jailed.get("/small", 2)?);
            // The first round warms both sides and is not counted.
            if round > 0 {
                alone.push(times.0);
                through.push(times.1);
            }
        }
    }
    let mut table = Table::new(
        "New connection and GET, name looked up each time",
        &["", "direct", "through egress", "added", "goal", "met"],
    );
    let goal = Duration::from_millis(1);
    for (label, share) in [("p10", 0.10), ("p50", 0.50), ("p99", 0.99)] {
        let (alone, through) = (alone.percentile(share), through.percentile(share));
        let added = through.saturating_sub(alone);
        let (goal, met) = match label {
            "p10" => (format!("added ≤ {}", time(goal)), verdict(added <= goal)),
            _ => Default::default(),
        };
        table.row([label.to_owned(), time(alone), time(through), time(added), goal, met]);
    }
    table.print();
    bulk(direct, jailed)
}

fn bulk<A: std::io::Write, B: std::io::Read, C: std::io::Write, D: std::io::Read>(
    direct: &mut Fetcher<A, B>,
    jailed: &mut Fetcher<C, D>,
) -> Result<()> {
    let (mut alone, mut through) = (Samples::default(), Samples::default());
    for _ in 0..BULKS {
        alone.push(direct.get("/bulk", BULK_BYTES)?);
        through.push(jailed.get("/bulk", BULK_BYTES)?);
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = |samples: &Samples| BULK_BYTES as f64 / samples.p50().as_secs_f64() / 1e6;
    let (alone, through) = (rate(&alone), rate(&through));
    let title = format!("400 MB in one answer, median of {BULKS}");
    let mut table = Table::new(&title, &["direct", "through egress", "ratio", "goal", "met"]);
    table.row([
        format!("{alone:.0} MB/s"),
        format!("{through:.0} MB/s"),
        format!("{:.2}", through / alone),
        "≥ 500 MB/s".into(),
        verdict(through >= 500.0),
    ]);
    table.print();
    Ok(())
}

/// A name that rules may have and that means the loopback, and nothing else, on this machine.
fn loopback_name() -> Result<(String, SocketAddr)> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or(""));
    let named = lines.flat_map(|line| line.split_whitespace().skip(1));
    for name in own.split_whitespace().chain(named) {
        let Ok(addresses) = (name, 0).to_socket_addrs() else { continue };
        let addresses: Vec<SocketAddr> = addresses.collect();
        let is_local = addresses.iter().all(|address| address.ip().is_loopback());
        if let Some(first) = addresses.first().filter(|_| is_local && EgressRule::parse(name).is_ok()) {
            return Ok((name.to_owned(), *first));
        }
    }
    anyhow::bail!("no name but localhost means the loopback here: add `127.0.0.1 bench` to /etc/hosts")
}

/// Until the process ends.
fn serve(target: &TcpListener) {
    for connection in target.incoming().flatten() {
        std::thread::spawn(move || answer(connection));
    }
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut bytes = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read(&mut bytes)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&bytes[..n]),
        }
    }
    let is_bulk = head.starts_with(b"GET /bulk ");
    let length = if is_bulk { BULK_BYTES } else { 2 };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let chunk = [b'x'; CHUNK];
    let mut left = length;
    connection.write_all(head.as_bytes())?;
    while left > 0 {
        let part = left.min(CHUNK);
        connection.write_all(&chunk[..part])?;
        left -= part;
    }
    Ok(())
}
