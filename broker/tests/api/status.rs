//! What sessions are doing: said by themselves, and by hooks of their member.

use std::time::Duration;

use broker::Limits;
use ed25519_dalek::Signer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::world::peer::{Peer, hello, now_ms};
use crate::world::{OWNER, PATIENCE, World, key};

async fn hook(world: &World, (seed, member): (u8, &str), body: Value) -> (u16, Value) {
    let body = body.to_string();
    let sha = hex::encode(Sha256::digest(&body));
    let (member, at) = (wire::MemberId::parse(member).expect("id"), now_ms());
    let text =
        wire::canonical::http_request(&world.mesh.mesh, &member, at, ("POST", "/hook/set-status"), &sha);
    let signature = hex::encode(key(seed).sign(text.as_bytes()).to_bytes());
    let auth = format!("Claudemesh {}.{member}.{at}.{sha}.{signature}", world.mesh.mesh);
    post(world, Some(auth), body).await
}

async fn post(world: &World, auth: Option<String>, body: String) -> (u16, Value) {
    let mut request = world.http().post(world.url("/hook/set-status")).body(body);
    if let Some(auth) = auth {
        request = request.header("authorization", auth);
    }
    let answer = request.send().await.expect("answer");
    (answer.status().as_u16(), answer.json().await.expect("json"))
}

/// A session of the owner's.
async fn session(world: &World, id: &str, cwd: &str, pid: i64) -> Peer {
    let mut frame = hello(world, OWNER, world.mesh.member.as_str());
    frame["sessionId"] = json!(id);
    frame["cwd"] = json!(cwd);
    frame["pid"] = json!(pid);
    let mut peer = Peer::raw(world).await;
    peer.send(frame).await;
    assert_eq!(peer.frame().await["type"], "hello_ack");
    peer
}

/// `session: status` of all, in the order of coming.
async fn statuses(peer: &mut Peer) -> Vec<String> {
    let found = peer.ask(json!({"type": "list_peers"})).await;
    let peers = found["peers"].as_array().expect("peers").iter();
    let one = |peer: &Value| {
        format!("{}: {}", peer["sessionId"].as_str().expect("id"), peer["status"].as_str().expect("status"))
    };
    peers.map(one).collect()
}

#[tokio::test]
async fn a_session_says_what_it_does() {
    let world = World::start().await;
    let mut one = session(&world, "one", "/a", 1).await;
    let mut two = session(&world, "two", "/a", 2).await;
    assert_eq!(one.ask(json!({"type": "set_status", "status": "working"})).await["type"], "status_set");
    assert_eq!(statuses(&mut two).await, ["one: working", "two: idle"]);
    assert_eq!(one.ask(json!({"type": "set_status", "status": "asleep"})).await["code"], "invalid_args");
    // Without an id nobody waits for an answer, and there is none.
    one.send(json!({"type": "set_status", "status": "needs_input"})).await;
    assert_eq!(statuses(&mut one).await, ["one: needs_input", "two: idle"]);
    let heard = [one.heard().await, two.heard().await].concat();
    assert!(heard.is_empty(), "a status is not announced: {heard:?}");
}

#[tokio::test]
async fn a_session_says_what_it_is_for_and_that_is_shown_to_peers_as_a_label() {
    let world = World::start().await;
    let mut frame = hello(&world, OWNER, world.mesh.member.as_str());
    frame["role"] = json!("review\u{1b}[2J");
    let mut peer = Peer::raw(&world).await;
    peer.send(frame).await;
    assert_eq!(peer.frame().await["memberRole"], "owner");
    let _without = session(&world, "without", "/a", 1).await;
    let found = peer.ask(json!({"type": "list_peers"})).await;
    let role = found["peers"][0]["role"].as_str().expect("a role").to_owned();
    assert!(role.starts_with("review") && !role.contains('\u{1b}'), "{role:?}");
    assert!(found["peers"][1].get("role").is_none(), "{found}");
}

#[tokio::test]
async fn a_hook_finds_the_session_by_id_then_process_then_folder_and_only_its_members() {
    let world = World::start().await;
    let member = world.mesh.member.as_str();
    let bo = world.join(2, "Bo", "member").await;
    let mut one = session(&world, "one", "/a", 1).await;
    let _two = session(&world, "two", "/a", 2).await;
    let _three = session(&world, "three", "/a", 3).await;
    let own = (OWNER, member);
    let working = |more: Value| {
        let mut body = json!({"cwd": "/a", "status": "working"});
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        body
    };
    let (status, said) = hook(&world, own, working(json!({"session_id": "one", "pid": 2}))).await;
    assert_eq!((status, &said["ok"]), (200, &json!(true)));
    assert!(said["presence_id"].is_string(), "{said}");
    assert_eq!(statuses(&mut one).await, ["one: working", "two: idle", "three: idle"]);
    hook(&world, own, working(json!({"session_id": "of claude", "pid": 2}))).await;
    assert_eq!(statuses(&mut one).await, ["one: working", "two: working", "three: idle"]);
    hook(&world, own, working(json!({"pid": 77, "status": "needs_input"}))).await;
    assert_eq!(statuses(&mut one).await, ["one: working", "two: working", "three: needs_input"]);
    // Another member's hook finds none of them.
    let (_, said) = hook(&world, (2, &bo), working(json!({"session_id": "one", "status": "idle"}))).await;
    assert_eq!(said, json!({"ok": true, "pending": true}));
    assert_eq!(statuses(&mut one).await, ["one: working", "two: working", "three: needs_input"]);
    // Do not disturb ends by hand only.
    one.ask(json!({"type": "set_status", "status": "dnd"})).await;
    assert_eq!(hook(&world, own, working(json!({"session_id": "one"}))).await.0, 200);
    assert_eq!(statuses(&mut one).await[0], "one: dnd");
}

#[tokio::test]
async fn what_a_hook_said_too_early_reaches_the_session_when_it_comes() {
    let world = World::start().await;
    let own = (OWNER, world.mesh.member.as_str());
    for status in ["idle", "working"] {
        let body = json!({"cwd": "", "status": status, "session_id": "late"});
        assert_eq!(hook(&world, own, body).await, (200, json!({"ok": true, "pending": true})));
    }
    let mut other = session(&world, "other", "", 1).await;
    let mut late = session(&world, "late", "/b", 2).await;
    assert_eq!(statuses(&mut late).await, ["other: idle", "late: working"], "the newest counts");
    // And it is said once.
    late.ask(json!({"type": "set_status", "status": "idle"})).await;
    late.hang_up().await;
    other.ask(json!({"type": "list_peers"})).await;
    let mut again = session(&world, "late", "/b", 2).await;
    assert!(statuses(&mut again).await.contains(&"late: idle".to_owned()));
}

#[tokio::test]
async fn a_hook_that_is_not_signed_or_not_well_formed_is_refused() {
    let world = World::start().await;
    let own = (OWNER, world.mesh.member.as_str());
    let mut one = session(&world, "one", "/a", 1).await;
    let good = json!({"cwd": "/a", "status": "working", "session_id": "one"});
    let code = |(status, body): (u16, Value)| (status, body["error"]["code"].as_str().map(str::to_owned));
    let refusal = |status, code: &str| (status, Some(code.to_owned()));
    assert_eq!(code(post(&world, None, good.to_string()).await), refusal(401, "unauthorized"));
    assert_eq!(
        code(post(&world, Some("Bearer x".into()), good.to_string()).await),
        refusal(400, "malformed")
    );
    assert_eq!(code(hook(&world, (2, own.1), good.clone()).await), refusal(401, "bad_signature"));
    let long = json!({"cwd": "", "status": "idle", "session_id": "x".repeat(257)});
    for bad in
        [long, json!({"status": "idle"}), json!({"cwd": "/a"}), json!({"cwd": "/a", "status": "asleep"})]
    {
        assert_eq!(code(hook(&world, own, bad).await), refusal(400, "invalid_args"));
    }
    let large = json!({"cwd": "x".repeat(20_000), "status": "idle"});
    assert_eq!(code(hook(&world, own, large).await), refusal(413, "too_large"));
    assert_eq!(statuses(&mut one).await, ["one: idle"]);
}

#[tokio::test]
async fn working_is_believed_for_a_while_and_a_session_keeps_its_status_when_it_is_replaced() {
    let limits = Limits { working_for: Duration::from_secs(3600), ..Limits::default() };
    let world = World::with(limits).await;
    let mut one = session(&world, "one", "/a", 1).await;
    one.ask(json!({"type": "set_status", "status": "working"})).await;
    let mut again = session(&world, "one", "/a", 1).await;
    assert_eq!(statuses(&mut again).await, ["one: working"]);
    let limits = Limits { working_for: Duration::ZERO, ..Limits::default() };
    let world = World::with(limits).await;
    let mut one = session(&world, "one", "/a", 1).await;
    one.ask(json!({"type": "set_status", "status": "working"})).await;
    let believed = async { while statuses(&mut one).await == ["one: working"] {} };
    tokio::time::timeout(PATIENCE, believed).await.expect("it is too old a millisecond later");
    one.ask(json!({"type": "set_status", "status": "needs_input"})).await;
    assert_eq!(statuses(&mut one).await, ["one: needs_input"]);
}

#[tokio::test]
async fn sessions_of_one_member_do_not_hear_of_each_other_coming_and_going() {
    let world = World::start().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut one = session(&world, "one", "/a", 1).await;
    bo.event("peer_joined").await;
    let two = session(&world, "two", "/a", 2).await;
    bo.event("peer_joined").await;
    two.hang_up().await;
    bo.event("peer_left").await;
    let heard = one.heard().await;
    assert!(heard.is_empty(), "{heard:?}");
}
