//! A peer that speaks raw frames. It shares no code with `client`, so that a frame is checked against its
//! documentation and not against itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// Generous: a loaded machine is slow, a hung broker is never.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Who says hello.
#[derive(Clone)]
pub struct Identity {
    pub mesh_id: String,
    pub member_id: String,
    pub key: SigningKey,
}

impl Identity {
    pub fn pubkey(&self) -> String {
        hex::encode(self.key.verifying_key().to_bytes())
    }

    pub fn sign(&self, text: &str) -> String {
        hex::encode(self.key.sign(text.as_bytes()).to_bytes())
    }

    /// A correct `hello` at this time; tests of refusals break one field of it.
    pub fn hello(&self, session: &str, timestamp_ms: i64) -> Value {
        let (mesh, member, pubkey) = (&self.mesh_id, &self.member_id, self.pubkey());
        json!({
            "type": "hello", "meshId": mesh, "memberId": member, "pubkey": pubkey, "sessionId": session,
            "pid": std::process::id(), "cwd": "/", "timestamp": timestamp_ms,
            "signature": self.sign(&format!("{mesh}|{member}|{pubkey}|{timestamp_ms}")),
        })
    }
}

pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// An open socket before any hello.
pub async fn dial(url: &str) -> Socket {
    try_dial(url).await.unwrap_or_else(|error| panic!("cannot reach {url}: {error}"))
}

async fn try_dial(url: &str) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    connect_async_with_config(url, Some(limits), true).await.map(|(socket, _)| socket)
}

/// Sends one text and collects what comes until the broker closes or `frames` texts arrived.
pub async fn exchange(socket: &mut Socket, text: String, frames: usize) -> (Vec<Value>, Option<CloseFrame>) {
    socket.send(Message::text(text)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < frames {
        match timeout(PATIENCE, socket.next()).await.expect("an answer in time") {
            Some(Ok(Message::Text(text))) => seen.push(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(frame))) => return (seen, frame),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return (seen, None),
        }
    }
    (seen, None)
}

#[derive(Default)]
struct Waiters {
    by_request: HashMap<String, mpsc::UnboundedSender<Value>>,
    next: u64,
    is_closed: bool,
}

/// A connection that has said hello.
pub struct Peer {
    write: AsyncMutex<SplitSink<Socket, Message>>,
    waiters: Arc<Mutex<Waiters>>,
    events: AsyncMutex<mpsc::UnboundedReceiver<Value>>,
    pub ack: Value,
    _reader: JoinSet<()>,
}

/// Frames that answer one request.
pub struct Answers(mpsc::UnboundedReceiver<Value>);

impl Answers {
    /// The next frame; `None` when the socket ended.
    pub async fn next(&mut self) -> Option<Value> {
        timeout(PATIENCE, self.0.recv()).await.expect("an answer in time")
    }

    /// Skips to the terminal status of a deploy, update, start, stop … (or its `error` frame).
    pub async fn verdict(&mut self) -> Value {
        loop {
            // As long as a command may take: between two frames a registry may be slow.
            let frame = timeout(PATIENCE * 5, self.0.recv()).await.expect("a verdict in time");
            let frame = frame.expect("a verdict before the socket ends");
            let is_status = frame["type"] == "mcp_deploy_status";
            let is_last = ["running", "failed", "stopped", "awaiting_consent"]
                .iter()
                .any(|word| frame["status"] == *word);
            if frame["type"] == "error" || (is_status && is_last) {
                return frame;
            }
        }
    }
}

impl Peer {
    pub async fn connect(url: &str, identity: &Identity) -> Self {
        Self::try_connect(url, identity).await.unwrap_or_else(|refusal| panic!("no hello_ack: {refusal}"))
    }

    /// # Errors
    /// The broker's refusal, or why it could not be reached, as text.
    pub async fn try_connect(url: &str, identity: &Identity) -> Result<Self, String> {
        let mut socket = try_dial(url).await.map_err(|error| error.to_string())?;
        let session = format!("tests-{}-{:?}", now_ms(), std::thread::current().id());
        let (frames, _) = exchange(&mut socket, identity.hello(&session, now_ms()).to_string(), 1).await;
        let ack = frames.into_iter().next().ok_or("closed without a word")?;
        if ack["type"] != "hello_ack" {
            return Err(ack.to_string());
        }
        let (write, read) = socket.split();
        let (events_in, events) = mpsc::unbounded_channel();
        let waiters = Arc::new(Mutex::new(Waiters::default()));
        let mut reader = JoinSet::new();
        reader.spawn(read_frames(read, Arc::clone(&waiters), events_in));
        let (write, events) = (AsyncMutex::new(write), AsyncMutex::new(events));
        Ok(Self { write, waiters, events, ack, _reader: reader })
    }

    /// Sends `{type, _reqId, ...fields}` and gives the frames that answer.
    pub async fn ask(&self, kind: &str, fields: Value) -> Answers {
        self.ask_with_id(kind, fields).await.1
    }

    pub async fn ask_with_id(&self, kind: &str, mut fields: Value) -> (String, Answers) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let id = {
            let mut waiters = self.waiters.lock().unwrap();
            waiters.next += 1;
            let id = format!("r{}", waiters.next);
            if !waiters.is_closed {
                waiters.by_request.insert(id.clone(), sender);
            }
            id
        };
        fields["type"] = kind.into();
        fields["_reqId"] = id.as_str().into();
        // A socket that is gone shows as the end of the answers.
        let _ = self.send_text(fields.to_string()).await;
        (id, Answers(receiver))
    }

    /// # Errors
    /// When the socket is gone.
    pub async fn send_text(&self, text: String) -> Result<(), String> {
        self.write.lock().await.send(Message::text(text)).await.map_err(|error| error.to_string())
    }

    /// One request, one frame back.
    pub async fn request(&self, kind: &str, fields: Value) -> Value {
        self.ask(kind, fields).await.next().await.expect("an answer before the socket ends")
    }

    /// The whole `mcp_call_result`.
    pub async fn call(&self, server: &str, tool: &str, args: Value) -> Value {
        self.request("mcp_call", json!({ "serverName": server, "toolName": tool, "args": args })).await
    }

    /// The text of a successful call.
    pub async fn call_text(&self, server: &str, tool: &str, args: Value) -> String {
        let answer = self.call(server, tool, args).await;
        assert!(answer["result"].is_object(), "{server} {tool}: {answer}");
        crate::fixture::text(&answer["result"])
    }

    /// The living process of a service, woken if it slept, by its number outside the jail: inside it is always the second.
    pub async fn pid_of(&self, server: &str) -> i32 {
        self.call_text(server, "version", serde_json::json!({})).await;
        crate::eventually("a living process is shown", async || {
            let status = self.request("mcp_status", serde_json::json!({ "server_name": server })).await;
            let pid = i32::try_from(status["service"]["pid"].as_i64()?).ok()?;
            crate::processes::is_alive(pid).then_some(pid)
        })
        .await
    }

    /// Waits for a system event about this service; others are dropped on the way.
    pub async fn event(&self, event: &str, name: &str) -> Value {
        let mut events = self.events.lock().await;
        loop {
            let push = timeout(PATIENCE, events.recv()).await;
            let push =
                push.unwrap_or_else(|_| panic!("no {event} of {name} came")).expect("the socket is open");
            if push["event"] == event && push["eventData"]["name"] == name {
                return push["eventData"].clone();
            }
        }
    }

    /// Every event that has arrived by now, in order. Answers and events share one ordered socket, so what the broker
    /// sent before its answer to a request made here is among them.
    pub async fn events_so_far(&self) -> Vec<Value> {
        self.request("list_peers", json!({})).await;
        let mut events = self.events.lock().await;
        std::iter::from_fn(|| events.try_recv().ok()).collect()
    }

    /// Waits until the broker ends the connection.
    pub async fn closed(&self) {
        let mut events = self.events.lock().await;
        let ended = async { while events.recv().await.is_some() {} };
        timeout(PATIENCE, ended).await.expect("the broker closes the socket");
    }
}

async fn read_frames(
    mut read: SplitStream<Socket>,
    waiters: Arc<Mutex<Waiters>>,
    events: mpsc::UnboundedSender<Value>,
) {
    while let Some(Ok(message)) = read.next().await {
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).expect("every frame is JSON");
        let waiter =
            frame["_reqId"].as_str().and_then(|id| waiters.lock().unwrap().by_request.get(id).cloned());
        match waiter {
            // Whoever asked may have stopped listening.
            Some(waiter) => drop(waiter.send(frame)),
            None => drop(events.send(frame)),
        }
    }
    let mut waiters = waiters.lock().unwrap();
    waiters.is_closed = true;
    waiters.by_request.clear();
}
