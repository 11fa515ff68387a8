//! The life of a service through the real binary: deploy, call, update, roll back, stop, start, remove; who sees what.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use serde_json::{Value, json};
use tests::person::Person;
use tests::{Peer, World, eventually, fixture, processes};

/// Deploys the Python fixture from a folder, as a person would.
async fn deploy(world: &World, who: &Person, name: &str, flags: &[&str]) -> Value {
    let folder = fixture::python_folder(&world.folder("python"));
    let mut args = vec!["deploy", name, folder.to_str().unwrap()];
    args.extend(flags);
    who.json(args).await
}

fn version(n: &str) -> [String; 2] {
    ["--args=normal".into(), format!("--args={n}")]
}

async fn deploy_version(world: &World, name: &str, n: &str) -> Value {
    let flags = version(n);
    deploy(world, &world.owner, name, &[&flags[0], &flags[1]]).await
}

#[tokio::test]
async fn a_folder_is_deployed_called_updated_rolled_back_stopped_started_and_removed() {
    World::scene(async |world| {
        let owner = &world.owner;
        let folder = fixture::node_folder(&world.folder("node"));
        let folder = folder.to_str().unwrap();
        owner.ok(["deploy", "mine", folder, "--args=one"]).await;
        assert_eq!(owner.ok(["call", "mine", "add", r#"{"a":2,"b":40}"#]).await.trim(), "42");
        assert_eq!(owner.ok(["call", "mine", "version"]).await.trim(), "one");
        let status = world.status("mine").await;
        assert_eq!((&status["phase"], &status["generation"]), (&json!("ready"), &json!(1)), "{status}");
        assert_eq!(status["pin"]["kind"], "archive", "{status}");

        owner.ok(["deploy", "mine", folder, "--args=two"]).await;
        assert_eq!(owner.ok(["call", "mine", "version"]).await.trim(), "two");
        owner.ok(["rollback", "mine"]).await;
        assert_eq!(owner.ok(["call", "mine", "version"]).await.trim(), "one");

        let before = owner.peer().await.pid_of("mine").await;
        owner.ok(["stop", "mine"]).await;
        assert!(!processes::is_alive(before), "the process outlived stop");
        let refused = owner.refused(["call", "mine", "pid"]).await;
        assert_eq!((refused.code.as_str(), refused.exit), ("service_stopped", 5), "{}", refused.text);
        assert!(owner.ok(["tools", "mine"]).await.contains("add"), "lists come from the store");
        owner.ok(["start", "mine"]).await;
        assert_eq!(owner.ok(["call", "mine", "version"]).await.trim(), "one");

        let pid = owner.peer().await.pid_of("mine").await;
        owner.ok(["rm", "mine"]).await;
        assert!(!processes::is_alive(pid), "the process outlived rm");
        assert_eq!(owner.refused(["status", "mine"]).await.code, "not_found");
        assert!(!owner.ok(["ls"]).await.contains("mine"));
    })
    .await;
}

#[tokio::test]
async fn a_failed_update_keeps_the_old_version_serving_and_says_why() {
    World::scene(async |world| {
        deploy_version(world, "kept", "good").await;
        let peer = world.owner.peer().await;
        let pid = peer.pid_of("kept").await;
        let folder = fixture::python_folder(&world.folder("python"));
        let refused = world.owner.refused(["deploy", "kept", folder.to_str().unwrap(), "--args=exit"]).await;
        assert_eq!((refused.code.as_str(), refused.exit), ("start_exited", 4), "{}", refused.text);
        assert!(
            refused.text.contains("the config file is missing"),
            "the last stderr lines: {}",
            refused.text
        );
        assert_eq!(peer.call_text("kept", "version", json!({})).await, "good");
        assert_eq!(peer.pid_of("kept").await, pid, "the same process serves on");
        let status = world.status("kept").await;
        assert_eq!(status["phase"], "ready", "{status}");
        assert_eq!(status["failed_update"]["reason"]["code"], "start_exited", "{status}");
        assert!(status["failed_update"]["reason"]["stderr"].to_string().contains("config file"), "{status}");
    })
    .await;
}

#[tokio::test]
async fn an_idle_service_stops_and_a_call_wakes_it() {
    World::scene(async |world| {
        deploy(world, &world.owner, "sleepy", &["--idle-stop=10s"]).await;
        let peer = world.owner.peer().await;
        let pid = peer.pid_of("sleepy").await;
        eventually("the idle service stops", async || (!processes::is_alive(pid)).then_some(())).await;
        eventually("it is shown as idle", async || {
            (world.status("sleepy").await["phase"] == "idle").then_some(())
        })
        .await;
        let tools = peer.request("mcp_schema", json!({ "server_name": "sleepy" })).await;
        assert!(tools["tools"].as_array().unwrap().len() > 5, "{tools}");
        let woken = peer.pid_of("sleepy").await;
        assert!(woken != pid && processes::is_alive(woken));
    })
    .await;
}

#[tokio::test]
async fn logs_show_the_past_and_are_followed_live_without_escape_sequences() {
    World::scene(async |world| {
        deploy(world, &world.owner, "talker", &[]).await;
        let peer = world.owner.peer().await;
        peer.call_text("talker", "log", json!({ "line": "\u{1b}[31mfirst\u{1b}[0m words" })).await;
        let mut logs =
            peer.ask("mcp_logs", json!({ "server_name": "talker", "lines": 100, "follow": true })).await;
        let mut seen = logs.next().await.unwrap()["entries"].as_array().unwrap().clone();
        // A line on stderr may be read after the answer on stdout: both are followed to the end.
        peer.call_text("talker", "log", json!({ "line": "second words" })).await;
        while !seen.iter().any(|line| line["text"] == "second words") {
            let event = logs.next().await.unwrap();
            assert_eq!(event["type"], "mcp_logs_event", "{event}");
            seen.extend(event["entries"].as_array().unwrap().iter().cloned());
        }
        assert!(seen.iter().any(|line| line["text"] == "first words"), "{seen:?}");
        let seqs: Vec<_> = seen.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "no line twice, none out of order: {seqs:?}");
        assert!(world.owner.ok(["logs", "talker", "-n", "200"]).await.contains("second words"));
    })
    .await;
}

/// What every read and every call says to somebody out of scope: exactly what it says about a name that never was.
async fn sees_nothing(peer: &Peer, name: &str) {
    for (kind, field) in
        [("mcp_status", "server_name"), ("mcp_schema", "server_name"), ("mcp_logs", "server_name")]
    {
        let hidden = peer.request(kind, json!({ field: name })).await;
        let absent = peer.request(kind, json!({ field: "never-was" })).await;
        assert_eq!(hidden["code"], "not_found", "{kind}: {hidden}");
        let same = hidden["message"].as_str().unwrap().replace(name, "never-was");
        assert_eq!(same, absent["message"].as_str().unwrap(), "{kind} tells hidden from absent");
    }
    for kind in ["mcp_update", "mcp_rollback", "mcp_stop", "mcp_start", "mcp_undeploy", "mcp_scope"] {
        let answer = peer.request(kind, json!({ "server_name": name })).await;
        assert_eq!(answer["code"], "not_found", "{kind}: {answer}");
    }
    let call = peer.call(name, "echo", json!({ "text": "x" })).await;
    assert_eq!(call["code"], "not_found", "{call}");
    let request = json!({ "serverName": name, "method": "tools/call", "params": { "name": "echo" } });
    assert_eq!(peer.request("mcp_request", request).await["code"], "not_found");
    let catalog = peer.request("mcp_catalog", json!({})).await;
    assert!(!catalog["services"].to_string().contains(name), "{catalog}");
}

async fn sees(peer: &Peer, name: &str) {
    assert_eq!(peer.call_text(name, "echo", json!({ "text": "hi" })).await, "hi");
    assert_eq!(peer.request("mcp_schema", json!({ "server_name": name })).await["type"], "mcp_schema_result");
    assert!(peer.request("mcp_catalog", json!({})).await["services"].to_string().contains(name));
}

#[tokio::test]
async fn what_is_out_of_scope_does_not_exist_and_only_those_concerned_hear_of_a_change() {
    World::scene(async |world| {
        let eng = world.join("Ana", &["--groups", "eng:lead"]).await;
        let ops = world.join("Bo", &["--groups", "ops"]).await;
        deploy(world, &world.owner, "scoped", &["--group", "eng"]).await;
        let (ana, bo) = (eng.peer().await, ops.peer().await);
        assert!(ana.ack["services"].to_string().contains("scoped"), "{}", ana.ack);
        assert!(!bo.ack["services"].to_string().contains("scoped"), "{}", bo.ack);
        sees(&ana, "scoped").await;
        sees_nothing(&bo, "scoped").await;

        // A group that a client gives itself is worth nothing.
        let mut hello = ops.identity().hello("self-made", tests::peer::now_ms());
        hello["groups"] = json!([{ "name": "eng", "role": "lead" }]);
        let mut socket = tests::peer::dial(&ops.broker_url()).await;
        let (ack, _) = tests::peer::exchange(&mut socket, hello.to_string(), 1).await;
        assert_eq!(ack[0]["services"], json!([]), "{ack:?}");

        for (flags, ana_sees, bo_sees) in [
            (vec!["--groups", "ops"], false, true),
            (vec!["--role", "lead"], true, false),
            (vec!["--peers", "Bo"], false, true),
            (vec!["--mesh"], true, true),
            (vec!["--peer"], false, false),
        ] {
            let mut args = vec!["scope", "scoped"];
            args.extend(&flags);
            world.owner.ok(&args).await;
            for (peer, visible) in [(&ana, ana_sees), (&bo, bo_sees)] {
                if visible { sees(peer, "scoped").await } else { sees_nothing(peer, "scoped").await }
            }
        }
        let heard = |events: Vec<Value>| -> Vec<String> {
            let of_service = events.iter().filter(|e| e["eventData"]["name"] == "scoped");
            of_service.map(|e| e["event"].as_str().unwrap().to_owned()).collect()
        };
        let gained_lost =
            ["mcp_undeployed", "mcp_deployed", "mcp_undeployed", "mcp_deployed", "mcp_undeployed"];
        assert_eq!(heard(ana.events_so_far().await), gained_lost);
        let bo_heard =
            ["mcp_deployed", "mcp_undeployed", "mcp_deployed", "mcp_scope_changed", "mcp_undeployed"];
        assert_eq!(heard(bo.events_so_far().await), bo_heard);
    })
    .await;
}

#[tokio::test]
async fn a_member_may_use_what_is_shared_and_may_not_change_it() {
    World::scene(async |world| {
        let person = world.join("Ana", &[]).await;
        deploy(world, &world.owner, "shared", &["--mesh-wide"]).await;
        let ana = person.peer().await;
        sees(&ana, "shared").await;
        for kind in ["mcp_stop", "mcp_undeploy", "mcp_update", "mcp_logs"] {
            let answer = ana.request(kind, json!({ "server_name": "shared" })).await;
            assert_eq!(answer["code"], "forbidden", "{kind}: {answer}");
        }
        deploy(world, &person, "own", &[]).await;
        assert_eq!(ana.call_text("own", "echo", json!({ "text": "mine" })).await, "mine");
        let widened = ana.request("mcp_scope", json!({ "server_name": "own", "scope": "mesh" })).await;
        assert_eq!(widened["code"], "forbidden", "{widened}");
    })
    .await;
}

#[tokio::test]
async fn the_later_of_two_deploys_wins_and_nothing_runs_twice() {
    World::scene(async |world| {
        deploy_version(world, "raced", "0").await;
        let folder = fixture::python_folder(&world.folder("python"));
        // What the deployer heard; `None` is success.
        let race = |n: &'static str| {
            let args = ["--json", "deploy", "raced", folder.to_str().unwrap(), "--args=normal", n];
            let args = args.map(str::to_owned);
            async move {
                let output = world.owner.run(args).await;
                let said = format!("{output:?}");
                (!output.status.success()).then_some(said)
            }
        };
        let (first, second) = tokio::join!(race("--args=A"), race("--args=B"));
        assert!(first.is_none() || second.is_none(), "one of them wins: {first:?} {second:?}");
        for lost in [first, second].into_iter().flatten() {
            assert!(lost.contains("superseded"), "{lost}");
        }
        let peer = world.owner.peer().await;
        let serving = peer.call_text("raced", "version", json!({})).await;
        let status = eventually("the race is over", async || {
            let status = world.status("raced").await;
            (status["phase"] == "ready").then_some(status)
        })
        .await;
        assert!(["A", "B"].contains(&serving.as_str()), "{serving}");
        assert!(status["args"].to_string().contains(&serving), "the record is of what runs: {status}");
        eventually("one server process", async || {
            let found = processes::of(world.path());
            let servers = found.iter().filter(|p| p.command.contains("server.py")).count();
            (servers == 1).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn whoever_deployed_what_a_later_deploy_replaced_hears_so_on_the_socket_that_asked() {
    World::scene(async |world| {
        deploy_version(world, "raced", "0").await;
        let file_id = world.status("raced").await["pin"]["version"].clone();
        let wish = |args: [&str; 2]| {
            let source = json!({ "type": "zip", "file_id": file_id, "format": "tar_gz" });
            json!({ "server_name": "raced", "source": source, "config": { "args": args } })
        };
        let (early, late) = (world.owner.peer().await, world.owner.peer().await);
        // It never answers, so it is under way for sure when the later one comes.
        let mut lost = early.ask("mcp_deploy", wish(["silent", "A"])).await;
        let accepted = lost.next().await.unwrap();
        assert_eq!(
            (&accepted["status"], &accepted["generation"]),
            (&json!("building"), &json!(2)),
            "{accepted}"
        );
        let won = late.ask("mcp_deploy", wish(["normal", "B"])).await.verdict().await;
        assert_eq!((&won["status"], &won["generation"]), (&json!("running"), &json!(3)), "{won}");
        let lost = lost.verdict().await;
        assert_eq!(
            (&lost["status"], &lost["reason"]["code"]),
            (&json!("failed"), &json!("superseded")),
            "{lost}"
        );
        assert_eq!(late.call_text("raced", "version", json!({})).await, "B");
    })
    .await;
}

#[tokio::test]
async fn a_revoked_member_loses_everything_at_once() {
    World::scene(async |world| {
        let person = world.join("Ana", &[]).await;
        deploy(world, &world.owner, "shared", &["--mesh-wide"]).await;
        deploy(world, &person, "own", &[]).await;
        let ana = person.peer().await;
        sees(&ana, "shared").await;
        let pid = ana.pid_of("own").await;
        world.owner.ok(["member", "Ana", "--revoke"]).await;
        ana.closed().await;
        eventually("the revoked member's service stops", async || (!processes::is_alive(pid)).then_some(()))
            .await;
        let refusal = Peer::try_connect(&person.broker_url(), &person.identity()).await.err().unwrap();
        assert!(refusal.contains(r#""code":"revoked""#), "{refusal}");
        let refused = person.refused(["ls"]).await;
        assert_eq!((refused.code.as_str(), refused.exit), ("revoked", 3), "{}", refused.text);
    })
    .await;
}

#[tokio::test]
async fn what_a_server_says_reaches_the_caller_as_it_was_said() {
    World::scene(async |world| {
        deploy(world, &world.owner, "exact", &[]).await;
        let peer = world.owner.peer().await;
        let schema = peer.request("mcp_schema", json!({ "server_name": "exact", "tool_name": "echo" })).await;
        assert_eq!(schema["tools"][0]["x-unknown"].to_string(), r#"{"kept":[1,2.0,null]}"#, "{schema}");
        assert_eq!(schema["names"][0], "svc__exact__echo");

        let call = json!({ "serverName": "exact", "toolName": "progress", "args": { "steps": 3 },
            "meta": { "progressToken": "mine" } });
        let mut frames = peer.ask("mcp_call", call).await;
        for step in 1..=3 {
            let event = frames.next().await.unwrap();
            assert_eq!(event["type"], "mcp_request_event", "{event}");
            let params = &event["event"]["params"];
            assert_eq!(
                (&params["progressToken"], &params["progress"]),
                (&json!("mine"), &json!(step)),
                "{event}"
            );
        }
        assert_eq!(fixture::text(&frames.next().await.unwrap()["result"]), "done");

        let failed = peer.call("exact", "fail", json!({})).await;
        assert_eq!(failed["result"]["isError"], true, "{failed}");
        let output = world.owner.run(["call", "exact", "fail"]).await;
        assert_eq!(output.status.code(), Some(4), "a failed tool has its own exit code");
        let unknown = peer.call("exact", "no-such-tool", json!({})).await;
        assert_eq!(
            (&unknown["code"], &unknown["rpc"]["code"]),
            (&json!("mcp_error"), &json!(-32603)),
            "{unknown}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_call_and_a_late_one_end_at_once_and_the_service_goes_on() {
    World::scene(async |world| {
        deploy(world, &world.owner, "slow", &[]).await;
        let peer = world.owner.peer().await;
        let late =
            json!({ "serverName": "slow", "toolName": "sleep", "args": { "ms": 60_000 }, "deadlineMs": 300 });
        assert_eq!(peer.request("mcp_call", late).await["code"], "call_timeout");
        let long = json!({ "serverName": "slow", "toolName": "sleep", "args": { "ms": 60_000 } });
        let (id, mut answers) = peer.ask_with_id("mcp_call", long).await;
        let cancel = json!({ "type": "mcp_cancel", "requestId": id });
        peer.send_text(cancel.to_string()).await.unwrap();
        assert_eq!(answers.next().await.unwrap()["code"], "call_cancelled");
        assert_eq!(peer.call_text("slow", "echo", json!({ "text": "still here" })).await, "still here");
    })
    .await;
}

#[tokio::test]
async fn a_server_sees_its_own_environment_and_nothing_of_the_platform() {
    let setup = tests::Setup {
        env: vec![("SECRET_OF_THE_OPERATOR".into(), "op-5ec2e7".into())],
        ..Default::default()
    };
    World::scene_with(setup, async |world| {
        deploy(world, &world.owner, "jailed", &["--env", "API_KEY=k-123"]).await;
        let peer = world.owner.peer().await;
        let text = peer.call_text("jailed", "environ", json!({})).await;
        let environ: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(environ["API_KEY"], "k-123");
        assert!(!text.contains("op-5ec2e7"), "{text}");
        let foreign =
            environ.keys().find(|name| name.starts_with("CLAUDEMESH") || name.starts_with("BROKER_"));
        assert_eq!(foreign, None, "{text}");
        assert_ne!(environ["HOME"], json!(world.owner.home.to_str().unwrap()));
        // The value is in the jail and in no command line, status or log.
        let status = world.status("jailed").await.to_string();
        assert!(status.contains("API_KEY") && !status.contains("k-123"), "{status}");
        let argv = processes::of(world.path()).iter().any(|found| found.command.contains("k-123"));
        assert!(!argv, "a secret in argv");
        for file in ["up.log", "data/runner.log"] {
            let log = std::fs::read_to_string(world.path().join(file)).unwrap_or_default();
            assert!(!log.contains("k-123"), "a secret in {file}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_crashed_server_comes_back_by_itself_and_those_in_scope_hear_of_it() {
    World::scene(async |world| {
        deploy(world, &world.owner, "frail", &["--mesh-wide"]).await;
        let peer = world.join("Ana", &[]).await.peer().await;
        let owner = world.owner.peer().await;
        let pid = owner.pid_of("frail").await;
        let lost = peer.call("frail", "crash", json!({})).await;
        assert_eq!(lost["code"], "instance_lost", "{lost}");
        let event = peer.event("mcp_crashed", "frail").await;
        assert_eq!(event["reason"]["code"], "instance_lost", "{event}");
        assert!(
            !event.to_string().contains("crashing on request"),
            "stderr is for those who may read logs: {event}"
        );
        // A call to a service that is on its way back waits for it.
        peer.call_text("frail", "version", json!({})).await;
        assert_ne!(owner.pid_of("frail").await, pid);
        assert_eq!(world.status("frail").await["restarts"], 1);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_keeps_crashing_is_shown_as_such_with_its_reason() {
    World::scene(async |world| {
        deploy(world, &world.owner, "hopeless", &[]).await;
        let peer = world.owner.peer().await;
        let status = eventually("a crash loop", async || {
            let _ = peer.call("hopeless", "crash", json!({})).await;
            let status = world.status("hopeless").await;
            (status["phase"] == "crash_loop").then_some(status)
        })
        .await;
        assert_eq!(status["status"], "crashed");
        assert!(status["reason"].to_string().contains("crashing on request"), "{status}");
        let call = peer.call("hopeless", "echo", json!({ "text": "x" })).await;
        assert_eq!(call["code"], "service_failed", "{call}");
        world.owner.ok(["start", "hopeless"]).await;
        assert_eq!(peer.call_text("hopeless", "echo", json!({ "text": "back" })).await, "back");
    })
    .await;
}

#[tokio::test]
async fn stop_ends_what_the_server_forked_and_hid_in_another_session() {
    World::scene(async |world| {
        deploy(world, &world.owner, "forker", &["--args=stubborn"]).await;
        let peer = world.owner.peer().await;
        peer.call_text("forker", "spawn", json!({})).await;
        let of_server = || -> Vec<_> {
            let found = processes::of(world.path()).into_iter();
            found
                .filter(|p| p.command.contains("server.py") || p.command.contains("time.sleep(900)"))
                .collect()
        };
        assert_eq!(of_server().len(), 2, "server and hidden grandchild: {:?}", of_server());
        let status = peer.ask("mcp_stop", json!({ "server_name": "forker" })).await.verdict().await;
        assert_eq!(status["status"], "stopped", "{status}");
        assert!(of_server().is_empty(), "left after stop: {:?}", of_server());
    })
    .await;
}

#[tokio::test]
async fn up_says_who_holds_its_data_and_doctor_finds_nothing_wrong() {
    World::scene(async |world| {
        let data = world.data();
        let second =
            world.owner.refused(["up", "--listen=127.0.0.1:0", "--data", data.to_str().unwrap()]).await;
        assert!(second.text.contains("pid") || second.text.contains("process"), "{}", second.text);
        // The runner comes up beside the broker, and may be a moment later.
        eventually("doctor finds nothing wrong", async || {
            let doctor = world.owner.run(["doctor", "--data", data.to_str().unwrap()]).await;
            doctor.status.success().then_some(())
        })
        .await;
        client::install_tls();
        let http = world.http().await;
        for path in ["/health", "/health/ready", "/metrics"] {
            let status = reqwest::get(format!("{http}{path}")).await.unwrap().status();
            assert_eq!(status, 200, "{path}");
        }
    })
    .await;
}
