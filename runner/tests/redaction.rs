//! A server that lets its secret out wherever it can, and what the runner gives out of it.

mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use jail::SecretFile;
use runner::cell::{CellOrder, Cells};
use runner::instance::{self, Launch, Manner, Pipes};
use runner::logs::LogRing;
use runner::mcp::caller::Caller;
use runner::mcp::{self, Reply};
use runner::{Listen, RunnerConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use vault::Redactor;
use wire::{Generation, Tier};
use world::World;

/// What JSON, addresses and base64 write in other characters is in it.
const SECRET: &str = "canary/7f3a91+\"q\\u&=~5c";
/// Another one, which JSON may write in ASCII.
const UMLAUT: &str = "grüße-7f3a91";
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
    wish["spec"]["env_names"] = json!(["API_TOKEN", "UMLAUT_PASSWORD"]);
    wish["secrets"]["env"]["UMLAUT_PASSWORD"] = json!(UMLAUT);
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
    let mut lines = world.stream(Method::POST, &world.path(name, "/rpc"), Bytes::from(rpc.to_string())).await;
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

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// An instance whose secret is a file, or the reason why there is none. With its runner's cells: without them its control
/// group would be a dead runner's, which the next runner of this machine ends.
async fn with_file(
    dir: &Path,
    least: Tier,
    log: &Arc<LogRing>,
) -> Result<(instance::Instance, Arc<Cells>), String> {
    let exe = env!("CARGO_BIN_EXE_runner-dev").into();
    let mut config = RunnerConfig::new(dir.join("data"), Listen::Unix(dir.join("s")), exe);
    config.strongest = least;
    std::fs::create_dir_all(&config.data).expect("a directory");
    let cells = Arc::new(Cells::new(&config));
    let (home, uid) = cells.settle_home(&config.data.join("home")).expect("a home");
    let code = dir.canonicalize().expect("a path").join("code");
    std::fs::create_dir_all(&code).expect("a directory");
    std::fs::copy(Path::new(FIXTURE).join("leaky.py"), code.join("leaky.py")).expect("copied");
    let (stdio, pipes) = Pipes::new().expect("pipes");
    let order = CellOrder {
        name: "leaky".to_owned(),
        argv: vec!["/usr/bin/python3".to_owned(), code.join("leaky.py").to_string_lossy().into_owned()],
        env: vec![("SECRET_FILE".to_owned(), "/secrets/token".to_owned())].into(),
        secret_files: vec![SecretFile { path: "/secrets/token".into(), bytes: SECRET.into() }],
        cwd: code.clone(),
        home,
        tmp: None,
        read_only: vec![code],
        writable: vec![],
        uid,
        limits: wire::spec::Limits::default(),
        rules: egress::Rules::default(),
        trust: None,
        private: vec![],
        ledger: Arc::default(),
        tier: cells.tier(Tier::Light).map_err(|e| e.message)?,
        stdio,
    };
    let launch = Launch {
        cells: cells.clone(),
        order,
        pipes,
        generation: Generation(1),
        log: log.clone(),
        redactor: Redactor::new([SECRET.as_bytes()]),
        masks_results: true,
        limits: mcp::Limits::default(),
        start_timeout: Duration::from_secs(30),
    };
    let started = instance::start(launch, &CancellationToken::new()).await;
    let (instance, lists) = started.map_err(|e| e.reason.message)?;
    let lists = serde_json::to_string(&lists).expect("json");
    assert!(lists.contains("prints [secret]"), "{lists}");
    assert_masked("lists", &lists);
    Ok((instance, cells))
}

#[tokio::test]
async fn a_secret_that_is_a_file_is_there_for_the_server_and_masked_in_what_it_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = Arc::new(LogRing::default());
    let (instance, _cells) = match with_file(dir.path(), Tier::Strict, &log).await {
        Ok(started) => started,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none() && why.contains("jail"), "{why}");
            return eprintln!("skipped: {why}");
        }
    };
    for (tool, text) in [("result", "[secret]"), ("error", "no: [secret]")] {
        let params = json!({ "name": tool }).to_string();
        let mut call = instance.client.call("tools/call", Some(&params), Caller::default()).expect("sent");
        let (Reply::Result(bytes) | Reply::Error(bytes)) = call.answer().await.expect("answered");
        let reply = String::from_utf8(bytes.to_vec()).expect("text");
        assert!(reply.contains(text), "{reply}");
        assert_masked(tool, &reply);
    }
    let params = json!({"name": "complain", "arguments": {"how": "raw"}}).to_string();
    let call =
        instance.client.call("tools/call", Some(&params), Caller::default()).expect("sent").answer().await;
    call.expect("answered");
    instance.halt(Manner::Graceful).await;
    let lines: Vec<_> = log.tail(100).iter().map(|line| line.text.clone()).collect();
    assert!(lines.contains(&"raw: [secret]".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_light_cell_takes_no_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let why = with_file(dir.path(), Tier::Light, &Arc::default()).await.err().expect("refused");
    assert!(why.contains("files of secrets need the strict jail"), "{why}");
}
