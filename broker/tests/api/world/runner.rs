//! A runner that keeps its word over the real HTTP API: what becomes of a service is in the name of its package.
//!
//! Secrets it opens as a real one does, and what it may not open waits.
//!
//! `ok*` is ready at once, `fail*` fails, `weak*` fails where the policy is strict, `hang*` never ends, `clash*` lists two tools of
//! one name.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
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
use tokio_util::sync::CancellationToken;
use wire::isolation::IsolationReport;
use wire::report::{GenerationReport, Lists, Phase, Reason, ServiceReport};
use wire::runner::{
    Apply, Event, Health, LISTEN, LISTENING, Listen, Progress, Retain, Retained, Rpc, RpcCall, RpcDown,
    ServiceLists,
};
use wire::spec::{Pin, ServiceSpec, Source};
use wire::vault::{BootKey, Grants, Opening, RunnerVault};
use wire::{ErrorCode, Generation, MeshId, Policy, RawJson, ServiceKey, ServiceName, Tier};

use super::PATIENCE;
use super::vault::FakeVault;

#[derive(Default)]
struct Held {
    services: BTreeMap<ServiceKey, (ServiceReport, Option<Lists>)>,
    /// What each was last told.
    told: BTreeMap<ServiceKey, Apply>,
    blobs: BTreeSet<String>,
    boot: u32,
    vault: FakeVault,
}

/// What the runner was asked to do, in order.
#[derive(Default, Clone, Debug)]
pub struct Seen {
    pub applied: Vec<(String, i64, Value)>,
    pub removed: Vec<(String, bool)>,
    /// Each apply (`true`) and removal, in order.
    pub acts: Vec<(String, bool)>,
    pub calls: Vec<String>,
    /// Service and caller of each call.
    pub called: Vec<(String, Option<wire::PublicKey>)>,
    /// Sessions of the calls.
    pub sessions: BTreeSet<String>,
    /// Service and wishes of each that listened, and how many do not any more.
    pub listened: Vec<(String, Listen)>,
    pub unheard: usize,
    pub cancelled: usize,
    pub retained: usize,
    /// Of each apply, in order.
    pub specs: Vec<ServiceSpec>,
    pub policies: Vec<Policy>,
    /// Service, variable and value of everything that it opened.
    pub opened: Vec<(String, String, String)>,
    pub boot_keys: usize,
    pub granted: usize,
}

struct Shared {
    held: Mutex<Held>,
    seen: watch::Sender<Seen>,
    events: broadcast::Sender<String>,
    /// What services say outside of calls.
    said: broadcast::Sender<(String, Value)>,
}

#[derive(Clone)]
struct Life {
    shared: Arc<Shared>,
    /// Upgraded connections are no part of the task that accepted them.
    ended: CancellationToken,
}

impl axum::extract::FromRef<Life> for Arc<Shared> {
    fn from_ref(life: &Life) -> Self {
        Self::clone(&life.shared)
    }
}

pub struct FakeRunner {
    shared: Arc<Shared>,
    socket: PathBuf,
    serving: Option<JoinHandle<()>>,
    ended: CancellationToken,
}

impl FakeRunner {
    pub async fn start(socket: PathBuf) -> Self {
        let shared = Arc::new(Shared {
            held: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
            events: broadcast::Sender::new(1024),
            said: broadcast::Sender::new(64),
        });
        let mut runner = Self { shared, socket, serving: None, ended: CancellationToken::new() };
        runner.restart();
        runner
    }

    /// The process dies, and its children with it.
    pub async fn kill(&mut self) {
        self.ended.cancel();
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        let mut held = self.shared.held();
        held.services.clear();
        held.told.clear();
        held.vault.forget();
    }

    pub fn with_vault<T>(&self, look: impl FnOnce(&mut FakeVault) -> T) -> T {
        look(&mut self.shared.held().vault)
    }

    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.shared.held().boot += 1;
        let listener = UnixListener::bind(&self.socket).expect("socket");
        self.ended = CancellationToken::new();
        let life = Life { shared: Arc::clone(&self.shared), ended: self.ended.clone() };
        self.serving = Some(tokio::spawn(serve(listener, life)));
    }

    /// A service says something to those who listen.
    pub fn say(&self, name: &str, event: Value) {
        let _ = self.shared.said.send((name.to_owned(), event));
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
        self.ended.cancel();
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

    fn told(&self, key: &ServiceKey, report: &ServiceReport, lists: Option<Lists>) {
        if let Some(lists) = lists {
            let lists = ServiceLists { service: key.clone(), lists };
            self.tell(Event { lists: Some(lists), ..Event::default() });
        }
        self.tell(Event { report: Some(report.clone()), ..Event::default() });
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(note);
    }
}

/// Connections end with this task: a killed process answers nobody.
async fn serve(listener: UnixListener, life: Life) {
    let mut connections = JoinSet::new();
    let router = router(life);
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

fn router(life: Life) -> axum::Router {
    axum::Router::new()
        .route("/health", get(health))
        .route("/v1/events", get(events))
        .route("/v1/services/{mesh}/{name}", put(apply).delete(remove))
        .route("/v1/calls", get(calls))
        .route("/v1/services/{mesh}/{name}/logs", get(logs))
        .route("/v1/blobs/{sha}", put(put_blob).head(has_blob))
        .route("/v1/artefacts/retain", post(retain))
        .route("/v1/vault", get(vault))
        .route("/v1/vault/boot-key", put(boot_key))
        .route("/v1/vault/meshes/{mesh}", put(grants))
        .route("/v1/vault/openings", get(openings))
        .with_state(life)
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
        version: if package == "fixed" { "1.0.0".into() } else { format!("1.0.{generation}") },
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
        seen.acts.push((name.clone(), true));
    });
    let generation = apply.generation;
    let mut held = shared.held();
    held.told.insert(key.clone(), apply);
    let (report, lists) = held.settle(&key, &shared);
    drop(held);
    let progress =
        Progress { service: key.clone(), generation, step: "install".into(), line: "added 1 package".into() };
    shared.tell(Event { progress: Some(progress), ..Event::default() });
    shared.told(&key, &report, lists);
    (StatusCode::ACCEPTED, Json(report)).into_response()
}

impl Held {
    /// What becomes of a service by what it was last told.
    fn settle(&mut self, key: &ServiceKey, shared: &Shared) -> (ServiceReport, Option<Lists>) {
        let apply = self.told[key].clone();
        let generation = apply.generation;
        let package = match &apply.spec.source {
            Source::Npx { package, .. } => package.clone(),
            _ => "ok".into(),
        };
        let (report, listed) = self.services.entry(key.clone()).or_insert_with(|| {
            let service = key.clone();
            (ServiceReport { service, revision: 0, serving: None, candidate: None, egress: vec![] }, None)
        });
        report.revision += 1;
        let mut ready = at(generation, Phase::Ready, &package);
        ready.pin = apply.pin.clone().or(ready.pin);
        let pin = ready.pin.clone().expect("a pin");
        match package.get(..2) {
            _ if report.serving.as_ref().is_some_and(|s| s.generation == generation) => {
                report.candidate = None
            }
            Some("fa") => report.candidate = Some(failed(generation, &package, ErrorCode::StartExited)),
            Some("we") if apply.policy.min_isolation == Tier::Strict => {
                report.candidate = Some(failed(generation, &package, ErrorCode::IsolationUnavailable));
            }
            Some("ha") => report.candidate = Some(at(generation, Phase::Installing, &package)),
            _ => match self.vault.open(key, &apply, &pin) {
                Err(reason) => {
                    let waiting = GenerationReport { phase: Phase::Waiting, reason: Some(reason), ..ready };
                    report.candidate = Some(waiting);
                }
                Ok(values) => {
                    let tools: &[&str] =
                        if package.starts_with("clash") { &["echo", "echo"] } else { &["echo", "slow"] };
                    report.serving = Some(ready);
                    report.candidate = None;
                    *listed = Some(lists_of(generation, tools));
                    let opened = values.into_iter().map(|(name, value)| (key.name.to_string(), name, value));
                    shared.note(|seen| seen.opened.extend(opened));
                }
            },
        }
        (report.clone(), listed.clone())
    }

    /// What waited tries again.
    fn retry(&mut self, shared: &Shared) {
        let waits = |(report, _): &(ServiceReport, _)| {
            report.candidate.as_ref().is_some_and(|one| one.phase == Phase::Waiting)
        };
        let waiting: Vec<_> =
            self.services.iter().filter(|(_, held)| waits(held)).map(|(k, _)| k.clone()).collect();
        for key in waiting {
            let (report, lists) = self.settle(&key, shared);
            shared.told(&key, &report, lists);
        }
    }
}

async fn vault(State(shared): State<Arc<Shared>>) -> Json<RunnerVault> {
    Json(shared.held().vault.describe())
}

async fn boot_key(State(shared): State<Arc<Shared>>, Json(key): Json<BootKey>) -> Response {
    let mut held = shared.held();
    if !held.vault.unlock(key) {
        return failure(StatusCode::CONFLICT, ErrorCode::VaultLocked, "it is another one's");
    }
    shared.note(|seen| seen.boot_keys += 1);
    held.retry(&shared);
    Json(held.vault.describe()).into_response()
}

async fn grants(
    State(shared): State<Arc<Shared>>,
    At(mesh): At<String>,
    Json(grants): Json<Grants>,
) -> Response {
    let mut held = shared.held();
    if !held.vault.hold(MeshId::parse(&mesh).expect("mesh"), &grants) {
        return failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::VaultDamaged, "not to this runner");
    }
    shared.note(|seen| seen.granted += 1);
    held.retry(&shared);
    Json(held.vault.describe()).into_response()
}

async fn openings(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<BTreeMap<String, i64>>,
) -> Json<Vec<Opening>> {
    Json(shared.held().vault.openings(query.get("after").copied().unwrap_or_default()))
}

async fn remove(
    State(shared): State<Arc<Shared>>,
    At((mesh, name)): At<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let key = key(&mesh, &name);
    let purge = query.get("purge").is_some_and(|v| v == "true");
    let mut all = shared.held();
    all.told.remove(&key);
    let held = all.services.remove(&key).is_some();
    drop(all);
    if held {
        // Who listens to it has nothing to hear any more.
        let _ = shared.said.send((name.clone(), Value::Null));
        shared.tell(Event { removed: Some(key), ..Event::default() });
    }
    shared.note(|seen| {
        seen.acts.push((name.clone(), false));
        seen.removed.push((name, purge));
    });
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

async fn calls(State(life): State<Life>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |mut socket| {
        let Life { shared, ended } = life;
        let serving = async {
            while let Some(call) = heard(&mut socket).await {
                let call: RpcCall = serde_json::from_str(&call).expect("a call");
                if serve_call(&shared, &mut socket, call).await.is_none() {
                    return;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = ended.cancelled() => {}
        }
    })
}

async fn heard(socket: &mut WebSocket) -> Option<String> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => return Some(text.as_str().to_owned()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn say(socket: &mut WebSocket, text: impl Into<axum::extract::ws::Utf8Bytes>) -> Option<()> {
    socket.send(Message::Text(text.into())).await.ok()
}

/// `None`: the caller is gone.
async fn serve_call(shared: &Arc<Shared>, socket: &mut WebSocket, call: RpcCall) -> Option<()> {
    let RpcCall { service, rpc } = call;
    if !shared.held().services.contains_key(&service) {
        let error = json!({"code": ErrorCode::NotFound, "message": "no such service"});
        return say(socket, json!({"error": error}).to_string()).await;
    }
    let name = service.name.to_string();
    if rpc.method == LISTEN {
        return listen(shared, socket, &name, &rpc).await;
    }
    let params = rpc.params.map(|p| p.get().to_owned()).unwrap_or_default();
    shared.note(|seen| {
        seen.calls.push(format!("{} {params}", rpc.method));
        seen.called.push((name, rpc.caller));
        seen.sessions.extend(rpc.session);
    });
    let asked: Value = serde_json::from_str(&params).unwrap_or_default();
    match asked["name"].as_str() {
        Some("slow") => {
            let _guard = Cancelled(Arc::clone(shared));
            heard(socket).await.map(drop)
        }
        Some("asks") => {
            assert!(rpc.asks, "nobody would answer");
            let request = json!({"method": "elicitation/create", "params": {"message": "really?"}});
            say(socket, json!({"ask": {"ask": 7, "request": request}}).to_string()).await?;
            let down: RpcDown = serde_json::from_str(&heard(socket).await?).expect("an answer");
            say(socket, json!({"result": {"content": [], "answered": down}}).to_string()).await
        }
        Some("dies") => {
            let error = json!({"code": "instance_lost", "message": "it ended", "stderr": ["key=hunter2"]});
            say(socket, json!({"error": error}).to_string()).await
        }
        Some("broken") => {
            let error = json!({"code": -32602, "message": "bad args"});
            let error = json!({"code": "mcp_error", "message": "bad args", "rpc": error});
            say(socket, json!({"error": error}).to_string()).await
        }
        _ => {
            if rpc.events {
                let note = json!({"method": "notifications/progress", "params": {"progress": 1}});
                say(socket, json!({"event": note}).to_string()).await?;
            }
            say(socket, "{\"result\":{\"content\": [ ],\"n\":1.0,\"_meta\":{\"x\":1e2}}}").await
        }
    }
}

/// Counts a listener that left.
struct Unheard(Arc<Shared>);

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.note(|seen| seen.unheard += 1);
    }
}

async fn listen(shared: &Arc<Shared>, socket: &mut WebSocket, name: &str, rpc: &Rpc) -> Option<()> {
    let wanted = serde_json::from_str(rpc.params.as_deref().map_or("{}", |params| params.get()));
    let _left = Unheard(Arc::clone(shared));
    let mut said = shared.said.subscribe();
    say(socket, json!({"event": {"method": LISTENING}}).to_string()).await?;
    shared.note(|seen| seen.listened.push((name.to_owned(), wanted.expect("wishes"))));
    loop {
        tokio::select! {
            Ok((of, event)) = said.recv() => if of == name {
                if event.is_null() {
                    let error = json!({"code": ErrorCode::NotFound, "message": "it was removed"});
                    return say(socket, json!({"error": error}).to_string()).await;
                }
                say(socket, json!({"event": event}).to_string()).await?;
            },
            _ = heard(socket) => return None,
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
