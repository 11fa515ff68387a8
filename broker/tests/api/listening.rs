//! What servers ask of their callers, and what services say outside of calls.

use crate::world::World;
use crate::world::peer::Peer;
use serde_json::{Value, json};

const TOOLS: &str = "notifications/tools/list_changed";
const UPDATED: &str = "notifications/resources/updated";

async fn hosted() -> (World, Peer) {
    let world = World::start().await;
    let mut owner = world.owner().await;
    assert_eq!(owner.deploy("echo", "ok", json!("mesh")).await["status"], "running");
    (world, owner)
}

fn asking() -> Value {
    let params = json!({"name": "asks"});
    json!({"type": "mcp_request", "serverName": "echo", "method": "tools/call", "params": params, "asks": true})
}

fn answer(id: &str, ask: u64, result: Value) -> Value {
    json!({"type": "mcp_ask_answer", "requestId": id, "ask": ask, "result": result})
}

/// Begins to listen, and waits until the runner lets it.
async fn listening(world: &World, peer: &mut Peer, more: Value) -> String {
    let before = world.runner.seen().listened.len();
    let mut frame = json!({"type": "mcp_listen", "serverName": "echo"});
    frame.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let id = peer.begin(frame).await;
    assert_eq!(peer.answer(&id).await["type"], "mcp_listening");
    world.runner.until(|seen| seen.listened.len() > before).await;
    id
}

/// The next event's method and URI.
async fn event(peer: &mut Peer, id: &str) -> (String, Value) {
    let frame = peer.answer(id).await;
    assert_eq!(frame["type"], "mcp_request_event", "{frame}");
    let method = frame["event"]["method"].as_str().expect("a method").to_owned();
    (method, frame["event"]["params"]["uri"].clone())
}

#[tokio::test]
async fn what_a_server_asks_reaches_its_caller_and_the_answer_goes_back() {
    let (_world, mut owner) = hosted().await;
    let id = owner.begin(asking()).await;
    let ask = owner.answer(&id).await;
    assert_eq!((&ask["type"], &ask["ask"]), (&json!("mcp_ask"), &json!(7)));
    assert_eq!(ask["request"], json!({"method": "elicitation/create", "params": {"message": "really?"}}));
    owner.send(answer(&id, 7, json!({"action": "accept"}))).await;
    let result = owner.answer(&id).await;
    assert_eq!(result["result"]["answered"], json!({"ask": 7, "result": {"action": "accept"}}));
}

#[tokio::test]
async fn only_the_connection_that_was_asked_may_answer_and_only_with_one_answer() {
    let (world, mut owner) = hosted().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let id = owner.begin(asking()).await;
    assert_eq!(owner.answer(&id).await["type"], "mcp_ask");
    bo.send(answer(&id, 7, json!({"from": "Bo"}))).await;
    assert!(bo.heard().await.iter().all(|frame| frame["type"] != "error"), "dropped without a word");
    let both = json!({"type": "mcp_ask_answer", "requestId": id, "ask": 7, "result": {}, "error": {}});
    assert_eq!(owner.ask(both).await["code"], "invalid_args");
    owner.send(answer("of nothing", 7, json!({}))).await;
    owner.send(answer(&id, 7, json!({"from": "the owner"}))).await;
    assert_eq!(owner.answer(&id).await["result"]["answered"]["result"], json!({"from": "the owner"}));
}

#[tokio::test]
async fn a_runner_can_tell_the_sessions_of_calls_apart() {
    let (world, mut owner) = hosted().await;
    let mut bo = world.member(2, "Bo", "member").await;
    for peer in [&mut owner, &mut bo] {
        for _ in 0..2 {
            peer.call("echo", "echo", json!({})).await;
        }
    }
    let seen = world.runner.seen();
    assert_eq!((seen.calls.len(), seen.sessions.len()), (4, 2));
    assert!(seen.sessions.contains(owner.ack["presenceId"].as_str().expect("an id")));
}

#[tokio::test]
async fn a_listener_hears_its_service_until_it_cancels() {
    let (world, mut owner) = hosted().await;
    owner.deploy("other", "ok", json!("mesh")).await;
    let id = listening(&world, &mut owner, json!({"resources": ["a:b"], "logLevel": "info"})).await;
    let (name, wanted) = world.runner.seen().listened.remove(0);
    assert_eq!(
        (name.as_str(), wanted.resources, wanted.log_level),
        ("echo", vec!["a:b".to_owned()], Some("info".to_owned()))
    );
    world.runner.say("other", json!({"method": UPDATED, "params": {"uri": "not:mine"}}));
    world.runner.say("echo", json!({"method": UPDATED, "params": {"uri": "a:b"}}));
    assert_eq!(event(&mut owner, &id).await, (UPDATED.to_owned(), json!("a:b")));
    owner.send(json!({"type": "mcp_cancel", "requestId": id})).await;
    assert_eq!(owner.answer(&id).await["code"], "call_cancelled");
    world.runner.until(|seen| seen.unheard == 1).await;
}

#[tokio::test]
async fn changed_lists_are_told_when_the_catalog_has_them_and_not_before() {
    let (world, mut owner) = hosted().await;
    let id = listening(&world, &mut owner, json!({})).await;
    // The runner's own word of it may come before its lists have.
    world.runner.say("echo", json!({"method": TOOLS}));
    world.runner.list("echo", &["late"]);
    assert_eq!(event(&mut owner, &id).await.0, TOOLS);
    let schema = owner.ask(json!({"type": "mcp_schema", "server_name": "echo"})).await;
    assert_eq!(schema["names"], json!(["svc__echo__late"]));
    world.runner.relist("echo", |lists| {
        lists.tools =
            vec![crate::world::runner::raw(json!({"name": "late", "inputSchema": {"type": "object"}}))];
        lists.prompts = vec![crate::world::runner::raw(json!({"name": "p"}))];
    });
    assert_eq!(event(&mut owner, &id).await.0, "notifications/prompts/list_changed", "and the tools did not");
}

#[tokio::test]
async fn listening_ends_when_the_service_is_gone_or_not_the_listeners_any_more() {
    let (world, mut owner) = hosted().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let (mine, bos) =
        (listening(&world, &mut owner, json!({})).await, listening(&world, &mut bo, json!({})).await);
    owner.ask(json!({"type": "mcp_scope", "server_name": "echo", "scope": "peer"})).await;
    let end = bo.answer(&bos).await;
    assert_eq!((&end["type"], &end["code"]), (&json!("mcp_request_result"), &json!("not_found")));
    owner.begin(json!({"type": "mcp_undeploy", "server_name": "echo"})).await;
    assert_eq!(owner.answer(&mine).await["code"], "not_found");
    let refused = bo.ask(json!({"type": "mcp_listen", "serverName": "echo"})).await;
    assert_eq!(refused["code"], "not_found");
    // More than the runner takes: said at once, and not asked for again and again.
    let uris: Vec<String> = (0..300).map(|n| format!("{n}:{}", "x".repeat(1000))).collect();
    let frame = json!({"type": "mcp_listen", "serverName": "echo", "resources": uris});
    assert_eq!(owner.ask(frame).await["code"], "invalid_args");
}

#[tokio::test]
async fn a_listener_stays_through_a_runner_that_dies_and_a_service_that_is_stopped() {
    let (mut world, mut owner) = hosted().await;
    let id = listening(&world, &mut owner, json!({"resources": ["a:b", "c:d"]})).await;
    world.runner.kill().await;
    world.runner.restart();
    world.runner.until(|seen| seen.listened.len() == 2).await;
    for uri in ["a:b", "c:d"] {
        assert_eq!(event(&mut owner, &id).await, (UPDATED.to_owned(), json!(uri)), "it may have been missed");
    }
    let stop = owner.begin(json!({"type": "mcp_stop", "server_name": "echo"})).await;
    assert_eq!(owner.answer(&stop).await["status"], "stopped");
    let start = owner.begin(json!({"type": "mcp_start", "server_name": "echo"})).await;
    assert_eq!(owner.settled(&start).await["status"], "running");
    world.runner.until(|seen| seen.listened.len() == 3).await;
    for uri in ["a:b", "c:d"] {
        assert_eq!(event(&mut owner, &id).await, (UPDATED.to_owned(), json!(uri)));
    }
}

#[tokio::test]
async fn who_listens_while_no_runner_is_there_hears_of_it_when_it_comes() {
    let (mut world, mut owner) = hosted().await;
    world.runner.kill().await;
    let id = owner.begin(json!({"type": "mcp_listen", "serverName": "echo", "resources": ["a:b"]})).await;
    assert_eq!(owner.answer(&id).await["type"], "mcp_listening");
    world.runner.restart();
    assert_eq!(event(&mut owner, &id).await, (UPDATED.to_owned(), json!("a:b")));
}

#[tokio::test]
async fn a_wish_that_makes_no_sense_is_refused() {
    let (_world, mut owner) = hosted().await;
    let loud = json!({"type": "mcp_listen", "serverName": "echo", "logLevel": "loud"});
    assert_eq!(owner.ask(loud).await["code"], "invalid_args");
    let many: Vec<String> = (0..1001).map(|n| format!("a:{n}")).collect();
    let many = json!({"type": "mcp_listen", "serverName": "echo", "resources": many});
    assert_eq!(owner.ask(many).await["code"], "invalid_args");
}
