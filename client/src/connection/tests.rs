//! The connection against a scripted broker in the same process.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use wire::peer::hosting::{McpCatalog, McpCatalogResult, McpLogs, McpStop, McpUpdate};
use wire::{ErrorCode, MemberId, MeshId};

use super::*;
use crate::address::BrokerAddress;
use crate::identity::Identity;

type Peer = WebSocketStream<TcpStream>;

const LIMIT: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it happens in time")
}

struct Script {
    listener: TcpListener,
    address: BrokerAddress,
}

impl Script {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        Self { listener, address: BrokerAddress::parse(&url).unwrap() }
    }

    fn membership(&self) -> Membership {
        Membership {
            mesh_id: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            identity: Identity::from_seed([1; 32]),
            broker: self.address.clone(),
        }
    }

    /// Takes one connection and its hello, unanswered.
    async fn greet(&self) -> (Peer, Value) {
        let (socket, _) = soon(self.listener.accept()).await.unwrap();
        let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
        let hello = read(&mut peer).await;
        (peer, hello)
    }

    async fn accept(&self) -> Peer {
        let (mut peer, _) = self.greet().await;
        say(&mut peer, &ack()).await;
        peer
    }

    async fn pair(&self, reconnect: Reconnect) -> (Connection, Peer) {
        let open = Connection::open(self.membership(), Announce::here("human", "test"), reconnect);
        let (connection, peer) = tokio::join!(open, self.accept());
        (connection.unwrap(), peer)
    }
}

fn ack() -> Value {
    json!({"type":"hello_ack","presenceId":"P","memberDisplayName":"Ana","services":[],"memberRole":"owner","brokerVersion":"0"})
}

async fn say(peer: &mut Peer, frame: &Value) {
    peer.send(Message::text(frame.to_string())).await.unwrap();
}

async fn read(peer: &mut Peer) -> Value {
    loop {
        if let Message::Text(text) = soon(peer.next()).await.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

fn raw(text: &str) -> RawJson {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap()
}

#[tokio::test]
async fn the_hello_is_signed_by_the_member_key() {
    let script = Script::new().await;
    let open = Connection::open(script.membership(), Announce::here("human", "test"), Reconnect::Never);
    let (connection, hello) = tokio::join!(open, async {
        let (mut peer, hello) = script.greet().await;
        say(&mut peer, &ack()).await;
        hello
    });
    assert_eq!(connection.unwrap().hello().unwrap().member_display_name, "Ana");
    let time = hello["timestamp"].as_i64().unwrap();
    let membership = script.membership();
    let key = membership.identity.public().as_str();
    let text = wire::canonical::hello(&membership.mesh_id, membership.member_id.as_str(), key, time);
    assert_eq!(hello["signature"], membership.identity.sign(&text));
    assert_eq!(hello["channel"], "test");
    assert_eq!(hello["peerType"], "human");
    assert_eq!(hello["pid"], std::process::id());
}

#[tokio::test]
async fn a_refused_hello_carries_its_code() {
    let script = Script::new().await;
    let open = Connection::open(script.membership(), Announce::here("human", "test"), Reconnect::Never);
    let (refused, ()) = tokio::join!(open, async {
        let (mut peer, _) = script.greet().await;
        say(
            &mut peer,
            &json!({"type":"error","code":"timestamp_skew","message":"hello rejected: timestamp_skew"}),
        )
        .await;
    });
    assert_eq!(refused.err().unwrap().code(), Some(ErrorCode::TimestampSkew));
}

#[tokio::test]
async fn answers_find_their_request_in_any_order() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let one = connection.call_raw("a", "t", Some(raw(r#"{"n":1.0}"#)), CallOptions::default());
    let two = connection.request::<_, McpCatalogResult>(&McpCatalog {});
    let broker = async {
        let first = read(&mut peer).await;
        let second = read(&mut peer).await;
        let (call, list) = if first["type"] == "mcp_call" { (first, second) } else { (second, first) };
        assert_eq!(call["args"].to_string(), r#"{"n":1.0}"#);
        say(&mut peer, &json!({"type":"mcp_catalog_result","_reqId":list["_reqId"],"services":[]})).await;
        let id = call["_reqId"].as_str().unwrap();
        let text = format!(r#"{{"type":"mcp_call_result","_reqId":"{id}","result":{{"b":1.50,"a":[ 1 ]}}}}"#);
        peer.send(Message::text(text)).await.unwrap();
    };
    let (one, two, ()) = tokio::join!(one, two, broker);
    assert!(two.unwrap().services.is_empty());
    // Byte for byte: neither the number nor the spacing nor the order changed.
    assert_eq!(one.unwrap().result.unwrap().get(), r#"{"b":1.50,"a":[ 1 ]}"#);
}

#[tokio::test]
async fn an_error_frame_answers_only_the_request_that_it_names() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let bad = connection.request::<_, McpCatalogResult>(&McpCatalog {});
    let good = connection.request::<_, McpCatalogResult>(&McpCatalog {});
    let broker = async {
        let first = read(&mut peer).await;
        let second = read(&mut peer).await;
        say(&mut peer, &json!({"type":"error","code":"malformed","message":"of nobody"})).await;
        say(
            &mut peer,
            &json!({"type":"error","_reqId":first["_reqId"],"code":"forbidden","message":"no","stderr":["x"]}),
        )
        .await;
        say(&mut peer, &json!({"type":"mcp_catalog_result","_reqId":second["_reqId"],"services":[]})).await;
    };
    let (bad, good, ()) = tokio::join!(bad, good, broker);
    let error = bad.unwrap_err();
    assert_eq!((error.code(), error.stderr().len()), (Some(ErrorCode::Forbidden), 1));
    assert!(good.is_ok());
}

#[tokio::test]
async fn a_deploy_is_followed_to_its_last_status() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let mut stream = connection.deploy(&McpUpdate { server_name: "e".into() }).await.unwrap();
    let id = read(&mut peer).await["_reqId"].clone();
    for frame in [
        json!({"type":"mcp_deploy_status","_reqId":id,"server_name":"e","status":"building"}),
        json!({"type":"mcp_deploy_progress","_reqId":id,"server_name":"e","generation":2,"step":"fetch","line":"l"}),
        json!({"type":"mcp_deploy_status","_reqId":id,"server_name":"e","status":"running","tools":[]}),
    ] {
        say(&mut peer, &frame).await;
    }
    assert!(matches!(soon(stream.next()).await.unwrap(), DeployEvent::Status(s) if s.status == "building"));
    assert!(matches!(soon(stream.next()).await.unwrap(), DeployEvent::Progress(p) if p.line == "l"));
    assert!(matches!(soon(stream.next()).await.unwrap(), DeployEvent::Done(s) if s.status == "running"));
}

#[tokio::test]
async fn a_dropped_follower_and_a_dropped_call_are_cancelled() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let follow = McpLogs { server_name: "e".into(), lines: None, follow: true };
    let stream = connection.logs(&follow).await.unwrap();
    let logs = read(&mut peer).await["_reqId"].clone();
    drop(stream);
    let cancel = read(&mut peer).await;
    assert_eq!((&cancel["type"], &cancel["requestId"]), (&json!("mcp_cancel"), &logs));

    let call = connection.call_raw("a", "t", None, CallOptions::default());
    let asked = tokio::select! {
        _ = call => panic!("nobody answers it"),
        frame = read(&mut peer) => frame["_reqId"].clone(),
    };
    assert_eq!(read(&mut peer).await["requestId"], asked);
}

#[tokio::test]
async fn a_lost_socket_answers_every_waiter() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let mut stream = connection.deploy(&McpStop { server_name: "e".into() }).await.unwrap();
    let one = connection.request::<_, McpCatalogResult>(&McpCatalog {});
    let two = connection.call_raw("a", "t", None, CallOptions::default());
    let (one, two, ()) = soon(async {
        tokio::join!(one, two, async {
            for _ in 0..3 {
                read(&mut peer).await;
            }
            drop(peer);
        })
    })
    .await;
    assert!(matches!(one.unwrap_err(), ClientError::Closed(_)));
    assert!(matches!(two.unwrap_err(), ClientError::Closed(_)));
    assert!(matches!(soon(stream.next()).await.unwrap_err(), ClientError::Closed(_)));
    // And whoever asks later hears the same at once.
    let late = soon(connection.request::<_, McpCatalogResult>(&McpCatalog {})).await;
    assert!(matches!(late.unwrap_err(), ClientError::Closed(_)));
}

#[tokio::test]
async fn a_long_lived_connection_comes_back_and_signs_a_new_hello() {
    let script = Script::new().await;
    let (connection, peer) = script.pair(Reconnect::Forever).await;
    drop(peer);
    let mut state = connection.state();
    soon(state.wait_for(|s| matches!(s, LinkState::Down(_)))).await.unwrap();
    // Asked while the link is down: it waits, and is answered over the new one.
    let asked = connection.request::<_, McpCatalogResult>(&McpCatalog {});
    let broker = async {
        let mut peer = script.accept().await;
        let frame = read(&mut peer).await;
        say(&mut peer, &json!({"type":"mcp_catalog_result","_reqId":frame["_reqId"],"services":[]})).await;
        peer
    };
    let (asked, _peer) = tokio::join!(asked, broker);
    assert!(asked.is_ok());
    assert!(matches!(&*state.borrow(), LinkState::Up(_)));
}

#[tokio::test]
async fn a_banned_member_does_not_come_back() {
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Forever).await;
    peer.close(Some(CloseFrame { code: 4002.into(), reason: "banned".into() })).await.unwrap();
    let mut state = connection.state();
    let ended = soon(state.wait_for(|s| matches!(s, LinkState::Ended(_)))).await.unwrap().clone();
    assert!(matches!(ended, LinkState::Ended(why) if why.contains("banned")));
}

#[tokio::test]
async fn system_events_reach_their_subscribers() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let mut pushes = connection.pushes();
    let push = json!({"type":"push","subtype":"system","event":"mcp_undeployed","eventData":{"name":"e","by":"Bo"},
        "messageId":"m","meshId":"M","senderPubkey":"system","priority":"low","nonce":"","ciphertext":"","createdAt":"t"});
    say(&mut peer, &push).await;
    assert_eq!(soon(pushes.recv()).await.unwrap().event, "mcp_undeployed");
}

#[tokio::test]
async fn closing_writes_out_what_was_sent() {
    let script = Script::new().await;
    let (connection, mut peer) = script.pair(Reconnect::Never).await;
    let stream = connection.deploy(&McpStop { server_name: "e".into() }).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { connection.close().await });
    assert_eq!(read(&mut peer).await["type"], "mcp_stop");
    assert!(matches!(soon(peer.next()).await, Some(Ok(Message::Close(_)))));
    drop(stream);
    soon(tasks.join_next()).await;
}
