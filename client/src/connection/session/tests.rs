//! Several processes' worth of connections in one process, against a scripted broker.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use wire::peer::calls::McpRequest;
use wire::peer::hosting::{McpCatalog, McpCatalogResult, McpStop};
use wire::{MemberId, MeshId};

use super::*;
use crate::address::BrokerAddress;
use crate::connection::{
    Announce, CallOptions, Connection, Forward, LinkState, Membership, RequestEvent, SessionPlace,
};
use crate::error::ClientError;
use crate::identity::{Identity, random_hex};

type Peer = WebSocketStream<TcpStream>;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it happens in time")
}

struct Scene {
    listener: tokio::net::TcpListener,
    dir: PathBuf,
    run: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Scene {
    async fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("cm-session-{}", random_hex()));
        Self {
            listener: tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
            run: dir.join("run"),
            dir,
        }
    }

    fn membership(&self) -> Membership {
        let url = format!("ws://{}/ws", self.listener.local_addr().unwrap());
        Membership {
            mesh_id: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            identity: Identity::from_seed([1; 32]),
            broker: BrokerAddress::parse(&url).unwrap(),
        }
    }

    fn place(&self) -> SessionPlace {
        SessionPlace { dir: self.run.clone(), session_id: "the-session".into() }
    }

    fn join(&self) -> Connection {
        Connection::join(self.membership(), Announce::here("ai", "test"), &self.place())
    }

    /// The next connection, which must say hello for the session; answered.
    async fn accept(&self) -> Peer {
        let (socket, _) = soon(self.listener.accept()).await.unwrap();
        let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
        let hello = read(&mut peer).await;
        assert_eq!((&hello["type"], &hello["sessionId"]), (&json!("hello"), &json!("the-session")));
        say(
            &mut peer,
            &json!({"type":"hello_ack","presenceId":"P","memberDisplayName":"Ana","services":[],
            "memberRole":"owner","brokerVersion":"0"}),
        )
        .await;
        peer
    }

    /// A holder, then another that reaches the broker through it.
    async fn pair(&self) -> (Connection, Connection, Peer) {
        let holder = self.join();
        let peer = self.accept().await;
        up(&holder).await;
        let other = self.join();
        up(&other).await;
        (holder, other, peer)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("run")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

async fn up(connection: &Connection) {
    soon(connection.state().wait_for(|state| matches!(state, LinkState::Up(_)))).await.unwrap();
}

async fn down(connection: &Connection) {
    soon(connection.state().wait_for(|state| matches!(state, LinkState::Down(_)))).await.unwrap();
}

/// A dropped connection ends as soon as its task is looked at again.
async fn eventually(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn say(peer: &mut Peer, frame: &Value) {
    peer.send(Message::text(frame.to_string())).await.unwrap();
}

/// The next frame; what a status line wants is answered on the way.
async fn read(peer: &mut Peer) -> Value {
    loop {
        if let Message::Text(text) = soon(peer.next()).await.unwrap().unwrap() {
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["type"] != "list_peers" {
                return frame;
            }
            say(peer, &json!({"type":"peers_list","_reqId":frame["_reqId"],"peers":[]})).await;
        }
    }
}

async fn answer_catalog(peer: &mut Peer) -> String {
    let frame = read(peer).await;
    assert_eq!(frame["type"], "mcp_catalog");
    say(peer, &json!({"type":"mcp_catalog_result","_reqId":frame["_reqId"],"services":[]})).await;
    frame["_reqId"].as_str().unwrap().to_owned()
}

async fn call(connection: &Connection, n: u8) -> String {
    let args = serde_json::value::RawValue::from_string(n.to_string()).unwrap();
    let result = connection.call_raw("a", "t", Some(args), CallOptions::default()).await.unwrap();
    result.result.unwrap().get().to_owned()
}

async fn catalog(connection: &Connection) -> Result<McpCatalogResult, ClientError> {
    connection.request(&McpCatalog {}).await
}

/// Nothing comes: the broker answers a question that was sent after it, and that comes first.
async fn assert_silent(peer: &mut Peer, through: &Connection) {
    let (asked, _) = tokio::join!(catalog(through), answer_catalog(peer));
    asked.unwrap();
}

#[tokio::test]
async fn processes_of_a_session_share_one_presence_and_each_gets_its_own_answers() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let third = scene.join();
    up(&third).await;
    let broker = async {
        let mut ids = Vec::new();
        let frames = [read(&mut peer).await, read(&mut peer).await, read(&mut peer).await];
        for frame in frames.iter().rev() {
            let id = frame["_reqId"].as_str().unwrap().to_owned();
            let text = format!(
                r#"{{"type":"mcp_call_result","_reqId":"{id}","result":{{"to": {}, "b":1.50}}}}"#,
                frame["args"]
            );
            peer.send(Message::text(text)).await.unwrap();
            ids.push(id);
        }
        ids.sort();
        ids.dedup();
        ids.len()
    };
    let (one, two, three, distinct) =
        tokio::join!(call(&holder, 1), call(&other, 2), call(&third, 3), broker);
    for (n, result) in [(1, one), (2, two), (3, three)] {
        // Byte for byte.
        assert_eq!(result, format!(r#"{{"to": {n}, "b":1.50}}"#));
    }
    assert_eq!(distinct, 3);
    // All are up, and only one has connected.
    assert!(scene.listener.accept().now_or_never().is_none());
}

#[tokio::test]
async fn lock_and_socket_are_private_and_gone_with_the_session() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scene.dir.join("run")), 0o700);
    for file in scene.files() {
        assert_eq!(mode(&scene.dir.join("run").join(&file)), 0o600, "{file}");
    }
    soon(other.close()).await;
    let hung_up =
        async { while !matches!(peer.next().await, None | Some(Err(_) | Ok(Message::Close(_)))) {} };
    soon(async { tokio::join!(holder.close(), hung_up) }).await;
    assert_eq!(scene.files(), Vec::<String>::new());
}

#[tokio::test]
async fn news_and_forwards_reach_every_process() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let (mut one, mut two) = (holder.pushes(), other.pushes());
    let (mut three, mut four) = (holder.forwards(), other.forwards());
    let push = json!({"type":"push","subtype":"system","event":"mcp_undeployed","eventData":{"name":"e","by":"Bo"},
        "messageId":"m","meshId":"M","senderPubkey":"system","priority":"low","nonce":"","ciphertext":"","createdAt":"t"});
    say(&mut peer, &push).await;
    say(
        &mut peer,
        &json!({"type":"mcp_call_forward","callId":"c","serverName":"s","toolName":"t","args":{},
        "callerName":"Bo"}),
    )
    .await;
    say(&mut peer, &json!({"type":"mcp_call_forward_cancel","callId":"c"})).await;
    for pushes in [&mut one, &mut two] {
        assert_eq!(soon(pushes.recv()).await.unwrap().event, "mcp_undeployed");
    }
    for forwards in [&mut three, &mut four] {
        assert!(matches!(&*soon(forwards.recv()).await.unwrap(), Forward::Call(call) if call.call_id == "c"));
        assert!(matches!(&*soon(forwards.recv()).await.unwrap(), Forward::Cancel(c) if c.call_id == "c"));
    }
}

#[tokio::test]
async fn what_the_server_asks_is_answered_by_the_process_that_called() {
    let scene = Scene::new().await;
    let (_holder, other, mut peer) = scene.pair().await;
    let request = McpRequest {
        server_name: "s".into(),
        method: "tools/call".into(),
        params: None,
        deadline_ms: None,
        asks: true,
    };
    let mut stream = other.request_stream(&request).await.unwrap();
    let id = read(&mut peer).await["_reqId"].clone();
    say(&mut peer, &json!({"type":"mcp_ask","_reqId":id,"ask":7,"request":{"method":"roots/list"}})).await;
    assert!(matches!(soon(stream.next()).await.unwrap(), RequestEvent::Ask(ask) if ask.ask == 7));
    let roots = serde_json::value::RawValue::from_string(r#"{"roots":[ ]}"#.into()).unwrap();
    stream.answer(7, Ok(roots)).await.unwrap();
    let answer = read(&mut peer).await;
    assert_eq!(
        (&answer["type"], &answer["requestId"], &answer["ask"]),
        (&json!("mcp_ask_answer"), &id, &json!(7))
    );
    say(&mut peer, &json!({"type":"mcp_request_result","_reqId":id,"result":{}})).await;
    assert!(matches!(soon(stream.next()).await.unwrap(), RequestEvent::Done(_)));
}

#[tokio::test]
async fn what_a_dead_process_left_running_is_cancelled_and_its_errands_are_not() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let errand = other.deploy(&McpStop { server_name: "e".into() }).await.unwrap();
    assert_eq!(read(&mut peer).await["type"], "mcp_stop");
    let called = tokio::select! {
        _ = call(&other, 1) => panic!("nobody answers it"),
        frame = read(&mut peer) => frame["_reqId"].clone(),
    };
    // The dropped future cancels its own call.
    assert_eq!(read(&mut peer).await["requestId"], called);

    let mut tasks = tokio::task::JoinSet::new();
    let running = scene.join();
    up(&running).await;
    tasks.spawn(async move { call(&running, 2).await });
    let called = read(&mut peer).await["_reqId"].clone();
    // As if that process was killed: nothing of it runs any more.
    tasks.abort_all();
    let cancel = read(&mut peer).await;
    assert_eq!((&cancel["type"], &cancel["requestId"]), (&json!("mcp_cancel"), &called));
    drop(errand);
    drop(other);
    assert_silent(&mut peer, &holder).await;
}

#[tokio::test]
async fn when_the_holder_dies_another_takes_over_and_what_was_not_sent_waits() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut stream = other.deploy(&McpStop { server_name: "e".into() }).await.unwrap();
    assert_eq!(read(&mut peer).await["type"], "mcp_stop");
    drop(holder);
    // What was under way is answered: nobody knows what became of it.
    assert!(matches!(soon(stream.next()).await.unwrap_err(), ClientError::Closed(_)));
    tasks.spawn(async move {
        let asked = catalog(&other).await;
        (other, asked)
    });
    let mut peer = scene.accept().await;
    answer_catalog(&mut peer).await;
    let (other, asked) = soon(tasks.join_next()).await.unwrap().unwrap();
    assert!(asked.is_ok());
    assert!(matches!(&*other.state().borrow(), LinkState::Up(_)));
}

#[tokio::test]
async fn a_holder_that_is_closed_waits_for_what_others_have_under_way() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let mut tasks = tokio::task::JoinSet::new();
    let other = std::sync::Arc::new(other);
    let (first, second) = (Arc::clone(&other), Arc::clone(&other));
    tasks.spawn(async move { call(&first, 1).await });
    let called = read(&mut peer).await["_reqId"].clone();
    let mut closing = tokio::task::JoinSet::new();
    closing.spawn(holder.close());
    // Nothing tells us that the holder has begun to leave; whatever it is told now, the call must be answered.
    say(&mut peer, &json!({"type":"mcp_call_result","_reqId":called,"result":{"n":1}})).await;
    assert_eq!(soon(tasks.join_next()).await.unwrap().unwrap(), r#"{"n":1}"#);
    soon(closing.join_next()).await.unwrap().unwrap();
    tasks.spawn(async move { catalog(&second).await.unwrap().services.len().to_string() });
    let mut peer = scene.accept().await;
    answer_catalog(&mut peer).await;
    assert_eq!(soon(tasks.join_next()).await.unwrap().unwrap(), "0");
}

#[tokio::test]
async fn a_lost_broker_is_told_to_every_process_and_so_is_its_return() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    let mut stream = other.deploy(&McpStop { server_name: "e".into() }).await.unwrap();
    assert_eq!(read(&mut peer).await["type"], "mcp_stop");
    drop(peer);
    assert!(matches!(soon(stream.next()).await.unwrap_err(), ClientError::Closed(_)));
    down(&other).await;
    let asked = catalog(&other);
    let broker = async {
        let mut peer = scene.accept().await;
        answer_catalog(&mut peer).await;
        peer
    };
    let (asked, _peer) = tokio::join!(asked, broker);
    assert!(asked.is_ok());
    up(&holder).await;
}

#[tokio::test]
async fn a_session_begins_while_the_broker_is_away() {
    let scene = Scene::new().await;
    let (holder, other) = (scene.join(), scene.join());
    let ((one, two), _peer) =
        tokio::join!(async { tokio::join!(catalog(&holder), catalog(&other)) }, async {
            // The first attempt meets a broker that hangs up.
            drop(soon(scene.listener.accept()).await.unwrap());
            let mut peer = scene.accept().await;
            answer_catalog(&mut peer).await;
            answer_catalog(&mut peer).await;
            peer
        });
    assert!(one.is_ok() && two.is_ok());
}

#[tokio::test]
async fn a_session_that_is_refused_ends_for_all() {
    let scene = Scene::new().await;
    let (holder, other, mut peer) = scene.pair().await;
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    peer.close(Some(CloseFrame { code: 4002.into(), reason: "banned".into() })).await.unwrap();
    for connection in [&holder, &other] {
        let mut state = connection.state();
        soon(state.wait_for(|state| matches!(state, LinkState::Ended(why) if why.contains("banned"))))
            .await
            .unwrap();
        assert!(matches!(soon(catalog(connection)).await, Err(ClientError::Closed(_))));
    }
}

#[tokio::test]
async fn what_can_not_be_sent_for_long_fails_and_says_that_nothing_was_sent() {
    let scene = Scene::new().await;
    let (holder, other, peer) = scene.pair().await;
    drop(peer);
    down(&holder).await;
    down(&other).await;
    // Nobody accepts from here on: only time can answer.
    tokio::time::pause();
    let request = McpRequest {
        server_name: "a".into(),
        method: "tools/call".into(),
        params: None,
        deadline_ms: Some(24 * 60 * 60 * 1000),
        asks: true,
    };
    for connection in [&holder, &other] {
        let mut stream = connection.request_stream(&request).await.unwrap();
        let given_up = stream.next().await;
        assert!(matches!(given_up, Err(ClientError::Unsent(30))), "{given_up:?}");
        let options = CallOptions { deadline: Some(Duration::from_secs(600)), meta: None };
        let given_up = connection.call_raw("a", "t", None, options).await;
        assert!(matches!(given_up, Err(ClientError::Unsent(30))), "{given_up:?}");
    }
}

#[tokio::test]
async fn closing_is_quick_while_the_broker_is_away() {
    let scene = Scene::new().await;
    let (holder, other) = (scene.join(), scene.join());
    drop(soon(scene.listener.accept()).await.unwrap());
    let begun = std::time::Instant::now();
    soon(other.close()).await;
    soon(holder.close()).await;
    assert!(begun.elapsed() < super::super::CLOSE_LIMIT, "neither ran into its limit");
    assert_eq!(scene.files(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_killed_holder_left_is_replaced_and_that_of_other_sessions_swept() {
    let scene = Scene::new().await;
    let run = scene.dir.join("run");
    std::fs::create_dir_all(&run).unwrap();
    let membership = scene.membership();
    let ours = place::base(&scene.place(), &membership.mesh_id, &membership.member_id);
    for base in [ours.clone(), run.join("0000000000000000")] {
        for extension in ["lock", "sock", "status"] {
            std::fs::write(base.with_extension(extension), "left").unwrap();
        }
    }
    let (_holder, other, mut peer) = scene.pair().await;
    assert_silent(&mut peer, &other).await;
    assert!(scene.files().iter().all(|file| !file.starts_with("00000")), "{:?}", scene.files());
}

#[tokio::test]
async fn a_path_that_is_too_long_for_a_socket_leads_to_a_shorter_one() {
    let mut scene = Scene::new().await;
    scene.run = scene.dir.join("d".repeat(120));
    let (holder, other, mut peer) = scene.pair().await;
    assert_silent(&mut peer, &other).await;
    let socket = Meeting::of(&scene.place(), &scene.membership().mesh_id, &scene.membership().member_id)
        .unwrap()
        .socket;
    assert!(socket.exists() && !socket.starts_with(&scene.dir));
    drop((holder, other));
    eventually(|| !socket.exists()).await;
}

#[tokio::test]
async fn a_process_of_another_version_is_turned_away_with_the_reason() {
    let scene = Scene::new().await;
    let (_holder, _other, _peer) = scene.pair().await;
    let membership = scene.membership();
    let meeting = Meeting::of(&scene.place(), &membership.mesh_id, &membership.member_id).unwrap();
    let mut stream = tokio::net::UnixStream::connect(&meeting.socket).await.unwrap();
    words::greet(&mut stream, &words::Greeting { version: "0".into(), prefix: "x".into() }).await.unwrap();
    let answer = soon(words::answer(&mut stream)).await.unwrap();
    assert_eq!(answer, words::Answer::OtherVersion(words::VERSION.into()));
}

#[tokio::test]
async fn the_status_counts_the_other_sessions_and_goes_with_the_holder() {
    let scene = Scene::new().await;
    let holder = scene.join();
    let (socket, _) = soon(scene.listener.accept()).await.unwrap();
    let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
    let next = async |peer: &mut Peer| -> Value {
        loop {
            if let Message::Text(text) = soon(peer.next()).await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    };
    assert_eq!(next(&mut peer).await["type"], "hello");
    say(
        &mut peer,
        &json!({"type":"hello_ack","presenceId":"P","memberDisplayName":"Ana","services":[],
        "memberRole":"owner","brokerVersion":"0"}),
    )
    .await;
    let list = loop {
        let frame = next(&mut peer).await;
        if frame["type"] == "list_peers" {
            break frame;
        }
    };
    let one = |session: &str, name: &str| {
        json!({"pubkey":"k","memberPubkey":"k","displayName":name,"status":"idle","summary":null,"groups":[],
            "sessionId":session,"connectedAt":"t","cwd":"","peerRole":"control-plane"})
    };
    let peers = [one("the-session", "Ana at work"), one("x", "Bo"), one("y", "Bo")];
    say(&mut peer, &json!({"type":"peers_list","_reqId":list["_reqId"],"peers":peers})).await;
    let membership = scene.membership();
    let read = || SessionStatus::read(&scene.place(), &membership.mesh_id, &membership.member_id);
    let status = soon(async {
        loop {
            match read() {
                Some(status) if status.is_online => return status,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert_eq!((status.peers, status.display_name.as_str()), (2, "Ana at work"));
    drop(holder);
    eventually(|| read().is_none()).await;
}

#[tokio::test]
async fn beside_another_version_a_process_has_a_link_under_a_session_id_of_its_own() {
    let scene = Scene::new().await;
    let membership = scene.membership();
    let meeting = Meeting::of(&scene.place(), &membership.mesh_id, &membership.member_id).unwrap();
    let _hold = meeting.try_hold().unwrap().unwrap();
    let listener = hold::listen(&meeting).unwrap();
    let connection = scene.join();
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let greeting = soon(words::greeting(&mut stream)).await.unwrap();
    assert_eq!(greeting.version, words::VERSION);
    soon(words::reply(&mut stream, &words::Answer::OtherVersion("0".into()))).await.unwrap();
    let (socket, _) = soon(scene.listener.accept()).await.unwrap();
    let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
    // Not the session's own: the broker would end the connection of the process that holds it.
    assert_eq!(read(&mut peer).await["sessionId"], format!("the-session-{}", greeting.prefix));
    drop(connection);
}

#[tokio::test]
async fn a_folder_that_somebody_else_could_have_put_there_is_not_entered() {
    let scene = Scene::new().await;
    let elsewhere = scene.dir.join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &scene.run).unwrap();
    let connection = scene.join();
    let (socket, _) = soon(scene.listener.accept()).await.unwrap();
    let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
    let hello = read(&mut peer).await;
    assert!(hello["sessionId"].as_str().unwrap().starts_with("the-session-"), "a link of its own: {hello}");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is left where the link leads");
    drop(connection);
}

#[tokio::test]
async fn a_folder_that_others_can_enter_is_closed_before_it_is_used() {
    let scene = Scene::new().await;
    std::fs::create_dir_all(&scene.run).unwrap();
    std::fs::set_permissions(&scene.run, std::fs::Permissions::from_mode(0o777)).unwrap();
    let holder = scene.join();
    let _peer = scene.accept().await;
    up(&holder).await;
    assert_eq!(std::fs::metadata(&scene.run).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_process_that_floods_the_link_keeps_nobody_from_it() {
    let scene = Scene::new().await;
    let (holder, other, peer) = scene.pair().await;
    let flooder = scene.join();
    up(&flooder).await;
    let (mut to, mut from) = peer.split();
    let flood = async {
        loop {
            flooder.tell(&McpCatalog {}).await.unwrap();
        }
    };
    let broker = async {
        loop {
            let Message::Text(text) = from.next().await.unwrap().unwrap() else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["type"] == "mcp_catalog" && !frame["_reqId"].is_null() {
                let answer = json!({"type":"mcp_catalog_result","_reqId":frame["_reqId"],"services":[]});
                to.send(Message::text(answer.to_string())).await.unwrap();
            }
        }
    };
    let asking = async {
        for _ in 0..20 {
            let (one, two) = tokio::join!(catalog(&holder), catalog(&other));
            assert!(one.is_ok() && two.is_ok());
        }
    };
    soon(async {
        tokio::select! { () = asking => {}, () = flood => {}, () = broker => {} }
    })
    .await;
}
