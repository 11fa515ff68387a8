//! The figures of `docs/benchmarks.md`. `bench [calls|lists|redeploy|restart|memory|jail|egress|tiers|vault|agents|all] --binary PATH`.
//!
//! Each measures against a baseline in the same run, so that ratios hold on any machine.

mod agents;
mod calls;
mod cells;
mod direct;
mod figures;
mod jails;
mod stage;
mod states;
mod tiers;
mod vaulted;
mod ways_out;
mod weaker;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

const USAGE: &str =
    "usage: bench [calls|lists|redeploy|restart|memory|jail|egress|tiers|vault|agents|all]… [--binary PATH]";
const ALL: [&str; 10] =
    ["calls", "lists", "redeploy", "restart", "memory", "jail", "egress", "tiers", "vault", "agents"];

struct Wanted {
    what: Vec<String>,
    binary: PathBuf,
}

fn wanted(mut args: impl Iterator<Item = String>) -> Result<Wanted> {
    let mut what = Vec::new();
    let mut binary = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--binary" => binary = Some(PathBuf::from(args.next().context(USAGE)?)),
            "all" => what.extend(ALL.map(str::to_owned)),
            name if ALL.contains(&name) => what.push(name.to_owned()),
            _ => bail!(USAGE),
        }
    }
    if what.is_empty() {
        bail!(USAGE);
    }
    let beside = std::env::current_exe()?.with_file_name("claudemesh");
    let binary = binary.unwrap_or(beside).canonicalize().context("the claudemesh binary")?;
    Ok(Wanted { what, binary })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((role, command)) if role == weaker::ROLE => weaker::run(command),
        _ => measure(args),
    }
}

// One thread: a peer is a client of one socket, and a second thread would only add its own wake-ups to the figures.
#[tokio::main(flavor = "current_thread")]
async fn measure(args: Vec<String>) -> Result<()> {
    let Wanted { what, binary } = wanted(args.into_iter())?;
    println!("Measured on: {}.", figures::machine());
    if cfg!(debug_assertions) {
        println!("\n**A debug build: these figures mean nothing.**");
    }
    for name in what {
        run(&name, &binary).await.with_context(|| format!("bench {name}"))?;
    }
    Ok(())
}

async fn run(name: &str, binary: &Path) -> Result<()> {
    match name {
        "calls" => calls::run(binary).await,
        "lists" => states::lists(binary).await,
        "redeploy" => states::redeploy(binary).await,
        "restart" => states::restart(binary).await,
        "jail" => blocking(jails::run, binary).await,
        "egress" => blocking(ways_out::run, binary).await,
        "tiers" => tiers::run(binary).await,
        "agents" => agents::run(binary).await,
        "vault" => vaulted::run(binary).await,
        _ => states::memory(binary).await,
    }
}

/// For what waits by blocking, or has a runtime of its own.
async fn blocking(what: fn(&Path) -> Result<()>, binary: &Path) -> Result<()> {
    let binary = binary.to_owned();
    tokio::task::spawn_blocking(move || what(&binary)).await?
}
