//! Meshes, members and invites.

use broker::store::{Invite, MemberChange, Store, StoreError};
use catalog::Role;
use wire::peer::hello::Group;
use wire::peer::mesh::InvitePreset;

use crate::on_both;
use crate::world::{World, a_member, a_mesh, member, mesh, pubkey};

on_both! {
    a_mesh_is_found_by_id_and_by_owner;
    a_member_is_found_by_key_id_and_name_in_its_own_mesh_only;
    key_id_and_display_name_belong_to_one_member;
    a_change_touches_what_it_names_and_only_if_the_role_is_still_the_same;
    a_revoked_member_stays_known_and_can_not_be_changed;
    an_invite_reads_back_as_it_was_written;
    an_invite_ends_by_use_by_time_and_by_withdrawal;
    a_single_use_invite_admits_one_of_many_at_once;
}

async fn a_mesh_is_found_by_id_and_by_owner(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let mut second = a_mesh(&mesh(2));
    second.created_at += 1;
    tx.meshes().insert(&second).await.expect("inserts");
    assert!(matches!(tx.meshes().insert(&second).await, Err(StoreError::Conflict)));
    tx.commit().await.expect("commits");

    let mut tx = world.store.read().await.expect("reads");
    assert_eq!(tx.meshes().find(&mesh(2)).await.expect("finds"), Some(second.clone()));
    assert_eq!(tx.meshes().find(&mesh(3)).await.expect("finds"), None);
    let both = vec![a_mesh(&mesh(1)), second];
    assert_eq!(tx.meshes().by_owner(&pubkey(1)).await.expect("lists"), both);
    assert_eq!(tx.meshes().by_owner(&pubkey(2)).await.expect("lists"), []);
    assert_eq!(tx.meshes().list().await.expect("lists"), both);
}

async fn a_member_is_found_by_key_id_and_name_in_its_own_mesh_only(world: World) {
    let mut ana = a_member(&world.mesh, 2, Role::Admin);
    ana.display_name = "Ana Ñ".into();
    ana.role_tag = Some("lead".into());
    ana.groups = vec![Group { name: "eng".into(), role: Some("reviewer".into()) }];
    let mut tx = world.store.begin().await.expect("begins");
    tx.meshes().insert(&a_mesh(&mesh(2))).await.expect("another mesh");
    tx.members().insert(&ana).await.expect("inserts");

    let mut members = tx.members();
    assert_eq!(members.by_pubkey(&world.mesh, &pubkey(2)).await.expect("finds"), Some(ana.clone()));
    assert_eq!(members.by_id(&world.mesh, &ana.id).await.expect("finds"), Some(ana.clone()));
    for text in [ana.id.as_str(), "Ana Ñ"] {
        assert_eq!(members.by_name_or_id(&world.mesh, text).await.expect("finds"), Some(ana.clone()));
        assert_eq!(members.by_name_or_id(&mesh(2), text).await.expect("finds"), None);
    }
    assert_eq!(members.by_name_or_id(&world.mesh, "ana ñ").await.expect("finds"), None);
    assert_eq!(members.by_pubkey(&mesh(2), &pubkey(2)).await.expect("finds"), None);
    assert_eq!(members.by_id(&mesh(2), &ana.id).await.expect("finds"), None);
    let ids: Vec<_> = members.list(&world.mesh).await.expect("lists").into_iter().map(|m| m.id).collect();
    assert_eq!(ids, [member(1), member(2)]);
    assert_eq!(members.list(&mesh(2)).await.expect("lists"), []);
}

async fn key_id_and_display_name_belong_to_one_member(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let new = a_member(&world.mesh, 2, Role::Member);
    for change in [
        |m: &mut broker::store::Member| m.id = member(1),
        |m: &mut broker::store::Member| m.pubkey = pubkey(1),
        |m: &mut broker::store::Member| m.display_name = "name-1".into(),
    ] {
        let mut taken = new.clone();
        change(&mut taken);
        assert!(matches!(tx.members().insert(&taken).await, Err(StoreError::Conflict)), "{taken:?}");
    }
    // A refused insert leaves the transaction usable: a name can be chosen and tried again.
    assert_eq!(tx.members().free_name(&world.mesh, "name-2").await.expect("a name"), "name-2");
    tx.members().insert(&new).await.expect("inserts");
    assert_eq!(tx.members().free_name(&world.mesh, "name-2").await.expect("a name"), "name-2-2");
    tx.members().revoke(&world.mesh, &new.id, Role::Member, 5).await.expect("revokes");
    // Scopes may still hold the name, so nobody else gets it.
    assert_eq!(tx.members().free_name(&world.mesh, "name-2").await.expect("a name"), "name-2-2");
}

async fn a_change_touches_what_it_names_and_only_if_the_role_is_still_the_same(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let mut bo = a_member(&world.mesh, 2, Role::Member);
    tx.members().insert(&bo).await.expect("inserts");
    let groups = vec![Group { name: "eng".into(), role: None }];
    let change =
        MemberChange { role: Some(Role::Admin), role_tag: Some("lead".into()), groups: Some(groups.clone()) };
    tx.members().update(&world.mesh, &bo.id, Role::Member, &change).await.expect("updates");
    (bo.role, bo.role_tag, bo.groups) = (Role::Admin, Some("lead".into()), groups);
    assert_eq!(tx.members().by_id(&world.mesh, &bo.id).await.expect("finds"), Some(bo.clone()));

    let nothing = MemberChange::default();
    tx.members().update(&world.mesh, &bo.id, Role::Admin, &nothing).await.expect("updates");
    assert_eq!(tx.members().by_id(&world.mesh, &bo.id).await.expect("finds"), Some(bo.clone()));

    let untag = MemberChange { role_tag: Some(String::new()), ..MemberChange::default() };
    tx.members().update(&world.mesh, &bo.id, Role::Admin, &untag).await.expect("updates");
    bo.role_tag = None;
    let stale = tx.members().update(&world.mesh, &bo.id, Role::Member, &change).await;
    assert!(matches!(stale, Err(StoreError::Conflict)));
    let elsewhere = tx.members().update(&mesh(2), &bo.id, Role::Admin, &change).await;
    assert!(matches!(elsewhere, Err(StoreError::Conflict)));
    assert_eq!(tx.members().by_id(&world.mesh, &bo.id).await.expect("finds"), Some(bo));
}

async fn a_revoked_member_stays_known_and_can_not_be_changed(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let bo = a_member(&world.mesh, 2, Role::Member);
    tx.members().insert(&bo).await.expect("inserts");
    tx.members().revoke(&world.mesh, &bo.id, Role::Member, 77).await.expect("revokes");
    let found = tx.members().by_pubkey(&world.mesh, &bo.pubkey).await.expect("finds").expect("is known");
    assert_eq!(found.revoked_at, Some(77));
    let again = tx.members().revoke(&world.mesh, &bo.id, Role::Member, 78).await;
    assert!(matches!(again, Err(StoreError::Conflict)));
    let change = MemberChange { role: Some(Role::Admin), ..MemberChange::default() };
    let promoted = tx.members().update(&world.mesh, &bo.id, Role::Member, &change).await;
    assert!(matches!(promoted, Err(StoreError::Conflict)));
}

fn an_invite(world: &World, token: &str) -> Invite {
    Invite {
        token_sha256: token.into(),
        mesh: world.mesh.clone(),
        role: Role::Guest,
        preset: InvitePreset { display_name: Some("Bo".into()), ..InvitePreset::default() },
        max_uses: 2,
        used_count: 0,
        expires_at: 1000,
        created_by: world.owner.clone(),
        created_at: 1,
        revoked_at: None,
    }
}

async fn an_invite_reads_back_as_it_was_written(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let invite = an_invite(&world, "t");
    tx.invites().insert(&invite).await.expect("inserts");
    assert!(matches!(tx.invites().insert(&invite).await, Err(StoreError::Conflict)));
    assert_eq!(tx.invites().find("t").await.expect("finds"), Some(invite));
    assert_eq!(tx.invites().find("u").await.expect("finds"), None);
}

async fn an_invite_ends_by_use_by_time_and_by_withdrawal(world: World) {
    let mut tx = world.store.begin().await.expect("begins");
    let mut invites = tx.invites();
    invites.insert(&an_invite(&world, "used")).await.expect("inserts");
    invites.insert(&an_invite(&world, "withdrawn")).await.expect("inserts");
    assert!(!invites.consume("unknown", 1).await.expect("answers"));
    // It ends at the very millisecond that it names.
    assert!(!invites.consume("used", 1000).await.expect("answers"));
    assert!(invites.consume("used", 999).await.expect("answers"));
    assert!(invites.consume("used", 999).await.expect("answers"));
    assert!(!invites.consume("used", 999).await.expect("answers"));
    assert_eq!(invites.find("used").await.expect("finds").expect("is there").used_count, 2);

    assert!(invites.revoke("withdrawn", 5).await.expect("answers"));
    assert!(!invites.revoke("withdrawn", 6).await.expect("answers"));
    assert!(!invites.consume("withdrawn", 7).await.expect("answers"));
    let found = invites.find("withdrawn").await.expect("finds").expect("is there");
    assert_eq!((found.used_count, found.revoked_at), (0, Some(5)));
}

async fn a_single_use_invite_admits_one_of_many_at_once(world: World) {
    for round in 0..20 {
        let token = format!("token-{round}");
        let mut tx = world.store.begin().await.expect("begins");
        tx.invites().insert(&Invite { max_uses: 1, ..an_invite(&world, &token) }).await.expect("inserts");
        tx.commit().await.expect("commits");
        let attempt = |store: Store, token: String| async move {
            let mut tx = store.begin().await.expect("begins");
            let admitted = tx.invites().consume(&token, 1).await.expect("answers");
            tx.commit().await.expect("commits");
            admitted
        };
        let mut attempts = tokio::task::JoinSet::new();
        for _ in 0..4 {
            attempts.spawn(attempt(world.store.clone(), token.clone()));
        }
        let admitted = attempts.join_all().await;
        assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1, "round {round}");
    }
}
