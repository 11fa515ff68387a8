//! The official SDK clients as programs: the drivers of `tests/clients` write down all that a client saw of a server, and two
//! such transcripts are compared item by item.
//!
//! Invariant: nothing is left out of a comparison but what [`without_chance`] lists and what the test names.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::peer::PATIENCE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// `@modelcontextprotocol/sdk` 1.x: the legacy era only.
    TypeScript1,
    /// `@modelcontextprotocol/client` 2.x, told to use the legacy era.
    TypeScript2Legacy,
    /// The same, probing for the modern era first.
    TypeScript2Auto,
    Python1,
    Python2Legacy,
    Python2Auto,
}

/// Where the drivers are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

impl Sdk {
    fn command(self, clients: &Path) -> Command {
        let script = |name: &str| folder().join(name);
        let python = |version: &str, mode: &str| {
            let mut command = Command::new(clients.join(format!("python-{version}/bin/python")));
            command.args(["-W", "ignore"]).arg(script("driver.py")).arg(mode);
            command
        };
        let node = |sdk: &str, mode: &str| {
            let mut command = Command::new("node");
            command.arg(script("driver.mjs")).arg(clients).args([sdk, mode]);
            command
        };
        match self {
            Self::TypeScript1 => node("v1", "legacy"),
            Self::TypeScript2Legacy => node("v2", "legacy"),
            Self::TypeScript2Auto => node("v2", "auto"),
            Self::Python1 => python("1.30.0", "legacy"),
            Self::Python2Legacy => python("2.3.0", "legacy"),
            Self::Python2Auto => python("2.3.0", "auto"),
        }
    }

    /// Plays a scenario of `steps.json` against a server and gives what the client saw, step by step.
    pub async fn transcript(
        self,
        clients: &Path,
        scenario: &str,
        server: &[String],
        env: &[(String, String)],
    ) -> Vec<Value> {
        let mut command = self.command(clients);
        command.arg(scenario).args(server).envs(env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = timeout(PATIENCE * 2, command.output()).await.expect("the client ends").unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?} {server:?}: {}\n{err}", output.status);
        let mut seen: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{self:?} {server:?} wrote no transcript: {error}\n{err}"));
        seen.iter_mut().for_each(without_chance);
        seen
    }
}

/// Takes out what no two runs have in common (times of day and random ids, also inside base64), and the caching hints of results
/// that the modern era demands: a legacy server gives none, so there its proxy must.
fn without_chance(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(calm) = calm(text) {
                *text = calm;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_chance),
        Value::Object(fields) => {
            fields.retain(|name, _| name != "ttlMs" && name != "cacheScope");
            fields.values_mut().for_each(without_chance);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn calm(text: &str) -> Option<String> {
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text).ok();
    let inside =
        decoded.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|it| it.contains("created at"));
    let text = inside.as_deref().unwrap_or(text);
    if let Some((before, _)) = text.split_once("created at ") {
        return Some(format!("{before}created at TIME"));
    }
    let is_uuid = text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    is_uuid.then(|| "UUID".to_owned())
}

/// Every step in which two transcripts differ, as text for people.
pub fn differences(bare: &[Value], hosted: &[Value]) -> Vec<String> {
    assert_eq!(bare.len(), hosted.len(), "the same steps were played");
    let pairs = bare.iter().zip(hosted);
    let unlike = pairs.filter(|(bare, hosted)| bare != hosted);
    unlike
        .map(|(bare, hosted)| format!("{}\n    bare:   {bare}\n    hosted: {hosted}", bare["step"]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_and_random_ids_are_alike_and_everything_else_is_not() {
        let mut one = json!({ "text": "Resource 1: made, created at 9:54:17 PM", "id": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6" });
        let mut two = json!({ "text": "Resource 1: made, created at 21:54:18", "id": "00000000-7dec-11d0-a765-00a0c91e6bf6" });
        without_chance(&mut one);
        without_chance(&mut two);
        assert_eq!(one, two);
        let step = |result: &str| vec![json!({ "step": "a", "result": result })];
        assert!(differences(&step("x"), &step("x")).is_empty());
        assert_eq!(differences(&step("x"), &step("y")).len(), 1);
    }
}
