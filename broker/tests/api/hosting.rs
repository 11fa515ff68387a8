//! Deploying, updating, sharing, stopping and removing services, through restarts of both sides.

use crate::world::World;
use crate::world::peer::{Peer, deploy_frame};
use serde_json::{Value, json};
use wire::ErrorCode;
use wire::report::{Phase, Reason};

#[tokio::test]
async fn a_deploy_answers_building_then_progress_then_running_with_the_tools() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let id = owner.begin(deploy_frame("echo", "ok-server", json!("mesh"))).await;
    let first = owner.answer(&id).await;
    assert_eq!((&first["type"], &first["status"]), (&json!("mcp_deploy_status"), &json!("building")));
    let done = owner.settled(&id).await;
    assert_eq!(done["status"], "running", "{done}");
    assert_eq!(done["tools"][0]["name"], "echo");
    assert_eq!(done["pin"]["version"], "1.0.1");
    let progress = owner.answer(&id).await;
    assert_eq!(progress["type"], "mcp_deploy_progress");
    assert_eq!(progress["line"], "added 1 package");
    let seen = world.runner.seen();
    assert_eq!(seen.applied[0].2, json!({"pin": null, "proven": false, "secret": "hunter2"}));
    assert_eq!(owner.event("mcp_deployed").await["eventData"]["tool_count"], 2);
    let later = world.owner().await;
    let offer = &later.ack["services"][0];
    assert_eq!((&offer["name"], &offer["status"]), (&json!("echo"), &json!("running")));
    assert_eq!(offer["tools"][1]["name"], "slow");
}

#[tokio::test]
async fn catalog_schema_and_status_come_from_the_store_while_the_runner_is_away() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    world.runner.kill().await;
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    let catalog = owner.ask(json!({"type": "mcp_catalog"})).await;
    let row = &catalog["services"][0];
    assert_eq!(
        (&row["name"], &row["tool_count"], &row["source_type"]),
        (&json!("echo"), &json!(2), &json!("npx"))
    );
    assert_eq!(row["reason"]["code"], "runner_unavailable");
    assert_eq!(row["source"], "npm ok@1.0.1");
    let schema = owner.ask(json!({"type": "mcp_schema", "server_name": "echo", "tool_name": "slow"})).await;
    assert_eq!(schema["tools"].as_array().map(Vec::len), Some(1));
    assert_eq!(schema["names"], json!(["svc__echo__slow"]));
    let status = owner.ask(json!({"type": "mcp_status", "server_name": "echo"})).await;
    assert_eq!(status["service"]["env_names"], json!(["KEY"]));
    assert!(!status.to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_failed_first_deploy_says_why_and_start_tries_it_again() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let failed = owner.deploy("bad", "fail", Value::Null).await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["reason"]["code"], "start_exited");
    assert_eq!(failed["reason"]["stderr"], json!(["no KEY"]));
    assert_eq!(failed.get("serving"), None);
    let call = owner.call("bad", "echo", json!({})).await;
    assert_eq!(call["code"], "service_failed");
    world.runner.until(|seen| seen.removed.contains(&("bad".into(), false))).await;
    let id = owner.begin(json!({"type": "mcp_start", "server_name": "bad"})).await;
    assert_eq!(owner.settled(&id).await["status"], "failed");
    assert_eq!(world.runner.seen().applied.len(), 2);
}

#[tokio::test]
async fn a_failed_update_keeps_the_old_version_serving() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let failed = owner.deploy("echo", "fail", Value::Null).await;
    assert_eq!((&failed["status"], &failed["serving"]), (&json!("failed"), &json!(1)));
    let status = owner.ask(json!({"type": "mcp_status", "server_name": "echo"})).await["service"].clone();
    assert_eq!((&status["status"], &status["generation"]), (&json!("running"), &json!(1)));
    assert_eq!(status["failed_update"]["generation"], 2);
    assert_eq!(status["scope"], json!({"type": "mesh"}));
    assert!(owner.call("echo", "echo", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn of_two_deploys_the_later_wins_and_the_earlier_waiter_is_told() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let first = owner.begin(deploy_frame("echo", "hang", Value::Null)).await;
    world.runner.until(|seen| seen.applied.len() == 1).await;
    let second = owner.begin(deploy_frame("echo", "ok", Value::Null)).await;
    let lost = owner.settled(&first).await;
    assert_eq!((&lost["status"], &lost["reason"]["code"]), (&json!("failed"), &json!("superseded")));
    let won = owner.settled(&second).await;
    assert_eq!((&won["status"], &won["generation"]), (&json!("running"), &json!(2)));
}

#[tokio::test]
async fn a_deploy_goes_on_when_the_deployer_hangs_up() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.begin(deploy_frame("echo", "ok", json!("mesh"))).await;
    owner.hang_up().await;
    let mut again = world.owner().await;
    if again.ack["services"].as_array().is_some_and(Vec::is_empty) {
        again.event("mcp_deployed").await;
    }
    assert!(again.call("echo", "echo", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn tools_that_would_share_a_name_are_refused_and_the_old_version_returns() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let failed = owner.deploy("echo", "clash", Value::Null).await;
    assert_eq!(failed["reason"]["code"], "name_collision", "{failed}");
    world.runner.until(|seen| seen.applied.last().is_some_and(|last| last.1 == 1)).await;
}

#[tokio::test]
async fn update_drops_the_pin_and_rollback_brings_the_old_one_back_with_its_secrets() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let none = owner.ask(json!({"type": "mcp_rollback", "server_name": "echo"})).await;
    assert_eq!(none["code"], "no_previous");
    let id = owner.begin(json!({"type": "mcp_update", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["generation"], 2);
    let updated = owner.event("mcp_updated").await;
    assert_eq!(updated["eventData"]["prev_sha"], "1.0.1");
    assert_eq!(updated["eventData"]["new_sha"], "1.0.2");
    let id = owner.begin(json!({"type": "mcp_rollback", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    let applied = world.runner.seen().applied;
    let notes: Vec<_> =
        applied.iter().map(|(_, generation, note)| (*generation, &note["pin"], &note["secret"])).collect();
    let secret = json!("hunter2");
    assert_eq!(
        notes,
        [(1, &Value::Null, &secret), (2, &Value::Null, &secret), (3, &json!("1.0.1"), &secret)]
    );
}

#[tokio::test]
async fn a_restarted_runner_gets_every_service_back_and_calls_wait_for_it() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    for name in ["a", "b", "c"] {
        assert_eq!(owner.deploy(name, "ok", json!("mesh")).await["status"], "running");
    }
    world.runner.kill().await;
    let waiting = owner.begin(json!({"type": "mcp_call", "serverName": "b", "toolName": "echo"})).await;
    world.runner.restart();
    assert!(owner.answer(&waiting).await["result"].is_object());
    let seen = world.runner.until(|seen| seen.applied.len() == 6).await;
    assert!(seen.applied[3..].iter().all(|(_, generation, note)| *generation == 1 && note["proven"] == true));
    assert!(seen.applied[3..].iter().all(|(_, _, note)| note["pin"] == "1.0.1"));
}

#[tokio::test]
async fn a_killed_broker_finds_its_services_running_and_applies_nothing_again() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    assert!(owner.call("echo", "echo", json!({})).await["result"].is_object());
    assert_eq!(world.runner.seen().applied.len(), 1);
}

#[tokio::test]
async fn a_deploy_that_a_killed_broker_began_is_finished_by_the_next() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    world.runner.kill().await;
    let id = owner.begin(deploy_frame("echo", "ok", json!("mesh"))).await;
    assert_eq!(owner.answer(&id).await["status"], "building");
    world.kill_broker().await;
    world.runner.restart();
    world.start_broker().await;
    let mut owner = world.owner().await;
    let answer = owner.call("echo", "echo", json!({})).await;
    assert!(answer["result"].is_object(), "{answer}");
}

#[tokio::test]
async fn a_service_removed_while_the_runner_is_away_is_purged_when_it_returns() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    world.runner.kill().await;
    let id = owner.begin(json!({"type": "mcp_undeploy", "server_name": "echo"})).await;
    let answer = owner.settled(&id).await;
    assert_eq!(answer["status"], "stopped");
    assert_eq!(owner.event("mcp_undeployed").await["eventData"]["name"], "echo");
    let unknown = owner.ask(json!({"type": "mcp_status", "server_name": "echo"})).await;
    assert_eq!(unknown["code"], "not_found");
    let taken = owner.deploy("echo", "ok", Value::Null).await;
    assert_eq!(taken["code"], "conflict", "a new owner must not inherit the old data");
    world.runner.restart();
    world.runner.until(|seen| seen.removed.contains(&("echo".into(), true)) && seen.retained > 0).await;
    assert_eq!(owner.deploy("echo", "ok", Value::Null).await["generation"], 1);
}

#[tokio::test]
async fn stop_ends_the_process_and_start_brings_it_back() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    let id = owner.begin(json!({"type": "mcp_stop", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["status"], "stopped");
    assert_eq!(world.runner.seen().removed, [("echo".to_owned(), false)]);
    assert_eq!(owner.call("echo", "echo", json!({})).await["code"], "service_stopped");
    let id = owner.begin(json!({"type": "mcp_start", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
}

#[tokio::test]
async fn a_member_outside_the_scope_finds_nothing_whatever_they_ask() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    owner.deploy("echo", "ok", Value::Null).await;
    assert_eq!(bo.call("echo", "echo", json!({})).await["error"], "MCP server \"echo\" not found in mesh");
    for kind in [
        "mcp_schema",
        "mcp_status",
        "mcp_logs",
        "mcp_scope",
        "mcp_stop",
        "mcp_start",
        "mcp_update",
        "mcp_undeploy",
    ] {
        let answer = bo.ask(json!({"type": kind, "server_name": "echo"})).await;
        assert_eq!(answer["code"], "not_found", "{kind}: {answer}");
        let nowhere = bo.ask(json!({"type": kind, "server_name": "other"})).await;
        assert_eq!(
            answer["message"].as_str().map(|m| m.replace("echo", "other")),
            nowhere["message"].as_str().map(str::to_owned),
            "{kind} tells a hidden service from none"
        );
    }
    assert_eq!(bo.ask(json!({"type": "mcp_catalog"})).await["services"], json!([]));
    assert!(bo.heard().await.iter().all(|frame| frame["event"] != "mcp_deployed"));
    assert!(world.runner.seen().calls.is_empty());
}

#[tokio::test]
async fn a_change_of_scope_is_heard_by_whom_it_concerns_and_by_nobody_else() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut cy = world.member(3, "Cy", "member").await;
    owner.deploy("echo", "ok", Value::Null).await;
    let set = async |owner: &mut Peer, scope: Value| {
        owner.ask(json!({"type": "mcp_scope", "server_name": "echo", "scope": scope})).await
    };
    let answer = set(&mut owner, json!({"peers": ["Bo"]})).await;
    assert_eq!(answer["scope"], json!({"type": "peers", "allow": ["Bo"]}));
    assert_eq!(answer["deployed_by"], "Olga");
    assert_eq!(bo.event("mcp_deployed").await["eventData"]["name"], "echo");
    set(&mut owner, json!({"peers": ["Cy", "Bo"]})).await;
    assert_eq!(bo.event("mcp_scope_changed").await["eventData"]["by"], "Olga");
    assert_eq!(cy.event("mcp_deployed").await["eventData"]["name"], "echo");
    set(&mut owner, json!({"peers": ["Cy"]})).await;
    assert_eq!(bo.event("mcp_undeployed").await["eventData"]["name"], "echo");
    assert!(bo.call("echo", "echo", json!({})).await["error"].is_string());
    assert!(cy.call("echo", "echo", json!({})).await["result"].is_object());
    let is_of_a_service =
        |frame: &Value| frame["event"].as_str().is_some_and(|event| event.starts_with("mcp_"));
    assert!(!bo.heard().await.iter().any(is_of_a_service), "each change is heard once");
    let denied = cy.ask(json!({"type": "mcp_scope", "server_name": "echo", "scope": "mesh"})).await;
    assert_eq!(denied["code"], "forbidden");
}

#[tokio::test]
async fn rights_names_and_counts_are_checked_before_anything_is_written() {
    let limits = broker::Limits { max_services_per_mesh: 1, ..broker::Limits::default() };
    let world = World::with(limits).await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut guest = world.member(3, "Gus", "guest").await;
    assert_eq!(guest.deploy("x", "ok", Value::Null).await["code"], "forbidden");
    assert_eq!(bo.deploy("x", "ok", json!("mesh")).await["code"], "forbidden");
    assert_eq!(bo.deploy("../x", "ok", Value::Null).await["code"], "invalid_name");
    assert_eq!(owner.deploy("echo", "ok", Value::Null).await["status"], "running");
    assert_eq!(bo.deploy("echo", "ok", Value::Null).await["code"], "forbidden", "the name is taken");
    assert_eq!(owner.deploy("more", "ok", Value::Null).await["code"], "limit");
    assert_eq!(owner.deploy("echo", "ok", Value::Null).await["status"], "running", "only new names count");
    let mut unknown = deploy_frame("echo", "ok", Value::Null);
    unknown["config"]["memory"] = json!(1);
    assert_eq!(owner.ask(unknown).await["code"], "invalid_args");
}

#[tokio::test]
async fn a_crash_and_new_lists_are_events_for_those_who_see_the_service() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    owner.deploy("echo", "ok", json!("mesh")).await;
    world.runner.change("echo", |report| {
        let serving = report.serving.as_mut().expect("serving");
        serving.phase = Phase::Backoff;
        serving.restarts = 1;
        let (code, message) = (ErrorCode::InstanceLost, "it ended with code 1".to_owned());
        serving.reason = Some(Reason { code, message, stderr: vec!["key=hunter2".into()] });
    });
    let crashed = bo.event("mcp_crashed").await;
    assert_eq!(crashed["eventData"]["error"], "it ended with code 1");
    assert!(!crashed.to_string().contains("hunter2"));
    let status = bo.ask(json!({"type": "mcp_status", "server_name": "echo"})).await["service"].clone();
    assert_eq!((&status["status"], &status["restarts"]), (&json!("restarting"), &json!(1)));
    assert!(!status.to_string().contains("hunter2"), "only who manages it reads its output");
    world.runner.change("echo", |report| report.serving.as_mut().expect("serving").phase = Phase::Ready);
    world.runner.list("echo", &["slow"]);
    assert_eq!(bo.event("mcp_updated").await["eventData"]["tools"][0]["name"], "slow");
    let schema = bo.ask(json!({"type": "mcp_schema", "server_name": "echo"})).await;
    assert_eq!(schema["names"], json!(["svc__echo__slow"]));
}

#[tokio::test]
async fn the_lock_of_a_pin_is_kept_for_the_runner_and_told_to_nobody() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    let done = owner.deploy("echo", "ok", json!("mesh")).await;
    assert_eq!((&done["pin"]["version"], done["pin"].get("lock")), (&json!("1.0.1"), None));
    let status = owner.ask(json!({"type": "mcp_status", "server_name": "echo"})).await["service"].clone();
    assert_eq!((&status["pin"]["version"], status["pin"].get("lock")), (&json!("1.0.1"), None));
    world.stop_broker().await;
    let url = format!("sqlite:{}", world.dir.path().join("broker.db").display());
    let store = broker::store::Store::open(broker::store::StoreConfig { url, max_connections: 2 }).await;
    let store = store.expect("opens");
    let mut tx = store.read().await.expect("begins");
    let name = wire::ServiceName::parse("echo").expect("name");
    let key = wire::ServiceKey { mesh: world.mesh.mesh.clone(), name };
    let kept = tx.generations().find(&key, wire::Generation(1)).await.expect("reads").expect("is there");
    assert_eq!(kept.pin.expect("pinned").lock, "a long lock");
    let last = tx.observed().get(&key).await.expect("reads").expect("is there");
    assert_eq!(last.report.serving.and_then(|g| g.pin).expect("pinned").lock, "");
}
