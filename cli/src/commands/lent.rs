//! What is shown of a live server: all that the mesh knows of it is what its host has registered.

use wire::ErrorCode;
use wire::peer::hosting::McpSchemaResult;
use wire::peer::live::{LiveServer, McpList, McpListResult};

use super::ask;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::bold;
use crate::plain::{brief, plain_line};
use crate::units;

pub const HEADER: [&str; 5] = ["LENT", "STATE", "TOOLS", "BY", "DESCRIPTION"];

pub fn row(server: &LiveServer) -> Vec<String> {
    vec![
        plain_line(&server.name),
        state(server),
        server.tools.len().to_string(),
        brief(&server.hosted_by, 40),
        brief(&server.description, 60),
    ]
}

pub fn card(server: &LiveServer) -> String {
    let LiveServer { name, description, hosted_by, tools, persistent, .. } = server;
    let stays = if *persistent { "stays listed while its host is away" } else { "goes with its host" };
    let lines = [
        ("lent by", plain_line(hosted_by)),
        ("about", plain_line(description)),
        ("runs", "on its host's machine, in no jail of ours".to_owned()),
        ("tools", tools.len().to_string()),
        ("kept", stays.to_owned()),
    ];
    let lines = lines.map(|(word, value)| format!("\n  {word:<12} {value}"));
    format!("{}  {}{}", bold(&plain_line(name)), state(server), lines.concat())
}

fn state(server: &LiveServer) -> String {
    let away = server.offline_since.as_deref().and_then(|since| units::since(since, units::now_ms()));
    match (server.online, away) {
        (true, _) => "online".to_owned(),
        (false, Some(away)) => format!("offline {}", units::span(away)),
        (false, None) => "offline".to_owned(),
    }
}

/// The live server that was meant, when no hosted service has the name; else the failure as it was.
pub async fn instead(here: &Here, failure: Failure, name: &str) -> Result<LiveServer, Failure> {
    if failure.code != Some(ErrorCode::NotFound) {
        return Err(failure);
    }
    // A broker of an earlier version knows none.
    let servers = ask::<_, McpListResult>(here, &McpList {}).await.map(|found| found.servers);
    servers.unwrap_or_default().into_iter().find(|server| server.name == name).ok_or(failure)
}

/// As `tools` shows a hosted one.
pub fn schema(server: LiveServer) -> McpSchemaResult {
    McpSchemaResult { server_name: server.name, tools: server.tools, ..McpSchemaResult::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_where_it_runs_and_whether_it_is_there() {
        let server: LiveServer = serde_json::from_str(
            r#"{"name":"lent","description":"python3 x\u001b[2J","hostedBy":"Ana","tools":[{"name":"a"}],"online":false,"persistent":true}"#,
        )
        .unwrap();
        let card = card(&server);
        for words in ["offline", "lent by      Ana", "in no jail", "tools        1", "stays listed"] {
            assert!(card.contains(words), "{words}: {card}");
        }
        assert!(!card.contains("\u{1b}[2J"), "{card}");
    }
}
