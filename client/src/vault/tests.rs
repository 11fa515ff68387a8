//! A member's vault against a broker in the same process that can be told to lie.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use wire::peer::Body;
use wire::peer::vault::{
    RunnerRevoke, RunnerTrust, VaultRewrap, VaultRewrapped, VaultVersion, VaultWraps, VaultWrapsResult,
};
use wire::spec::{ServiceSpec, Source};
use wire::vault::{Consent, ConsentAsk, ConsentDoc, ConsentPin, Custody, KeyId, VaultState, WrapOf};
use wire::{MemberId, MeshId, PublicKey, Secret, ServiceName};

use super::*;
use crate::address::BrokerAddress;
use crate::config::VaultTrust;
use crate::connection::{Announce, Membership, Reconnect};

fn mesh() -> MeshId {
    MeshId::parse("M0000000000000000000000000000001").unwrap()
}

fn owner() -> Identity {
    Identity::from_seed([1; 32])
}

fn name(text: &str) -> VaultName {
    VaultName::parse(text).unwrap()
}

/// What a broker stores, and how it answers.
#[derive(Default)]
struct Shelf {
    keys: Vec<KeptKey>,
    entries: BTreeMap<VaultName, VaultEntry>,
    runners: Vec<RunnerInfo>,
    grants: Vec<Grant>,
    /// Types of the frames that came.
    asked: Vec<String>,
    /// The owner that it names.
    owner: Option<PublicKey>,
    /// Refuses the next so many frames of a type with this code.
    refusals: Vec<(&'static str, ErrorCode)>,
    /// Entries of one `vault_wraps` answer.
    round: usize,
    /// How many more it says are left than there are, one less each time; meanwhile it offers the same ones again.
    countdown: i64,
    hoard: Vec<wire::vault::WrapOf>,
}

type Shared = Arc<Mutex<Shelf>>;

fn read<T: DeserializeOwned>(frame: &Value) -> T {
    serde_json::from_value(frame.clone()).unwrap()
}

impl Shelf {
    fn keys(&self) -> VaultKeysResult {
        let owner = self.owner.clone().unwrap_or_else(|| owner().public().clone());
        VaultKeysResult { owner, keys: self.keys.clone() }
    }

    fn answer(&mut self, kind: &str, frame: &Value) -> Value {
        self.asked.push(kind.to_owned());
        if let Some(at) = self.refusals.iter().position(|(refused, _)| *refused == kind) {
            let (_, code) = self.refusals.remove(at);
            return serde_json::json!({"type": "error", "code": code.as_str(), "message": code.as_str()});
        }
        match kind {
            "vault_keys" => of(&self.keys()),
            "vault_key_put" => {
                let put: VaultKeyPut = read(frame);
                self.grants.extend(put.grants);
                let kept = KeptKey { key: put.key, entries: 0, owner_copy: Some(put.owner_copy) };
                self.keys.insert(0, kept);
                of(&self.keys())
            }
            "vault_key_drop" => {
                let drop: wire::peer::vault::VaultKeyDrop = read(frame);
                assert!(self.sealed_to(&drop.kid) == 0, "a key that is in use is dropped");
                self.keys.retain(|kept| kept.key.kid != drop.kid);
                of(&self.keys())
            }
            "vault_history" => {
                let asked: VaultHistory = read(frame);
                let version = |entry: &VaultEntry| VaultVersion {
                    version: entry.version,
                    kind: entry.kind,
                    stored_at: "2026-01-02T03:04:05Z".into(),
                    kid: None,
                    openings: 0,
                };
                let versions = self.entries.get(&name(&asked.key)).map(version).into_iter().collect();
                of(&VaultHistoryResult { key: asked.key, versions })
            }
            "vault_put" => {
                let VaultPut { entry } = read(frame);
                let (key, version) = (entry.key.to_string(), entry.version);
                self.entries.insert(entry.key.clone(), entry);
                of(&VaultPutResult { key, version, services: vec![] })
            }
            "runner_list" => of(&RunnerListResult { runners: self.runners() }),
            "runner_trust" => {
                self.grants.extend(read::<RunnerTrust>(frame).grants);
                of(&RunnerListResult { runners: self.runners() })
            }
            "runner_revoke" => {
                let asked: RunnerRevoke = read(frame);
                self.grants.retain(|grant| grant.runner != asked.runner);
                of(&RunnerListResult { runners: self.runners() })
            }
            "vault_wraps" => of(&self.wraps(&read(frame))),
            "vault_rewrap" => of(&self.rewrap(read(frame))),
            other => panic!("{other}"),
        }
    }

    fn wraps(&mut self, asked: &VaultWraps) -> VaultWrapsResult {
        let wraps = self.entries.values().filter_map(entry::wrap_of);
        let is_later = |of: &WrapOf| asked.after.as_ref().is_none_or(|after| of.key > after.key);
        let wraps = wraps.filter(|of| of.wrap.kid == asked.kid && is_later(of));
        let wraps: Vec<_> = wraps.take(self.round.max(1)).collect();
        if self.countdown > 0 && self.hoard.is_empty() {
            self.hoard.clone_from(&wraps);
        }
        VaultWrapsResult { wraps: if self.countdown > 0 { self.hoard.clone() } else { wraps } }
    }

    fn rewrap(&mut self, asked: VaultRewrap) -> VaultRewrapped {
        for of in asked.wraps {
            self.entries.get_mut(&of.key).unwrap().wrap = Some(of.wrap);
        }
        self.countdown -= 1;
        VaultRewrapped { left: self.sealed_to(&asked.from) + self.countdown.max(0) }
    }

    fn runners(&self) -> Vec<RunnerInfo> {
        let with_grants = |runner: &RunnerInfo| {
            let own = self.grants.iter().filter(|grant| Some(&grant.runner) == runner.id.as_ref());
            let kids = own.map(|grant| grant.kid.clone());
            let granted = kids.filter(|kid| self.keys.iter().any(|kept| kept.key.kid == *kid));
            RunnerInfo { granted: runner.granted.iter().cloned().chain(granted).collect(), ..runner.clone() }
        };
        self.runners.iter().map(with_grants).collect()
    }

    fn sealed_to(&self, kid: &KeyId) -> i64 {
        let wraps = self.entries.values().filter_map(|entry| entry.wrap.as_ref());
        wraps.filter(|wrap| wrap.kid == *kid).count().try_into().unwrap()
    }
}

fn of<B: Body + Serialize>(body: &B) -> Value {
    serde_json::from_str(&wire::peer::write(None, body).unwrap()).unwrap()
}

struct Scene {
    shelf: Shared,
    connection: Connection,
    folder: PathBuf,
    _broker: JoinSet<()>,
}

impl Scene {
    async fn new() -> Self {
        let shelf = Shared::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        let mut broker = JoinSet::new();
        broker.spawn(serve(listener, Arc::clone(&shelf)));
        let membership = Membership {
            mesh_id: mesh(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            identity: owner(),
            broker: BrokerAddress::parse(&url).unwrap(),
        };
        let connection =
            Connection::open(membership, Announce::here("human", "test"), Reconnect::Never).await.unwrap();
        let folder = std::env::temp_dir().join(format!("cm-vault-{}", crate::identity::random_hex()));
        let scene = Self { shelf, connection, folder, _broker: broker };
        scene.save(VaultTrust::of_owner(owner().public().clone()));
        scene
    }

    fn save(&self, vault: VaultTrust) {
        let mut config = Config::default();
        config.put(MeshEntry {
            mesh_id: mesh(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            slug: "acme".into(),
            name: "acme".into(),
            pubkey: owner().public().clone(),
            secret_key: owner().secret(),
            broker_url: "ws://x/ws".into(),
            joined_at: "2026-01-02T03:04:05Z".into(),
            root_key: None,
            vault,
            other: serde_json::Map::new(),
        });
        config.save(&self.folder).unwrap();
    }

    fn saved(&self) -> VaultTrust {
        Config::load(&self.folder).unwrap().meshes[0].vault.clone()
    }

    /// As the next command would open it.
    fn vault(&self) -> MeshVault<'_> {
        let entry = Config::load(&self.folder).unwrap().meshes[0].clone();
        MeshVault::new(&self.connection, &self.folder, entry).unwrap()
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    /// With a first key, and a runner that has it.
    async fn with_runner() -> (Self, BoxKey) {
        let scene = Self::new().await;
        let runner = scene.add_runner(vec![]);
        scene.vault().trust_key(&runner.public()).await.unwrap();
        (scene, runner)
    }

    fn add_runner(&self, granted: Vec<KeyId>) -> BoxKey {
        let runner = BoxKey::generate();
        self.shelf().runners.push(RunnerInfo {
            id: Some(keys::runner_id(&runner.public())),
            public: Some(runner.public()),
            custody: Custody::Split,
            state: VaultState::Open,
            connected: true,
            granted,
        });
        runner
    }

    /// What a runner with these grants reads of an entry.
    fn opened(&self, runner: &BoxKey, key: &str) -> Option<Vec<u8>> {
        let shelf = self.shelf();
        let entry = &shelf.entries[&name(key)];
        entry::check(&mesh(), entry).unwrap();
        let held = shelf.grants.iter().filter_map(|grant| keys::accept(runner, &mesh(), grant).ok());
        held.filter_map(|key| entry::open(&key, &mesh(), entry).ok()).map(|plain| plain.to_vec()).next()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn serve(listener: TcpListener, shelf: Shared) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut peer = tokio_tungstenite::accept_async(socket).await.unwrap();
    while let Some(Ok(message)) = peer.next().await {
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap();
        let kind = frame["type"].as_str().unwrap().to_owned();
        let mut answer = match kind.as_str() {
            "hello" => serde_json::json!({"type":"hello_ack","presenceId":"P","memberDisplayName":"Ana",
                                          "services":[],"memberRole":"owner","brokerVersion":"0"}),
            "mcp_cancel" => continue,
            kind => shelf.lock().unwrap().answer(kind, &frame),
        };
        answer["_reqId"] = frame["_reqId"].clone();
        if peer.send(Message::text(answer.to_string())).await.is_err() {
            return;
        }
    }
}

fn code<T>(done: Result<T, ClientError>) -> ErrorCode {
    done.err().expect("it is refused").code().expect("with a code")
}

#[tokio::test]
async fn what_is_set_opens_for_a_trusted_runner_and_no_other() {
    let (scene, runner) = Scene::with_runner().await;
    let mut vault = scene.vault();
    assert_eq!(vault.set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap().version, 1);
    assert_eq!(vault.set(&name("token"), EntryKind::Env, b"hunter3").await.unwrap().version, 2);
    assert_eq!(scene.opened(&runner, "token").as_deref(), Some(&b"hunter3"[..]));
    assert_eq!(scene.opened(&BoxKey::generate(), "token"), None);
    let stored = serde_json::to_string(&scene.shelf().entries[&name("token")]).unwrap();
    assert!(!stored.contains("hunter"), "{stored}");
}

#[tokio::test]
async fn a_vault_key_of_anybody_but_the_owner_gets_nothing() {
    let scene = Scene::new().await;
    let thief = Identity::from_seed([9; 32]);
    let key = keys::certify(&thief, &mesh(), 1, &BoxKey::generate().public(), 5);
    scene.shelf().keys = vec![KeptKey { key, entries: 0, owner_copy: None }];
    // It says, too, that the thief owns the mesh.
    scene.shelf().owner = Some(thief.public().clone());
    let refused = scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await;
    assert_eq!(code(refused), ErrorCode::VaultKeyUnproven);
    assert_eq!(scene.shelf().asked, ["vault_keys"], "nothing was sent");
    assert_eq!(scene.saved().newest_key, 0);
}

#[tokio::test]
async fn an_older_vault_key_is_not_taken_back() {
    let (scene, _) = Scene::with_runner().await;
    scene.vault().rotate(|_| ()).await.unwrap();
    let first = keys::certify(&owner(), &mesh(), 1, &BoxKey::generate().public(), 5);
    scene.shelf().keys = vec![KeptKey { key: first, entries: 0, owner_copy: None }];
    let refused = scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await;
    assert_eq!(code(refused), ErrorCode::VaultKeyUnproven);
    scene.shelf().keys.clear();
    assert_eq!(code(scene.vault().newest_key().await), ErrorCode::VaultKeyUnproven, "nor is none");
}

#[tokio::test]
async fn an_owner_who_was_not_known_is_learned_once() {
    let (scene, _) = Scene::with_runner().await;
    scene.save(VaultTrust::default());
    let mut vault = scene.vault();
    vault.keys().await.unwrap();
    assert!(vault.has_pinned_owner());
    assert_eq!(scene.saved().owner.as_ref(), Some(owner().public()));
    let mut later = scene.vault();
    later.keys().await.unwrap();
    assert!(!later.has_pinned_owner());
    later.unpin().unwrap();
    assert!(scene.saved().owner.is_some(), "what is known for longer stays");
    vault.unpin().unwrap();
    assert_eq!(scene.saved(), VaultTrust::default());
}

#[tokio::test]
async fn a_race_is_run_again() {
    let (scene, runner) = Scene::with_runner().await;
    scene.shelf().refusals =
        vec![("vault_put", ErrorCode::VaultKeyRetired), ("vault_put", ErrorCode::Conflict)];
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    assert_eq!(scene.opened(&runner, "token").as_deref(), Some(&b"hunter2"[..]));
    scene.shelf().refusals = vec![("vault_put", ErrorCode::Conflict); 9];
    assert_eq!(code(scene.vault().set(&name("token"), EntryKind::Env, b"x").await), ErrorCode::Conflict);
}

#[tokio::test]
async fn a_runner_is_trusted_by_its_whole_id_and_with_its_own_key_only() {
    let scene = Scene::new().await;
    let runner = scene.add_runner(vec![]);
    let id = keys::runner_id(&runner.public());
    let thief = BoxKey::generate();
    scene.shelf().runners[0].public = Some(thief.public());
    assert_eq!(code(scene.vault().trust_runner(&id).await), ErrorCode::VaultKeyUnproven);
    assert!(scene.shelf().grants.is_empty() && scene.saved().runners.is_empty());
    scene.shelf().runners[0].public = Some(runner.public());
    scene.vault().trust_runner(&id).await.unwrap();
    assert_eq!(scene.shelf().keys.len(), 1, "the first vault key is made");
    assert_eq!(scene.saved().runners, [runner.public()]);
    let unknown = keys::runner_id(&thief.public());
    assert_eq!(code(scene.vault().trust_runner(&unknown).await), ErrorCode::NotFound);
}

#[tokio::test]
async fn trust_that_is_there_is_left_alone_and_a_second_runner_gets_every_key() {
    let (scene, runner) = Scene::with_runner().await;
    let kid = scene.shelf().keys[0].key.kid.clone();
    scene.shelf().runners[0].granted = vec![kid];
    assert!(!scene.vault().trust_key(&runner.public()).await.unwrap());
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    let second = scene.add_runner(vec![]);
    assert!(scene.vault().trust_key(&second.public()).await.unwrap());
    assert_eq!(scene.opened(&second, "token").as_deref(), Some(&b"hunter2"[..]));
}

#[tokio::test]
async fn a_member_who_does_not_own_the_mesh_trusts_nobody() {
    let (scene, runner) = Scene::with_runner().await;
    let other = Identity::from_seed([7; 32]);
    let key = keys::certify(&other, &mesh(), 1, &BoxKey::generate().public(), 5);
    scene.shelf().keys = vec![KeptKey { key, entries: 0, owner_copy: None }];
    scene.save(VaultTrust::of_owner(other.public().clone()));
    assert_eq!(code(scene.vault().trust_key(&runner.public()).await), ErrorCode::Forbidden);
    assert_eq!(code(scene.vault().rotate(|_| ()).await), ErrorCode::Forbidden);
}

#[tokio::test]
async fn a_rotation_seals_everything_again_and_only_to_runners_that_were_trusted_here() {
    let (scene, runner) = Scene::with_runner().await;
    for at in 0..7 {
        scene.vault().set(&name(&format!("k{at}")), EntryKind::File, &[at; 9]).await.unwrap();
    }
    let old = scene.shelf().keys[0].key.kid.clone();
    // A broker that says that its own runner is trusted.
    let spy = scene.add_runner(vec![old]);
    scene.shelf().round = 3;
    let mut steps = Vec::new();
    let newest = scene.vault().rotate(|step| steps.push(step)).await.unwrap();
    assert_eq!((newest.number, scene.shelf().keys.len()), (2, 1));
    let spy_id = keys::runner_id(&spy.public());
    assert_eq!(steps[..2], [Step::LeftOut { runner: spy_id }, Step::Made { number: 2 }]);
    assert_eq!(steps.last(), Some(&Step::Dropped { number: 1 }));
    for at in 0..7 {
        let key = format!("k{at}");
        assert_eq!(scene.opened(&runner, &key).as_deref(), Some(&[at; 9][..]));
        assert_eq!(scene.opened(&spy, &key), None);
    }
}

#[tokio::test]
async fn an_interrupted_rotation_is_finished_by_the_next() {
    let (scene, runner) = Scene::with_runner().await;
    for at in 0..4 {
        scene.vault().set(&name(&format!("k{at}")), EntryKind::Env, b"hunter2").await.unwrap();
    }
    scene.shelf().round = 2;
    scene.shelf().refusals = vec![("vault_rewrap", ErrorCode::Internal)];
    assert_eq!(code(scene.vault().rotate(|_| ()).await), ErrorCode::Internal);
    assert_eq!(scene.shelf().keys.len(), 2);
    assert_eq!(scene.opened(&runner, "k0").as_deref(), Some(&b"hunter2"[..]), "meanwhile everything opens");
    assert_eq!(scene.vault().rotate(|_| ()).await.unwrap().number, 3);
    assert_eq!(scene.shelf().keys.len(), 1);
    for at in 0..4 {
        assert_eq!(scene.opened(&runner, &format!("k{at}")).as_deref(), Some(&b"hunter2"[..]));
    }
}

#[tokio::test]
async fn an_entry_that_was_tampered_with_keeps_its_key_and_is_named() {
    let (scene, _) = Scene::with_runner().await;
    for key in ["good", "bad"] {
        scene.vault().set(&name(key), EntryKind::Env, b"hunter2").await.unwrap();
    }
    let wrap = scene.shelf().entries[&name("good")].wrap.clone();
    scene.shelf().entries.get_mut(&name("bad")).unwrap().wrap = wrap;
    // A page of nothing else does not keep what comes after it.
    scene.shelf().round = 1;
    let refused = scene.vault().rotate(|_| ()).await.err().unwrap();
    assert_eq!(refused.code(), Some(ErrorCode::VaultDamaged));
    assert!(refused.to_string().contains("bad version 1 of 8a88e3dd"), "{refused}");
    let newest = scene.shelf().keys[0].key.kid.clone();
    assert_eq!(scene.shelf().sealed_to(&newest), 1, "the good one is sealed again");
    assert_eq!(scene.shelf().keys.len(), 2);
}

#[tokio::test]
async fn a_revoked_runner_gets_no_later_key() {
    let (scene, runner) = Scene::with_runner().await;
    let id = keys::runner_id(&runner.public());
    scene.vault().revoke_runner(&id).await.unwrap();
    scene.vault().rotate(|_| ()).await.unwrap();
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    assert_eq!(scene.opened(&runner, "token"), None);
    assert!(scene.saved().runners.is_empty());
    assert!(!scene.vault().trust_own(&runner.public()).await.unwrap(), "nor is it trusted by itself again");
    assert!(scene.vault().trust_key(&runner.public()).await.unwrap(), "but by who names it");
    assert!(scene.saved().revoked.is_empty());
    assert_eq!(scene.opened(&runner, "token").as_deref(), Some(&b"hunter2"[..]));
}

#[tokio::test]
async fn a_command_that_waits_does_not_bring_back_what_was_revoked_meanwhile() {
    let (scene, runner) = Scene::with_runner().await;
    // Somebody types a value in one terminal, and revokes in another.
    let mut waiting = scene.vault();
    scene.vault().revoke_runner(&keys::runner_id(&runner.public())).await.unwrap();
    scene.vault().rotate(|_| ()).await.unwrap();
    waiting.set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    waiting.rotate(|_| ()).await.unwrap();
    assert!(scene.saved().runners.is_empty() && scene.saved().newest_key == 3);
    assert_eq!(scene.opened(&runner, "token"), None);
}

#[tokio::test]
async fn a_runner_that_was_revoked_on_another_machine_gets_no_later_key() {
    let (scene, runner) = Scene::with_runner().await;
    let before = scene.saved();
    scene.vault().revoke_runner(&keys::runner_id(&runner.public())).await.unwrap();
    scene.save(before);
    let mut steps = Vec::new();
    scene.vault().rotate(|step| steps.push(step)).await.unwrap();
    assert_eq!(steps[0], Step::LeftOut { runner: keys::runner_id(&runner.public()) });
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    assert_eq!(scene.opened(&runner, "token"), None);
}

#[tokio::test]
async fn a_broker_that_always_has_one_more_entry_is_left() {
    let (scene, _) = Scene::with_runner().await;
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    scene.shelf().countdown = 1_000_000;
    assert_eq!(code(scene.vault().rotate(|_| ()).await), ErrorCode::Conflict);
    let rounds = scene.shelf().asked.iter().filter(|kind| *kind == "vault_rewrap").count();
    assert!((4..=200).contains(&rounds), "{rounds}");
    assert_eq!(scene.shelf().keys.len(), 2, "the old key is kept");
}

#[tokio::test]
async fn a_rotation_between_trust_and_its_grants_leaves_no_runner_behind() {
    let (scene, _) = Scene::with_runner().await;
    let second = scene.add_runner(vec![]);
    // The key that the grants are of is dropped meanwhile.
    scene.shelf().refusals = vec![("runner_trust", ErrorCode::NotFound)];
    scene.vault().trust_key(&second.public()).await.unwrap();
    scene.vault().set(&name("token"), EntryKind::Env, b"hunter2").await.unwrap();
    assert_eq!(scene.opened(&second, "token").as_deref(), Some(&b"hunter2"[..]));
}

#[test]
fn what_no_runner_could_use_is_not_sealed() {
    let refused = |kind, value: &[u8]| fits(kind, value).is_err();
    assert!(!refused(EntryKind::Env, "é\n".as_bytes()) && !refused(EntryKind::File, b"\0\xff"));
    assert!(refused(EntryKind::Env, b"") && refused(EntryKind::File, b""));
    assert!(refused(EntryKind::Env, b"a\0b") && refused(EntryKind::Env, b"\xff"));
    assert!(!refused(EntryKind::Env, &[b'a'; MAX_ENV_VALUE]));
    assert!(refused(EntryKind::Env, &[b'a'; MAX_ENV_VALUE + 1]));
    assert!(refused(EntryKind::File, &vec![0; 1 << 20]));
}

/// Of somebody who signs: a folder with a config that knows the mesh.
struct Desk(PathBuf);

impl Desk {
    fn new() -> Self {
        let desk = Self(std::env::temp_dir().join(format!("cm-desk-{}", crate::identity::random_hex())));
        let mut config = Config::default();
        config.put(member());
        config.save(&desk.0).unwrap();
        desk
    }

    fn entry(&self) -> MeshEntry {
        Config::load(&self.0).unwrap().meshes[0].clone()
    }

    fn sign(&self, ask: &ConsentAsk) -> Result<Consent, ClientError> {
        sign(&self.0, &self.entry(), ask)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn member() -> MeshEntry {
    MeshEntry {
        mesh_id: mesh(),
        member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
        slug: "acme".into(),
        name: "acme".into(),
        pubkey: owner().public().clone(),
        secret_key: Secret::new(owner().secret().expose()),
        broker_url: "ws://x/ws".into(),
        joined_at: "2026-01-02T03:04:05Z".into(),
        root_key: None,
        vault: VaultTrust::default(),
        other: serde_json::Map::new(),
    }
}

fn ask(previous: Option<Consent>) -> ConsentAsk {
    let reference =
        |text: &str, by: &Identity| wire::vault::VaultRef::parse(text, Some(by.public())).unwrap().unwrap();
    ConsentAsk {
        service: ServiceName::parse("svc").unwrap(),
        generation: 1,
        spec: ServiceSpec {
            vault: [
                ("A".to_owned(), reference("$vault:mine", &owner())),
                ("B".to_owned(), reference("$vault:theirs", &Identity::from_seed([7; 32]))),
            ]
            .into(),
            ..ServiceSpec::of(Source::Npx { package: "p".into(), bin: None })
        },
        pin: ConsentPin {
            kind: "npm".into(),
            name: "p".into(),
            version: "1".into(),
            integrity: "i".into(),
            lock_sha256: String::new(),
        },
        versions: [(name("mine"), 3), (name("theirs"), 4), (name("other"), 5)].into(),
        previous,
    }
}

fn doc(consent: &Consent) -> ConsentDoc {
    ::vault::consent::check(consent).unwrap()
}

#[test]
fn each_consent_withdraws_those_before_the_last() {
    let desk = Desk::new();
    let first = desk.sign(&ask(None)).unwrap();
    assert_eq!(doc(&first).floor, 0);
    assert_eq!(doc(&first).min_versions, [(name("mine"), 3)].into());
    let second = desk.sign(&ask(Some(first.clone()))).unwrap();
    assert!(doc(&second).serial > doc(&first).serial, "also within one millisecond");
    assert_eq!(doc(&second).floor, doc(&first).serial);
    assert_eq!(doc(&second).spec, ask(None).spec);
}

#[test]
fn an_older_consent_of_mine_is_not_the_one_before() {
    let desk = Desk::new();
    let first = desk.sign(&ask(None)).unwrap();
    let second = desk.sign(&ask(Some(first.clone()))).unwrap();
    assert!(previous(&desk.entry(), &ask(Some(second.clone()))).unwrap().is_some());
    // A broker that shows the older one again, or none, to have its network or its version signed anew.
    for older in [Some(first), None] {
        assert_eq!(previous(&desk.entry(), &ask(older.clone())).unwrap(), None);
        let third = desk.sign(&ask(older)).unwrap();
        assert!(doc(&third).floor >= doc(&second).serial && doc(&third).serial > doc(&third).floor);
    }
}

#[test]
fn only_my_own_consent_for_this_service_counts_as_the_one_before() {
    let desk = Desk::new();
    let refused = |previous: Consent| {
        assert_eq!(code(desk.sign(&ask(Some(previous)))), ErrorCode::VaultDamaged);
    };
    let other = Identity::from_seed([7; 32]);
    let good = doc(&desk.sign(&ask(None)).unwrap());
    refused(::vault::consent::sign(&other, &good));
    let mut forged = ::vault::consent::sign(&owner(), &good);
    forged.doc = forged.doc.replace("svc", "vcs");
    refused(forged);
    let service = ServiceName::parse("another").unwrap();
    refused(::vault::consent::sign(&owner(), &ConsentDoc { service, ..good.clone() }));
    let elsewhere = MeshId::parse("M0000000000000000000000000000002").unwrap();
    refused(::vault::consent::sign(&owner(), &ConsentDoc { mesh: elsewhere, ..good }));
}
