//! Looking at hosted services: catalog, schema, logs, scope.

use serde::Deserialize;
use serde_json::Value;
use wire::peer::hosting::{
    McpCatalog, McpCatalogResult, McpLogs, McpLogsResult, McpSchema, McpSchemaResult, McpScope,
    McpScopeResult, ServiceStatus,
};
use wire::peer::live::{LiveServer, McpList, McpListResult};
use wire::{ErrorCode, RawJson, Scope};

use super::super::words::Refusal;
use super::super::{Mesh, splice};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Logs {
    server_name: String,
    lines: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScopeOf {
    server_name: String,
    scope: Option<Scope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SchemaOf {
    server_name: String,
    tool_name: Option<String>,
}

impl Mesh {
    pub(super) async fn catalog(&self) -> Result<String, Refusal> {
        let McpCatalogResult { services } = self.member.connection.request(&McpCatalog {}).await?;
        if services.is_empty() {
            return Ok("No service of the mesh is visible to you. Host one with mesh_mcp_deploy.".to_owned());
        }
        let lines: Vec<_> = services.iter().map(service_line).collect();
        Ok(lines.join("\n"))
    }

    pub(super) async fn logs(&self, input: Logs) -> Result<String, Refusal> {
        let Logs { server_name, lines } = input;
        let frame = McpLogs { server_name: server_name.clone(), lines, follow: false };
        let found: Result<McpLogsResult, _> = self.member.connection.request(&frame).await;
        let found = found.map_err(|error| Refusal::of_client(&error, &server_name))?;
        if found.lines.is_empty() {
            return Ok(format!("{server_name} has written nothing yet"));
        }
        Ok(format!("```\n{}\n```", found.lines.join("\n")))
    }

    pub(super) async fn scope(&self, input: ScopeOf) -> Result<String, Refusal> {
        let ScopeOf { server_name, scope } = input;
        let is_set = scope.is_some();
        let frame = McpScope { server_name: server_name.clone(), scope };
        let found: Result<McpScopeResult, _> = self.member.connection.request(&frame).await;
        let found = found.map_err(|error| Refusal::of_client(&error, &server_name))?;
        let scope = splice::of(&found.scope);
        let verb = if is_set { "is now" } else { "is" };
        Ok(format!("the scope of {server_name} {verb} {scope}; deployed by {}", found.deployed_by))
    }

    pub(super) async fn schema(&self, input: SchemaOf) -> Result<String, Refusal> {
        let SchemaOf { server_name, tool_name } = input;
        let frame = McpSchema { server_name: server_name.clone(), tool_name: None };
        let found: Result<McpSchemaResult, _> = self.member.connection.request(&frame).await;
        let tools = match found {
            Ok(schema) => schema.tools,
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                let live = self.live_server(&server_name).await?;
                live.ok_or_else(|| Refusal::of_client(&error, &server_name))?.tools
            }
            Err(error) => return Err(Refusal::of_client(&error, &server_name)),
        };
        schema_words(&server_name, &tools, tool_name.as_deref())
    }

    pub(super) async fn live_server(&self, name: &str) -> Result<Option<LiveServer>, Refusal> {
        let McpListResult { servers } = self.member.connection.request(&McpList {}).await?;
        Ok(servers.into_iter().find(|server| server.name == name))
    }
}

fn service_line(service: &ServiceStatus) -> String {
    let ServiceStatus { name, status, description, tool_count, scope, deployed_by, source, .. } = service;
    let why = service.reason.as_ref().map(|reason| format!(" ({}: {})", reason.code, reason.message));
    let scope = splice::of(scope);
    let mut line = format!(
        "- {name}: {status}{}, {tool_count} tools, scope {scope}, deployed by {deployed_by}, {source}",
        why.unwrap_or_default()
    );
    if !description.is_empty() {
        line.push_str(&format!(" — {description}"));
    }
    line
}

fn schema_words(server: &str, tools: &[RawJson], wanted: Option<&str>) -> Result<String, Refusal> {
    let mut text = String::new();
    for tool in tools {
        let name = splice::text_member(tool, "name").unwrap_or_default();
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let about = splice::text_member(tool, "description").unwrap_or_default();
        let schema =
            splice::member(tool, "inputSchema").and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
        let schema = schema.and_then(|schema| serde_json::to_string_pretty(&schema).ok()).unwrap_or_default();
        text.push_str(&format!("## {name}\n{about}\n```json\n{schema}\n```\n"));
    }
    match (text.is_empty(), wanted) {
        (false, _) => Ok(text),
        (true, None) => Ok(format!("{server} offers no tools")),
        (true, Some(wanted)) => {
            let names: Vec<_> = tools.iter().filter_map(|tool| splice::text_member(tool, "name")).collect();
            Err(Refusal(format!("{server} has no tool `{wanted}`; it has: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_is_answered_with_those_that_are() {
        let tool = serde_json::value::RawValue::from_string(
            r#"{"name":"say","description":"Says","inputSchema":{"type":"object"}}"#.to_owned(),
        )
        .unwrap();
        let tools = [tool];
        let text = schema_words("a", &tools, Some("say")).unwrap();
        assert!(text.starts_with("## say\nSays\n```json\n{\n  \"type\": \"object\"\n}"), "{text}");
        let Refusal(why) = schema_words("a", &tools, Some("shout")).unwrap_err();
        assert_eq!(why, "a has no tool `shout`; it has: say");
    }
}
