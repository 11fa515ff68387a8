//! A server that lets its secret out wherever it can, and what the runner gives out of it.

mod world;

use std::path::Path;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use world::World;

/// What JSON, addresses and base64 write in other characters is in it.
const SECRET: &str = "canary/7f3a91+\"q\\ü&=~5c";
const HOWS: [&str; 6] = ["raw", "cut", "endless", "coloured", "chatter", "base64_1"];

/// Pieces of it that no form of it is without, as the server writes them.
fn pieces() -> Vec<String> {
    // Of the three alignments of base64, what none of the neighbours changes; of the others, their beginning.
    let words = ["canary", "7f3a91", "63616e617279", "Y2FuYXJ5", "bmFyeS83", "YW5hcnkv"];
    words.iter().map(|&word| word.to_owned()).collect()
}

fn assert_masked(what: &str, text: &str) {
    for piece in pieces() {
        assert!(!text.contains(&piece), "{piece} is in {what}: {text}");
    }
}

async fn leaky(world: &World, args: &[&str]) -> Value {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/leaky.py");
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    tar.mode(tar::HeaderMode::Deterministic);
    tar.append_path_with_name(source, "leaky.py").expect("packs");
    let bytes = Bytes::from(tar.into_inner().expect("packs").finish().expect("packs"));
    let digest = hex::encode(Sha256::digest(&bytes));
    let (status, _) = world.send(Method::PUT, &format!("/v1/blobs/{digest}"), bytes).await;
    assert!(status.is_success(), "{status}");
    let mut wish = world.wish(args);
    wish["spec"]["source"]["sha256"] = json!(digest);
    wish["spec"]["runtime"] = json!("python");
    wish["spec"]["entry"] = json!("leaky.py");
    wish["spec"]["env_names"] = json!(["API_TOKEN"]);
    wish["secrets"]["env"]["API_TOKEN"] = json!(SECRET);
    wish
}

/// Everything that the runner says of a service without being asked for a call.
async fn told(world: &World, name: &str) -> String {
    let mut all = String::new();
    for path in ["", "/lists"] {
        let (_, body) = world.send(Method::GET, &world.path(name, path), Bytes::new()).await;
        all += &format!("{body}\n");
    }
    let mut events = world.stream(Method::GET, "/v1/events", Bytes::new()).await;
    loop {
        let event = events.next().await.expect("open");
        all += &format!("{event}\n");
        if event["synced"] == json!(true) {
            break;
        }
    }
    let mut logs = world.stream(Method::GET, &world.path(name, "/logs?lines=1000"), Bytes::new()).await;
    while let Some(line) = logs.next().await {
        all += &format!("{line}\n");
    }
    all
}

/// All lines of a call that wants its notifications.
async fn called(world: &World, name: &str, tool: &str, arguments: Value) -> String {
    let params = json!({"name": tool, "arguments": arguments, "_meta": {"progressToken": "p"}});
    let rpc = json!({"method": "tools/call", "deadline_ms": 30_000, "events": true, "params": params});
    let mut lines =
        world.stream(Method::POST, &world.path(name, "/rpc"), Bytes::from(rpc.to_string())).await;
    let mut all = String::new();
    while let Some(line) = lines.next().await {
        all += &format!("{line}\n");
    }
    all
}

/// The log shows a line a moment after the server has written it.
async fn logged(world: &World, name: &str, what: &str) {
    let mut lines =
        world.stream(Method::GET, &world.path(name, "/logs?lines=1000&follow=true"), Bytes::new()).await;
    while !lines.next().await.expect("the log stays open").to_string().contains(what) {}
}

#[tokio::test]
async fn nothing_of_a_secret_leaves_by_results_errors_notifications_lists_or_logs() {
    let world = World::start(&[]).await;
    let ready = world.deploy("leaky", &leaky(&world, &[]).await).await;
    assert_eq!(ready["phase"], json!("ready"), "{ready}");
    for tool in ["result", "split", "large", "error", "notify"] {
        let lines = called(&world, "leaky", tool, json!({})).await;
        assert!(lines.contains("[secret]"), "{tool}: {lines}");
        assert_masked(tool, &lines);
    }
    let notified = called(&world, "leaky", "notify", json!({})).await;
    assert!(notified.contains("notifications/progress") && notified.contains("notifications/message"));
    for how in HOWS {
        called(&world, "leaky", "complain", json!({ "how": how })).await;
    }
    called(&world, "leaky", "complain", json!({ "how": "hex" })).await;
    logged(&world, "leaky", "hex: ").await;
    let all = told(&world, "leaky").await;
    assert_masked("what it tells", &all);
    for seen in ["leaky [secret]", "use [secret]", "prints [secret]", "hello [secret]", "raw: [secret]"] {
        assert!(all.contains(seen), "{seen} is not in {all}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_server_that_fell_or_never_spoke_are_masked() {
    let world = World::start(&[]).await;
    for how in ["crash", "refuse"] {
        let failed = world.deploy(how, &leaky(&world, &[how]).await).await;
        assert_eq!(failed["phase"], json!("failed"), "{failed}");
        assert!(failed["reason"].to_string().contains("[secret]"), "{failed}");
        assert_masked(how, &failed.to_string());
        assert_masked(how, &world.call(how, "result", json!({})).await.to_string());
        assert_masked(how, &told(&world, how).await);
    }
    world.deploy("falls", &leaky(&world, &[]).await).await;
    let lost = called(&world, "falls", "crash", json!({})).await;
    assert_masked("the call that it fell in", &lost);
    logged(&world, "falls", "fatal: bad token").await;
    let again = world.phase("falls", "ready").await;
    let all = told(&world, "falls").await;
    assert!(all.contains("fatal: bad token [secret]"), "{all}");
    assert_masked("what is told of its fall", &format!("{again} {all}"));
}

#[tokio::test]
async fn unmasked_results_carry_it_and_nothing_else_does() {
    let world = World::start(&[]).await;
    let mut wish = leaky(&world, &[]).await;
    wish["spec"]["unmasked_results"] = json!(true);
    world.deploy("open", &wish).await;
    assert_eq!(world.text("open", "split", json!({})).await, SECRET);
    for tool in ["error", "notify"] {
        assert_masked(tool, &called(&world, "open", tool, json!({})).await);
    }
    called(&world, "open", "complain", json!({ "how": "raw" })).await;
    logged(&world, "open", "raw: ").await;
    assert_masked("what it tells", &told(&world, "open").await);
}

#[tokio::test]
async fn a_result_without_a_secret_keeps_its_bytes() {
    let world = World::start(&[]).await;
    world.deploy("plain", &leaky(&world, &[]).await).await;
    let rpc = json!({"method": "tools/call", "deadline_ms": 30_000, "params": {"name": "plain"}});
    let body = Bytes::from(rpc.to_string());
    let response = world.request(Method::POST, &world.path("plain", "/rpc"), body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
    assert_eq!(&body[..], b"{\"result\":{ \"a\" : 1.0e2 ,\"b\":[ ]}}\n");
}
