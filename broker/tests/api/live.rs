//! Live servers: whose a name is, calls and who may answer them, and what stays when a host goes.

use std::time::Duration;

use broker::Limits;
use serde_json::{Value, json};

use crate::world::World;
use crate::world::peer::Peer;

fn register(name: &str, persistent: bool) -> Value {
    let tools =
        json!([{"name": "t", "description": "d", "inputSchema": {"type": "object"}, "_meta": {"x": 1}}]);
    json!({"type": "mcp_register", "serverName": name, "description": "mine", "tools": tools, "persistent": persistent})
}

async fn lend(host: &mut Peer, name: &str, persistent: bool) -> Value {
    let ack = host.ask(register(name, persistent)).await;
    assert_eq!(ack["type"], "mcp_register_ack", "{ack}");
    ack
}

async fn servers(peer: &mut Peer) -> Value {
    peer.ask(json!({"type": "mcp_list"})).await["servers"].clone()
}

async fn forwarded(host: &mut Peer) -> Value {
    host.wait_for(|frame| frame["type"] == "mcp_call_forward").await
}

fn call(name: &str) -> Value {
    json!({"type": "mcp_call", "serverName": name, "toolName": "t", "args": {"a": 1}})
}

#[tokio::test]
async fn a_lent_server_is_listed_called_and_gone_with_its_host() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut host = world.member(2, "Bo", "member").await;
    let mut guest = world.member(3, "Gil", "guest").await;
    let ack = lend(&mut host, "mine", false).await;
    assert_eq!((&ack["serverName"], &ack["toolCount"]), (&json!("mine"), &json!(1)));
    let news = owner.event("mcp_registered").await["eventData"].clone();
    let wanted = json!({"serverName": "mine", "description": "mine", "tools": ["t"], "hostedBy": "Bo"});
    assert_eq!(news, wanted);
    let listed = &servers(&mut guest).await[0];
    assert_eq!(
        (&listed["hostedBy"], &listed["online"], &listed["own"]),
        (&json!("Bo"), &json!(true), &Value::Null)
    );
    assert_eq!(listed["tools"][0]["_meta"]["x"], 1, "whole definitions");
    assert_eq!(servers(&mut host).await[0]["own"], true);

    // By both spellings, from a guest too.
    let id = guest.begin(call("mine")).await;
    let forward = forwarded(&mut host).await;
    assert_eq!((&forward["toolName"], &forward["args"]), (&json!("t"), &json!({"a": 1})));
    assert_eq!((&forward["callerName"], &forward["_reqId"]), (&json!("Gil"), &Value::Null));
    host.send(json!({"type": "mcp_call_response", "callId": forward["callId"], "result": {"content": [], "n": 1.5}}))
        .await;
    let answer = guest.answer(&id).await;
    assert_eq!((&answer["type"], &answer["result"]["n"]), (&json!("mcp_call_result"), &json!(1.5)));
    let params = json!({"name": "t", "arguments": {"b": 2}});
    let request =
        json!({"type": "mcp_request", "serverName": "mine", "method": "tools/call", "params": params});
    let id = owner.begin(request).await;
    let forward = forwarded(&mut host).await;
    assert_eq!(forward["args"], json!({"b": 2}));
    host.send(json!({"type": "mcp_call_response", "callId": forward["callId"], "error": "it rains"})).await;
    let answer = owner.answer(&id).await;
    assert_eq!((&answer["type"], &answer["error"]), (&json!("mcp_request_result"), &json!("it rains")));
    assert_eq!(answer["code"], "mcp_error");
    let other = owner
        .ask(json!({"type": "mcp_request", "serverName": "mine", "method": "prompts/get", "params": {}}))
        .await;
    assert_eq!(other["code"], "invalid_args");

    // Gone with the host, and whoever waits for an answer is told.
    let id = owner.begin(call("mine")).await;
    forwarded(&mut host).await;
    host.hang_up().await;
    let answer = owner.answer(&id).await;
    assert_eq!(answer["error"], "MCP server \"mine\" host disconnected");
    assert_eq!(answer["code"], "host_offline");
    assert_eq!(
        guest.event("mcp_unregistered").await["eventData"],
        json!({"serverName": "mine", "hostedBy": "Bo"})
    );
    assert_eq!(servers(&mut owner).await, json!([]));
    let unknown = owner.ask(call("mine")).await;
    assert_eq!(
        (&unknown["error"], &unknown["code"]),
        (&json!("MCP server \"mine\" not found in mesh"), &json!("not_found"))
    );
}

#[tokio::test]
async fn a_persistent_server_stays_as_offline_over_a_restart_until_its_member_is_back() {
    let mut world = World::start().await;
    let member = world.join(2, "Bo", "member").await;
    let mut owner = world.owner().await;
    let mut host = Peer::hello(&world, 2, &member).await;
    lend(&mut host, "mine", true).await;
    owner.event("mcp_registered").await;
    host.hang_up().await;
    owner.event("peer_left").await;
    let offline = async |owner: &mut Peer| {
        let listed = servers(owner).await[0].clone();
        assert_eq!((&listed["online"], &listed["persistent"]), (&json!(false), &json!(true)));
        assert!(listed["offlineSince"].as_str().is_some_and(|since| since.ends_with('Z')), "{listed}");
        let answer = owner.ask(call("mine")).await;
        assert_eq!(answer["code"], "host_offline");
        let error = answer["error"].as_str().expect("a text");
        assert!(error.starts_with("Server 'mine' is offline — hosted by Bo who disconnected "), "{error}");
        assert!(error.ends_with(" ago. It will restore when they reconnect."), "{error}");
        listed["offlineSince"].clone()
    };
    let since = offline(&mut owner).await;
    world.stop_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    assert_eq!(offline(&mut owner).await, since, "the time survives, too");

    let mut host = Peer::hello(&world, 2, &member).await;
    lend(&mut host, "mine", true).await;
    assert_eq!(owner.event("mcp_restored").await["eventData"]["serverName"], "mine");
    assert_eq!(servers(&mut owner).await[0]["online"], true);
    // Taken back, and nothing of it is left.
    assert_eq!(host.ask(json!({"type": "mcp_unregister", "serverName": "mine"})).await["serverName"], "mine");
    owner.event("mcp_unregistered").await;
    world.stop_broker().await;
    world.start_broker().await;
    assert_eq!(servers(&mut world.owner().await).await, json!([]));
}

#[tokio::test]
async fn a_host_that_was_there_when_the_broker_died_is_offline_after_it() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    lend(&mut owner, "mine", true).await;
    world.damage("UPDATE live_server SET offline_since = NULL").await;
    world.kill_broker().await;
    world.start_broker().await;
    let listed = servers(&mut world.owner().await).await[0].clone();
    assert_eq!(listed["online"], false);
    assert!(listed["offlineSince"].is_string());
}

#[tokio::test]
async fn a_name_is_of_one_member_and_of_one_kind() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut ann = world.member(3, "Ann", "member").await;
    let mut gil = world.member(4 + 1, "Gil", "guest").await;
    lend(&mut bo, "mine", false).await;
    for thief in [&mut ann, &mut owner] {
        let refused = thief.ask(register("mine", true)).await;
        assert_eq!(refused["code"], "conflict", "{refused}");
        assert!(refused["message"].as_str().is_some_and(|text| text.contains("Bo")), "{refused}");
    }
    for deployer in [&mut bo, &mut owner] {
        let refused = deployer.deploy("mine", "ok", json!("peer")).await;
        assert_eq!(refused["code"], "conflict", "{refused}");
    }
    assert_eq!(owner.deploy("hosted", "ok", json!("mesh")).await["status"], "running");
    assert_eq!(bo.ask(register("hosted", false)).await["code"], "conflict");
    assert_eq!(owner.ask(register("hosted", false)).await["code"], "conflict", "not even its deployer");
    assert_eq!(gil.ask(register("new", false)).await["code"], "forbidden");
    assert_eq!(bo.ask(register("a__b", false)).await["code"], "invalid_name");

    let unregister = json!({"type": "mcp_unregister", "serverName": "mine"});
    assert_eq!(ann.ask(unregister.clone()).await["code"], "forbidden");
    assert_eq!(owner.ask(unregister.clone()).await["type"], "mcp_unregister_ack", "an admin may");
    assert_eq!(bo.event("mcp_unregistered").await["eventData"]["serverName"], "mine");
    assert_eq!(bo.ask(unregister).await["code"], "not_found");
    lend(&mut ann, "mine", false).await;
}

#[tokio::test]
async fn the_last_connection_of_the_member_that_registers_serves() {
    let world = World::start().await;
    let member = world.join(2, "Bo", "member").await;
    let mut owner = world.owner().await;
    let mut first = Peer::hello(&world, 2, &member).await;
    let mut second = Peer::hello(&world, 2, &member).await;
    lend(&mut first, "mine", false).await;
    owner.event("mcp_registered").await;
    lend(&mut second, "mine", false).await;
    let id = owner.begin(call("mine")).await;
    let forward = forwarded(&mut second).await;
    second.send(json!({"type": "mcp_call_response", "callId": forward["callId"], "result": {}})).await;
    assert_eq!(owner.answer(&id).await["result"], json!({}));
    first.hang_up().await;
    // Nobody was told of anything: what is lent is the same, and still is when the first host has gone.
    let id = owner.begin(call("mine")).await;
    let forward = forwarded(&mut second).await;
    second.send(json!({"type": "mcp_call_response", "callId": forward["callId"], "result": {}})).await;
    assert_eq!(owner.answer(&id).await["result"], json!({}));
    owner.event("peer_left").await;
    assert_eq!(servers(&mut owner).await[0]["online"], true);
    let heard = owner.heard().await;
    assert!(
        !heard.iter().any(|frame| frame["event"].as_str().is_some_and(|e| e.starts_with("mcp_"))),
        "{heard:?}"
    );
}

#[tokio::test]
async fn only_the_host_that_was_asked_may_answer() {
    let world = World::start().await;
    let member = world.join(2, "Bo", "member").await;
    let mut owner = world.owner().await;
    let mut host = Peer::hello(&world, 2, &member).await;
    let mut sibling = Peer::hello(&world, 2, &member).await;
    lend(&mut host, "mine", false).await;
    let id = owner.begin(call("mine")).await;
    let forward = forwarded(&mut host).await;
    let answer =
        |who: &str| json!({"type": "mcp_call_response", "callId": forward["callId"], "result": {"who": who}});
    for (forger, who) in [(&mut sibling, "sibling"), (&mut owner, "caller")] {
        forger.send(answer(who)).await;
        // Frames of a connection are taken in order: this one was read.
        forger.ask(json!({"type": "list_peers"})).await;
    }
    host.send(answer("host")).await;
    assert_eq!(owner.answer(&id).await["result"]["who"], "host");
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled_at_its_host() {
    let limits = Limits { live_call: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(limits).await;
    let member = world.join(2, "Bo", "member").await;
    let mut owner = world.owner().await;
    let mut host = Peer::hello(&world, 2, &member).await;
    lend(&mut host, "mine", false).await;
    let cancelled = async |host: &mut Peer, call_id: &Value| {
        host.wait_for(|frame| frame["type"] == "mcp_call_forward_cancel" && frame["callId"] == *call_id).await
    };
    // The limit.
    let answer = owner.ask(call("mine")).await;
    assert_eq!(
        (&answer["error"], &answer["code"]),
        (&json!("MCP call timed out (0.3s)"), &json!("call_timeout"))
    );
    let forward = forwarded(&mut host).await;
    cancelled(&mut host, &forward["callId"]).await;
    // Too late an answer harms nobody.
    host.send(json!({"type": "mcp_call_response", "callId": forward["callId"], "result": {}})).await;
    // The caller's word.
    let id = owner.begin(call("mine")).await;
    let forward = forwarded(&mut host).await;
    owner.send(json!({"type": "mcp_cancel", "requestId": id})).await;
    cancelled(&mut host, &forward["callId"]).await;
    // The caller's leaving.
    owner.begin(call("mine")).await;
    let forward = forwarded(&mut host).await;
    owner.hang_up().await;
    cancelled(&mut host, &forward["callId"]).await;
}

#[tokio::test]
async fn a_host_has_a_bounded_number_of_calls_before_it() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut host = world.member(2, "Bo", "member").await;
    lend(&mut host, "mine", false).await;
    let mut ids = Vec::new();
    for _ in 0..64 {
        ids.push(owner.begin(call("mine")).await);
    }
    let mut forwards = Vec::new();
    for _ in 0..64 {
        forwards.push(forwarded(&mut host).await["callId"].clone());
    }
    assert_eq!(owner.ask(call("mine")).await["code"], "busy");
    host.send(json!({"type": "mcp_call_response", "callId": forwards[0], "result": {}})).await;
    owner.wait_for(|frame| frame["result"] == json!({})).await;
    owner.begin(call("mine")).await;
    forwarded(&mut host).await;
}

#[tokio::test]
async fn bounds_hold_and_a_removed_member_lends_nothing() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut host = world.member(2, "Bo", "member").await;
    for n in 0..50 {
        lend(&mut host, &format!("s{n}"), n == 0).await;
    }
    assert_eq!(host.ask(register("s50", false)).await["code"], "limit");
    lend(&mut host, "s49", false).await;
    let mut large = register("s49", false);
    large["tools"][0]["description"] = json!("x".repeat(1 << 20));
    assert_eq!(
        host.ask(large.clone()).await["code"],
        "too_large",
        "answered: the frame itself may be that large"
    );
    large["tools"][0]["description"] = json!("x".repeat((1 << 20) - 200));
    assert_eq!(host.ask(large).await["toolCount"], 1);
    owner.ask(json!({"type": "member_update", "member": "Bo", "revoke": true})).await;
    assert_eq!(host.end().await.code, Some(4002));
    assert_eq!(servers(&mut owner).await, json!([]));
    lend(&mut owner, "s0", true).await;
}
