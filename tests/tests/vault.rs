//! Secrets, through the product: typed once, sealed, opened by a trusted runner for a signed service, and seen nowhere else.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;
use tests::{Peer, Person, World, eventually, fixture, processes};

/// Long and odd enough that it is nowhere by chance.
const MARK: &str = "cm-marked-secret-7f3a91c2e5";
const FILE: &[u8] = b"\x00cm-marked-file-9b1d44\xff\r\n";

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// `up` trusts its own runner a moment after it serves.
async fn trusted(world: &World) -> String {
    eventually("the runner is trusted", async || {
        let found = world.owner.json(["runner", "ls"]).await;
        let runner = found["runners"].as_array()?.iter().find(|runner| runner["connected"] == true)?;
        let is_trusted = runner["granted"].as_array().is_some_and(|granted| !granted.is_empty());
        is_trusted.then(|| runner["id"].as_str().unwrap().to_owned())
    })
    .await
}

async fn set(person: &Person, key: &str, value: &str) -> Value {
    let text = person.fed(["--json", "vault", "set", key], format!("{value}\n").as_bytes()).await;
    serde_json::from_str(&text).unwrap()
}

fn folder(world: &World) -> String {
    fixture::keeper_folder(&world.folder("keeper")).to_str().unwrap().to_owned()
}

async fn deploy(world: &World, person: &Person, name: &str, more: &[&str]) {
    let folder = folder(world);
    let mut args = vec!["deploy", name, &folder];
    args.extend(more);
    person.ok(args).await;
}

async fn held(peer: &Peer, service: &str) -> String {
    peer.call_text(service, "digest", json!({ "name": "TOKEN" })).await
}

/// Why the newest deploy does not serve.
async fn waits(world: &World, code: &str) -> Value {
    eventually(code, async || {
        let status = world.status("svc").await;
        (status["reason"]["code"] == code).then_some(status)
    })
    .await
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &Path, mark: &[u8], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_with(&entry.path(), mark, found);
        } else if kind.is_file()
            && std::fs::read(entry.path())
                .is_ok_and(|bytes| bytes.windows(mark.len()).any(|part| part == mark))
        {
            found.push(entry.path().display().to_string());
        }
    }
}

fn is_nowhere(world: &World) {
    for mark in [MARK.as_bytes(), &FILE[1..20]] {
        let mut found = Vec::new();
        files_with(world.path(), mark, &mut found);
        assert!(found.is_empty(), "a secret is in {found:#?}");
    }
    for process in processes::of(world.path()) {
        assert!(!process.command.contains(MARK), "a secret is in the arguments of {process:?}");
        let environ = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        let has = environ.windows(MARK.len()).any(|part| part == MARK.as_bytes());
        // The server itself has it, and nobody else.
        assert!(
            !has || process.command.contains("server.py"),
            "a secret is in the environment of {process:?}"
        );
    }
}

async fn database(world: &World) -> sqlx::SqliteConnection {
    let url = format!("sqlite:{}", world.data().join("broker.db").display());
    sqlx::SqliteConnection::connect(&url).await.unwrap()
}

#[tokio::test]
async fn a_secret_is_typed_once_and_only_its_service_sees_it() {
    World::scene(async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        trusted(world).await;
        assert_eq!(set(owner, "token", MARK).await["version"], 1);
        let path = world.folder("typed").join("creds");
        std::fs::write(&path, FILE).unwrap();
        owner.ok(["vault", "set", "creds", "--file", path.to_str().unwrap()]).await;
        let mut found = Vec::new();
        files_with(world.path(), &FILE[1..20], &mut found);
        assert_eq!(found.len(), 1, "what is there is found: {found:?}");
        std::fs::remove_file(&path).unwrap();
        let given = ["--env=TOKEN=$vault:token", "--env=CREDS=$vault:creds:file:/secrets/creds.json"];
        deploy(world, owner, "svc", &given).await;
        assert_eq!(held(&peer, "svc").await, digest(MARK.as_bytes()));
        let file = peer.call_text("svc", "file", json!({ "name": "CREDS" })).await;
        assert_eq!(file, format!("/secrets/creds.json {} 400 own", digest(FILE)));

        let shown = peer.call("svc", "reveal", json!({ "name": "TOKEN" })).await.to_string();
        assert!(!shown.contains(MARK) && shown.contains("[secret]"), "{shown}");
        let log = owner.ok(["logs", "svc"]).await;
        assert!(!log.contains(MARK), "{log}");
        let lines = eventually("the openings are in the ledger", async || {
            let found = owner.json(["vault", "ledger", "--service", "svc"]).await;
            let lines = found["lines"].as_array().unwrap().clone();
            let opened = |key: &str| lines.iter().any(|line| line["act"] == "opened" && line["key"] == key);
            (opened("token") && opened("creds")).then_some(found)
        })
        .await;
        assert!(lines.to_string().contains("\"reason\":\"start\""), "{lines}");
        let listed = owner.json(["vault", "ls"]).await;
        let token =
            listed["entries"].as_array().unwrap().iter().find(|entry| entry["key"] == "token").unwrap();
        assert_eq!((&token["version"], &token["used_by"]), (&json!(1), &json!(["svc"])));
        is_nowhere(world);

        let again = format!("{MARK}-again");
        let done = owner.fed(["--json", "vault", "rotate", "token"], again.as_bytes()).await;
        assert_eq!(serde_json::from_str::<Value>(&done).unwrap()["services"], json!(["svc"]));
        eventually("the new value", async || {
            (held(&peer, "svc").await == digest(again.as_bytes())).then_some(())
        })
        .await;
        is_nowhere(world);

        owner.ok(["vault", "rm", "token"]).await;
        eventually("it has stopped", async || {
            (world.status("svc").await["phase"] == "stopped").then_some(())
        })
        .await;
        assert_eq!(peer.call("svc", "version", json!({})).await["code"], "service_stopped");
        let refused = owner.refused(["start", "svc"]).await;
        assert!(refused.code == "vault_missing" && refused.text.contains("token"), "{}", refused.text);
    })
    .await;
}

#[tokio::test]
async fn a_value_on_the_command_line_and_other_bad_input_is_refused_and_not_repeated() {
    World::scene(async |world| {
        let owner = &world.owner;
        trusted(world).await;
        let refused = owner.refused(["vault", "set", "token", MARK]).await;
        assert_eq!((refused.exit, refused.code.as_str()), (2, "vault_error"));
        assert!(!refused.text.contains(MARK), "{}", refused.text);
        for bad in ["a/b", "a b", &"k".repeat(300), ""] {
            assert_eq!(owner.run(["vault", "set", bad]).await.status.code(), Some(2), "{bad:?}");
        }
        let large = world.folder("typed").join("large");
        std::fs::write(&large, vec![b'x'; 1 << 20]).unwrap();
        let refused = owner.refused(["vault", "set", "large", "--file", large.to_str().unwrap()]).await;
        assert_eq!(refused.code, "vault_error");
        assert_eq!(owner.refused(["vault", "rotate", "absent"]).await.code, "vault_missing");
        assert_eq!(owner.refused(["vault", "rm", "absent"]).await.code, "vault_missing");
        assert_eq!(owner.run(["runner", "trust", "abc"]).await.status.code(), Some(2));
        let stranger = "0123456789abcdef0123456789abcdef";
        assert_eq!(owner.refused(["runner", "trust", stranger]).await.code, "not_found");
        assert_eq!(owner.json(["vault", "ls"]).await["entries"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn everything_comes_back_with_nobody_online() {
    World::scene(async |world| {
        let owner = &world.owner;
        trusted(world).await;
        set(owner, "token", MARK).await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token"]).await;
        world.down().await;
        world.up().await;
        let back = async |what: &str| {
            eventually(what, async || {
                let peer = world.try_peer().await?;
                let answer = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
                (fixture::text(&answer["result"]) == digest(MARK.as_bytes())).then_some(())
            })
            .await;
        };
        back("after a stop").await;
        world.kill_9_runner().await;
        back("after the runner's death").await;
        world.kill_9_broker().await;
        world.up().await;
        back("after the broker's death").await;
        is_nowhere(world);
    })
    .await;
}

#[tokio::test]
async fn a_runner_that_is_not_trusted_opens_nothing_until_it_is() {
    World::scene(async |world| {
        let owner = &world.owner;
        let id = trusted(world).await;
        set(owner, "token", MARK).await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token"]).await;
        owner.ok(["runner", "revoke", &id]).await;
        waits(world, "runner_not_trusted").await;
        let peer = owner.peer().await;
        assert!(!peer.call("svc", "digest", json!({ "name": "TOKEN" })).await["result"].is_object());
        let data = world.data();
        assert_eq!(owner.ok(["runner", "id", "--data", data.to_str().unwrap()]).await.trim(), id);
        owner.ok(["runner", "trust", &id]).await;
        eventually("it runs", async || {
            let answer = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
            (fixture::text(&answer["result"]) == digest(MARK.as_bytes())).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_changed_database_opens_nothing() {
    World::scene(async |world| {
        let owner = &world.owner;
        trusted(world).await;
        set(owner, "token", MARK).await;
        set(owner, "other", "another value of nobody").await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token"]).await;
        let attack = async |statement: &'static str, code: &str| {
            world.down().await;
            let mut rows = database(world).await;
            sqlx::query("DROP TABLE IF EXISTS kept_entry").execute(&mut rows).await.unwrap();
            let keep = "CREATE TABLE kept_entry AS SELECT * FROM vault_entry";
            sqlx::query(keep).execute(&mut rows).await.unwrap();
            sqlx::query("DROP TABLE IF EXISTS kept_spec").execute(&mut rows).await.unwrap();
            let keep = "CREATE TABLE kept_spec AS SELECT mesh_id, name, generation, spec FROM generation";
            sqlx::query(keep).execute(&mut rows).await.unwrap();
            let changed = sqlx::query(statement).execute(&mut rows).await.unwrap();
            assert!(changed.rows_affected() > 0, "{statement}");
            rows.close().await.unwrap();
            world.up().await;
            waits(world, code).await;
            world.down().await;
            let mut rows = database(world).await;
            for undo in [
                "UPDATE vault_entry SET (content, wrap, signature) = (SELECT content, wrap, signature FROM kept_entry AS kept \
                 WHERE kept.key_name = vault_entry.key_name AND kept.version = vault_entry.version)",
                "UPDATE generation SET spec = (SELECT spec FROM kept_spec AS kept \
                 WHERE kept.name = generation.name AND kept.generation = generation.generation)",
                "DROP TABLE kept_entry",
                "DROP TABLE kept_spec",
            ] {
                sqlx::query(undo).execute(&mut rows).await.unwrap();
            }
            rows.close().await.unwrap();
            world.up().await;
            eventually("it is as it was", async || {
                let peer = world.try_peer().await?;
                let answer = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
                (fixture::text(&answer["result"]) == digest(MARK.as_bytes())).then_some(())
            })
            .await;
        };
        attack(
            "UPDATE generation SET spec = json_set(spec, '$.args', json('[\"--evil\"]'))",
            "awaiting_consent",
        )
        .await;
        attack(
            "UPDATE vault_entry SET (content, wrap) = (SELECT content, wrap FROM vault_entry AS b WHERE b.key_name = 'other') \
             WHERE key_name = 'token'",
            "vault_damaged",
        )
        .await;
        attack(
            "UPDATE vault_entry SET wrap = (SELECT wrap FROM vault_entry AS b WHERE b.key_name = 'other') \
             WHERE key_name = 'token'",
            "vault_damaged",
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn keys_rotate_while_calls_are_answered() {
    World::scene(async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        trusted(world).await;
        set(owner, "token", MARK).await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token", "--env=PLAIN=as-before"]).await;
        let before = owner.json(["vault", "history", "token"]).await["versions"][0]["kid"].clone();
        let rotating = async {
            let done = owner.json(["key", "rotate"]).await;
            assert_eq!(done["vault_key"], 2, "{done}");
        };
        tokio::pin!(rotating);
        let mut calls = 0;
        loop {
            tokio::select! {
                () = &mut rotating => break,
                answer = held(&peer, "svc") => {
                    assert_eq!(answer, digest(MARK.as_bytes()));
                    calls += 1;
                }
            }
        }
        assert!(calls > 0);
        let after = owner.json(["vault", "history", "token"]).await["versions"][0]["kid"].clone();
        assert_ne!(before, after, "it is sealed to the new key");
        owner.ok(["stop", "svc"]).await;
        owner.ok(["start", "svc"]).await;
        assert_eq!(held(&peer, "svc").await, digest(MARK.as_bytes()));
        let plain = peer.call_text("svc", "digest", json!({ "name": "PLAIN" })).await;
        assert_eq!(plain, digest(b"as-before"));
    })
    .await;
}

#[tokio::test]
async fn what_was_not_signed_waits_and_shows_itself() {
    World::scene(async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        trusted(world).await;
        set(owner, "token", MARK).await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token"]).await;
        // What the command itself changes is signed by it.
        owner.ok(["allow", "svc", "a.example"]).await;
        owner.ok(["update", "svc"]).await;
        assert_eq!(held(&peer, "svc").await, digest(MARK.as_bytes()));
        // What somebody else changes is not.
        let rule = json!({ "server_name": "svc", "allow": ["evil.example"] });
        let asked = peer.ask("mcp_network", rule).await.verdict().await;
        assert_eq!(asked["status"], "awaiting_consent", "{asked}");
        assert_eq!(held(&peer, "svc").await, digest(MARK.as_bytes()), "the older generation serves on");
        let refused = owner.refused(["consent", "svc"]).await;
        assert_eq!(refused.exit, 2, "nobody was there to answer: {}", refused.text);
        let shown = owner.run(["consent", "svc"]).await;
        assert!(String::from_utf8_lossy(&shown.stderr).contains("evil.example"));
        owner.ok(["consent", "svc", "--yes"]).await;
        let network = owner.json(["status", "svc"]).await["network"].clone();
        assert!(network.to_string().contains("evil.example"), "{network}");
        assert!(owner.ok(["consent", "svc"]).await.contains("needs no consent"));
    })
    .await;
}

#[tokio::test]
async fn each_member_has_secrets_of_their_own() {
    World::scene(async |world| {
        let owner = &world.owner;
        trusted(world).await;
        let bo = world.join("Bo", &[]).await;
        set(owner, "token", MARK).await;
        set(&bo, "token", "the value of bo").await;
        deploy(world, owner, "svc", &["--env=TOKEN=$vault:token", "--mesh-wide"]).await;
        deploy(world, &bo, "bos", &["--env=TOKEN=$vault:token"]).await;
        assert_eq!(held(&bo.peer().await, "svc").await, digest(MARK.as_bytes()), "it runs as its deployer");
        assert_eq!(held(&bo.peer().await, "bos").await, digest(b"the value of bo"));
        let listed = bo.json(["vault", "ls"]).await["entries"].clone();
        assert_eq!(listed.as_array().unwrap().len(), 1);
        assert_eq!(listed[0]["used_by"], json!(["bos"]));
        assert_eq!(bo.refused(["runner", "revoke", &trusted(world).await]).await.code, "forbidden");
        assert_eq!(bo.refused(["key", "rotate"]).await.code, "forbidden");
        let ledger = bo.json(["vault", "ledger"]).await;
        assert!(!ledger.to_string().contains("\"service\":\"svc\""), "{ledger}");
    })
    .await;
}

#[tokio::test]
async fn an_instance_for_each_caller_holds_that_callers_secret() {
    World::scene(async |world| {
        let owner = &world.owner;
        trusted(world).await;
        let bo = world.join("Bo", &[]).await;
        set(owner, "token", MARK).await;
        deploy(world, owner, "svc", &["--run-as=caller", "--env=TOKEN=$vault:token", "--mesh-wide"]).await;
        assert_eq!(held(&owner.peer().await, "svc").await, digest(MARK.as_bytes()));
        let peer = bo.peer().await;
        let refused = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
        assert!(!refused["result"].is_object(), "never the deployer's: {refused}");
        set(&bo, "token", "the value of bo").await;
        let refused = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
        assert_eq!(refused["code"], "awaiting_consent", "{refused}");
        bo.ok(["consent", "svc", "--yes"]).await;
        eventually("bo's own instance", async || {
            let answer = peer.call("svc", "digest", json!({ "name": "TOKEN" })).await;
            (fixture::text(&answer["result"]) == digest(b"the value of bo")).then_some(())
        })
        .await;
        assert_eq!(held(&owner.peer().await, "svc").await, digest(MARK.as_bytes()));
    })
    .await;
}
