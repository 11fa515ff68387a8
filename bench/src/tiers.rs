//! A tool call to a server in the strict jail against one in the light jail, in one interleaved run of the whole product.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use client::{CallOptions, Connection};
use wire::{RawJson, Tier};

use crate::figures::{Samples, Table, time, verdict};
use crate::stage::{Grants, Stage};

const ROUNDS: usize = 40;
const PER_ROUND: usize = 250;
const MOST: f64 = 1.05;

/// # Errors
/// When the platform fails, or does not build the jails that are compared.
pub async fn run(binary: &Path) -> Result<()> {
    let strict = Stage::start(binary).await?;
    let light = Stage::start_with(binary, Grants::NoNamespaces).await?;
    light.run(&["policy", "--min-isolation", "light"]).await?;
    let mut subjects = Vec::new();
    for (stage, tier) in [(&strict, Tier::Strict), (&light, Tier::Light)] {
        stage.deploy_echo("echo").await?;
        let connection = stage.connect().await?;
        let built = stage.status(&connection, "echo").await?.tier;
        ensure!(built == Some(tier), "the jail in force is {built:?} and not {tier}");
        subjects.push((connection, Samples::default()));
    }
    let args: RawJson = serde_json::from_str(r#"{"message":"hello mesh"}"#)?;
    for round in 0..=ROUNDS {
        for (connection, samples) in &mut subjects {
            for _ in 0..PER_ROUND {
                let took = call(connection, &args).await?;
                // The first round warms both and is not counted.
                if round > 0 {
                    samples.push(took);
                }
            }
        }
    }
    report(&subjects[0].1, &subjects[1].1);
    drop(subjects);
    strict.down().await?;
    light.down().await
}

async fn call(connection: &Connection, args: &RawJson) -> Result<Duration> {
    let since = Instant::now();
    let answer = connection.call_raw("echo", "echo", Some(args.clone()), CallOptions::default()).await?;
    ensure!(answer.result.is_some(), "{:?}", answer.error);
    Ok(since.elapsed())
}

fn report(strict: &Samples, light: &Samples) {
    let mut table =
        Table::new("Tool call, by the server's jail", &["", "light", "strict", "ratio", "goal", "met"]);
    for (label, share) in [("p10", 0.10), ("p50", 0.50), ("p99", 0.99)] {
        let (light, strict) = (light.percentile(share), strict.percentile(share));
        let ratio = strict.as_secs_f64() / light.as_secs_f64();
        let (goal, met) = match label {
            "p50" => (format!("ratio ≤ {MOST}"), verdict(ratio <= MOST)),
            _ => Default::default(),
        };
        table.row([label.to_owned(), time(light), time(strict), format!("{ratio:.2}"), goal, met]);
    }
    table.print();
}
