//! Secrets of services: references, consents, new values, the runner's boot key and ledger.

use crate::world::peer::{Peer, deploy_frame};
use crate::world::runner::Seen;
use crate::world::vault::Member;
use crate::world::{OWNER, PATIENCE, World};
use serde_json::{Value, json};
use vault::{BoxKey, Signer as _, entry, keys};
use wire::vault::{Consent, ConsentAsk, EntryKind, Grant, VaultKey};

/// The owner's member, their peer, the mesh's vault key.
struct Vaulted {
    owner: Member,
    peer: Peer,
    key: VaultKey,
    secret: BoxKey,
}

/// A mesh whose owner made a vault key, and trusts the runner if so wished.
async fn vaulted(world: &World, is_trusted: bool) -> Vaulted {
    let (owner, mut peer) = (Member::of(OWNER), world.owner().await);
    let secret = BoxKey::generate();
    let mesh = &world.mesh.mesh;
    let key = keys::certify(&owner, mesh, 1, &secret.public(), 1);
    let copy = keys::keep_copy(&BoxKey::of_member(&[OWNER; 32]).public(), mesh, &secret);
    until(&mut peer, &json!({"type": "runner_list"}), |list| list["runners"][0]["public"].is_string()).await;
    let grants: Vec<Grant> = if is_trusted { vec![grant(world, &owner, &secret)] } else { vec![] };
    let put = json!({"type": "vault_key_put", "key": key, "owner_copy": copy, "grants": grants});
    let answer = peer.ask(put).await;
    assert_eq!(answer["type"], "vault_keys_result", "{answer}");
    if is_trusted {
        world.runner.until(|seen| seen.granted > 0).await;
    }
    Vaulted { owner, peer, key, secret }
}

fn grant(world: &World, owner: &Member, secret: &BoxKey) -> Grant {
    let public = world.runner.with_vault(|vault| vault.public());
    keys::grant(owner, &world.mesh.mesh, secret, &public).expect("granted")
}

/// Asks until the answer is as it should be; every round trip is a chance for what is awaited to arrive.
async fn until(peer: &mut Peer, ask: &Value, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let looking = async {
        loop {
            last = peer.ask(ask.clone()).await;
            if is_it(&last) {
                break;
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, looking).await;
    assert!(waited.is_ok(), "last was {last}");
    last
}

async fn put(
    world: &World,
    peer: &mut Peer,
    (member, to): (&Member, &VaultKey),
    version: i64,
    value: &str,
) -> Value {
    let entry = member.sealed(&world.mesh.mesh, "token", version, to, value);
    let answer = peer.ask(json!({"type": "vault_put", "entry": entry})).await;
    assert_eq!(answer["type"], "vault_put_result", "{answer}");
    answer["services"].clone()
}

fn secret_frame(package: &str) -> Value {
    let mut frame = deploy_frame("echo", package, json!("mesh"));
    frame["config"]["env"] = json!({"KEY": "hunter2", "TOKEN": "$vault:token"});
    frame
}

async fn change(peer: &mut Peer, frame: Value) -> Value {
    let id = peer.begin(frame).await;
    let first = peer.answer(&id).await;
    if first["status"] == "building" { peer.settled(&id).await } else { first }
}

async fn named(peer: &mut Peer, kind: &str) -> Value {
    change(peer, json!({"type": kind, "server_name": "echo"})).await
}

fn asked(status: &Value) -> ConsentAsk {
    serde_json::from_value(status["consent"].clone()).unwrap_or_else(|e| panic!("{e}: {status}"))
}

async fn agree(peer: &mut Peer, consent: &Consent) -> Value {
    change(peer, json!({"type": "mcp_consent", "server_name": "echo", "consent": consent})).await
}

/// Deploys and signs; the service runs.
async fn running(world: &World, all: &mut Vaulted) {
    put(world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let waits = change(&mut all.peer, secret_frame("ok")).await;
    let consent = all.owner.consent(&world.mesh.mesh, &asked(&waits), 1);
    let done = agree(&mut all.peer, &consent).await;
    assert_eq!(done["status"], "running", "{done}");
}

fn opened(seen: &Seen) -> Vec<&str> {
    seen.opened.iter().map(|(_, _, value)| value.as_str()).collect()
}

async fn status(peer: &mut Peer) -> Value {
    peer.ask(json!({"type": "mcp_status", "server_name": "echo"})).await["service"].clone()
}

#[tokio::test]
async fn a_deploy_waits_for_the_signature_of_who_owns_the_secrets_and_then_runs_with_them() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let waits = change(&mut all.peer, secret_frame("ok")).await;
    assert_eq!(
        (&waits["status"], &waits["reason"]["code"]),
        (&json!("awaiting_consent"), &json!("awaiting_consent"))
    );
    assert_eq!((waits.get("serving"), &waits["generation"]), (None, &json!(1)));
    let ask = asked(&waits);
    assert_eq!((ask.pin.version.as_str(), ask.previous.as_ref()), ("1.0.1", None));
    assert_eq!(ask.spec.env_names, ["KEY"]);
    assert_eq!(ask.spec.vault["TOKEN"].owner.as_ref(), Some(all.owner.public()));
    assert_eq!(ask.versions.values().collect::<Vec<_>>(), [&1]);
    let shown = status(&mut all.peer).await;
    assert_eq!((&shown["phase"], &shown["reason"]["code"]), (&json!("waiting"), &json!("awaiting_consent")));
    let used = json!([{"variable": "TOKEN", "reference": "$vault:token", "owner": "Olga", "version": 1}]);
    assert_eq!(shown["vault"], used);
    let again = all.peer.ask(json!({"type": "mcp_consent_ask", "server_name": "echo"})).await;
    assert_eq!(again["ask"], waits["consent"]);
    let consent = all.owner.consent(&world.mesh.mesh, &ask, 5);
    let done = agree(&mut all.peer, &consent).await;
    assert_eq!((&done["status"], &done["generation"]), (&json!("running"), &json!(1)), "{done}");
    let seen = world.runner.seen();
    assert_eq!(opened(&seen), ["first-value"]);
    let pins: Vec<_> =
        seen.applied.iter().map(|(_, g, note)| (*g, note["pin"].clone(), note["proven"].clone())).collect();
    assert_eq!(
        pins,
        [(1, json!(null), json!(false)), (1, json!("1.0.1"), json!(false))],
        "the pin that was signed"
    );
    let nothing = all.peer.ask(json!({"type": "mcp_consent_ask", "server_name": "echo"})).await;
    assert_eq!(nothing["ask"], Value::Null);
    let line = json!({"type": "vault_ledger", "service": "echo"});
    let ledger = until(&mut all.peer, &line, |ledger| {
        ledger["lines"].as_array().is_some_and(|lines| lines.iter().any(|line| line["act"] == "opened"))
    });
    let line = ledger.await["lines"][0].clone();
    assert_eq!((&line["opening"]["service"], &line["version"]), (&json!("echo"), &json!(1)));
}

#[tokio::test]
async fn references_that_lead_nowhere_are_all_named_and_nothing_is_stored() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    let mut frame = secret_frame("ok");
    frame["config"]["env"]["CREDS"] = json!("$vault:creds:file:/secrets/c.json");
    let refused = change(&mut all.peer, frame.clone()).await;
    assert_eq!(refused["code"], "vault_missing", "{refused}");
    let message = refused["message"].as_str().expect("text");
    assert!(message.contains("CREDS ($vault:creds:file:/secrets/c.json), TOKEN ($vault:token)"), "{message}");
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let gone = all.owner.gone(&world.mesh.mesh, "token", 2);
    all.peer.ask(json!({"type": "vault_put", "entry": gone})).await;
    assert_eq!(
        change(&mut all.peer, secret_frame("ok")).await["code"],
        "vault_missing",
        "a removed one is none"
    );
    frame["config"]["isolation"] = json!("light");
    all.peer.ask(json!({"type": "mesh_policy", "min_isolation": "light"})).await;
    let refused = change(&mut all.peer, frame).await;
    assert!(
        refused["message"].as_str().is_some_and(|m| m.starts_with("config.isolation: a secret in a file"))
    );
    assert!(world.runner.seen().applied.is_empty());
}

#[tokio::test]
async fn values_are_injected_only_where_the_service_may_connect() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let mut frame = secret_frame("ok");
    frame["config"]["inject"] = json!(["api.github.com"]);
    let refused = change(&mut all.peer, frame.clone()).await;
    let message =
        "config.inject: the service may not connect to `api.github.com:443`; add it to config.network_allow";
    assert_eq!((&refused["code"], &refused["message"]), (&json!("invalid_args"), &json!(message)));
    frame["config"]["network_allow"] = json!(["*.github.com"]);
    assert_eq!(change(&mut all.peer, frame.clone()).await["status"], "awaiting_consent");
    frame["config"]["env"] = json!({"KEY": "hunter2"});
    let refused = change(&mut all.peer, frame).await;
    assert!(refused["message"].as_str().is_some_and(|m| m.starts_with("config.inject: nothing to inject")));
}

#[tokio::test]
async fn a_signature_of_somebody_else_to_something_else_or_from_before_is_refused() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    let mut bo = world.member(2, "Bo", "admin").await;
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let ask = asked(&change(&mut all.peer, secret_frame("ok")).await);
    let mesh = &world.mesh.mesh;
    let good = all.owner.consent(mesh, &ask, 7);
    assert_eq!(agree(&mut bo, &good).await["code"], "forbidden", "of another member");
    let own = Member::of(2).consent(mesh, &ask, 7);
    assert_eq!(agree(&mut bo, &own).await["code"], "vault_error", "nothing is theirs");
    let forged = Consent { signer: all.owner.public().clone(), ..own.clone() };
    assert_eq!(agree(&mut all.peer, &forged).await["code"], "bad_signature");
    let changed = Consent { doc: good.doc.replace("\"ok\"", "\"evil\""), ..good.clone() };
    assert_eq!(agree(&mut all.peer, &changed).await["code"], "bad_signature");
    type Change = fn(&mut wire::vault::ConsentDoc);
    let others: [Change; 4] = [
        |doc| doc.spec.args.push("--evil".into()),
        |doc| doc.pin.version = "6.6.6".into(),
        |doc| doc.service = wire::ServiceName::parse("other").expect("a name"),
        |doc| doc.mesh = wire::MeshId::parse(&"X".repeat(32)).expect("a mesh"),
    ];
    for other in others {
        let consent = all.owner.consent_to(mesh, &ask, 7, other);
        assert_eq!(agree(&mut all.peer, &consent).await["code"], "conflict", "{}", consent.doc);
    }
    assert!(world.runner.seen().opened.is_empty());
    assert_eq!(agree(&mut all.peer, &good).await["status"], "running");
    for serial in [7, 6] {
        let old = all.owner.consent(mesh, &ask, serial);
        assert_eq!(agree(&mut all.peer, &old).await["code"], "vault_stale", "serial {serial}");
    }
}

#[tokio::test]
async fn an_update_by_another_admin_waits_for_the_owners_signature_while_the_old_version_serves() {
    let mut world = World::start().await;
    let mut all = vaulted(&world, true).await;
    let mut bo = world.member(2, "Bo", "admin").await;
    running(&world, &mut all).await;
    let waits = named(&mut bo, "mcp_update").await;
    assert_eq!((&waits["status"], &waits["reason"]["code"]), (&json!("failed"), &json!("awaiting_consent")));
    assert_eq!((waits.get("consent"), &waits["serving"]), (None, &json!(1)), "only the owner can sign");
    assert!(bo.call("echo", "echo", json!({})).await["result"].is_object(), "the old one serves on");
    let shown = status(&mut bo).await;
    assert_eq!((&shown["phase"], &shown["failed_update"]["generation"]), (&json!("ready"), &json!(2)));
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    let ask = json!({"type": "mcp_consent_ask", "server_name": "echo"});
    let ask = until(&mut owner, &ask, |answer| answer["ask"].is_object()).await["ask"].clone();
    let ask: ConsentAsk = serde_json::from_value(ask).expect("an ask");
    assert_eq!((ask.generation, ask.pin.version.as_str()), (2, "1.0.2"));
    assert!(ask.previous.as_ref().is_some_and(|previous| previous.doc.contains("1.0.1")));
    let done = agree(&mut owner, &all.owner.consent(&world.mesh.mesh, &ask, 2)).await;
    assert_eq!((&done["status"], &done["generation"]), (&json!("running"), &json!(2)), "{done}");
    let rolled = named(&mut owner, "mcp_rollback").await;
    assert_eq!(rolled["status"], "running", "what was signed before is signed still: {rolled}");
}

#[tokio::test]
async fn what_was_withdrawn_by_a_later_signature_has_to_be_signed_again() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    let ask = asked(&named(&mut all.peer, "mcp_update").await);
    let only_this = all.owner.consent_to(&world.mesh.mesh, &ask, 2, |doc| doc.floor = 2);
    assert_eq!(agree(&mut all.peer, &only_this).await["status"], "running");
    let waits = named(&mut all.peer, "mcp_rollback").await;
    assert_eq!((&waits["status"], &waits["serving"]), (&json!("awaiting_consent"), &json!(2)), "{waits}");
    let done = agree(&mut all.peer, &all.owner.consent(&world.mesh.mesh, &asked(&waits), 3)).await;
    assert_eq!((&done["status"], &done["pin"]["version"]), (&json!("running"), &json!("1.0.1")));
}

#[tokio::test]
async fn a_new_value_comes_by_a_new_generation_and_a_removed_one_stops_the_service() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    all.peer.deploy("other", "ok", Value::Null).await;
    let services = put(&world, &mut all.peer, (&all.owner, &all.key), 2, "second-value").await;
    assert_eq!(services, json!(["echo"]));
    let seen = world.runner.until(|seen| seen.opened.len() == 2).await;
    assert_eq!(opened(&seen), ["first-value", "second-value"], "without another signature");
    let last = seen.applied.iter().rfind(|(name, ..)| name == "echo").expect("applied");
    assert_eq!((last.1, &last.2["pin"], &last.2["secret"]), (2, &json!("1.0.1"), &json!("hunter2")));
    let gone = all.owner.gone(&world.mesh.mesh, "token", 3);
    let answer = all.peer.ask(json!({"type": "vault_put", "entry": gone})).await;
    assert_eq!(answer["services"], json!(["echo"]), "{answer}");
    world.runner.until(|seen| seen.removed.contains(&("echo".into(), false))).await;
    assert_eq!(status(&mut all.peer).await["phase"], "stopped");
    let started = named(&mut all.peer, "mcp_start").await;
    assert_eq!((&started["status"], &started["reason"]["code"]), (&json!("failed"), &json!("vault_missing")));
    put(&world, &mut all.peer, (&all.owner, &all.key), 4, "fourth-value").await;
    let seen = world.runner.until(|seen| seen.opened.len() == 3).await;
    assert_eq!(seen.opened.last().map(|(_, _, value)| value.as_str()), Some("fourth-value"));
}

#[tokio::test]
async fn who_is_removed_from_the_mesh_takes_their_secrets_along() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    let bo_is = Member::of(2);
    let mut bo = world.member(2, "Bo", "admin").await;
    put(&world, &mut bo, (&bo_is, &all.key), 1, "of-bo").await;
    let waits = change(&mut bo, secret_frame("ok")).await;
    let done = agree(&mut bo, &bo_is.consent(&world.mesh.mesh, &asked(&waits), 1)).await;
    assert_eq!(done["status"], "running", "{done}");
    assert_eq!(opened(&world.runner.seen()), ["first-value", "of-bo"]);
    let removed = all.peer.ask(json!({"type": "member_update", "member": "Bo", "revoke": true})).await;
    assert_ne!(removed["type"], "error", "{removed}");
    world.runner.until(|seen| seen.removed.contains(&("echo".into(), false))).await;
    let started = named(&mut all.peer, "mcp_start").await;
    assert_eq!(started["status"], "failed", "{started}");
    assert_eq!(world.runner.seen().opened.len(), 2, "whoever starts it");
}

#[tokio::test]
async fn a_restart_of_everything_needs_nobody_and_a_restart_of_the_broker_tells_nothing_anew() {
    let mut world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    assert!(owner.call("echo", "echo", json!({})).await["result"].is_object());
    let seen = world.runner.seen();
    assert_eq!(
        (seen.applied.len(), seen.granted, seen.boot_keys),
        (2, 1, 1),
        "it is known what the runner has"
    );
    world.runner.kill().await;
    world.runner.restart();
    let seen = world.runner.until(|seen| seen.opened.len() == 2).await;
    assert_eq!((seen.boot_keys, seen.granted), (2, 2));
    let last = seen.applied.last().expect("applied").clone();
    assert_eq!(seen.applied.len(), 3, "it had its keys before it got the service: {last:?}");
    world.stop_broker().await;
    world.runner.kill().await;
    world.runner.restart();
    world.start_broker().await;
    world.runner.until(|seen| seen.opened.len() == 3).await;
    let mut owner = world.owner().await;
    let ledger = json!({"type": "vault_ledger"});
    until(&mut owner, &ledger, |ledger| {
        let acts: Vec<_> =
            ledger["lines"].as_array().into_iter().flatten().map(|line| line["act"].clone()).collect();
        let count = |act: &str| acts.iter().filter(|one| **one == act).count();
        count("opened") == 3 && count("boot_key") == 3
    })
    .await;
}

#[tokio::test]
async fn a_runner_that_is_not_trusted_holds_the_service_back_until_it_is_and_after_it_is_not_any_more() {
    let mut world = World::start().await;
    let mut all = vaulted(&world, false).await;
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let waits = change(&mut all.peer, secret_frame("ok")).await;
    let consent = all.owner.consent(&world.mesh.mesh, &asked(&waits), 1);
    let waits = agree(&mut all.peer, &consent).await;
    assert_eq!(
        (&waits["status"], &waits["reason"]["code"]),
        (&json!("failed"), &json!("runner_not_trusted"))
    );
    world.kill_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    let trust = json!({"type": "runner_trust", "grants": [grant(&world, &all.owner, &all.secret)]});
    assert_eq!(owner.ask(trust).await["type"], "runner_list_result");
    world.runner.until(|seen| seen.opened.len() == 1).await;
    until(&mut owner, &json!({"type": "mcp_status", "server_name": "echo"}), |answer| {
        answer["service"]["phase"] == "ready"
    })
    .await;
    let runner = keys::runner_id(&world.runner.with_vault(|vault| vault.public()));
    owner.ask(json!({"type": "runner_revoke", "runner": runner})).await;
    world.runner.until(|seen| seen.granted == 2).await;
    world.runner.with_vault(|vault| assert!(vault.describe().held.values().all(Vec::is_empty)));
}

#[tokio::test]
async fn a_runner_under_an_unknown_boot_key_says_so_and_serves_what_has_no_secrets() {
    let mut world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    assert_eq!(all.peer.deploy("plain", "ok", json!("mesh")).await["status"], "running");
    world.runner.kill().await;
    world.runner.with_vault(|vault| vault.lie_under("another"));
    world.runner.restart();
    let list = until(&mut all.peer, &json!({"type": "runner_list"}), |list| {
        list.to_string().contains("boot key another")
    })
    .await;
    assert!(list.to_string().contains("which this broker does not have"), "{list}");
    assert!(all.peer.call("plain", "echo", json!({})).await["result"].is_object());
    let ask = json!({"type": "mcp_status", "server_name": "echo"});
    let shown = until(&mut all.peer, &ask, |answer| answer["service"]["phase"] == "waiting").await;
    assert_eq!(shown["service"]["reason"]["code"], "vault_locked");
    assert_eq!(world.runner.seen().boot_keys, 1);
}

#[tokio::test]
async fn a_first_deploy_that_waits_is_stopped_started_and_signed_later() {
    let mut world = World::start().await;
    let mut all = vaulted(&world, true).await;
    put(&world, &mut all.peer, (&all.owner, &all.key), 1, "first-value").await;
    let ask = asked(&change(&mut all.peer, secret_frame("ok")).await);
    assert_eq!(named(&mut all.peer, "mcp_stop").await["status"], "stopped");
    let unprepared = agree(&mut all.peer, &all.owner.consent(&world.mesh.mesh, &ask, 1)).await;
    assert_eq!(unprepared["code"], "conflict", "what is not prepared has no pin: {unprepared}");
    assert_eq!(named(&mut all.peer, "mcp_start").await["status"], "awaiting_consent");
    world.runner.kill().await;
    world.runner.restart();
    world.runner.until(|seen| seen.applied.len() == 3).await;
    let ask = json!({"type": "mcp_consent_ask", "server_name": "echo"});
    let ask = until(&mut all.peer, &ask, |answer| answer["ask"].is_object()).await["ask"].clone();
    let ask: ConsentAsk = serde_json::from_value(ask).expect("an ask");
    let done = agree(&mut all.peer, &all.owner.consent(&world.mesh.mesh, &ask, 1)).await;
    assert_eq!(done["status"], "running", "{done}");
}

#[tokio::test]
async fn a_service_with_more_secrets_than_a_runner_takes_at_once_fails_and_says_so() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    let (mesh, value) = (&world.mesh.mesh, vec![b'x'; 480 << 10]);
    let mut env = serde_json::Map::new();
    for n in 0..20 {
        let key = wire::vault::VaultName::parse(&format!("k{n}")).expect("a name");
        let new = entry::NewEntry { mesh, key: &key, version: 1, created_ms: 1 };
        let entry = entry::seal(&all.owner, &new, EntryKind::File, &all.key.public, &value);
        let answer = all.peer.ask(json!({"type": "vault_put", "entry": entry})).await;
        assert_eq!(answer["type"], "vault_put_result", "{answer}");
        env.insert(format!("K{n}"), json!(format!("$vault:{key}:file:/secrets/{key}")));
    }
    let mut frame = deploy_frame("echo", "ok", json!("mesh"));
    frame["config"]["env"] = Value::Object(env);
    let failed = change(&mut all.peer, frame).await;
    assert_eq!(
        (&failed["status"], &failed["reason"]["code"]),
        (&json!("failed"), &json!("too_large")),
        "{failed}"
    );
    assert!(failed["error"].as_str().is_some_and(|text| text.contains("12 MiB")), "{failed}");
}

#[tokio::test]
async fn what_a_runner_can_not_have_opened_is_no_line_of_the_ledger() {
    let world = World::start().await;
    let mut all = vaulted(&world, true).await;
    running(&world, &mut all).await;
    let ledger = json!({"type": "vault_ledger"});
    let opened = |ledger: &Value| -> Vec<Value> {
        let lines = ledger["lines"].as_array().cloned().unwrap_or_default();
        lines.into_iter().filter(|line| line["act"] == "opened").collect()
    };
    until(&mut all.peer, &ledger, |ledger| opened(ledger).len() == 1).await;
    let far = i64::MAX;
    world.runner.with_vault(|vault| {
        vault.claim(|opening| opening.version = 9);
        vault.claim(|opening| opening.runner = wire::vault::RunnerId::parse(&"0".repeat(32)).expect("an id"));
        vault.claim(|opening| {
            opening.at_ms = far;
            opening.reason = "x\u{0}".repeat(100);
        });
    });
    // Something is opened: the broker asks for what is new.
    put(&world, &mut all.peer, (&all.owner, &all.key), 2, "second-value").await;
    let shown = until(&mut all.peer, &ledger, |ledger| opened(ledger).len() == 3).await;
    let lines = opened(&shown);
    let odd = lines.iter().find(|line| line["opening"]["reason"] == "other").expect("is kept, made sober");
    assert!(odd["at_ms"].as_i64() < Some(far), "{odd}");
    assert!(lines.iter().all(|line| line["version"] != 9), "{lines:?}");
}
