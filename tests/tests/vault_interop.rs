//! One entry, sealed by us and opened by another implementation of HPKE, and the other way round.
//!
//! The other implementation is `tests/interop/entry.mjs` with the npm package @hpke/core, which `scripts/setup.sh test` puts
//! under `.tools/interop`.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use vault::{BoxKey, Signer, entry};
use wire::vault::{EntryKind, VaultEntry, VaultName};
use wire::{MeshId, PublicKey};

const SEED: [u8; 32] = [5; 32];
const PLAINS: [(EntryKind, &[u8]); 4] = [
    (EntryKind::Env, b"ghp_0123456789"),
    (EntryKind::Env, "pässwörd 🔑".as_bytes()),
    (EntryKind::Env, b""),
    (EntryKind::File, b"\0\xff binary \n"),
];

struct Owner(SigningKey, PublicKey);

impl Owner {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&SEED);
        let public = PublicKey::parse(&hex::encode(key.verifying_key().to_bytes())).unwrap();
        Self(key, public)
    }
}

impl Signer for Owner {
    fn public(&self) -> &PublicKey {
        &self.1
    }

    fn sign(&self, text: &str) -> String {
        hex::encode(self.0.sign(text.as_bytes()).to_bytes())
    }
}

fn mesh() -> MeshId {
    MeshId::parse(&"M".repeat(32)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where the other implementation is; `None` says why it can't be had, which CI never accepts.
fn others() -> Option<PathBuf> {
    let folder = root().join(".tools/interop");
    if folder.join("node_modules/@hpke/core").is_dir() {
        return Some(folder);
    }
    let why = "no @hpke/core under .tools/interop: run scripts/setup.sh test";
    assert!(std::env::var("CI").is_err(), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
    None
}

async fn ask(others: &Path, question: &Value) -> Result<Value, String> {
    let path = std::env::var("PATH").unwrap();
    let mut child = tokio::process::Command::new("node")
        .arg(root().join("tests/interop/entry.mjs"))
        .arg(others)
        .env("PATH", format!("{}:{path}", root().join(".tools/bin").display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(question.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output =
        tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn sealed_by_us(key: &BoxKey, kind: EntryKind, plain: &[u8]) -> VaultEntry {
    let name = VaultName::parse("github-token").unwrap();
    let new = entry::NewEntry { mesh: &mesh(), key: &name, version: 3, created_ms: 1_790_000_000_000 };
    entry::seal(&Owner::new(), &new, kind, &key.public(), plain)
}

#[tokio::test]
async fn what_we_seal_another_implementation_opens() {
    let Some(others) = others() else { return };
    let key = BoxKey::generate();
    let question = |entry: &VaultEntry| json!({ "do": "open", "mesh": mesh(), "entry": entry, "private_key": hex::encode(*key.to_bytes()) });
    for (kind, plain) in PLAINS {
        let answer = ask(&others, &question(&sealed_by_us(&key, kind, plain))).await.unwrap();
        assert_eq!(answer, json!({ "plain": STANDARD.encode(plain) }));
    }
    // After a rotation, too; and it looks at what it opens.
    let sealed = sealed_by_us(&BoxKey::from_bytes(&[9; 32]), EntryKind::Env, b"rotated");
    let of = entry::wrap_of(&sealed).unwrap();
    let wrap = entry::rewrap(&BoxKey::from_bytes(&[9; 32]), &key.public(), &mesh(), &of).unwrap();
    let rotated = VaultEntry { wrap: Some(wrap), ..sealed.clone() };
    let answer = ask(&others, &question(&rotated)).await.unwrap();
    assert_eq!(answer, json!({ "plain": STANDARD.encode("rotated") }));
    let older = VaultEntry { version: 2, ..rotated };
    assert!(ask(&others, &question(&older)).await.unwrap_err().contains("the signature does not match"));
    assert!(ask(&others, &question(&sealed)).await.is_err());
}

#[tokio::test]
async fn what_another_implementation_seals_we_open() {
    let Some(others) = others() else { return };
    let key = BoxKey::generate();
    for (kind, plain) in PLAINS {
        let question = json!({
            "do": "seal", "mesh": mesh(), "seed": hex::encode(SEED), "key": "a.b_C-1", "version": 12, "kind": kind,
            "created_ms": 1_790_000_000_000_i64, "public_key": key.public(), "plain": STANDARD.encode(plain),
        });
        let answer = ask(&others, &question).await.unwrap();
        let sealed: VaultEntry = serde_json::from_value(answer["entry"].clone()).unwrap();
        assert_eq!(sealed.owner, *Owner::new().public());
        entry::check(&mesh(), &sealed).unwrap();
        assert_eq!(*entry::open(&key, &mesh(), &sealed).unwrap(), plain);
    }
}
