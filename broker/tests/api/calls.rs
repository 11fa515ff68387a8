//! Calls, their cancellation, and logs.

use crate::world::World;
use crate::world::peer::Peer;
use serde_json::{Value, json};

async fn hosted() -> (World, Peer) {
    let world = World::start().await;
    let mut owner = world.owner().await;
    assert_eq!(owner.deploy("echo", "ok", json!("mesh")).await["status"], "running");
    (world, owner)
}

#[tokio::test]
async fn arguments_and_results_pass_byte_for_byte() {
    let (world, mut owner) = hosted().await;
    owner
        .send_text(
            r#"{"type":"mcp_call","_reqId":"x","serverName":"echo","toolName":"echo","args":{ "a":1.0,"b" : 1e2}}"#
                .into(),
        )
        .await;
    let answer = owner.answer("x").await;
    assert_eq!(answer["type"], "mcp_call_result");
    assert_eq!(answer["result"]["content"], json!([]));
    let sent = &world.runner.seen().calls[0];
    assert_eq!(sent, r#"tools/call {"name":"echo","arguments":{ "a":1.0,"b" : 1e2}}"#);
}

#[tokio::test]
async fn progress_comes_before_the_result_of_a_request_that_has_a_token() {
    let (_world, mut owner) = hosted().await;
    let params = json!({"name": "echo", "_meta": {"progressToken": 1}});
    let request =
        json!({"type": "mcp_request", "serverName": "echo", "method": "tools/call", "params": params});
    let id = owner.begin(request).await;
    let event = owner.answer(&id).await;
    assert_eq!(event["type"], "mcp_request_event");
    assert_eq!(event["event"]["method"], "notifications/progress");
    let result = owner.answer(&id).await;
    assert_eq!(result["type"], "mcp_request_result");
    assert!(result["result"].is_object());
    let refused = owner
        .ask(json!({"type": "mcp_request", "serverName": "echo", "method": "sampling/createMessage"}))
        .await;
    assert_eq!(refused["code"], "invalid_args");
}

#[tokio::test]
async fn the_error_of_a_server_is_passed_on_whole() {
    let (_world, mut owner) = hosted().await;
    let answer = owner.call("echo", "broken", json!({})).await;
    assert_eq!((&answer["code"], &answer["error"]), (&json!("mcp_error"), &json!("bad args")));
    assert_eq!(answer["rpc"], json!({"code": -32602, "message": "bad args"}));
}

#[tokio::test]
async fn a_cancelled_call_is_answered_and_ends_at_the_runner() {
    let (world, mut owner) = hosted().await;
    let id = owner.begin(json!({"type": "mcp_call", "serverName": "echo", "toolName": "slow"})).await;
    world.runner.until(|seen| seen.calls.len() == 1).await;
    owner.send(json!({"type": "mcp_cancel", "requestId": id})).await;
    assert_eq!(owner.answer(&id).await["code"], "call_cancelled");
    world.runner.until(|seen| seen.cancelled == 1).await;
    let other = owner.begin(json!({"type": "mcp_call", "serverName": "echo", "toolName": "slow"})).await;
    world.runner.until(|seen| seen.calls.len() == 2).await;
    drop(other);
    owner.hang_up().await;
    world.runner.until(|seen| seen.cancelled == 2).await;
}

#[tokio::test]
async fn a_call_whose_runner_dies_is_answered_at_once() {
    let (mut world, mut owner) = hosted().await;
    let id = owner.begin(json!({"type": "mcp_call", "serverName": "echo", "toolName": "slow"})).await;
    world.runner.until(|seen| seen.calls.len() == 1).await;
    world.runner.kill().await;
    assert_eq!(owner.answer(&id).await["code"], "runner_lost");
    let short = json!({"type": "mcp_call", "serverName": "echo", "toolName": "echo", "deadlineMs": 200});
    assert_eq!(owner.ask(short).await["code"], "runner_unavailable");
}

#[tokio::test]
async fn a_deadline_that_the_runner_does_not_keep_is_kept_by_the_broker() {
    let (_world, mut owner) = hosted().await;
    let call = json!({"type": "mcp_call", "serverName": "echo", "toolName": "slow", "deadlineMs": 1});
    assert_eq!(owner.ask(call).await["code"], "call_timeout");
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_the_frames_after_it_and_too_many_are_busy() {
    let (world, mut owner) = hosted().await;
    let slow = json!({"type": "mcp_call", "serverName": "echo", "toolName": "slow"});
    for _ in 0..256 {
        owner.begin(slow.clone()).await;
    }
    world.runner.until(|seen| seen.calls.len() >= 100).await;
    assert_eq!(owner.ask(slow).await["code"], "busy");
    assert_eq!(owner.ask(json!({"type": "list_peers"})).await["type"], "peers_list");
}

#[tokio::test]
async fn logs_are_answered_and_followed_without_doubles_until_cancelled() {
    let (_world, mut owner) = hosted().await;
    let id =
        owner.begin(json!({"type": "mcp_logs", "server_name": "echo", "lines": 2, "follow": true})).await;
    let first = owner.answer(&id).await;
    assert_eq!(first["lines"], json!(["[stderr] one", "[stderr] two"]));
    let next = owner.answer(&id).await;
    assert_eq!(next["type"], "mcp_logs_event");
    assert_eq!(next["entries"][0]["seq"], 3);
    owner.send(json!({"type": "mcp_cancel", "requestId": id})).await;
    assert!(owner.heard().await.iter().all(|frame| frame["type"] != "mcp_logs_event"));
}

#[tokio::test]
async fn a_member_who_may_call_may_still_not_read_the_logs() {
    let (world, _owner) = hosted().await;
    let mut bo = world.member(2, "Bo", "member").await;
    assert!(bo.call("echo", "echo", json!({})).await["result"].is_object());
    let answer: Value = bo.ask(json!({"type": "mcp_logs", "server_name": "echo"})).await;
    assert_eq!(answer["code"], "forbidden");
}

#[tokio::test]
async fn the_last_words_of_a_process_are_for_those_who_may_read_its_log() {
    let (world, mut owner) = hosted().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let by_request = json!({
        "type": "mcp_request", "serverName": "echo", "method": "tools/call", "params": {"name": "dies"},
    });
    for peer in [&mut owner, &mut bo] {
        let is_owner = peer.ack["memberRole"] == "owner";
        for answer in [peer.call("echo", "dies", json!({})).await, peer.ask(by_request.clone()).await] {
            assert_eq!((&answer["code"], &answer["error"]), (&json!("instance_lost"), &json!("it ended")));
            assert_eq!(answer.to_string().contains("hunter2"), is_owner, "{answer}");
        }
    }
    owner.deploy("bad", "fail", json!("mesh")).await;
    assert_eq!(owner.call("bad", "x", json!({})).await["stderr"], json!(["no KEY"]));
    let failed = bo.call("bad", "x", json!({})).await;
    assert_eq!(failed["code"], "service_failed");
    assert!(!failed.to_string().contains("no KEY"), "{failed}");
}
