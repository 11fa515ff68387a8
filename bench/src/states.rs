//! Lists from the store, warm redeploys, restarts of the broker, memory: the figures that are no calls.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use client::{CallOptions, Connection};
use wire::peer::hosting::{McpSchema, McpSchemaResult};

use crate::direct::{Direct, Recipe};
use crate::figures::{Samples, Table, time, verdict};
use crate::stage::Stage;

const SERVICES: usize = 20;

/// # Errors
/// When the platform fails.
pub async fn lists(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    let package = "@modelcontextprotocol/server-everything";
    stage.run(&["deploy", "everything", "--", "npx", "-y", package]).await?;
    stage.run(&["stop", "everything"]).await?;
    let connection = stage.connect().await?;
    let mut samples = Samples::default();
    let mut tools = 0;
    for _ in 0..1000 {
        let since = Instant::now();
        let ask = McpSchema { server_name: "everything".to_owned(), tool_name: None };
        let answer: McpSchemaResult = connection.request(&ask).await?;
        samples.push(since.elapsed());
        tools = answer.tools.len();
    }
    ensure!(tools > 0, "the store has no tools");
    let mut table =
        Table::new("Tools of a stopped service, from the store", &["tools", "p50", "p99", "goal", "met"]);
    let met = verdict(samples.p99() <= Duration::from_millis(5));
    table.row([tools.to_string(), time(samples.p50()), time(samples.p99()), "≤ 5 ms".into(), met]);
    table.print();
    stage.down().await
}

/// # Errors
/// When the platform fails.
pub async fn redeploy(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    let head = ["source", "redeploy", "the server's own start", "added", "goal", "met"];
    let mut table = Table::new("Warm redeploy of the same pin", &head);
    let deploy = ["deploy", "everything", "--", "npx", "-y", "@modelcontextprotocol/server-everything"];
    stage.run(&deploy).await?;
    // A changed network is a new generation of a pin that is known; `deploy` asks the registry first what the newest
    // version is.
    let allow = ["allow", "everything", "example.com"];
    let deny = ["deny", "everything", "example.com"];
    for (label, commands, goal_ms) in [
        ("npm, pinned (allow, deny)", [&allow[..], &deny[..]], 100),
        ("npm, with registry", [&deploy[..], &deploy[..]], 1000),
    ] {
        let goal = Duration::from_millis(goal_ms);
        let connection = stage.connect().await?;
        let (mut whole, mut own) = (Samples::default(), Samples::default());
        for command in commands.into_iter().cycle().take(10) {
            let since = Instant::now();
            stage.run(command).await?;
            whole.push(since.elapsed());
            let pid = stage.status(&connection, "everything").await?.pid.context("it runs")?;
            let recipe = Recipe::of_process(i64::from(pid))?;
            let since = Instant::now();
            let mut direct = Direct::start(&recipe)?;
            direct.request("tools/list", "{}")?;
            own.push(since.elapsed());
        }
        let added = whole.p50().saturating_sub(own.p50());
        let met = verdict(added <= goal);
        table.row([
            label.to_owned(),
            time(whole.p50()),
            time(own.p50()),
            time(added),
            format!("added ≤ {}", time(goal)),
            met,
        ]);
    }
    table.print();
    stage.down().await
}

/// # Errors
/// When the platform fails.
pub async fn restart(binary: &Path) -> Result<()> {
    let mut stage = Stage::start(binary).await?;
    for n in 0..SERVICES {
        stage.deploy_echo(&format!("echo{n}")).await?;
    }
    let (mut first, mut all) = (Samples::default(), Samples::default());
    for _ in 0..5 {
        stage.kill_9_broker().await?;
        let since = Instant::now();
        let connection = stage.up().await?;
        answered(&connection, "echo0").await?;
        first.push(since.elapsed());
        for n in 1..SERVICES {
            answered(&connection, &format!("echo{n}")).await?;
        }
        all.push(since.elapsed());
    }
    let head = ["services", "first answered call", "a call to each answered", "goal", "met"];
    let mut table = Table::new("From the start of a killed broker's successor", &head);
    let met = verdict(first.percentile(1.0) <= Duration::from_secs(2));
    table.row([SERVICES.to_string(), time(first.p50()), time(all.p50()), "first ≤ 2 s".into(), met]);
    table.print();
    memory_row(&stage, "with 20 services")?;
    stage.down().await
}

async fn answered(connection: &Connection, name: &str) -> Result<()> {
    let answer = connection.call_raw(name, "echo", None, CallOptions::default()).await?;
    ensure!(answer.result.is_some(), "{name}: {:?}", answer.error);
    Ok(())
}

/// # Errors
/// When the platform fails.
pub async fn memory(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    // What start-up allocated is given back within seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    memory_row(&stage, "idle, no services")?;
    stage.down().await
}

fn memory_row(stage: &Stage, when: &str) -> Result<()> {
    let pid = stage.broker_pid().context("the broker is up")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    let mut table = Table::new("Memory of the broker", &["when", "resident", "goal", "met"]);
    let mib = format!("{}.{} MB", kib / 1000, kib % 1000 / 100);
    table.row([when.to_owned(), mib, "≤ 30 MB".into(), verdict(kib <= 30_000)]);
    table.print();
    Ok(())
}
