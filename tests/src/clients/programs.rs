//! The clients as programs: where they are, and how each is told to use the [`Model`] and some MCP servers.
//!
//! Not here: what they then do; the test decides that, turn by turn.
//! Invariant: nothing of the machine's own configuration is read or written: each run has a `HOME` of its own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::model::Model;
use crate::peer::PATIENCE;
use crate::person::Person;
use crate::world::binary;

/// Where `scripts/setup.sh clients` puts them. `None` says so, which CI never accepts.
pub fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".tools/clients");
    if folder.join("installed").is_file() {
        return Some(folder);
    }
    let why = "the MCP clients are missing: run scripts/setup.sh clients";
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    println!("skipped: {why}");
    None
}

/// The command that starts the comparison server itself.
pub fn everything(clients: &Path) -> Vec<String> {
    let script = clients.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    vec!["node".into(), script.to_str().unwrap().to_owned(), "stdio".into()]
}

/// One server as a client's configuration names it.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Entry {
    pub fn new(name: &str, command: Vec<String>) -> Self {
        Self { name: name.to_owned(), command, env: Vec::new() }
    }

    /// The same, with all that it says to its client kept in a file.
    pub fn recorded(mut self, file: &Path) -> Self {
        let mut command = vec!["sh".to_owned(), "-c".to_owned(), r#""$@" | tee "$0""#.to_owned()];
        command.push(file.to_str().unwrap().to_owned());
        command.append(&mut self.command);
        Self { command, ..self }
    }

    /// As `.mcp.json` and its relatives write it.
    fn document(&self) -> Value {
        let env: serde_json::Map<_, _> = self.env.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        json!({ "command": self.command[0], "args": self.command[1..], "env": env })
    }
}

/// `claudemesh mcp` with these flags, as this person.
pub fn mesh_entry(name: &str, who: &Person, flags: &[&str]) -> Entry {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut command = vec![text(&binary()), "mcp".to_owned()];
    command.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let env =
        vec![("HOME".to_owned(), text(&who.home)), ("CLAUDEMESH_CONFIG_DIR".to_owned(), text(&who.config))];
    Entry { name: name.to_owned(), command, env }
}

fn servers(entries: &[Entry]) -> Value {
    entries
        .iter()
        .map(|entry| (entry.name.clone(), entry.document()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A program with a clean home in `home`. The rest of the environment must not name the test's own agent, if one runs it.
fn program(path: &Path, home: &Path) -> Command {
    let mut command = Command::new(path);
    let search = std::env::var_os("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", search)
        .env("HOME", home)
        .env("LANG", "C.UTF-8")
        .env("NO_COLOR", "1")
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What Claude Code needs to run offline with this model.
pub fn claude_environment(model: &Model) -> Vec<(&'static str, String)> {
    vec![
        ("ANTHROPIC_BASE_URL", model.url.clone()),
        ("ANTHROPIC_API_KEY", "sk-ant-test".into()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".into()),
        ("DISABLE_AUTOUPDATER", "1".into()),
        ("IS_SANDBOX", "1".into()),
        ("ENABLE_TOOL_SEARCH", "false".into()),
    ]
}

/// Claude Code in print mode, one session with as many user messages as the test sends.
pub struct Claude {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

/// The flags of such a session, also for who starts it through something else.
pub fn claude_flags() -> Vec<&'static str> {
    vec![
        "-p",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        "--permission-mode=bypassPermissions",
    ]
}

pub fn claude_binary(clients: &Path) -> PathBuf {
    clients.join("node_modules/.bin/claude")
}

impl Claude {
    /// With these servers and no others.
    pub fn start(clients: &Path, home: &Path, model: &Model, entries: &[Entry]) -> Self {
        std::fs::create_dir_all(home).unwrap();
        let config = home.join("servers.json");
        std::fs::write(&config, json!({ "mcpServers": servers(entries) }).to_string()).unwrap();
        let mut command = program(&claude_binary(clients), home);
        command.args(claude_flags()).args(["--strict-mcp-config", "--mcp-config"]).arg(&config);
        command.envs(claude_environment(model));
        Self::spawn(command)
    }

    /// A session that this command starts; its environment is complete.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    /// What the user types.
    pub async fn user(&mut self, text: &str) {
        let message = json!({ "type": "user", "message": { "role": "user", "content": text } });
        let input = self.input.as_mut().expect("the session is open");
        input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        input.flush().await.unwrap();
    }

    /// Waits for the end of the model's turn and gives the result line.
    pub async fn turn_ends(&mut self) -> Value {
        loop {
            let line = timeout(PATIENCE, self.output.next_line()).await.expect("Claude Code speaks in time");
            let line = line.unwrap().expect("the session goes on");
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["type"] == "result" {
                return event;
            }
        }
    }

    /// Ends the session as a closed terminal does.
    pub async fn end(mut self) {
        drop(self.input.take());
        let drain = async { while let Ok(Some(_)) = self.output.next_line().await {} };
        timeout(PATIENCE, drain).await.expect("Claude Code ends");
        let status = timeout(PATIENCE, self.child.wait()).await.expect("Claude Code ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// A client that takes one prompt and ends when the model has said something.
pub struct Errand(tokio::task::JoinSet<Output>);

impl Errand {
    fn spawn(mut command: Command) -> Self {
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            timeout(PATIENCE * 2, command.output()).await.expect("the client ends").unwrap()
        });
        Self(task)
    }

    /// Waits for its end, which must be a good one.
    pub async fn ends(mut self) -> String {
        let output = self.0.join_next().await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        out
    }
}

pub fn codex(clients: &Path, home: &Path, model: &Model, entries: &[Entry]) -> Errand {
    let folder = home.join(".codex");
    std::fs::create_dir_all(&folder).unwrap();
    let quoted = |text: &str| json!(text).to_string();
    let mut config = format!(
        "model = \"stand-in\"\nmodel_provider = \"local\"\n[model_providers.local]\nname = \"local\"\nbase_url = {}\nwire_api = \"responses\"\n",
        quoted(&format!("{}/v1", model.url))
    );
    for entry in entries {
        let (command, args) = (quoted(&entry.command[0]), json!(entry.command[1..]));
        config.push_str(&format!("[mcp_servers.{}]\ncommand = {command}\nargs = {args}\n", entry.name));
        config.push_str(&format!("[mcp_servers.{}.env]\n", entry.name));
        for (key, value) in &entry.env {
            config.push_str(&format!("{key} = {}\n", quoted(value)));
        }
    }
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let mut command = program(&clients.join("node_modules/.bin/codex"), home);
    command.args(["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "go"]);
    Errand::spawn(command)
}

pub fn gemini(clients: &Path, home: &Path, model: &Model, entries: &[Entry]) -> Errand {
    let folder = home.join(".gemini");
    std::fs::create_dir_all(&folder).unwrap();
    let settings = json!({
        "mcpServers": servers(entries),
        "security": { "auth": { "selectedType": "gemini-api-key" } },
        "privacy": { "usageStatisticsEnabled": false },
        "general": { "disableAutoUpdate": true, "disableUpdateNag": true },
    });
    std::fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
    let mut command = program(&clients.join("node_modules/.bin/gemini"), home);
    command
        .args(["--prompt", "go", "--yolo", "--model", "gemini-2.5-flash"])
        .env("GEMINI_API_KEY", "test")
        .env("GEMINI_CLI_TRUST_WORKSPACE", "true")
        .env("GOOGLE_GEMINI_BASE_URL", &model.url);
    Errand::spawn(command)
}

pub fn opencode(clients: &Path, home: &Path, model: &Model, entries: &[Entry]) -> Errand {
    std::fs::create_dir_all(home).unwrap();
    let local = |entry: &Entry| {
        let env: serde_json::Map<_, _> = entry.env.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let local = json!({ "type": "local", "command": entry.command, "environment": env, "enabled": true });
        (entry.name.clone(), local)
    };
    let config = json!({
        "model": "anthropic/claude-sonnet-4-5", "small_model": "anthropic/claude-sonnet-4-5", "autoupdate": false, "share": "disabled",
        "provider": { "anthropic": { "options": { "baseURL": format!("{}/v1", model.url), "apiKey": "test" } } },
        "mcp": entries.iter().map(local).collect::<serde_json::Map<_, _>>(),
    });
    std::fs::write(home.join("opencode.json"), config.to_string()).unwrap();
    let mut command = program(&clients.join("node_modules/.bin/opencode"), home);
    command
        .args(["run", "go"])
        .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
        .env("OPENCODE_DISABLE_MODELS_FETCH", "1");
    Errand::spawn(command)
}
