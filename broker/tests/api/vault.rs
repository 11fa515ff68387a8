//! The vault's frames: entries of both forms, keys, runners, the ledger; and whatever people may send instead.

use crate::world::peer::{Peer, deploy_frame};
use crate::world::vault::Member;
use crate::world::{OWNER, World};
use serde_json::{Value, json};
use vault::{BoxKey, Signer as _, entry, keys};
use wire::vault::{VaultEntry, VaultKey, WrapOf};

const MEMBER: u8 = 2;

async fn answered(peer: &mut Peer, frame: Value, kind: &str) -> Value {
    let answer = peer.ask(frame).await;
    assert_eq!(answer["type"], kind, "{answer}");
    answer
}

async fn refused(peer: &mut Peer, frame: Value, code: &str) -> String {
    let answer = peer.ask(frame).await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    answer["message"].as_str().expect("a message").to_owned()
}

fn new_key(world: &World, number: i64) -> (BoxKey, VaultKey, Value) {
    let (secret, owner, mesh) = (BoxKey::generate(), Member::of(OWNER), &world.mesh.mesh);
    let key = keys::certify(&owner, mesh, number, &secret.public(), 1);
    let copy = keys::keep_copy(&BoxKey::of_member(&[OWNER; 32]).public(), mesh, &secret);
    let frame = json!({"type": "vault_key_put", "key": key, "owner_copy": copy, "grants": []});
    (secret, key, frame)
}

async fn with_key(world: &World, owner: &mut Peer, number: i64) -> (BoxKey, VaultKey) {
    let (secret, key, frame) = new_key(world, number);
    answered(owner, frame, "vault_keys_result").await;
    (secret, key)
}

fn sealed(world: &World, seed: u8, name: &str, version: i64, to: &VaultKey) -> VaultEntry {
    Member::of(seed).sealed(&world.mesh.mesh, name, version, to, "hunter2hunter2")
}

fn put(entry: &VaultEntry) -> Value {
    json!({"type": "vault_put", "entry": entry})
}

fn set(key: &str) -> Value {
    json!({"type": "vault_set", "key": key, "ciphertext": "Y2lwaGVy", "nonce": "bm9uY2U=",
        "sealed_key": "a2V5", "entry_type": "env"})
}

#[tokio::test]
async fn the_originals_envelopes_come_back_as_they_were_to_their_owner_alone() {
    let world = World::start().await;
    let (mut olga, mut bo) = (world.owner().await, world.member(MEMBER, "Bo", "member").await);
    let mut first = set("api.key");
    first["mount_path"] = json!("/secrets/x");
    first["description"] = json!("für alle");
    for frame in [first, set("api.key"), set("b")] {
        let ack = answered(&mut bo, frame.clone(), "vault_ack").await;
        assert_eq!((&ack["key"], &ack["action"]), (&frame["key"], &json!("stored")));
    }
    let get = json!({"type": "vault_get", "keys": ["b", "api.key", "none", "no/name", "x\u{0}"]});
    let got = answered(&mut bo, get.clone(), "vault_get_result").await;
    let one = |key| {
        json!({"key": key, "ciphertext": "Y2lwaGVy", "nonce": "bm9uY2U=", "sealed_key": "a2V5",
            "entry_type": "env", "mount_path": null})
    };
    assert_eq!(got["entries"], json!([one("b"), one("api.key")]));
    let listed = answered(&mut bo, json!({"type": "vault_list"}), "vault_list_result").await;
    let keys: Vec<_> = listed["entries"].as_array().expect("a list").iter().map(|e| &e["key"]).collect();
    assert_eq!(keys, ["api.key", "b"]);
    assert!(listed["entries"][0].get("version").is_none() && listed["entries"][0]["description"].is_null());
    assert_eq!(answered(&mut olga, get, "vault_get_result").await["entries"], json!([]));
    for (is_olga, action) in [(true, "not_found"), (false, "deleted"), (false, "not_found")] {
        let peer = if is_olga { &mut olga } else { &mut bo };
        let ack = answered(peer, json!({"type": "vault_delete", "key": "b"}), "vault_ack").await;
        assert_eq!(ack["action"], action);
    }
}

#[tokio::test]
async fn a_bad_envelope_is_refused_with_one_clear_error_and_nothing_is_stored() {
    let world = World::start().await;
    let mut bo = world.member(MEMBER, "Bo", "member").await;
    let with = |field: &str, value: Value| {
        let mut frame = set("k");
        frame[field] = value;
        frame
    };
    for name in ["a/b", "../x", "a\u{0}", "", ".a", "ä", "a b", &"k".repeat(300)] {
        refused(&mut bo, set(name), "invalid_args").await;
        refused(&mut bo, json!({"type": "vault_delete", "key": name}), "invalid_args").await;
        refused(&mut bo, json!({"type": "vault_history", "key": name}), "invalid_args").await;
    }
    for (field, value) in [
        ("ciphertext", json!("A".repeat(900 << 10))),
        ("ciphertext", json!("hunter2 hunter2")),
        ("ciphertext", json!("")),
        ("nonce", json!("A".repeat(65))),
        ("sealed_key", json!("\u{0}")),
        ("entry_type", json!("gone")),
        ("mount_path", json!("/x\u{0}")),
        ("description", json!("x".repeat(1025))),
    ] {
        let message = refused(&mut bo, with(field, value), "invalid_args").await;
        assert!(!message.contains("hunter2"), "{message}");
    }
    refused(&mut bo, with("ciphertext", json!("A".repeat(1 << 20))), "too_large").await;
    let many: Vec<String> = (0..1001).map(|n| format!("k{n}")).collect();
    refused(&mut bo, json!({"type": "vault_get", "keys": many}), "invalid_args").await;
    let listed = answered(&mut bo, json!({"type": "vault_list"}), "vault_list_result").await;
    assert_eq!(listed["entries"], json!([]));
}

#[tokio::test]
async fn an_entry_is_taken_from_its_owner_in_order_and_from_nobody_else() {
    let world = World::start().await;
    let (mut olga, mut bo) = (world.owner().await, world.member(MEMBER, "Bo", "member").await);
    let (_, early, _) = new_key(&world, 1);
    refused(&mut bo, put(&sealed(&world, MEMBER, "t", 1, &early)), "vault_key_retired").await;
    let (_, key) = with_key(&world, &mut olga, 1).await;
    let first = sealed(&world, MEMBER, "t", 1, &key);
    refused(&mut olga, put(&first), "forbidden").await;
    refused(&mut bo, put(&sealed(&world, MEMBER, "t", 2, &key)), "conflict").await;
    let done = answered(&mut bo, put(&first), "vault_put_result").await;
    assert_eq!((&done["key"], &done["version"], &done["services"]), (&json!("t"), &json!(1), &json!([])));
    refused(&mut bo, put(&first), "conflict").await;
    refused(&mut bo, set("t"), "conflict").await;
    answered(&mut bo, set("original"), "vault_ack").await;
    refused(&mut bo, put(&sealed(&world, MEMBER, "original", 1, &key)), "conflict").await;
    refused(&mut bo, json!({"type": "vault_delete", "key": "t"}), "conflict").await;
    let gone = |name: &str, version| put(&Member::of(MEMBER).gone(&world.mesh.mesh, name, version));
    refused(&mut bo, gone("never", 1), "not_found").await;
    answered(&mut bo, put(&sealed(&world, MEMBER, "t", 2, &key)), "vault_put_result").await;
    answered(&mut bo, gone("t", 3), "vault_put_result").await;
    refused(&mut bo, gone("t", 4), "not_found").await;
    let history =
        answered(&mut bo, json!({"type": "vault_history", "key": "t"}), "vault_history_result").await;
    let kinds: Vec<_> =
        history["versions"].as_array().expect("a list").iter().map(|v| (&v["version"], &v["kind"])).collect();
    let (three, two, one) = ((json!(3), json!("gone")), (json!(2), json!("env")), (json!(1), json!("env")));
    assert_eq!(kinds, [(&three.0, &three.1), (&two.0, &two.1), (&one.0, &one.1)]);
    refused(&mut olga, json!({"type": "vault_history", "key": "t"}), "not_found").await;
    answered(&mut bo, set("t"), "vault_ack").await;
}

#[tokio::test]
async fn an_entry_that_was_changed_on_its_way_is_refused() {
    let world = World::start().await;
    let (mut olga, mut bo) = (world.owner().await, world.member(MEMBER, "Bo", "member").await);
    let (_, key) = with_key(&world, &mut olga, 1).await;
    let good = sealed(&world, MEMBER, "t", 1, &key);
    let mut cut = good.clone();
    cut.wrap.as_mut().expect("a wrap").sealed.truncate(20);
    let changed = [
        VaultEntry { key: wire::vault::VaultName::parse("u").expect("a name"), ..good.clone() },
        VaultEntry { created_ms: good.created_ms + 1, ..good.clone() },
        VaultEntry { kind: wire::vault::EntryKind::File, ..good.clone() },
        VaultEntry { content: good.content.replacen(char::is_alphabetic, "9", 1), ..good.clone() },
        VaultEntry { content: String::new(), ..good.clone() },
        VaultEntry { wrap: None, ..good.clone() },
        VaultEntry { signature: "00".repeat(64), ..good.clone() },
        VaultEntry { signature: "x".into(), ..good.clone() },
        cut,
    ];
    for (n, entry) in changed.iter().enumerate() {
        let message = refused(&mut bo, put(entry), "vault_error").await;
        assert!(!message.is_empty() && !message.contains(&good.signature), "{n}: {message}");
    }
    let of_another_mesh = Member::of(MEMBER).sealed(
        &wire::MeshId::parse(&"M".repeat(32)).expect("mesh"),
        "t",
        1,
        &key,
        "hunter2hunter2",
    );
    refused(&mut bo, put(&of_another_mesh), "vault_error").await;
    for version in [json!(-1), json!("1"), json!(1.5), Value::Null] {
        let mut frame = put(&good);
        frame["entry"]["version"] = version;
        let answer = bo.ask(frame).await;
        assert!(answer["code"] == "invalid_args" || answer["code"] == "vault_error", "{answer}");
    }
    answered(&mut bo, put(&good), "vault_put_result").await;
}

#[tokio::test]
async fn of_two_writers_of_one_version_one_wins_and_the_other_is_told() {
    let world = World::start().await;
    let id = world.join(MEMBER, "Bo", "member").await;
    let (_, key) = with_key(&world, &mut world.owner().await, 1).await;
    let (mut here, mut there) =
        (Peer::hello(&world, MEMBER, &id).await, Peer::hello(&world, MEMBER, &id).await);
    for version in 1..=5 {
        let (a, b) = (sealed(&world, MEMBER, "t", version, &key), sealed(&world, MEMBER, "t", version, &key));
        let (a, b) = tokio::join!(here.ask(put(&a)), there.ask(put(&b)));
        let codes = [&a["code"], &b["code"]];
        assert!(codes.contains(&&json!("conflict")) && codes.contains(&&Value::Null), "{a} {b}");
    }
}

#[tokio::test]
async fn a_guest_keeps_no_secrets_and_who_becomes_one_may_still_remove_theirs() {
    let world = World::start().await;
    let mut olga = world.owner().await;
    let (_, key) = with_key(&world, &mut olga, 1).await;
    let id = world.join(MEMBER, "Bo", "member").await;
    let mut bo = Peer::hello(&world, MEMBER, &id).await;
    answered(&mut bo, put(&sealed(&world, MEMBER, "t", 1, &key)), "vault_put_result").await;
    let demote = json!({"type": "member_update", "member": id, "role": "guest"});
    answered(&mut olga, demote, "member_updated").await;
    refused(&mut bo, put(&sealed(&world, MEMBER, "t", 2, &key)), "forbidden").await;
    refused(&mut bo, set("x"), "forbidden").await;
    refused(&mut bo, json!({"type": "vault_keys"}), "forbidden").await;
    refused(&mut bo, json!({"type": "runner_list"}), "forbidden").await;
    let gone = Member::of(MEMBER).gone(&world.mesh.mesh, "t", 2);
    answered(&mut bo, put(&gone), "vault_put_result").await;
}

#[tokio::test]
async fn a_rotation_moves_every_members_entries_and_ends_with_the_old_key_gone() {
    let world = World::start().await;
    let (mut olga, mut bo) = (world.owner().await, world.member(MEMBER, "Bo", "member").await);
    let (old, first) = with_key(&world, &mut olga, 1).await;
    let stays = sealed(&world, MEMBER, "stays", 1, &first);
    for entry in [
        sealed(&world, OWNER, "mine", 1, &first),
        stays.clone(),
        sealed(&world, MEMBER, "changes", 1, &first),
    ] {
        let peer = if entry.owner == *Member::of(OWNER).public() { &mut olga } else { &mut bo };
        answered(peer, put(&entry), "vault_put_result").await;
    }
    refused(&mut olga, new_key(&world, 3).2, "conflict").await;
    refused(&mut olga, new_key(&world, 1).2, "conflict").await;
    let (new, second) = with_key(&world, &mut olga, 2).await;
    refused(&mut bo, put(&sealed(&world, MEMBER, "late", 1, &first)), "vault_key_retired").await;
    let asked =
        answered(&mut olga, json!({"type": "vault_wraps", "kid": first.kid}), "vault_wraps_result").await;
    let mut wraps: Vec<WrapOf> = serde_json::from_value(asked["wraps"].clone()).expect("wraps");
    assert_eq!(wraps.len(), 3);
    for of in &mut wraps {
        of.wrap = entry::rewrap(&old, &second.public, &world.mesh.mesh, of).expect("seals anew");
    }
    let changed = sealed(&world, MEMBER, "changes", 2, &second);
    answered(&mut bo, put(&changed), "vault_put_result").await;
    let drop_first = json!({"type": "vault_key_drop", "kid": first.kid});
    refused(&mut olga, drop_first.clone(), "conflict").await;
    let rewrap = json!({"type": "vault_rewrap", "from": first.kid, "wraps": wraps});
    let mut to_old = rewrap.clone();
    to_old["wraps"][0]["wrap"]["kid"] = json!(first.kid);
    refused(&mut olga, to_old, "vault_key_retired").await;
    let mut cut = rewrap.clone();
    cut["wraps"][0]["wrap"]["sealed"] = json!("AAAA");
    refused(&mut olga, cut, "vault_error").await;
    assert_eq!(answered(&mut olga, rewrap.clone(), "vault_rewrapped").await["left"], 0);
    answered(&mut olga, rewrap, "vault_rewrapped").await;
    let shown = answered(&mut bo, json!({"type": "vault_keys"}), "vault_keys_result").await;
    let entries: Vec<_> = shown["keys"].as_array().expect("a list").iter().map(|k| &k["entries"]).collect();
    assert_eq!(entries, [3, 0]);
    assert!(shown["keys"][0].get("owner_copy").is_none(), "{shown}");
    let second_kid = json!({"type": "vault_key_drop", "kid": second.kid});
    refused(&mut olga, second_kid, "conflict").await;
    let left = answered(&mut olga, drop_first.clone(), "vault_keys_result").await;
    assert_eq!(left["keys"].as_array().map(Vec::len), Some(1));
    assert!(left["keys"][0]["owner_copy"].is_string());
    refused(&mut olga, drop_first, "not_found").await;
    // What the broker stored opens under the new key, with the owner's old signature.
    let asked =
        answered(&mut olga, json!({"type": "vault_wraps", "kid": second.kid}), "vault_wraps_result").await;
    let wraps: Vec<WrapOf> = serde_json::from_value(asked["wraps"].clone()).expect("wraps");
    let of = wraps.into_iter().find(|of| of.key == stays.key).expect("is there");
    let moved = VaultEntry { wrap: Some(of.wrap), ..stays };
    entry::check(&world.mesh.mesh, &moved).expect("signed");
    let plain = entry::open(&new, &world.mesh.mesh, &moved).expect("opens");
    assert_eq!(plain.as_slice(), b"hunter2hunter2");
    assert!(entry::open(&old, &world.mesh.mesh, &moved).is_err());
}

#[tokio::test]
async fn a_member_fills_no_more_than_their_share_of_the_database() {
    let world = World::start().await;
    let mut bo = world.member(MEMBER, "Bo", "member").await;
    let large = |n: usize| {
        let mut frame = set(&format!("k{n}"));
        frame["ciphertext"] = json!("A".repeat(640 << 10));
        frame
    };
    let most = (32 << 20) / (640 << 10);
    for n in 0..most {
        answered(&mut bo, large(n), "vault_ack").await;
    }
    let message = refused(&mut bo, large(most), "vault_error").await;
    assert!(message.contains("32 MiB"), "{message}");
    answered(&mut bo, large(0), "vault_ack").await;
    answered(&mut bo, json!({"type": "vault_delete", "key": "k1"}), "vault_ack").await;
    answered(&mut bo, large(most), "vault_ack").await;
}

#[tokio::test]
async fn only_the_owner_has_to_do_with_keys_and_runners() {
    let world = World::start().await;
    let mut olga = world.owner().await;
    let (secret, key) = with_key(&world, &mut olga, 1).await;
    let public = world.runner.with_vault(|vault| vault.public());
    let mesh = &world.mesh.mesh;
    let grant = keys::grant(&Member::of(OWNER), mesh, &secret, &public).expect("granted");
    let runner = grant.runner.clone();
    let frames = [
        new_key(&world, 2).2,
        json!({"type": "vault_wraps", "kid": key.kid}),
        json!({"type": "vault_rewrap", "from": key.kid, "wraps": []}),
        json!({"type": "vault_key_drop", "kid": key.kid}),
        json!({"type": "runner_trust", "grants": [grant]}),
        json!({"type": "runner_revoke", "runner": runner}),
        json!({"type": "at_rest_rotate"}),
    ];
    for (seed, name, role) in [(MEMBER, "Bo", "member"), (3, "Ada", "admin")] {
        let mut peer = world.member(seed, name, role).await;
        for frame in &frames {
            refused(&mut peer, frame.clone(), "forbidden").await;
        }
    }
    // A key and a grant that somebody else signed, by the owner's own connection.
    let (other, other_secret) = (Member::of(MEMBER), BoxKey::generate());
    let forged = keys::certify(&other, mesh, 2, &other_secret.public(), 1);
    let mut frame = new_key(&world, 2).2;
    frame["key"] = json!(forged);
    refused(&mut olga, frame, "vault_error").await;
    let theirs = keys::grant(&other, mesh, &secret, &public).expect("granted");
    refused(&mut olga, json!({"type": "runner_trust", "grants": [theirs]}), "forbidden").await;
    let mut forged = grant.clone();
    forged.signature = "00".repeat(64);
    refused(&mut olga, json!({"type": "runner_trust", "grants": [forged]}), "vault_error").await;
    let of_no_key = keys::grant(&Member::of(OWNER), mesh, &other_secret, &public).expect("granted");
    refused(&mut olga, json!({"type": "runner_trust", "grants": [of_no_key]}), "not_found").await;
    let shown = answered(&mut olga, json!({"type": "vault_keys"}), "vault_keys_result").await;
    assert_eq!(shown["owner"], json!(Member::of(OWNER).public()));
    assert_eq!(shown["keys"].as_array().map(Vec::len), Some(1));
}

async fn acts(peer: &mut Peer, frame: Value) -> Vec<String> {
    let lines = answered(peer, frame, "vault_ledger_result").await["lines"].clone();
    let act = |line: &Value| line["act"].as_str().expect("text").to_owned();
    lines.as_array().expect("a list").iter().map(act).collect()
}

#[tokio::test]
async fn every_step_of_a_rotation_is_a_line_of_the_ledger() {
    let world = World::start().await;
    let mut olga = world.owner().await;
    let public = world.runner.with_vault(|vault| vault.public());
    let granted = |number| {
        let (secret, key, mut frame) = new_key(&world, number);
        let grant = keys::grant(&Member::of(OWNER), &world.mesh.mesh, &secret, &public).expect("granted");
        frame["grants"] = json!([grant]);
        (secret, key, frame)
    };
    let (secret, key, first) = granted(1);
    let (_, newer, second) = granted(2);
    answered(&mut olga, first, "vault_keys_result").await;
    answered(&mut olga, put(&sealed(&world, OWNER, "t", 1, &key)), "vault_put_result").await;
    answered(&mut olga, second, "vault_keys_result").await;
    let asked =
        answered(&mut olga, json!({"type": "vault_wraps", "kid": key.kid}), "vault_wraps_result").await;
    let mut wraps: Vec<WrapOf> = serde_json::from_value(asked["wraps"].clone()).expect("wraps");
    for of in &mut wraps {
        of.wrap = entry::rewrap(&secret, &newer.public, &world.mesh.mesh, of).expect("seals anew");
    }
    let rewrap = json!({"type": "vault_rewrap", "from": key.kid, "wraps": wraps});
    for (frame, kind) in [
        (rewrap.clone(), "vault_rewrapped"),
        (rewrap, "vault_rewrapped"),
        (json!({"type": "vault_key_drop", "kid": key.kid}), "vault_keys_result"),
        (json!({"type": "at_rest_rotate"}), "at_rest_rotated"),
    ] {
        answered(&mut olga, frame, kind).await;
    }
    let all = acts(&mut olga, json!({"type": "vault_ledger"})).await;
    for (act, times) in
        [("rotated", 2), ("trusted", 1), ("rewrapped", 1), ("key_dropped", 1), ("at_rest", 1), ("revoked", 0)]
    {
        assert_eq!(all.iter().filter(|one| *one == act).count(), times, "{act} in {all:?}");
    }
}

#[tokio::test]
async fn a_runner_is_trusted_and_revoked_and_the_ledger_tells_whoever_may_know() {
    let world = World::start().await;
    let (mut olga, mut bo) = (world.owner().await, world.member(MEMBER, "Bo", "member").await);
    let (secret, key) = with_key(&world, &mut olga, 1).await;
    let public = world.runner.with_vault(|vault| vault.public());
    let grant = keys::grant(&Member::of(OWNER), &world.mesh.mesh, &secret, &public).expect("granted");
    let runner = json!(grant.runner);
    let trusted =
        answered(&mut olga, json!({"type": "runner_trust", "grants": [grant]}), "runner_list_result").await;
    let find = |list: &Value| {
        let runners = list["runners"].as_array().expect("a list").clone();
        runners.into_iter().find(|one| one["id"] == runner)
    };
    assert_eq!(find(&trusted).expect("is shown")["granted"], json!([key.kid]));
    world.runner.until(|seen| seen.granted > 0).await;
    let held = world.runner.with_vault(|vault| vault.describe().held);
    assert_eq!(held[&world.mesh.mesh], std::slice::from_ref(&key.kid));
    let revoke = json!({"type": "runner_revoke", "runner": runner});
    let revoked = answered(&mut olga, revoke.clone(), "runner_list_result").await;
    assert!(find(&revoked).is_none_or(|one| one["granted"] == json!([])));
    refused(&mut olga, revoke, "not_found").await;
    answered(&mut bo, put(&sealed(&world, MEMBER, "t", 1, &key)), "vault_put_result").await;
    answered(&mut bo, set("x"), "vault_ack").await;
    assert_eq!(acts(&mut bo, json!({"type": "vault_ledger"})).await, ["set", "set"]);
    let own = json!({"type": "vault_ledger", "key": "t", "limit": 5});
    assert_eq!(acts(&mut bo, own).await, ["set"]);
    let all = acts(&mut olga, json!({"type": "vault_ledger"})).await;
    for act in ["set", "trusted", "revoked", "rotated", "boot_key"] {
        assert!(all.iter().any(|one| one == act), "{act} in {all:?}");
    }
    assert_eq!(acts(&mut olga, json!({"type": "vault_ledger", "service": "s"})).await, [""; 0]);
    for bad in
        [json!({"limit": 0}), json!({"limit": 1001}), json!({"key": "a/b"}), json!({"service": "../x"})]
    {
        let mut frame = bad.clone();
        frame["type"] = json!("vault_ledger");
        refused(&mut olga, frame, "invalid_args").await;
    }
}

#[tokio::test]
async fn the_at_rest_key_is_rotated_under_running_services() {
    let mut world = World::start().await;
    let mut olga = world.owner().await;
    let deployed = olga.ask(deploy_frame("echo", "ok", Value::Null)).await;
    assert_eq!(deployed["status"], "building", "{deployed}");
    world.runner.until(|seen| seen.applied.len() == 1).await;
    let mut last = String::new();
    for _ in 0..3 {
        let rotated = answered(&mut olga, json!({"type": "at_rest_rotate"}), "at_rest_rotated").await;
        assert_eq!(rotated["records"], 1);
        let key = rotated["key"].as_str().expect("an id").to_owned();
        assert_ne!(std::mem::replace(&mut last, key.clone()), key);
    }
    // A broker that starts again opens what the rotated key sealed, and gives it to the runner that lost everything.
    world.stop_broker().await;
    world.runner.kill().await;
    world.runner.restart();
    world.start_broker().await;
    let seen = world.runner.until(|seen| seen.applied.len() >= 2).await;
    assert_eq!(seen.applied.last().expect("some").2["secret"], "hunter2");
}
