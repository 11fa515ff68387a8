//! A runner that keeps its word over the real HTTP API: what becomes of a service is in the name of its package.
//!
//! `ok*` is ready at once, `fail*` fails, `weak*` fails where the policy is strict, `hang*` never ends, `clash*` lists two tools of
//! one name.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Path as At, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post, put};
use futures_util::{StreamExt, stream};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tokio::task::{JoinHandle, JoinSet};
use wire::isolation::IsolationReport;
use wire::report::{GenerationReport, Lists, Phase, Reason, ServiceReport};
use wire::runner::{Apply, Event, Health, Progress, Retain, Retained, Rpc, ServiceLists};
use wire::spec::{Pin, ServiceSpec, Source};
use wire::{ErrorCode, Generation, MeshId, Policy, RawJson, ServiceKey, ServiceName, Tier};

use super::PATIENCE;

#[derive(Default)]
struct Held {
    services: BTreeMap<ServiceKey, (ServiceReport, Option<Lists>)>,
    blobs: BTreeSet<String>,
    boot: u32,
}

/// What the runner was asked to do, in order.
#[derive(Default, Clone, Debug)]
pub struct Seen {
    pub applied: Vec<(String, i64, Value)>,
    pub removed: Vec<(String, bool)>,
    pub calls: Vec<String>,
    pub cancelled: usize,
    pub retained: usize,
    /// Of each apply, in order.
    pub specs: Vec<ServiceSpec>,
    pub policies: Vec<Policy>,
}

struct Shared {
    held: Mutex<Held>,
    seen: watch::Sender<Seen>,
    events: broadcast::Sender<String>,
}

pub struct FakeRunner {
    shared: Arc<Shared>,
    socket: PathBuf,
    serving: Option<JoinHandle<()>>,
}

impl FakeRunner {
    pub async fn start(socket: PathBuf) -> Self {
        let shared = Arc::new(Shared {
            held: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
            events: broadcast::Sender::new(1024),
        });
        let mut runner = Self { shared, socket, serving: None };
        runner.restart();
        runner
    }

    /// The process dies, and its children with it.
    pub async fn kill(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        let mut held = self.shared.held();
        held.services.clear();
    }

    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.shared.held().boot += 1;
        let listener = UnixListener::bind(&self.socket).expect("socket");
        self.serving = Some(tokio::spawn(serve(listener, Arc::clone(&self.shared))));
    }

    pub fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    pub async fn until(&self, holds: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| holds(seen))).await;
        match waited {
            Ok(seen) => seen.expect("the runner lives").clone(),
            Err(_) => panic!("the runner saw only {:?}", self.seen()),
        }
    }

    /// Says something about a service that it holds.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut ServiceReport)) {
        let mut held = self.shared.held();
        let (report, _) =
            held.services.iter_mut().find(|(k, _)| k.name.as_str() == name).map(|(_, v)| v).expect("held");
        change(report);
        report.revision += 1;
        let report = report.clone();
        drop(held);
        self.shared.tell(Event { report: Some(report), ..Event::default() });
    }

    pub fn list(&self, name: &str, tools: &[&str]) {
        self.relist(name, |lists| lists.tools = lists_of(lists.generation, tools).tools);
    }

    /// Changes what a service lists, while it runs.
    pub fn relist(&self, name: &str, change: impl FnOnce(&mut Lists)) {
        let mut held = self.shared.held();
        let (key, (report, lists)) =
            held.services.iter_mut().find(|(k, _)| k.name.as_str() == name).expect("held");
        let mut new = lists_of(report.serving.as_ref().expect("serving").generation, &["echo", "slow"]);
        change(&mut new);
        *lists = Some(new.clone());
        let listed = ServiceLists { service: key.clone(), lists: new };
        drop(held);
        self.shared.tell(Event { lists: Some(listed), ..Event::default() });
    }
}

impl Drop for FakeRunner {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no handler panics while it holds the lock")
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(line(&event));
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(note);
    }
}

/// Connections end with this task: a killed process answers nobody.
async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let router = router(shared);
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn router(shared: Arc<Shared>) -> axum::Router {
    axum::Router::new()
        .route("/health", get(health))
        .route("/v1/events", get(events))
        .route("/v1/services/{mesh}/{name}", put(apply).delete(remove))
        .route("/v1/services/{mesh}/{name}/rpc", post(rpc))
        .route("/v1/services/{mesh}/{name}/logs", get(logs))
        .route("/v1/blobs/{sha}", put(put_blob).head(has_blob))
        .route("/v1/artefacts/retain", post(retain))
        .with_state(shared)
}

fn line<T: serde::Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string(value).expect("json");
    text.push('\n');
    text
}

fn key(mesh: &str, name: &str) -> ServiceKey {
    ServiceKey { mesh: MeshId::parse(mesh).expect("mesh"), name: ServiceName::parse(name).expect("name") }
}

pub fn raw(value: Value) -> RawJson {
    serde_json::value::to_raw_value(&value).expect("json")
}

pub fn lists_of(generation: Generation, tools: &[&str]) -> Lists {
    Lists {
        generation,
        protocol: "2025-11-25".into(),
        server_info: raw(json!({"name": "fake", "title": "A fake"})),
        capabilities: raw(json!({"tools": {}})),
        instructions: None,
        tools: tools
            .iter()
            .map(|name| raw(json!({"name": name, "inputSchema": {"type": "object"}})))
            .collect(),
        prompts: vec![],
        resources: vec![],
        resource_templates: vec![],
    }
}

fn at(generation: Generation, phase: Phase, package: &str) -> GenerationReport {
    let pin = Pin {
        kind: "npm".into(),
        name: package.into(),
        version: format!("1.0.{generation}"),
        integrity: "sha512-x".into(),
        artefact: "a".repeat(64),
        lock: "a long lock".into(),
    };
    GenerationReport {
        generation,
        phase,
        reason: None,
        last_fall: None,
        pin: Some(pin),
        restarts: 0,
        ready_since_ms: None,
        pid: None,
        usage: None,
        tier: None,
    }
}

fn failed(generation: Generation, package: &str, code: ErrorCode) -> GenerationReport {
    let message = match code {
        ErrorCode::IsolationUnavailable => "this runner builds no strict jail",
        _ => "it ended before it spoke",
    };
    let reason = Reason { code, message: message.into(), stderr: vec!["no KEY".into()] };
    GenerationReport { reason: Some(reason), ..at(generation, Phase::Failed, package) }
}

fn health_of(held: &Held) -> Health {
    Health {
        build: "test".into(),
        boot: held.boot.to_string(),
        pid: 1,
        uptime_s: 0,
        services: held.services.len(),
        tools: vec!["node 20".into()],
        isolation: IsolationReport { tier: Some(Tier::Strict), primitives: vec![] },
    }
}

async fn health(State(shared): State<Arc<Shared>>) -> axum::Json<Health> {
    axum::Json(health_of(&shared.held()))
}

async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let live = shared.events.subscribe();
    let held = shared.held();
    let mut first = vec![line(&Event { hello: Some(health_of(&held)), ..Event::default() })];
    for (key, (report, lists)) in &held.services {
        first.push(line(&Event { report: Some(report.clone()), ..Event::default() }));
        if let Some(lists) = lists {
            let lists = ServiceLists { service: key.clone(), lists: lists.clone() };
            first.push(line(&Event { lists: Some(lists), ..Event::default() }));
        }
    }
    first.push(line(&Event { synced: true, ..Event::default() }));
    drop(held);
    let later = stream::unfold(live, |mut live| async move { Some((live.recv().await.ok()?, live)) });
    let lines = stream::iter(first).chain(later).map(Ok::<_, Infallible>);
    Body::from_stream(lines).into_response()
}

async fn apply(
    State(shared): State<Arc<Shared>>,
    At((mesh, name)): At<(String, String)>,
    Json(apply): Json<Apply>,
) -> Response {
    let key = key(&mesh, &name);
    let secret = apply.secrets.env.get("KEY").map(|s| s.expose().to_owned());
    let note =
        json!({"pin": apply.pin.as_ref().map(|p| &p.version), "proven": apply.proven, "secret": secret});
    shared.note(|seen| {
        seen.specs.push(apply.spec.clone());
        seen.policies.push(apply.policy);
        seen.applied.push((name.clone(), apply.generation.0, note));
    });
    let package = match &apply.spec.source {
        Source::Npx { package, .. } => package.clone(),
        _ => "ok".into(),
    };
    let mut held = shared.held();
    let entry = held.services.entry(key.clone()).or_insert_with(|| {
        let report = ServiceReport {
            service: key.clone(),
            revision: 0,
            serving: None,
            candidate: None,
            egress: vec![],
        };
        (report, None)
    });
    entry.0.revision += 1;
    let generation = apply.generation;
    match package.get(..2) {
        _ if entry.0.serving.as_ref().is_some_and(|s| s.generation == generation) => entry.0.candidate = None,
        Some("fa") => entry.0.candidate = Some(failed(generation, &package, ErrorCode::StartExited)),
        Some("we") if apply.policy.min_isolation == Tier::Strict => {
            entry.0.candidate = Some(failed(generation, &package, ErrorCode::IsolationUnavailable));
        }
        Some("ha") => entry.0.candidate = Some(at(generation, Phase::Installing, &package)),
        _ => {
            let tools: &[&str] =
                if package.starts_with("clash") { &["echo", "echo"] } else { &["echo", "slow"] };
            entry.0.serving = Some(at(generation, Phase::Ready, &package));
            entry.0.candidate = None;
            entry.1 = Some(lists_of(generation, tools));
        }
    }
    let (report, lists) = entry.clone();
    drop(held);
    let progress =
        Progress { service: key.clone(), generation, step: "install".into(), line: "added 1 package".into() };
    shared.tell(Event { progress: Some(progress), ..Event::default() });
    if let Some(lists) = lists {
        let lists = ServiceLists { service: key, lists };
        shared.tell(Event { lists: Some(lists), ..Event::default() });
    }
    shared.tell(Event { report: Some(report.clone()), ..Event::default() });
    (StatusCode::ACCEPTED, Json(report)).into_response()
}

async fn remove(
    State(shared): State<Arc<Shared>>,
    At((mesh, name)): At<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let key = key(&mesh, &name);
    let purge = query.get("purge").is_some_and(|v| v == "true");
    let held = shared.held().services.remove(&key).is_some();
    if held {
        shared.tell(Event { removed: Some(key), ..Event::default() });
    }
    shared.note(|seen| seen.removed.push((name, purge)));
    StatusCode::NO_CONTENT.into_response()
}

fn failure(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, Json(json!({"code": code, "message": message}))).into_response()
}

/// Counts a call that was dropped before its answer.
struct Cancelled(Arc<Shared>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.note(|seen| seen.cancelled += 1);
    }
}

async fn rpc(
    State(shared): State<Arc<Shared>>,
    At((mesh, name)): At<(String, String)>,
    body: Bytes,
) -> Response {
    let rpc: Rpc = serde_json::from_slice(&body).expect("an rpc");
    if !shared.held().services.contains_key(&key(&mesh, &name)) {
        return failure(StatusCode::NOT_FOUND, ErrorCode::NotFound, "no such service");
    }
    let params = rpc.params.map(|p| p.get().to_owned()).unwrap_or_default();
    shared.note(|seen| seen.calls.push(format!("{} {params}", rpc.method)));
    let asked: Value = serde_json::from_str(&params).unwrap_or_default();
    match asked["name"].as_str() {
        Some("slow") => {
            let guard = Cancelled(shared);
            let never = stream::once(async move {
                let _guard = guard;
                std::future::pending::<Result<String, Infallible>>().await
            });
            Body::from_stream(never).into_response()
        }
        Some("dies") => {
            let error = json!({"code": "instance_lost", "message": "it ended", "stderr": ["key=hunter2"]});
            Body::from(line(&json!({"error": error}))).into_response()
        }
        Some("broken") => {
            let error = json!({"code": -32602, "message": "bad args"});
            Body::from(line(&json!({"error": {"code": "mcp_error", "message": "bad args", "rpc": error}})))
                .into_response()
        }
        _ => {
            let mut text = String::new();
            if rpc.events {
                let note = json!({"method": "notifications/progress", "params": {"progress": 1}});
                text.push_str(&line(&json!({"event": note})));
            }
            text.push_str("{\"result\":{\"content\": [ ],\"n\":1.0,\"_meta\":{\"x\":1e2}}}\n");
            Body::from(text).into_response()
        }
    }
}

async fn logs(Query(query): Query<BTreeMap<String, String>>) -> Response {
    let entry =
        |seq: u64, text: &str| line(&json!({"seq": seq, "at_ms": 1, "stream": "stderr", "text": text}));
    if query.get("follow").is_some_and(|v| v == "true") {
        let lines = stream::iter([entry(1, "one"), entry(2, "two"), entry(3, "three")]);
        let open = lines.chain(stream::pending()).map(Ok::<_, Infallible>);
        return Body::from_stream(open).into_response();
    }
    Body::from(entry(1, "one") + &entry(2, "two")).into_response()
}

async fn put_blob(State(shared): State<Arc<Shared>>, At(sha): At<String>, body: Bytes) -> StatusCode {
    assert!(!body.is_empty());
    shared.held().blobs.insert(sha);
    StatusCode::CREATED
}

async fn has_blob(State(shared): State<Arc<Shared>>, At(sha): At<String>) -> StatusCode {
    if shared.held().blobs.contains(&sha) { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn retain(State(shared): State<Arc<Shared>>, Json(_): Json<Retain>) -> Json<Retained> {
    shared.note(|seen| seen.retained += 1);
    Json(Retained { removed: 0, freed_bytes: 0 })
}

/// Whether the blob has come.
pub fn has_blob_named(runner: &FakeRunner, sha: &str) -> bool {
    runner.shared.held().blobs.contains(sha)
}
