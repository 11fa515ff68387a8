//! `claudemesh launch` with a stand-in for `claude` that writes down what it was given and waits to be told to end.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tests::{World, eventually, fixture, processes};
use tokio::process::Child;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with 3 when `end` appears beside it, with 7 when it is terminated.
const CLAUDE: &str = r#"#!/bin/sh
out="$FAKE_CLAUDE"
trap 'exit 7' TERM
printf '%s\n' "$@" > "$out/argv"
env > "$out/env"
for word; do
  case "$word" in
    --mcp-config=*)
      cp "${word#--mcp-config=}" "$out/config.json"
      stat -c %a "${word#--mcp-config=}" "$(dirname "${word#--mcp-config=}")" > "$out/modes" ;;
  esac
done
echo $$ > "$out/pid.new" && mv "$out/pid.new" "$out/pid"
while [ ! -e "$out/end" ]; do sleep 0.05; done
exit 3
"#;

struct Session {
    child: Child,
    out: PathBuf,
}

impl Session {
    /// Returns when the stand-in has written down everything.
    async fn start(world: &World, name: &str, args: &[&str]) -> Self {
        let out = world.folder(&format!("claude-{name}"));
        let bin = world.folder("bin");
        fixture::write_tree(&bin, &[("claude", CLAUDE)]);
        std::fs::set_permissions(bin.join("claude"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = world.owner.command([&["launch"], args].concat());
        command.env("PATH", path).env("FAKE_CLAUDE", &out).env_remove("MCP_TIMEOUT");
        command.env_remove("MAX_MCP_OUTPUT_TOKENS").env_remove("CLAUDEMESH_SESSION_ID");
        let mut child = command.spawn().unwrap();
        eventually("the stand-in runs", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("`claudemesh launch` ended: {status}");
            }
            out.join("pid").is_file().then_some(())
        })
        .await;
        Self { child, out }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.out.join(name)).unwrap()
    }

    fn pid(&self) -> i32 {
        self.read("pid").trim().parse().unwrap()
    }

    fn servers(&self) -> BTreeMap<String, Value> {
        let document: Value = serde_json::from_str(&self.read("config.json")).unwrap();
        serde_json::from_value(document["mcpServers"].clone()).unwrap()
    }

    fn config_path(&self) -> PathBuf {
        let argv = self.read("argv");
        argv.lines().find_map(|line| line.strip_prefix("--mcp-config=")).unwrap().into()
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let env = self.read("env");
        env.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect()
    }

    fn tell_to_end(&self) {
        std::fs::write(self.out.join("end"), "").unwrap();
    }

    async fn code(mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("launch ends").unwrap().code()
    }
}

fn left_in(config: &Path) -> usize {
    std::fs::read_dir(config.join("launch")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_session_has_entries_for_what_serves_and_leaves_nothing_behind() {
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("python"));
        let folder = folder.to_str().unwrap();
        world.owner.ok(["deploy", "mine", folder]).await;
        world.owner.ok(["deploy", "asleep", folder]).await;
        world.owner.ok(["stop", "asleep"]).await;
        let flags = ["--name", "Ana at work", "--role", "review", "--groups", "eng:lead,ops"];
        let args = [&flags[..], &["--", "-p", "two words"]].concat();
        let one = Session::start(world, "one", &args).await;
        let servers = one.servers();
        assert_eq!(servers.keys().collect::<Vec<_>>(), ["claudemesh", "mesh-mine"]);
        assert_eq!(servers["mesh-mine"]["args"], serde_json::json!(["mcp", "--service", "mine"]));
        let env = one.variables();
        for (name, value) in [
            ("CLAUDEMESH_DISPLAY_NAME", "Ana at work"),
            ("CLAUDEMESH_ROLE", "review"),
            ("CLAUDEMESH_GROUPS", "eng:lead,ops"),
            ("MCP_TIMEOUT", "30000"),
            ("MAX_MCP_OUTPUT_TOKENS", "50000"),
        ] {
            assert_eq!(env[name], value, "{name}");
        }
        for name in ["CLAUDEMESH_SESSION_ID", "CLAUDEMESH_MESH", "CLAUDEMESH_CONFIG_DIR"] {
            assert_eq!(servers["mesh-mine"]["env"][name], env[name], "{name}");
        }
        let session = format!("--session-id={}", env["CLAUDEMESH_SESSION_ID"]);
        let config = format!("--mcp-config={}", one.config_path().display());
        assert_eq!(one.read("argv").lines().collect::<Vec<_>>(), [&config, &session, "-p", "two words"]);
        assert_eq!(one.read("modes").split_whitespace().collect::<Vec<_>>(), ["600", "700"]);

        // A second session at the same time has a file and a session of its own.
        let two = Session::start(world, "two", &["--channel", "--", "--continue"]).await;
        assert_ne!(one.config_path(), two.config_path());
        assert_ne!(env["CLAUDEMESH_SESSION_ID"], two.variables()["CLAUDEMESH_SESSION_ID"]);
        assert!(two.servers().contains_key("claudemesh-channel"));
        assert!(
            two.read("argv").contains("--dangerously-load-development-channels=server:claudemesh-channel\n")
        );
        assert!(!two.read("argv").contains("--session-id"), "claude knows which session it continues");
        two.tell_to_end();
        let (gone, kept) = (two.config_path(), one.config_path());
        assert_eq!(two.code().await, Some(3), "its exit code is claude's");
        assert!(!gone.exists() && kept.is_file());
        one.tell_to_end();
        assert_eq!(one.code().await, Some(3));
        assert_eq!(left_in(&world.owner.config), 0);
        assert!(
            !world.owner.home.join(".claude.json").exists() && !world.owner.home.join(".claude").exists()
        );
    })
    .await;
}

#[tokio::test]
async fn a_terminated_session_ends_claude_and_cleans_up() {
    World::scene(async |world| {
        let session = Session::start(world, "one", &[]).await;
        let claude = session.pid();
        processes::terminate(session.child.id().unwrap().cast_signed());
        assert_eq!(session.code().await, Some(7), "claude was told, and its exit code counts");
        assert!(!processes::is_alive(claude));
        assert_eq!(left_in(&world.owner.config), 0);
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_launch_left_is_kept_for_claude_and_swept_after_it() {
    World::scene(async |world| {
        let killed = Session::start(world, "one", &[]).await;
        let (config, claude) = (killed.config_path(), killed.pid());
        processes::kill_9(killed.child.id().unwrap().cast_signed());
        let out = killed.out.clone();
        assert_eq!(killed.code().await, None);
        let next = Session::start(world, "two", &[]).await;
        assert!(processes::is_alive(claude) && config.is_file(), "claude still runs with it");
        std::fs::write(out.join("end"), "").unwrap();
        eventually("the orphan ends", async || (!processes::is_alive(claude)).then_some(())).await;
        next.tell_to_end();
        next.code().await;
        let last = Session::start(world, "three", &[]).await;
        assert!(!config.exists());
        assert_eq!(left_in(&world.owner.config), 1);
        last.tell_to_end();
        last.code().await;
        assert_eq!(left_in(&world.owner.config), 0);
    })
    .await;
}

#[tokio::test]
async fn a_session_starts_while_the_broker_is_away_and_a_missing_claude_is_said() {
    World::scene(async |world| {
        world.down().await;
        let session = Session::start(world, "one", &[]).await;
        assert_eq!(session.servers().keys().collect::<Vec<_>>(), ["claudemesh"]);
        session.tell_to_end();
        assert_eq!(session.code().await, Some(3));

        let refused = world.owner.refused(["launch", "--groups", "a:b:c"]).await;
        assert!(refused.text.contains("a:b:c"), "{}", refused.text);
        if Path::new("/usr/local/bin/claude").exists() {
            assert!(std::env::var_os("CI").is_none(), "there is a claude where CI has none");
            println!("skipped: there is a claude in /usr/local/bin");
            return;
        }
        let mut command = world.owner.command(["launch"]);
        let output = command.env("PATH", world.folder("empty")).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("npm install -g @anthropic-ai/claude-code"), "{said}");
        assert_eq!(left_in(&world.owner.config), 0);
    })
    .await;
}
