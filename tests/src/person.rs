//! A person with a terminal: the real `claudemesh` binary with a configuration folder of their own.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use ed25519_dalek::SigningKey;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::peer::{Identity, PATIENCE, Peer};
use crate::world::claudemesh;

#[derive(Clone)]
pub struct Person {
    pub name: String,
    /// `CLAUDEMESH_CONFIG_DIR`.
    pub config: PathBuf,
    /// `HOME`; inside the world's directory.
    pub home: PathBuf,
}

/// A command that failed.
#[derive(Debug)]
pub struct Refusal {
    pub exit: i32,
    /// The stable code.
    pub code: String,
    /// All that was printed for people, or the whole JSON document.
    pub text: String,
}

impl Person {
    /// A command that will run as this person.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = claudemesh(&self.home, &self.config);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        // Installing from a registry on a busy machine is the longest thing that a command waits for.
        timeout(PATIENCE * 5, self.command(args).output()).await.expect("the command ends").unwrap()
    }

    /// Runs a command that must work, with this on its stdin.
    pub async fn fed<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &[u8]) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).await.unwrap();
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{} fed a command: {}\n{out}\n{err}", self.name, output.status);
        out
    }

    /// Runs a command that must fail, with this on its stdin, and gives what it said.
    pub async fn fed_refused(&self, args: &[&str], input: &str) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // One that refuses at once reads nothing.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap();
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "{args:?} worked: {out}");
        format!("{out}{err}")
    }

    /// Runs a command that must work, and gives its stdout.
    pub async fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = self.run(&args).await;
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{} ran {args:?}: {}\n{out}\n{err}", self.name, output.status);
        out
    }

    /// Runs a command with `--json` that must work.
    pub async fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let args = with_json(args);
        let text = self.ok(&args).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} printed no JSON ({e}): {text}"))
    }

    /// Runs a command with `--json` that must fail.
    pub async fn refused<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Refusal {
        let args = with_json(args);
        let output = self.run(&args).await;
        let (out, err) = texts(&output);
        assert!(!output.status.success(), "{args:?} worked: {out}");
        let document = [&out, &err].into_iter().find_map(|text| {
            let start = text.find("{\"error\"").or_else(|| text.find('{'))?;
            serde_json::from_str::<Value>(text[start..].trim()).ok()
        });
        let document = document.unwrap_or_else(|| panic!("{args:?} failed without JSON:\n{out}\n{err}"));
        let code = document["error"]["code"].as_str().unwrap_or_default().to_owned();
        Refusal { exit: output.status.code().expect("an exit code"), code, text: document.to_string() }
    }

    pub fn document(&self) -> Value {
        let text = std::fs::read_to_string(self.config.join("config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub fn identity(&self) -> Identity {
        let mesh = &self.document()["meshes"][0];
        let text = |field: &str| mesh[field].as_str().unwrap().to_owned();
        let secret = hex::decode(text("secretKey")).unwrap();
        let key = SigningKey::from_bytes(secret[..32].try_into().unwrap());
        Identity { mesh_id: text("meshId"), member_id: text("memberId"), key }
    }

    pub fn broker_url(&self) -> String {
        self.document()["meshes"][0]["brokerUrl"].as_str().unwrap().to_owned()
    }

    pub async fn peer(&self) -> Peer {
        Peer::connect(&self.broker_url(), &self.identity()).await
    }
}

fn with_json<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Vec<std::ffi::OsString> {
    // In front: everything behind `--` belongs to the hosted server.
    let rest = args.into_iter().map(|arg| arg.as_ref().to_owned());
    std::iter::once("--json".into()).chain(rest).collect()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
