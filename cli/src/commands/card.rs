//! What `ls` and `status` say about a service: a row, and a card.

use std::time::Duration;

use wire::Scope;
use wire::peer::hosting::{ServiceStatus, VaultUse};
use wire::report::{EgressDecision, Reason, Verdict};

use super::deploy::pin_words;
use super::drift;
use super::why::refusal;
use crate::out::bold;
use crate::plain::{brief, plain_line};
use crate::units;

const REASON_WIDTH: usize = 48;
/// Refusals on a card; `why` has all.
const REFUSALS: usize = 5;
/// Lines of one change on a card; `approve` has all.
const DIFF_LINES: usize = 40;

/// A refusal is news for a day.
const RECENT_MS: i64 = 86_400_000;

pub const HEADER: [&str; 11] =
    ["NAME", "STATE", "JAIL", "MARKS", "REASON", "TOOLS", "RESTARTS", "MEMORY", "UPTIME", "SCOPE", "SOURCE"];

pub fn row(service: &ServiceStatus, now_ms: i64) -> Vec<String> {
    let reason = match (&service.reason, &service.failed_update) {
        (Some(reason), _) => brief(&reason.message, REASON_WIDTH),
        (None, Some(failed)) => brief(&format!("update failed: {}", failed.reason.message), REASON_WIDTH),
        (None, None) => "-".to_owned(),
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        plain_line(&service.name),
        plain_line(&service.phase),
        or_none(service.tier.map(|tier| tier.to_string())),
        marks(service, now_ms),
        reason,
        service.tool_count.to_string(),
        service.restarts.to_string(),
        or_none(service.usage.map(|usage| units::size(usage.memory_bytes))),
        or_none(uptime(service, now_ms).map(units::span)),
        brief(&scope_words(&service.scope), 32),
        brief(&service.source, 64),
    ]
}

/// What wants a look, in one word each.
fn marks(service: &ServiceStatus, now_ms: i64) -> String {
    let is_refused = |verdict: Verdict| !verdict.is_allowed() && verdict != Verdict::Unreachable;
    // What was allowed since, or is long over, wants no look.
    let blocked = |decision: &EgressDecision| {
        is_refused(decision.verdict)
            && decision.last_ms > now_ms - RECENT_MS
            && !service.network.iter().any(|rule| rule.covers(&decision.host, decision.port))
    };
    let marks = [
        ("drift", service.drift.is_some()),
        ("blocked", service.egress.iter().any(blocked)),
        ("learning", learning(service, now_ms).is_some()),
        ("suspicious", !service.suspicions.is_empty()),
    ];
    let marks: Vec<&str> = marks.into_iter().filter(|(_, is_so)| *is_so).map(|(mark, _)| mark).collect();
    if marks.is_empty() { "-".to_owned() } else { marks.join(" ") }
}

/// Until when, while it is being learned.
fn learning(service: &ServiceStatus, now_ms: i64) -> Option<i64> {
    service.learning_until.as_deref().and_then(units::at_ms).filter(|until| *until > now_ms)
}

fn uptime(service: &ServiceStatus, now_ms: i64) -> Option<Duration> {
    units::since(service.ready_since.as_deref()?, now_ms)
}

/// Who sees it, in words. Names come from other people.
pub fn scope_words(scope: &Scope) -> String {
    let list = |names: &std::collections::BTreeSet<String>| {
        names.iter().map(|name| plain_line(name)).collect::<Vec<_>>().join(", ")
    };
    match scope {
        Scope::Peer => "its deployer".to_owned(),
        Scope::Mesh => "the mesh".to_owned(),
        Scope::Peers { allow } => list(allow),
        Scope::Group { group } => format!("@{}", plain_line(group)),
        Scope::Groups { groups } => format!("@{}", list(groups).replace(", ", ", @")),
        Scope::Role { role } => format!("role {}", plain_line(role)),
    }
}

/// `TOKEN ← $vault:github-token, version 3 of Ana`.
fn secret_words(used: &VaultUse) -> String {
    let whose = match (&used.owner, used.version) {
        (None, _) => "each caller's own".to_owned(),
        (Some(owner), Some(version)) => format!("version {version} of {owner}"),
        (Some(owner), None) => format!("MISSING in the vault of {owner}"),
    };
    plain_line(&format!("{} ← {}, {whose}", used.variable, used.reference))
}

/// Lines of `word  value`, the words in one column.
#[derive(Default)]
struct Card(String);

impl Card {
    fn line(&mut self, word: &str, value: impl AsRef<str>) {
        self.0.push_str(&format!("  {word:<12} {}\n", value.as_ref()));
    }

    /// The word once, then its lines below each other.
    fn lines(&mut self, word: &str, values: impl IntoIterator<Item = String>) {
        for (at, value) in values.into_iter().enumerate() {
            self.line(if at == 0 { word } else { "" }, value);
        }
    }
}

pub fn card(service: &ServiceStatus, now_ms: i64) -> String {
    let ServiceStatus { name, phase, generation, source, deployed_by, restarts, .. } = service;
    let mut card = Card::default();
    card.line("source", plain_line(source));
    if let Some(pin) = &service.pin {
        card.line("pinned", format!("{}  {}", pin_words(pin), brief(&pin.integrity, 80)));
    }
    card.line("generation", generation.to_string());
    card.line("deployed by", format!("{}, {}", plain_line(deployed_by), plain_line(&service.created_at)));
    card.line("seen by", scope_words(&service.scope));
    card.line("tools", service.tool_count.to_string());
    if let Some(up) = uptime(service, now_ms) {
        let pid = service.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        card.line("up for", format!("{}{pid}", units::span(up)));
    }
    limits(service, &mut card);
    card.line("restarts", restarts.to_string());
    if !service.args.is_empty() {
        card.line("arguments", plain_line(&service.args.join(" ")));
    }
    if !service.env_names.is_empty() {
        card.line("environment", plain_line(&service.env_names.join(", ")));
    }
    card.lines("secrets", service.vault.iter().map(secret_words));
    if !service.inject.is_empty() {
        let hosts: Vec<String> = service.inject.iter().map(ToString::to_string).collect();
        card.line("put in", format!("for requests to {}; the process holds placeholders", hosts.join(", ")));
    }
    if service.unmasked_results {
        card.line("results", "are passed on with the secrets that are in them");
    }
    if !service.run_as.is_deployer() {
        card.line("run as", "caller: an instance for each caller, with their own secrets");
    }
    network(service, now_ms, &mut card);
    if let Some(reason) = &service.reason {
        card.line("reason", reason_words(reason, name));
    }
    if let Some(fall) = &service.last_fall {
        card.line("last fall", reason_words(fall, name));
    }
    if let Some(failed) = &service.failed_update {
        let words = reason_words(&failed.reason, name);
        card.line("last update", format!("generation {} failed: {words}", failed.generation));
    }
    let suspicion = service
        .suspicions
        .iter()
        .map(|found| format!("{}: {}", brief(&found.tool, 64), plain_line(&found.what)));
    card.lines("suspicious", suspicion);
    let mut text = format!("{}  {}\n{}", bold(&plain_line(name)), plain_line(phase), card.0);
    if let Some(drift) = &service.drift {
        text.push_str(&format!("\n{}\n", drift::words(drift, Some(DIFF_LINES))));
        text.push_str(&format!("accept it with: claudemesh approve {}\n", plain_line(name)));
    }
    text.trim_end().to_owned()
}

/// The jail in force, and each limit with what is used of it.
fn limits(service: &ServiceStatus, card: &mut Card) {
    let limits = &service.limits;
    card.line(
        "jail",
        service.tier.map_or_else(|| "none: it does not run".to_owned(), |tier| tier.to_string()),
    );
    let memory = service.usage.map(|usage| units::of_mib(usage.memory_bytes, limits.memory_mb));
    card.line("memory", memory.unwrap_or_else(|| format!("at most {} MiB", limits.memory_mb)));
    let time = service.usage.and_then(|usage| usage.cpu_ms);
    let time = time.map(|ms| format!(", {}.{} s used", ms / 1000, ms % 1000 / 100)).unwrap_or_default();
    card.line("cpus", format!("at most {}{time}", f64::from(limits.milli_cpus) / 1000.0));
    let pids = service.usage.map(|usage| format!("{} / {}", usage.pids, limits.pids));
    card.line("processes", pids.unwrap_or_else(|| format!("at most {}", limits.pids)));
    let disk = service.usage.map(|usage| units::of_mib(usage.disk_bytes, limits.disk_mb));
    card.line("disk", disk.unwrap_or_else(|| format!("at most {} MiB", limits.disk_mb)));
    card.line("open files", format!("at most {} a process", limits.open_files));
}

fn network(service: &ServiceStatus, now_ms: i64, card: &mut Card) {
    if service.network.is_empty() && service.manageable {
        card.line("connects to", "nowhere");
    }
    card.lines("connects to", service.network.iter().map(ToString::to_string));
    if let Some(until) = learning(service, now_ms) {
        let hint = format!("claudemesh learn {} --accept", plain_line(&service.name));
        card.line("learning", format!("any public host until {} · {hint}", units::moment(until, now_ms)));
    }
    let refused: Vec<_> = service.egress.iter().filter(|decision| !decision.verdict.is_allowed()).collect();
    // Newest last, as they came.
    let last = refused.iter().skip(refused.len().saturating_sub(REFUSALS));
    card.lines("refused", last.map(|decision| refusal(decision, service, now_ms)));
    if refused.len() > REFUSALS {
        let more = refused.len() - REFUSALS;
        card.line("", format!("and {more} before: claudemesh why {}", plain_line(&service.name)));
    }
}

pub fn reason_words(reason: &Reason, service: &str) -> String {
    let mut text = format!("{} ({})", plain_line(&reason.message), reason.code);
    for line in &reason.stderr {
        text.push_str(&format!("\n               | {}", plain_line(line)));
    }
    text.push_str(&format!("\n               {}", plain_line(&reason.code.cure().replace("NAME", service))));
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn service() -> ServiceStatus {
        serde_json::from_str(
            r#"{"name":"echo","type":"mcp","description":"d","status":"running","tool_count":3,"deployed_by":"Ana",
            "scope":{"type":"groups","groups":["a","b"]},"source_type":"npx","created_at":"2026-01-02T03:04:05.678Z",
            "phase":"ready","generation":2,"source":"npm evil\u001b[2J@1","env_names":["TOKEN"],"args":["--x"],
            "failed_update":{"generation":3,"reason":{"code":"start_exited","message":"it ended","stderr":["no\u0007key"]}},
            "pin":{"kind":"npm","name":"evil","version":"1","integrity":"sha512-x","artefact":"ab"},
            "restarts":1,"usage":{"memory_bytes":1572864,"pids":3,"cpu_ms":1234,"disk_bytes":1},
            "limits":{"memory_mb":512,"milli_cpus":500,"pids":100,"disk_mb":1024,"open_files":1024},
            "tier":"strict","network":["api.github.com:443","*.githubusercontent.com:443"],
            "egress":[{"host":"api.github.com","port":443,"verdict":"allowed","count":9,"last_ms":1},
                      {"host":"evil.com\u001b[2J","port":443,"verdict":"not_listed","count":3,"last_ms":1}],
            "drift":{"digest":"d1","changes":[{"kind":"tool","name":"sum\u202e",
                "before":"{\"name\":\"sum\",\"description\":\"adds\"}","after":"{\"name\":\"sum\",\"description\":\"adds\u202e, and pays\"}"}]},
            "suspicions":[{"tool":"sum\u001b[2J","what":"U+202E right-to-left override in the description"}],
            "ready_since":"2026-01-02T03:04:05.000Z","pid":7,"updated_at":"2026-01-02T03:04:06.000Z","manageable":true}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_row_says_state_jail_marks_memory_uptime_and_the_failed_update() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-01-02T05:04:05Z").unwrap().timestamp_millis();
        let mut service = service();
        service.egress[1].last_ms = now;
        let row = row(&service, now);
        assert_eq!(
            row,
            [
                "echo",
                "ready",
                "strict",
                "drift blocked suspicious",
                "update failed: it ended",
                "3",
                "1",
                "1.5 MB",
                "2h00m",
                "@a, @b",
                r"npm evil\u{1b}[2J@1"
            ]
        );
        assert_eq!(row.len(), HEADER.len());
    }

    #[test]
    fn a_card_shows_everything_and_is_safe_to_print() {
        let card = card(&service(), 0);
        for part in [
            "generation 3 failed",
            "start_exited",
            r"no\u{7}key",
            "TOKEN",
            "pid 7",
            "sha512-x",
            "jail         strict",
            "memory       2 / 512 MiB",
            "cpus         at most 0.5, 1.2 s used",
            "processes    3 / 100",
            "disk         1 / 1024 MiB",
            "connects to  api.github.com:443",
            "blocked evil.com",
            "suspicious   sum",
            "claudemesh approve echo",
            r#"+   "description": "adds\u{202e}, and pays""#,
        ] {
            assert!(card.contains(part), "{part} in {card}");
        }
        assert!(!card.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{card:?}");
    }

    #[test]
    fn a_service_without_a_process_shows_its_limits_and_nowhere() {
        let mut service = service();
        (service.usage, service.tier) = (None, None);
        service.network.clear();
        service.egress.clear();
        service.learning_until = Some("2026-01-02T04:04:05Z".into());
        let card = card(&service, 0);
        for part in
            ["none: it does not run", "at most 512 MiB", "connects to  nowhere", "learn echo --accept"]
        {
            assert!(card.contains(part), "{part} in {card}");
        }
        service.manageable = false;
        let theirs = super::card(&service, 0);
        assert!(!theirs.contains("connects to"), "others are not told, which is not nowhere: {theirs}");
    }

    #[test]
    fn a_refusal_is_marked_until_it_is_allowed_or_a_day_old() {
        let mut service = service();
        let at = service.egress[1].last_ms;
        assert!(marks(&service, at + RECENT_MS - 1).contains("blocked"));
        assert!(!marks(&service, at + RECENT_MS).contains("blocked"));
        service.egress[1].host = "api.github.com".into();
        assert!(!marks(&service, at).contains("blocked"));
    }

    #[test]
    fn a_secret_is_shown_by_its_name_and_what_is_missing_is_said() {
        let mut service = service();
        let used = |owner: Option<&str>, version| VaultUse {
            variable: "TOKEN".into(),
            reference: "$vault:github-token".into(),
            owner: owner.map(str::to_owned),
            version,
        };
        service.vault = vec![used(Some("Ana"), Some(3)), used(Some("Ana"), None), used(None, None)];
        service.inject = vec![wire::EgressRule::parse("api.github.com").unwrap()];
        service.unmasked_results = true;
        let card = card(&service, 0);
        assert!(
            card.contains("requests to api.github.com:443") && card.contains("passed on with the secrets")
        );
        for part in ["version 3 of Ana", "MISSING in the vault of Ana", "each caller's own"] {
            assert!(card.contains(&format!("TOKEN ← $vault:github-token, {part}")), "{part} in {card}");
        }
    }

    #[test]
    fn learning_is_over_when_its_time_is() {
        let mut service = service();
        service.learning_until = Some("1970-01-01T00:00:10Z".into());
        assert!(marks(&service, 9_999).contains("learning"));
        assert!(
            !marks(&service, 10_000).contains("learning") && !card(&service, 10_000).contains("learning")
        );
    }

    #[test]
    fn only_the_last_refusals_are_on_the_card() {
        let mut service = service();
        service.egress = (0..8)
            .map(|n| wire::report::EgressDecision { host: format!("h{n}.com"), ..service.egress[1].clone() })
            .collect();
        let card = card(&service, 0);
        assert!(card.contains("h7.com") && !card.contains("h2.com"), "{card}");
        assert!(card.contains("and 3 before: claudemesh why echo"), "{card}");
    }
}
