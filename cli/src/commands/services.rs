//! `ls`, `status`, `scope`.

use std::time::Duration;

use wire::Scope;
use wire::peer::hosting::{
    McpCatalog, McpCatalogResult, McpScope, McpScopeResult, McpStatus, McpStatusResult, ServiceStatus,
};
use wire::report::Reason;

use super::ask;
use super::deploy::pin_words;
use crate::args::ScopeArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::{bold, table};
use crate::plain::{brief, plain_line};
use crate::units;

const REASON_WIDTH: usize = 48;

pub async fn list(here: &Here) -> Result<(), Failure> {
    let found: McpCatalogResult = ask(here, &McpCatalog {}).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.services.is_empty() {
        here.out.remark("no services that you may see; deploy one: claudemesh deploy NAME -- npx -y PACKAGE");
        return Ok(());
    }
    let header = ["NAME", "STATE", "REASON", "TOOLS", "RESTARTS", "MEMORY", "UPTIME", "SCOPE", "SOURCE"];
    let now = units::now_ms();
    here.out.line(table(&header, found.services.iter().map(|service| row(service, now)).collect()));
    Ok(())
}

fn row(service: &ServiceStatus, now_ms: i64) -> Vec<String> {
    let reason = match (&service.reason, &service.failed_update) {
        (Some(reason), _) => brief(&reason.message, REASON_WIDTH),
        (None, Some(failed)) => brief(&format!("update failed: {}", failed.reason.message), REASON_WIDTH),
        (None, None) => "-".to_owned(),
    };
    vec![
        plain_line(&service.name),
        plain_line(&service.phase),
        reason,
        service.tool_count.to_string(),
        service.restarts.to_string(),
        service.memory_bytes.map_or_else(|| "-".to_owned(), units::size),
        uptime(service, now_ms).map_or_else(|| "-".to_owned(), units::span),
        brief(&scope_words(&service.scope), 32),
        brief(&service.source, 64),
    ]
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

pub async fn status(here: &Here, name: &str) -> Result<(), Failure> {
    let found: McpStatusResult = ask(here, &McpStatus { server_name: name.to_owned() }).await?;
    if here.out.json {
        return here.out.document(&found.service);
    }
    here.out.line(card(&found.service, units::now_ms()));
    Ok(())
}

fn card(service: &ServiceStatus, now_ms: i64) -> String {
    let ServiceStatus { name, phase, generation, source, deployed_by, restarts, .. } = service;
    let mut text = format!("{}  {}\n", bold(&plain_line(name)), plain_line(phase));
    let mut line = |word: &str, value: String| text.push_str(&format!("  {word:<12} {value}\n"));
    line("source", plain_line(source));
    if let Some(pin) = &service.pin {
        line("pinned", format!("{}  {}", pin_words(pin), brief(&pin.integrity, 80)));
    }
    line("generation", generation.to_string());
    line("deployed by", format!("{}, {}", plain_line(deployed_by), plain_line(&service.created_at)));
    line("seen by", scope_words(&service.scope));
    line("tools", service.tool_count.to_string());
    if let Some(up) = uptime(service, now_ms) {
        let pid = service.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        line("up for", format!("{}{pid}", units::span(up)));
    }
    if let Some(bytes) = service.memory_bytes {
        line("memory", units::size(bytes));
    }
    line("restarts", restarts.to_string());
    if !service.args.is_empty() {
        line("arguments", plain_line(&service.args.join(" ")));
    }
    if !service.env_names.is_empty() {
        line("environment", plain_line(&service.env_names.join(", ")));
    }
    if let Some(reason) = &service.reason {
        line("reason", reason_words(reason, name));
    }
    if let Some(failed) = &service.failed_update {
        let words = reason_words(&failed.reason, name);
        line("last update", format!("generation {} failed: {words}", failed.generation));
    }
    text.trim_end().to_owned()
}

fn reason_words(reason: &Reason, service: &str) -> String {
    let mut text = format!("{} ({})", plain_line(&reason.message), reason.code);
    for line in &reason.stderr {
        text.push_str(&format!("\n               | {}", plain_line(line)));
    }
    text.push_str(&format!("\n               {}", plain_line(&reason.code.cure().replace("NAME", service))));
    text
}

pub async fn scope(here: &Here, args: &ScopeArgs) -> Result<(), Failure> {
    let wanted = args.audience()?;
    let is_change = wanted.is_some();
    let frame = McpScope { server_name: args.name.clone(), scope: wanted };
    let found: McpScopeResult = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    let word = if is_change { "is now seen by" } else { "is seen by" };
    here.out.line(format!("{} {word} {}", args.name, scope_words(&found.scope)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> ServiceStatus {
        serde_json::from_str(
            r#"{"name":"echo","type":"mcp","description":"d","status":"running","tool_count":3,"deployed_by":"Ana",
            "scope":{"type":"groups","groups":["a","b"]},"source_type":"npx","created_at":"2026-01-02T03:04:05.678Z",
            "phase":"ready","generation":2,"source":"npm evil\u001b[2J@1","env_names":["TOKEN"],"args":["--x"],
            "failed_update":{"generation":3,"reason":{"code":"start_exited","message":"it ended","stderr":["no\u0007key"]}},
            "pin":{"kind":"npm","name":"evil","version":"1","integrity":"sha512-x","artefact":"ab"},
            "restarts":1,"memory_bytes":1572864,"ready_since":"2026-01-02T03:04:05.000Z","pid":7,
            "updated_at":"2026-01-02T03:04:06.000Z","manageable":true}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_row_says_state_memory_uptime_and_the_failed_update() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-01-02T05:04:05Z").unwrap().timestamp_millis();
        let row = row(&service(), now);
        assert_eq!(
            row,
            [
                "echo",
                "ready",
                "update failed: it ended",
                "3",
                "1",
                "1.5 MB",
                "2h00m",
                "@a, @b",
                "npm evil␛[2J@1"
            ]
        );
    }

    #[test]
    fn a_card_shows_why_and_is_safe_to_print() {
        let card = card(&service(), 0);
        for part in ["generation 3 failed", "start_exited", "no␇key", "TOKEN", "pid 7", "sha512-x"] {
            assert!(card.contains(part), "{part} in {card}");
        }
        assert!(!card.chars().any(|c| c.is_control() && c != '\n'), "{card:?}");
    }
}
