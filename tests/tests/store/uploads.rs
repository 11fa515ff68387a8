//! Uploaded archives.

use catalog::Role;
use wire::Scope;

use crate::on_both;
use crate::world::{World, a_member, a_mesh, archive, member, mesh};

on_both! {
    an_upload_comes_back_byte_for_byte_in_its_own_mesh_only;
    sweeping_spares_what_is_young_renewed_or_named_by_a_generation;
    waiting_bytes_are_those_of_the_member_that_no_generation_names;
    a_deploy_of_an_archive_that_was_never_uploaded_is_refused_by_the_database;
}

async fn an_upload_comes_back_byte_for_byte_in_its_own_mesh_only(world: World) {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut tx = world.store.begin().await.expect("begins");
    tx.meshes().insert(&a_mesh(&mesh(2))).await.expect("another mesh");
    tx.uploads().put(&world.mesh, "aa", &world.owner, &bytes, 1).await.expect("puts");
    tx.commit().await.expect("commits");
    let mut tx = world.store.read().await.expect("reads");
    assert!(tx.uploads().exists(&world.mesh, "aa").await.expect("answers"));
    assert!(tx.uploads().bytes(&world.mesh, "aa").await.expect("reads") == Some(bytes));
    assert!(!tx.uploads().exists(&mesh(2), "aa").await.expect("answers"));
    assert_eq!(tx.uploads().bytes(&mesh(2), "aa").await.expect("reads"), None);
    assert!(!tx.uploads().exists(&world.mesh, "bb").await.expect("answers"));
}

async fn sweeping_spares_what_is_young_renewed_or_named_by_a_generation(world: World) {
    let (key, named) = (world.key("mine"), "ab".repeat(32));
    let mut tx = world.store.begin().await.expect("begins");
    tx.meshes().insert(&a_mesh(&mesh(2))).await.expect("another mesh");
    for (sha, at) in [(named.as_str(), 1), ("old", 1), ("renewed", 1), ("young", 100)] {
        tx.uploads().put(&world.mesh, sha, &world.owner, b"zip", at).await.expect("puts");
    }
    tx.uploads().put(&world.mesh, "renewed", &world.owner, b"zip", 100).await.expect("puts");
    // The same archive in another mesh is named by nobody there.
    tx.uploads().put(&mesh(2), &named, &world.owner, b"zip", 1).await.expect("puts");
    let (spec, scope) = (archive(&named), Scope::Peer);
    tx.services().deploy(world.plain(&key, 1, &spec, &scope)).await.expect("deploys");
    assert_eq!(tx.uploads().sweep(100).await.expect("sweeps"), 2);
    for (sha, stays) in [(named.as_str(), true), ("old", false), ("renewed", true), ("young", true)] {
        assert_eq!(tx.uploads().exists(&world.mesh, sha).await.expect("answers"), stays, "{sha}");
    }
    assert!(!tx.uploads().exists(&mesh(2), &named).await.expect("answers"));
}

async fn waiting_bytes_are_those_of_the_member_that_no_generation_names(world: World) {
    let (key, named) = (world.key("mine"), "ab".repeat(32));
    let mut tx = world.store.begin().await.expect("begins");
    tx.members().insert(&a_member(&world.mesh, 2, Role::Member)).await.expect("another member");
    assert_eq!(tx.uploads().waiting_bytes(&world.mesh, &world.owner).await.expect("counts"), 0);
    for (sha, by, bytes) in [(named.as_str(), 1, "named"), ("a", 1, "four"), ("b", 1, "three"), ("c", 2, "x")]
    {
        tx.uploads().put(&world.mesh, sha, &member(by), bytes.as_bytes(), 1).await.expect("puts");
    }
    let (spec, scope) = (archive(&named), Scope::Peer);
    tx.services().deploy(world.plain(&key, 1, &spec, &scope)).await.expect("deploys");
    assert_eq!(tx.uploads().waiting_bytes(&world.mesh, &world.owner).await.expect("counts"), 9);
    assert_eq!(tx.uploads().waiting_bytes(&world.mesh, &member(2)).await.expect("counts"), 1);
}

async fn a_deploy_of_an_archive_that_was_never_uploaded_is_refused_by_the_database(world: World) {
    let (key, spec, scope) = (world.key("mine"), archive(&"cd".repeat(32)), Scope::Peer);
    let mut tx = world.store.begin().await.expect("begins");
    let refused = tx.services().deploy(world.plain(&key, 1, &spec, &scope)).await.expect_err("is refused");
    assert!(refused.is_foreign_key_violation(), "{refused:?}");
    assert!(!refused.is_unique_violation());
    drop(tx);
    assert_eq!(world.service(&key).await, None);
}
