//! What a jail costs: at the start of a server, with a large and a small runner, and in memory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jail::Report;

use crate::cells::{Ground, Kind};
use crate::figures::{Samples, Table, time, verdict};

const ROUNDS: usize = 100;
const HEAP: usize = 512 << 20;
const JAILS: u32 = 10;
const PROGRAM: &str = "/bin/true";

/// Starts of one kind: up to the program's end, which is the same event for all, and up to the end of its jail.
#[derive(Default)]
struct Starts {
    ended: Samples,
    gone: Samples,
}

/// # Errors
/// When a jail can't be built here.
pub fn run(binary: &Path) -> Result<()> {
    let head = ["", "p10", "p50", "over plain, p10", "jail gone, p10", "goal", "met"];
    let mut table = Table::new("Start of a program: spawn to its end", &head);
    let ground = Ground::new(binary)?;
    starts(&ground, "", &mut table)?;
    let heap = vec![1_u8; HEAP];
    starts(&ground, ", 512 MiB heap in the runner", &mut table)?;
    // Read after the starts, so that nobody drops it before them.
    ensure!(std::hint::black_box(&heap).iter().step_by(4096).all(|byte| *byte == 1), "the heap");
    drop(heap);
    table.print();
    memory(&ground)
}

fn starts(ground: &Ground, when: &str, table: &mut Table) -> Result<()> {
    let mut plain = Samples::default();
    let (mut light, mut strict) = (Starts::default(), Starts::default());
    for round in 0..=ROUNDS {
        let alone = start_plain()?;
        let in_light = start_jailed(ground, Kind::Light)?;
        let in_strict = start_jailed(ground, Kind::Strict)?;
        // The first round makes the homes and is not counted.
        if round > 0 {
            plain.push(alone);
            light.push(in_light);
            strict.push(in_strict);
        }
    }
    let base = plain.percentile(0.1);
    let none = String::new;
    table.row([format!("plain{when}"), time(base), time(plain.p50()), none(), none(), none(), none()]);
    for (name, starts, goal) in [("light", light, None), ("strict", strict, Some(Duration::from_millis(8)))] {
        let p10 = starts.ended.percentile(0.1);
        let added = p10.saturating_sub(base);
        table.row([
            format!("{name}{when}"),
            time(p10),
            time(starts.ended.p50()),
            time(added),
            time(starts.gone.percentile(0.1)),
            goal.map_or_else(none, |goal| format!("added ≤ {}", time(goal))),
            goal.map_or_else(none, |goal| verdict(added <= goal)),
        ]);
    }
    Ok(())
}

impl Starts {
    fn push(&mut self, (ended, gone): (Duration, Duration)) {
        self.ended.push(ended);
        self.gone.push(gone);
    }
}

fn start_plain() -> Result<Duration> {
    let since = Instant::now();
    let mut child = Command::new(PROGRAM)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context(PROGRAM)?;
    ensure!(child.wait()?.success(), "{PROGRAM} failed");
    Ok(since.elapsed())
}

fn start_jailed(ground: &Ground, kind: Kind) -> Result<(Duration, Duration)> {
    let since = Instant::now();
    let mut cell = ground.open(kind, 0, &[PROGRAM], &[], &[80, 443])?;
    cell.until(|report| matches!(report, Report::Exited(_)))?;
    let ended = since.elapsed();
    cell.until(|report| *report == Report::Gone)?;
    let gone = since.elapsed();
    cell.reap()?;
    Ok((ended, gone))
}

/// Of several jails at once, as in a runner: their helpers share the pages of one program.
fn memory(ground: &Ground) -> Result<()> {
    let mut cells = Vec::new();
    for n in 1..=JAILS {
        let mut cell = ground.open(Kind::Strict, n, &["/bin/sleep", "1000"], &[], &[80, 443])?;
        cell.started()?;
        cells.push(cell);
    }
    let mut kib = 0;
    for cell in &cells {
        let helper = cell.helper();
        let children = std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children"))?;
        let init = children.split_ascii_whitespace().next().context("a strict jail has an init")?.parse()?;
        kib += pss(helper)? + pss(init)?;
    }
    let each = kib / u64::from(JAILS);
    let title = "Memory that the strict jail adds to a service: helper and init, shared pages by share";
    let mut table = Table::new(title, &["jails at once", "each", "goal", "met"]);
    table.row([JAILS.to_string(), format!("{each} KiB"), "≤ 1024 KiB".into(), verdict(each <= 1024)]);
    table.print();
    cells.into_iter().try_for_each(crate::cells::Cell::end)
}

fn pss(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.context("the memory of a jail's helper is root's to read: run this as root")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
    Ok(line.split_ascii_whitespace().next().context("a number")?.parse()?)
}
