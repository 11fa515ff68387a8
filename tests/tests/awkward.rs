//! Bad input and bad servers. Each gets one clear message with a stable code, and nobody else suffers from it.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use serde_json::{Value, json};
use tests::git::GitHost;
use tests::peer::{PATIENCE, dial, exchange, now_ms};
use tests::{Peer, Refusal, Setup, World, fixture, processes};

/// Deploys the Python fixture in a mode that must not become ready.
async fn refused_mode(world: &World, mode: &str, more: &[&str]) -> Refusal {
    let folder = fixture::python_folder(&world.folder("python"));
    let (name, mode) = (format!("bad-{mode}"), format!("--args={mode}"));
    let mut args = vec!["deploy", &name, folder.to_str().unwrap(), &mode];
    args.extend(more);
    world.owner.refused(args).await
}

async fn deploy_mode(world: &World, name: &str, mode: &str) -> Peer {
    let folder = fixture::python_folder(&world.folder("python"));
    let mode = format!("--args={mode}");
    world.owner.ok(["deploy", name, folder.to_str().unwrap(), &mode]).await;
    world.owner.peer().await
}

fn expect(refusal: &Refusal, code: &str, exit: i32, says: &str) {
    let Refusal { code: found, exit: left, text } = refusal;
    assert_eq!((found.as_str(), *left), (code, exit), "{text}");
    assert!(text.to_lowercase().contains(&says.to_lowercase()), "says `{says}`: {text}");
}

#[tokio::test]
async fn what_a_registry_does_not_have_is_told_apart() {
    World::scene(async |world| {
        let owner = &world.owner;
        let npx = |name: &'static str, package: &'static str| {
            owner.refused(["deploy", name, "--", "npx", "-y", package])
        };
        let (package, version) = tokio::join!(
            npx("package", "@claudemesh-tests/never-was"),
            npx("version", "@modelcontextprotocol/server-everything@0.0.0-none")
        );
        expect(&package, "source_not_found", 4, "never-was");
        expect(&version, "version_not_found", 4, "0.0.0-none");
        let bin =
            ["deploy", "x", "--bin", "none", "--", "npx", "-y", "@modelcontextprotocol/server-everything"];
        expect(&owner.refused(bin).await, "entry_not_found", 4, "mcp-server-everything");
        let pypi = owner.refused(["deploy", "x", "--uvx", "claudemesh-tests-never-was"]).await;
        expect(&pypi, "source_not_found", 4, "never-was");
        let pypi = owner.refused(["deploy", "x", "--uvx", "mcp-server-time==0.0.0.1"]).await;
        expect(&pypi, "version_not_found", 4, "0.0.0.1");
        for hostile in [
            "--registry=http://x",
            "git+https://example.org/x",
            "file:/etc",
            "../x",
            "https://example.org/x.tgz",
        ] {
            let peer = owner.peer().await;
            let source = json!({ "type": "npx", "package": hostile });
            let answer =
                peer.ask("mcp_deploy", json!({ "server_name": "y", "source": source })).await.verdict().await;
            let code = answer["code"].as_str().or(answer["reason"]["code"].as_str()).unwrap_or_default();
            assert!(["source_refused", "invalid_args"].contains(&code), "{hostile}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_git_host_does_not_have_is_told_apart() {
    let setup =
        Setup { env: vec![("CLAUDEMESH_GIT_SCHEMES".into(), "https,http".into())], ..Setup::default() };
    World::scene_with(setup, async |world| {
        let git = GitHost::start(world.folder("git")).await;
        let files = [("index.js", fixture::NODE), ("package.json", fixture::NODE_PACKAGE)];
        git.commit("app", &files).await;
        git.commit("private/app", &files).await;
        git.commit("empty", &[("README", "nothing to start")]).await;
        let wrong = world.folder("token").join("wrong");
        std::fs::write(&wrong, "not-the-token").unwrap();
        let (app, private, empty) = (git.url("app"), git.url("private/app"), git.url("empty"));
        let none = git.url("never-was");
        let wrong = wrong.to_str().unwrap();
        for (flags, code, exit, says) in [
            (vec![app.as_str(), "--ref", "no-such-ref"], "ref_not_found", 4, "no-such-ref"),
            (vec![&app, "--subdir", "no/such"], "subdir_not_found", 4, "no/such"),
            (vec![&app, "--subdir", "../up"], "source_refused", 2, ""),
            (vec![&none], "source_not_found", 4, ""),
            (vec![&private], "source_denied", 4, "--git-token-file"),
            (vec![&private, "--git-token-file", wrong], "source_denied", 4, "token"),
            (vec![&empty], "entry_not_found", 4, "--entry"),
            (vec!["ssh://example.org/x"], "source_refused", 2, ""),
            (vec!["file:///etc"], "source_refused", 2, ""),
            (vec!["http://user:pass@127.0.0.1/x"], "invalid_args", 2, "token"),
        ] {
            let mut args = vec!["deploy", "x", "--git"];
            args.extend(&flags);
            let refusal = world.owner.refused(args).await;
            let found = (refusal.code.as_str(), refusal.exit);
            assert_eq!(found, (code, exit), "{flags:?}: {}", refusal.text);
            assert!(
                refusal.text.contains(says) && !refusal.text.contains("not-the-token"),
                "{}",
                refusal.text
            );
        }
    })
    .await;
}

#[tokio::test]
async fn hostile_archives_are_refused_and_write_nothing() {
    use tar::EntryType::{Link, Regular, Symlink};
    World::scene(async |world| {
        let dir = world.folder("archives");
        let outside = world.path().join("escaped");
        let tar = |entries: &[(&str, tar::EntryType, &str)]| fixture::raw_tar_gz(entries);
        let archives = [
            ("dots.tgz", tar(&[("../../../../../../escaped", Regular, "x")])),
            ("absolute.tgz", tar(&[(outside.to_str().unwrap(), Regular, "x")])),
            ("link.tgz", tar(&[("server.py", Symlink, "/etc/passwd")])),
            ("through.tgz", tar(&[("d", Symlink, "/tmp"), ("d/escaped", Regular, "x")])),
            ("hard.tgz", tar(&[("server.py", Link, "/etc/passwd")])),
            ("device.tgz", tar(&[("zero", tar::EntryType::Char, "")])),
            ("dots.zip", fixture::zip_of(&[("../../escaped", b"x"), ("server.py", b"x")])),
            ("bomb.zip", fixture::bomb(600)),
            ("damaged.zip", b"PK\x03\x04 and then nothing".to_vec()),
            ("damaged.tgz", b"\x1f\x8b\x08 no".to_vec()),
        ];
        for (name, bytes) in archives {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            let refusal = world.owner.refused(["deploy", "x", path.to_str().unwrap()]).await;
            let codes = if name == "bomb.zip" {
                vec!["archive_rejected", "too_big"]
            } else {
                vec!["archive_rejected"]
            };
            assert!(codes.contains(&refusal.code.as_str()), "{name}: {}", refusal.text);
        }
        assert!(!outside.exists() && !std::path::Path::new("/tmp/escaped").exists());
        let upload = json!({ "server_name": "x", "source": { "type": "zip", "file_id": "0".repeat(64) } });
        let answer = world.owner.peer().await.ask("mcp_deploy", upload).await.verdict().await;
        assert!(answer.to_string().contains("upload_not_found"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn servers_that_never_become_ready_say_why() {
    World::scene(async |world| {
        // Nothing but broken lines, more than the runner takes for a banner.
        let flood = "while True: print('{\"jsonrpc\":\"2.0\",\"id\":!!', flush=True)\n";
        let flood = fixture::write_tree(&world.folder("flood"), &[("server.py", flood)]);
        let (exit, flood, needs_env, many) = tokio::join!(
            refused_mode(world, "exit", &[]),
            world.owner.refused(["deploy", "bad-flood", flood.to_str().unwrap()]),
            refused_mode(world, "needs_env", &[]),
            refused_mode(world, "many", &["--args=2000"]),
        );
        expect(&exit, "start_exited", 4, "the config file is missing");
        expect(&flood, "bad_protocol", 4, "not MCP");
        expect(&needs_env, "start_exited", 4, "API_KEY");
        expect(&many, "too_many_tools", 4, "1000");
        let (garbage, silent, http) = tokio::join!(
            refused_mode(world, "garbage", &[]),
            refused_mode(world, "silent", &[]),
            refused_mode(world, "http", &[]),
        );
        // One broken line in place of an answer could be a banner: what counts is that the answer never comes.
        expect(&garbage, "start_timeout", 4, "`initialize`");
        expect(&silent, "start_timeout", 4, "");
        expect(&http, "http_server", 4, "stdio");
        let servers = processes::of(world.path()).into_iter().filter(|p| p.command.contains("server.py"));
        assert_eq!(servers.count(), 0, "a failed candidate leaves no process");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_prints_on_stdout_or_answers_what_nobody_asked_still_works() {
    World::scene(async |world| {
        let peer = deploy_mode(world, "banner", "banner").await;
        assert_eq!(peer.call_text("banner", "echo", json!({ "text": "hi" })).await, "hi");
        let logs = peer.request("mcp_logs", json!({ "server_name": "banner", "lines": 50 })).await;
        assert!(
            logs["lines"].to_string().contains("Welcome to the fixture"),
            "the banner is in the log: {logs}"
        );
        deploy_mode(world, "spoof", "spoof").await;
        for n in 0..20 {
            let text = n.to_string();
            assert_eq!(peer.call_text("spoof", "echo", json!({ "text": text })).await, text);
        }
        let folder = fixture::python_folder(&world.folder("python"));
        let env = ["deploy", "keyed", folder.to_str().unwrap(), "--args=needs_env", "--env", "API_KEY=k"];
        world.owner.ok(env).await;
        assert_eq!(peer.call_text("keyed", "env", json!({ "name": "API_KEY" })).await, "k");
    })
    .await;
}

#[tokio::test]
async fn eight_mebibytes_pass_whole_and_what_is_over_the_limit_is_refused() {
    World::scene(async |world| {
        let peer = deploy_mode(world, "big", "normal").await;
        let size = 8 << 20;
        assert_eq!(peer.call_text("big", "big", json!({ "bytes": size })).await.len(), size);
        let over = peer.call("big", "big", json!({ "bytes": 32 << 20 })).await;
        assert_eq!(over["code"], "result_too_large", "{}", over["error"]);
        assert_eq!(peer.call_text("big", "echo", json!({ "text": "goes on" })).await, "goes on");
    })
    .await;
}

#[tokio::test]
async fn names_and_fields_that_are_not_allowed_are_refused_by_name() {
    World::scene(async |world| {
        let peer = world.owner.peer().await;
        let source = json!({ "type": "npx", "package": "x" });
        for name in ["../up", "a/b", "", "a__b", "-a", &"a".repeat(65)] {
            let answer = peer.request("mcp_deploy", json!({ "server_name": name, "source": source })).await;
            assert_eq!(answer["code"], "invalid_name", "{name}: {answer}");
        }
        for (field, value) in [
            ("source", json!({ "type": "npx", "package": "x", "packge": 1 })),
            ("source", json!({ "type": "docker", "image": "x" })),
            ("config", json!({ "memory": 1 })),
            ("config", json!({ "memory_mb": 1 })),
            ("config", json!({ "cpus": 0.001 })),
            ("config", json!({ "pids": 1 })),
            ("config", json!({ "disk_mb": 0 })),
            ("config", json!({ "isolation": "none" })),
            ("config", json!({ "network_allow": ["10.0.0.1"] })),
            ("config", json!({ "network_allow": ["*.com"] })),
            ("config", json!({ "network_allow": ["localhost:5432"] })),
            ("config", json!({ "env": { "LD_PRELOAD": "/x" } })),
            ("config", json!({ "env": { "NODE_OPTIONS": "--require /x" } })),
            ("config", json!({ "env": { "A=B": "x" } })),
            ("scope", json!("everyone")),
            ("scope", json!({ "group": "a", "role": "b" })),
        ] {
            let mut frame = json!({ "server_name": "x", "source": source });
            frame[field] = value;
            let answer = peer.request("mcp_deploy", frame.clone()).await;
            assert_eq!(answer["code"], "invalid_args", "{frame}: {answer}");
        }
        assert_eq!(
            peer.request("mcp_catalog", json!({})).await["services"],
            json!([]),
            "nothing was recorded"
        );
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_previous_version_keeps_serving() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
        eprintln!("skipped: a small file system needs root");
        return;
    }
    let setup = Setup { runner_disk_mib: Some(40), ..Setup::default() };
    World::scene_with(setup, async |world| {
        let peer = deploy_mode(world, "small", "normal").await;
        let zip = world.folder("archives").join("large.zip");
        // Noise (xorshift), so that it is large on both sides of the compression.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(3 << 20)
        .flatten()
        .collect();
        std::fs::write(
            &zip,
            fixture::zip_of(&[("server.py", fixture::PYTHON.as_bytes()), ("noise", &noise)]),
        )
        .unwrap();
        let refusal = world.owner.refused(["deploy", "small", zip.to_str().unwrap()]).await;
        expect(&refusal, "disk_full", 5, "space");
        assert_eq!(peer.call_text("small", "echo", json!({ "text": "serves on" })).await, "serves on");
        let status = world.status("small").await;
        assert_eq!(status["failed_update"]["reason"]["code"], "disk_full", "{status}");
    })
    .await;
}

#[tokio::test]
async fn every_wrong_hello_is_refused_with_its_own_code_and_close() {
    World::scene(async |world| {
        let (url, owner) = (world.owner.broker_url(), world.owner.identity());
        let good = owner.hello("s", now_ms());
        let signed_at = |at: i64| owner.hello("s", at);
        let with = |field: &str, value: Value| {
            let mut hello = good.clone();
            hello[field] = value;
            hello
        };
        let mut stranger = owner.clone();
        stranger.key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
        for (hello, code) in [
            (with("sessionPubkey", json!("A".repeat(64))), "bad_session_pubkey"),
            (signed_at(now_ms() - 61_000), "timestamp_skew"),
            (signed_at(now_ms() + 61_000), "timestamp_skew"),
            (with("signature", json!("xyz")), "malformed"),
            (with("pubkey", json!("12")), "malformed"),
            (with("signature", json!("0".repeat(128))), "bad_signature"),
            (with("memberId", json!("M".repeat(32))), "bad_signature"),
            (stranger.hello("s", now_ms()), "unauthorized"),
        ] {
            let mut socket = dial(&url).await;
            let (frames, close) = exchange(&mut socket, hello.to_string(), usize::MAX).await;
            assert_eq!(frames.len(), 1, "{code}: {frames:?}");
            assert_eq!(
                (&frames[0]["type"], &frames[0]["code"]),
                (&json!("error"), &json!(code)),
                "{frames:?}"
            );
            let close = close.expect("a close frame");
            assert_eq!((u16::from(close.code), close.reason.as_str()), (1008, code));
        }
    })
    .await;
}

#[tokio::test]
async fn frames_that_are_wrong_are_answered_and_the_connection_lives() {
    World::scene(async |world| {
        let mut socket = dial(&world.owner.broker_url()).await;
        let early = json!({ "type": "mcp_catalog", "_reqId": "1" }).to_string();
        let (frames, _) = exchange(&mut socket, early, 1).await;
        assert_eq!((&frames[0]["code"], &frames[0]["_reqId"]), (&json!("no_hello"), &json!("1")), "{frames:?}");
        let hello = world.owner.identity().hello("awkward", now_ms());
        let (frames, _) = exchange(&mut socket, hello.to_string(), 1).await;
        assert_eq!(frames[0]["type"], "hello_ack", "{frames:?}");
        let huge = json!({ "type": "mcp_call", "_reqId": "5", "serverName": "x", "toolName": "y", "args": "x".repeat(3 << 20) });
        for (text, code, id) in [
            ("{not json".to_owned(), "malformed", Value::Null),
            ("[]".to_owned(), "malformed", Value::Null),
            (json!({ "type": "no_such_frame", "_reqId": "2" }).to_string(), "unknown_message_type", json!("2")),
            (json!({ "type": "mcp_call", "_reqId": "3" }).to_string(), "invalid_args", json!("3")),
            (json!({ "type": "mcp_status", "_reqId": "4", "server_name": 7 }).to_string(), "invalid_args", json!("4")),
            (huge.to_string(), "too_large", json!("5")),
        ] {
            let (frames, close) = exchange(&mut socket, text, 1).await;
            assert!(close.is_none(), "{code} closes the connection");
            assert_eq!((&frames[0]["code"], &frames[0]["_reqId"]), (&json!(code), &id), "{frames:?}");
        }
        let alive = json!({ "type": "mcp_catalog", "_reqId": "6" }).to_string();
        let (frames, _) = exchange(&mut socket, alive, 1).await;
        assert_eq!(frames[0]["type"], "mcp_catalog_result", "{frames:?}");
    })
    .await;
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_closed_in_time() {
    World::scene(async |world| {
        let mut socket = dial(&world.owner.broker_url()).await;
        // A ping is not a hello.
        use futures_util::{SinkExt as _, StreamExt as _};
        socket.send(tokio_tungstenite::tungstenite::Message::Ping(Vec::new().into())).await.unwrap();
        let mut texts = Vec::new();
        let closed = async {
            while let Some(Ok(message)) = socket.next().await {
                texts.push(message.to_string());
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("the broker closes a silent socket");
        assert!(texts.iter().any(|text| text.contains("hello_timeout")), "{texts:?}");
    })
    .await;
}

#[tokio::test]
async fn invites_are_used_once_and_a_changed_one_is_refused() {
    World::scene(async |world| {
        let invite = world.owner.json(["invite", "--name", "Ana"]).await;
        let link = invite["link"].as_str().unwrap().to_owned();
        let person = |name: &str| tests::Person {
            name: name.into(),
            config: world.path().join(name),
            home: world.folder(&format!("home-{name}")),
        };
        person("Ana").ok(["join", &link]).await;
        let again = person("Bo").refused(["join", &link]).await;
        expect(&again, "invite_exhausted", 2, "");
        let (_, token) = link.rsplit_once('/').unwrap();
        use base64::Engine as _;
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let mut payload: Value = serde_json::from_slice(&engine.decode(token).unwrap()).unwrap();
        payload["role"] = "admin".into();
        let forged = format!("ic://join/{}", engine.encode(payload.to_string()));
        let refused = person("Cy").refused(["join", &forged]).await;
        // The signature is judged before the token is looked up, so that a guess tells nothing about what exists.
        expect(&refused, "invite_bad_signature", 2, "");
    })
    .await;
}
