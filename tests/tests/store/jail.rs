//! Policies, approvals, and what became of connections.

use broker::store::{KEPT_MS, KEPT_ROWS, Wanted, summed};
use catalog::quarantine::{Item, Kind};
use wire::report::{EgressDecision, Verdict};
use wire::{Generation, Policy, Tier};

use crate::on_both;
use crate::world::{World, member, mesh, open};

on_both! {
    a_mesh_is_strict_until_it_is_told_otherwise;
    what_the_runner_was_told_is_remembered_for_each_service;
    an_approval_is_replaced_as_a_whole_and_goes_with_its_service;
    the_same_counts_twice_or_late_change_nothing;
    lives_of_the_runner_are_kept_apart_and_a_kind_is_new_once;
    only_the_newest_rows_of_the_last_month_are_kept;
    what_was_stored_before_the_jail_is_read_after_it;
}

const LIGHT: Policy = Policy { min_isolation: Tier::Light, min_release_age_s: 60 };

async fn a_mesh_is_strict_until_it_is_told_otherwise(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    assert_eq!(tx.policies().all().await.expect("reads").get(&world.mesh), Some(&Policy::default()));
    assert!(tx.policies().set(&world.mesh, LIGHT).await.expect("sets"));
    assert!(!tx.policies().set(&mesh(9), LIGHT).await.expect("answers"));
    tx.commit().await.expect("commits");
    let mut tx = world.store.read().await.expect("reads");
    assert_eq!(tx.meshes().find(&world.mesh).await.expect("finds").expect("is there").policy, LIGHT);
    assert_eq!(tx.policies().all().await.expect("reads").get(&world.mesh), Some(&LIGHT));
}

async fn what_the_runner_was_told_is_remembered_for_each_service(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.policies().applied().await.expect("reads").is_empty());
    for policy in [Policy::default(), LIGHT] {
        assert!(tx.policies().set_applied(&key, policy).await.expect("sets"));
    }
    assert!(!tx.policies().set_applied(&world.key("other"), LIGHT).await.expect("answers"));
    assert_eq!(tx.policies().applied().await.expect("reads"), [(key.clone(), LIGHT)].into());
    tx.services().set_wanted(&key, Wanted::Gone, 2).await.expect("sets");
    tx.services().delete(&key).await.expect("deletes");
    assert!(tx.policies().applied().await.expect("reads").is_empty());
}

fn item(name: &str, definition: &str) -> Item {
    Item { kind: Kind::Tool, name: name.into(), definition: definition.into() }
}

async fn an_approval_is_replaced_as_a_whole_and_goes_with_its_service(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert_eq!(tx.approvals().get(&key).await.expect("reads"), None);
    let (first, second) = (vec![item("a", "{}"), item("b", "{\"é\":\"\\u0000\"}")], vec![item("b", "{}")]);
    for (at, items) in [(5, &first), (6, &second)] {
        assert!(tx.approvals().put(&key, items, &world.owner, at).await.expect("puts"));
        let found = tx.approvals().get(&key).await.expect("reads").expect("is there");
        assert_eq!((&found.items, &found.by, found.at), (items, &world.owner, at));
    }
    assert_eq!(tx.approvals().of_mesh(&world.mesh).await.expect("reads").len(), 1);
    assert!(tx.approvals().of_mesh(&mesh(9)).await.expect("reads").is_empty());
    assert!(!tx.approvals().put(&world.key("other"), &first, &world.owner, 7).await.expect("answers"));
    tx.services().set_wanted(&key, Wanted::Gone, 8).await.expect("sets");
    tx.services().delete(&key).await.expect("deletes");
    assert_eq!(tx.approvals().get(&key).await.expect("reads"), None);
    drop(tx);
    world.deploy(&world.key("b"), 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    let by_nobody = tx.approvals().put(&world.key("b"), &first, &member(77), 7).await;
    assert!(by_nobody.expect_err("is refused").is_foreign_key_violation());
}

fn decision(host: &str, count: u64, last_ms: i64) -> EgressDecision {
    let verdict = Verdict::NotListed;
    EgressDecision {
        host: host.into(),
        port: 443,
        verdict,
        count,
        last_ms,
        sent_bytes: count * 2,
        received_bytes: 1,
        injected: 0,
    }
}

async fn sums(world: &World, name: &str) -> Vec<(String, u64, u64)> {
    let mut tx = world.store.read().await.expect("reads");
    let rows = tx.egress().of(&world.key(name)).await.expect("reads");
    summed(rows, 5000).into_iter().map(|d| (d.host, d.count, d.sent_bytes)).collect()
}

async fn the_same_counts_twice_or_late_change_nothing(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    for count in [3, 3, 5, 4, 5] {
        let mut tx = world.store.begin().await.expect("begins");
        tx.egress().record(&key, "boot", &[decision("a", count, 100)], 100).await.expect("records");
        tx.commit().await.expect("commits");
    }
    assert_eq!(sums(&world, "a").await, [("a".to_owned(), 5, 10)]);
}

async fn lives_of_the_runner_are_kept_apart_and_a_kind_is_new_once(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    let mut fresh = Vec::new();
    for (boot, count) in [("1", 3), ("1", 4), ("2", 1)] {
        let learned = EgressDecision { verdict: Verdict::Learned, ..decision("a", count, 100) };
        let told = [decision("a", count, 100), learned];
        fresh.push(tx.egress().record(&key, boot, &told, 100).await.expect("records").len());
    }
    assert_eq!(fresh, [2, 0, 0]);
    let gone = tx.egress().record(&world.key("gone"), "1", &[decision("a", 1, 100)], 100).await;
    assert_eq!(gone.expect("answers"), [], "nobody is told of a service that is not there");
    tx.commit().await.expect("commits");
    assert_eq!(sums(&world, "a").await, [("a".to_owned(), 5, 10), ("a".to_owned(), 5, 10)]);
}

async fn only_the_newest_rows_of_the_last_month_are_kept(world: World) {
    for name in ["a", "b"] {
        world.deploy(&world.key(name), 1).await.expect("deploys");
    }
    let mut tx = world.store.begin().await.expect("begins");
    let old = [decision("old", 1, 10)];
    tx.egress().record(&world.key("a"), "1", &old, 10).await.expect("records");
    tx.egress().record(&world.key("b"), "1", &old, 10).await.expect("records");
    // All at the same time: the bound holds even then.
    let now = 10 + KEPT_MS + 1;
    let been = EgressDecision { verdict: Verdict::Allowed, ..decision("been", 1, now - 1) };
    tx.egress().record(&world.key("a"), "1", &[been], now).await.expect("records");
    let many: Vec<_> = (0..KEPT_ROWS + 20).map(|n| decision(&format!("h{n}"), 1, now)).collect();
    tx.egress().record(&world.key("a"), "1", &many, now).await.expect("records");
    let rows = tx.egress().of(&world.key("a")).await.expect("reads");
    assert_eq!(i64::try_from(rows.len()), Ok(KEPT_ROWS + 1));
    assert!(rows.iter().any(|row| row.decision.host == "been"), "what was refused does not wash it out");
    assert!(rows.iter().all(|row| row.decision.host != "old"));
    assert_eq!(
        tx.egress().of(&world.key("b")).await.expect("reads").len(),
        1,
        "another service keeps its own"
    );
}

/// A database as the version before the jail left it.
async fn what_was_stored_before_the_jail_is_read_after_it(world: World) {
    let key = world.key("a");
    world.deploy(&key, 1).await.expect("deploys");
    for later in [
        "skill_file",
        "skill",
        "live_server",
        "vault_grant",
        "vault_key",
        "vault_entry",
        "vault_envelope",
        "vault_runner",
        "vault_opening",
        "vault_act",
        "boot_key",
        "consent",
        "caller_instance",
        "mesh_key",
    ] {
        world.damage(&format!("DROP TABLE {later}")).await;
    }
    for statement in [
        "DROP TABLE egress_decision",
        "DROP TABLE approval",
        "DROP TABLE applied_policy",
        "ALTER TABLE mesh DROP COLUMN min_isolation",
        "ALTER TABLE mesh DROP COLUMN min_release_age_s",
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        "UPDATE generation SET spec = '{\"source\":{\"type\":\"npx\",\"package\":\"p\"},\
         \"limits\":{\"memory_mb\":1024,\"open_files\":1024,\"file_size_mb\":77}}'",
    ] {
        world.damage(statement).await;
    }
    let report = "{\"service\":{\"mesh\":\"MESH\",\"name\":\"a\"},\"revision\":1,\
        \"serving\":{\"generation\":1,\"phase\":\"ready\",\"restarts\":0,\"memory_bytes\":5,\"pid\":7}}";
    let report = report.replace("MESH", world.mesh.as_str());
    let insert = format!(
        "INSERT INTO observed (mesh_id, name, report, updated_at) SELECT id, 'a', '{report}', 5 FROM mesh"
    );
    world.damage(&insert).await;
    let store = open(&world.url).await.expect("opens, and migrates");
    let mut tx = store.begin().await.expect("begins");
    let spec = tx.generations().find(&key, Generation(1)).await.expect("reads").expect("is there").spec;
    assert_eq!((spec.limits.disk_mb, spec.limits.pids, spec.network.len()), (77, 128, 0));
    assert_eq!(tx.observed().list_all().await.expect("reads")[0].report.service, key);
    assert_eq!(tx.policies().all().await.expect("reads").get(&world.mesh), Some(&Policy::default()));
    assert!(tx.policies().applied().await.expect("reads").is_empty(), "so the runner is told the policy");
    assert_eq!(tx.approvals().get(&key).await.expect("reads"), None);
    drop(tx);
    store.close().await;
}
