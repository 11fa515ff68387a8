//! Twenty real MCP servers from npm and PyPI, as they are, each in a jail of the strict tier and with the egress that it
//! needs and no more.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tests::{World, fixture};

struct Case {
    name: &'static str,
    /// What follows `claudemesh deploy NAME`.
    deploy: String,
    /// A tool, its arguments, and what the answer must hold. `None`: everything it can do needs an account.
    call: Option<(&'static str, Value, &'static str)>,
}

/// Installing is bound by the processor: more at once would only be slower.
const AT_ONCE: usize = 3;

fn listed(name: &'static str, deploy: &str) -> Case {
    Case { name, deploy: deploy.into(), call: None }
}

fn calls(name: &'static str, deploy: &str, tool: &'static str, args: Value, says: &'static str) -> Case {
    Case { name, deploy: deploy.into(), call: Some((tool, args, says)) }
}

/// The registry that this machine is set up for: the one public host that is certain to answer.
async fn registry() -> String {
    let asked =
        tokio::process::Command::new("npm").args(["config", "get", "registry"]).output().await.unwrap();
    String::from_utf8(asked.stdout).unwrap().trim().trim_end_matches('/').to_owned()
}

fn of_npm() -> Vec<Case> {
    vec![
        calls(
            "everything",
            "-- npx -y @modelcontextprotocol/server-everything",
            "echo",
            json!({ "message": "hello" }),
            "hello",
        ),
        calls(
            "filesystem",
            "-- npx -y @modelcontextprotocol/server-filesystem ${HOME}",
            "list_allowed_directories",
            json!({}),
            "/home",
        ),
        calls(
            "memory",
            "--env MEMORY_FILE_PATH=${HOME}/graph.jsonl -- npx -y @modelcontextprotocol/server-memory",
            "create_entities",
            json!({ "entities": [{ "name": "Ana", "entityType": "person", "observations": ["likes tea"] }] }),
            "likes tea",
        ),
        calls(
            "thinking",
            "-- npx -y @modelcontextprotocol/server-sequential-thinking",
            "sequentialthinking",
            json!({ "thought": "so", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 7 }),
            "7",
        ),
        listed("github", "--network api.github.com -- npx -y @modelcontextprotocol/server-github"),
        listed(
            "slack",
            "--network slack.com --env SLACK_BOT_TOKEN=xoxb-1 --env SLACK_TEAM_ID=T1 -- npx -y @modelcontextprotocol/server-slack",
        ),
        listed("context7", "--network context7.com,mcp.context7.com -- npx -y @upstash/context7-mcp"),
        listed("playwright", "-- npx -y @playwright/mcp"),
        listed(
            "notion",
            "--network api.notion.com --env NOTION_TOKEN=ntn_1 -- npx -y @notionhq/notion-mcp-server",
        ),
        listed("tavily", "--network api.tavily.com --env TAVILY_API_KEY=tvly-1 -- npx -y tavily-mcp"),
        listed("devtools", "-- npx -y chrome-devtools-mcp"),
        listed(
            "brave",
            "--network api.search.brave.com --env BRAVE_API_KEY=b1 -- npx -y @brave/brave-search-mcp-server",
        ),
        listed("chart", "-- npx -y @antv/mcp-server-chart"),
    ]
}

async fn of_pypi() -> Vec<Case> {
    let registry = registry().await;
    let host = registry.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next()).unwrap();
    vec![
        // A real page over TLS, by a client that knows nothing of us and refuses inside addresses.
        calls(
            "fetch",
            &format!("--network {host} -- uvx mcp-server-fetch --ignore-robots-txt"),
            "fetch",
            json!({ "url": format!("{registry}/is-number/latest"), "raw": true }),
            "is-number",
        ),
        calls(
            "time",
            "--uvx mcp-server-time --args --local-timezone=UTC",
            "convert_time",
            json!({ "source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo" }),
            "21:00",
        ),
        listed("git", "-- uvx mcp-server-git"),
        calls(
            "calculator",
            "-- uvx mcp-server-calculator",
            "calculate",
            json!({ "expression": "6*7" }),
            "42",
        ),
        listed("arxiv", "--network export.arxiv.org -- uvx arxiv-mcp-server --storage-path ${HOME}"),
        listed("duckduckgo", "--network html.duckduckgo.com -- uvx duckduckgo-mcp-server"),
        listed("excel", "-- uvx excel-mcp-server stdio"),
    ]
}

/// What is wrong with it, if anything: one broken server must not hide the others.
async fn prove(world: &World, case: &Case) -> Result<(), String> {
    let Case { name, deploy, call } = case;
    let words = ["deploy", *name].into_iter().chain(deploy.split_whitespace());
    let deployed = world.owner.run(words).await;
    if !deployed.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&deployed.stderr)));
    }
    let status = world.status(name).await;
    if status["tier"] != "strict" {
        return Err(format!("{name} is not strictly jailed: {status}"));
    }
    let peer = world.owner.peer().await;
    let schema = peer.request("mcp_schema", json!({ "server_name": name })).await;
    if schema["tools"].as_array().is_none_or(Vec::is_empty) {
        return Err(format!("{name} lists no tool: {schema}"));
    }
    if let Some((tool, args, says)) = call {
        let answer = peer.call(name, tool, args.clone()).await;
        if answer["result"]["isError"] == json!(true) || !answer["result"].is_object() {
            return Err(format!("{name}: {answer}"));
        }
        if !fixture::text(&answer["result"]).contains(says) {
            return Err(format!("{name} does not say `{says}`: {answer}"));
        }
    }
    // Twenty at once would measure the machine's memory.
    world.owner.ok(["stop", name]).await;
    Ok(())
}

async fn prove_all(cases: Vec<Case>) {
    World::scene(async |world| {
        let proofs = stream::iter(&cases).map(|case| prove(world, case)).buffer_unordered(AT_ONCE);
        let wrong: Vec<String> = proofs.filter_map(async |proof| proof.err()).collect().await;
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    })
    .await;
}

#[tokio::test]
async fn thirteen_servers_of_npm_run_unchanged_in_the_strict_jail() {
    prove_all(of_npm()).await;
}

#[tokio::test]
async fn seven_servers_of_pypi_run_unchanged_in_the_strict_jail() {
    prove_all(of_pypi().await).await;
}
