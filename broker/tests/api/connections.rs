//! Hello, limits, members, invites, uploads and the plain HTTP side.

use std::time::Duration;

use crate::world::peer::{Peer, hello, invite, invite_until, now_ms};
use crate::world::{OWNER, World, key, public};
use broker::Limits;
use ed25519_dalek::Signer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Sends one hello and answers the error frame, the close code and its reason.
async fn refused(world: &World, frame: Value) -> (Value, Option<u16>, String) {
    let mut peer = Peer::raw(world).await;
    peer.send(frame).await;
    let ended = peer.end().await;
    assert_eq!(ended.frames.len(), 1, "{ended:?}");
    (ended.frames[0].clone(), ended.code, ended.reason)
}

#[tokio::test]
async fn each_refusal_has_its_code_text_and_close_code() {
    let world = World::start().await;
    let good = || hello(&world, OWNER, world.mesh.member.as_str());
    let with = |field: &str, value: Value| {
        let mut frame = good();
        frame[field] = value;
        frame
    };
    for (frame, code, text) in [
        (
            with("sessionPubkey", json!("AB")),
            "bad_session_pubkey",
            "sessionPubkey must be 64 lowercase hex chars",
        ),
        (with("timestamp", json!(now_ms() - 61_000)), "timestamp_skew", "hello rejected: timestamp_skew"),
        (with("signature", json!("00")), "malformed", "hello rejected: malformed"),
        (with("memberId", json!("U")), "bad_signature", "hello rejected: bad_signature"),
        (hello(&world, 9, "nobody"), "unauthorized", "pubkey not found in mesh"),
    ] {
        let (error, close, reason) = refused(&world, frame).await;
        assert_eq!((error["code"].as_str(), error["message"].as_str()), (Some(code), Some(text)));
        assert_eq!((close, reason.as_str()), (Some(1008), code));
    }
}

#[tokio::test]
async fn a_session_says_hello_with_a_vouched_key() {
    let world = World::start().await;
    let (mesh, at) = (&world.mesh.mesh, now_ms());
    let (parent, session) = (public(&key(OWNER)), public(&key(7)));
    let sign = |seed, bytes: String| hex::encode(key(seed).sign(bytes.as_bytes()).to_bytes());
    let ends = at + 1000 * 3600;
    let frame = |member: &str| {
        json!({
            "type": "session_hello", "meshId": mesh.as_str(), "parentMemberId": member,
            "parentMemberPubkey": parent.as_str(), "sessionPubkey": session.as_str(),
            "parentAttestation": {
                "sessionPubkey": session.as_str(), "parentMemberPubkey": parent.as_str(), "expiresAt": ends,
                "signature": sign(OWNER, wire::canonical::attestation(parent.as_str(), session.as_str(), ends)),
            },
            "sessionId": "one", "pid": 1, "cwd": "/w", "displayName": "olga's session", "timestamp": at,
            "signature": sign(7, wire::canonical::session_hello(mesh, parent.as_str(), session.as_str(), at)),
        })
    };
    let (error, ..) = refused(&world, frame("somebody else")).await;
    assert_eq!(error["code"], "parent_member_id_mismatch");
    let mut first = Peer::raw(&world).await;
    first.send(frame(world.mesh.member.as_str())).await;
    let ack = first.frame().await;
    assert_eq!((&ack["memberDisplayName"], &ack["memberRole"]), (&json!("olga's session"), &json!("owner")));
    assert_eq!(ack["services"], json!([]));
    let peers = first.ask(json!({"type": "list_peers"})).await;
    assert_eq!(peers["peers"][0]["pubkey"], session.as_str());
    assert_eq!(peers["peers"][0]["peerRole"], "session");
    let mut second = Peer::raw(&world).await;
    second.send(frame("")).await;
    assert_eq!(second.frame().await["type"], "hello_ack");
    let ended = first.end().await;
    assert_eq!((ended.code, ended.reason.as_str()), (Some(1000), "session_replaced"));
}

#[tokio::test]
async fn a_full_mesh_and_a_silent_socket_are_turned_away() {
    let limits =
        Limits { max_connections_per_mesh: 1, hello_timeout: Duration::from_secs(2), ..Limits::default() };
    let world = World::with(limits).await;
    let _first = world.owner().await;
    let (error, close, reason) = refused(&world, hello(&world, OWNER, world.mesh.member.as_str())).await;
    assert_eq!(error["message"], "mesh at connection capacity");
    assert_eq!((close, reason.as_str()), (Some(1008), "capacity"));
    let ended = Peer::raw(&world).await.end().await;
    assert_eq!(
        (ended.frames[0]["code"].as_str(), ended.reason.as_str()),
        (Some("hello_timeout"), "hello_timeout")
    );
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dropped() {
    let limits = Limits {
        ping_every: Duration::from_millis(200),
        idle_limit: Duration::from_secs(2),
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let mut alive = world.member(2, "Bo", "member").await;
    let silent = world.owner().await;
    alive.event("peer_joined").await;
    // Not reading means not answering: the library answers pings only while it reads.
    assert_eq!(alive.event("peer_left").await["eventData"]["displayName"], "Olga");
    drop(silent);
    assert_eq!(alive.ask(json!({"type": "list_peers"})).await["peers"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn bad_frames_are_answered_and_the_connection_lives() {
    let limits = Limits { max_message_bytes: 2000, ..Limits::default() };
    let world = World::with(limits).await;
    let mut raw = Peer::raw(&world).await;
    assert_eq!(raw.ask(json!({"type": "list_peers"})).await["code"], "no_hello");
    raw.send_text("{".into()).await;
    assert_eq!(raw.frame().await["code"], "malformed");
    raw.send(hello(&world, OWNER, world.mesh.member.as_str())).await;
    assert_eq!(raw.frame().await["type"], "hello_ack");
    raw.send_text("[1,".into()).await;
    assert_eq!(raw.frame().await["code"], "malformed");
    assert_eq!(raw.ask(json!({"type": "no_such"})).await["code"], "unknown_message_type");
    let big =
        json!({"type": "mcp_call", "serverName": "x", "toolName": "y", "args": {"a": "x".repeat(3000)}});
    assert_eq!(raw.ask(big).await["code"], "too_large");
    assert_eq!(raw.ask(json!({"type": "list_peers"})).await["type"], "peers_list");
    raw.send_text("x".repeat(20_000)).await;
    let ended = raw.end().await;
    assert_eq!(ended.code, Some(1009), "{ended:?}");
}

#[tokio::test]
async fn joining_follows_the_order_of_checks() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let payload = invite(&world, "member");
    let request = json!({
        "type": "invite_create", "payload": payload, "max_uses": 1,
        "preset": {"displayName": "Bo", "groups": [{"name": "@eng", "role": "lead"}]},
    });
    let token = owner.ask(request).await["token"].as_str().expect("token").to_owned();
    let error = async |payload: &Value, token: &str, seed| {
        let (status, body) = world.post_join(token, payload, seed, "x").await;
        assert_eq!(status, 400, "{body}");
        body["error"].as_str().expect("error").to_owned()
    };
    let mut forged = payload.clone();
    forged["role"] = json!("admin");
    assert_eq!(error(&forged, &token, 2).await, "invite_bad_signature");
    assert_eq!(error(&payload, "unknown", 2).await, "invite_not_found");
    assert_eq!(
        error(&payload, "", 2).await,
        "invite_token, invite_payload, peer_pubkey, display_name required"
    );
    let (status, joined) = world.post_join(&token, &payload, 2, "Mallory").await;
    assert_eq!((status, joined["ok"].as_bool()), (200, Some(true)));
    let (_, again) = world.post_join(&token, &payload, 2, "x").await;
    assert_eq!(again["alreadyMember"], true);
    assert_eq!(again["memberId"], joined["memberId"]);
    assert_eq!(error(&payload, &token, 3).await, "invite_exhausted");
    let bo = Peer::hello(&world, 2, joined["memberId"].as_str().expect("id")).await;
    assert_eq!(bo.ack["memberDisplayName"], "Bo", "the inviter's word counts");
    assert_eq!(bo.ack["memberProfile"]["groups"], json!([{"name": "eng", "role": "lead"}]));
    let members = owner.ask(json!({"type": "member_list"})).await;
    assert_eq!(members["members"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn another_spelling_of_an_invite_is_no_other_invite() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let register =
        |payload: &Value, uses| json!({"type": "invite_create", "payload": payload, "max_uses": uses});
    let payload = invite(&world, "member");
    let mut shouted = payload.clone();
    shouted["signature"] = json!(payload["signature"].as_str().expect("signature").to_uppercase());
    assert_eq!(owner.ask(register(&shouted, 1)).await["code"], "invite_bad_signature");
    let token = owner.ask(register(&payload, 1)).await["token"].as_str().expect("token").to_owned();
    assert_eq!(owner.ask(register(&shouted, 1000)).await["code"], "invite_bad_signature");
    assert_eq!(owner.ask(register(&payload, 1000)).await["code"], "conflict");
    let (_, refused) = world.post_join(&token, &shouted, 2, "Bo").await;
    assert_eq!(refused["error"], "invite_bad_signature");
    let (_, refused) = world.post_join(&format!("{token}="), &payload, 2, "Bo").await;
    assert_eq!(refused["error"], "invite_not_found");
    assert_eq!(world.post_join(&token, &payload, 2, "Bo").await.0, 200);
}

#[tokio::test]
async fn of_too_many_sockets_that_say_no_hello_the_last_is_sent_away() {
    let limits = Limits { hello_timeout: Duration::from_secs(600), ..Limits::default() };
    let world = World::with(limits).await;
    let _known = world.owner().await;
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let mut peer = Peer::raw(&world).await;
        // The answer shows that the socket has taken its turn.
        assert_eq!(peer.ask(json!({"type": "list_peers"})).await["code"], "no_hello");
        waiting.push(peer);
    }
    let ended = Peer::raw(&world).await.end().await;
    assert_eq!((ended.code, ended.reason.as_str()), (Some(1013), "capacity"));
    let mut first = waiting.remove(0);
    first.send(hello(&world, OWNER, world.mesh.member.as_str())).await;
    assert_eq!(first.frame().await["type"], "hello_ack");
    let mut next = Peer::raw(&world).await;
    assert_eq!(
        next.ask(json!({"type": "list_peers"})).await["code"],
        "no_hello",
        "a hello gives its turn back"
    );
}

#[tokio::test]
async fn a_stranger_s_large_frame_ends_the_connection() {
    let world = World::with(Limits { max_message_bytes: 2000, ..Limits::default() }).await;
    let mut stranger = Peer::raw(&world).await;
    stranger.send_text("x".repeat(3000)).await;
    let ended = stranger.end().await;
    assert_eq!((ended.frames[0]["code"].as_str(), ended.code), (Some("too_large"), Some(1009)));
}

#[tokio::test]
async fn only_admins_register_invites_and_only_the_owner_s_signature_counts() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let register = |payload: Value| json!({"type": "invite_create", "payload": payload, "max_uses": 1});
    assert_eq!(bo.ask(register(invite(&world, "member"))).await["code"], "forbidden");
    let mut forged = invite(&world, "member");
    forged["owner_pubkey"] = json!(public(&key(2)).as_str());
    assert_eq!(owner.ask(register(forged)).await["code"], "invite_bad_signature");
    assert_eq!(owner.ask(register(invite(&world, "owner"))).await["code"], "invalid_args");
    let late = invite_until(&world, "member", now_ms() / 1000 - 1);
    assert_eq!(owner.ask(register(late)).await["code"], "invite_expired");
}

#[tokio::test]
async fn a_removed_member_loses_everything_at_once() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "admin").await;
    assert_eq!(bo.deploy("theirs", "ok", json!("mesh")).await["status"], "running");
    let denied = bo.ask(json!({"type": "member_update", "member": "Olga", "revoke": true})).await;
    assert_eq!(denied["code"], "forbidden");
    let gone = owner.ask(json!({"type": "member_update", "member": "Bo", "revoke": true})).await;
    assert_eq!(gone["member"]["revoked"], true);
    let ended = bo.end().await;
    assert_eq!((ended.code, ended.reason.as_str()), (Some(4002), "banned"));
    world.runner.until(|seen| seen.removed.contains(&("theirs".into(), false))).await;
    let (error, close, _) = refused(&world, hello(&world, 2, "x")).await;
    assert_eq!((error["code"].as_str(), close), (Some("revoked"), Some(4002)));
    assert_eq!(error["message"], "You've been removed from \"acme\". Contact the mesh owner to rejoin.");
}

#[tokio::test]
async fn groups_that_an_admin_sets_give_access_at_once_and_claimed_ones_never() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let id = world.join(2, "Bo", "member").await;
    let mut bo = Peer::raw(&world).await;
    let mut frame = hello(&world, 2, &id);
    frame["groups"] = json!([{"name": "eng"}]);
    bo.send(frame).await;
    assert_eq!(bo.frame().await["memberProfile"]["groups"], json!([]));
    owner.deploy("echo", "ok", json!({"group": "eng"})).await;
    assert_eq!(bo.call("echo", "echo", json!({})).await["code"], "not_found");
    owner.ask(json!({"type": "member_update", "member": "Bo", "groups": [{"name": "@eng"}]})).await;
    assert!(bo.call("echo", "echo", json!({})).await["result"].is_object());
}

fn signed(world: &World, seed: u8, member: &str, body: &[u8], at: i64) -> String {
    let sha = hex::encode(Sha256::digest(body));
    let member = wire::MemberId::parse(member).expect("id");
    let bytes = wire::canonical::http_request(&world.mesh.mesh, &member, at, ("POST", "/v1/uploads"), &sha);
    let signature = hex::encode(key(seed).sign(bytes.as_bytes()).to_bytes());
    format!("Claudemesh {}.{member}.{at}.{sha}.{signature}", world.mesh.mesh)
}

#[tokio::test]
async fn an_upload_is_signed_limited_and_reaches_the_runner_before_the_deploy() {
    let limits = Limits { max_upload_bytes: 1000, ..Limits::default() };
    let world = World::with(limits).await;
    let member = world.mesh.member.as_str();
    let post = async |auth: String, body: &[u8]| {
        let request =
            world.http().post(world.url("/v1/uploads")).header("authorization", auth).body(body.to_vec());
        let answer = request.send().await.expect("answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("json"))
    };
    let body = b"an archive";
    let code = |(status, body): (u16, Value)| (status, body["error"]["code"].as_str().map(str::to_owned));
    let refusal = |status, code: &str| (status, Some(code.to_owned()));
    let at = now_ms();
    assert_eq!(code(post(String::new(), body).await), refusal(400, "malformed"));
    assert_eq!(code(post(signed(&world, 2, member, body, at), body).await), refusal(401, "bad_signature"));
    assert_eq!(
        code(post(signed(&world, OWNER, member, body, at - 61_000), body).await),
        refusal(401, "timestamp_skew")
    );
    assert_eq!(
        code(post(signed(&world, OWNER, member, body, at), b"another").await),
        refusal(400, "invalid_args")
    );
    let big = vec![0_u8; 2000];
    assert_eq!(code(post(signed(&world, OWNER, member, &big, at), &big).await), refusal(413, "too_large"));
    let (status, kept) = post(signed(&world, OWNER, member, body, at), body).await;
    assert_eq!((status, kept["size"].as_u64()), (200, Some(10)));
    let sha = kept["file_id"].as_str().expect("id").to_owned();
    let mut owner = world.owner().await;
    let frame = |sha: &str| json!({"type": "mcp_deploy", "server_name": "mine", "source": {"type": "zip", "file_id": sha}});
    assert_eq!(owner.ask(frame(&"0".repeat(64))).await["code"], "upload_not_found");
    let id = owner.begin(frame(&sha)).await;
    assert_eq!(owner.settled(&id).await["status"], "running");
    assert!(crate::world::runner::has_blob_named(&world.runner, &sha));
}

#[tokio::test]
async fn uploads_at_the_same_time_and_waiting_ones_are_limited_before_a_byte_is_read() {
    let world = World::with(Limits { max_upload_bytes: 1000, ..Limits::default() }).await;
    let member = world.mesh.member.as_str();
    let at = now_ms();
    let begin = async |body: &[u8]| {
        use tokio::io::AsyncWriteExt;
        let mut socket = tokio::net::TcpStream::connect(world.addr).await.expect("connects");
        let auth = signed(&world, OWNER, member, body, at);
        let head = format!(
            "POST /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\nContent-Length: {}\r\n\
             Expect: 100-continue\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.expect("sent");
        let mut first = [0_u8; 12];
        tokio::io::AsyncReadExt::read_exact(&mut socket, &mut first).await.expect("an answer");
        (socket, String::from_utf8(first.to_vec()).expect("text"))
    };
    let mut open = Vec::new();
    for n in 0..4_u8 {
        let (socket, status) = begin(&[n; 900]).await;
        // `100 Continue` is said when the body is asked for, so the turn is taken.
        assert_eq!(status, "HTTP/1.1 100");
        open.push(socket);
    }
    assert_eq!(begin(&[9; 10]).await.1, "HTTP/1.1 429");
    for (n, mut socket) in (0..4_u8).zip(open) {
        tokio::io::AsyncWriteExt::write_all(&mut socket, &[n; 900]).await.expect("sent");
        let mut answer = String::new();
        while !answer.contains("file_id") {
            let mut some = [0_u8; 512];
            let read = tokio::io::AsyncReadExt::read(&mut socket, &mut some).await.expect("an answer");
            assert_ne!(read, 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&some[..read]));
        }
    }
    assert_eq!(
        begin(&[9; 900]).await.1,
        "HTTP/1.1 413",
        "4,500 bytes would wait, and none of these was asked for"
    );
}

#[tokio::test]
async fn health_readiness_metrics_and_unknown_paths_answer() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    owner.deploy("echo", "ok", Value::Null).await;
    owner.call("echo", "echo", json!({})).await;
    let (status, health) = world.get("/health").await;
    let health: Value = serde_json::from_str(&health).expect("json");
    assert_eq!((status, &health["status"], &health["db"]), (200, &json!("ok"), &json!("up")));
    let (status, ready) = world.get("/health/ready?x=1").await;
    assert_eq!(status, 200);
    let ready: Value = serde_json::from_str(&ready).expect("json");
    assert_eq!(
        (&ready["runner"]["connected"], &ready["runner"]["tools"]),
        (&json!(true), &json!(["node 20"]))
    );
    let (_, metrics) = world.get("/metrics").await;
    for series in [
        "broker_connections_active",
        "claudemesh_calls_total{outcome=\"ok\"}",
        "claudemesh_service_state{phase=\"ready\"}",
        "broker_connections_rejected_total{reason=\"capacity\"}",
        "claudemesh_call_seconds_bucket",
    ] {
        assert!(metrics.contains(series), "{series} missing in\n{metrics}");
    }
    let (status, unknown) = world.get("/nothing").await;
    assert_eq!(status, 404);
    assert!(unknown.contains("not_found"));
    world.stop_broker().await;
    world.start_broker_expecting(Some("9999_future")).await;
    let (status, ready) = world.get("/health/ready").await;
    assert_eq!(status, 503);
    assert!(ready.contains("migration_missing") && ready.contains("9999_future"), "{ready}");
}

#[tokio::test]
async fn a_stopping_broker_says_so_to_its_peers() {
    let mut world = World::start().await;
    let owner = world.owner().await;
    let ended = tokio::spawn(owner.end());
    world.stop_broker().await;
    let ended = ended.await.expect("no panic");
    assert_eq!((ended.code, ended.reason.as_str()), (Some(1001), "shutting down"));
}
