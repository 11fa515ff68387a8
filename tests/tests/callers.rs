//! A service that runs as its caller, through the product: an instance for each member, with their own secret, process and
//! home; through restarts, and until its member or the service goes.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tests::{Peer, Person, World, eventually, fixture, processes};

const OLGA: &str = "cm-callers-olga-51d0a7";
const BO: &str = "cm-callers-bo-9e27c4";
const CY: &str = "cm-callers-cy-03bb6f";

async fn set(person: &Person, value: &str) {
    person.fed(["vault", "set", "token"], value.as_bytes()).await;
}

/// The digest of what the instance of this peer holds.
async fn held(peer: &Peer) -> String {
    peer.call_text("svc", "digest", json!({ "name": "TOKEN" })).await
}

fn digest(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

/// Processes that have a value in their environment.
fn holders(world: &World, value: &str) -> Vec<i32> {
    let has = |pid: i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.windows(value.len()).any(|part| part == value.as_bytes())
    };
    processes::of(world.path()).into_iter().map(|found| found.pid).filter(|pid| has(*pid)).collect()
}

/// What the runner keeps of a service and its callers, wherever below a folder.
fn kept(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_folder && (name == "svc" || name.starts_with("svc.") || name.starts_with("svc+")) {
            found.push(path);
        } else if is_folder {
            kept(&path, found);
        }
    }
}

fn homes(world: &World) -> usize {
    let mut found = Vec::new();
    kept(&world.data(), &mut found);
    found.len()
}

async fn ready(world: &World) {
    eventually("the runner is trusted", async || {
        let found = world.owner.json(["runner", "ls"]).await;
        let mut runners = found["runners"].as_array()?.iter();
        runners.any(|runner| runner["granted"].as_array().is_some_and(|all| !all.is_empty())).then_some(())
    })
    .await;
    set(&world.owner, OLGA).await;
    let folder = fixture::keeper_folder(&world.folder("keeper"));
    let folder = folder.to_str().unwrap();
    let flags = ["--run-as=caller", "--env=TOKEN=$vault:token", "--mesh-wide"];
    world.owner.ok([&["deploy", "svc", folder][..], &flags].concat()).await;
}

async fn caller(world: &World, name: &str, value: &str) -> Person {
    let person = world.join(name, &[]).await;
    set(&person, value).await;
    person.ok(["consent", "svc", "--yes"]).await;
    person
}

async fn all_have_their_own(people: &[(&Person, &str)]) {
    for (person, value) in people {
        assert_eq!(held(&person.peer().await).await, digest(value), "{}", person.name);
    }
}

#[tokio::test]
async fn callers_never_share_a_secret_a_process_or_a_home_whatever_restarts() {
    World::scene(async |world| {
        ready(world).await;
        let (bo, cy) = (caller(world, "Bo", BO).await, caller(world, "Cy", CY).await);
        let peer = bo.peer().await;
        let first = join_all((0..20).map(|_| held(&peer))).await;
        assert!(first.iter().all(|one| *one == digest(BO)), "{first:?}");
        assert_eq!(holders(world, BO).len(), 1, "twenty first calls start one instance");
        let people = [(&world.owner, OLGA), (&bo, BO), (&cy, CY)];
        all_have_their_own(&people).await;
        assert_eq!(homes(world), 3);

        let before = holders(world, BO);
        world.kill_9_broker().await;
        world.up().await;
        all_have_their_own(&people).await;
        assert_eq!(holders(world, BO), before, "the instance outlived the broker");
        world.kill_9_runner().await;
        eventually("the services are back", async || {
            let peer = world.try_peer().await?;
            peer.call("svc", "version", json!({})).await["result"].is_object().then_some(())
        })
        .await;
        all_have_their_own(&people).await;

        set(&bo, &format!("{BO}-again")).await;
        assert_eq!(held(&bo.peer().await).await, digest(&format!("{BO}-again")));
        all_have_their_own(&[(&world.owner, OLGA), (&cy, CY)]).await;

        world.owner.ok(["member", "Bo", "--revoke"]).await;
        eventually("the removed member's instance is gone, and its home", async || {
            (holders(world, BO).is_empty() && homes(world) == 2).then_some(())
        })
        .await;
        all_have_their_own(&[(&world.owner, OLGA), (&cy, CY)]).await;
        world.owner.ok(["stop", "svc"]).await;
        eventually("everybody's instance has stopped", async || {
            (holders(world, CY).is_empty() && holders(world, OLGA).is_empty()).then_some(())
        })
        .await;
        world.owner.ok(["rm", "svc"]).await;
        assert_eq!(
            homes(world),
            0,
            "what callers left goes with the service, also when it was stopped before"
        );
    })
    .await;
}

#[tokio::test]
async fn who_lacks_an_entry_or_a_consent_is_told_and_gets_nobody_elses() {
    World::scene(async |world| {
        ready(world).await;
        let (bo, cy) = (world.join("Bo", &[]).await, world.join("Cy", &[]).await);
        set(&bo, BO).await;
        let refused = bo.peer().await.call("svc", "digest", json!({ "name": "TOKEN" })).await;
        assert_eq!(refused["code"], "awaiting_consent", "{refused}");
        cy.ok(["consent", "svc", "--yes"]).await;
        let refused = cy.peer().await.call("svc", "digest", json!({ "name": "TOKEN" })).await;
        assert_eq!(refused["code"], "vault_missing", "{refused}");
        assert!(holders(world, BO).is_empty());
        assert_eq!(homes(world), 1, "nothing was started for them");
        bo.ok(["consent", "svc", "--yes"]).await;
        set(&cy, CY).await;
        all_have_their_own(&[(&bo, BO), (&cy, CY), (&world.owner, OLGA)]).await;
        bo.ok(["vault", "rm", "token"]).await;
        eventually("the instance with the removed entry has ended", async || {
            holders(world, BO).is_empty().then_some(())
        })
        .await;
        let refused = bo.peer().await.call("svc", "digest", json!({ "name": "TOKEN" })).await;
        assert_eq!(refused["code"], "vault_missing", "{refused}");
        all_have_their_own(&[(&cy, CY), (&world.owner, OLGA)]).await;
    })
    .await;
}
