//! An MCP client over the pipes of a real `claudemesh mcp …`, line by line. It shares no code with the product.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::Person;
use crate::fixture::text;
use crate::peer::PATIENCE;

pub const LEGACY: &str = "2025-11-25";
pub const MODERN: &str = "2026-07-28";
pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";

/// An MCP client over the pipes of a real process.
pub struct Client {
    pub child: Child,
    pub stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    next: u64,
    /// Notifications that nobody has waited for yet.
    pub heard: Vec<Value>,
    /// What it can do for a server.
    pub capabilities: Value,
    /// How it answers what the server asks: result or error, as members of the answer.
    pub answers: fn(method: &str, params: &Value) -> Value,
}

impl Client {
    /// Starts `claudemesh mcp …` and says nothing yet. Each is a session of its own.
    pub fn start(person: &Person, session: &str, flags: &[&str]) -> Self {
        let mut command = person.command([&["mcp"], flags].concat());
        command.env("CLAUDEMESH_SESSION_ID", session).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines, next: 0, heard: Vec::new(), capabilities: json!({}), answers: refuse }
    }

    /// With the handshake of the legacy era.
    pub async fn legacy(person: &Person, session: &str, flags: &[&str]) -> Self {
        let mut client = Self::start(person, session, flags);
        let about = client.initialize().await;
        assert_eq!(about["protocolVersion"], LEGACY);
        client
    }

    pub async fn initialize(&mut self) -> Value {
        let params = json!({ "protocolVersion": LEGACY, "capabilities": self.capabilities, "clientInfo": { "name": "t", "version": "1" } });
        let about = self.request("initialize", params).await;
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        about
    }

    pub async fn send(&mut self, message: &Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// A line as it is, whatever it is.
    pub async fn raw(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        self.stdin.write_all(b"\n").await.unwrap();
    }

    pub async fn raw_line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("the server says something");
        line.unwrap().expect("the server is there")
    }

    pub async fn line(&mut self) -> Value {
        let line = self.raw_line().await;
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}"))
    }

    /// The whole answer.
    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        loop {
            let line = self.line().await;
            if line["method"].is_string() && !line["id"].is_null() {
                let mut answer = (self.answers)(line["method"].as_str().unwrap(), &line["params"]);
                answer["jsonrpc"] = "2.0".into();
                answer["id"] = line["id"].clone();
                self.send(&answer).await;
            } else if line["id"] == id {
                return line;
            }
            self.heard.push(line);
        }
    }

    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    pub async fn call(&mut self, tool: &str, args: Value) -> Value {
        self.request("tools/call", json!({ "name": tool, "arguments": args })).await
    }

    /// The text of a call that must work.
    pub async fn says(&mut self, tool: &str, args: Value) -> String {
        let result = self.call(tool, args).await;
        assert_ne!(result["isError"], true, "{tool}: {result}");
        text(&result)
    }

    /// The text of a call that must be refused.
    pub async fn refuses(&mut self, tool: &str, args: Value) -> String {
        let result = self.call(tool, args).await;
        assert_eq!(result["isError"], true, "{tool}: {result}");
        text(&result)
    }

    /// The next notification of this method that `fits`; those before it are dropped.
    pub async fn hears(&mut self, method: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut heard: std::collections::VecDeque<Value> = std::mem::take(&mut self.heard).into();
        loop {
            let line = match heard.pop_front() {
                Some(line) => line,
                None => self.line().await,
            };
            if line["method"] == method && fits(&line["params"]) {
                self.heard = heard.into();
                return line["params"].clone();
            }
        }
    }

    /// A request of the modern era; the whole answer.
    pub async fn ask_modern(&mut self, method: &str, mut params: Value) -> Value {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" },
        });
        for (key, value) in meta.as_object().unwrap() {
            params["_meta"][key] = value.clone();
        }
        self.ask(method, params).await
    }

    /// A call of the modern era to its end: what the server wants to know is told in further rounds.
    pub async fn call_modern(&mut self, tool: &str, args: Value) -> Value {
        let mut params = json!({ "name": tool, "arguments": args });
        for _ in 0..5 {
            let answer = self.ask_modern("tools/call", params.clone()).await;
            assert!(answer["error"].is_null(), "{tool}: {answer}");
            let result = answer["result"].clone();
            if result["resultType"] != "input_required" {
                return result;
            }
            params["requestState"] = result["requestState"].clone();
            params["inputResponses"] = json!({});
            for (key, asked) in result["inputRequests"].as_object().unwrap() {
                let answer = (self.answers)(asked["method"].as_str().unwrap(), &asked["params"]);
                params["inputResponses"][key] = answer["result"].clone();
            }
        }
        panic!("{tool} asks for ever");
    }

    pub async fn tools(&mut self) -> Vec<Value> {
        let listed = self.request("tools/list", json!({})).await;
        listed["tools"].as_array().unwrap().clone()
    }

    /// Lists again at each change, until the list is as wanted: a change may be told in several steps.
    pub async fn tools_until(&mut self, what: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        loop {
            let tools = self.tools().await;
            if fits(&tools) {
                return tools;
            }
            eprintln!("waiting for: {what}");
            self.hears(TOOLS_CHANGED, |_| true).await;
        }
    }

    /// As a client leaves: it closes stdin and waits.
    pub async fn leave(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        let status = timeout(PATIENCE, child.wait()).await.expect("the server ends with its client").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// A client that can do nothing for a server.
fn refuse(_: &str, _: &Value) -> Value {
    json!({ "error": { "code": -32601, "message": "Method not found" } })
}
