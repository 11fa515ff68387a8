//! Live servers, by tool: lend one, answer its calls, list and remove.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use wire::peer::live::{LiveServer, McpList, McpListResult};
use wire::{RawJson, ServiceName};

use super::super::lending::{self, AnsweredBy, Lent, marked, response};
use super::super::words::{Refusal, tool_text};
use super::super::{Mesh, splice};
use super::Named;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    server_name: String,
    description: String,
    tools: Option<Vec<RawJson>>,
    command: Option<Vec<String>>,
    #[serde(default)]
    persistent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Respond {
    call_id: String,
    result: Option<RawJson>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Calls {
    #[serde(default)]
    wait_s: u64,
}

const MAX_WAIT: u64 = 25;

impl Mesh {
    pub(super) async fn register(&self, input: Register) -> Result<String, Refusal> {
        let Register { server_name, description, tools, command, persistent } = input;
        ServiceName::parse(&server_name)
            .map_err(|e| Refusal(format!("`server_name`: {e} (invalid_name)")))?;
        let lent = match (tools, command) {
            (Some(tools), None) => {
                let tools = checked(&tools)?;
                Lent { description, tools, persistent, by: AnsweredBy::Agent, news: None }
            }
            (None, Some(command)) => {
                lending::start(command, description, persistent).await.map_err(Refusal)?
            }
            _ => return Err(Refusal("give exactly one of `tools` and `command` (invalid_args)".to_owned())),
        };
        let is_agents = matches!(lent.by, AnsweredBy::Agent);
        let ack = self.lending.lend(&self.member.connection, &server_name, lent).await?;
        if self.refresh_live().await {
            self.tools_changed();
        }
        let mut text = format!("{} is lent to the mesh with {} tools", ack.server_name, ack.tool_count);
        if is_agents {
            text.push_str(
                "; look for calls with mesh_mcp_calls and answer each within 30 s with mesh_mcp_respond",
            );
        }
        Ok(text)
    }

    pub(super) async fn respond(&self, input: Respond) -> Result<String, Refusal> {
        let Respond { call_id, result, error } = input;
        let outcome = match (result, error) {
            (Some(result), None) => Ok(as_tool_result(&result)),
            (None, Some(error)) => Err(error),
            _ => return Err(Refusal("give exactly one of `result` and `error` (invalid_args)".to_owned())),
        };
        if !self.lending.settle(&call_id) {
            return Err(Refusal(format!(
                "no call `{call_id}` waits: it was answered, or nobody waits any more"
            )));
        }
        self.member.connection.tell(&response(&call_id, outcome)).await?;
        Ok("answered".to_owned())
    }

    pub(super) async fn calls(&self, input: Calls) -> Result<String, Refusal> {
        let patience = Duration::from_secs(input.wait_s.min(MAX_WAIT));
        let _ = tokio::time::timeout(patience, self.lending.some_waiting()).await;
        let waiting = self.lending.waiting();
        if waiting.is_empty() {
            return Ok("no call waits".to_owned());
        }
        let lines = waiting.iter().map(|call| {
            let args: String = call.args.get().chars().take(20_000).collect();
            format!(
                "- call_id {}: {} calls {} of {} with {args}",
                call.call_id, call.caller_name, call.tool_name, call.server_name
            )
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    pub(super) async fn live_list(&self) -> Result<String, Refusal> {
        let McpListResult { servers } = self.member.connection.request(&McpList {}).await?;
        if servers.is_empty() {
            return Ok("No live server is lent to the mesh.".to_owned());
        }
        Ok(servers.iter().map(live_line).collect::<Vec<_>>().join("\n"))
    }

    pub(super) async fn unregister(&self, input: Named) -> Result<String, Refusal> {
        let Named { server_name } = input;
        let done = self.lending.remove(&self.member.connection, &server_name).await;
        done.map_err(|error| Refusal::of_client(&error, &server_name))?;
        if self.refresh_live().await {
            self.tools_changed();
        }
        Ok(format!("{server_name} is no longer lent"))
    }
}

/// Tools as the original asked for them: each with name, description and schema.
fn checked(tools: &[RawJson]) -> Result<Vec<RawJson>, Refusal> {
    let bad = |n: usize, rule: &str| Refusal(format!("`tools[{n}]`: {rule} (invalid_args)"));
    if tools.is_empty() {
        return Err(Refusal("`tools` is empty (invalid_args)".to_owned()));
    }
    let check = |(n, tool): (usize, &RawJson)| {
        for field in ["name", "description"] {
            splice::text_member(tool, field)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| bad(n, &format!("`{field}` is missing, or no text")))?;
        }
        splice::member(tool, "inputSchema")
            .filter(|schema| schema.get().starts_with('{'))
            .ok_or_else(|| bad(n, "`inputSchema` is missing, or no object"))?;
        marked(tool).ok_or_else(|| bad(n, "`_meta` is no object"))
    };
    tools.iter().enumerate().map(check).collect()
}

/// What the agent answered, as an MCP tool result.
fn as_tool_result(result: &RawValue) -> RawJson {
    if splice::member(result, "content").is_some_and(|content| content.get().starts_with('[')) {
        return result.to_owned();
    }
    match serde_json::from_str::<Value>(result.get()) {
        Ok(Value::String(text)) => tool_text(&text, false),
        Ok(other) => tool_text(&serde_json::to_string_pretty(&other).unwrap_or_default(), false),
        Err(_) => tool_text(result.get(), false),
    }
}

fn live_line(server: &LiveServer) -> String {
    let LiveServer { name, description, hosted_by, tools, online, offline_since, .. } = server;
    let state = match (online, offline_since) {
        (true, _) => String::new(),
        (false, Some(since)) => format!(" [OFFLINE since {since}]"),
        (false, None) => " [OFFLINE]".to_owned(),
    };
    let own = if server.own { ", yours" } else { "" };
    let mut line = format!("- {name}{state}: {description} (by {hosted_by}{own})");
    for tool in tools {
        let name = splice::text_member(tool, "name").unwrap_or_default();
        let about = splice::text_member(tool, "description").unwrap_or_default();
        line.push_str(&format!("\n  - {name}: {}", about.lines().next().unwrap_or_default()));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawJson {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_tool_without_its_parts_is_refused_by_its_place() {
        let good = raw(r#"{"name":"a","description":"d","inputSchema":{}}"#);
        for (bad, rule) in [
            (r#"{"description":"d","inputSchema":{}}"#, "`tools[1]`: `name`"),
            (r#"{"name":"a","inputSchema":{}}"#, "`tools[1]`: `description`"),
            (r#"{"name":"a","description":"d","inputSchema":[]}"#, "`tools[1]`: `inputSchema`"),
            ("7", "`tools[1]`: `name`"),
        ] {
            let Refusal(why) = checked(&[good.clone(), raw(bad)]).unwrap_err();
            assert!(why.contains(rule), "{why}");
        }
        assert!(checked(&[]).is_err());
        assert_eq!(checked(&[good]).unwrap().len(), 1);
    }

    #[test]
    fn whatever_the_agent_answers_becomes_a_tool_result() {
        assert_eq!(as_tool_result(&raw(r#"{"content":[ ],"x":1.0}"#)).get(), r#"{"content":[ ],"x":1.0}"#);
        assert!(as_tool_result(&raw(r#""hello""#)).get().contains(r#""text":"hello""#));
        assert!(as_tool_result(&raw(r#"{"a":1}"#)).get().contains(r#"\"a\": 1"#));
    }
}
