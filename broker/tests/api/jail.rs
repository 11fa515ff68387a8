//! What the jail is asked to hold: limits, the network, the policy of the mesh; and what the runner said about it.

use crate::world::peer::{Peer, deploy_frame};
use crate::world::{PATIENCE, World};
use serde_json::{Value, json};
use wire::report::{EgressDecision, Phase, Reason, Usage, Verdict};
use wire::{ErrorCode, Policy, Tier};

async fn status(peer: &mut Peer, name: &str) -> Value {
    peer.ask(json!({"type": "mcp_status", "server_name": name})).await["service"].clone()
}

/// Asks until the answer is as it should be; every round trip is a chance for the runner's report to arrive.
async fn until(peer: &mut Peer, ask: &Value, is_it: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            let answer = peer.ask(ask.clone()).await;
            if is_it(&answer) {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("the answer in time")
}

#[tokio::test]
async fn what_a_deploy_asks_of_the_jail_reaches_the_runner_and_the_status() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut frame = deploy_frame("echo", "ok", Value::Null);
    frame["config"] = json!({"cpus": 0.5, "pids": 50, "disk_mb": 64, "memory_mb": 100,
        "network_allow": ["api.github.com"], "isolation": "strict"});
    let id = owner.begin(frame).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    let spec = world.runner.seen().specs.remove(0);
    assert_eq!((spec.limits.milli_cpus, spec.limits.pids, spec.limits.disk_mb), (500, 50, 64));
    assert_eq!(spec.isolation, Some(Tier::Strict));
    world.runner.change("echo", |report| {
        let serving = report.serving.as_mut().expect("serving");
        serving.usage = Some(Usage { memory_bytes: 7, pids: 2, cpu_ms: Some(1), disk_bytes: 3 });
        serving.tier = Some(Tier::Strict);
    });
    let ask = json!({"type": "mcp_status", "server_name": "echo"});
    let shown = until(&mut owner, &ask, |answer| answer["service"]["tier"].is_string()).await;
    let shown = &shown["service"];
    assert_eq!(shown["network"], json!(["api.github.com:443"]));
    assert_eq!((&shown["limits"]["milli_cpus"], &shown["usage"]["pids"]), (&json!(500), &json!(2)));
    assert_eq!(
        (&shown["tier"], shown.get("learning_until"), shown.get("drift")),
        (&json!("strict"), None, None)
    );
}

#[tokio::test]
async fn a_bad_rule_and_a_weaker_jail_than_the_mesh_demands_are_refused_with_the_field() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    for (config, says) in [
        (json!({"network_allow": ["10.0.0.1"]}), "config.network_allow: `10.0.0.1` is an address"),
        (json!({"isolation": "light"}), "config.isolation: the mesh demands at least `strict`"),
        (json!({"cpus": 0}), "config.cpus: 0.01 to 256"),
    ] {
        let mut frame = deploy_frame("echo", "ok", Value::Null);
        frame["config"] = config;
        let refused = owner.ask(frame).await;
        assert_eq!(refused["code"], "invalid_args");
        assert!(refused["message"].as_str().is_some_and(|m| m.starts_with(says)), "{refused}");
    }
    assert!(world.runner.seen().applied.is_empty());
}

#[tokio::test]
async fn the_network_changes_as_a_new_generation_with_the_same_pin_and_secrets() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let change = async |peer: &mut Peer, mut frame: Value| {
        frame["type"] = json!("mcp_network");
        frame["server_name"] = json!("echo");
        let id = peer.begin(frame).await;
        let first = peer.answer(&id).await;
        if first["type"] == "error" { first } else { peer.settled(&id).await }
    };
    assert_eq!(change(&mut bo, json!({"allow": ["evil.example"]})).await["code"], "forbidden");
    let done = change(&mut owner, json!({"allow": ["a.example", "*.b.example:8443"]})).await;
    assert_eq!((&done["status"], &done["generation"]), (&json!("running"), &json!(2)));
    let seen = world.runner.seen();
    assert_eq!(seen.applied[1].2, json!({"pin": "1.0.1", "proven": false, "secret": "hunter2"}));
    assert_eq!(seen.specs[1].network.len(), 2);
    let again = change(&mut owner, json!({"allow": ["a.example:443"]})).await;
    assert_eq!(
        (&again["code"], &again["message"]),
        (&json!("invalid_args"), &json!("allow: `a.example:443` is allowed already"))
    );
    assert_eq!(change(&mut owner, json!({"deny": ["c.example"]})).await["code"], "invalid_args");
    assert_eq!(change(&mut owner, json!({"learn_minutes": 10})).await["status"], "running");
    assert!(status(&mut owner, "echo").await["learning_until"].is_string());
    assert_eq!(
        change(&mut owner, json!({"deny": ["a.example"], "learn_minutes": 0})).await["status"],
        "running"
    );
    let kept = json!(["*.b.example:8443"]);
    assert_eq!(status(&mut owner, "echo").await["network"], kept);
    owner.deploy("echo", "ok", Value::Null).await;
    let shown = status(&mut owner, "echo").await;
    assert_eq!(
        (&shown["network"], shown.get("learning_until")),
        (&kept, None),
        "a redeploy without a list keeps it"
    );
    assert_eq!(status(&mut bo, "echo").await.get("network"), None, "hosts of the deployer's own are in it");
    let mut frame = deploy_frame("echo", "ok", Value::Null);
    frame["config"]["network_allow"] = json!([]);
    let id = owner.begin(frame).await;
    owner.settled(&id).await;
    assert_eq!(status(&mut owner, "echo").await.get("network"), None, "an empty list is none");
}

#[tokio::test]
async fn a_policy_is_read_by_members_set_by_admins_and_given_to_the_runner_for_every_service() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    for name in ["a", "b"] {
        owner.deploy(name, "ok", json!("mesh")).await;
    }
    let strict = json!({"min_isolation": "strict", "min_release_age_s": 0});
    let light = json!({"min_isolation": "light", "min_release_age_s": 0});
    assert_eq!(bo.ask(json!({"type": "mesh_policy"})).await["policy"], strict);
    let lower = json!({"type": "mesh_policy", "min_isolation": "light"});
    assert_eq!(bo.ask(lower.clone()).await["code"], "forbidden");
    let unknown = json!({"type": "mesh_policy", "min_isolation": "none"});
    assert_eq!(owner.ask(unknown).await["code"], "invalid_args");
    let too_old = json!({"type": "mesh_policy", "min_release_age_s": 400 * 24 * 3600});
    assert_eq!(owner.ask(too_old).await["code"], "invalid_args");
    assert_eq!(world.runner.seen().applied.len(), 2);
    assert_eq!(owner.ask(lower).await["policy"], light);
    let seen = world.runner.until(|seen| seen.policies.len() == 4).await;
    assert_eq!(seen.policies[..2], [Policy::default(); 2]);
    assert_eq!(seen.policies[2..], [Policy { min_isolation: Tier::Light, min_release_age_s: 0 }; 2]);
    assert!(seen.applied[2..].iter().all(|(_, generation, _)| *generation == 1), "no new generation");
    let mut frame = deploy_frame("c", "ok", Value::Null);
    frame["config"]["isolation"] = json!("light");
    let id = owner.begin(frame).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    assert!(owner.call("a", "echo", json!({})).await["result"].is_object());
    assert_eq!(world.runner.seen().policies.len(), 5, "what the runner was told is known after a restart");
    assert_eq!(
        owner.ask(json!({"type": "mesh_policy", "min_release_age_s": 60})).await["policy"]["min_isolation"],
        "light"
    );
    let seen = world.runner.until(|seen| seen.policies.len() == 8).await;
    assert!(seen.policies[5..].iter().all(|policy| policy.min_release_age_s == 60));
}

async fn change_network(peer: &mut Peer, mut frame: Value) -> Value {
    (frame["type"], frame["server_name"]) = (json!("mcp_network"), json!("echo"));
    let id = peer.begin(frame).await;
    peer.settled(&id).await
}

#[tokio::test]
async fn a_stopped_service_stays_stopped_whatever_becomes_of_its_network() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", Value::Null).await;
    let id = owner.begin(json!({"type": "mcp_stop", "server_name": "echo"})).await;
    owner.settled(&id).await;
    let done = change_network(&mut owner, json!({"allow": ["a.example"]})).await;
    assert_eq!((&done["status"], &done["generation"]), (&json!("stopped"), &json!(2)));
    assert_eq!(world.runner.seen().applied.len(), 1, "nothing was started");
    let id = owner.begin(json!({"type": "mcp_start", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    let seen = world.runner.until(|seen| seen.specs.iter().any(|spec| spec.network.len() == 1)).await;
    assert_eq!(seen.applied.last().map(|(_, generation, _)| *generation), Some(2));
}

#[tokio::test]
async fn a_rollback_goes_to_another_version_and_never_back_to_learning() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok-1", Value::Null).await;
    change_network(&mut owner, json!({"allow": ["one.example"], "learn_minutes": 60})).await;
    owner.deploy("echo", "ok-2", Value::Null).await;
    assert!(status(&mut owner, "echo").await["learning_until"].is_string());
    change_network(&mut owner, json!({"allow": ["two.example"], "learn_minutes": 0})).await;
    change_network(&mut owner, json!({"deny": ["one.example"]})).await;
    let id = owner.begin(json!({"type": "mcp_rollback", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    let shown = status(&mut owner, "echo").await;
    assert!(shown["source"].as_str().is_some_and(|source| source.contains("ok-1")), "{shown}");
    assert_eq!((&shown["network"], shown.get("learning_until")), (&json!(["one.example:443"]), None));
    let id = owner.begin(json!({"type": "mcp_rollback", "server_name": "echo"})).await;
    owner.settled(&id).await;
    assert_eq!(status(&mut owner, "echo").await["network"], json!(["two.example:443"]), "and forth again");
}

#[tokio::test]
async fn what_failed_by_the_policy_is_tried_by_the_next_one() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let failed = owner.deploy("echo", "weak", Value::Null).await;
    assert_eq!(failed["reason"]["code"], "isolation_unavailable", "{failed}");
    owner.deploy("bad", "fail", Value::Null).await;
    owner.ask(json!({"type": "mesh_policy", "min_isolation": "light"})).await;
    let ask = json!({"type": "mcp_status", "server_name": "echo"});
    until(&mut owner, &ask, |answer| answer["service"]["phase"] == "ready").await;
    let tried = world.runner.seen().applied;
    assert_eq!(tried.iter().filter(|(name, ..)| name == "bad").count(), 1, "that has another reason");
}

#[tokio::test]
async fn a_caller_hears_what_the_server_died_of() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", Value::Null).await;
    let call = owner.begin(json!({"type": "mcp_call", "serverName": "echo", "toolName": "dies"})).await;
    world.runner.until(|seen| seen.calls.len() == 1).await;
    world.runner.change("echo", |report| {
        let serving = report.serving.as_mut().expect("serving");
        serving.phase = Phase::Backoff;
        serving.reason = Some(Reason {
            code: ErrorCode::OutOfMemory,
            message: "64 MiB were too few".into(),
            stderr: vec![],
        });
    });
    let answer = owner.answer(&call).await;
    assert_eq!(
        (&answer["code"], &answer["error"]),
        (&json!("instance_lost"), &json!("it ended: 64 MiB were too few"))
    );
}

#[tokio::test]
async fn process_ids_and_hosts_are_for_those_who_manage_the_service() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut guest = world.member(3, "Gus", "guest").await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    change_network(&mut owner, json!({"allow": ["db.corp:5432"]})).await;
    world.runner.change("echo", |report| {
        report.serving.as_mut().expect("serving").pid = Some(4711);
        report.egress = vec![decision("db.corp", 1, 5)];
    });
    let ask = json!({"type": "mcp_status", "server_name": "echo"});
    until(&mut owner, &ask, |answer| answer["service"]["pid"] == 4711).await;
    for other in [&mut bo, &mut guest] {
        for frame in [ask.clone(), json!({"type": "mcp_catalog"})] {
            let told = other.ask(frame).await.to_string();
            assert!(
                told.contains("\"echo\"") && !told.contains("db.corp") && !told.contains("4711"),
                "{told}"
            );
        }
    }
}

#[tokio::test]
async fn the_runner_tells_what_it_can_build_and_nobody_does_while_it_is_away() {
    let mut world = World::start().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let ask = json!({"type": "runner_status"});
    let told = until(&mut bo, &ask, |told| told["runner"].is_object()).await;
    assert_eq!(
        (&told["type"], &told["runner"]["isolation"]["tier"]),
        (&json!("runner_status_result"), &json!("strict"))
    );
    world.runner.kill().await;
    until(&mut bo, &ask, |told| told.get("runner").is_none()).await;
}

fn decision(host: &str, count: u64, last_ms: i64) -> EgressDecision {
    let verdict = Verdict::NotListed;
    EgressDecision {
        host: host.into(),
        port: 443,
        verdict,
        count,
        last_ms,
        sent_bytes: 0,
        received_bytes: 0,
        injected: 0,
    }
}

async fn until_counted(peer: &mut Peer, counts: &[(&str, u64)]) {
    let wanted: Vec<_> = counts.iter().map(|(host, count)| json!([host, count])).collect();
    until(peer, &json!({"type": "mcp_status", "server_name": "echo"}), |answer| {
        let rows = answer["service"]["egress"].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| json!([row["host"], row["count"]])).collect::<Vec<_>>() == wanted
    })
    .await;
}

#[tokio::test]
async fn connections_are_counted_over_every_life_of_runner_and_broker_and_shown_to_who_manages() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let now = chrono::Utc::now().timestamp_millis();
    let told = |world: &World, count| {
        world.runner.change("echo", |report| {
            report.egress = vec![decision("a.example", count, now), decision("b.\u{202e}x", 1, now + 5)];
        });
    };
    told(&world, 3);
    until_counted(&mut owner, &[("a.example", 3), ("b.?x", 1)]).await;
    told(&world, 4);
    until_counted(&mut owner, &[("a.example", 4), ("b.?x", 1)]).await;
    assert_eq!(status(&mut bo, "echo").await.get("egress"), None);
    world.stop_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    until_counted(&mut owner, &[("a.example", 4), ("b.?x", 1)]).await;
    world.runner.kill().await;
    world.runner.restart();
    world.runner.until(|seen| seen.applied.len() == 2).await;
    told(&world, 2);
    until_counted(&mut owner, &[("a.example", 6), ("b.?x", 2)]).await;
}
