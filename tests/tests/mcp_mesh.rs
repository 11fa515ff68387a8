//! `claudemesh mcp`: the whole mesh as one MCP server, line by line as a client sees it; and the channel beside it.

use serde_json::{Value, json};
use tests::fixture::{self, text};
use tests::mcp_client::{Client, TOOLS_CHANGED};
use tests::{Person, World};

fn has(tools: &[Value], name: &str) -> bool {
    tools.iter().any(|tool| tool["name"] == name)
}

fn fixture_path(world: &World, name: &str) -> String {
    fixture::python_folder(&world.folder(name)).to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_service_deployed_in_the_middle_of_a_session_is_called_at_once() {
    World::scene(async |world| {
        let mut client = Client::legacy(&world.owner, "deploys", &[]).await;
        let tools = client.tools().await;
        assert!(has(&tools, "mesh_mcp_deploy") && has(&tools, "mesh_tool_call"));
        assert!(!tools.iter().any(|tool| tool["name"].as_str().unwrap().starts_with("svc__")));

        let path = fixture_path(world, "echo");
        let deploy = json!({
            "name": "mesh_mcp_deploy", "arguments": { "server_name": "echo", "path": path },
            "_meta": { "progressToken": "p1" },
        });
        let deployed = client.request("tools/call", deploy).await;
        assert_ne!(deployed["isError"], true, "{deployed}");
        assert!(text(&deployed).contains("svc__echo__echo"), "{deployed}");
        let progress: Vec<_> = client.heard.iter().filter(|line| line["method"] == "notifications/progress").collect();
        assert!(!progress.is_empty(), "a deploy tells its progress");
        assert!(progress.iter().all(|line| line["params"]["progressToken"] == "p1"), "{progress:?}");
        client.hears(TOOLS_CHANGED, |_| true).await;

        let tools = client.tools().await;
        let echo = tools.iter().find(|tool| tool["name"] == "svc__echo__echo").expect("it is listed");
        assert_eq!(echo["description"], "echo of the fixture");
        assert_eq!(echo["x-unknown"]["kept"].to_string(), "[1,2.0,null]", "whatever the server said");
        assert_eq!(client.says("svc__echo__echo", json!({ "text": "hi" })).await, "hi");
        let named = json!({ "server_name": "echo", "tool_name": "echo", "args": { "text": "by name" } });
        assert_eq!(client.says("mesh_tool_call", named).await, "by name");

        let steps = json!({ "name": "svc__echo__progress", "arguments": { "steps": 2 }, "_meta": { "progressToken": 7 } });
        assert_eq!(text(&client.request("tools/call", steps).await), "done");
        let last = client.hears("notifications/progress", |params| params["progress"] == 2).await;
        assert_eq!(last["progressToken"], 7);

        assert!(client.says("mesh_mcp_catalog", json!({})).await.contains("echo: running"));
        assert!(client.says("mesh_mcp_schema", json!({ "server_name": "echo", "tool_name": "echo" })).await.contains("## echo"));
        assert!(client.says("mesh_mcp_undeploy", json!({ "server_name": "echo" })).await.contains("removed"));
        client.tools_until("echo is gone", |tools| !has(tools, "svc__echo__echo")).await;
        let why = client.refuses("svc__echo__echo", json!({ "text": "x" })).await;
        assert!(why.contains("not_found"), "{why}");
        client.leave().await;
    })
    .await;
}

#[tokio::test]
async fn a_scope_gives_tools_and_takes_them_away() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let mut owner = Client::legacy(&world.owner, "owner", &[]).await;
        let mut other = Client::legacy(&bo, "bo", &[]).await;
        assert!(!has(&other.tools().await, "svc__echo__echo"));
        let path = fixture_path(world, "echo");
        owner.says("mesh_mcp_deploy", json!({ "server_name": "echo", "path": path })).await;
        let wrong =
            owner.refuses("mesh_mcp_scope", json!({ "server_name": "echo", "scope": "everyone" })).await;
        assert!(wrong.contains("scope must be"), "{wrong}");

        owner.says("mesh_mcp_scope", json!({ "server_name": "echo", "scope": "mesh" })).await;
        other.tools_until("echo is shared", |tools| has(tools, "svc__echo__echo")).await;
        assert_eq!(other.says("svc__echo__echo", json!({ "text": "shared" })).await, "shared");
        let denied = other.refuses("mesh_mcp_undeploy", json!({ "server_name": "echo" })).await;
        assert!(denied.contains("forbidden"), "{denied}");

        owner.says("mesh_mcp_scope", json!({ "server_name": "echo", "scope": "peer" })).await;
        other.tools_until("echo is private again", |tools| !has(tools, "svc__echo__echo")).await;
        let why = other.refuses("svc__echo__echo", json!({ "text": "x" })).await;
        assert!(why.contains("not_found"), "{why}");
        owner.leave().await;
        other.leave().await;
    })
    .await;
}

#[tokio::test]
async fn skills_are_prompts_and_resources_of_everybody() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let mut owner = Client::legacy(&world.owner, "owner", &[]).await;
        let mut other = Client::legacy(&bo, "bo", &[]).await;
        assert_eq!(other.request("prompts/list", json!({})).await["prompts"], json!([]));
        let skill = json!({
            "name": "review", "description": "Looks at code", "instructions": "# Read it all", "when_to_use": "before a merge",
            "argument_hint": "FILE",
        });
        owner.says("share_skill", skill).await;
        other.hears("notifications/prompts/list_changed", |_| true).await;
        let prompts = other.request("prompts/list", json!({})).await;
        assert_eq!(prompts["prompts"][0]["name"], "review");
        let prompt = json!({ "name": "review", "arguments": { "arguments": "main.rs" } });
        let prompt = other.request("prompts/get", prompt).await;
        let told = prompt["messages"][0]["content"]["text"].as_str().unwrap();
        assert!(told.starts_with("---\nname: review\n") && told.contains("when_to_use: before a merge"), "{told}");
        assert!(told.contains("# Read it all") && told.ends_with("ARGUMENTS: main.rs"), "{told}");

        let resources = other.request("resources/list", json!({})).await;
        assert_eq!(resources["resources"][0]["uri"], "skill://claudemesh/review");
        let read = other.request("resources/read", json!({ "uri": "skill://claudemesh/review" })).await;
        assert_eq!(read["contents"][0]["mimeType"], "text/markdown");
        let listed = other.request("skills/list", json!({})).await;
        assert_eq!(listed["skills"][0]["uri"], "skill://claudemesh/review/SKILL.md");
        let unknown = other.ask("prompts/get", json!({ "name": "nothing" })).await;
        assert!(unknown["error"]["message"].as_str().unwrap().contains("no skill `nothing`"), "{unknown}");
        assert!(other.refuses("remove_skill", json!({ "name": "review" })).await.contains("forbidden"));

        let folder = world.folder("bundle");
        fixture::write_tree(
            &folder,
            &[("SKILL.md", "---\nname: bundle\ndescription: With files\n---\nUse it."), ("templates/a.txt", "a template")],
        );
        owner.says("mesh_skill_deploy", json!({ "path": folder })).await;
        let file = json!({ "uri": "skill://claudemesh/bundle/templates/a.txt" });
        let file = owner.request("resources/read", file).await;
        assert_eq!(file["contents"][0]["text"], "a template");

        owner.says("remove_skill", json!({ "name": "review" })).await;
        other.hears("notifications/resources/list_changed", |_| true).await;
        owner.leave().await;
        other.leave().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_of_this_machine_is_lent_while_the_session_lives() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let mut host = Client::legacy(&world.owner, "host", &[]).await;
        let mut other = Client::legacy(&bo, "bo", &[]).await;
        let script = fixture::python_folder(&world.folder("lent")).join("server.py");
        let lend =
            json!({ "server_name": "local", "description": "A fixture.", "command": ["python3", script] });
        assert!(host.says("mesh_mcp_register", lend).await.contains("local is lent"));
        other.tools_until("local is there", |tools| has(tools, "svc__local__echo")).await;
        assert_eq!(other.says("svc__local__echo", json!({ "text": "lent" })).await, "lent");
        assert!(!has(&host.tools().await, "svc__local__echo"), "what is lent here is not offered here");
        host.leave().await;
        other.tools_until("local went with its session", |tools| !has(tools, "svc__local__echo")).await;
        assert_eq!(other.says("mesh_mcp_list", json!({})).await, "No live server is lent to the mesh.");
        other.leave().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_lent_for_good_is_offline_when_its_process_ends_though_the_session_goes_on() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        // Another process of the session, which keeps the link up.
        let mut rest = Client::legacy(&world.owner, "host", &["--channel"]).await;
        rest.hears("notifications/claude/channel", |params| params["meta"]["kind"] == "welcome").await;
        let mut host = Client::legacy(&world.owner, "host", &[]).await;
        let mut other = Client::legacy(&bo, "bo", &[]).await;
        let script = fixture::python_folder(&world.folder("lent")).join("server.py");
        let lend = json!({
            "server_name": "local", "description": "A fixture.", "command": ["python3", script], "persistent": true,
        });
        host.says("mesh_mcp_register", lend.clone()).await;
        other.tools_until("local is there", |tools| has(tools, "svc__local__echo")).await;
        assert_eq!(other.says("svc__local__echo", json!({ "text": "lent" })).await, "lent");
        host.leave().await;
        let why = other.refuses("svc__local__echo", json!({ "text": "x" })).await;
        assert!(why.contains("is offline") && why.contains("host_offline"), "{why}");
        assert!(other.says("mesh_mcp_list", json!({})).await.contains("OFFLINE since"));
        assert!(has(&other.tools().await, "svc__local__echo"), "it stays listed");

        let mut again = Client::legacy(&world.owner, "host", &[]).await;
        again.says("mesh_mcp_register", lend).await;
        assert_eq!(other.says("svc__local__echo", json!({ "text": "back" })).await, "back");
        for client in [again, rest, other] {
            client.leave().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_agent_answers_the_calls_of_a_server_that_it_lends() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let mut host = Client::legacy(&world.owner, "host", &[]).await;
        let mut channel = Client::legacy(&world.owner, "host", &["--channel"]).await;
        channel.hears("notifications/claude/channel", |params| params["meta"]["kind"] == "welcome").await;
        let mut other = Client::legacy(&bo, "bo", &[]).await;
        let tool =
            json!({ "name": "ask", "description": "Asks the agent", "inputSchema": { "type": "object" } });
        let lend = json!({ "server_name": "agent", "description": "An agent.", "tools": [tool] });
        host.says("mesh_mcp_register", lend).await;
        let question = json!({ "server_name": "agent", "tool_name": "ask", "args": { "q": "why?" } });
        let (answer, ()) = tokio::join!(other.says("mesh_tool_call", question), async {
            let pushed = channel
                .hears("notifications/claude/channel", |params| params["meta"]["kind"] == "call")
                .await;
            assert!(pushed["content"].as_str().unwrap().contains("why?"), "{pushed}");
            let call_id = pushed["meta"]["call_id"].as_str().unwrap();
            let waiting = host.says("mesh_mcp_calls", json!({ "wait_s": 25 })).await;
            assert!(waiting.contains(call_id) && waiting.contains("bo calls ask of agent"), "{waiting}");
            host.says("mesh_mcp_respond", json!({ "call_id": call_id, "result": "because" })).await;
        });
        assert_eq!(answer, "because");
        assert_eq!(host.says("mesh_mcp_calls", json!({})).await, "no call waits");
        host.leave().await;
        channel.leave().await;
        other.leave().await;
    })
    .await;
}

#[tokio::test]
async fn the_channel_pushes_what_happens_and_speaks_the_legacy_era_only() {
    World::scene(async |world| {
        let mut channel = Client::start(&world.owner, "pushes", &["--channel"]);
        let probe = json!({ "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {} } });
        let refused = channel.ask("server/discover", probe).await;
        assert_eq!(refused["error"]["code"], -32601, "{refused}");
        let about = channel.initialize().await;
        assert_eq!(about["capabilities"]["experimental"]["claude/channel"], json!({}));
        assert!(about["capabilities"]["tools"].is_null());
        let welcome = channel.hears("notifications/claude/channel", |_| true).await;
        assert_eq!(welcome["meta"]["kind"], "welcome");
        assert!(welcome["meta"].as_object().unwrap().values().all(Value::is_string), "{welcome}");

        let path = fixture_path(world, "echo");
        world.owner.ok(["deploy", "echo", &path]).await;
        let is_deploy = |params: &Value| params["meta"]["event"] == "mcp_deployed";
        let pushed = channel.hears("notifications/claude/channel", is_deploy).await;
        assert_eq!(pushed["meta"]["service"], "echo");
        assert!(pushed["content"].as_str().unwrap().starts_with("[SERVICE] \"echo\" deployed"), "{pushed}");
        channel.leave().await;
    })
    .await;
}

#[tokio::test]
async fn without_a_mesh_every_call_says_what_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = Person {
        name: "nobody".into(),
        config: folder.path().join("config"),
        home: folder.path().to_owned(),
    };
    for flags in [&[][..], &["--service", "echo"], &["--channel"]] {
        let mut client = Client::legacy(&nobody, "none", flags).await;
        assert_eq!(client.tools().await.len(), 1, "{flags:?}");
        let why = client.refuses("svc__echo__echo", json!({})).await;
        assert!(why.contains("claudemesh join") && why.contains("restart"), "{why}");
        client.leave().await;
    }
    std::fs::create_dir_all(&nobody.config).unwrap();
    std::fs::write(nobody.config.join("config.json"), "{ broken").unwrap();
    let mut client = Client::legacy(&nobody, "none", &[]).await;
    assert!(client.refuses("mesh_mcp_catalog", json!({})).await.contains("not a claudemesh config"));
    client.leave().await;
}

#[tokio::test]
async fn a_session_outlives_its_broker() {
    World::scene(async |world| {
        let path = fixture_path(world, "echo");
        world.owner.ok(["deploy", "echo", &path]).await;
        world.down().await;
        let mut client = Client::legacy(&world.owner, "patient", &[]).await;
        assert!(has(&client.tools().await, "mesh_mcp_deploy"), "its own tools are there without a broker");
        world.up().await;
        client.tools_until("the broker is back", |tools| has(tools, "svc__echo__echo")).await;
        assert_eq!(client.says("svc__echo__echo", json!({ "text": "again" })).await, "again");
        client.leave().await;
    })
    .await;
}

#[tokio::test]
async fn a_modern_client_is_served_without_a_handshake() {
    World::scene(async |world| {
        let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {} });
        let mut client = Client::start(&world.owner, "modern", &[]);
        let about = client.request("server/discover", json!({ "_meta": meta })).await;
        assert_eq!(about["capabilities"]["tools"]["listChanged"], true);
        assert!(about["instructions"].as_str().unwrap().contains("mesh_tool_call"));
        let notifications = json!({ "toolsListChanged": true });
        let listen = json!({ "jsonrpc": "2.0", "id": "listen", "method": "subscriptions/listen",
            "params": { "_meta": meta, "notifications": notifications } });
        client.send(&listen).await;
        client.hears("notifications/subscriptions/acknowledged", |_| true).await;
        let listed = client.request("tools/list", json!({ "_meta": meta })).await;
        assert_eq!(listed["resultType"], "complete");
        let path = fixture_path(world, "echo");
        let deploy = json!({ "name": "mesh_mcp_deploy", "arguments": { "server_name": "echo", "path": path }, "_meta": meta });
        let deployed = client.request("tools/call", deploy).await;
        assert_ne!(deployed["isError"], true, "{deployed}");
        client.hears(TOOLS_CHANGED, |params| params["_meta"]["io.modelcontextprotocol/subscriptionId"] == "listen").await;
        let echo = json!({ "name": "svc__echo__echo", "arguments": { "text": "new" }, "_meta": meta });
        assert_eq!(text(&client.request("tools/call", echo).await), "new");
        client.leave().await;
    })
    .await;
}
