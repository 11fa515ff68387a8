//! The hostile servers with no jail at all, beside their victim: as uid 1000 where the tests are root's.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{fixture, processes};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{NODE, PYTHON, is_root};

const PATIENCE: Duration = Duration::from_secs(120);
const CANARY: &str = include_str!("../../fixtures/hostile/canary.py");
const SECRET: &str = "CANARY-0123456789abcdef";

pub struct Bare {
    dir: TempDir,
    victim: Child,
    targets: Value,
}

impl Bare {
    pub async fn start() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("claudemesh-bare-").tempdir().unwrap();
        for (name, files) in [("python", &PYTHON), ("node", &NODE)] {
            fixture::write_tree(&dir.path().join(name), files);
        }
        fixture::write_tree(dir.path(), &[("canary.py", CANARY)]);
        let mode = std::fs::Permissions::from_mode;
        std::fs::set_permissions(dir.path(), mode(0o755)).unwrap();
        // Only these: a server that can move its own code away ends the test.
        for place in ["vault", "home"] {
            std::fs::create_dir(dir.path().join(place)).unwrap();
            std::fs::set_permissions(dir.path().join(place), mode(0o777)).unwrap();
        }
        let script = dir.path().join("canary.py");
        let vault = dir.path().join("vault");
        let mut command =
            ordinary(&["/usr/bin/python3", script.to_str().unwrap(), vault.to_str().unwrap(), SECRET]);
        command.env("SECRET", SECRET);
        let mut victim = command.spawn().unwrap();
        let mut lines = BufReader::new(victim.stdout.as_mut().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("the victim is ready").unwrap().unwrap();
        let planted: Value = serde_json::from_str(&line).unwrap();
        std::fs::write(vault.join("bait-of-the-test"), "bait").unwrap();
        let targets = json!({
            "victims": [planted["pid"]], "files": planted["files"], "dirs": planted["dirs"], "tcp": [planted["tcp"]],
            "udp": planted["udp"], "outer": [planted["outer"]], "path_sockets": [planted["path_socket"]],
            "abstracts": [planted["abstract"]], "shared": planted["shared"], "shm_key": planted["shm_key"],
            "shm_id": planted["shm_id"], "bomb": 150,
        });
        Self { dir, victim, targets }
    }

    /// The scenarios in which this server got something.
    pub async fn leaks(&self, server: &str) -> BTreeSet<String> {
        let file = self.dir.path().join(server).join(if server == "node" { "index.js" } else { "server.py" });
        let program = if server == "node" { "node" } else { "/usr/bin/python3" };
        let mut command = ordinary(&[program, file.to_str().unwrap()]);
        command.env("HOME", self.dir.path().join("home"));
        let mut process = command.spawn().unwrap();
        let params = json!({ "name": "attack_all", "arguments": { "targets": self.targets } });
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        let stdin = process.stdin.as_mut().unwrap();
        stdin.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(process.stdout.as_mut().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("verdicts in time").unwrap().unwrap();
        process.kill().await.unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        let verdicts: Vec<Value> = serde_json::from_str(&fixture::text(&answer["result"])).unwrap();
        let leaked = verdicts.into_iter().filter(|verdict| verdict["leaked"] == true);
        leaked.map(|verdict| verdict["scenario"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn end(mut self) {
        drop(self.victim.stdin.take());
        timeout(PATIENCE, self.victim.wait()).await.expect("the victim ends").unwrap();
        let left = processes::of(self.dir.path());
        left.iter().for_each(|found| processes::kill_9(found.pid));
    }
}

fn ordinary(argv: &[&str]) -> Command {
    let drop_root = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--"];
    let argv: Vec<_> = drop_root.into_iter().filter(|_| is_root()).chain(argv.iter().copied()).collect();
    let mut command = Command::new(argv[0]);
    let path = "/usr/local/bin:/usr/bin:/bin";
    command.args(&argv[1..]).env_clear().env("PATH", path).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}
