//! Lists and reports.

use broker::store::{LastReport, Wanted};
use serde_json::json;
use wire::Generation;
use wire::report::{Lists, ServiceReport};

use crate::on_both;
use crate::world::{World, a_mesh, mesh};

on_both! {
    lists_come_back_byte_for_byte;
    an_older_generation_does_not_overwrite_newer_lists;
    the_last_report_is_kept_for_each_service;
    what_was_observed_goes_with_its_service_and_does_not_come_back;
}

/// Spaces, an unknown field, an escape, a number that `f64` can't hold and odd order: all must survive.
const TOOL: &str = r#"{ "zeta":1,"name":"echo",  "x-vendor":{"n":12345678901234567890.123},"description":"\u0000\u00e4 \"q\" \u2028" }"#;

fn lists(generation: i64, instructions: &str) -> Lists {
    let text = format!(
        r#"{{"generation":{generation},"protocol":"2025-11-25","server_info":{{"name":"e" }},"capabilities":{{}},
        "instructions":{},"tools":[{TOOL}],"prompts":[],"resources":[],"resource_templates":[]}}"#,
        json!(instructions)
    );
    serde_json::from_str(&text).expect("lists")
}

async fn lists_come_back_byte_for_byte(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.lists().put(&key, &lists(1, "use it"), 9).await.expect("puts"));
    tx.commit().await.expect("commits");
    let mut tx = world.store.read().await.expect("reads");
    let found = tx.lists().get(&key).await.expect("finds").expect("is there");
    assert_eq!((found.key.clone(), found.updated_at), (key.clone(), 9));
    assert_eq!(found.lists.tools[0].get(), TOOL);
    assert_eq!(found.lists.server_info.get(), r#"{"name":"e" }"#);
    assert_eq!(found.lists.instructions.as_deref(), Some("use it"));
    let of_mesh = tx.lists().of_mesh(&world.mesh).await.expect("lists");
    assert_eq!(of_mesh.iter().map(|l| l.key.clone()).collect::<Vec<_>>(), [key]);
    assert!(tx.lists().of_mesh(&mesh(2)).await.expect("lists").is_empty());
    assert_eq!(tx.lists().list_all().await.expect("lists").len(), 1);
    assert!(tx.lists().get(&world.key("other")).await.expect("finds").is_none());
}

async fn an_older_generation_does_not_overwrite_newer_lists(world: World) {
    let key = world.key("echo");
    for n in 1..=3 {
        world.deploy(&key, n).await.expect("deploys");
    }
    let mut tx = world.store.begin().await.expect("begins");
    for (generation, instructions, is_newest) in
        [(2, "second", true), (1, "late first", false), (2, "second, changed", true), (3, "third", true)]
    {
        let put = tx.lists().put(&key, &lists(generation, instructions), generation).await.expect("puts");
        assert_eq!(put, is_newest, "{instructions}");
    }
    let found = tx.lists().get(&key).await.expect("finds").expect("is there");
    assert_eq!((found.lists.generation, found.updated_at), (Generation(3), 3));
    assert_eq!(found.lists.instructions.as_deref(), Some("third"));
}

fn report(world: &World, name: &str, revision: u64) -> ServiceReport {
    let serving = json!({ "generation": 1, "phase": "ready", "restarts": 2, "tier": "strict",
            "usage": { "memory_bytes": 5_000_000_000_u64, "pids": 3, "disk_bytes": 1 } });
    let text = json!({ "service": world.key(name), "revision": revision, "serving": serving });
    serde_json::from_value(text).expect("a report")
}

async fn the_last_report_is_kept_for_each_service(world: World) {
    for name in ["a", "b"] {
        world.deploy(&world.key(name), 1).await.expect("deploys");
    }
    let mut tx = world.store.begin().await.expect("begins");
    for (name, revision) in [("a", 1), ("b", 7), ("a", 2)] {
        assert!(tx.observed().put(&report(&world, name, revision), 50).await.expect("puts"));
    }
    let a = LastReport { report: report(&world, "a", 2), updated_at: 50 };
    let b = LastReport { report: report(&world, "b", 7), updated_at: 50 };
    assert_eq!(tx.observed().get(&world.key("a")).await.expect("finds"), Some(a.clone()));
    assert_eq!(tx.observed().list_all().await.expect("lists"), [a, b]);
    assert_eq!(tx.observed().get(&world.key("c")).await.expect("finds"), None);
}

async fn what_was_observed_goes_with_its_service_and_does_not_come_back(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    tx.meshes().insert(&a_mesh(&mesh(2))).await.expect("another mesh");
    assert!(tx.observed().put(&report(&world, "a", 1), 50).await.expect("puts"));
    assert!(tx.lists().put(&key, &lists(1, ""), 50).await.expect("puts"));
    assert!(tx.services().set_wanted(&key, Wanted::Gone, 51).await.expect("sets"));
    assert!(tx.services().delete(&key).await.expect("deletes"));
    assert!(!tx.observed().put(&report(&world, "a", 2), 52).await.expect("answers"));
    assert!(!tx.lists().put(&key, &lists(1, ""), 52).await.expect("answers"));
    tx.commit().await.expect("commits");
    world.deploy(&key, 1).await.expect("a new service of that name");
    let mut tx = world.store.read().await.expect("reads");
    assert_eq!(tx.observed().get(&key).await.expect("finds"), None);
    assert!(tx.lists().get(&key).await.expect("finds").is_none());
}
