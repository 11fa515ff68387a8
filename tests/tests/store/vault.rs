//! The vault's tables: versions, envelopes, keys and grants, consents, the ledger, and the broker's own keys at rest.

use std::time::{Duration, Instant};

use broker::store::{
    Act, ActKind, CallerInstance, Envelope, KEPT_CONSENTS, KEPT_LEDGER_MS, KEPT_VERSIONS, KnownRunner, Lines,
    Member, Store, StoreError, Tx, Wanted,
};
use broker::{AtRest, AtRestError, AtRestKey};
use catalog::Role;
use vault::Sealed;
use wire::vault::{
    BoxPublic, Consent, ConsentDoc, ConsentPin, Custody, EntryKind, Grant, KeyId, Opening, RunnerId,
    VaultEntry, VaultKey, VaultName, Wrap, WrapOf,
};
use wire::{Generation, MeshId, ServiceKey, ServiceName};

use crate::on_both;
use crate::world::{World, a_member, a_mesh, member, mesh, npx, pubkey};

on_both! {
    versions_grow_by_one_and_only_the_newest_keeps_its_content;
    of_two_writers_of_one_version_one_fails;
    a_long_history_is_cut_at_its_old_end;
    an_envelope_is_replaced_as_a_whole_and_is_its_owners_alone;
    a_thousand_wraps_are_exchanged_at_once_and_a_changed_entry_is_left;
    a_vault_key_is_dropped_when_nothing_needs_it_and_takes_its_grants_along;
    a_grant_is_replaced_and_revoked_for_its_mesh_only;
    runners_and_boot_keys_are_remembered_and_passed_ones_forgotten;
    the_newest_consents_of_a_signer_are_kept_and_an_older_serial_is_refused;
    the_same_opening_twice_is_one_line;
    a_runner_writes_into_meshes_that_trusted_it_and_of_entries_that_were_there;
    every_act_is_read_as_it_was_written;
    what_an_owner_stores_is_counted_in_bytes_of_both_forms;
    the_ledger_shows_whose_lines_are_asked_for;
    an_instance_of_a_caller_goes_with_its_service;
    what_a_runner_was_given_is_remembered_with_its_entries;
    a_mesh_that_goes_takes_its_vault_along;
    writers_beside_rotations_lose_nothing;
}

fn name(text: &str) -> VaultName {
    VaultName::parse(text).expect("a name")
}

fn kid(n: u32) -> KeyId {
    KeyId::parse(&format!("{n:016x}")).expect("a key id")
}

fn runner(n: u32) -> RunnerId {
    RunnerId::parse(&format!("{n:032x}")).expect("a runner id")
}

/// As far as the store is concerned: nobody checks the signature here.
fn entry(owner: u32, key: &str, version: i64, kind: EntryKind) -> VaultEntry {
    let is_gone = kind == EntryKind::Gone;
    VaultEntry {
        owner: pubkey(owner),
        key: name(key),
        version,
        kind,
        created_ms: version,
        content: if is_gone { String::new() } else { format!("content-{version}") },
        signature: format!("signature-{version}"),
        wrap: (!is_gone).then(|| Wrap { kid: kid(1), sealed: format!("wrap-{version}") }),
    }
}

fn vault_key(number: i64) -> VaultKey {
    let n = u32::try_from(number).expect("small");
    VaultKey {
        number,
        kid: kid(n),
        public: BoxPublic::parse(&format!("{n:064x}")).expect("a key"),
        created_ms: 5,
        signature: "s".into(),
    }
}

fn grant(of: u32, to: u32, sealed: &str) -> Grant {
    let (runner, kid) = (runner(to), kid(of));
    Grant { runner, kid, signer: pubkey(1), sealed: sealed.into(), signature: "s".into() }
}

async fn begin(store: &Store) -> Tx {
    store.begin().await.expect("begins")
}

async fn versions_grow_by_one_and_only_the_newest_keeps_its_content(world: World) {
    let mut tx = begin(&world.store).await;
    let (mesh, owner, key) = (&world.mesh, pubkey(1), name("token"));
    assert_eq!(tx.entries().newest(mesh, &owner, &key).await.expect("reads"), None);
    for (version, is_taken) in [(2, false), (1, true), (1, false), (2, true), (4, false), (0, false)] {
        let entry = entry(1, "token", version, EntryKind::Env);
        let put = tx.entries().put(mesh, &entry, 10 + version).await;
        assert_eq!(put.is_ok(), is_taken, "version {version}");
        assert!(is_taken || matches!(put, Err(StoreError::Conflict)));
    }
    let newest = tx.entries().newest(mesh, &owner, &key).await.expect("reads");
    assert_eq!(newest, Some(entry(1, "token", 2, EntryKind::Env)));
    let lines = tx.entries().list(mesh, &owner).await.expect("lists");
    assert_eq!((lines.len(), lines[0].version, lines[0].stored_at), (1, 2, 12));
    tx.entries().put(mesh, &entry(1, "token", 3, EntryKind::Gone), 13).await.expect("puts");
    assert_eq!(tx.entries().list(mesh, &owner).await.expect("lists"), []);
    assert_eq!(tx.entries().count(mesh, &owner).await.expect("counts"), 0);
    assert_eq!(tx.entries().count_names(mesh, &owner).await.expect("counts"), 1);
    let history = tx.entries().history(mesh, &owner, &key).await.expect("reads");
    let short: Vec<_> = history.iter().map(|v| (v.version, v.kind)).collect();
    assert_eq!(short, [(3, EntryKind::Gone), (2, EntryKind::Env), (1, EntryKind::Env)]);
    tx.entries().put(mesh, &entry(1, "token", 4, EntryKind::File), 14).await.expect("comes back");
    tx.commit().await.expect("commits");
    for (owner, key) in [(2, "token"), (1, "Token")] {
        let mut tx = world.store.read().await.expect("reads");
        assert_eq!(tx.entries().newest(mesh, &pubkey(owner), &name(key)).await.expect("reads"), None);
    }
}

async fn of_two_writers_of_one_version_one_fails(world: World) {
    let write = |n: usize| {
        let (store, mesh) = (world.store.clone(), world.mesh.clone());
        async move {
            let mut tx = store.begin().await?;
            let mut entry = entry(1, "token", 1, EntryKind::Env);
            entry.content = format!("of writer {n}");
            tx.entries().put(&mesh, &entry, 1).await?;
            tx.commit().await
        }
    };
    let (a, b) = tokio::join!(tokio::spawn(write(1)), tokio::spawn(write(2)));
    let outcomes = [a.expect("ends"), b.expect("ends")];
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(matches!(failed[..], [StoreError::Conflict]), "{outcomes:?}");
    let mut tx = world.store.read().await.expect("reads");
    let newest = tx.entries().newest(&world.mesh, &pubkey(1), &name("token")).await.expect("reads");
    let winner = if outcomes[0].is_ok() { "of writer 1" } else { "of writer 2" };
    assert_eq!(newest.expect("is there").content, winner);
}

async fn a_long_history_is_cut_at_its_old_end(world: World) {
    let mut tx = begin(&world.store).await;
    for version in 1..=KEPT_VERSIONS + 3 {
        tx.entries().put(&world.mesh, &entry(1, "a", version, EntryKind::Env), 1).await.expect("puts");
    }
    let history = tx.entries().history(&world.mesh, &pubkey(1), &name("a")).await.expect("reads");
    let kept = (history.len() as i64, history[0].version, history.last().expect("some").version);
    assert_eq!(kept, (KEPT_VERSIONS, KEPT_VERSIONS + 3, 4));
}

async fn an_envelope_is_replaced_as_a_whole_and_is_its_owners_alone(world: World) {
    let mut tx = begin(&world.store).await;
    tx.members().insert(&a_member(&world.mesh, 2, Role::Member)).await.expect("a member");
    let first = Envelope {
        key: name("token"),
        ciphertext: "YQ==".into(),
        nonce: "bg==".into(),
        sealed_key: "aw==".into(),
        entry_type: "env".into(),
        mount_path: Some("/x".into()),
        description: Some("für alle".into()),
        updated_at: 1,
    };
    let second = Envelope { mount_path: None, description: None, updated_at: 2, ..first.clone() };
    for envelope in [&first, &second] {
        tx.entries().set_envelope(&world.mesh, &pubkey(1), envelope).await.expect("sets");
        let found = tx.entries().envelope(&world.mesh, &pubkey(1), &envelope.key).await.expect("reads");
        assert_eq!(found.as_ref(), Some(envelope));
    }
    assert_eq!(tx.entries().envelopes(&world.mesh, &pubkey(1)).await.expect("reads"), [second]);
    assert_eq!(tx.entries().envelopes(&world.mesh, &pubkey(2)).await.expect("reads"), []);
    assert!(!tx.entries().delete_envelope(&world.mesh, &pubkey(2), &first.key).await.expect("answers"));
    assert_eq!(tx.entries().count(&world.mesh, &pubkey(1)).await.expect("counts"), 1);
    assert!(tx.entries().delete_envelope(&world.mesh, &pubkey(1), &first.key).await.expect("deletes"));
    assert_eq!(tx.entries().count(&world.mesh, &pubkey(1)).await.expect("counts"), 0);
}

async fn a_thousand_wraps_are_exchanged_at_once_and_a_changed_entry_is_left(world: World) {
    let mut tx = begin(&world.store).await;
    for n in 0..1001 {
        tx.entries().put(&world.mesh, &entry(1, &format!("e{n}"), 1, EntryKind::Env), 1).await.expect("puts");
    }
    tx.commit().await.expect("commits");
    let began = Instant::now();
    let mut tx = begin(&world.store).await;
    let wraps = tx.entries().wraps_of(&world.mesh, &kid(1), None, 1000).await.expect("reads");
    assert_eq!(wraps.len(), 1000);
    let anew = |of: WrapOf| WrapOf { wrap: Wrap { kid: kid(2), sealed: "anew".into() }, ..of };
    let wraps: Vec<WrapOf> = wraps.into_iter().map(anew).collect();
    let changed = VaultEntry { key: wraps[0].key.clone(), ..entry(1, "x", 2, EntryKind::Env) };
    tx.entries().put(&world.mesh, &changed, 2).await.expect("puts");
    let done = tx.entries().rewrap(&world.mesh, (&kid(1), &kid(2)), &wraps).await.expect("answers");
    tx.commit().await.expect("commits");
    let took = began.elapsed();
    println!("1,000 wraps exchanged in {took:?}");
    // One second is the promise; a machine that builds something else meanwhile gets more.
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut tx = world.store.read().await.expect("reads");
    assert_eq!(done, 999);
    assert_eq!(tx.entries().count_sealed_to(&world.mesh, &kid(1)).await.expect("counts"), 2);
    assert_eq!(tx.entries().count_sealed_to(&world.mesh, &kid(2)).await.expect("counts"), 999);
    let left = tx.entries().newest(&world.mesh, &pubkey(1), &changed.key).await.expect("reads");
    assert_eq!(left, Some(changed), "the newer version has its own wrap");
    let moved = tx.entries().newest(&world.mesh, &pubkey(1), &wraps[999].key).await.expect("reads");
    assert_eq!(moved.expect("is there").wrap.as_ref(), Some(&wraps[999].wrap));
}

async fn a_vault_key_is_dropped_when_nothing_needs_it_and_takes_its_grants_along(world: World) {
    let mut tx = begin(&world.store).await;
    for (number, is_taken) in [(2, false), (1, true), (1, false), (2, true)] {
        let put = tx.vault_keys().put(&world.mesh, &vault_key(number), "copy").await;
        assert_eq!(put.is_ok(), is_taken, "{number}");
    }
    let again = VaultKey { number: 3, ..vault_key(1) };
    let put = tx.vault_keys().put(&world.mesh, &again, "copy").await;
    assert!(matches!(put, Err(StoreError::Conflict)), "the same key under another number");
    tx.vault_keys().grant(&world.mesh, &grant(1, 7, "a")).await.expect("grants");
    tx.entries().put(&world.mesh, &entry(1, "a", 1, EntryKind::Env), 1).await.expect("puts");
    let dropped =
        async |tx: &mut Tx, n| tx.vault_keys().drop_unused(&world.mesh, &kid(n)).await.expect("answers");
    assert!(!dropped(&mut tx, 1).await, "an entry is sealed to it");
    assert!(!dropped(&mut tx, 2).await, "it is the newest");
    tx.entries().put(&world.mesh, &entry(1, "a", 2, EntryKind::Gone), 1).await.expect("puts");
    assert!(dropped(&mut tx, 1).await && !dropped(&mut tx, 1).await);
    assert_eq!(tx.vault_keys().grants(&world.mesh).await.expect("reads"), []);
    let left = tx.vault_keys().list(&world.mesh).await.expect("reads");
    assert_eq!((left.len(), left[0].key.clone(), left[0].owner_copy.as_str()), (1, vault_key(2), "copy"));
}

async fn a_grant_is_replaced_and_revoked_for_its_mesh_only(world: World) {
    let mut tx = begin(&world.store).await;
    tx.meshes().insert(&a_mesh(&mesh(2))).await.expect("another mesh");
    for mesh in [&world.mesh, &mesh(2)] {
        tx.vault_keys().put(mesh, &vault_key(1), "copy").await.expect("puts");
        for sealed in ["first", "second"] {
            tx.vault_keys().grant(mesh, &grant(1, 7, sealed)).await.expect("grants");
        }
    }
    tx.vault_keys().grant(&world.mesh, &grant(1, 8, "x")).await.expect("grants");
    assert_eq!(
        tx.vault_keys().grants(&world.mesh).await.expect("reads"),
        [grant(1, 7, "second"), grant(1, 8, "x")]
    );
    let both = [(world.mesh.clone(), grant(1, 7, "second")), (mesh(2), grant(1, 7, "second"))];
    assert_eq!(tx.vault_keys().grants_to(&runner(7)).await.expect("reads"), both);
    assert_eq!(tx.vault_keys().revoke(&world.mesh, &runner(7)).await.expect("revokes"), 1);
    assert_eq!(tx.vault_keys().revoke(&world.mesh, &runner(7)).await.expect("answers"), 0);
    assert_eq!(tx.vault_keys().grants_to(&runner(7)).await.expect("reads"), both[1..]);
    let of_no_key = tx.vault_keys().grant(&world.mesh, &grant(9, 7, "x")).await;
    assert!(of_no_key.expect_err("is refused").is_foreign_key_violation());
}

async fn runners_and_boot_keys_are_remembered_and_passed_ones_forgotten(world: World) {
    let known = |n: u32, custody, boot_id: Option<&str>| KnownRunner {
        runner: runner(n),
        public: BoxPublic::parse(&format!("{n:064x}")).expect("a key"),
        custody,
        boot_id: boot_id.map(str::to_owned),
        seen_at: 5,
    };
    let mut tx = begin(&world.store).await;
    let (one, two, three) = (
        known(1, Custody::Split, Some("b1")),
        known(2, Custody::Memory, None),
        known(3, Custody::Memory, None),
    );
    for runner in [&one, &two, &one, &three] {
        tx.runners().seen(runner).await.expect("notes");
    }
    // A runner that keeps its key in memory never comes back as the same.
    assert_eq!(tx.runners().all().await.expect("reads"), [one.clone(), three]);
    assert_eq!(tx.runners().find(&runner(1)).await.expect("reads"), Some(one.clone()));
    tx.runners().seen(&KnownRunner { boot_id: None, seen_at: 6, ..one.clone() }).await.expect("notes");
    let found = tx.runners().find(&runner(1)).await.expect("reads").expect("is there");
    assert_eq!((found.boot_id, found.seen_at), (one.boot_id, 6));
    let (a, b) = (Sealed::from_stored("a".into()), Sealed::from_stored("b".into()));
    tx.runners().put_boot_key("b1", &a, 1).await.expect("stores");
    assert!(matches!(tx.runners().put_boot_key("b1", &b, 1).await, Err(StoreError::Conflict)));
    assert!(!tx.runners().reseal_boot_key("b1", &b, &b).await.expect("answers"));
    assert!(tx.runners().reseal_boot_key("b1", &a, &b).await.expect("reseals"));
    assert_eq!(tx.runners().boot_key("b1").await.expect("reads"), Some(b));
    assert_eq!(tx.runners().boot_key("b2").await.expect("reads"), None);
}

fn consent(service: &ServiceKey, serial: i64) -> (Consent, ConsentDoc) {
    let pin = ConsentPin {
        kind: "npm".into(),
        name: "echo".into(),
        version: "1".into(),
        integrity: String::new(),
        lock_sha256: String::new(),
    };
    let doc = ConsentDoc {
        v: 1,
        mesh: service.mesh.clone(),
        service: service.name.clone(),
        spec: npx("echo"),
        pin,
        serial,
        floor: 0,
        min_versions: Default::default(),
    };
    (Consent { signer: pubkey(1), doc: format!("doc-{serial}"), signature: "s".into() }, doc)
}

async fn the_newest_consents_of_a_signer_are_kept_and_an_older_serial_is_refused(world: World) {
    let key = world.key("echo");
    let mut tx = begin(&world.store).await;
    let (first, doc) = consent(&key, 1);
    let put = tx.consents().put(&key, &world.owner, &first, &doc, 1).await;
    assert!(matches!(put, Err(StoreError::Conflict)), "there is no such service");
    drop(tx);
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = begin(&world.store).await;
    for serial in 1..=KEPT_CONSENTS + 2 {
        let (consent, doc) = consent(&key, serial);
        tx.consents().put(&key, &world.owner, &consent, &doc, 1).await.expect("puts");
    }
    for serial in [KEPT_CONSENTS + 2, 1] {
        let (consent, doc) = consent(&key, serial);
        let put = tx.consents().put(&key, &world.owner, &consent, &doc, 1).await;
        assert!(matches!(put, Err(StoreError::Conflict)), "{serial}");
    }
    let kept = tx.consents().by(&key, &pubkey(1)).await.expect("reads");
    assert_eq!(kept.len() as i64, KEPT_CONSENTS);
    assert_eq!(kept[0], consent(&key, KEPT_CONSENTS + 2).0);
    assert_eq!(tx.consents().by(&key, &pubkey(2)).await.expect("reads"), []);
    tx.services().set_wanted(&key, Wanted::Gone, 2).await.expect("sets");
    tx.services().delete(&key).await.expect("deletes");
    assert_eq!(tx.consents().by(&key, &pubkey(1)).await.expect("reads"), []);
}

/// A mesh that trusts runner 1, whose two members have an entry that runners may have opened.
async fn trusting(tx: &mut Tx, mesh: &MeshId) {
    tx.members().insert(&a_member(mesh, 2, Role::Member)).await.expect("a member");
    for owner in [1, 2] {
        tx.entries().put(mesh, &entry(owner, "token", 1, EntryKind::Env), 1).await.expect("puts");
    }
    tx.vault_keys().put(mesh, &vault_key(1), "copy").await.expect("puts");
    tx.vault_keys().grant(mesh, &grant(1, 1, "a")).await.expect("grants");
}

fn opening(mesh: &MeshId, seq: i64, owner: u32, service: &str) -> Opening {
    Opening {
        seq,
        at_ms: 100 + seq,
        runner: runner(1),
        mesh: mesh.clone(),
        owner: pubkey(owner),
        key: name("token"),
        version: 1,
        service: ServiceName::parse(service).expect("a name"),
        generation: 3,
        caller: None,
        reason: "start".into(),
    }
}

async fn the_same_opening_twice_is_one_line(world: World) {
    let mut tx = begin(&world.store).await;
    trusting(&mut tx, &world.mesh).await;
    let lines =
        [opening(&world.mesh, 1, 1, "a"), opening(&world.mesh, 2, 1, "a"), opening(&mesh(9), 3, 1, "a")];
    let now = 1_000;
    assert_eq!(
        tx.ledger().opened("l1", &lines, now).await.expect("writes"),
        2,
        "a mesh that is gone has no ledger"
    );
    assert_eq!(tx.ledger().opened("l1", &lines, now).await.expect("writes"), 0);
    assert_eq!(tx.ledger().opened("l2", &lines[..1], now).await.expect("writes"), 1, "another ledger");
    assert_eq!(tx.ledger().last_seq("l1").await.expect("reads"), 2);
    assert_eq!(tx.ledger().last_seq("l3").await.expect("reads"), 0);
    let listed = tx.entries().list(&world.mesh, &pubkey(1)).await.expect("lists");
    assert_eq!(listed[0].last_used_at, Some(102));
    let history = tx.entries().history(&world.mesh, &pubkey(1), &name("token")).await.expect("reads");
    assert_eq!(history[0].openings, 3);
    // What is old goes, but for the last line: it says where to go on.
    tx.ledger().opened("l1", &[], now + KEPT_LEDGER_MS + 1).await.expect("forgets");
    assert_eq!(tx.ledger().last_seq("l1").await.expect("reads"), 2);
    let all = Lines { mesh: &world.mesh, owner: None, key: None, service: None, most: 10 };
    assert_eq!(tx.ledger().openings(all).await.expect("reads").len(), 2);
}

async fn a_runner_writes_into_meshes_that_trusted_it_and_of_entries_that_were_there(world: World) {
    let mut tx = begin(&world.store).await;
    trusting(&mut tx, &world.mesh).await;
    let (other, mesh) = (mesh(2), &world.mesh);
    tx.meshes().insert(&a_mesh(&other)).await.expect("another mesh");
    tx.members()
        .insert(&Member { id: member(9), ..a_member(&other, 1, Role::Owner) })
        .await
        .expect("its owner");
    tx.entries().put(&other, &entry(1, "token", 1, EntryKind::Env), 1).await.expect("puts");
    let good = opening(mesh, 1, 1, "a");
    let lies = [
        Opening { mesh: other.clone(), ..good.clone() },
        Opening { runner: runner(2), ..good.clone() },
        Opening { owner: pubkey(3), ..good.clone() },
        Opening { key: name("never"), ..good.clone() },
        Opening { version: 2, ..good.clone() },
    ];
    assert_eq!(tx.ledger().opened("l", &lies, 1).await.expect("answers"), 0);
    let before = std::slice::from_ref(&good);
    assert_eq!(tx.ledger().opened("l", before, 1).await.expect("answers"), 1, "no lie took its number");
    // What it opened before it was revoked is told afterwards.
    let late = [opening(mesh, 2, 2, "a")];
    tx.vault_keys().revoke(mesh, &runner(1)).await.expect("revokes");
    assert_eq!(
        tx.ledger().opened("l", &late, 1).await.expect("answers"),
        0,
        "nobody said that it was trusted"
    );
    let act = Act {
        mesh: Some(mesh.clone()),
        at_ms: 1,
        act: ActKind::Revoked,
        who: "Olga".into(),
        entry: None,
        version: None,
        runner: Some(runner(1)),
    };
    tx.ledger().did(&act).await.expect("writes");
    assert_eq!(tx.ledger().opened("l", &late, 1).await.expect("answers"), 1);
}

async fn every_act_is_read_as_it_was_written(world: World) {
    use ActKind::{AtRest, BootKey, KeyDropped, Removed, Revoked, Rewrapped, Rotated, Set, Trusted};
    let mut tx = begin(&world.store).await;
    let kinds = [Set, Removed, Trusted, Revoked, BootKey, Rotated, Rewrapped, KeyDropped, AtRest];
    for (act, at_ms) in kinds.into_iter().zip(0..) {
        let (mesh, who) = (Some(world.mesh.clone()), "Olga".to_owned());
        let act = Act { mesh, at_ms, act, who, entry: None, version: Some(3), runner: None };
        tx.ledger().did(&act).await.expect("writes");
    }
    let all = Lines { mesh: &world.mesh, owner: None, key: None, service: None, most: 10 };
    let read: Vec<_> = tx.ledger().acts(all).await.expect("reads").iter().rev().map(|act| act.act).collect();
    assert_eq!(read, kinds);
}

async fn what_an_owner_stores_is_counted_in_bytes_of_both_forms(world: World) {
    let mut tx = begin(&world.store).await;
    tx.members().insert(&a_member(&world.mesh, 2, Role::Member)).await.expect("a member");
    let long = |owner, key: &str, version, n: usize| VaultEntry {
        content: "x".repeat(n),
        ..entry(owner, key, version, EntryKind::File)
    };
    for entry in [long(1, "a", 1, 5000), long(1, "a", 2, 3000), long(1, "b", 1, 200), long(2, "c", 1, 7)] {
        tx.entries().put(&world.mesh, &entry, 1).await.expect("puts");
    }
    tx.entries().put(&world.mesh, &entry(1, "b", 2, EntryKind::Gone), 1).await.expect("puts");
    let envelope = Envelope {
        key: name("e"),
        ciphertext: "y".repeat(40),
        nonce: "bg==".into(),
        sealed_key: "aw==".into(),
        entry_type: "env".into(),
        mount_path: None,
        description: None,
        updated_at: 1,
    };
    tx.entries().set_envelope(&world.mesh, &pubkey(1), &envelope).await.expect("sets");
    for (owner, beside, bytes) in
        [(1, "new", 3040), (1, "a", 40), (1, "e", 3000), (2, "new", 7), (3, "new", 0)]
    {
        let found = tx.entries().bytes_beside(&world.mesh, &pubkey(owner), &name(beside)).await;
        assert_eq!(found.expect("counts"), bytes, "of {owner} beside {beside}");
    }
}

async fn the_ledger_shows_whose_lines_are_asked_for(world: World) {
    let mut tx = begin(&world.store).await;
    trusting(&mut tx, &world.mesh).await;
    let of_caller = ServiceName::parse("b").expect("a name").for_caller(&member(1));
    let lines = [
        opening(&world.mesh, 1, 1, "a"),
        opening(&world.mesh, 2, 2, "a"),
        Opening { caller: Some(member(1)), ..opening(&world.mesh, 3, 1, of_caller.as_str()) },
    ];
    tx.ledger().opened("l", &lines, 1).await.expect("writes");
    let act = |act, owner: Option<u32>, at_ms| Act {
        mesh: Some(world.mesh.clone()),
        at_ms,
        act,
        who: "Ölga".into(),
        entry: owner.map(|owner| (pubkey(owner), name("token"))),
        version: owner.map(|_| 1),
        runner: None,
    };
    let boot = Act { mesh: None, runner: Some(runner(1)), ..act(ActKind::BootKey, None, 7) };
    let acts = [act(ActKind::Set, Some(1), 5), act(ActKind::Trusted, None, 6), boot];
    for act in &acts {
        tx.ledger().did(act).await.expect("writes");
    }
    let all = Lines { mesh: &world.mesh, owner: None, key: None, service: None, most: 10 };
    let (one, token, other) = (pubkey(1), name("token"), name("other"));
    let b = ServiceName::parse("b").expect("a name");
    let seqs = async |tx: &mut Tx, lines| {
        let openings = tx.ledger().openings(lines).await.expect("reads");
        openings.iter().map(|opening| opening.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&mut tx, all).await, [3, 2, 1]);
    assert_eq!(seqs(&mut tx, Lines { owner: Some(&one), ..all }).await, [3, 1]);
    assert_eq!(seqs(&mut tx, Lines { key: Some(&other), ..all }).await, [0_i64; 0]);
    assert_eq!(seqs(&mut tx, Lines { service: Some(&b), ..all }).await, [3], "also of a caller's instance");
    assert_eq!(seqs(&mut tx, Lines { most: 1, ..all }).await, [3]);
    let [set, trusted, boot] = acts;
    assert_eq!(tx.ledger().acts(all).await.expect("reads"), [boot, trusted, set.clone()]);
    let own = Lines { owner: Some(&one), key: Some(&token), ..all };
    assert_eq!(tx.ledger().acts(own).await.expect("reads"), [set]);
    assert_eq!(
        tx.ledger().acts(Lines { mesh: &mesh(9), owner: Some(&one), ..all }).await.expect("reads"),
        []
    );
}

async fn an_instance_of_a_caller_goes_with_its_service(world: World) {
    let key = world.key("echo");
    let mut tx = begin(&world.store).await;
    assert!(!tx.callers().touch(&key, &world.owner, 1).await.expect("answers"));
    drop(tx);
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = begin(&world.store).await;
    for at in [5, 9] {
        assert!(tx.callers().touch(&key, &world.owner, at).await.expect("notes"));
    }
    let (service, member) = (key.clone(), world.owner.clone());
    let mut instance = CallerInstance { service, member, created_at: 5, last_call_at: 9, held: None };
    assert_eq!(tx.callers().all().await.expect("reads"), [instance.clone()]);
    assert!(tx.callers().hold(&key, &world.owner, "x").await.expect("notes"));
    for (expected, held) in [("x", Some("x")), ("y", None)] {
        tx.callers().expect(&key, &world.owner, expected).await.expect("notes");
        instance.held = held.map(str::to_owned);
        assert_eq!(tx.callers().find(&key, &world.owner).await.expect("reads").as_ref(), Some(&instance));
    }
    assert_eq!(tx.callers().of(&key).await.expect("reads"), [instance]);
    assert!(tx.callers().remove(&key, &world.owner).await.expect("removes"));
    assert!(!tx.callers().remove(&key, &world.owner).await.expect("answers"));
    tx.callers().touch(&key, &world.owner, 10).await.expect("notes");
    tx.services().set_wanted(&key, Wanted::Gone, 2).await.expect("sets");
    tx.services().delete(&key).await.expect("deletes");
    assert_eq!(tx.callers().all().await.expect("reads"), []);
}

async fn what_a_runner_was_given_is_remembered_with_its_entries(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = begin(&world.store).await;
    assert!(!tx.policies().set_material(&key, Some("x")).await.expect("answers"), "nothing was given");
    tx.policies().set_applied(&key, wire::Policy::default()).await.expect("sets");
    assert!(tx.policies().materials().await.expect("reads").is_empty());
    for material in [Some("x"), Some("y"), None] {
        assert!(tx.policies().set_material(&key, material).await.expect("sets"));
        let found = tx.policies().materials().await.expect("reads");
        assert_eq!(found.get(&key).map(String::as_str), material);
    }
}

async fn a_mesh_that_goes_takes_its_vault_along(world: World) {
    let key = world.key("echo");
    world.deploy(&key, 1).await.expect("deploys");
    let mut tx = begin(&world.store).await;
    let at_rest = AtRest::new(vec![AtRestKey::generate()]).expect("a root");
    at_rest.seal(&mut tx, &world.mesh, &["x"], b"x").await.expect("seals");
    tx.entries().put(&world.mesh, &entry(1, "a", 1, EntryKind::Env), 1).await.expect("puts");
    trusting(&mut tx, &world.mesh).await;
    tx.vault_keys().grant(&world.mesh, &grant(1, 7, "a")).await.expect("grants");
    tx.ledger().opened("l", &[opening(&world.mesh, 1, 1, "echo")], 1).await.expect("writes");
    tx.commit().await.expect("commits");
    for statement in ["DELETE FROM generation", "DELETE FROM service", "DELETE FROM mesh"] {
        world.damage(statement).await;
    }
    let mut tx = world.store.read().await.expect("reads");
    assert_eq!(tx.mesh_keys().all().await.expect("reads"), []);
    assert_eq!(tx.vault_keys().grants_to(&runner(7)).await.expect("reads"), []);
    assert_eq!(tx.ledger().last_seq("l").await.expect("reads"), 0);
    assert_eq!(tx.entries().newest(&world.mesh, &pubkey(1), &name("a")).await.expect("reads"), None);
}

async fn writers_beside_rotations_lose_nothing(world: World) {
    const WRITES: i64 = 60;
    let at_rest = AtRest::new(vec![AtRestKey::generate()]).expect("a root");
    let (spec, scope, plain) = (npx("echo"), wire::Scope::Peer, b"hunter2");
    let context =
        |n: i64| ["service-secrets".to_owned(), world.mesh.to_string(), "echo".to_owned(), n.to_string()];
    let key = world.key("echo");
    let write = async |n: i64| -> Result<(), AtRestError> {
        let mut tx = world.store.begin().await?;
        let texts = context(n);
        let context: Vec<&str> = texts.iter().map(String::as_str).collect();
        let sealed = at_rest.seal(&mut tx, &world.mesh, &context, plain).await?;
        let mut deploy = world.plain(&key, n, &spec, &scope);
        deploy.secrets = Some(&sealed);
        tx.services().deploy(deploy).await?;
        Ok(tx.commit().await?)
    };
    write(1).await.expect("writes");
    let act = Act {
        mesh: Some(world.mesh.clone()),
        at_ms: 1,
        act: ActKind::Rotated,
        who: "Olga".into(),
        entry: None,
        version: None,
        runner: None,
    };
    let writing = async {
        for n in 2..=WRITES {
            write(n).await.expect("a writer never fails");
        }
    };
    let rotating = async {
        let mut last = String::new();
        for _ in 0..8 {
            last = at_rest.rotate(&world.store, &world.mesh, &act).await.expect("rotates").key;
        }
        last
    };
    let ((), last) = tokio::join!(writing, rotating);
    let mut tx = world.store.read().await.expect("reads");
    for n in 1..=WRITES {
        let stored = tx.generations().find(&key, Generation(n)).await.expect("reads").expect("is there");
        let sealed = stored.secrets.expect("has secrets");
        let texts = context(n);
        let context: Vec<&str> = texts.iter().map(String::as_str).collect();
        let opened = at_rest.open(&mut tx, &world.mesh, &context, &sealed).await.expect("opens");
        assert_eq!(opened.as_slice(), plain);
        assert_eq!(sealed.key_id(), Some(last.as_str()), "generation {n}");
    }
    assert_eq!(tx.mesh_keys().of(&world.mesh).await.expect("reads").len(), 1);
}
