//! What the way out costs: a new connection, and bytes through it, beside the loopback itself.
//!
//! `cargo run --release -p egress --example cost`
//!
//! Through the proxy of a light jail, because its listener needs no network namespace; the doors of a strict jail run the
//! same rules, checks and copying.

use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress::{Egress, EgressConfig, Ledger, Rules};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BYTES: usize = 1 << 30;
const CONNECTIONS: usize = 500;
/// base64 of `service:token`.
const CREDENTIALS: &str = "c2VydmljZTp0b2tlbg==";

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = host.local_addr()?.port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(answer(host));
    // Any name of this machine will do; this one is in every `/etc/hosts`, and no rule of a person can name it.
    let rule = wire::EgressRule { host: wire::egress::Host::Name("localhost".into()), port };
    let config = EgressConfig {
        private: vec![rule.clone().into()],
        max_daily_bytes: u64::MAX,
        ..EgressConfig::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let proxy = listener.local_addr()?.port();
    let rules = Rules { allow: vec![rule], ..Rules::default() };
    tasks.spawn(async move {
        let egress = Egress::new(config);
        let ledger = Arc::new(Ledger::default());
        if let Err(error) = egress.serve_proxy(listener, "token".to_owned(), rules, ledger).await {
            eprintln!("the proxy ended: {error}");
        }
    });
    for (way, at) in [("direct", port), ("egress", proxy), ("direct", port), ("egress", proxy)] {
        let tunnel = (at == proxy).then_some(port);
        let mut times = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let started = Instant::now();
            fetch(at, tunnel, 1).await?;
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let (p10, median) = (ms(times[CONNECTIONS / 10]), ms(times[CONNECTIONS / 2]));
        let started = Instant::now();
        fetch(at, tunnel, BYTES).await?;
        let rate = BYTES as f64 / started.elapsed().as_secs_f64() / 1e6;
        println!("{way}: new connection and one byte p10 {p10:.3} ms, median {median:.3} ms; {rate:.0} MB/s");
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Sends as many bytes as it is asked for.
async fn answer(host: tokio::net::TcpListener) {
    while let Ok((mut client, _)) = host.accept().await {
        let served: std::io::Result<()> = async {
            let block = vec![7; 256 << 10];
            let mut left = usize::try_from(client.read_u64().await?).unwrap_or(usize::MAX);
            while left > 0 {
                let now = left.min(block.len());
                client.write_all(&block[..now]).await?;
                left -= now;
            }
            client.shutdown().await
        }
        .await;
        if let Err(error) = served {
            eprintln!("a connection ended: {error}");
        }
    }
}

/// `tunnel`: the port behind the proxy at `at`.
async fn fetch(at: u16, tunnel: Option<u16>, bytes: usize) -> Outcome<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", at)).await?;
    if let Some(port) = tunnel {
        let head =
            format!("CONNECT localhost:{port} HTTP/1.1\r\nProxy-Authorization: Basic {CREDENTIALS}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut line = [0; 39];
        stream.read_exact(&mut line).await?;
        if !line.starts_with(b"HTTP/1.1 200 ") {
            return Err("the proxy refused".into());
        }
    }
    stream.write_u64(bytes as u64).await?;
    let (mut left, mut buffer) = (bytes, vec![0; 256 << 10]);
    while left > 0 {
        match stream.read(&mut buffer).await? {
            0 => return Err("it ended early".into()),
            n => left -= n,
        }
    }
    Ok(())
}
