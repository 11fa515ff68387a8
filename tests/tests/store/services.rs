//! Services and their generations.

use broker::store::{Deploy, FailedGeneration, Store, StoreError, Wanted};
use vault::AtRestKey;
use wire::{Generation, Scope};

use crate::on_both;
use crate::world::{World, a_mesh, archive, mesh, npx, pin, reason};

on_both! {
    a_deploy_writes_a_generation_and_targets_it;
    a_deploy_that_saw_an_older_state_changes_nothing;
    of_two_deploys_at_once_one_wins;
    a_failed_candidate_gives_way_to_what_serves;
    a_failure_that_nobody_waits_for_is_dropped;
    a_generation_is_proven_once_and_keeps_its_first_pin;
    starting_forgets_that_the_target_failed;
    a_service_that_is_going_can_only_go;
    a_scope_changes_only_from_the_one_that_was_seen;
    meshes_do_not_see_each_other;
    the_newest_proven_generation_before_the_target_is_where_a_rollback_goes;
    pruning_keeps_the_newest_the_target_and_the_way_back;
    what_a_runner_must_keep_is_what_some_generation_names;
    a_transaction_that_is_dropped_never_happened;
    a_reader_writes_nothing_and_sees_one_moment;
    a_quota_holds_when_writers_take_turns;
    a_row_that_we_can_not_have_written_is_named_without_its_value;
}

async fn a_deploy_writes_a_generation_and_targets_it(world: World) {
    let key = world.key("echo");
    let sealed = AtRestKey::generate().seal(&["x"], b"secret");
    let (spec, scope) = (npx("echo@1"), Scope::Group { group: "eng".into() });
    let deploy = Deploy { secrets: Some(&sealed), pin: Some(&pin(7)), ..world.plain(&key, 1, &spec, &scope) };
    let mut tx = world.store.begin().await.expect("begins");
    tx.services().deploy(deploy).await.expect("deploys");
    tx.commit().await.expect("commits");

    let service = world.service(&key).await.expect("is there");
    assert_eq!(
        (service.target, service.latest, service.wanted),
        (Generation(1), Generation(1), Wanted::Running)
    );
    assert_eq!((service.scope.clone(), service.deployed_by.clone()), (scope, world.owner.clone()));
    assert_eq!((service.created_at, service.updated_at, service.failed.clone()), (101, 101, None));
    let mut tx = world.store.read().await.expect("reads");
    let stored = tx.generations().find(&key, Generation(1)).await.expect("finds").expect("is there");
    assert_eq!((stored.spec, stored.secrets, stored.pin), (spec, Some(sealed), Some(pin(7))));
    assert_eq!((stored.proven, stored.created_at), (false, 101));

    world.deploy(&key, 2).await.expect("redeploys");
    let service = world.service(&key).await.expect("is there");
    assert_eq!((service.target, service.latest, service.scope), (Generation(2), Generation(2), Scope::Peer));
    assert_eq!((service.created_at, service.updated_at), (101, 102));
}

async fn a_deploy_that_saw_an_older_state_changes_nothing(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    world.deploy(&key, 2).await.expect("deploys");
    let before = world.service(&key).await;
    for stale in [1, 2, 4, 0, -1] {
        assert!(matches!(world.deploy(&key, stale).await, Err(StoreError::Conflict)), "{stale}");
    }
    assert!(matches!(world.deploy(&world.key("other"), 2).await, Err(StoreError::Conflict)));
    assert_eq!(world.service(&key).await, before);
    assert_eq!(world.service(&world.key("other")).await, None);
}

async fn of_two_deploys_at_once_one_wins(world: World) {
    let key = world.key("echo");
    for generation in 1..=20 {
        let attempt = |store: Store, package: String| {
            let (key, owner) = (key.clone(), world.owner.clone());
            async move {
                let mut tx = store.begin().await.expect("begins");
                let (spec, scope) = (npx(&package), Scope::Mesh);
                let generation = Generation(generation);
                let (by, at) = (&owner, 5);
                let deploy = Deploy {
                    key: &key,
                    generation,
                    by,
                    scope: &scope,
                    spec: &spec,
                    secrets: None,
                    pin: None,
                    starts: true,
                    at,
                };
                let result = tx.services().deploy(deploy).await;
                if result.is_ok() {
                    tx.commit().await.expect("commits");
                }
                (result, package)
            }
        };
        let mut attempts = tokio::task::JoinSet::new();
        for n in 0..3 {
            attempts.spawn(attempt(world.store.clone(), format!("package-{n}")));
        }
        let (won, lost): (Vec<_>, Vec<_>) =
            attempts.join_all().await.into_iter().partition(|(r, _)| r.is_ok());
        assert_eq!(won.len(), 1, "generation {generation}");
        assert!(lost.iter().all(|(r, _)| matches!(r, Err(StoreError::Conflict))), "{lost:?}");
        let mut tx = world.store.read().await.expect("reads");
        let stored =
            tx.generations().find(&key, Generation(generation)).await.expect("finds").expect("is there");
        assert_eq!(stored.spec, npx(&won[0].1));
    }
}

fn failed(n: i64, message: &str) -> FailedGeneration {
    FailedGeneration { generation: Generation(n), reason: reason(message) }
}

async fn a_failed_candidate_gives_way_to_what_serves(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.services().record_failure(&key, &failed(1, "first"), None, 7).await.expect("records"));
    tx.commit().await.expect("commits");
    let service = world.service(&key).await.expect("is there");
    assert_eq!((service.target, service.failed.clone()), (Generation(1), Some(failed(1, "first"))));
    assert!(service.has_failed(), "nothing serves");

    world.deploy(&key, 2).await.expect("deploys");
    assert_eq!(world.service(&key).await.expect("is there").failed, None, "a deploy is a new attempt");
    assert!(world.prove(&key, 2).await);
    world.deploy(&key, 3).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    let fall_back = Some(Generation(2));
    assert!(tx.services().record_failure(&key, &failed(3, "third"), fall_back, 9).await.expect("records"));
    tx.commit().await.expect("commits");
    let service = world.service(&key).await.expect("is there");
    assert_eq!((service.target, service.latest, service.updated_at), (Generation(2), Generation(3), 9));
    assert_eq!(service.failed, Some(failed(3, "third")));
    assert!(!service.has_failed(), "2 serves");
    world.deploy(&key, 4).await.expect("counts on from the failed one");
}

async fn a_failure_that_nobody_waits_for_is_dropped(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    world.deploy(&key, 2).await.expect("supersedes");
    let before = world.service(&key).await;
    let mut tx = world.store.begin().await.expect("begins");
    assert!(!tx.services().record_failure(&key, &failed(1, "late"), None, 9).await.expect("records"));
    assert!(!tx.services().set_target(&key, Generation(1), Generation(1), 9).await.expect("answers"));
    tx.commit().await.expect("commits");
    assert_eq!(world.service(&key).await, before);
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.services().set_target(&key, Generation(2), Generation(1), 9).await.expect("answers"));
    let past_the_latest = tx.services().set_target(&key, Generation(1), Generation(9), 9).await;
    assert!(past_the_latest.is_err(), "the schema refuses it");
}

async fn a_generation_is_proven_once_and_keeps_its_first_pin(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.services().record_failure(&key, &failed(1, "a start"), None, 7).await.expect("records"));
    assert!(tx.services().mark_proven(&key, Generation(1), Some(&pin(1))).await.expect("proves"));
    assert!(!tx.services().mark_proven(&key, Generation(1), Some(&pin(2))).await.expect("answers"));
    assert!(!tx.services().mark_proven(&key, Generation(2), Some(&pin(2))).await.expect("answers"));
    let stored = tx.generations().find(&key, Generation(1)).await.expect("finds").expect("is there");
    assert_eq!((stored.proven, stored.pin), (true, Some(pin(1))));
    assert_eq!(tx.services().find(&key).await.expect("finds").expect("is there").failed, None);
}

async fn starting_forgets_that_the_target_failed(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    tx.services().record_failure(&key, &failed(1, "no key"), None, 7).await.expect("records");
    assert!(tx.services().set_wanted(&key, Wanted::Stopped, 8).await.expect("sets"));
    let stopped = tx.services().find(&key).await.expect("finds").expect("is there");
    assert_eq!((stopped.wanted, stopped.has_failed(), stopped.updated_at), (Wanted::Stopped, true, 8));
    assert!(tx.services().set_wanted(&key, Wanted::Running, 9).await.expect("sets"));
    let started = tx.services().find(&key).await.expect("finds").expect("is there");
    assert_eq!((started.wanted, started.failed), (Wanted::Running, None));

    // A failed update stays on show: what is started is the version before it.
    tx.commit().await.expect("commits");
    world.prove(&key, 1).await;
    world.deploy(&key, 2).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    tx.services().record_failure(&key, &failed(2, "worse"), Some(Generation(1)), 7).await.expect("records");
    tx.services().set_wanted(&key, Wanted::Running, 9).await.expect("sets");
    let service = tx.services().find(&key).await.expect("finds").expect("is there");
    assert_eq!(service.failed, Some(failed(2, "worse")));
    assert!(!tx.services().set_wanted(&world.key("other"), Wanted::Running, 9).await.expect("answers"));
}

async fn a_service_that_is_going_can_only_go(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(!tx.services().delete(&key).await.expect("answers"), "somebody wants it");
    assert!(tx.services().set_wanted(&key, Wanted::Gone, 8).await.expect("sets"));
    tx.commit().await.expect("commits");

    for generation in [1, 2] {
        assert!(matches!(world.deploy(&key, generation).await, Err(StoreError::Conflict)));
    }
    let mut tx = world.store.begin().await.expect("begins");
    assert!(!tx.services().set_wanted(&key, Wanted::Running, 9).await.expect("answers"));
    assert!(!tx.services().set_target(&key, Generation(1), Generation(1), 9).await.expect("answers"));
    let widened = tx.services().set_scope(&key, &Scope::Peer, &Scope::Mesh, 9).await;
    assert!(matches!(widened, Err(StoreError::Conflict)));
    assert!(tx.services().delete(&key).await.expect("deletes"));
    assert!(!tx.services().delete(&key).await.expect("answers"));
    assert_eq!(tx.generations().list(&key).await.expect("lists"), []);
    tx.commit().await.expect("commits");
    assert_eq!(world.service(&key).await, None);
    world.deploy(&key, 1).await.expect("the name is free again");
}

async fn a_scope_changes_only_from_the_one_that_was_seen(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let people = Scope::Peers { allow: ["Bo".to_owned(), "Ana".to_owned()].into() };
    let mut tx = world.store.begin().await.expect("begins");
    tx.services().set_scope(&key, &Scope::Peer, &people, 9).await.expect("changes");
    let stale = tx.services().set_scope(&key, &Scope::Peer, &Scope::Mesh, 10).await;
    assert!(matches!(stale, Err(StoreError::Conflict)));
    let service = tx.services().find(&key).await.expect("finds").expect("is there");
    assert_eq!((service.scope, service.updated_at), (people.clone(), 9));
    tx.services().set_scope(&key, &people, &Scope::Mesh, 11).await.expect("changes");
}

async fn meshes_do_not_see_each_other(world: World) {
    let (here, mut there) = (world.key("echo"), world.key("echo"));
    there.mesh = mesh(2);
    let mut tx = world.store.begin().await.expect("begins");
    tx.meshes().insert(&a_mesh(&there.mesh)).await.expect("another mesh");
    tx.commit().await.expect("commits");
    for key in [&here, &there] {
        world.deploy(key, 1).await.expect("one name in two meshes");
    }
    world.deploy(&there, 2).await.expect("deploys");
    world.deploy(&world.key("also"), 1).await.expect("deploys");
    let mut tx = world.store.begin().await.expect("begins");
    let names = |list: Vec<broker::store::Service>| -> Vec<String> {
        list.into_iter().map(|s| format!("{}@{}", s.key.name, s.latest)).collect()
    };
    assert_eq!(names(tx.services().list(&here.mesh).await.expect("lists")), ["also@1", "echo@1"]);
    assert_eq!(names(tx.services().list(&there.mesh).await.expect("lists")), ["echo@2"]);
    assert_eq!(names(tx.services().list_all().await.expect("lists")), ["also@1", "echo@1", "echo@2"]);
    assert_eq!(tx.services().count(&here.mesh).await.expect("counts"), 2);
    assert_eq!(tx.services().count(&mesh(3)).await.expect("counts"), 0);
    tx.services().set_wanted(&there, Wanted::Gone, 9).await.expect("sets");
    tx.services().delete(&there).await.expect("deletes");
    assert_eq!(tx.generations().list(&here).await.expect("lists").len(), 1);
}

async fn the_newest_proven_generation_before_the_target_is_where_a_rollback_goes(world: World) {
    let key = world.key("echo");
    for n in 1..=4 {
        world.deploy(&key, n).await.expect("deploys");
    }
    let previous = async |before: i64| {
        let mut tx = world.store.read().await.expect("reads");
        let found = tx.generations().previous_proven(&key, Generation(before)).await.expect("finds");
        found.map(|g| g.generation.0)
    };
    assert_eq!(previous(4).await, None);
    world.prove(&key, 1).await;
    world.prove(&key, 2).await;
    world.prove(&key, 4).await;
    assert_eq!((previous(4).await, previous(2).await, previous(1).await), (Some(2), Some(1), None));
    let mut tx = world.store.read().await.expect("reads");
    let all: Vec<i64> =
        tx.generations().list(&key).await.expect("lists").iter().map(|g| g.generation.0).collect();
    assert_eq!(all, [4, 3, 2, 1]);
}

async fn pruning_keeps_the_newest_the_target_and_the_way_back(world: World) {
    let (key, other) = (world.key("echo"), world.key("other"));
    for n in 1..=9 {
        world.deploy(&key, n).await.expect("deploys");
        world.deploy(&other, n).await.expect("deploys");
    }
    for n in [1, 3, 5] {
        world.prove(&key, n).await;
    }
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.services().set_target(&key, Generation(9), Generation(5), 9).await.expect("sets"));
    assert_eq!(tx.generations().prune(&key, 2).await.expect("prunes"), 5);
    let left: Vec<i64> =
        tx.generations().list(&key).await.expect("lists").iter().map(|g| g.generation.0).collect();
    assert_eq!(left, [9, 8, 5, 3], "newest two, target, and the proven one before it");
    assert_eq!(tx.generations().prune(&key, 2).await.expect("prunes"), 0);
    assert_eq!(tx.generations().list(&other).await.expect("lists").len(), 9);
}

async fn what_a_runner_must_keep_is_what_some_generation_names(world: World) {
    let (a, b) = (world.key("a"), world.key("b"));
    let sha = "ab".repeat(32);
    let mut tx = world.store.begin().await.expect("begins");
    tx.uploads().put(&world.mesh, &sha, &world.owner, b"zip", 1).await.expect("uploads");
    let (spec, scope) = (archive(&sha), Scope::Peer);
    tx.services().deploy(world.plain(&a, 1, &spec, &scope)).await.expect("deploys");
    tx.commit().await.expect("commits");
    world.deploy(&b, 1).await.expect("deploys");
    world.deploy(&b, 2).await.expect("deploys");
    world.prove(&b, 1).await;
    let mut tx = world.store.read().await.expect("reads");
    let needed = tx.generations().needed().await.expect("answers");
    assert_eq!((needed.artefacts, needed.blobs), (vec!["artefact-1".to_owned()], vec![sha]));
}

async fn a_transaction_that_is_dropped_never_happened(world: World) {
    let key = world.key("echo");
    let mut tx = world.store.begin().await.expect("begins");
    let (spec, scope) = (npx("echo"), Scope::Peer);
    tx.services().deploy(world.plain(&key, 1, &spec, &scope)).await.expect("deploys");
    assert!(tx.services().find(&key).await.expect("finds").is_some());
    drop(tx);
    assert_eq!(world.service(&key).await, None);
    world.deploy(&key, 1).await.expect("the writer is free again");
}

async fn a_reader_writes_nothing_and_sees_one_moment(world: World) {
    let key = world.key("echo");
    let mut reader = world.store.read().await.expect("reads");
    assert_eq!(reader.services().count(&world.mesh).await.expect("counts"), 0);
    world.deploy(&key, 1).await.expect("a writer does not wait for readers");
    assert_eq!(reader.services().count(&world.mesh).await.expect("counts"), 0);
    assert!(reader.services().set_wanted(&key, Wanted::Gone, 1).await.is_err());
    drop(reader);
    let mut reader = world.store.read().await.expect("reads");
    assert!(reader.services().set_wanted(&key, Wanted::Gone, 1).await.is_err());
    drop(reader);
    assert_eq!(world.service(&key).await.expect("is there").wanted, Wanted::Running);
}

async fn a_quota_holds_when_writers_take_turns(world: World) {
    const QUOTA: usize = 3;
    let attempt = |store: Store, n: usize| {
        let (key, owner) = (world.key(&format!("s{n}")), world.owner.clone());
        async move {
            let mut tx = store.begin().await.expect("begins");
            assert!(tx.meshes().take_turns(&key.mesh).await.expect("waits"));
            if tx.services().count(&key.mesh).await.expect("counts") < QUOTA {
                let (spec, scope, generation, by) = (npx("echo"), Scope::Peer, Generation(1), &owner);
                let deploy = Deploy {
                    key: &key,
                    generation,
                    by,
                    scope: &scope,
                    spec: &spec,
                    secrets: None,
                    pin: None,
                    starts: true,
                    at: 1,
                };
                tx.services().deploy(deploy).await.expect("deploys");
                tx.commit().await.expect("commits");
            }
        }
    };
    let mut attempts = tokio::task::JoinSet::new();
    for n in 0..10 {
        attempts.spawn(attempt(world.store.clone(), n));
    }
    attempts.join_all().await;
    let mut tx = world.store.begin().await.expect("begins");
    assert_eq!(tx.services().count(&world.mesh).await.expect("counts"), QUOTA);
    assert!(!tx.meshes().take_turns(&mesh(9)).await.expect("answers"));
}

async fn a_row_that_we_can_not_have_written_is_named_without_its_value(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    world.damage("UPDATE service SET scope = '{\"type\":\"hunter2\"}'").await;
    world.damage("UPDATE generation SET spec = 'hunter2'").await;
    let mut tx = world.store.read().await.expect("reads");
    let service = tx.services().find(&key).await.expect_err("is refused");
    assert!(
        matches!(&service, StoreError::Inconsistent { table: "service", column: "scope", id } if id.ends_with("/echo"))
    );
    let generation = tx.generations().find(&key, Generation(1)).await.expect_err("is refused");
    assert!(
        matches!(&generation, StoreError::Inconsistent { column: "spec", id, .. } if id.ends_with("/echo/1"))
    );
    for error in [service, generation] {
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
