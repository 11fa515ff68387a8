//! What a service may not exceed, and how weak its jail may be: real runner, real jails, a server that tries.

mod world;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use world::World;

/// The first reason that the service was not well for.
async fn fallen(world: &World, name: &str) -> Value {
    world
        .until(name, |report| {
            let serving = &report["serving"];
            let is_down = serving["phase"] != json!("ready") && !serving["reason"].is_null();
            is_down.then(|| serving["reason"].clone())
        })
        .await
}

async fn with_limit(world: &World, name: &str, limit: &str, value: u32) {
    let mut wish = world.wish(&[]);
    wish["spec"]["limits"] = json!({ limit: value });
    let ready = world.deploy(name, &wish).await;
    assert_eq!(ready["phase"], json!("ready"), "{ready}");
    is_nobody_elses(&ready);
}

/// Where the runner is root, no service is.
fn is_nobody_elses(ready: &Value) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", ready["pid"])).expect("it runs");
    let uids = status.lines().find(|line| line.starts_with("Uid:")).expect("a line");
    let is_own = uids.split_ascii_whitespace().skip(1).all(|uid| uid.starts_with("20") && uid.len() == 5);
    assert!(is_own || !nix::unistd::geteuid().is_root(), "{uids}");
}

async fn has_cgroups(world: &World) -> bool {
    let (_, health) = world.send(Method::GET, "/health", Bytes::new()).await;
    let all = health["isolation"]["primitives"].as_array().expect("primitives").clone();
    let group = all.iter().find(|primitive| primitive["name"] == json!("cgroup")).expect("listed");
    let has = group["refusal"].is_null();
    if !has {
        assert!(std::env::var_os("CI").is_none(), "no cgroups: {group}");
        eprintln!("skipped: no cgroups: {group}");
    }
    has
}

#[tokio::test]
async fn a_server_that_eats_all_memory_ends_with_that_reason_and_its_neighbour_does_not_notice() {
    for settings in [&[][..], &["cgroups=off"]] {
        let world = World::start(settings).await;
        if settings.is_empty() && !has_cgroups(&world).await {
            continue;
        }
        with_limit(&world, "eater", "memory_mb", 128).await;
        with_limit(&world, "neighbour", "memory_mb", 512).await;
        let (lost, reason) = tokio::join!(world.call("eater", "eat", json!({})), fallen(&world, "eater"));
        assert!(!lost["error"].is_null(), "{lost}");
        assert_eq!(reason["code"], json!("out_of_memory"), "{settings:?}: {reason}");
        assert!(reason["message"].as_str().expect("words").contains("128 MiB"), "{reason}");
        assert_eq!(world.text("neighbour", "echo", json!({"text": "well"})).await, "well");
        assert_eq!(world.text("eater", "echo", json!({"text": "back"})).await, "back");
    }
}

#[tokio::test]
async fn a_service_of_which_one_process_was_killed_for_memory_is_ended() {
    let world = World::start(&[]).await;
    if !has_cgroups(&world).await {
        return;
    }
    with_limit(&world, "app", "memory_mb", 128).await;
    let before = world.text("app", "born", json!({})).await;
    let (fed, reason) = tokio::join!(world.call("app", "feed", json!({})), fallen(&world, "app"));
    assert!(fed["error"].is_null() || fed["error"]["code"] == json!("instance_lost"), "{fed}");
    assert_eq!(reason["code"], json!("out_of_memory"), "{reason}");
    assert_ne!(world.text("app", "born", json!({})).await, before);
}

#[tokio::test]
async fn without_cgroups_many_processes_can_not_hold_what_one_may_not() {
    let world = World::start(&["cgroups=off"]).await;
    with_limit(&world, "app", "memory_mb", 128).await;
    let (_, reason) = tokio::join!(world.call("app", "herd", json!({})), fallen(&world, "app"));
    assert_eq!(reason["code"], json!("out_of_memory"), "{reason}");
    assert!(reason["message"].as_str().expect("words").contains("more than 3 times the 128 MiB"), "{reason}");
}

#[tokio::test]
async fn a_server_that_ends_for_want_of_processes_is_told_so() {
    let world = World::start(&[]).await;
    if !has_cgroups(&world).await {
        return;
    }
    with_limit(&world, "app", "pids", 32).await;
    let (_, reason) = tokio::join!(world.call("app", "fork", json!({"n": 200})), fallen(&world, "app"));
    assert_eq!(reason["code"], json!("too_many_processes"), "{reason}");
    assert!(reason["message"].as_str().expect("words").contains("--pids"), "{reason}");
}

#[tokio::test]
async fn a_data_directory_over_its_limit_ends_the_service_and_keeps_it_down() {
    let world = World::start(&[]).await;
    with_limit(&world, "app", "disk_mb", 4).await;
    let (_, reason) = tokio::join!(world.call("app", "fill", json!({"mb": 12})), fallen(&world, "app"));
    assert_eq!(reason["code"], json!("disk_exceeded"), "{reason}");
    assert!(reason["message"].as_str().expect("words").contains("of the 4 MiB"), "{reason}");
    let looped = world.phase("app", "crash_loop").await;
    assert_eq!(looped["reason"]["code"], json!("disk_exceeded"), "{looped}");
    assert!(world.processes().is_empty(), "{:?}", world.processes());
}

#[tokio::test]
async fn what_a_service_uses_is_reported() {
    let world = World::start(&["sample=200"]).await;
    world.deploy("app", &world.wish(&[])).await;
    let usage = world
        .until("app", |report| Some(&report["serving"]["usage"]).filter(|usage| !usage.is_null()).cloned())
        .await;
    assert!(usage["memory_bytes"].as_u64().expect("bytes") > 4 << 20, "{usage}");
    assert!(usage["pids"].as_u64().expect("a number") >= 1, "{usage}");
    if has_cgroups(&world).await {
        assert!(usage["cpu_ms"].as_u64().expect("time") > 0, "{usage}");
    }
    world.call("app", "fill", json!({"mb": 3})).await;
    world
        .until("app", |report| {
            let disk = report["serving"]["usage"]["disk_bytes"].as_u64()?;
            (disk >= 3 << 20).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_weaker_jail_than_is_demanded_is_refused_until_the_demand_is_lowered() {
    let world = World::start(&["tier=light"]).await;
    let mut wish = world.wish(&[]);
    let failed = world.deploy("app", &wish).await;
    assert_eq!(failed["reason"]["code"], json!("isolation_unavailable"), "{failed}");
    let message = failed["reason"]["message"].as_str().expect("words");
    assert!(message.contains("strict") && message.contains("configuration"), "{message}");
    assert_eq!(failed["phase"], json!("failed"));
    assert!(!world.dir.path().join("data/artefacts").read_dir().is_ok_and(|mut all| all.next().is_some()));
    // The same generation, and a mesh that is content with less.
    wish["policy"] = json!({"min_isolation": "light"});
    let ready = world.deploy("app", &wish).await;
    assert_eq!((&ready["phase"], &ready["tier"]), (&json!("ready"), &json!("light")), "{ready}");
    assert_eq!(world.text("app", "echo", json!({"text": "hi"})).await, "hi");
    is_nobody_elses(&ready);
    // And one that changed its mind: what runs is ended.
    wish["policy"] = json!({"min_isolation": "strict"});
    world.apply("app", &wish).await;
    let failed = world.phase("app", "failed").await;
    assert_eq!(failed["reason"]["code"], json!("isolation_unavailable"), "{failed}");
    world.no_processes().await;
    // The deployer's own demand counts as well.
    let mut own = world.wish(&[]);
    own["policy"] = json!({"min_isolation": "light"});
    own["spec"]["isolation"] = json!("strict");
    let failed = world.deploy("own", &own).await;
    assert_eq!(failed["reason"]["code"], json!("isolation_unavailable"), "{failed}");
}

#[tokio::test]
async fn a_name_that_no_rule_lists_is_refused_and_reported_within_a_moment() {
    let world = World::start(&[]).await;
    world.deploy("app", &world.wish(&[])).await;
    let answer = world.text("app", "reach", json!({"host": "api.blocked.example"})).await;
    assert!(!answer.starts_with("11.198."), "{answer}");
    let decision = world.until("app", |report| report["egress"].as_array()?.last().cloned()).await;
    assert_eq!(decision["host"], json!("api.blocked.example"), "{decision}");
    assert_eq!(decision["verdict"], json!("not_listed"), "{decision}");
    // The service remembers, whatever becomes of the instance.
    world.call("app", "crash", json!({})).await;
    world.text("app", "echo", json!({"text": "back"})).await;
    let (_, report) = world.send(Method::GET, &world.path("app", ""), Bytes::new()).await;
    assert_eq!(report["egress"][0]["host"], json!("api.blocked.example"), "{report}");
    let mut wish = world.wish(&[]);
    wish["spec"]["network"] = json!(["api.blocked.example"]);
    world.deploy("app", &wish).await;
    let answer = world.text("app", "reach", json!({"host": "api.blocked.example"})).await;
    assert!(answer.starts_with("11.198.") || answer.starts_with("11.199."), "{answer}");
}
