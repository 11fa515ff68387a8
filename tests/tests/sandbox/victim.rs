//! What there is to be stolen and broken beside a hostile server, and whether it was.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{fixture, processes};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::site::Site;

const CANARY: &str = include_str!("../../fixtures/hostile/canary.py");
const PATIENCE: Duration = Duration::from_secs(30);

/// Each place has a secret of its own, so that a leak says where it came from.
pub struct Secrets {
    pub process: String,
    pub environment_of_up: String,
    pub sibling: String,
}

impl Secrets {
    pub fn new() -> Self {
        let fresh = || format!("CANARY-{:016x}", unguessable());
        Self { process: fresh(), environment_of_up: fresh(), sibling: fresh() }
    }

    pub fn all(&self) -> [&str; 3] {
        [&self.process, &self.environment_of_up, &self.sibling]
    }
}

fn unguessable() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::time::Instant::now())
}

/// A process beside `up`, of the same user: its files, sockets, shared memory, environment and arguments are the bait.
pub struct Victim {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    planted: Value,
}

impl Victim {
    pub async fn plant(site: &Site<'_>, secrets: &Secrets) -> Self {
        let script = site.path().join("victim/canary.py");
        std::fs::write(&script, CANARY).unwrap();
        let secret = format!("SECRET={}", secrets.process);
        let vault = site.path().join("victim/vault");
        let argv = [
            "env",
            &secret,
            "/usr/bin/python3",
            script.to_str().unwrap(),
            vault.to_str().unwrap(),
            &secrets.process,
        ];
        let mut command = site.beside(&argv.map(str::to_owned));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Not killed when dropped: the end of its stdin lets it take its files away even when the test has failed.
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("the victim is ready").unwrap();
        let planted = serde_json::from_str(&line.expect("the victim says what it planted")).unwrap();
        Self { child, stdin, lines, planted }
    }

    /// How to find everything. Computed before the hostile server is there, so that none of its own processes is a victim.
    pub fn targets(&self, site: &Site<'_>, sibling: &Value) -> Value {
        let planted = &self.planted;
        let mut victims: Vec<_> =
            processes::of(site.path()).iter().filter_map(|found| site.seen_pid(found.pid)).collect();
        victims.extend(planted["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()));
        let data = site.data();
        let files = [&planted["files"][0], &json!(find(&data, "db")), &json!(data.join("runner.log"))];
        let runner = data.join("runner");
        let dirs =
            [site.path().join("victim/vault"), data.clone(), runner.clone(), site.owner.config.clone()];
        let caches = ["cache", "artefacts", "blobs"].map(|name| runner.join(name));
        bait(dirs.iter().chain(&caches));
        json!({
            "victims": victims, "files": files, "dirs": dirs, "caches": caches,
            "tcp": [planted["tcp"]], "udp": planted["udp"], "outer": [planted["outer"]], "broker": [site.port()],
            "path_sockets": [planted["path_socket"], runner.join("runner.sock")], "abstracts": [planted["abstract"]],
            "shared": planted["shared"], "shm_key": planted["shm_key"], "shm_id": planted["shm_id"], "sibling": sibling,
            "resolvers": resolvers(), "rebind": hostname(), "bomb": 400, "memory_mib": 768, "disk_mib": 32, "cpus": 0.5,
        })
    }

    /// What happened to it so far.
    pub async fn report(&mut self) -> Value {
        self.stdin.write_all(b"\n").await.unwrap();
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("the victim answers").unwrap();
        serde_json::from_str(&line.expect("the victim lives")).unwrap()
    }

    /// Lets it clean up after itself.
    pub async fn leave(mut self) {
        drop(self.stdin);
        let _ = timeout(PATIENCE, self.child.wait()).await.expect("the victim ends");
    }
}

/// The sibling service: deployed as everything else is, with the secret in its environment and its home.
pub async fn sibling(site: &Site<'_>, secrets: &Secrets) -> Value {
    let folder = super::folder_of_python(site);
    let env = format!("--env=TOKEN={}", secrets.sibling);
    site.owner.ok(["deploy", "sibling", &folder, &env]).await;
    let answer = site.owner.peer().await.call("sibling", "plant", json!({ "secret": secrets.sibling })).await;
    let mut planted: Value = serde_json::from_str(&fixture::text(&answer["result"]))
        .unwrap_or_else(|error| panic!("the sibling plants its secret ({error}): {answer}"));
    // Its private /tmp has no path of its own outside: what lies at this path is the attacker's own.
    planted["dirs"].as_array_mut().unwrap().retain(|dir| dir != "/tmp");
    planted
}

const BAIT: &str = "bait-of-the-test";

/// A file that tells the real directory from one that only has its name, to whoever can see it.
fn bait<'a>(dirs: impl Iterator<Item = &'a PathBuf>) {
    for dir in dirs.filter(|dir| dir.is_dir()) {
        std::fs::write(dir.join(BAIT), "bait").unwrap();
        let owner = std::fs::metadata(dir).unwrap();
        std::os::unix::fs::chown(dir.join(BAIT), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// What was written where the bait lies.
pub fn intruders(targets: &Value) -> Vec<PathBuf> {
    let dirs = [&targets["dirs"], &targets["caches"]].into_iter().filter_map(Value::as_array).flatten();
    let entries = dirs.filter_map(|dir| std::fs::read_dir(dir.as_str()?).ok()).flatten().flatten();
    let is_intruder =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intruder"));
    entries.map(|entry| entry.path()).filter(is_intruder).collect()
}

fn find(dir: &std::path::Path, extension: &str) -> Option<std::path::PathBuf> {
    let mut entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|found| found.to_string_lossy().starts_with(extension)))
}

fn resolvers() -> Vec<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver "))
        .map(|rest| rest.trim().to_owned())
        .collect()
}

/// A name that anybody may ask for and that means this machine.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    name.trim().to_lowercase()
}
