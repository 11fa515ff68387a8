//! Services that run as their caller: an instance for each, with nobody else's secrets.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vault::{BoxKey, keys};
use wire::vault::{ConsentAsk, VaultKey};
use wire::{MemberId, ServiceName};

use crate::world::peer::{Peer, deploy_frame, now_ms};
use crate::world::runner::Seen;
use crate::world::vault::Member;
use crate::world::{OWNER, World};

/// A mesh whose runner may open its vault.
struct Mesh {
    world: World,
    owner: Peer,
    key: VaultKey,
}

/// A member with a connection.
struct Person {
    seed: u8,
    id: String,
    peer: Peer,
}

impl Mesh {
    async fn start() -> Self {
        let world = World::start().await;
        let mut owner = world.owner().await;
        let signer = Member::of(OWNER);
        let private = BoxKey::generate();
        let key = keys::certify(&signer, &world.mesh.mesh, 1, &private.public(), now_ms());
        let runner = world.runner.with_vault(|vault| vault.public());
        let grant = keys::grant(&signer, &world.mesh.mesh, &private, &runner).expect("granted");
        let copy = keys::keep_copy(&BoxKey::generate().public(), &world.mesh.mesh, &private);
        let put = json!({"type": "vault_key_put", "key": key, "owner_copy": copy, "grants": [grant]});
        let answer = owner.ask(put).await;
        assert_eq!(answer["type"], "vault_keys_result", "{answer}");
        Self { world, owner, key }
    }

    /// `notion` runs as its caller; the owner deployed it and agreed.
    async fn with_notion() -> Self {
        let mut mesh = Self::start().await;
        mesh.put(&mut Person::owner(&mesh).await, 1, "olga").await;
        mesh.deploy("ok", "caller").await;
        mesh
    }

    async fn deploy(&mut self, package: &str, run_as: &str) {
        let id = self.owner.begin(notion(package, run_as)).await;
        assert_eq!(self.owner.answer(&id).await["status"], "building");
        let status = self.owner.settled(&id).await;
        assert_eq!(status["status"], "awaiting_consent", "{status}");
        let mut owner = Person::owner(self).await;
        assert_eq!(self.sign(&mut owner).await["status"], "running");
    }

    /// Joins, with an entry and a consent.
    async fn with(&mut self, seed: u8, name: &str) -> Person {
        let mut person = self.person(seed, name).await;
        self.put(&mut person, 1, name).await;
        self.sign(&mut person).await;
        person
    }

    async fn person(&self, seed: u8, name: &str) -> Person {
        let id = self.world.join(seed, name, "member").await;
        Person { seed, peer: Peer::hello(&self.world, seed, &id).await, id }
    }

    async fn put(&self, person: &mut Person, version: i64, value: &str) {
        let mesh = &self.world.mesh.mesh;
        let entry = Member::of(person.seed).sealed(mesh, "token", version, &self.key, value);
        let answer = person.peer.ask(json!({"type": "vault_put", "entry": entry})).await;
        assert_eq!(answer["type"], "vault_put_result", "{answer}");
    }

    async fn sign(&self, person: &mut Person) -> Value {
        let asked = person.peer.ask(json!({"type": "mcp_consent_ask", "server_name": "notion"})).await;
        let ask: ConsentAsk =
            serde_json::from_value(asked["ask"].clone()).unwrap_or_else(|_| panic!("{asked}"));
        let consent = Member::of(person.seed).consent(&self.world.mesh.mesh, &ask, now_ms());
        let id = person
            .peer
            .begin(json!({"type": "mcp_consent", "server_name": "notion", "consent": consent}))
            .await;
        person.peer.settled(&id).await
    }

    async fn status(&mut self) -> Value {
        self.owner.ask(json!({"type": "mcp_status", "server_name": "notion"})).await
    }
}

impl Person {
    async fn owner(mesh: &Mesh) -> Self {
        let id = mesh.world.mesh.member.to_string();
        Self { seed: OWNER, peer: Peer::hello(&mesh.world, OWNER, &id).await, id }
    }

    /// The name of their instance at the runner.
    fn own(&self) -> String {
        let name = ServiceName::parse("notion").expect("a name");
        name.for_caller(&MemberId::parse(&self.id).expect("an id")).to_string()
    }

    async fn call(&mut self) -> Value {
        self.peer.call("notion", "echo", json!({})).await
    }

    async fn works(&mut self) {
        let answer = self.call().await;
        assert!(answer["result"].is_object(), "{answer}");
    }
}

fn notion(package: &str, run_as: &str) -> Value {
    let mut frame = deploy_frame("notion", package, json!("mesh"));
    frame["config"] = json!({"env": {"TOKEN": "$vault:token"}, "run_as": run_as});
    frame
}

fn applied(seen: &Seen, name: &str) -> usize {
    seen.applied.iter().filter(|(one, _, _)| one == name).count()
}

/// What each instance was ever opened with.
fn opened(seen: &Seen) -> BTreeSet<(String, String)> {
    seen.opened.iter().map(|(service, _, value)| (service.clone(), value.clone())).collect()
}

fn is_held(seen: &Seen, name: &str) -> bool {
    let last = seen.acts.iter().rev().find(|(one, _)| one == name);
    last.is_some_and(|(_, is_there)| *is_there)
}

#[tokio::test]
async fn each_caller_has_an_instance_with_their_own_entries_and_nobody_elses() {
    let mut mesh = Mesh::with_notion().await;
    let (mut bo, mut cy) = (mesh.with(2, "Bo").await, mesh.with(3, "Cy").await);
    for _ in 0..2 {
        bo.works().await;
        cy.works().await;
        assert!(mesh.owner.call("notion", "echo", json!({})).await["result"].is_object());
    }
    let seen = mesh.world.runner.seen();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = [pair("notion", "olga"), pair(&bo.own(), "Bo"), pair(&cy.own(), "Cy")];
    assert_eq!(opened(&seen), BTreeSet::from(expected));
    let whose = |person: &Person| crate::world::public(&crate::world::key(person.seed));
    let owner = crate::world::public(&crate::world::key(OWNER));
    assert_eq!(applied(&seen, &bo.own()), 1, "it is told once: {:?}", seen.applied);
    for (name, caller) in [(bo.own(), whose(&bo)), (cy.own(), whose(&cy)), ("notion".into(), owner)] {
        let of: Vec<_> = seen.called.iter().filter(|(one, _)| *one == name).collect();
        assert!(of.len() == 2 && of.iter().all(|(_, by)| *by == Some(caller.clone())), "{name}: {of:?}");
    }
}

#[tokio::test]
async fn who_lacks_a_consent_or_an_entry_is_told_what_and_nothing_starts_for_them() {
    let mesh = Mesh::with_notion().await;
    let (mut bo, mut cy) = (mesh.person(2, "Bo").await, mesh.person(3, "Cy").await);
    mesh.put(&mut bo, 1, "Bo").await;
    let refused = bo.call().await;
    assert_eq!(refused["code"], "awaiting_consent", "{refused}");
    assert!(refused["error"].as_str().is_some_and(|text| text.contains("claudemesh consent notion")));
    mesh.sign(&mut cy).await;
    let refused = cy.call().await;
    assert_eq!(refused["code"], "vault_missing", "{refused}");
    assert!(refused["error"].as_str().is_some_and(|text| text.contains("TOKEN ($vault:token)")), "{refused}");
    let seen = mesh.world.runner.seen();
    assert_eq!(applied(&seen, &bo.own()) + applied(&seen, &cy.own()), 0);
    assert!(seen.called.is_empty(), "nobody else's instance served them: {:?}", seen.called);
    mesh.sign(&mut bo).await;
    mesh.put(&mut cy, 1, "Cy").await;
    bo.works().await;
    cy.works().await;
}

#[tokio::test]
async fn twenty_first_calls_at_once_start_one_instance() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(
            bo.peer.begin(json!({"type": "mcp_call", "serverName": "notion", "toolName": "echo"})).await,
        );
    }
    for id in ids {
        let answer = bo.peer.answer(&id).await;
        assert!(answer["result"].is_object(), "{answer}");
    }
    let seen = mesh.world.runner.seen();
    assert_eq!(seen.opened.iter().filter(|(service, _, _)| *service == bo.own()).count(), 1);
    assert_eq!(seen.called.iter().filter(|(service, _)| *service == bo.own()).count(), 20);
}

#[tokio::test]
async fn a_new_value_of_a_caller_is_what_their_next_call_finds_and_others_are_left_alone() {
    let mut mesh = Mesh::with_notion().await;
    let (mut bo, mut cy) = (mesh.with(2, "Bo").await, mesh.with(3, "Cy").await);
    bo.works().await;
    cy.works().await;
    let before = applied(&mesh.world.runner.seen(), "notion");
    mesh.put(&mut bo, 2, "Bo-2").await;
    bo.works().await;
    let seen = mesh.world.runner.seen();
    let of_bo: Vec<_> =
        seen.opened.iter().filter(|(one, _, _)| *one == bo.own()).map(|(_, _, v)| v).collect();
    assert_eq!(of_bo, ["Bo", "Bo-2"]);
    let last = seen.acts.iter().rposition(|(one, is_there)| *one == bo.own() && *is_there).expect("applied");
    let ended = seen.acts.iter().rposition(|(one, is_there)| *one == bo.own() && !*is_there).expect("ended");
    assert!(ended < last, "the old one ended before the new one came");
    assert_eq!(applied(&seen, "notion"), before, "no new generation for somebody else's value");
    assert_eq!(
        seen.opened.iter().filter(|(one, _, _)| *one == cy.own()).count(),
        1,
        "hers was never restarted"
    );
    assert_eq!(mesh.status().await["service"]["generation"], 1);
}

#[tokio::test]
async fn an_entry_that_is_removed_ends_the_instance_that_holds_it() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    let own = bo.own();
    let gone = Member::of(2).gone(&mesh.world.mesh.mesh, "token", 2);
    assert_eq!(bo.peer.ask(json!({"type": "vault_put", "entry": gone})).await["type"], "vault_put_result");
    mesh.world.runner.until(|seen| !is_held(seen, &own)).await;
    assert_eq!(bo.call().await["code"], "vault_missing");
    assert!(mesh.owner.call("notion", "echo", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn the_instance_of_a_removed_member_ends_with_its_data_and_comes_back_for_nobody() {
    let mut mesh = Mesh::with_notion().await;
    let (mut bo, mut cy) = (mesh.with(2, "Bo").await, mesh.with(3, "Cy").await);
    bo.works().await;
    cy.works().await;
    let (own, other) = (bo.own(), cy.own());
    mesh.owner.ask(json!({"type": "member_update", "member": bo.id, "revoke": true})).await;
    mesh.world.runner.until(|seen| seen.removed.contains(&(own.clone(), true))).await;
    let seen = mesh.world.runner.until(|seen| !is_held(seen, &own)).await;
    assert!(is_held(&seen, &other) && is_held(&seen, "notion"));
    cy.works().await;
}

#[tokio::test]
async fn a_broker_that_comes_back_leaves_instances_as_they_are_and_a_runner_gets_each_its_own() {
    let mut mesh = Mesh::with_notion().await;
    let bo = mesh.with(2, "Bo").await;
    let (id, own) = (bo.id.clone(), bo.own());
    let mut bo = bo;
    bo.works().await;
    mesh.world.kill_broker().await;
    mesh.world.start_broker().await;
    bo.peer = Peer::hello(&mesh.world, 2, &id).await;
    bo.works().await;
    let seen = mesh.world.runner.seen();
    assert_eq!(seen.opened.iter().filter(|(one, _, _)| *one == own).count(), 1, "it was never restarted");
    mesh.world.runner.kill().await;
    mesh.world.runner.restart();
    bo.works().await;
    let seen = mesh.world.runner.seen();
    let of_bo: Vec<_> = seen.opened.iter().filter(|(one, _, _)| *one == own).map(|(_, _, v)| v).collect();
    assert_eq!(of_bo, ["Bo", "Bo"]);
    assert_eq!(opened(&seen).len(), 2, "{:?}", seen.opened);
}

#[tokio::test]
async fn while_another_version_is_untried_callers_stay_where_they_are_whoever_that_version_is_to_run_as() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    for run_as in ["deployer", "caller"] {
        let id = mesh.owner.begin(notion("hang", run_as)).await;
        assert_eq!(mesh.owner.answer(&id).await["status"], "building");
        bo.works().await;
        let seen = mesh.world.runner.seen();
        assert!(seen.called.iter().all(|(one, _)| *one == bo.own()), "{:?}", seen.called);
    }
}

#[tokio::test]
async fn a_version_that_the_caller_has_not_signed_ends_their_instance() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    let own = bo.own();
    mesh.deploy("ok-2", "caller").await;
    mesh.world.runner.until(|seen| !is_held(seen, &own)).await;
    assert_eq!(bo.call().await["code"], "awaiting_consent");
    mesh.sign(&mut bo).await;
    bo.works().await;
}

#[tokio::test]
async fn what_callers_left_goes_with_the_service() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    let own = bo.own();
    mesh.owner.ask(json!({"type": "mcp_stop", "server_name": "notion"})).await;
    mesh.world.runner.until(|seen| !is_held(seen, &own) && !is_held(seen, "notion")).await;
    assert_eq!(bo.call().await["code"], "service_stopped");
    mesh.owner.ask(json!({"type": "mcp_undeploy", "server_name": "notion"})).await;
    let purged =
        |seen: &Seen, name: &str| seen.removed.iter().position(|one| *one == (name.to_owned(), true));
    let seen = mesh.world.runner.until(|seen| purged(seen, "notion").is_some()).await;
    assert!(purged(&seen, &own) < purged(&seen, "notion"), "{:?}", seen.removed);
    assert!(purged(&seen, &own).is_some(), "{:?}", seen.removed);
}

#[tokio::test]
async fn an_instance_that_nobody_called_for_a_day_goes_and_its_data_stays() {
    let mut mesh = Mesh::with_notion().await;
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    let (id, own) = (bo.id.clone(), bo.own());
    mesh.world.stop_broker().await;
    mesh.world.damage("UPDATE caller_instance SET last_call_at = last_call_at - 86400000").await;
    mesh.world.start_broker().await;
    let seen = mesh.world.runner.until(|seen| !is_held(seen, &own)).await;
    assert!(!seen.removed.contains(&(own.clone(), true)));
    bo.peer = Peer::hello(&mesh.world, 2, &id).await;
    bo.works().await;
}

#[tokio::test]
async fn a_service_without_references_has_an_instance_for_each_of_fifty_callers() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut frame = deploy_frame("notion", "ok", json!("mesh"));
    frame["config"] = json!({"run_as": "caller"});
    let id = owner.begin(frame).await;
    assert_eq!(owner.answer(&id).await["status"], "building");
    assert_eq!(owner.settled(&id).await["status"], "running");
    for seed in 100..=150 {
        let id = world.join(seed, &format!("m{seed}"), "member").await;
        let mut peer = Peer::hello(&world, seed, &id).await;
        let answer = peer.call("notion", "echo", json!({})).await;
        if seed < 150 {
            assert!(answer["result"].is_object(), "{seed}: {answer}");
        } else {
            assert_eq!(answer["code"], "limit", "{answer}");
        }
    }
    assert!(world.runner.seen().called.iter().all(|(name, _)| name.starts_with("notion.")));
}

#[tokio::test]
async fn callers_are_asked_again_when_a_value_beside_their_secret_changes() {
    let mut mesh = Mesh::start().await;
    mesh.put(&mut Person::owner(&mesh).await, 1, "olga").await;
    let with_url = |url: &str| {
        let mut frame = notion("fixed", "caller");
        frame["config"]["env"]["URL"] = json!(url);
        frame["config"]["env_salt"] = json!("a salt of a test");
        frame
    };
    let deploy = async |peer: &mut Peer, url: &str| {
        let id = peer.begin(with_url(url)).await;
        assert_eq!(peer.answer(&id).await["status"], "building");
        peer.settled(&id).await
    };
    assert_eq!(deploy(&mut mesh.owner, "https://a.example").await["status"], "awaiting_consent");
    let mut olga = Person::owner(&mesh).await;
    assert_eq!(mesh.sign(&mut olga).await["status"], "running");
    let mut bo = mesh.with(2, "Bo").await;
    bo.works().await;
    // The same again is what everybody signed.
    let again = deploy(&mut mesh.owner, "https://a.example").await;
    assert_eq!(again["status"], "running", "{again}");
    bo.works().await;
    let changed = deploy(&mut mesh.owner, "https://evil.example").await;
    assert_eq!(changed["status"], "awaiting_consent", "{changed}");
    assert_eq!(mesh.sign(&mut olga).await["status"], "running");
    let opened_before = mesh.world.runner.seen().opened.len();
    let refused = bo.call().await;
    assert!(refused.to_string().contains("awaiting_consent"), "{refused}");
    mesh.sign(&mut bo).await;
    bo.works().await;
    assert_eq!(mesh.world.runner.seen().opened.len(), opened_before + 1);
    // An admin's deploy needs the signature of whose instance lists the tools, too.
    let mut ada = mesh.world.member(5, "Ada", "admin").await;
    let theirs = deploy(&mut ada, "https://worse.example").await;
    assert_eq!(theirs["reason"]["code"], "awaiting_consent", "{theirs}");
    // Nobody agreed to that, so everybody stays where they are.
    bo.works().await;
}
