//! `doctor`: what is wrong with this installation, and what to do about it.

mod clients;
mod isolation;
mod vault;

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use client::{BrokerAddress, Config, MeshEntry};
use serde::Serialize;

use isolation::Isolation;

use crate::args::DoctorArgs;
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::plain_line;
use crate::roles::DataFolder;
use crate::units;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Fine,
    /// Something will not work until it is there.
    Missing,
    Broken,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: Cow<'static, str>,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

#[derive(Serialize)]
struct Report {
    healthy: bool,
    findings: Vec<Finding>,
    isolation: Isolation,
}

fn fine(check: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Fine, detail: detail.into(), cure: None }
}

fn missing(
    check: impl Into<Cow<'static, str>>,
    detail: impl Into<String>,
    cure: impl Into<String>,
) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Missing, detail: detail.into(), cure: Some(cure.into()) }
}

fn broken(
    check: impl Into<Cow<'static, str>>,
    detail: impl Into<String>,
    cure: impl Into<String>,
) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Broken, detail: detail.into(), cure: Some(cure.into()) }
}

/// Exit code 1 when something is broken; what is only missing does not count.
pub async fn doctor(here: &Here, args: &DoctorArgs) -> Result<u8, Failure> {
    let data = DataFolder::of(&args.data)?;
    let mut findings = Vec::new();
    let mut isolation = Isolation::default();
    let entry = config(here, &mut findings);
    if let Some(entry) = &entry {
        broker(here, entry, &mut findings, &mut isolation).await;
    }
    findings.extend(clients::findings(here, args.fix).await);
    findings.push(up(&data));
    findings.extend(vault::at_rest(&data));
    findings.extend(tools());
    findings.push(disk(data.path()));
    findings.push(kernel());
    isolation.try_here().await;
    findings.extend(isolation.findings());
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Broken);
    if here.out.json {
        here.out.document(&Report { healthy, findings, isolation })?;
    } else {
        let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        for finding in &findings {
            here.out.line(words(finding, width));
        }
    }
    Ok(u8::from(!healthy))
}

fn words(finding: &Finding, width: usize) -> String {
    let mark = match finding.verdict {
        Verdict::Fine => "ok     ",
        Verdict::Missing => "missing",
        Verdict::Broken => "BROKEN ",
    };
    let cure = finding
        .cure
        .as_ref()
        .map(|cure| format!("\n{:>1$}{2}", "", width + 11, plain_line(cure)))
        .unwrap_or_default();
    format!("{mark}  {:<width$}  {}{cure}", plain_line(&finding.check), plain_line(&finding.detail))
}

fn config(here: &Here, findings: &mut Vec<Finding>) -> Option<MeshEntry> {
    let path = Config::path(&here.config_folder);
    let config = match here.config() {
        Ok(config) => config,
        Err(failure) => {
            findings.push(broken("config", failure.message, "Move the file away and join again."));
            return None;
        }
    };
    if let Ok(meta) = std::fs::metadata(&path)
        && meta.permissions().mode() & 0o077 != 0
    {
        let detail = format!("{} is readable by others; it holds your keys", path.display());
        findings.push(broken("config", detail, format!("chmod 600 {}", path.display())));
    }
    match config.choose(here.mesh.as_deref()) {
        Ok(entry) => {
            let entry = entry.clone();
            let detail = format!("{}, mesh {} at {}", path.display(), entry.slug, entry.broker_url);
            findings.push(match entry.identity() {
                Ok(identity) if *identity.public() == entry.pubkey => fine("config", detail),
                Ok(_) => broken("config", "the keys of the mesh do not belong together", "Join again."),
                Err(e) => broken("config", e.to_string(), "Join again."),
            });
            Some(entry)
        }
        Err(e) => {
            findings.push(missing(
                "config",
                e.to_string(),
                "`claudemesh up` makes a mesh, `claudemesh join LINK` joins one.",
            ));
            None
        }
    }
}

async fn broker(here: &Here, entry: &MeshEntry, findings: &mut Vec<Finding>, isolation: &mut Isolation) {
    let address = match BrokerAddress::parse(&entry.broker_url) {
        Ok(address) => address,
        Err(e) => return findings.push(broken("broker", e.to_string(), "Join again.")),
    };
    let health = match client::http::health(&address).await {
        Ok(health) => health,
        Err(e) => {
            return findings.push(broken(
                "broker",
                e.to_string(),
                "Start it with `claudemesh up`, or ask who runs it.",
            ));
        }
    };
    let own = env!("CARGO_PKG_VERSION");
    let detail = format!("{address}, version {}", health.version);
    findings.push(if health.version == own {
        fine("broker", detail)
    } else {
        missing("broker", format!("{detail}; this is {own}"), "Use the same version on both sides.")
    });
    findings.extend(health.date.as_deref().and_then(|date| clock(date, units::now_ms())));
    let mut secrets = Vec::new();
    findings.push(match here.connect().await {
        Ok(connection) => {
            let role = connection.hello().map(|ack| ack.member_role.clone()).unwrap_or_default();
            isolation.ask(&connection).await;
            secrets = vault::findings(here, &connection).await;
            connection.close().await;
            fine("hello", format!("accepted, you are {role}"))
        }
        Err(failure) => broken("hello", failure.message, failure.cure.unwrap_or_default()),
    });
    findings.push(runner(&address).await);
    findings.extend(secrets);
}

async fn runner(address: &BrokerAddress) -> Finding {
    match client::http::ready(address).await {
        Ok(ready) => match (ready.reason, ready.runner) {
            (Some(reason), _) => {
                broken("broker", format!("not ready: {reason}"), "Look at the broker's log.")
            }
            (None, Some(runner)) if runner.connected => {
                fine("runner", format!("connected: {}", runner.tools.join(", ")))
            }
            (None, Some(_)) => broken(
                "runner",
                "the broker has no runner",
                "Look at DATA/runner.log, or at the runner's own log.",
            ),
            (None, None) => fine("runner", "the broker does not say"),
        },
        Err(e) => broken("broker", e.to_string(), "Look at the broker's log."),
    }
}

/// The broker refuses a hello whose time is a minute off.
fn clock(date: &str, now_ms: i64) -> Option<Finding> {
    let broker = chrono::DateTime::parse_from_rfc2822(date).ok()?.timestamp_millis();
    let seconds = (broker - now_ms) / 1000;
    Some(if seconds.abs() <= 30 {
        fine("clock", format!("{} s from the broker's", seconds.abs()))
    } else {
        broken(
            "clock",
            format!("{} s from the broker's", seconds.abs()),
            "Set the clock of this machine (NTP).",
        )
    })
}

fn up(data: &DataFolder) -> Finding {
    match data.holder() {
        Some(pid) => fine("up", format!("running as pid {pid} on {}", data.path().display())),
        None => fine("up", format!("not running on {}", data.path().display())),
    }
}

fn tools() -> Vec<Finding> {
    let folders = env::search_path();
    let find = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| is_executable(path));
    [
        ("node", "npm packages and node projects"),
        ("npm", "npm packages"),
        ("uv", "PyPI packages and Python projects"),
        ("git", "your own work; the runner needs none"),
    ]
    .into_iter()
    .map(|(name, what)| match find(name) {
        Some(path) => fine(name, path.display().to_string()),
        None => missing(
            name,
            format!("not on your PATH; it serves {what}"),
            "`make setup` installs it, if services are to run on this machine.",
        ),
    })
    .collect()
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn disk(data: &Path) -> Finding {
    // The folder may not exist yet; the file system of its nearest parent is what will fill up.
    let existing = data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(found) => {
            let free = found.blocks_available().saturating_mul(found.fragment_size());
            let detail = format!("{} free at {}", units::size(free), existing.display());
            if free < 1 << 30 {
                broken("disk", detail, "Free some space: one npm package may need hundreds of MB.")
            } else {
                fine("disk", detail)
            }
        }
        Err(e) => broken(
            "disk",
            format!("cannot ask for free space at {}: {e}", existing.display()),
            "Check that folder.",
        ),
    }
}

/// Which one; what it can do is tried.
fn kernel() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => fine("kernel", format!("Linux {}", release.trim())),
        Err(e) => broken("kernel", format!("unknown: {e}"), "The jail needs Linux with /proc."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_found() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-01-02T03:04:05Z").unwrap().timestamp_millis();
        assert_eq!(clock("Fri, 02 Jan 2026 03:04:06 GMT", now).unwrap().verdict, Verdict::Fine);
        assert_eq!(clock("Fri, 02 Jan 2026 03:14:06 GMT", now).unwrap().verdict, Verdict::Broken);
        assert!(clock("nonsense", now).is_none());
    }

    #[test]
    fn a_cure_stands_below_its_finding() {
        let words = words(&broken("disk", "1 MB free", "Free some space."), 6);
        assert_eq!(words, "BROKEN   disk    1 MB free\n                 Free some space.");
    }
}
