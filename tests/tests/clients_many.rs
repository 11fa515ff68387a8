//! Twenty sessions with ten services each: ten server processes, twenty presences, and what two hundred proxies weigh.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::{Value, json};
use tests::clients::programs;
use tests::peer::PATIENCE;
use tests::{World, eventually, fixture, processes};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

const SESSIONS: usize = 20;
const SERVICES: usize = 10;

/// One `claudemesh mcp --service`, spoken to as a legacy client does.
struct Proxy {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    next: u64,
}

impl Proxy {
    fn start(world: &World, session: usize, service: &str) -> Self {
        let entry = programs::mesh_entry(service, &world.owner, &["--service", service]);
        let mut command = tokio::process::Command::new(&entry.command[0]);
        command
            .args(&entry.command[1..])
            .envs(entry.env)
            .env("CLAUDEMESH_SESSION_ID", format!("session-{session}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines(), next: 1 }
    }

    async fn send(&mut self, message: &Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// Asks and gives the result; notifications in between are not looked at.
    async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.next;
        self.next += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        loop {
            let line = timeout(PATIENCE, self.output.next_line()).await.expect("an answer in time").unwrap();
            let message: Value = serde_json::from_str(&line.expect("the proxy lives")).unwrap();
            if message["id"] == id {
                assert!(message["result"].is_object(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    async fn greet(&mut self) {
        let hello = json!({
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" },
        });
        self.request("initialize", hello).await;
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        let tools = self.request("tools/list", json!({})).await;
        assert!(tools["tools"].as_array().is_some_and(|tools| tools.len() > 5), "{tools}");
    }

    /// The id of the server's process, as it sees it itself.
    async fn server(&mut self) -> String {
        let result = self.request("tools/call", json!({ "name": "pid", "arguments": {} })).await;
        fixture::text(&result)
    }

    async fn end(mut self) {
        drop(self.input);
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the proxy ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// Resident kilobytes of a process: all of them, and its share of those that several have in common.
fn kilobytes(pid: u32) -> (u64, u64) {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (field("Rss:"), field("Pss:"))
}

/// Sessions of the mesh that are online, the one that asks left out.
async fn presences(world: &World) -> BTreeSet<String> {
    let peers = world.owner.peer().await.request("list_peers", json!({})).await;
    let peers = peers["peers"].as_array().unwrap().iter();
    let sessions = peers.map(|peer| peer["sessionId"].as_str().unwrap().to_owned());
    sessions.filter(|session| session.starts_with("session-")).collect()
}

#[tokio::test]
async fn twenty_sessions_share_ten_servers_and_are_twenty_peers() {
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("python"));
        let names: Vec<_> = (0..SERVICES).map(|n| format!("s{n}")).collect();
        for name in &names {
            world.owner.ok(["deploy", name, folder.to_str().unwrap()]).await;
        }
        let mut proxies = Vec::new();
        for session in 0..SESSIONS {
            for name in &names {
                proxies.push((name, Proxy::start(world, session, name)));
            }
        }
        let mut servers = BTreeSet::new();
        for (name, proxy) in &mut proxies {
            proxy.greet().await;
            servers.insert((name.as_str(), proxy.server().await));
        }
        assert_eq!(servers.len(), SERVICES, "one process a service, whoever calls: {servers:?}");
        let is_server = |found: &processes::Found| found.command.contains("server.py");
        let running = processes::of(world.path()).into_iter().filter(is_server);
        assert_eq!(running.count(), SERVICES, "as the system counts them");
        eventually("twenty presences", async || (presences(world).await.len() == SESSIONS).then_some(()))
            .await;

        let weights: Vec<_> = proxies.iter().map(|(_, proxy)| kilobytes(proxy.child.id().unwrap())).collect();
        let (all, shares) = weights.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let count = weights.len() as u64;
        println!(
            "{count} proxies: {} MB resident each, {} MB of their own each, {} MB in all",
            all / count / 1024,
            shares / count / 1024,
            shares / 1024
        );
        for (_, proxy) in proxies {
            proxy.end().await;
        }
        eventually("nobody is left", async || presences(world).await.is_empty().then_some(())).await;
    })
    .await;
}
