//! What a service may do, through the product: its network, its limits, and what it says of itself.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use sqlx::Connection as _;
use tests::peer::now_ms;
use tests::web::Web;
use tests::{Peer, Person, Setup, World, eventually, fixture};

fn page() -> Router {
    Router::new().route("/", get(async || "the page"))
}

/// A runner whose operator has opened this host.
fn with_private(host: &str) -> Setup {
    Setup { env: vec![("CLAUDEMESH_PRIVATE_HOSTS".into(), host.into())], ..Setup::default() }
}

/// `claudemesh deploy NAME FOLDER` of the Python fixture, jailed on request.
async fn deploy(world: &World, name: &str, about: &str, more: &[&str]) {
    let folder = fixture::python_folder(&world.folder("python"));
    let version = format!("--args={about}");
    let mut args = vec!["deploy", name, folder.to_str().unwrap(), "--args=jailed", &version];
    args.extend(more);
    world.owner.ok(args).await;
}

/// What the server got, or why it got nothing.
async fn fetch(peer: &Peer, url: &str) -> Result<String, String> {
    let answer = peer.call("svc", "fetch", json!({ "url": url })).await;
    match answer["result"].is_object() {
        true => Ok(fixture::text(&answer["result"])),
        false => Err(answer["rpc"]["message"].as_str().unwrap_or(&answer.to_string()).to_owned()),
    }
}

/// Asks `why` until it says so: the runner counts a refusal a moment before its report arrives.
async fn why(person: &Person, part: &str) -> String {
    eventually(part, async || Some(person.ok(["why", "svc"]).await).filter(|text| text.contains(part))).await
}

#[tokio::test]
async fn a_service_reaches_what_it_was_allowed_and_nothing_else() {
    let web = Web::serve(page()).await;
    let rule = format!("page.test:{}", web.port());
    let url = format!("http://{rule}/");
    World::scene_with(with_private(&format!("{rule}=127.0.0.1")), async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        deploy(world, "svc", "1", &[]).await;
        fetch(&peer, &url).await.expect_err("nothing is allowed by itself");
        let said = why(owner, "blocked page.test:443 (once, ").await;
        assert!(said.contains("claudemesh allow svc page.test"), "{said}");
        let before = owner.json(["status", "svc"]).await;

        owner.ok(["allow", "svc", &rule]).await;
        assert_eq!(fetch(&peer, &url).await.as_deref(), Ok("the page"));
        let bare = format!("http://127.0.0.1:{}/", web.port());
        fetch(&peer, &bare).await.expect_err("its own loopback is not the host's");
        fetch(&peer, &format!("http://other.test:{}/", web.port())).await.expect_err("one host, not a port");
        let after = owner.json(["status", "svc"]).await;
        assert_eq!((&after["network"], &after["pin"]), (&json!([rule]), &before["pin"]));
        assert_eq!(owner.run(["allow", "svc", "10.0.0.1"]).await.status.code(), Some(2));
        assert_eq!(owner.refused(["allow", "svc", &rule]).await.code, "invalid_args");

        owner.ok(["deny", "svc", &rule]).await;
        fetch(&peer, &url).await.expect_err("what was taken away");
        assert_eq!(owner.json(["status", "svc"]).await.get("network"), None);
    })
    .await;
}

/// Where learning leads is out there, and no test depends on that: what was seen there is told to the broker's records.
async fn was_seen(world: &World, host: &str) {
    let url = format!("sqlite:{}", world.data().join("broker.db").display());
    let mut records = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let row = "INSERT INTO egress_decision \
        (mesh_id, name, boot, host, port, verdict, count, last_ms, sent_bytes, received_bytes) \
        SELECT mesh_id, name, 'a boot', $1, 443, 'learned', 2, $2, 10, 20 FROM service";
    sqlx::query(row).bind(host).bind(now_ms()).execute(&mut records).await.unwrap();
    records.close().await.unwrap();
}

#[tokio::test]
async fn what_was_learned_is_allowed_once_somebody_takes_it_and_inside_addresses_are_not_learned() {
    let web = Web::serve(page()).await;
    let inside = format!("page.test:80=127.0.0.1,page.test:{}=127.0.0.1", web.port());
    World::scene_with(with_private(&inside), async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        deploy(world, "svc", "1", &[]).await;
        let nothing = owner.refused(["learn", "svc", "--accept", "--yes"]).await;
        assert!(nothing.text.contains("nothing new was learned"), "{}", nothing.text);
        owner.ok(["learn", "svc", "--minutes", "5"]).await;
        assert!(owner.ok(["ls"]).await.contains("learning"));
        fetch(&peer, "http://page.test/").await.expect_err("the operator opened it for who is allowed it");
        why(owner, "failed page.test:80 (").await;
        owner.ok(["update", "svc"]).await;
        assert!(
            owner.json(["status", "svc"]).await["learning_until"].is_string(),
            "it goes on with an update"
        );
        was_seen(world, "api.example.com").await;
        owner.ok(["learn", "svc", "--accept", "--yes"]).await;
        let status = owner.json(["status", "svc"]).await;
        assert_eq!(
            (&status["network"], status.get("learning_until")),
            (&json!(["api.example.com:443"]), None)
        );
        owner.ok(["learn", "svc"]).await;
        owner.ok(["learn", "svc", "--stop"]).await;
        let status = owner.json(["status", "svc"]).await;
        assert_eq!(
            (&status["network"], status.get("learning_until")),
            (&json!(["api.example.com:443"]), None)
        );
        fetch(&peer, "http://other.test/").await.expect_err("it has ended");
    })
    .await;
}

#[tokio::test]
async fn a_stopped_service_gets_its_network_and_stays_stopped() {
    World::scene(async |world| {
        let owner = &world.owner;
        deploy(world, "svc", "1", &[]).await;
        owner.ok(["stop", "svc"]).await;
        let said = owner.ok(["allow", "svc", "a.example"]).await;
        assert!(said.contains("stopped"), "{said}");
        let status = owner.json(["status", "svc"]).await;
        assert_eq!((&status["phase"], &status["network"]), (&json!("stopped"), &json!(["a.example:443"])));
        owner.ok(["start", "svc"]).await;
        assert_eq!(owner.json(["status", "svc"]).await["network"], json!(["a.example:443"]));
    })
    .await;
}

/// Why the service is down, or was before it came back.
async fn fallen(world: &World, code: &str) -> Value {
    eventually(code, async || {
        let status = world.status("svc").await;
        let reasons = [&status["reason"], &status["last_fall"]];
        reasons.into_iter().find(|reason| reason["code"] == code).cloned()
    })
    .await
}

#[tokio::test]
async fn a_limit_is_shown_held_and_named_to_the_caller_and_in_the_status() {
    World::scene(async |world| {
        let (owner, peer) = (&world.owner, world.owner.peer().await);
        deploy(world, "svc", "1", &["--memory", "64m", "--pids", "24", "--disk", "8m", "--cpus", "0.5"])
            .await;
        eventually("what it uses is shown", async || {
            let card = owner.ok(["status", "svc"]).await;
            let parts = [" / 64 MiB", "at most 0.5", " / 24", " / 8 MiB", "jail         strict"];
            parts.iter().all(|part| card.contains(part)).then_some(())
        })
        .await;
        let got: u32 = peer.call_text("svc", "threads", json!({ "n": 200 })).await.parse().unwrap();
        assert!((5..24).contains(&got), "{got} threads in 24");
        let pid = peer.pid_of("svc").await;
        let (lost, reason) =
            tokio::join!(peer.call("svc", "allocate", json!({ "mb": 300 })), fallen(world, "out_of_memory"));
        assert_eq!(lost["code"], "instance_lost", "{lost}");
        for told in [&lost["error"], &reason["message"]] {
            assert!(told.as_str().unwrap().contains("more than the 64 MiB of memory"), "{told}");
        }
        assert_ne!(peer.pid_of("svc").await, pid, "it is back");
        assert!(owner.ok(["why", "svc"]).await.contains("restarted once"));
        let card = owner.ok(["status", "svc"]).await;
        assert!(card.contains("last fall") && card.contains("(out_of_memory)"), "{card}");
        // Neither file alone is too large.
        for name in ["a", "b"] {
            peer.call("svc", "fill", json!({ "bytes": 6 << 20, "name": name })).await;
        }
        let reason = fallen(world, "disk_exceeded").await;
        assert!(reason["message"].as_str().unwrap().contains("of the 8 MiB"), "{reason}");
        why(owner, "limit: ").await;
    })
    .await;
}

async fn names(person: &Person) -> Vec<String> {
    let peer = person.peer().await;
    let schema = peer.request("mcp_schema", json!({ "server_name": "svc" })).await;
    let list = schema["tools"].as_array().unwrap().iter();
    list.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn has(names: &[String], tool: &str) -> bool {
    names.iter().any(|name| name == tool)
}

#[tokio::test]
async fn what_a_shared_service_says_anew_is_withheld_until_its_owner_has_looked() {
    World::scene(async |world| {
        let owner = &world.owner;
        deploy(world, "svc", "adds", &["--mesh-wide"]).await;
        let bo = world.join("Bo", &[]).await;
        assert!(has(&names(&bo).await, "echo"));

        // With another version.
        deploy(world, "svc", "pays", &[]).await;
        assert!(!has(&names(&bo).await, "echo") && has(&names(&bo).await, "version"));
        let peer = bo.peer().await;
        assert_eq!(peer.call("svc", "echo", json!({})).await["code"], "quarantined");
        let offer = peer.ack["services"][0]["tools"].to_string();
        assert!(!offer.contains("pays") && !bo.ok(["tools", "svc"]).await.contains("pays"), "{offer}");
        assert!(!bo.ok(["status", "svc"]).await.contains("pays"), "nor as drift");
        assert_eq!(bo.refused(["approve", "svc", "--yes"]).await.code, "forbidden");
        let card = owner.ok(["status", "svc"]).await;
        assert!(card.contains("version pays") && card.contains("claudemesh approve svc"), "{card}");
        assert!(owner.ok(["ls"]).await.contains("drift"));
        owner.ok(["approve", "svc", "--yes"]).await;
        assert!(has(&names(&bo).await, "echo") && bo.ok(["tools", "svc"]).await.contains("pays"));
        let bos = bo.peer().await;
        assert_eq!(bos.call_text("svc", "echo", json!({ "text": "hi" })).await, "hi");

        // While it runs.
        bos.call_text("svc", "redefine", json!({ "about": "tell nobody" })).await;
        eventually("it is withheld", async || (!has(&names(&bo).await, "echo")).then_some(())).await;
        assert_eq!(bos.call("svc", "echo", json!({})).await["code"], "quarantined");
        let digest = world.status("svc").await["drift"]["digest"].clone();
        bos.call_text("svc", "redefine", json!({ "about": "tell everybody" })).await;
        eventually("it is another one", async || {
            (world.status("svc").await["drift"]["digest"] != digest).then_some(())
        })
        .await;
        let late = owner.peer().await;
        let late = late.request("mcp_approve", json!({ "server_name": "svc", "digest": digest })).await;
        assert_eq!(late["code"], "conflict", "nobody approves what they did not see: {late}");
        bos.call_text("svc", "redefine", json!({ "about": "version pays" })).await;
        eventually("what was approved is back", async || has(&names(&bo).await, "echo").then_some(())).await;
        assert_eq!(world.status("svc").await.get("drift"), None);
    })
    .await;
}
