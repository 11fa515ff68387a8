//! Real servers from real registries, git and archives: each is deployed, lists its tools, does something that can be
//! checked, and shows what exactly runs.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::git::{GitHost, TOKEN};
use tests::web::Web;
use tests::{Setup, World, eventually, fixture};

struct Case {
    name: &'static str,
    /// What follows `claudemesh deploy NAME`.
    deploy: Vec<String>,
    pin: &'static str,
    tool: &'static str,
    args: Value,
    /// Must be in the answer.
    says: String,
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// One case, front to back; gives the status.
async fn prove(world: &World, case: Case) -> Value {
    let Case { name, deploy, pin, tool, args, says } = case;
    let command = ["deploy".to_owned(), name.to_owned()].into_iter().chain(deploy);
    world.owner.ok(command).await;
    let peer = world.owner.peer().await;
    let schema = peer.request("mcp_schema", json!({ "server_name": name })).await;
    let tools: Vec<_> = schema["tools"].as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert!(tools.contains(&json!(tool)), "{name} lists {tools:?}");
    let answer = peer.call(name, tool, args).await;
    assert!(answer["result"]["isError"] != json!(true), "{name}: {answer}");
    assert!(fixture::text(&answer["result"]).contains(&says), "{name} says `{says}`: {answer}");
    let status = world.status(name).await;
    assert_eq!(status["pin"]["kind"], pin, "{status}");
    for field in ["version", "integrity", "artefact"] {
        assert!(
            status["pin"][field].as_str().is_some_and(|text| !text.is_empty()),
            "{name} pin.{field}: {status}"
        );
    }
    let shown = world.owner.ok(["status", name]).await;
    let exact: String = status["pin"]["version"].as_str().unwrap().chars().take(12).collect();
    assert!(shown.contains(&exact), "the pin is shown: {shown}");
    status
}

async fn prove_all(world: &World, cases: Vec<Case>) {
    join_all(cases.into_iter().map(|case| prove(world, case))).await;
}

#[tokio::test]
async fn the_reference_servers_of_npm_work() {
    World::scene(async |world| {
        let case = |name, deploy: String, tool, args, says: &str| {
            Case { name, deploy: words(&deploy), pin: "npm", tool, args, says: says.into() }
        };
        prove_all(
            world,
            vec![
                case(
                    "everything",
                    "-- npx -y @modelcontextprotocol/server-everything".into(),
                    "echo",
                    json!({ "message": "hello mesh" }),
                    "hello mesh",
                ),
                case(
                    "memory",
                    "--env MEMORY_FILE_PATH=${HOME}/graph.jsonl -- npx -y @modelcontextprotocol/server-memory".into(),
                    "create_entities",
                    json!({ "entities": [{ "name": "Ana", "entityType": "person", "observations": ["likes tea"] }] }),
                    "likes tea",
                ),
                case(
                    "filesystem",
                    "-- npx -y @modelcontextprotocol/server-filesystem ${HOME}".into(),
                    "list_allowed_directories",
                    json!({}),
                    "/home",
                ),
                case(
                    "thinking",
                    "-- npx -y @modelcontextprotocol/server-sequential-thinking".into(),
                    "sequentialthinking",
                    json!({ "thought": "so", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 7 }),
                    "7",
                ),
            ],
        )
        .await;
        // What the server stored outlives a stop.
        let peer = world.owner.peer().await;
        world.owner.ok(["stop", "memory"]).await;
        world.owner.ok(["start", "memory"]).await;
        assert!(peer.call_text("memory", "read_graph", json!({})).await.contains("likes tea"));
    })
    .await;
}

#[tokio::test]
async fn the_reference_servers_of_pypi_work() {
    let router = axum::Router::new().route("/page", axum::routing::get(|| async { "a page of the test" }));
    let page = Web::serve(router).await;
    // A name for it that only the runner's operator can give.
    let private = format!("page.test:{}=127.0.0.1", page.port());
    let env = vec![("CLAUDEMESH_PRIVATE_HOSTS".to_owned(), private)];
    World::scene_with(Setup { env, ..Setup::default() }, async |world| {
        let case = |name, deploy: &str, tool, args, says: &str| Case {
            name,
            deploy: words(deploy),
            pin: "pypi",
            tool,
            args,
            says: says.into(),
        };
        prove_all(
            world,
            vec![
                case(
                    "time",
                    "--uvx mcp-server-time --args --local-timezone=UTC",
                    "convert_time",
                    json!({ "source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo" }),
                    "21:00",
                ),
                case(
                    "calculator",
                    "-- uvx mcp-server-calculator",
                    "calculate",
                    json!({ "expression": "6*7" }),
                    "42",
                ),
                case(
                    "fetch",
                    &format!("--network page.test:{} -- uvx mcp-server-fetch", page.port()),
                    "fetch",
                    json!({ "url": format!("http://page.test:{}/page", page.port()) }),
                    "a page of the test",
                ),
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn python_projects_with_requirements_or_pyproject_work() {
    World::scene(async |world| {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
        let case = |name, folder: &str, tool, args, says: &str| {
            let deploy = vec![format!("{fixtures}/{folder}")];
            Case { name, deploy, pin: "archive", tool, args, says: says.into() }
        };
        prove_all(
            world,
            vec![
                case(
                    "weather",
                    "fastmcp-requirements",
                    "forecast",
                    json!({ "city": "Oslo" }),
                    "It rains in Oslo.",
                ),
                case("adder", "fastmcp-pyproject", "add", json!({ "a": 2, "b": 40 }), "42"),
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn zips_and_bundles_work_and_the_same_bytes_are_installed_once() {
    World::scene(async |world| {
        let dir = world.folder("archives");
        let server = fixture::NODE.as_bytes();
        let zip = fixture::zip_of(&[
            ("top/index.js", server),
            ("top/package.json", fixture::NODE_PACKAGE.as_bytes()),
        ]);
        std::fs::write(dir.join("server.zip"), zip).unwrap();
        std::fs::write(dir.join("bundle.mcpb"), fixture::mcpb("from the manifest")).unwrap();
        let case = |name, file: &str, tool, says: &str| Case {
            name,
            deploy: vec![dir.join(file).to_str().unwrap().to_owned()],
            pin: "archive",
            tool,
            args: json!({ "text": says }),
            says: says.into(),
        };
        let first = prove(world, case("zip", "server.zip", "echo", "zipped")).await;
        prove(world, case("bundle", "bundle.mcpb", "version", "from the manifest")).await;
        let again = prove(world, case("zip2", "server.zip", "echo", "zipped again")).await;
        assert_eq!(first["pin"]["artefact"], again["pin"]["artefact"], "content-addressed");
    })
    .await;
}

#[tokio::test]
async fn git_branches_tags_commits_folders_and_private_repositories_work() {
    // Plain http is off by default; the operator of this world allows it for the test's own host.
    let setup =
        Setup { env: vec![("CLAUDEMESH_GIT_SCHEMES".into(), "https,http".into())], ..Setup::default() };
    World::scene_with(setup, async |world| {
        let git = GitHost::start(world.folder("git")).await;
        let says = |text: &str| fixture::NODE.replace("process.argv[2] ?? \"1\"", &format!("\"{text}\""));
        let package = ("package.json", fixture::NODE_PACKAGE);
        let old = git.commit("app", &[("index.js", &says("first")), package]).await;
        git.git("app", &["tag", "-a", "v1", "-m", "one"]).await;
        git.commit("app", &[("index.js", &says("second"))]).await;
        git.git("app", &["checkout", "-q", "-b", "side"]).await;
        let side = git.commit("app", &[("index.js", &says("side"))]).await;
        git.git("app", &["checkout", "-q", "main"]).await;
        let nested = [("servers/deep/index.js", &*says("deep")), ("servers/deep/package.json", package.1)];
        git.commit("nested", &nested).await;
        git.commit("private/app", &[("index.js", &says("private")), package]).await;
        let token = world.folder("token").join("file");
        std::fs::write(&token, TOKEN).unwrap();

        let app = git.url("app");
        let case = |name, flags: String, says: &str| {
            let deploy = words(&flags);
            Case { name, deploy, pin: "git", tool: "version", args: json!({}), says: says.into() }
        };
        prove(world, case("default", format!("--git {app}"), "second")).await;
        let tagged = prove(world, case("tag", format!("--git {app} --ref v1"), "first")).await;
        assert_eq!(tagged["pin"]["version"], old, "the tag is pinned to its commit");
        let branch = prove(world, case("branch", format!("--git {app} --ref side"), "side")).await;
        assert_eq!(branch["pin"]["version"], side);
        prove(world, case("commit", format!("--git {app} --ref {old}"), "first")).await;
        let nested = git.url("nested");
        prove(world, case("subdir", format!("--git {nested} --subdir servers/deep"), "deep")).await;
        let private = format!("--git {} --git-token-file {}", git.url("private/app"), token.display());
        let status = prove(world, case("private", private, "private")).await;
        assert!(!status.to_string().contains(TOKEN), "a token is never shown: {status}");

        // `update` takes what the branch holds now; the version before it stays reachable.
        let newer = git.commit("app", &[("index.js", &says("third"))]).await;
        world.owner.ok(["update", "default"]).await;
        let peer = world.owner.peer().await;
        assert_eq!(peer.call_text("default", "version", json!({})).await, "third");
        assert_eq!(world.status("default").await["pin"]["version"], newer);
        world.owner.ok(["rollback", "default"]).await;
        eventually("the older commit serves", async || {
            (peer.call_text("default", "version", json!({})).await == "second").then_some(())
        })
        .await;
    })
    .await;
}
