//! A workshop in a directory of its own, and what the tests do with the answers.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use runner::cell::Cells;
use runner::prepare::{PrepareError, Prepared, ProgressSink, Workshop, WorkshopConfig};
use runner::{Listen, RunnerConfig};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use wire::isolation::Policy;
use wire::spec::{ArchiveFormat, Pin, ServiceSpec, Source};
use wire::{Secret, Tier};

pub struct Bench {
    pub workshop: Workshop,
    pub cells: Arc<Cells>,
    pub policy: Policy,
    pub lines: Arc<Mutex<Vec<String>>>,
    pub dir: tempfile::TempDir,
}

pub fn spec(source: Source) -> ServiceSpec {
    ServiceSpec::of(source)
}

/// As a runner makes them whose data is in `dir`.
pub fn cells(dir: &Path) -> Arc<Cells> {
    let exe = Path::new(env!("CARGO_BIN_EXE_runner-dev")).to_owned();
    Arc::new(Cells::new(&RunnerConfig::new(dir.join("store"), Listen::Unix(dir.join("socket")), exe)))
}

pub fn npx(package: &str, bin: Option<&str>) -> ServiceSpec {
    spec(Source::Npx { package: package.into(), bin: bin.map(Into::into) })
}

pub fn uvx(package: &str, bin: Option<&str>) -> ServiceSpec {
    spec(Source::Uvx { package: package.into(), bin: bin.map(Into::into) })
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut WorkshopConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = WorkshopConfig::new(dir.path().join("store"));
        config.git_schemes = vec!["https".into(), "http".into()];
        change(&mut config);
        let cells = cells(dir.path());
        let workshop = Workshop::open(config, cells.clone()).await.unwrap();
        workshop.find_tools().await;
        // Whatever this machine can build: which tier that is, the suites of the jail judge.
        let policy = Policy { min_isolation: Tier::Light, min_release_age_s: 0 };
        Self { workshop, cells, policy, lines: Arc::default(), dir }
    }

    /// Whether the tools are there. Missing ones are an error where everything must be tested.
    pub fn has(&self, tools: &[&str]) -> bool {
        let found = self.workshop.known_tools();
        let missing: Vec<_> =
            tools.iter().filter(|t| !found.iter().any(|f| f.starts_with(&format!("{t} ")))).collect();
        if missing.is_empty() {
            return true;
        }
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "missing in CI: {missing:?}");
        println!("skipped: {missing:?} not found");
        false
    }

    pub fn sink(&self) -> ProgressSink {
        let lines = self.lines.clone();
        Arc::new(move |step: &str, line: &str| lines.lock().unwrap().push(format!("{step}: {line}")))
    }

    pub fn said(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub async fn prepare(&self, spec: &ServiceSpec) -> Result<Prepared, PrepareError> {
        self.prepare_with(spec, None, None).await
    }

    pub async fn prepare_with(
        &self,
        spec: &ServiceSpec,
        token: Option<&Secret>,
        pin: Option<&Pin>,
    ) -> Result<Prepared, PrepareError> {
        self.workshop.prepare(spec, token, pin, &self.policy, &self.sink()).await
    }

    pub async fn upload(&self, bytes: Vec<u8>, format: ArchiveFormat) -> ServiceSpec {
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let body = futures_util::stream::iter([Ok::<_, String>(Bytes::from(bytes))]);
        self.workshop.put_blob(&sha256, body).await.unwrap();
        assert!(self.workshop.has_blob(&sha256));
        spec(Source::Archive { sha256, format, label: "test".into() })
    }

    pub async fn zip(&self, files: &[(&str, &str)]) -> ServiceSpec {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, text) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        self.upload(zip.finish().unwrap().into_inner(), ArchiveFormat::Zip).await
    }

    pub fn staging_is_empty(&self) -> bool {
        self.dir.path().join("store/staging").read_dir().unwrap().next().is_none()
    }

    /// Loses the artefact as a damaged disk would, and opens the store anew.
    pub async fn lose_artefacts(&mut self) {
        let store = self.dir.path().join("store/artefacts");
        let status =
            tokio::process::Command::new("chmod").args(["-R", "u+w"]).arg(&store).status().await.unwrap();
        assert!(status.success());
        std::fs::remove_dir_all(&store).unwrap();
        self.reopen().await;
    }

    /// As a restart of the runner does.
    pub async fn reopen(&mut self) {
        let mut config = WorkshopConfig::new(self.dir.path().join("store"));
        config.git_schemes = vec!["https".into(), "http".into()];
        self.workshop = Workshop::open(config, self.cells.clone()).await.unwrap();
        self.workshop.find_tools().await;
    }
}

impl Drop for Bench {
    /// Sealed trees can not be removed by a user who is not root.
    fn drop(&mut self) {
        let _ = std::process::Command::new("chmod").args(["-R", "u+w"]).arg(self.dir.path()).status();
    }
}

/// Starts what was prepared with nothing but its environment, and asks it for its name.
pub async fn server_name(prepared: &Prepared, home: &Path) -> String {
    let mut command = tokio::process::Command::new(&prepared.argv[0]);
    command.args(&prepared.argv[1..]).current_dir(&prepared.cwd).env_clear();
    command.envs(prepared.env.iter().cloned().collect::<HashMap<_, _>>()).env("HOME", home);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let hello = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{hello}\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let answer = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default(); // null: a banner
            if value["id"] == 1 {
                return value["result"]["serverInfo"]["name"].as_str().unwrap_or_default().to_owned();
            }
        }
        panic!("{:?} ended without an answer", prepared.argv)
    });
    let name = answer.await.expect("an answer within a minute");
    child.kill().await.unwrap();
    name
}

pub const NODE_SERVER: &str = r#"
import { createInterface } from 'node:readline';
createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, method } = JSON.parse(line);
  if (method === 'initialize') console.log(JSON.stringify({ jsonrpc: '2.0', id, result: {
    protocolVersion: '2025-06-18', capabilities: {}, serverInfo: { name: NAME, version: '1' } } }));
});
"#;

pub fn node_server(name: &str) -> String {
    NODE_SERVER.replace("NAME", &format!("'{name}'"))
}

pub const PYTHON_SERVER: &str = r#"
import json, sys
def main():
    for line in sys.stdin:
        call = json.loads(line)
        if call.get("method") == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": NAME, "version": "1"}}
            print(json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}), flush=True)
if __name__ == "__main__":
    main()
"#;

pub fn python_server(name: &str) -> String {
    PYTHON_SERVER.replace("NAME", &format!("'{name}'"))
}
