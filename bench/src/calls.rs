//! What a call through the mesh costs more than a call over the server's own pipes, in one interleaved run.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use client::{CallOptions, Connection};
use futures_util::future::try_join_all;
use wire::RawJson;

use crate::direct::{Direct, Recipe};
use crate::figures::{Samples, Table, per_second, time, verdict};
use crate::stage::Stage;

const ROUNDS: usize = 20;
const PER_ROUND: usize = 250;
const WINDOW: usize = 64;
const PER_BURST: usize = 5_000;

struct Subject {
    service: &'static str,
    tool: &'static str,
    args: &'static str,
    title: &'static str,
    has_goal: bool,
}

/// # Errors
/// When a server or the platform fails.
pub async fn run(binary: &Path) -> Result<()> {
    let stage = Stage::start(binary).await?;
    stage.deploy_echo("echo").await?;
    let package = "@modelcontextprotocol/server-everything";
    stage.run(&["deploy", "everything", "--", "npx", "-y", package]).await?;
    let connection = stage.connect().await?;
    let native = Subject {
        service: "echo",
        tool: "echo",
        args: r#"{"message":"hello mesh"}"#,
        title: "Tool call, native echo server",
        has_goal: true,
    };
    let node = Subject {
        service: "everything",
        title: "Tool call, npm server-everything",
        has_goal: false,
        ..native
    };
    for subject in [native, node] {
        let pid = stage.status(&connection, subject.service).await?.pid;
        let recipe = Recipe::of_process(i64::from(pid.unwrap_or_default()))?;
        measure(&connection, &subject, &mut Direct::start(&recipe)?).await?;
    }
    stage.down().await
}

async fn measure(connection: &Connection, subject: &Subject, direct: &mut Direct) -> Result<()> {
    let args: RawJson = serde_json::from_str(subject.args)?;
    let params = format!(r#"{{"name":"{}","arguments":{}}}"#, subject.tool, subject.args);
    let (mut alone, mut meshed) = (Samples::default(), Samples::default());
    let (mut alone_burst, mut meshed_burst) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=ROUNDS {
        // The first round warms both sides and is not counted.
        let is_counted = round > 0;
        for _ in 0..PER_ROUND {
            let since = Instant::now();
            direct.request("tools/call", &params)?;
            if is_counted {
                alone.push(since.elapsed());
            }
        }
        for _ in 0..PER_ROUND {
            let since = Instant::now();
            call(connection, subject, &args).await?;
            if is_counted {
                meshed.push(since.elapsed());
            }
        }
    }
    let bursts = 3;
    for _ in 0..bursts {
        let since = Instant::now();
        direct.pipelined(&params, WINDOW, PER_BURST)?;
        alone_burst += since.elapsed();
        let since = Instant::now();
        let worker = async || {
            for _ in 0..PER_BURST / WINDOW {
                call(connection, subject, &args).await?;
            }
            anyhow::Ok(())
        };
        try_join_all((0..WINDOW).map(|_| worker())).await?;
        meshed_burst += since.elapsed();
    }
    let alone_rate = per_second(bursts * PER_BURST, alone_burst);
    let meshed_rate = per_second(bursts * (PER_BURST / WINDOW) * WINDOW, meshed_burst);
    report(subject, [&alone, &meshed], [alone_rate, meshed_rate]);
    Ok(())
}

async fn call(connection: &Connection, subject: &Subject, args: &RawJson) -> Result<()> {
    let (server, tool) = (subject.service, subject.tool);
    let answer = connection.call_raw(server, tool, Some(args.clone()), CallOptions::default()).await?;
    ensure!(answer.result.is_some(), "{:?}", answer.error);
    Ok(())
}

fn report(subject: &Subject, [alone, meshed]: [&Samples; 2], [alone_rate, meshed_rate]: [f64; 2]) {
    let head = ["", "direct stdio", "through the mesh", "added", "ratio", "goal", "met"];
    let mut table = Table::new(subject.title, &head);
    let goals = [("p50, one at a time", 0.50, 150), ("p99, one at a time", 0.99, 1000)];
    for (label, share, goal_us) in goals {
        let (a, m) = (alone.percentile(share), meshed.percentile(share));
        let added = m.saturating_sub(a);
        let goal = Duration::from_micros(goal_us);
        let (goal_text, met) = match subject.has_goal {
            true => (format!("added ≤ {}", time(goal)), verdict(added <= goal)),
            false => Default::default(),
        };
        let ratio = format!("{:.1}", m.as_secs_f64() / a.as_secs_f64());
        table.row([label.to_owned(), time(a), time(m), time(added), ratio, goal_text, met]);
    }
    let (goal_text, met) = match subject.has_goal {
        true => ("≥ 10,000/s".to_owned(), verdict(meshed_rate >= 10_000.0)),
        false => Default::default(),
    };
    let rate = |rate: f64| format!("{rate:.0}/s");
    let ratio = format!("{:.2}", meshed_rate / alone_rate);
    table.row([
        format!("calls, {WINDOW} in flight"),
        rate(alone_rate),
        rate(meshed_rate),
        String::new(),
        ratio,
        goal_text,
        met,
    ]);
    table.print();
}
