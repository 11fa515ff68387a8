//! A real runner process with its own directory, and a broker's view of it.

#![allow(dead_code, reason = "each test target uses a part")]

pub mod broker;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

pub const SOON: Duration = Duration::from_secs(60);
const MESH: &str = "mesh000000000000000000000000000A";

pub struct World {
    pub dir: TempDir,
    settings: Vec<String>,
    env: Vec<(String, String)>,
    runner: Option<Child>,
    http: Option<SendRequest<Full<Bytes>>>,
    archive: String,
    generation: AtomicI64,
}

impl World {
    pub async fn start(settings: &[&str]) -> Self {
        Self::start_with(settings, &[]).await
    }

    /// As [`World::start`], with these variables in the runner's environment.
    pub async fn start_with(settings: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("runner-test-").tempdir().expect("a directory");
        let settings = settings.iter().map(|&s| s.to_owned()).collect();
        let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let archive = String::new();
        let generation = AtomicI64::new(1);
        let mut world = Self { dir, settings, env, runner: None, http: None, archive, generation };
        world.run().await;
        world.archive = world.upload(&fixture()).await;
        world
    }

    /// An archive with this as its program; its name.
    pub async fn upload(&self, program: &[u8]) -> String {
        let other = br#"process.env.OTHER = "entry"; await import("./awkward.mjs");"#;
        self.upload_files(&[("awkward.mjs", program), ("other.mjs", other)]).await
    }

    /// An archive of these; its name.
    pub async fn upload_files(&self, files: &[(&str, &[u8])]) -> String {
        let bytes = archive_of(files);
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let (status, _) = self.send(Method::PUT, &format!("/v1/blobs/{sha256}"), bytes).await;
        assert_eq!(status, StatusCode::CREATED);
        sha256
    }

    /// Starts the runner's process and connects.
    pub async fn run(&mut self) {
        let (data, socket) = (self.dir.path().join("data"), self.socket());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log"));
        let child = Command::new(env!("CARGO_BIN_EXE_runner-dev"))
            .args([&data, &socket])
            .args(&self.settings)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("the runner starts");
        self.runner = Some(child);
        self.http = Some(connect(&socket).await);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    pub fn runner_pid(&self) -> i32 {
        self.runner.as_ref().expect("running").id().cast_signed()
    }

    pub fn signal_runner(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.runner_pid()), signal).expect("it is there");
    }

    /// Waits until the runner's process has ended.
    pub async fn runner_ended(&mut self) -> std::process::ExitStatus {
        let mut child = self.runner.take().expect("running");
        self.http = None;
        let waiting = tokio::task::spawn_blocking(move || child.wait().expect("waits"));
        timeout(SOON, waiting).await.expect("it ends in time").expect("no panic")
    }

    pub async fn request(&self, method: Method, path: &str, body: Bytes) -> Response<Incoming> {
        let mut http = self.http.clone().expect("connected");
        let request = Request::builder().method(method).uri(format!("http://runner{path}"));
        let request = request.body(Full::new(body)).expect("a request");
        timeout(SOON, http.send_request(request)).await.expect("in time").expect("answered")
    }

    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> (StatusCode, Value) {
        let response = self.request(method, path, body).await;
        let status = response.status();
        let body =
            timeout(SOON, response.into_body().collect()).await.expect("in time").expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub fn path(&self, name: &str, rest: &str) -> String {
        format!("/v1/services/{MESH}/{name}{rest}")
    }

    /// What a broker sends; change it before applying.
    pub fn wish(&self, args: &[&str]) -> Value {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        json!({
            "generation": generation, "proven": false, "secrets": {"env": {}},
            "spec": {
                "source": {"type": "archive", "sha256": self.archive, "format": "tar_gz", "label": "awkward"},
                "runtime": "node", "entry": "awkward.mjs", "args": args,
            },
        })
    }

    pub async fn apply(&self, name: &str, wish: &Value) -> (StatusCode, Value) {
        self.send(Method::PUT, &self.path(name, ""), Bytes::from(wish.to_string())).await
    }

    /// Applies and waits until the generation is ready or failed.
    pub async fn deploy(&self, name: &str, wish: &Value) -> Value {
        let (status, _) = self.apply(name, wish).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let generation = wish["generation"].clone();
        self.until(name, |report| {
            let of = |slot: &str| Some(&report[slot]).filter(|g| g["generation"] == generation).cloned();
            let found = of("candidate").or_else(|| of("serving"))?;
            matches!(found["phase"].as_str(), Some("ready" | "failed")).then_some(found)
        })
        .await
    }

    /// Watches the reports of a service until `look` finds something.
    pub async fn until<T>(&self, name: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let mut events = self.stream(Method::GET, "/v1/events", Bytes::new()).await;
        let deadline = Instant::now() + SOON;
        let mut last = Value::Null;
        loop {
            let event = tokio::time::timeout_at(deadline, events.next()).await;
            let event = event
                .unwrap_or_else(|_| panic!("still {last} after {SOON:?}"))
                .expect("the stream stays open");
            if event["report"]["service"]["name"] == json!(name) {
                if let Some(found) = look(&event["report"]) {
                    return found;
                }
                last = event["report"].clone();
            }
        }
    }

    pub async fn phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, |report| Some(&report["serving"]).filter(|g| g["phase"] == json!(phase)).cloned())
            .await
    }

    pub async fn stream(&self, method: Method, path: &str, body: Bytes) -> Lines {
        let response = self.request(method, path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines { body: response.into_body(), rest: Vec::new() }
    }

    /// A tool call without events: its one line.
    pub async fn call(&self, name: &str, tool: &str, args: Value) -> Value {
        self.call_within(name, tool, args, 30_000).await
    }

    pub async fn call_within(&self, name: &str, tool: &str, args: Value, deadline_ms: u64) -> Value {
        let rpc = json!({"method": "tools/call", "deadline_ms": deadline_ms,
                         "params": {"name": tool, "arguments": args}});
        let (status, line) =
            self.send(Method::POST, &self.path(name, "/rpc"), Bytes::from(rpc.to_string())).await;
        assert_eq!(status, StatusCode::OK, "{line}");
        line
    }

    /// The text that a tool answered.
    pub async fn text(&self, name: &str, tool: &str, args: Value) -> String {
        let line = self.call(name, tool, args).await;
        line["result"]["content"][0]["text"]
            .as_str()
            .unwrap_or_else(|| panic!("no text in {line}"))
            .to_owned()
    }

    pub async fn remove(&self, name: &str) -> StatusCode {
        self.send(Method::DELETE, &self.path(name, ""), Bytes::new()).await.0
    }

    /// Processes whose command line or environment names this world's directory, but for the runner itself.
    pub fn processes(&self) -> HashMap<i32, String> {
        let marker = self.dir.path().to_str().expect("plain path").to_owned();
        let runner = self.runner.as_ref().map(|child| child.id().cast_signed());
        let mut found = HashMap::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let all = [read("cmdline"), read("environ")].concat();
            if Some(pid) != runner && String::from_utf8_lossy(&all).contains(&marker) {
                found.insert(pid, String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
            }
        }
        found
    }

    /// Waits until no process of a service is left: after a kill of the runner nobody announces it.
    pub async fn no_processes(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.runner.take() {
            // SIGTERM, so that it takes its services along; the jails end with it in any case.
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("runner's log:\n{log}");
        }
    }
}

/// JSON lines of a response.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).expect("a JSON line"));
            }
            let frame = timeout(SOON, self.body.frame()).await.expect("in time")?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

async fn connect(socket: &Path) -> SendRequest<Full<Bytes>> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Ok(stream) = UnixStream::connect(socket).await {
            let done =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            if let Ok((mut send, connection)) = done {
                tokio::spawn(connection);
                let health = Request::get("http://runner/health").body(Full::default()).expect("a request");
                // A child of a runner that was killed may hold its socket for a moment, and nobody answers there.
                if matches!(timeout(SOON, send.send_request(health)).await, Ok(Ok(_))) {
                    return send;
                }
            }
        }
        assert!(Instant::now() < deadline, "the runner does not listen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The program of [`World::wish`].
pub fn fixture() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/awkward.mjs")).expect("there")
}

fn archive_of(files: &[(&str, &[u8])]) -> Bytes {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    for (name, bytes) in files {
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).expect("packs");
    }
    Bytes::from(tar.into_inner().expect("packs").finish().expect("packs"))
}
