//! `why`: what stopped a service, or was refused to it, and the command that changes that.

use serde::Serialize;
use wire::peer::hosting::{FailedUpdate, McpStatus, McpStatusResult, ServiceStatus};
use wire::peer::trust::Drift;
use wire::report::{EgressDecision, Reason, Verdict};
use wire::{EgressRule, ErrorCode};

use super::ask;
use super::card::reason_words;
use super::deploy::count;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::{brief, plain_line};
use crate::units;

#[derive(Serialize)]
struct Document<'a> {
    name: &'a str,
    refused: Vec<&'a EgressDecision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fall: Option<&'a Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_update: Option<&'a FailedUpdate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<&'a Drift>,
}

pub async fn why(here: &Here, name: &str) -> Result<(), Failure> {
    let found: McpStatusResult = ask(here, &McpStatus { server_name: name.to_owned() }).await?;
    let service = &found.service;
    if here.out.json {
        return here.out.document(&Document {
            name: &service.name,
            refused: refused(service).collect(),
            reason: service.reason.as_ref(),
            last_fall: service.last_fall.as_ref(),
            failed_update: service.failed_update.as_ref(),
            drift: service.drift.as_ref(),
        });
    }
    for line in lines(service, units::now_ms()) {
        here.out.line(line);
    }
    Ok(())
}

fn refused(service: &ServiceStatus) -> impl Iterator<Item = &EgressDecision> {
    service.egress.iter().filter(|decision| !decision.verdict.is_allowed())
}

fn lines(service: &ServiceStatus, now_ms: i64) -> Vec<String> {
    let name = plain_line(&service.name);
    let mut lines: Vec<String> =
        refused(service).map(|decision| refusal(decision, service, now_ms)).collect();
    if let Some(reason) = &service.reason {
        lines.push(format!("{} {}", verb(reason), reason_words(reason, &name)));
    }
    if let Some(failed) = &service.failed_update {
        let words = reason_words(&failed.reason, &name);
        lines.push(format!("generation {} failed: {words}", failed.generation));
    }
    if let Some(drift) = &service.drift {
        let changes = count(drift.changes.len(), "change");
        lines.push(format!(
            "withheld from others: {changes} since it was approved · claudemesh approve {name}"
        ));
    }
    if let Some(fall) = &service.last_fall {
        lines.push(format!("before: {}", reason_words(fall, &name)));
    }
    if service.restarts > 0 && service.reason.is_none() {
        lines.push(format!("restarted {}: claudemesh logs {name} says why", times(service.restarts.into())));
    }
    if lines.is_empty() {
        lines.push(if service.manageable {
            "nothing was blocked".to_owned()
        } else {
            format!("nothing that you may see; what was blocked is shown to those who may manage {name}")
        });
    }
    lines
}

/// A limit that was hit is said before the cause that the message gives.
fn verb(reason: &Reason) -> &'static str {
    match reason.code {
        ErrorCode::OutOfMemory | ErrorCode::TooManyProcesses | ErrorCode::DiskExceeded => "limit:",
        ErrorCode::IsolationUnavailable => "not started:",
        _ => "failed:",
    }
}

/// `blocked api.x.com:443 (3 times, last 12:01): not on its list · allow with: claudemesh allow NAME api.x.com`
pub fn refusal(decision: &EgressDecision, service: &ServiceStatus, now_ms: i64) -> String {
    let EgressDecision { host, port, verdict, count, last_ms, .. } = decision;
    let word = if *verdict == Verdict::Unreachable { "failed" } else { "blocked" };
    let times = times(*count);
    let (cause, hint) = explanation(decision, service);
    let last = units::moment(*last_ms, now_ms);
    format!("{word} {}:{port} ({times}, last {last}): {cause} · {hint}", brief(host, 253))
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn explanation(decision: &EgressDecision, service: &ServiceStatus) -> (&'static str, String) {
    let as_written = as_rule(decision);
    let name = plain_line(&service.name);
    let is_listed = service.network.iter().any(|rule| rule.covers(&decision.host, decision.port));
    match (decision.verdict, as_written) {
        (Verdict::Allowed | Verdict::Learned, _) => ("let through", "nothing to do".to_owned()),
        (Verdict::NotListed, _) if is_listed => ("not on its list then", "it is now".to_owned()),
        (Verdict::NotListed, Some(rule)) => {
            ("not on its list", format!("allow with: claudemesh allow {name} {rule}"))
        }
        (Verdict::NotListed, None) => {
            ("it names an address", "only hosts can be allowed; let it connect by name".to_owned())
        }
        (Verdict::PrivateAddress, Some(rule)) => (
            "it means an address inside (private, loopback, link-local or metadata)",
            format!(
                "only the runner's operator can open it: --private-host {rule}, then claudemesh allow {name} {rule}"
            ),
        ),
        (Verdict::PrivateAddress, None) => {
            ("an address inside (private, loopback, link-local or metadata)", "nothing opens it".to_owned())
        }
        (Verdict::NameMismatch, _) => (
            "it looked up this host and then asked for another one",
            "nothing allows that; have it connect to the host that it asks for".to_owned(),
        ),
        (Verdict::NotTls, _) => (
            "it spoke neither TLS nor HTTP there",
            "only those leave by this port; have it use https".to_owned(),
        ),
        (Verdict::OverLimit, _) => (
            "too many connections at once, or too many bytes in a day",
            "have it use fewer, or wait; the runner's operator sets the limits".to_owned(),
        ),
        (Verdict::Unreachable, _) => (
            "unknown to DNS, or not answering",
            "check the name, and whether the runner's machine reaches it".to_owned(),
        ),
    }
}

/// As a person would type it, when it can be a rule at all. Safe for a shell: a rule has no other characters than names.
fn as_rule(decision: &EgressDecision) -> Option<String> {
    let rule = EgressRule::parse(&format!("{}:{}", decision.host, decision.port)).ok()?;
    match rule.host {
        wire::egress::Host::Below(_) => None,
        wire::egress::Host::Name(host) if rule.port == wire::egress::DEFAULT_PORT => Some(host),
        wire::egress::Host::Name(host) => Some(format!("{host}:{}", rule.port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::card::tests::service;

    fn decision(host: &str, port: u16, verdict: Verdict) -> EgressDecision {
        EgressDecision {
            host: host.into(),
            port,
            verdict,
            count: 3,
            last_ms: 0,
            sent_bytes: 0,
            received_bytes: 0,
            injected: 0,
        }
    }

    fn said(host: &str, port: u16, verdict: Verdict) -> String {
        refusal(&decision(host, port, verdict), &ServiceStatus { name: "s".into(), ..service() }, 0)
    }

    #[test]
    fn a_refusal_is_one_line_with_the_command_that_lifts_it() {
        let line = said("api.x.com", 443, Verdict::NotListed);
        assert!(line.starts_with("blocked api.x.com:443 (3 times, last "), "{line}");
        assert!(line.ends_with("): not on its list · allow with: claudemesh allow s api.x.com"), "{line}");
        assert!(said("api.x.com", 8443, Verdict::NotListed).ends_with("claudemesh allow s api.x.com:8443"));
    }

    #[test]
    fn what_can_not_be_allowed_is_not_offered() {
        for (host, verdict) in [
            ("203.0.113.9", Verdict::NotListed),
            ("169.254.169.254", Verdict::PrivateAddress),
            ("a.com", Verdict::NameMismatch),
            ("a.com", Verdict::NotTls),
            ("$(reboot)", Verdict::NotListed),
            ("*.com", Verdict::NotListed),
        ] {
            assert!(!said(host, 443, verdict).contains("claudemesh allow"), "{host} {verdict:?}");
        }
        assert!(said("db.corp", 5432, Verdict::PrivateAddress).contains("--private-host db.corp:5432"));
        assert!(said("a.com", 443, Verdict::Unreachable).starts_with("failed a.com:443"));
    }

    #[test]
    fn what_was_allowed_since_is_not_offered_again() {
        assert!(
            said("api.github.com", 443, Verdict::NotListed).ends_with("not on its list then · it is now")
        );
        assert!(
            said("api.github.com", 80, Verdict::NotListed).contains("claudemesh allow s api.github.com:80")
        );
    }

    #[test]
    fn a_hostile_host_stays_a_line() {
        let line = said("x\u{1b}[2J\n\u{202e}", 443, Verdict::NotListed);
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
    }

    #[test]
    fn a_limit_a_failed_update_and_a_drift_are_said_and_silence_only_to_those_who_know() {
        let mut service = service();
        service.reason = Some(Reason {
            code: ErrorCode::OutOfMemory,
            message: "it used 512 MiB".into(),
            stderr: Vec::new(),
        });
        let text = lines(&service, 0).join("\n");
        for part in [
            "limit: it used 512 MiB (out_of_memory)",
            "generation 3 failed",
            "approve echo",
            "blocked evil.com",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        (service.reason, service.failed_update, service.drift) = (None, None, None);
        service.egress.clear();
        assert_eq!(lines(&service, 0), ["restarted once: claudemesh logs echo says why"]);
        service.restarts = 0;
        assert_eq!(lines(&service, 0), ["nothing was blocked"]);
        service.manageable = false;
        assert!(lines(&service, 0)[0].contains("nothing that you may see"));
    }
}
