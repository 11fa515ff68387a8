//! A peer that speaks raw frames.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};

use ed25519_dalek::Signer;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{OWNER, PATIENCE, World, key, public};

pub struct Peer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Frames that came while another was waited for.
    kept: VecDeque<Value>,
    next_id: u32,
    pub ack: Value,
}

/// What the broker last said before the socket ended.
#[derive(Debug)]
pub struct Ended {
    pub frames: Vec<Value>,
    pub code: Option<u16>,
    pub reason: String,
}

pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

pub fn hello(world: &World, seed: u8, member: &str) -> Value {
    let (mesh, at) = (&world.mesh.mesh, now_ms());
    let pubkey = public(&key(seed));
    let bytes = wire::canonical::hello(mesh, member, pubkey.as_str(), at);
    json!({
        "type": "hello", "meshId": mesh.as_str(), "memberId": member, "pubkey": pubkey.as_str(),
        "sessionId": format!("s-{seed}-{}", uuid::Uuid::new_v4()), "pid": 1, "cwd": "/w", "timestamp": at,
        "signature": hex::encode(key(seed).sign(bytes.as_bytes()).to_bytes()),
    })
}

/// An invite signed by the mesh owner.
pub fn invite(world: &World, role: &str) -> Value {
    // Two invites that are alike in everything, the second of their end included, are one invite.
    static NEXT: AtomicI64 = AtomicI64::new(3600);
    invite_until(world, role, now_ms() / 1000 + NEXT.fetch_add(60, Ordering::Relaxed))
}

pub fn invite_until(world: &World, role: &str, expires_at: i64) -> Value {
    let owner = public(&key(OWNER));
    let url = format!("ws://{}/ws", world.addr);
    let root = world.mesh.root_key.as_str();
    let bytes = wire::canonical::invite_v1(
        &world.mesh.mesh,
        &world.mesh.slug,
        &url,
        expires_at,
        root,
        (role, owner.as_str()),
    );
    json!({
        "v": 1, "mesh_id": world.mesh.mesh.as_str(), "mesh_slug": world.mesh.slug, "broker_url": url,
        "expires_at": expires_at, "mesh_root_key": root, "role": role, "owner_pubkey": owner.as_str(),
        "signature": hex::encode(key(OWNER).sign(bytes.as_bytes()).to_bytes()),
    })
}

impl Peer {
    pub async fn raw(world: &World) -> Self {
        let (socket, _) = connect_async(format!("ws://{}/ws", world.addr)).await.expect("connects");
        Self { socket, kept: VecDeque::new(), next_id: 0, ack: Value::Null }
    }

    pub async fn hello(world: &World, seed: u8, member: &str) -> Self {
        let mut peer = Self::raw(world).await;
        peer.send(hello(world, seed, member)).await;
        peer.ack = peer.frame().await;
        assert_eq!(peer.ack["type"], "hello_ack", "{}", peer.ack);
        peer
    }

    pub async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    /// Sends with a fresh `_reqId` and answers the id.
    pub async fn begin(&mut self, mut frame: Value) -> String {
        self.next_id += 1;
        let id = format!("r{}", self.next_id);
        frame["_reqId"] = json!(id);
        self.send(frame).await;
        id
    }

    /// Sends and waits for the first frame with its `_reqId`.
    pub async fn ask(&mut self, frame: Value) -> Value {
        let id = self.begin(frame).await;
        self.answer(&id).await
    }

    pub async fn answer(&mut self, id: &str) -> Value {
        self.wait_for(|frame| frame["_reqId"] == id).await
    }

    /// The terminal status of a deploy.
    pub async fn settled(&mut self, id: &str) -> Value {
        let status = |frame: &Value| frame["_reqId"] == id && frame["type"] == "mcp_deploy_status";
        self.wait_for(|frame| status(frame) && frame["status"] != "building").await
    }

    pub async fn deploy(&mut self, name: &str, package: &str, scope: Value) -> Value {
        let id = self.begin(deploy_frame(name, package, scope)).await;
        let first = self.answer(&id).await;
        if first["type"] == "error" { first } else { self.settled(&id).await }
    }

    pub async fn event(&mut self, event: &str) -> Value {
        self.wait_for(|frame| frame["type"] == "push" && frame["event"] == event).await
    }

    pub async fn call(&mut self, server: &str, tool: &str, args: Value) -> Value {
        self.ask(json!({"type": "mcp_call", "serverName": server, "toolName": tool, "args": args})).await
    }

    pub async fn wait_for(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&is_it) {
            return self.kept.remove(at).expect("just found");
        }
        loop {
            let frame = self.next().await.unwrap_or_else(|ended| panic!("ended with {ended:?}"));
            if is_it(&frame) {
                return frame;
            }
            self.kept.push_back(frame);
        }
    }

    pub async fn frame(&mut self) -> Value {
        self.next().await.unwrap_or_else(|ended| panic!("ended with {ended:?}"))
    }

    /// Everything that was said until now; a round trip shows that nothing is on its way.
    pub async fn heard(&mut self) -> Vec<Value> {
        let id = self.begin(json!({"type": "list_peers"})).await;
        self.answer(&id).await;
        self.kept.drain(..).collect()
    }

    pub async fn end(mut self) -> Ended {
        let mut frames = Vec::new();
        loop {
            match self.next().await {
                Ok(frame) => frames.push(frame),
                Err((code, reason)) => return Ended { frames, code, reason },
            }
        }
    }

    pub async fn hang_up(mut self) {
        self.socket.close(None).await.expect("closed");
    }

    async fn next(&mut self) -> Result<Value, (Option<u16>, String)> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a frame in time");
            match message {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("json")),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err((Some(frame.code.into()), frame.reason.to_string()));
                }
                Some(Ok(Message::Close(None))) | None => return Err((None, String::new())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err((None, error.to_string())),
            }
        }
    }
}

pub fn deploy_frame(name: &str, package: &str, scope: Value) -> Value {
    let mut frame = json!({
        "type": "mcp_deploy", "server_name": name,
        "source": {"type": "npx", "package": package},
        "config": {"env": {"KEY": "hunter2"}},
    });
    if !scope.is_null() {
        frame["scope"] = scope;
    }
    frame
}
