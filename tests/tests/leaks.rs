//! Marked secrets go through everything that the product does, all roles apart and at their most talkative; then the marks
//! are looked for wherever something was written, sent or shown.
//!
//! A plain `--env` value and a git token may be in two places only: the client's deploy, and what the broker has the runner
//! apply. A secret of the vault: nowhere but in its instance.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::git::{GitHost, TOKEN as GIT_TOKEN};
use tests::scan::{Hit, Marks, Watch};
use tests::tap::{Heard, Tap};
use tests::{Person, eventually, fixture, processes};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// May be in the two frames that carry them.
const PLAIN: [&str; 2] = ["plain", "git token"];
/// Are in a file that is theirs.
const KEYS: [(&str, &str); 4] = [
    ("root key", "broker.key"),
    ("identity", "owner/config.json"),
    // Until the first `up` on a restored mesh.
    ("identity", "restored/first-run.json"),
    ("bo's identity", "Bo/config.json"),
];

/// Values that every way of writing changes.
fn marked(name: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let unique = hex::encode(Sha256::digest(format!("{}/{n}/{}", std::process::id(), tests::peer::now_ms())));
    format!("cm+leak/\"é\\%={name}={}", &unique[..16])
}

fn digest(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

/// Free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

struct Values {
    token: String,
    again: String,
    creds: String,
    bo: String,
    plain: String,
    passphrase: String,
    root: String,
}

/// Two roles with a tap before each, and everything they write in one folder.
struct Stage {
    dir: tempfile::TempDir,
    owner: Person,
    values: Values,
    addr: String,
    public: String,
    clients: Tap,
    runner: Tap,
    /// What commands printed.
    printed: Mutex<Vec<u8>>,
}

impl Stage {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("claudemesh-leaks-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["home", "typed", "cwd"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        let [token, again, creds, bo, plain, passphrase] =
            ["token", "again", "creds", "bo", "plain", "passphrase"].map(marked);
        let root = digest(&marked("root"));
        let values = Values { token, again, creds, bo, plain, passphrase, root };
        std::fs::write(at("broker.key"), &values.root).unwrap();
        std::fs::write(at("database.url"), format!("sqlite:{}", at("broker.db").display())).unwrap();
        let addr = free_address();
        let (clients, tapped) = Tap::on_tcp(addr.clone()).await;
        let runner = Tap::on_unix(at("runner.sock"), &at("tap.sock"));
        let owner = Person { name: "owner".into(), config: at("owner"), home: at("home") };
        let (printed, public) = (Mutex::default(), format!("ws://{tapped}/ws"));
        Self { dir, owner, values, addr, public, clients, runner, printed }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text_at(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// A file that somebody types a secret into; gone before anything is looked for.
    fn typed(&self, name: &str, text: &str) -> String {
        let path = self.at("typed").join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn role(&self, command: &mut Command, log: &str) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.at(log)).unwrap();
        command.env("RUST_LOG", "trace").current_dir(self.at("cwd")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn start_broker(&self) -> Child {
        let tap = format!("unix:{}", self.text_at("tap.sock"));
        let (url, key) = (self.text_at("database.url"), self.text_at("broker.key"));
        let args = [
            ["broker", "--bootstrap=acme"],
            ["--listen", &self.addr],
            ["--runner", &tap],
            ["--public-url", &self.public],
            ["--database-url-file", &url],
            ["--key-file", &key],
        ];
        self.role(&mut self.owner.command(args.as_flattened()), "up.log")
    }

    fn start_runner(&self) -> Child {
        let listen = format!("unix:{}", self.text_at("runner.sock"));
        let _ = std::fs::remove_file(self.at("runner.sock"));
        let data = self.text_at("runner");
        let args = ["runner", "--git-schemes=http", "--listen", &listen, "--data", &data];
        self.role(&mut self.owner.command(args), "runner.log")
    }

    async fn is_ready(&self) {
        let url = format!("http://{}/health/ready", self.addr);
        eventually("the broker is linked with its runner", async || {
            let ready: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            (ready["runner"]["connected"] == true).then_some(())
        })
        .await;
    }

    /// Runs a command whatever comes of it, keeps what it prints, and gives its stdout and whether it worked.
    async fn attempt(&self, person: &Person, args: &[&str], input: &str) -> (bool, String) {
        let mut command = person.command(args);
        let mut child = command.env("RUST_LOG", "trace").stdin(Stdio::piped()).spawn().unwrap();
        // A command that reads nothing may be gone.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        let ended = tokio::time::timeout(tests::peer::PATIENCE, child.wait_with_output());
        let output = ended.await.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap();
        let mut printed = self.printed.lock().unwrap();
        printed.extend([&output.stdout[..], b"\n", &output.stderr, b"\n"].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn fed(&self, person: &Person, args: &[&str], input: &str) -> String {
        let (worked, out) = self.attempt(person, args, input).await;
        assert!(worked, "{} ran {args:?}: {out}\n{}", person.name, self.last_words());
        out
    }

    async fn ok(&self, person: &Person, args: &[&str]) -> String {
        self.fed(person, args, "").await
    }

    fn last_words(&self) -> String {
        let printed = self.printed.lock().unwrap();
        let text = String::from_utf8_lossy(&printed);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    async fn join(&self, name: &str) -> Person {
        let invite: Value =
            serde_json::from_str(&self.ok(&self.owner, &["--json", "invite", "--name", name]).await).unwrap();
        let home = self.at(&format!("home-{name}"));
        std::fs::create_dir(&home).unwrap();
        let person = Person { name: name.into(), config: self.at(name), home };
        self.ok(&person, &["join", invite["link"].as_str().unwrap()]).await;
        person
    }

    async fn serves(&self, person: &Person, name: &str, value: &str) {
        eventually("the service holds its secret", async || {
            let answer = person.peer().await.call(name, "digest", json!({ "name": "TOKEN" })).await;
            (fixture::text(&answer["result"]) == digest(value)).then_some(())
        })
        .await;
    }

    fn marks(&self, bo: &Person) -> Marks {
        let secret =
            |person: &Person| person.document()["meshes"][0]["secretKey"].as_str().unwrap().to_owned();
        let Values { token, again, creds, bo: bos, plain, passphrase, root } = &self.values;
        let (identity, bos_identity) = (secret(&self.owner), secret(bo));
        Marks::new(&[
            ("token", token.as_bytes()),
            ("again", again.as_bytes()),
            ("creds", creds.as_bytes()),
            ("bo", bos.as_bytes()),
            ("plain", plain.as_bytes()),
            ("git token", GIT_TOKEN.as_bytes()),
            ("passphrase", passphrase.as_bytes()),
            ("root key", root.as_bytes()),
            ("identity", identity.as_bytes()),
            ("bo's identity", bos_identity.as_bytes()),
        ])
    }
}

async fn trust(stage: &Stage) {
    let at = format!("unix:{}", stage.text_at("runner.sock"));
    let id = eventually("the runner has its key", async || {
        let (worked, id) = stage.attempt(&stage.owner, &["runner", "id", "--at", &at], "").await;
        worked.then(|| id.trim().to_owned())
    })
    .await;
    eventually("the runner is trusted", async || {
        stage.attempt(&stage.owner, &["runner", "trust", &id], "").await.0.then_some(())
    })
    .await;
}

async fn deploy_all(stage: &Stage, bo: &Person, git: &GitHost) {
    let Values { token, creds, bo: bos, plain, .. } = &stage.values;
    stage.fed(&stage.owner, &["vault", "set", "token"], token).await;
    stage.ok(&stage.owner, &["vault", "set", "creds", "--file", &stage.typed("creds", creds)]).await;
    stage.fed(bo, &["vault", "set", "token"], bos).await;

    let leaky = fixture::write_tree(&stage.at("leaky"), &[("server.py", fixture::LEAKY)]);
    let node = [("index.js", fixture::NODE_KEEPER), ("package.json", fixture::NODE_PACKAGE)];
    let node = fixture::write_tree(&stage.at("node"), &node);
    let keeper = fixture::keeper_folder(&stage.at("keeper"));
    let [leaky, node, keeper] = [leaky, node, keeper].map(|path| path.to_str().unwrap().to_owned());
    let (env, entry) = (stage.typed("env", &format!("PLAIN_TOKEN={plain}\n")), "--env=TOKEN=$vault:token");
    let file = "--env=CREDS=$vault:creds:file:/secrets/creds";
    let named = ["--args=TOKEN", "--args=CREDS", "--args=PLAIN_TOKEN"];
    let owner = &stage.owner;
    let leaks = [&["deploy", "leaky", &leaky, entry, file, "--env-file", &env][..], &named].concat();
    stage.ok(owner, &leaks).await;
    stage.ok(owner, &["deploy", "node", &node, entry, file]).await;
    stage.ok(owner, &["deploy", "each", &keeper, entry, "--run-as=caller", "--mesh-wide"]).await;
    let package = ("package.json", fixture::NODE_PACKAGE);
    git.commit("private/app", &[("index.js", fixture::NODE), package]).await;
    let (url, token) = (git.url("private/app"), stage.typed("git", GIT_TOKEN));
    stage.ok(owner, &["deploy", "private", "--git", &url, "--git-token-file", &token]).await;
    std::fs::remove_dir_all(stage.at("typed")).unwrap();
    stage.ok(bo, &["consent", "each", "--yes"]).await;
}

/// Lets the servers say what they should not, to everybody who can hear it.
async fn let_them_talk(stage: &Stage, bo: &Person) {
    let (owner, Values { token, bo: bos, .. }) = (&stage.owner, &stage.values);
    for name in ["node", "each"] {
        stage.serves(owner, name, token).await;
    }
    stage.serves(bo, "each", bos).await;
    for tool in ["reveal", "say", "notify", "raise", "crash", "say"] {
        let (_, out) = stage.attempt(owner, &["--json", "call", "leaky", tool, "{}"], "").await;
        assert!(tool != "reveal" || out.matches("[secret]").count() > 30, "it did reveal: {out}");
    }
    let reveal = json!({ "name": "TOKEN" });
    stage.attempt(owner, &["call", "node", "fail", &reveal.to_string()], "").await;
    stage.attempt(bo, &["call", "each", "reveal", &reveal.to_string()], "").await;
    for name in ["leaky", "node", "each"] {
        for command in ["logs", "status", "tools", "why"] {
            stage.ok(owner, &[command, name]).await;
            stage.ok(owner, &["--json", command, name]).await;
        }
    }
    let logs = stage.ok(owner, &["logs", "leaky"]).await;
    assert!(logs.contains("it is [secret]") && logs.contains("fatal: cannot log in with"), "{logs}");
    for command in [&["ls"][..], &["vault", "ls"], &["vault", "ledger"], &["runner", "ls"], &["members"]] {
        stage.ok(owner, command).await;
    }
    stage.attempt(owner, &["doctor"], "").await;
}

async fn restart(stage: &Stage, bo: &Person, broker: &mut Child, runner: &mut Child) {
    runner.kill().await.unwrap();
    *runner = stage.start_runner();
    stage.serves(&stage.owner, "node", &stage.values.token).await;
    broker.kill().await.unwrap();
    *broker = stage.start_broker();
    stage.is_ready().await;
    stage.serves(&stage.owner, "node", &stage.values.token).await;
    stage.serves(bo, "each", &stage.values.bo).await;
}

async fn change_everything(stage: &Stage) {
    let (owner, Values { again, passphrase, .. }) = (&stage.owner, &stage.values);
    stage.fed(owner, &["vault", "rotate", "token"], again).await;
    stage.serves(owner, "node", again).await;
    stage.ok(owner, &["key", "rotate"]).await;
    stage.serves(owner, "each", again).await;
    let (file, url, key) =
        (stage.text_at("mesh.backup"), stage.text_at("database.url"), stage.text_at("broker.key"));
    let from = ["backup", &file, "--database-url-file", &url, "--key-file", &key];
    stage.fed(owner, &from, passphrase).await;
    stage.fed(owner, &["restore", &file, "--data", &stage.text_at("restored")], passphrase).await;
    stage.ok(owner, &["stop", "node"]).await;
    stage.ok(owner, &["vault", "rm", "creds"]).await;
}

fn abort(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGABRT).unwrap();
}

/// Ends a process as a fault in it would, where its core would be written.
async fn crash(mut child: Child) {
    abort(child.id().unwrap().cast_signed());
    tokio::time::timeout(tests::peer::PATIENCE, child.wait()).await.expect("it ends").unwrap();
}

/// Instance, broker and runner end as faults would end them.
async fn crash_everything(stage: &Stage, broker: Child, runner: Child) {
    let cwd = stage.at("cwd");
    let cores = || std::fs::read_dir(&cwd).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let mut other = Command::new("sleep");
    crash(other.arg("60").current_dir(&cwd).kill_on_drop(true).spawn().unwrap()).await;
    if cores().is_empty() {
        eprintln!("skipped: this machine writes core files elsewhere or not at all");
    }
    cores().iter().for_each(|core| std::fs::remove_file(core).unwrap());
    let instance = stage.owner.peer().await.pid_of("each").await;
    abort(instance);
    eventually("the instance has ended", async || (!processes::is_alive(instance)).then_some(())).await;
    crash(broker).await;
    crash(runner).await;
    eventually("no process is left", async || processes::of(stage.dir.path()).is_empty().then_some(())).await;
    assert_eq!(cores(), Vec::<PathBuf>::new(), "core files");
}

/// The first line of the request that a hit is in. It may follow a body that ends without a line break.
fn request(heard: &Heard, hit: &Hit) -> String {
    let before = String::from_utf8_lossy(&heard.bytes[..hit.at]);
    let line = before.rfind(" HTTP/1.1\r\n").map_or("", |end| &before[..end]);
    let methods = ["GET /", "PUT /", "POST /", "DELETE /"];
    let start = methods.iter().filter_map(|method| line.rfind(method)).max().unwrap_or_default();
    line[start..].to_owned()
}

/// Where a tap heard marks, and how often: `mark in what`.
fn overheard(tap: &Tap, marks: &Marks) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for heard in tap.heard() {
        let way = if heard.to_server { ">" } else { "<" };
        for message in &heard.messages {
            for hit in marks.find(message) {
                let kind = serde_json::from_slice::<Value>(message).unwrap_or_default()["type"].to_string();
                *found.entry(format!("{} ({}) in {way} {kind}", hit.mark, hit.form)).or_default() += 1;
            }
        }
        // What a web socket's client says is under its masks; its server's words were in a message already.
        let is_socket = !heard.messages.is_empty();
        for hit in marks.find(&heard.bytes).iter().filter(|_| !is_socket) {
            let what = format!("{} ({}) in {way} {}", hit.mark, hit.form, request(&heard, hit));
            *found.entry(what).or_default() += 1;
        }
    }
    found
}

fn is_allowed(find: &str) -> bool {
    let is_plain = PLAIN.iter().any(|mark| find.starts_with(&format!("{mark} (")));
    is_plain && (find.ends_with("> \"mcp_deploy\"") || find.contains("> PUT /v1/services/"))
}

fn nothing_is_in_files(stage: &Stage, marks: &Marks) {
    let is_own = |path: &str, hit: &Hit| {
        KEYS.iter().any(|(mark, file)| hit.mark == *mark && stage.at(file) == Path::new(path))
    };
    let mut own = 0;
    let found: BTreeMap<String, Vec<(String, &str)>> = marks
        .in_files(stage.dir.path())
        .into_iter()
        .map(|(path, hits)| {
            let (known, bad): (Vec<_>, Vec<_>) = hits.into_iter().partition(|hit| is_own(&path, hit));
            own += known.len();
            (path, bad.into_iter().map(|hit| (hit.mark, hit.form)).collect::<Vec<_>>())
        })
        .filter(|(_, bad)| !bad.is_empty())
        .collect();
    assert!(found.is_empty(), "in files: {found:#?}");
    assert!(own >= KEYS.len(), "the scan sees the keys that are there");
}

fn nothing_was_heard(stage: &Stage, marks: &Marks) {
    for (who, tap) in [("clients", &stage.clients), ("the runner", &stage.runner)] {
        let (known, bad): (Vec<_>, Vec<_>) =
            overheard(tap, marks).into_iter().partition(|(find, _)| is_allowed(find));
        assert!(bad.is_empty(), "between broker and {who}: {bad:#?}");
        for mark in PLAIN {
            assert!(
                known.iter().any(|(find, _)| find.starts_with(mark)),
                "the tap hears the {mark}: {known:?}"
            );
        }
    }
}

fn nothing_was_shown(watch: Watch) {
    let (rounds, seen) = watch.end();
    let is_instance = |command: &str| {
        let program = command.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        program.starts_with("python") || program == "node"
    };
    let (own, bad): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|(seen, _)| seen.place == "environ" && is_instance(&seen.command));
    assert!(bad.is_empty(), "seen in /proc: {bad:#?}");
    for mark in ["token", "again", "bo", "plain"] {
        assert!(own.iter().any(|(seen, _)| seen.mark == mark), "{rounds} looks saw the instance with {mark}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marked_secrets_are_nowhere_but_in_their_instances() {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    // Whoever wants no core file must see to it.
    setrlimit(Resource::RLIMIT_CORE, most, most).unwrap();
    client::install_tls();
    let stage = Stage::new().await;
    let git = GitHost::start(stage.at("git")).await;
    let (mut broker, mut runner) = (stage.start_broker(), stage.start_runner());
    stage.is_ready().await;
    let bo = stage.join("Bo").await;
    let marks = stage.marks(&bo);
    let watch = Watch::begin(marks.clone());

    trust(&stage).await;
    deploy_all(&stage, &bo, &git).await;
    let_them_talk(&stage, &bo).await;
    restart(&stage, &bo, &mut broker, &mut runner).await;
    change_everything(&stage).await;
    // Before the end, with a WAL; and after it, with what a crash leaves.
    assert!(stage.at("broker.db-wal").metadata().is_ok_and(|wal| wal.len() > 0));
    let log = std::fs::read_to_string(stage.at("up.log")).unwrap();
    assert!(log.contains(" TRACE ") && log.contains("SELECT"), "it is at its most talkative");
    nothing_is_in_files(&stage, &marks);
    crash_everything(&stage, broker, runner).await;
    nothing_is_in_files(&stage, &marks);

    nothing_was_shown(watch);
    nothing_was_heard(&stage, &marks);
    let printed = marks.find(&stage.printed.lock().unwrap());
    assert!(printed.is_empty(), "printed by commands: {printed:#?}");
    let backup = std::fs::read(stage.at("mesh.backup")).unwrap();
    assert!(
        !backup.windows(4).any(|four| four == b"leak") && !backup.windows(5).any(|five| five == b"token")
    );
}

#[tokio::test]
async fn what_is_planted_is_found() {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    let dir = tempfile::Builder::new().prefix("claudemesh-leaks-").tempdir().unwrap();
    let value = marked("control");
    let marks = Marks::new(&[("control", value.as_bytes())]);
    let quoted = serde_json::to_string(&json!({ "a": value })).unwrap();
    let base64 = |before: &str| STANDARD.encode(format!("{before}{value}."));
    let plants: [Vec<u8>; 9] = [
        format!("x{value}y").into_bytes(),
        base64("").into_bytes(),
        base64("1").into_bytes(),
        base64("22").into_bytes(),
        URL_SAFE_NO_PAD.encode(format!("333{value}")).into_bytes(),
        hex::encode(&value).into_bytes(),
        hex::encode_upper(&value).into_bytes(),
        quoted.into_bytes(),
        b"nothing".to_vec(),
    ];
    for (n, plant) in plants.iter().enumerate() {
        std::fs::create_dir_all(dir.path().join("deep")).unwrap();
        std::fs::write(dir.path().join("deep").join(n.to_string()), plant).unwrap();
    }
    assert_eq!(marks.in_files(dir.path()).len(), plants.len() - 1, "each form, and nothing else");

    let watch = Watch::begin(marks);
    let child = |command: &mut Command| command.kill_on_drop(true).stdin(Stdio::piped()).spawn().unwrap();
    let shown = child(Command::new("sh").args(["-c", "read _", &value]));
    let given = child(Command::new("cat").env("GIVEN", &value));
    eventually("both are seen", async || {
        let seen = watch.seen();
        let sees = |place: &str, program: &str| {
            seen.keys().any(|seen| seen.place == place && seen.command.starts_with(program))
        };
        (sees("cmdline", "sh") && sees("environ", "cat")).then_some(())
    })
    .await;
    watch.end();
    drop((shown, given));
}
