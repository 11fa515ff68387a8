//! One link a session: the processes that a client starts are one peer, whatever becomes of any of them.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Peer, World, eventually, fixture, processes};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// One `claudemesh mcp --service mine`, spoken to as an old client does.
struct Proxy {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    next: u64,
}

impl Proxy {
    async fn start(world: &World, session: &str) -> Self {
        let mut command = world.owner.command(["mcp", "--service", "mine"]);
        command.env("CLAUDEMESH_SESSION_ID", session).stdin(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut proxy = Self { child, stdin, lines, next: 1 };
        let params =
            json!({"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}});
        proxy.request("initialize", params).await;
        proxy.send(&json!({"jsonrpc":"2.0","method":"notifications/initialized"})).await;
        proxy
    }

    async fn send(&mut self, message: &Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.next;
        self.next += 1;
        self.send(&json!({"jsonrpc":"2.0","id":id,"method":method,"params":params})).await;
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("an answer in time").unwrap();
            let message: Value = serde_json::from_str(&line.expect("it lives")).unwrap();
            if message["id"] == id && message.get("method").is_none() {
                return message;
            }
        }
    }

    async fn call(&mut self, tool: &str, args: Value) -> Value {
        self.request("tools/call", json!({"name":tool,"arguments":args})).await
    }

    /// What was under way when the link changed hands may fail; the next must not.
    async fn echoes(&mut self, text: &str) {
        for _ in 0..2 {
            let answer = self.call("echo", json!({ "text": text })).await;
            if answer["result"]["content"][0]["text"] == text {
                return;
            }
        }
        panic!("no echo of {text} in two attempts");
    }

    fn pid(&self) -> i32 {
        self.child.id().unwrap().cast_signed()
    }
}

async fn presences(peer: &Peer, session: &str) -> usize {
    let list = peer.request("list_peers", json!({})).await;
    list["peers"].as_array().unwrap().iter().filter(|peer| peer["sessionId"] == session).count()
}

async fn deploy(world: &World) {
    let folder = fixture::python_folder(&world.folder("python"));
    world.owner.ok(["deploy", "mine", folder.to_str().unwrap()]).await;
}

#[tokio::test]
async fn the_processes_of_a_session_are_one_peer_and_outlive_their_link_holder_and_the_broker() {
    World::scene(async |world| {
        deploy(world).await;
        let mut first = Proxy::start(world, "s-one").await;
        // It holds the link: nobody else is there yet.
        first.echoes("first").await;
        let mut others = Vec::new();
        for n in 0..3 {
            let mut other = Proxy::start(world, "s-one").await;
            other.echoes(&format!("other {n}")).await;
            others.push(other);
        }
        let mut apart = Proxy::start(world, "s-two").await;
        apart.echoes("apart").await;
        let peer = world.owner.peer().await;
        assert_eq!((presences(&peer, "s-one").await, presences(&peer, "s-two").await), (1, 1));

        processes::kill_9(first.pid());
        first.child.wait().await.unwrap();
        for (n, other) in others.iter_mut().enumerate() {
            other.echoes(&format!("again {n}")).await;
        }
        assert_eq!(presences(&peer, "s-one").await, 1);
        drop(peer);

        world.kill_9_broker().await;
        world.up().await;
        for (n, other) in others.iter_mut().enumerate() {
            let text = n.to_string();
            eventually("calls work again", async || {
                let answer = other.call("echo", json!({ "text": text })).await;
                (answer["result"]["content"][0]["text"] == text.as_str()).then_some(())
            })
            .await;
        }
        let peer = world.owner.peer().await;
        assert_eq!(presences(&peer, "s-one").await, 1);
        // It is written down once a second at most.
        eventually("the status line shows that the session is back", async || {
            let said =
                world.owner.command(["status-line"]).env("CLAUDEMESH_SESSION_ID", "s-one").output().await;
            let said = String::from_utf8(said.unwrap().stdout).unwrap();
            assert!(said.starts_with("◇ "), "{said}");
            said.contains(" online · ").then_some(())
        })
        .await;

        // Closed stdin is how clients end what they have started.
        for Proxy { mut child, stdin, .. } in others.into_iter().chain([apart]) {
            drop(stdin);
            timeout(PATIENCE, child.wait()).await.expect("it ends with its client").unwrap();
        }
        eventually("the session has left", async || (presences(&peer, "s-one").await == 0).then_some(()))
            .await;
        let said = world.owner.command(["status-line"]).env("CLAUDEMESH_SESSION_ID", "s-one").output().await;
        assert!(String::from_utf8(said.unwrap().stdout).unwrap().ends_with("· offline\n"));
        let run = std::fs::read_dir(world.owner.config.join("run")).unwrap();
        assert_eq!(run.count(), 0, "neither lock nor socket nor status is left");
    })
    .await;
}
