//! A real runner, real jails, a real server process with bad habits.

mod world;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;
use world::{SOON, World};

fn code(line: &Value) -> &str {
    line["error"]["code"].as_str().unwrap_or_else(|| panic!("no error in {line}"))
}

#[tokio::test]
async fn a_deployed_server_is_listed_and_called_and_sees_only_its_own_environment() {
    let world = World::start(&[]).await;
    let mut wish = world.wish(&[]);
    wish["spec"]["env_names"] = json!(["API_KEY"]);
    wish["secrets"]["env"]["API_KEY"] = json!("hunter2");
    let ready = world.deploy("echo", &wish).await;
    assert_eq!(ready["phase"], json!("ready"), "{ready}");
    assert_eq!(ready["pin"]["version"], wish["spec"]["source"]["sha256"]);
    assert_eq!(world.text("echo", "echo", json!({"text": "hi ☃"})).await, "hi ☃");
    assert_eq!(world.text("echo", "env", json!({"name": "API_KEY"})).await, "hunter2");
    let names: Vec<String> =
        serde_json::from_str(&world.text("echo", "env", json!({})).await).expect("names");
    for name in &names {
        let known =
            ["API_KEY", "HOME", "PATH", "TMPDIR", "NODE_ENV", "LANG", "LC_ALL", "PYTHONDONTWRITEBYTECODE"];
        // The operator's own certificates, where the runner's environment names some.
        let is_certificates = (name.contains("CERT") || name.ends_with("_CA_BUNDLE"))
            && std::env::var(name).is_ok_and(|value| value.starts_with('/'));
        assert!(is_certificates || known.contains(&name.as_str()), "{name} came from somewhere");
    }
    let (_, lists) = world.send(Method::GET, &world.path("echo", "/lists"), Bytes::new()).await;
    assert_eq!(lists["server_info"]["odd"], json!(true));
    assert_eq!(lists["tools"][0]["x-unknown"], json!({"kept": 1}), "unknown fields stay");
    let (_, report) = world.send(Method::GET, &world.path("echo", ""), Bytes::new()).await;
    assert!(!report.to_string().contains("hunter2"));
    let temporary = world.text("echo", "temp", json!({})).await;
    assert!(temporary.starts_with("/tmp/born-"), "{temporary}");
    assert!(!std::path::Path::new(&temporary).exists(), "its `/tmp` is its own");
    assert_eq!(world.remove("echo").await, StatusCode::NO_CONTENT);
    assert!(world.processes().is_empty(), "{:?}", world.processes());
    assert_eq!(world.remove("echo").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_start_that_fails_names_its_cause() {
    let world = World::start(&[]).await;
    for (args, code, words) in [
        (&["exit_at_once"][..], "start_exited", "--args"),
        (&["needs_env"], "start_exited", "--env AWKWARD_API_KEY="),
        (&["garbage"], "bad_protocol", "not MCP"),
        (&["many_tools", "2000"], "too_many_tools", "1000 tools"),
    ] {
        let failed = world.deploy(&args[0].replace('_', "-"), &world.wish(args)).await;
        assert_eq!(failed["phase"], json!("failed"), "{failed}");
        assert_eq!(failed["reason"]["code"], json!(code), "{failed}");
        let message = failed["reason"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{args:?}: {message}");
    }
    let (_, report) = world.send(Method::GET, &world.path("exit-at-once", ""), Bytes::new()).await;
    assert_eq!(report["candidate"]["reason"]["stderr"][0], json!("Usage: awkward [options] <directory>"));
    let refused = world.call("garbage", "echo", json!({})).await;
    assert_eq!(code(&refused), "service_failed");
    assert!(world.processes().is_empty(), "{:?}", world.processes());
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    // Long enough for a slow core to write its one line.
    let world = World::start(&["start=6000"]).await;
    let (silent, http) = (world.wish(&["silent"]), world.wish(&["http"]));
    let (silent, http) = tokio::join!(world.deploy("silent", &silent), world.deploy("http", &http));
    for (failed, code, words) in [(silent, "start_timeout", "did not answer"), (http, "http_server", "stdio")]
    {
        assert_eq!((&failed["phase"], &failed["reason"]["code"]), (&json!("failed"), &json!(code)));
        let message = failed["reason"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{message}");
    }
    assert!(world.processes().is_empty(), "{:?}", world.processes());
}

#[tokio::test]
async fn banners_pages_and_both_eras_are_understood() {
    let world = World::start(&[]).await;
    let ready = world.deploy("banner", &world.wish(&["banner"])).await;
    assert_eq!(ready["phase"], json!("ready"), "{ready}");
    let (_, report) = world.send(Method::GET, &world.path("banner", ""), Bytes::new()).await;
    assert_eq!(report["serving"]["tier"], json!("strict"), "{report}");
    let mut logs = world.stream(Method::GET, &world.path("banner", "/logs?lines=500"), Bytes::new()).await;
    let mut said = vec![];
    while let Some(line) = logs.next().await {
        said.push(line);
    }
    let banner = said.iter().find(|line| line["stream"] == json!("stdout")).expect("logged");
    assert_eq!(banner["text"], json!("Welcome to awkward!"), "without its colours");
    world.deploy("many", &world.wish(&["many_tools", "900"])).await;
    let (_, lists) = world.send(Method::GET, &world.path("many", "/lists"), Bytes::new()).await;
    assert_eq!(lists["tools"].as_array().map(Vec::len), Some(900));
    assert_eq!(lists["protocol"], json!("2025-11-25"));
    world.deploy("modern", &world.wish(&["modern"])).await;
    let (_, lists) = world.send(Method::GET, &world.path("modern", "/lists"), Bytes::new()).await;
    assert_eq!((&lists["protocol"], &lists["instructions"]), (&json!("2026-07-28"), &json!("modern")));
    assert_eq!(lists["server_info"]["name"], json!("awkward"));
    let meta = world.text("modern", "meta", json!({})).await;
    assert!(meta.contains("io.modelcontextprotocol/clientCapabilities"), "{meta}");
}

#[tokio::test]
async fn a_bad_update_leaves_the_good_one_serving_and_a_good_one_takes_over() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let first = world.text("app", "born", json!({})).await;
    let old = world.phase("app", "ready").await["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let old = old.expect("a pid");
    assert!(world.processes().contains_key(&old), "the pid is that of the runner's machine");
    let failed = world.deploy("app", &world.wish(&["exit_at_once"])).await;
    assert_eq!(failed["phase"], json!("failed"));
    assert_eq!(world.text("app", "born", json!({})).await, first);
    // A call that runs while its instance is replaced is answered by the old one.
    let running = world.call("app", "sleep", json!({"ms": 1500}));
    let update = async {
        let ready = world.deploy("app", &world.wish(&["polite"])).await;
        assert_eq!(ready["phase"], json!("ready"), "{ready}");
        world.text("app", "born", json!({})).await
    };
    let (slept, second) = tokio::join!(running, update);
    assert_eq!(slept["result"]["content"][0]["text"], json!("woke"));
    assert_ne!(first, second);
    let deadline = Instant::now() + SOON;
    while world.processes().contains_key(&old) {
        assert!(Instant::now() < deadline, "the old instance is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn of_two_applies_the_later_wins_and_the_earlier_is_superseded() {
    let world = World::start(&[]).await;
    let (base, early, late) = (world.wish(&[]), world.wish(&["silent"]), world.wish(&["polite"]));
    world.deploy("app", &base).await;
    let watch = world.until("app", |report| {
        let candidate = &report["candidate"];
        let is_it = candidate["generation"] == early["generation"] && candidate["phase"] == json!("failed");
        is_it.then(|| candidate["reason"]["code"].clone())
    });
    let applies = async {
        world.until("app", |report| (report["serving"]["phase"] == json!("ready")).then_some(())).await;
        world.apply("app", &early).await;
        world.until("app", |r| (r["candidate"]["phase"] == json!("starting")).then_some(())).await;
        world.deploy("app", &late).await
    };
    let (verdict, ready) = tokio::join!(watch, applies);
    assert_eq!((verdict, ready["phase"].clone()), (json!("superseded"), json!("ready")));
    // The serving generation again: the candidate is dropped, nothing else changes.
    let born = world.text("app", "born", json!({})).await;
    world.apply("app", &world.wish(&["silent"])).await;
    let (_, report) = world.apply("app", &late).await;
    assert_eq!(report["candidate"], Value::Null);
    assert_eq!(report["serving"]["generation"], late["generation"]);
    assert_eq!(world.text("app", "born", json!({})).await, born);
}

#[tokio::test]
async fn a_crash_answers_its_calls_and_the_server_comes_back_by_itself() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let before = world.text("app", "born", json!({})).await;
    let slow = world.call("app", "sleep", json!({"ms": 60_000}));
    let crash = async {
        let deadline = Instant::now() + SOON;
        // One that comes after the crash would go to the next instance.
        while world.text("app", "slept", json!({})).await != "1" {
            assert!(Instant::now() < deadline, "the server does not see the call");
        }
        world.call("app", "crash", json!({})).await
    };
    let (slow, crash) = tokio::join!(slow, crash);
    assert_eq!((code(&slow), code(&crash)), ("instance_lost", "instance_lost"));
    // Waits through the pause before the restart.
    assert_ne!(world.text("app", "born", json!({})).await, before);
    let ready = world.phase("app", "ready").await;
    assert_eq!((&ready["restarts"], &ready["reason"]), (&json!(1), &Value::Null));
}

#[tokio::test]
async fn a_server_that_never_comes_back_is_a_crash_loop_with_its_reason() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&["once"])).await;
    world.call("app", "crash", json!({})).await;
    let backoff = world.phase("app", "backoff").await;
    assert_eq!(backoff["reason"]["code"], json!("instance_lost"), "{backoff}");
    assert_eq!(backoff["reason"]["stderr"], json!(["about to crash"]));
    let waited = world.call_within("app", "echo", json!({}), 50).await;
    assert_eq!(code(&waited), "service_starting");
    let looped = world.phase("app", "crash_loop").await;
    assert_eq!(looped["reason"]["code"], json!("start_exited"), "{looped}");
    let refused = world.call("app", "echo", json!({})).await;
    assert_eq!(code(&refused), "service_failed");
    assert!(refused["error"]["message"].as_str().expect("why").contains("code 9"), "{refused}");
    assert!(world.processes().is_empty());
}

#[tokio::test]
async fn an_unused_service_stops_keeps_its_lists_and_wakes_on_a_call() {
    let world = World::start(&[]).await;
    let mut wish = world.wish(&[]);
    wish["spec"]["idle_stop_s"] = json!(1);
    // Ready is soon over; idle stays.
    world.apply("app", &wish).await;
    let idle = world.phase("app", "idle").await;
    assert_eq!(idle["restarts"], json!(0));
    world.no_processes().await;
    let (status, lists) = world.send(Method::GET, &world.path("app", "/lists"), Bytes::new()).await;
    assert_eq!((status, lists["tools"][0]["name"].as_str()), (StatusCode::OK, Some("echo")));
    assert_eq!(world.text("app", "echo", json!({"text": "awake"})).await, "awake");
    // Still ready, or stopped again.
    let look = |report: &Value| {
        let serving = &report["serving"];
        let is_well = matches!(serving["phase"].as_str(), Some("ready" | "idle"));
        is_well.then(|| serving["restarts"].clone())
    };
    assert_eq!(world.until("app", look).await, json!(0));
}

#[tokio::test]
async fn a_server_that_hangs_is_found_by_pings_and_replaced() {
    let world = World::start(&["ping=150", "pong=150"]).await;
    world.deploy("app", &world.wish(&[])).await;
    let before = world.text("app", "born", json!({})).await;
    let hung = world.call_within("app", "hang", json!({}), 300).await;
    assert_eq!(code(&hung), "call_timeout");
    world
        .until("app", |report| {
            let serving = &report["serving"];
            (serving["restarts"] == json!(1) && serving["phase"] == json!("ready")).then_some(())
        })
        .await;
    assert_ne!(world.text("app", "born", json!({})).await, before);
}

#[tokio::test]
async fn stopping_ends_a_server_that_ignores_everything_and_its_daemons() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&["stubborn"])).await;
    world.text("app", "daemon", json!({})).await;
    let deadline = Instant::now() + SOON;
    while !world.processes().values().any(|line| line.contains("sleeper")) {
        assert!(Instant::now() < deadline, "the daemon does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.remove("app").await, StatusCode::NO_CONTENT);
    assert!(world.processes().is_empty(), "{:?}", world.processes());
    let path = world.path("app", "/rpc");
    let (gone, _) = world.send(Method::POST, &path, Bytes::from(r#"{"method":"x","deadline_ms":1}"#)).await;
    assert_eq!(gone, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_killed_runner_takes_its_servers_along_and_starts_them_again_from_the_pin() {
    let mut world = World::start(&[]).await;
    let mut wish = world.wish(&[]);
    let ready = world.deploy("app", &wish).await;
    assert_eq!(world.text("app", "visit", json!({})).await, "1");
    world.text("app", "daemon", json!({})).await;
    world.signal_runner(Signal::SIGKILL);
    world.runner_ended().await;
    world.no_processes().await;
    world.run().await;
    wish["proven"] = json!(true);
    wish["pin"] = ready["pin"].clone();
    world.apply("app", &wish).await;
    assert_eq!(world.text("app", "visit", json!({})).await, "2", "its home stayed");
    let (_, report) = world.send(Method::GET, &world.path("app", ""), Bytes::new()).await;
    assert_eq!((&report["serving"]["generation"], &report["candidate"]), (&wish["generation"], &Value::Null));
    // And a polite end.
    world.signal_runner(Signal::SIGTERM);
    assert!(world.runner_ended().await.success());
    assert!(world.processes().is_empty(), "{:?}", world.processes());
    assert!(!world.socket().exists());
}

#[tokio::test]
async fn a_call_is_cancelled_by_its_deadline_and_by_dropping_its_request() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let late = world.call_within("app", "sleep", json!({"ms": 60_000}), 100).await;
    assert_eq!(code(&late), "call_timeout");
    let deadline = Instant::now() + SOON;
    let seen = async {
        // The late call was the first.
        while world.text("app", "slept", json!({})).await != "2" {
            assert!(Instant::now() < deadline, "the server does not see the call");
        }
    };
    tokio::select! {
        line = world.call("app", "sleep", json!({"ms": 60_000})) => panic!("answered: {line}"),
        () = seen => {}
    }
    loop {
        let told: Value =
            serde_json::from_str(&world.text("app", "cancelled", json!({})).await).expect("a list");
        if told.as_array().map(Vec::len) == Some(2) {
            assert_eq!(told[0]["reason"], json!("the deadline has passed"));
            assert_eq!(told[1]["reason"], json!("the caller went away"));
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn progress_comes_before_the_result_under_the_callers_token() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let params =
        json!({"name": "progress", "arguments": {"n": 3}, "_meta": {"progressToken": "mine", "x": 1}});
    let rpc = json!({"method": "tools/call", "params": params, "deadline_ms": 30_000, "events": true});
    let mut lines =
        world.stream(Method::POST, &world.path("app", "/rpc"), Bytes::from(rpc.to_string())).await;
    for n in 1..=3 {
        let event = lines.next().await.expect("an event")["event"].clone();
        let params = json!({"progressToken": "mine", "progress": n, "total": 3});
        assert_eq!(event, json!({"method": "notifications/progress", "params": params}));
    }
    assert_eq!(lines.next().await.expect("the result")["result"]["content"][0]["text"], json!("done"));
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn large_results_pass_giant_ones_fail_alone_and_spoofed_ids_do_nothing() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let eight = world.text("app", "big", json!({"bytes": 8 << 20})).await;
    assert_eq!(eight.len(), 8 << 20);
    let bystander = world.call("app", "sleep", json!({"ms": 500}));
    let giant = world.call("app", "big", json!({"bytes": 17 << 20}));
    let (bystander, giant) = tokio::join!(bystander, giant);
    assert_eq!(code(&giant), "result_too_large");
    assert_eq!(bystander["result"]["content"][0]["text"], json!("woke"));
    assert_eq!(world.text("app", "spoof", json!({})).await, "first");
    let failed = world.call("app", "fail", json!({})).await;
    assert_eq!(code(&failed), "mcp_error");
    assert_eq!(failed["error"]["rpc"]["data"], json!({"detail": [1, null]}));
}

#[tokio::test]
async fn changed_lists_and_log_lines_reach_those_who_follow() {
    let world = World::start(&[]).await;
    for (name, habit) in [("old", "polite"), ("new", "modern")] {
        world.deploy(name, &world.wish(&[habit])).await;
        let mut events = world.stream(Method::GET, "/v1/events", Bytes::new()).await;
        while events.next().await.expect("open")["synced"] != json!(true) {}
        world.text(name, "change", json!({})).await;
        loop {
            let event = events.next().await.expect("open");
            if event["lists"]["service"]["name"] == json!(name) {
                let tools = event["lists"]["lists"]["tools"].as_array().expect("tools").clone();
                assert_eq!(tools.last().expect("one")["name"], json!("extra0"));
                break;
            }
        }
    }
    let mut logs =
        world.stream(Method::GET, &world.path("old", "/logs?lines=0&follow=true"), Bytes::new()).await;
    world.text("old", "stderr", json!({"text": "\u{1b}[1mbold\u{1b}[0m\r\nnext"})).await;
    assert_eq!(logs.next().await.expect("a line")["text"], json!("bold"));
    assert_eq!(logs.next().await.expect("a line")["text"], json!("next"));
    assert_eq!(world.remove("old").await, StatusCode::NO_CONTENT);
    while logs.next().await.is_some() {}
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_a_code() {
    let world = World::start(&[]).await;
    let refused = async |method, path: &str, body: &str| {
        let (status, failure) = world.send(method, path, Bytes::from(body.to_owned())).await;
        (status.as_u16(), failure["code"].as_str().unwrap_or_default().to_owned())
    };
    let app = world.path("app", "");
    let not_found = (404, "not_found".to_owned());
    assert_eq!(refused(Method::GET, &app, "").await, not_found);
    assert_eq!(refused(Method::GET, "/v1/nothing", "").await, not_found);
    let dots = world.path("..%2f..%2fetc", "");
    assert_eq!(refused(Method::PUT, &dots, "{}").await, (400, "invalid_name".to_owned()));
    let bad = (400, "invalid_args".to_owned());
    assert_eq!(refused(Method::PUT, &app, "{}").await, bad);
    let mut wish = world.wish(&[]);
    wish["spec"]["unknown"] = json!(1);
    assert_eq!(refused(Method::PUT, &app, &wish.to_string()).await, bad);
    let mut wish = world.wish(&[]);
    wish["spec"]["env_names"] = json!(["LD_PRELOAD"]);
    wish["secrets"]["env"]["LD_PRELOAD"] = json!("/tmp/x.so");
    assert_eq!(refused(Method::PUT, &app, &wish.to_string()).await, bad);
    assert_eq!(refused(Method::GET, &app, "").await, not_found, "nothing was made of it");
    assert_eq!(refused(Method::HEAD, &format!("/v1/blobs/{}", "0".repeat(64)), "").await.0, 404);
    assert_eq!(refused(Method::PUT, &format!("/v1/blobs/{}", "0".repeat(64)), "other").await.0, 400);
}

#[tokio::test]
async fn what_is_in_use_is_kept_and_a_purge_removes_the_data() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    world.text("app", "visit", json!({})).await;
    let none = Bytes::from(r#"{"artefacts":[],"blobs":[]}"#);
    let (status, _) = world.send(Method::POST, "/v1/artefacts/retain", none).await;
    assert_eq!(status, StatusCode::OK);
    world.call("app", "crash", json!({})).await;
    assert_eq!(world.text("app", "visit", json!({})).await, "2", "its code is still there");
    let data = world.dir.path().join("data/services");
    let path = world.path("app", "?purge=true");
    assert_eq!(world.send(Method::DELETE, &path, Bytes::new()).await.0, StatusCode::NO_CONTENT);
    let left: Vec<_> = std::fs::read_dir(data).expect("there").flatten().collect();
    for mesh in left {
        assert_eq!(std::fs::read_dir(mesh.path()).expect("a mesh").count(), 0);
    }
}

#[tokio::test]
async fn a_purge_also_removes_the_data_of_a_service_that_was_stopped_before() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let left = || {
        let meshes = std::fs::read_dir(world.dir.path().join("data/services")).expect("there").flatten();
        meshes.map(|mesh| std::fs::read_dir(mesh.path()).expect("a mesh").count()).sum::<usize>()
    };
    let stopped = world.send(Method::DELETE, &world.path("app", ""), Bytes::new()).await.0;
    assert_eq!((stopped, left()), (StatusCode::NO_CONTENT, 1));
    let path = world.path("app", "?purge=true");
    assert_eq!(world.send(Method::DELETE, &path, Bytes::new()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(left(), 0);
    assert_eq!(world.send(Method::DELETE, &path, Bytes::new()).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_runner_that_no_broker_reads_ends_itself() {
    let mut world = World::start(&["orphan=4000"]).await;
    // The tests' own broker, so that the time does not pass during a slow start.
    let events = world.stream(Method::GET, "/v1/events", Bytes::new()).await;
    world.deploy("app", &world.wish(&["stubborn"])).await;
    drop(events);
    assert!(world.runner_ended().await.success());
    assert!(world.processes().is_empty());
}

#[tokio::test]
async fn an_artefact_that_vanished_is_made_again() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let artefacts = world.dir.path().join("data/artefacts");
    std::fs::rename(&artefacts, world.dir.path().join("elsewhere")).expect("moved away");
    std::fs::create_dir(&artefacts).expect("made");
    world.call("app", "crash", json!({})).await;
    assert_eq!(world.text("app", "echo", json!({"text": "again"})).await, "again");
    assert_eq!(world.phase("app", "ready").await["restarts"], json!(1));
}

#[tokio::test]
async fn health_does_not_wait_for_a_slow_tool_and_knows_it_later() {
    let tools = tempfile::tempdir().expect("a directory");
    let (bin, go) = (tools.path().join("bin"), tools.path().join("go"));
    std::fs::create_dir(&bin).expect("made");
    let script = format!("#!/bin/sh\nwhile [ ! -e '{}' ]; do sleep 0.05; done\necho 98.7.6\n", go.display());
    std::fs::write(bin.join("bun"), script).expect("written");
    std::fs::set_permissions(bin.join("bun"), std::fs::Permissions::from_mode(0o755)).expect("set");
    let folder = tools.path().to_str().expect("plain path");
    let world = World::start_with(&[], &[("CLAUDEMESH_TOOLS", folder)]).await;
    let known = async || world.send(Method::GET, "/health", Bytes::new()).await.1["tools"].clone();
    assert_eq!(known().await, json!([]));
    std::fs::write(&go, "").expect("written");
    let deadline = Instant::now() + SOON;
    loop {
        let tools = known().await;
        let tools = tools.as_array().expect("tools");
        if tools.contains(&json!("bun 98.7.6")) {
            break;
        }
        assert!(tools.is_empty() && Instant::now() < deadline, "{tools:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
