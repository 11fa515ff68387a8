//! `claudemesh mcp --service` as its MCP clients meet it: how soon it lists, what it weighs, what a call through it costs more than
//! one over the server's own pipes.
//!
//! Here: the three figures and twenty sessions with ten services each. Not here: a call without a proxy (`calls`).
//! Invariant: each time is measured in turns with that of the bare server.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use client::{CallOptions, Connection};
use wire::RawJson;
use wire::peer::mesh::{ListPeers, PeersList};

use crate::direct::{Direct, Recipe};
use crate::figures::{Samples, Table, time, verdict};
use crate::stage::Stage;

const STARTS: usize = 40;
const ROUNDS: usize = 20;
const PER_ROUND: usize = 250;
const SESSIONS: usize = 20;
const SERVICES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);
/// What start-up allocated is given back, and what the first calls touch is touched.
const SETTLE: Duration = Duration::from_secs(2);
const CALL: &str = r#"{"name":"echo","arguments":{"message":"hello mesh"}}"#;

/// # Errors
/// When the platform or a proxy fails.
pub async fn run(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    for n in 0..SERVICES {
        stage.deploy_echo(&service(n)).await?;
    }
    let connection = stage.connect().await?;
    let pid = stage.status(&connection, &service(0)).await?.pid;
    let bare = Recipe::of_process(i64::from(pid.unwrap_or_default()))?;
    first_lists(&stage, &bare)?;
    calls(&stage, &connection, &bare).await?;
    one_session(&stage).await?;
    many_sessions(&stage, &connection).await?;
    stage.down().await
}

fn service(n: usize) -> String {
    format!("echo{n}")
}

/// From the start of the process to the answer of `tools/list`.
fn first_list(recipe: &Recipe) -> Result<(Direct, Duration)> {
    let since = Instant::now();
    let mut server = Direct::start(recipe)?;
    server.request("tools/list", "{}")?;
    Ok((server, since.elapsed()))
}

fn first_lists(stage: &Stage, bare: &Recipe) -> Result<()> {
    let (mut direct, mut first, mut joined) = (Samples::default(), Samples::default(), Samples::default());
    let (_holder, _) = first_list(&stage.proxy(&service(1), "held"))?;
    for start in 0..=STARTS {
        let (_, bare) = first_list(bare)?;
        let (_, alone) = first_list(&stage.proxy(&service(0), &format!("alone-{start}")))?;
        let (_, beside) = first_list(&stage.proxy(&service(0), "held"))?;
        // The first one warms the caches and is not counted.
        if start > 0 {
            direct.push(bare);
            first.push(alone);
            joined.push(beside);
        }
    }
    let head = ["first `tools/list` from the start of the process", "p50", "p99", "goal", "met"];
    let mut table = Table::new("claudemesh mcp --service: start", &head);
    table.row([
        "the server itself".to_owned(),
        time(direct.p50()),
        time(direct.p99()),
        String::new(),
        String::new(),
    ]);
    let rows = [("first process of a session", &first), ("a further process of a session", &joined)];
    for (label, samples) in rows {
        let met = verdict(samples.p50() <= Duration::from_millis(50));
        table.row([
            label.to_owned(),
            time(samples.p50()),
            time(samples.p99()),
            "p50 ≤ 50 ms".to_owned(),
            met,
        ]);
    }
    table.print();
    Ok(())
}

/// One at a time: over the server's pipes, over a peer's own socket, through a proxy that holds the session's link, and through
/// one beside it.
async fn calls(stage: &Stage, connection: &Connection, bare: &Recipe) -> Result<()> {
    let mut bare = Direct::start(bare)?;
    let mut holder = Direct::start(&stage.proxy(&service(0), "calls"))?;
    holder.request("tools/call", CALL)?;
    let mut joiner = Direct::start(&stage.proxy(&service(0), "calls"))?;
    let args: RawJson = serde_json::from_str(r#"{"message":"hello mesh"}"#)?;
    let mut taken: [Samples; 4] = std::array::from_fn(|_| Samples::default());
    for round in 0..=ROUNDS {
        for (way, samples) in taken.iter_mut().enumerate() {
            for _ in 0..PER_ROUND {
                let since = Instant::now();
                match way {
                    0 => bare.request("tools/call", CALL)?,
                    1 => {
                        let options = CallOptions::default();
                        let answer =
                            connection.call_raw(&service(0), "echo", Some(args.clone()), options).await?;
                        ensure!(answer.result.is_some(), "{:?}", answer.error);
                    }
                    2 => holder.request("tools/call", CALL)?,
                    _ => joiner.request("tools/call", CALL)?,
                }
                // The first round warms all sides and is not counted.
                if round > 0 {
                    samples.push(since.elapsed());
                }
            }
        }
    }
    report(&taken);
    Ok(())
}

fn report(taken: &[Samples; 4]) {
    let head = ["tool call, native echo server", "p10", "p50", "p99", "added, p50", "ratio", "goal", "met"];
    let mut table = Table::new("claudemesh mcp --service: calls, one at a time", &head);
    let rows = [
        ("direct stdio", None),
        ("peer socket, no proxy", Some(150)),
        ("proxy that holds the session's link", Some(250)),
        ("proxy beside it", Some(250)),
    ];
    for ((label, goal), samples) in rows.into_iter().zip(taken) {
        let mut cells = vec![label.to_owned()];
        cells.extend([0.1, 0.5, 0.99].map(|share| time(samples.percentile(share))));
        if let Some(goal) = goal {
            let (alone, here) = (taken[0].p50(), samples.p50());
            let added = here.saturating_sub(alone);
            let ratio = format!("{:.1}", here.as_secs_f64() / alone.as_secs_f64());
            let met = verdict(added <= Duration::from_micros(goal));
            cells.extend([time(added), ratio, format!("added ≤ {goal} µs"), met]);
        } else {
            cells.extend(std::iter::repeat_n(String::new(), 4));
        }
        table.row(cells);
    }
    table.print();
}

/// What is resident of a process, in KiB.
#[derive(Clone, Copy, Default)]
struct Weight {
    all: u64,
    /// Pages that others have, too, by share.
    share: u64,
    anonymous: u64,
}

impl Weight {
    fn of(pid: u32) -> Result<Self> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| -> Result<u64> {
            let line =
                rollup.lines().find(|line| line.starts_with(name)).context("a line of smaps_rollup")?;
            Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
        };
        Ok(Self { all: field("Rss:")?, share: field("Pss:")?, anonymous: field("Anonymous:")? })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            share: self.share + other.share,
            anonymous: self.anonymous + other.anonymous,
        }
    }
}

fn megabytes(kib: u64) -> String {
    // What /proc calls kB are KiB.
    let tenths = kib * 1024 / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// The proxies of one session, each after a list and a call.
fn session(stage: &Stage, name: &str) -> Result<Vec<Direct>> {
    let mut proxies = Vec::with_capacity(SERVICES);
    for n in 0..SERVICES {
        let (mut proxy, _) = first_list(&stage.proxy(&service(n), name))?;
        proxy.request("tools/call", CALL)?;
        proxies.push(proxy);
    }
    Ok(proxies)
}

fn weights(proxies: &[Direct]) -> Result<Vec<Weight>> {
    proxies.iter().map(|proxy| Weight::of(proxy.pid())).collect()
}

async fn one_session(stage: &Stage) -> Result<()> {
    let proxies = session(stage, "ten")?;
    tokio::time::sleep(SETTLE).await;
    let weights = weights(&proxies)?;
    let head =
        ["proxies of one session", "resident", "of it files", "of it anonymous", "by share", "goal", "met"];
    let mut table = Table::new("claudemesh mcp --service: memory", &head);
    let row = |label: &str, weight: Weight| {
        let files = weight.all - weight.anonymous;
        let cells = [weight.all, files, weight.anonymous, weight.share].map(megabytes);
        [label.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let others = weights.iter().skip(1).copied();
    let heaviest = others.max_by_key(|weight| weight.all).context("more than one proxy")?;
    for (label, weight) in [("the first, which holds the link", weights[0]), ("the heaviest other", heaviest)]
    {
        let met = verdict(weight.all * 1024 <= 8_000_000);
        table.row(row(label, weight).into_iter().chain(["resident ≤ 8 MB".to_owned(), met]));
    }
    let sum = weights.into_iter().fold(Weight::default(), Weight::plus);
    table.row(row("ten together", sum).into_iter().chain([String::new(), String::new()]));
    table.print();
    Ok(())
}

async fn many_sessions(stage: &Stage, connection: &Connection) -> Result<()> {
    let mut proxies = Vec::new();
    for n in 0..SESSIONS {
        proxies.extend(session(stage, &format!("many-{n}"))?);
    }
    tokio::time::sleep(SETTLE).await;
    let presences = presences(connection, "many-", SESSIONS).await?;
    let servers = stage.echo_servers()?;
    let sum = weights(&proxies)?.into_iter().fold(Weight::default(), Weight::plus);
    let head = [
        "sessions × services",
        "proxies",
        "server processes",
        "presences",
        "resident, summed",
        "by share, summed",
        "anonymous, summed",
        "met",
    ];
    let mut table = Table::new("Sessions that share services", &head);
    table.row([
        format!("{SESSIONS} × {SERVICES}"),
        proxies.len().to_string(),
        servers.to_string(),
        presences.to_string(),
        megabytes(sum.all),
        megabytes(sum.share),
        megabytes(sum.anonymous),
        verdict(servers == SERVICES && presences == SESSIONS),
    ]);
    table.print();
    Ok(())
}

/// Sessions of this name that are online; waits until they are as many as there should be, and no longer than is patient.
async fn presences(connection: &Connection, prefix: &str, wanted: usize) -> Result<usize> {
    let end = Instant::now() + PATIENCE;
    loop {
        let list: PeersList = connection.request(&ListPeers {}).await?;
        let count = list.peers.iter().filter(|peer| peer.session_id.starts_with(prefix)).count();
        if count == wanted || Instant::now() > end {
            return Ok(count);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
