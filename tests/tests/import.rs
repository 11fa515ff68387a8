//! `import`: servers of clients become services, their secrets go into the vault, and everything can be put back.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::{World, eventually, fixture};
use tokio::time::timeout;

const MARK: &str = "cm-import-secret-2f81c6";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

fn write(path: PathBuf, text: &str) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// `up` trusts its own runner a moment after it serves; before that nothing can be sealed.
async fn has_vault(world: &World) {
    eventually("the runner is trusted", async || {
        let found = world.owner.json(["runner", "ls"]).await;
        let runner = found["runners"].as_array()?.iter().find(|runner| runner["connected"] == true)?;
        runner["granted"].as_array().is_some_and(|granted| !granted.is_empty()).then_some(())
    })
    .await;
}

/// As the owner, without the variables that move the files of clients.
async fn run(world: &World, args: &[&str], is_good: bool) -> String {
    let mut command = world.owner.command(args);
    for name in ["CLAUDE_CONFIG_DIR", "CODEX_HOME", "GEMINI_CLI_HOME", "XDG_CONFIG_HOME", "CLAUDEMESH_MESH"] {
        command.env_remove(name);
    }
    command.env("IMPORTED_PLAIN", "from the environment");
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.success(), is_good, "{args:?}: {text}");
    assert!(!text.contains(MARK), "{args:?} shows a secret: {text}");
    text
}

async fn services(world: &World) -> Vec<String> {
    let found = world.owner.json(["ls"]).await;
    let found = found["services"].as_array().unwrap().iter();
    found.map(|service| service["name"].as_str().unwrap().to_owned()).collect()
}

/// The backups beside a file.
fn copies(file: &Path) -> Vec<String> {
    let start = format!("{}.claudemesh-", file.file_name().unwrap().to_str().unwrap());
    let beside = fs::read_dir(file.parent().unwrap()).unwrap().flatten();
    let copies = beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start));
    copies.map(|entry| read(&entry.path())).collect()
}

#[tokio::test]
async fn a_server_of_two_clients_is_hosted_once_and_can_be_put_back() {
    World::scene(async |world| {
        has_vault(world).await;
        let home = &world.owner.home;
        let files = [("index.js", fixture::NODE_KEEPER), ("package.json", fixture::NODE_PACKAGE)];
        let folder = fixture::write_tree(&world.folder("own-server"), &files);
        let entry = json!({
            "command": "node", "args": [folder.join("index.js")],
            "env": { "API_TOKEN": MARK, "PLAIN": "${IMPORTED_PLAIN}", "LANG": "${NOT_SET:-C}" },
        });
        let claude = json!({ "theme": "dark", "mcpServers": {
            "My Keeper": entry,
            "again": { "command": "node", "args": [folder.join("index.js"), "--two"] },
            "far": { "type": "http", "url": "https://mcp.example/" },
            "boxed": { "command": "docker", "args": ["run", "-i", "x"] },
        } });
        let claude = write(home.join(".claude.json"), &serde_json::to_string_pretty(&claude).unwrap());
        let text = format!("{{\n  // mine\n  \"mcpServers\": {{\"keeper\": {entry}, }}\n}}\n");
        let cursor = write(home.join(".cursor/mcp.json"), &text);
        let broken = write(home.join(".codex/config.toml"), "a = = 1\n");
        let before = [&claude, &cursor, &broken].map(|path| read(path));

        let shown = run(world, &["import", "--dry-run"], true).await;
        for words in ["API_TOKEN", "Cursor", "runs elsewhere", "container images", "config.toml: line 1"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        run(world, &["import"], false).await;
        assert_eq!([&claude, &cursor, &broken].map(|path| read(path)), before, "nothing was agreed to");

        let said = run(world, &["import", "--yes"], true).await;
        assert!(said.contains("import --undo"), "{said}");
        assert_eq!(services(world).await, ["again", "my-keeper"]);
        assert_eq!(copies(&claude), [before[0].clone()], "the file as it was, and none of what is between");
        let held = async |name: &str| {
            world.owner.peer().await.call_text("my-keeper", "digest", json!({ "name": name })).await
        };
        for (name, value) in [("API_TOKEN", MARK), ("PLAIN", "from the environment"), ("LANG", "C")] {
            assert_eq!(held(name).await, hex::encode(Sha256::digest(value)), "{name}");
        }
        let vault = world.owner.json(["vault", "ls"]).await;
        assert_eq!(vault["entries"][0]["key"], "my-keeper-api_token", "{vault}");

        // The entries keep their names, and nothing else of the files has changed.
        let after: Value = serde_json::from_str(&read(&claude)).unwrap();
        assert_eq!(after["mcpServers"]["My Keeper"]["args"], json!(["mcp", "--service", "my-keeper"]));
        assert_eq!(after["mcpServers"]["far"]["url"], "https://mcp.example/");
        let text = read(&cursor);
        assert!(text.contains("// mine") && text.contains("\"--service\"") && !text.contains(MARK), "{text}");
        assert_eq!(read(&broken), before[2]);
        let again = run(world, &["import", "--yes"], true).await;
        assert!(again.contains("claudemesh's own"), "{again}");

        let record = world.owner.config.join("import-record.json");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
        let undone = run(world, &["import", "--undo", "--yes"], true).await;
        assert!(undone.contains("still hosted: again, my-keeper"), "{undone}");
        assert_eq!([&claude, &cursor, &broken].map(|path| read(path)), before);
        assert!(!record.exists(), "there is nothing left to undo");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_come_up_stays_where_it_is() {
    World::scene(async |world| {
        let files = [("index.js", "process.exit(3);\n"), ("package.json", fixture::NODE_PACKAGE)];
        let folder = fixture::write_tree(&world.folder("dead-server"), &files);
        let entry =
            json!({ "mcpServers": { "dead": { "command": "node", "args": [folder.join("index.js")] } } });
        let path = write(world.owner.home.join(".claude.json"), &entry.to_string());
        let before = read(&path);
        let said = run(world, &["import", "--yes", "--only", "dead"], false).await;
        assert!(said.contains("entries stay as they are"), "{said}");
        assert_eq!(read(&path), before);
        run(world, &["import", "--only", "nobody"], false).await;
    })
    .await;
}

#[tokio::test]
async fn tables_of_codex_and_a_shared_file_are_replaced_and_put_back() {
    World::scene(async |world| {
        let home = &world.owner.home;
        let files = [("index.js", fixture::NODE), ("package.json", fixture::NODE_PACKAGE)];
        let [one, two] = ["one", "two"].map(|name| fixture::write_tree(&world.folder(name), &files));
        let script = |folder: &Path| folder.join("index.js").display().to_string();
        let toml = format!(
            "model = \"m\"\n\n# mine\n[mcp_servers.one]\ncommand = \"node\" # why\nargs = [\"{}\"]\ndisabled_tools = [\"crash\"]\n\n[mcp_servers.one.env]\nA = \"b\"\n",
            script(&one)
        );
        let codex = write(home.join(".codex/config.toml"), &toml);
        let shared = json!({ "mcpServers": { "two": { "command": "node", "args": [script(&two)], "cwd": "/", "timeout": 9, "x": { "y": [1] } } } }).to_string();
        let shared = write(home.join(".mcp.json"), &shared);
        let before = [&codex, &shared].map(|path| read(path));
        run(world, &["import", "--yes"], true).await;
        let text = read(&codex);
        assert!(text.starts_with("model = \"m\"\n\n# mine\n") && !text.contains("one.env"), "{text}");
        assert!(text.contains("\"--service\", \"one\""), "{text}");
        assert!(text.contains("disabled_tools = [\"crash\"]"), "what is about its tools stays: {text}");
        let entry: Value = serde_json::from_str(&read(&shared)).unwrap();
        assert_eq!(entry["mcpServers"]["two"]["command"], "claudemesh", "no path of this machine");
        let two = &entry["mcpServers"]["two"];
        assert_eq!((&two["timeout"], &two["x"], &two["cwd"]), (&json!(9), &json!({ "y": [1] }), &Value::Null));
        run(world, &["import", "--undo", "--yes"], true).await;
        assert_eq!(read(&shared), before[1]);
        // A table comes back whole, at the end of the file.
        let text = read(&codex);
        for line in before[0].lines() {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("--service"), "{text}");
    })
    .await;
}
