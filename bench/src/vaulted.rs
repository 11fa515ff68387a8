//! What secrets cost: at the start of a service, in the results of its calls, and when the mesh's keys are exchanged.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use client::connection::DeployEvent;
use client::{CallOptions, Connection, MeshVault};
use serde::Serialize;
use wire::RawJson;
use wire::peer::Body;
use wire::peer::hosting::{McpDeployStatus, McpStart, McpStop};
use wire::vault::{EntryKind, VaultName};

use crate::figures::{Samples, Table, time, verdict};
use crate::stage::Stage;

const REFERENCES: usize = 50;
const STARTS: usize = 60;
/// Services of each kind that sleep at the same time; a sleep takes ten seconds at least.
const SLEEPERS: usize = 6;
const WAKES: usize = 8;
const HELLO: &str = r#"{"message":"hello mesh"}"#;
const MASKED: usize = 5;
const ENTRIES: usize = 1000;
const ROTATIONS: usize = 5;
const LARGE: usize = 1 << 20;

/// # Errors
/// When the platform fails, a call fails while keys are exchanged, or a mask is missing.
pub async fn run(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    let connection = stage.connect().await?;
    let mut vault = stage.vault(&connection).await?;
    fill(&mut vault, 0..REFERENCES).await?;
    wakes(&stage, &connection).await?;
    starts(&connection).await?;
    masking(&stage, &connection).await?;
    fill(&mut vault, REFERENCES..ENTRIES).await?;
    rotations(&stage, &connection).await?;
    connection.close().await;
    stage.down().await
}

/// As long as many tokens are.
fn value(n: usize) -> String {
    format!("claudemesh-bench-secret-number-{n:09}")
}

async fn fill(vault: &mut MeshVault<'_>, numbers: std::ops::Range<usize>) -> Result<()> {
    for n in numbers {
        vault.set(&VaultName::parse(&format!("key{n}"))?, EntryKind::Env, value(n).as_bytes()).await?;
    }
    Ok(())
}

/// `--env` for each of the first `n` entries.
fn referring(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("--env=VALUE_{n}=$vault:key{n}")).collect()
}

/// Services of one kind, of which the first stays after the wakes.
struct Kind {
    label: &'static str,
    name: &'static str,
    env: Vec<String>,
}

impl Kind {
    fn all() -> [Self; 3] {
        let plain = (0..REFERENCES).map(|n| format!("--env=VALUE_{n}={}", value(n))).collect();
        [
            Self { label: "no variables", name: "none", env: Vec::new() },
            Self { label: "50 plain values", name: "plain", env: plain },
            Self { label: "50 vault references", name: "sealed", env: referring(REFERENCES) },
        ]
    }

    fn nth(&self, n: usize) -> String {
        format!("{}{n}", self.name)
    }
}

/// A call wakes a service that sleeps: what the runner alone does.
async fn wakes(stage: &Stage, connection: &Connection) -> Result<()> {
    let kinds = Kind::all();
    for kind in &kinds {
        let flags = [&kind.env[..], &["--idle-stop=10s".to_owned()]].concat();
        for n in 0..SLEEPERS {
            stage.deploy_echo_with(&kind.nth(n), &flags).await?;
        }
    }
    let mut times: [Samples; 3] = Default::default();
    let args: RawJson = serde_json::from_str(HELLO)?;
    for _ in 0..WAKES {
        for n in 0..SLEEPERS {
            for (kind, samples) in kinds.iter().zip(&mut times) {
                let name = kind.nth(n);
                while stage.status(connection, &name).await?.phase != "idle" {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let since = Instant::now();
                ensure_echoed(&call(connection, &name, "echo", &args).await?)?;
                samples.push(since.elapsed());
            }
        }
    }
    for kind in &kinds {
        for n in 1..SLEEPERS {
            stage.run(&["rm", &kind.nth(n)]).await?;
        }
    }
    report("Call that wakes a sleeping service, until it is answered", &kinds, &times);
    Ok(())
}

/// From the broker's wish on: it looks up what the service is given, too.
async fn starts(connection: &Connection) -> Result<()> {
    let kinds = Kind::all();
    let mut times: [Samples; 3] = Default::default();
    for round in 0..=STARTS {
        for (kind, samples) in kinds.iter().zip(&mut times) {
            end(connection, &McpStop { server_name: kind.nth(0) }, "stopped").await?;
            let since = Instant::now();
            end(connection, &McpStart { server_name: kind.nth(0) }, "running").await?;
            // The first round warms all and is not counted.
            if round > 0 {
                samples.push(since.elapsed());
            }
        }
    }
    report("`start` of a stopped service, until it runs", &kinds, &times);
    Ok(())
}

fn report(title: &str, kinds: &[Kind; 3], times: &[Samples; 3]) {
    let mut table = Table::new(title, &["", "p10", "p50", "added, p10", "added, p50", "goal", "met"]);
    let goal = Duration::from_millis(5);
    for (n, (kind, samples)) in kinds.iter().zip(times).enumerate() {
        let added = |share| samples.percentile(share).saturating_sub(times[0].percentile(share));
        let (goal, met) = match n {
            2 => (format!("added ≤ {}", time(goal)), verdict(added(0.5) <= goal)),
            _ => Default::default(),
        };
        let (low, middle) = (time(samples.percentile(0.1)), time(samples.p50()));
        table.row([kind.label.to_owned(), low, middle, time(added(0.1)), time(added(0.5)), goal, met]);
    }
    table.print();
}

/// Follows a wish to its end, which must be this one.
async fn end<B: Body + Serialize>(connection: &Connection, wish: &B, wanted: &str) -> Result<()> {
    let mut stream = connection.deploy(wish).await?;
    loop {
        if let DeployEvent::Done(McpDeployStatus { status, error, .. }) = stream.next().await? {
            ensure!(status == wanted, "{status} instead of {wanted}: {error:?}");
            return Ok(());
        }
    }
}

async fn masking(stage: &Stage, connection: &Connection) -> Result<()> {
    let mut env = referring(MASKED);
    stage.deploy_echo_with("masked", &env).await?;
    env.push("--unmasked-results".to_owned());
    stage.deploy_echo_with("open", &env).await?;
    let telling = format!(r#"{{"message":"{}"}}"#, value(0));
    let shown = call(connection, "open", "echo", &serde_json::from_str(&telling)?).await?;
    let hidden = call(connection, "masked", "echo", &serde_json::from_str(&telling)?).await?;
    ensure!(shown.contains(&value(0)) && !hidden.contains(&value(0)), "{shown} {hidden}");

    let head = ["result", "unmasked, p50", "masked, p50", "added, p10", "added, p50"];
    let mut table = Table::new(&format!("Tool call, masking of {MASKED} secrets in its result"), &head);
    let fill = format!(r#"{{"bytes":{LARGE}}}"#);
    for (label, tool, args, rounds, per_round) in
        [("26 bytes", "echo", HELLO, 20, 250), ("1 MiB", "fill", &fill, 40, 5)]
    {
        let args: RawJson = serde_json::from_str(args)?;
        let (mut open, mut masked) = (Samples::default(), Samples::default());
        for round in 0..=rounds {
            for (service, samples) in [("open", &mut open), ("masked", &mut masked)] {
                for _ in 0..per_round {
                    let since = Instant::now();
                    call(connection, service, tool, &args).await?;
                    if round > 0 {
                        samples.push(since.elapsed());
                    }
                }
            }
        }
        let added = |share| time(masked.percentile(share).saturating_sub(open.percentile(share)));
        table.row([label.to_owned(), time(open.p50()), time(masked.p50()), added(0.1), added(0.5)]);
    }
    table.print();
    Ok(())
}

async fn call(connection: &Connection, service: &str, tool: &str, args: &RawJson) -> Result<String> {
    let answer = connection.call_raw(service, tool, Some(args.clone()), CallOptions::default()).await?;
    let result = answer.result.with_context(|| format!("{service}: {:?}", answer.error))?;
    Ok(result.get().to_owned())
}

async fn rotations(stage: &Stage, connection: &Connection) -> Result<()> {
    let (mut whole, mut quiet, mut busy) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROTATIONS {
        let since = Instant::now();
        let rotated = calling(connection, &mut busy, stage.run(&["key", "rotate"])).await?;
        rotated.context("a rotation")?;
        let took = since.elapsed();
        whole.push(took);
        calling(connection, &mut quiet, tokio::time::sleep(took)).await?;
    }
    let head = ["entries", "p50", "longest", "goal", "met"];
    let mut table = Table::new("`key rotate`, from its start to its end", &head);
    let met = verdict(whole.percentile(1.0) <= Duration::from_secs(1));
    table.row([
        ENTRIES.to_string(),
        time(whole.p50()),
        time(whole.percentile(1.0)),
        "longest ≤ 1 s".into(),
        met,
    ]);
    table.print();
    let head = ["calls one at a time", "answered", "failed", "p50", "p99"];
    let mut table = Table::new("Calls to a service with 50 references meanwhile", &head);
    for (label, samples) in [("otherwise idle", &quiet), ("during rotations", &busy)] {
        let n = samples.len().to_string();
        table.row([label.to_owned(), n, "0".into(), time(samples.p50()), time(samples.p99())]);
    }
    table.print();
    Ok(())
}

/// Calls, one after the other, until `other` is done; one that fails ends the measurement.
async fn calling<T>(
    connection: &Connection,
    samples: &mut Samples,
    other: impl Future<Output = T>,
) -> Result<T> {
    let args: RawJson = serde_json::from_str(HELLO)?;
    tokio::pin!(other);
    loop {
        let since = Instant::now();
        let answered = call(connection, "sealed0", "echo", &args);
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => ensure_echoed(&answer?).map(|()| samples.push(since.elapsed()))?,
            done = &mut other => {
                // The last call has to be answered, too.
                let answer = answered.await?;
                ensure_echoed(&answer)?;
                samples.push(since.elapsed());
                return Ok(done);
            }
        }
    }
}

fn ensure_echoed(answer: &str) -> Result<()> {
    ensure!(answer.contains("hello mesh"), "an answer to something else: {answer}");
    Ok(())
}
