//! A hosted server is what it is on one's own machine: the official SDK clients and the Inspector's CLI see the same of the bare
//! server and of `claudemesh mcp --service`, step by step.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use tests::clients::programs;
use tests::clients::sdk::{self, Sdk, differences};
use tests::{World, fixture};

const EVERY_SDK: [Sdk; 6] = [
    Sdk::TypeScript1,
    Sdk::TypeScript2Legacy,
    Sdk::TypeScript2Auto,
    Sdk::Python1,
    Sdk::Python2Legacy,
    Sdk::Python2Auto,
];

/// The version in `scripts/setup.sh`.
const EVERYTHING: &str = "@modelcontextprotocol/server-everything@2026.8.31";

/// The command of a hosted service, and its environment.
fn hosted(world: &World, service: &str) -> programs::Entry {
    programs::mesh_entry(service, &world.owner, &["--service", service])
}

/// What a client sees of a bare server, less what is known to be missing from the hosted one; the reasons are in
/// `docs/compatibility.md`. Only the bare side is changed: where the hosted server says it after all, the test fails.
fn as_hosted(sdk: Sdk, mut bare: Vec<Value>) -> Vec<Value> {
    let at = |step: &str| bare.iter().position(|seen| seen["step"] == step).expect("every client does this");
    let (server, tools) = (at("server"), at("tools"));
    // Tasks are not hosted: a task would have to outlive the process that asked for it.
    if let Some(capabilities) = bare[server]["capabilities"].as_object_mut() {
        capabilities.remove("tasks");
    }
    // A server of the legacy era is hosted in both; this client then takes the modern one, whose types do not know these fields.
    // They are on the wire: the other SDK, and this one in the legacy era, see them.
    if sdk == Sdk::TypeScript2Auto {
        for tool in bare[tools]["result"].as_array_mut().into_iter().flatten() {
            tool.as_object_mut().unwrap().remove("execution");
        }
        for seen in &mut bare {
            let asked = seen.pointer_mut("/result/asked").and_then(Value::as_array_mut);
            for asked in asked.into_iter().flatten() {
                let params = asked.get_mut("params").and_then(Value::as_object_mut);
                params.map(|params| params.remove("elicitationId"));
            }
        }
    }
    bare
}

/// Plays a scenario with every SDK against the bare command and against the hosted service; a fresh instance for each, because
/// scenarios leave traces.
async fn compare(world: &World, clients: &Path, scenario: &str, bare: &[String], service: &str) {
    let mut wrong = Vec::new();
    for sdk in EVERY_SDK {
        let alone = sdk.transcript(clients, scenario, bare, &[]).await;
        world.owner.ok(["stop", service]).await;
        world.owner.ok(["start", service]).await;
        let entry = hosted(world, service);
        let served = sdk.transcript(clients, scenario, &entry.command, &entry.env).await;
        let found = differences(&as_hosted(sdk, alone), &served);
        wrong.extend(found.into_iter().map(|difference| format!("{sdk:?} {difference}")));
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn the_reference_server_is_the_same_to_every_sdk() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        world.owner.ok(["deploy", "everything", "--", "npx", "-y", EVERYTHING]).await;
        compare(world, &clients, "everything", &programs::everything(&clients), "everything").await;
    })
    .await;
}

/// Deploys `tests/clients/chatty` and gives the command that starts it bare.
async fn chatty(world: &World, name: &str, args: &[&str]) -> Vec<String> {
    let folder = world.folder("chatty");
    let source = sdk::folder().join("chatty");
    let text = |file: &str| std::fs::read_to_string(source.join(file)).unwrap();
    fixture::write_tree(
        &folder,
        &[("index.js", text("index.js").as_str()), ("package.json", text("package.json").as_str())],
    );
    let mut words = vec!["deploy".to_owned(), name.to_owned(), folder.to_str().unwrap().to_owned()];
    words.extend(args.iter().map(|arg| format!("--args={arg}")));
    world.owner.ok(words).await;
    let script = source.join("index.js").to_str().unwrap().to_owned();
    ["node".to_owned(), script].into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect()
}

#[tokio::test]
async fn a_legacy_server_that_says_all_there_is_to_say_is_the_same_to_every_sdk() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        let bare = chatty(world, "chatty", &[]).await;
        compare(world, &clients, "chatty", &bare, "chatty").await;
    })
    .await;
}

#[tokio::test]
async fn a_modern_server_that_says_all_there_is_to_say_is_the_same_to_every_sdk() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        let bare = chatty(world, "chatty", &["modern"]).await;
        compare(world, &clients, "chatty", &bare, "chatty").await;
    })
    .await;
}

/// What `mcp-inspector --cli` prints about a server.
async fn inspect(clients: &Path, server: &[String], env: &[(String, String)], method: &[&str]) -> Value {
    let mut command = tokio::process::Command::new("node");
    let home = tempfile::tempdir().unwrap();
    command
        .arg(clients.join("node_modules/.bin/mcp-inspector"))
        .arg("--cli")
        .args(server)
        .args(method)
        .env("HOME", home.path())
        .kill_on_drop(true);
    for (key, value) in env {
        // The Inspector gives its servers what it is told to, and not its own environment.
        command.args(["-e", &format!("{key}={value}")]);
    }
    let output = tokio::time::timeout(tests::peer::PATIENCE, command.output()).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{method:?} {server:?}: {}\n{out}\n{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("no JSON ({error}): {out}\n{err}"))
}

#[tokio::test]
async fn the_inspector_prints_the_same() {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        let bare = chatty(world, "chatty", &[]).await;
        let methods: [&[&str]; 7] = [
            &["--method", "tools/list"],
            &["--method", "resources/list"],
            &["--method", "resources/templates/list"],
            &["--method", "prompts/list"],
            &["--method", "tools/call", "--tool-name", "rich", "--tool-arg", "big=7"],
            &["--method", "resources/read", "--uri", "chatty://page/1"],
            &["--method", "prompts/get", "--prompt-name", "greet", "--prompt-args", "who=Ana"],
        ];
        let entry = hosted(world, "chatty");
        for method in methods {
            let alone = inspect(&clients, &bare, &[], method).await;
            let served = inspect(&clients, &entry.command, &entry.env, method).await;
            assert_eq!(alone, served, "{method:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_sees_the_same_of_a_bare_server_twice_so_that_every_difference_counts() {
    let Some(clients) = programs::folder() else { return };
    let script = sdk::folder().join("chatty/index.js").to_str().unwrap().to_owned();
    let legacy = vec!["node".to_owned(), script.clone()];
    let modern = vec!["node".to_owned(), script, "modern".to_owned()];
    let everything = programs::everything(&clients);
    let mut pairs: Vec<_> =
        EVERY_SDK.iter().flat_map(|sdk| [(sdk, "chatty", &legacy), (sdk, "chatty", &modern)]).collect();
    pairs.push((&Sdk::TypeScript1, "everything", &everything));
    let twice = pairs.into_iter().map(async |(sdk, scenario, server)| {
        let first = sdk.transcript(&clients, scenario, server, &[]).await;
        let second = sdk.transcript(&clients, scenario, server, &[]).await;
        assert_eq!(differences(&first, &second), Vec::<String>::new(), "{sdk:?}");
    });
    stream::iter(twice).buffer_unordered(3).collect::<Vec<_>>().await;
}
