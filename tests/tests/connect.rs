//! `connect`, `disconnect` and `doctor --fix`: configurations of real clients, changed and given back.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::{Person, world};
use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: [(&str, &str); 6] = [
    ("claude-code", ".claude.json"),
    ("codex", ".codex/config.toml"),
    ("cursor", ".cursor/mcp.json"),
    ("vscode", ".config/Code/User/mcp.json"),
    ("gemini", ".gemini/settings.json"),
    ("opencode", ".config/opencode/opencode.json"),
];

/// A home directory of its own, and nobody's mesh.
struct Home {
    folder: tempfile::TempDir,
    person: Person,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        let person = Person { name: "ana".into(), config: folder.path().join("mesh config"), home };
        Self { folder, person }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.person.home.join(file)
    }

    fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.person.command(args);
        clean(&mut command);
        command
    }

    async fn run(&self, args: &[&str]) -> (Output, String) {
        let output = timeout(PATIENCE, self.command(args).output()).await.expect("it ends").unwrap();
        let text = [&output.stdout[..], b"\n", &output.stderr].concat();
        (output, String::from_utf8(text).unwrap())
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (output, text) = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {text}");
        text
    }

    async fn refused(&self, args: &[&str]) -> String {
        let (output, text) = self.run(args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        text
    }

    /// Every file below the home directory, with what is in it and when it was written.
    fn all(&self) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![self.folder.path().to_owned()];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let meta = entry.metadata().unwrap();
                let bytes = if meta.is_dir() { Vec::new() } else { fs::read(entry.path()).unwrap() };
                if meta.is_dir() {
                    waiting.push(entry.path());
                }
                found.insert(entry.path(), (bytes, meta.modified().unwrap()));
            }
        }
        found
    }
}

/// Whoever runs the tests may have their clients elsewhere.
fn clean(command: &mut Command) {
    for name in ["CLAUDE_CONFIG_DIR", "CODEX_HOME", "GEMINI_CLI_HOME", "XDG_CONFIG_HOME", "CLAUDEMESH_MESH"] {
        command.env_remove(name);
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

const CLAUDE: &str = "{\n  \"numStartups\": 3,\n  \"mcpServers\": {},\n  \"projects\": {\"/x\": {\"mcpServers\": {\"a\": {\"command\": \
                      \"npx\", \"env\": {\"A_TOKEN\": \"hunter2-hunter2\"}}}}}\n}\n";
const CODEX: &str = "# mine\nmodel = \"m\"\n\n[mcp_servers.a]\ncommand = \"x\" # why\n";
const OPENCODE: &str =
    "{\n\t// mine\n\t\"mcp\": {\n\t\t\"a\": {\"type\": \"remote\", \"url\": \"https://a.b\"},\n\t},\n}\n";

#[tokio::test]
async fn every_client_is_connected_once_and_gets_its_own_text_back() {
    let home = Home::new();
    let texts = BTreeMap::from([("claude-code", CLAUDE), ("codex", CODEX), ("opencode", OPENCODE)]);
    for (client, file) in CLIENTS {
        let before = texts.get(client).map(|text| home.write(file, text));
        if let Some(path) = &before {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let said = home.ok(&["connect", client, "--yes"]).await;
        assert!(said.contains("+++ ") && said.contains(&format!("disconnect {client}")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert_eq!(said.contains("backup"), before.is_some(), "{said}");
        let written = fs::read_to_string(home.path(file)).unwrap();
        let exe = world::binary().canonicalize().unwrap();
        assert!(written.contains(exe.to_str().unwrap()) && written.contains("mesh config"), "{written}");
        let again = home.ok(&["connect", client, "--yes"]).await;
        assert!(again.contains("nothing to do") && !again.contains("+++"), "{again}");
        home.ok(&["--mesh", "acme", "connect", client, "--yes"]).await;
        home.ok(&["disconnect", client, "--yes"]).await;
        match texts.get(client) {
            Some(text) => assert_eq!(fs::read_to_string(home.path(file)).unwrap(), *text, "{client}"),
            None => assert!(!home.path(file).exists(), "{client} had no file"),
        }
    }
    assert!(!home.path(".claude/settings.json").exists());
    let is_copy = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "bak");
    let copies: Vec<PathBuf> = home.all().into_keys().filter(is_copy).collect();
    assert!(copies.is_empty(), "copies of what is back, with secrets in them: {copies:?}");
}

#[tokio::test]
async fn what_the_person_wrote_since_stays_when_the_mesh_goes() {
    let home = Home::new();
    let path =
        home.write(".cursor/mcp.json", "{\n  \"mcpServers\": {\n    \"a\": {\"command\": \"x\"}\n  }\n}\n");
    home.ok(&["connect", "cursor", "--yes"]).await;
    let since = fs::read_to_string(&path).unwrap().replace("\"x\"", "\"y\" /* new */");
    fs::write(&path, since).unwrap();
    home.ok(&["disconnect", "cursor", "--yes"]).await;
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\n  \"mcpServers\": {\n    \"a\": {\"command\": \"y\" /* new */}\n  }\n}\n"
    );
}

#[tokio::test]
async fn claude_code_also_gets_hooks_and_a_status_line_unless_it_has_one() {
    let home = Home::new();
    let settings = home
        .write(".claude/settings.json", "{\"statusLine\": {\"type\": \"command\", \"command\": \"mine\"}}\n");
    home.ok(&["connect", "claude-code", "--yes"]).await;
    let written = json(&settings);
    assert_eq!(written["statusLine"]["command"], "mine");
    for (event, status) in [
        ("SessionStart", "idle"),
        ("UserPromptSubmit", "working"),
        ("Stop", "idle"),
        ("Notification", "needs-input"),
    ] {
        let command = written["hooks"][event][0]["hooks"][0]["command"].as_str().unwrap();
        assert!(command.ends_with(&format!(" hook {status}")), "{command}");
    }
    let entry = &json(&home.path(".claude.json"))["mcpServers"]["claudemesh"];
    assert_eq!((&entry["type"], &entry["args"]), (&"stdio".into(), &serde_json::json!(["mcp"])));
    home.ok(&["disconnect", "claude-code", "--yes"]).await;
    home.ok(&["--mesh", "acme", "connect", "claude-code", "--yes", "--no-hooks"]).await;
    assert!(json(&settings).get("hooks").is_none());
    let entry = &json(&home.path(".claude.json"))["mcpServers"]["claudemesh"];
    assert_eq!(entry["args"], serde_json::json!(["--mesh", "acme", "mcp"]));
}

#[tokio::test]
async fn a_dry_run_and_an_unanswered_question_touch_nothing() {
    let home = Home::new();
    home.write(".claude.json", CLAUDE);
    home.write(".codex/config.toml", CODEX);
    let before = home.all();
    let shown = home.ok(&["connect", "claude-code", "codex", "--dry-run"]).await;
    assert!(shown.contains("+[mcp_servers.claudemesh]") && shown.contains("would be written"), "{shown}");
    let refused = home.refused(&["connect", "claude-code"]).await;
    assert!(refused.contains("--yes"), "{refused}");
    home.ok(&["disconnect", "claude-code", "--dry-run"]).await;
    assert_eq!(home.all(), before);
}

#[tokio::test]
async fn a_file_that_can_not_be_read_is_left_alone_and_named_with_its_line() {
    let home = Home::new();
    home.write(".gemini/settings.json", "{\n  \"a\": 1,\n  \"b\": nonsense\n}\n");
    home.write(".codex/config.toml", "a = 1\nb = = 2\n");
    home.write(".cursor/mcp.json", "{\"mcpServers\": {\"claudemesh\": {\"command\": \"somebody-else\"}}}");
    let before = home.all();
    for (client, words) in
        [("gemini", "line 3, column 8"), ("codex", "line 2, column 5"), ("cursor", "not claudemesh's")]
    {
        let said = home.refused(&["connect", client, "--yes"]).await;
        assert!(said.contains(words), "{client}: {said}");
    }
    assert_eq!(home.all(), before);
}

#[tokio::test]
async fn doctor_finds_a_program_that_is_gone_and_repairs_its_entries() {
    let home = Home::new();
    home.ok(&["connect", "claude-code", "codex", "--yes"]).await;
    let exe = world::binary().canonicalize().unwrap().to_str().unwrap().to_owned();
    let files = [".claude.json", ".claude/settings.json", ".codex/config.toml"];
    for file in files {
        let text = fs::read_to_string(home.path(file)).unwrap();
        fs::write(home.path(file), text.replace(&exe, "/gone/claudemesh")).unwrap();
    }
    let found = async |args: &[&str]| {
        let (_, text) = home.run(args).await;
        let report: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let of = |check: &str| {
            let findings = report["findings"].as_array().unwrap();
            findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {text}"))["verdict"].clone()
        };
        (of("client.claude-code"), of("client.codex"))
    };
    assert_eq!(found(&["--json", "doctor"]).await, ("broken".into(), "broken".into()));
    assert_eq!(found(&["--json", "doctor", "--fix"]).await, ("fine".into(), "fine".into()));
    for file in files {
        let text = fs::read_to_string(home.path(file)).unwrap();
        assert!(text.contains(&exe) && !text.contains("/gone/"), "{file}: {text}");
    }
    home.ok(&["disconnect", "claude-code", "--yes"]).await;
    let text = fs::read_to_string(home.path(".claude/settings.json")).unwrap_or_default();
    assert!(!text.contains("claudemesh"), "{text}");
}

/// The program of a client, if it is installed.
fn installed(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let program = root.join(".tools/clients/node_modules/.bin").join(name);
    if program.exists() {
        return Some(program);
    }
    let skipped = format!("skipped: {} is not installed (make setup)", program.display());
    assert!(std::env::var_os("CI").is_none(), "{skipped}");
    println!("{skipped}");
    None
}

#[tokio::test]
async fn the_real_clients_read_what_was_written() {
    let home = Home::new();
    for (client, program) in
        [("claude-code", "claude"), ("codex", "codex"), ("gemini", "gemini"), ("opencode", "opencode")]
    {
        let Some(path) = installed(program) else { continue };
        home.ok(&["connect", client, "--yes"]).await;
        let mut command = Command::new(path);
        clean(&mut command);
        command
            .args(["mcp", "list"])
            .env("HOME", &home.person.home)
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .current_dir(&home.person.home)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE * 2, command.output()).await.expect("it ends").unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains("claudemesh"), "{program}: {text}");
    }
}
