//! A broker that lies: it rewrites, swaps, replays and offers its own keys. Nothing of what it tries gets a secret out of a
//! real runner.
//!
//! Each attack starts from a state in which the honest broker would get the service up (see `the_honest_broker…`, without
//! which no attack here would prove anything), changes what its name says, and must end in its own error code, without a
//! process, without an opening.

mod world;

use hyper::StatusCode;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vault::BoxKey;
use wire::spec::Pin;
use wire::vault::{ConsentDoc, EntryKind, VaultEntry, Wrap};
use world::broker::{CANARY, Person, boot_key, document, material, refer};
use world::{SOON, World};

const NAME: &str = "app";

/// A runner with the mesh's vault key, and everything that an honest broker stores.
struct Mesh {
    world: World,
    owner: Person,
    member: Person,
    key: BoxKey,
    pin: Pin,
}

impl Mesh {
    async fn start() -> Self {
        let (world, owner, member) = (World::start(&[]).await, Person::new(1), Person::new(2));
        let key = BoxKey::generate();
        world.unlock().await;
        world.trust(&owner, &key).await;
        let pin = world.pin().await;
        Self { world, owner, member, key, pin }
    }

    fn token(&self, version: i64) -> VaultEntry {
        self.owner.text(&self.key, "token", version, CANARY)
    }

    /// A service of the owner that gets the canary, without material.
    fn wish(&self) -> Value {
        let mut wish = self.world.wish(&[]);
        refer(&mut wish, "TOKEN", Some(&self.owner), "token", None);
        wish
    }

    /// What the owner agreed to, complete.
    fn honest(&self) -> Value {
        let mut wish = self.wish();
        wish["vault"] = material(&[self.token(2)], &[self.owner.agree(NAME, &wish, &self.pin)]);
        wish
    }

    fn signed(&self, wish: &Value, change: impl FnOnce(&mut ConsentDoc)) -> Value {
        let mut doc = document(NAME, wish, &self.pin);
        change(&mut doc);
        material(&[self.token(2)], &[self.owner.sign(&doc)])
    }

    /// The wish is held back with this code, and nothing was started or opened for it.
    async fn gets_nothing(&self, wish: &Value, code: &str) {
        self.gets_nothing_as(NAME, wish, code).await;
    }

    async fn gets_nothing_as(&self, name: &str, wish: &Value, code: &str) {
        let before = self.world.vault().await.last_opening;
        let refused = self.world.outcome(name, wish).await;
        assert_eq!(refused["phase"], "waiting", "{refused}");
        assert_eq!(refused["reason"]["code"], code, "{refused}");
        assert!(refused["pid"].is_null() && refused["ready_since_ms"].is_null(), "{refused}");
        assert!(!refused.to_string().contains(CANARY), "{refused}");
        let processes = self.world.processes();
        let servers: Vec<_> = processes.values().filter(|line| line.contains("awkward.mjs")).collect();
        assert!(servers.is_empty(), "{servers:?}");
        let call = self.world.call(name, "env", json!({"name": "TOKEN"})).await;
        assert_eq!(call["error"]["code"], code, "{call}");
        assert_eq!(self.world.vault().await.last_opening, before, "something was opened");
    }
}

#[tokio::test]
async fn the_honest_broker_gets_the_service_up_with_its_secret() {
    let mesh = Mesh::start().await;
    let ready = mesh.world.outcome(NAME, &mesh.honest()).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
    assert_eq!(mesh.world.text(NAME, "env", json!({"name": "TOKEN"})).await, CANARY);
    assert_eq!(mesh.world.vault().await.last_opening, 1);
}

#[tokio::test]
async fn attack_1_rewritten_arguments() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["spec"]["args"] = json!(["banner"]);
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_2_another_program_of_the_same_source() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["spec"]["entry"] = json!("./awkward.mjs");
    mesh.gets_nothing(&wish, "awaiting_consent").await;
    // The same bytes under another label are another source, too.
    let mut wish = mesh.honest();
    wish["spec"]["source"]["label"] = json!("other");
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_3_the_value_under_another_variable_or_with_another_one_beside_it() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["spec"]["vault"]["OTHER"] = wish["spec"]["vault"]["TOKEN"].take();
    wish["spec"]["vault"].as_object_mut().expect("an object").remove("TOKEN");
    mesh.gets_nothing(&wish, "awaiting_consent").await;
    let mut wish = mesh.honest();
    wish["spec"]["env_names"] = json!(["PROXY_URL"]);
    wish["secrets"]["env"]["PROXY_URL"] = json!("https://evil.example");
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_4_a_way_out_that_nobody_agreed_to() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["spec"]["network"] = json!(["evil.example"]);
    mesh.gets_nothing(&wish, "awaiting_consent").await;
    let mut wish = mesh.honest();
    wish["spec"]["learn_until_ms"] = json!(i64::MAX);
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_5_run_as_another() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["spec"]["run_as"] = json!("caller");
    wish["vault"]["caller"] = json!(mesh.member.hex());
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_6_a_file_in_another_place_and_a_variable_instead_of_a_file() {
    let mesh = Mesh::start().await;
    let mut agreed = mesh.world.wish(&[]);
    refer(&mut agreed, "TOKEN", Some(&mesh.owner), "token", Some("/secrets/token"));
    let vault = material(&[mesh.token(2)], &[mesh.owner.agree(NAME, &agreed, &mesh.pin)]);
    for file in [json!("/run/secrets/token"), json!("/secrets/other"), Value::Null] {
        let mut wish = mesh.world.wish(&[]);
        wish["spec"] = agreed["spec"].clone();
        wish["spec"]["vault"]["TOKEN"]["file"] = file;
        wish["vault"] = vault.clone();
        mesh.gets_nothing(&wish, "awaiting_consent").await;
    }
}

#[tokio::test]
async fn attack_7_results_that_nobody_agreed_to_leave_unmasked() {
    let mesh = Mesh::start().await;
    let mut masked = mesh.wish();
    masked["spec"]["unmasked_results"] = json!(false);
    let mut wish = mesh.wish();
    wish["vault"] = material(&[mesh.token(2)], &[mesh.owner.agree(NAME, &masked, &mesh.pin)]);
    mesh.gets_nothing(&wish, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_8_swapped_rows() {
    let mesh = Mesh::start().await;
    let other = mesh.owner.text(&mesh.key, "other", 2, "worth-nothing");
    let (token, mut wish) = (mesh.token(2), mesh.honest());
    // The row of one entry under the name of another; then only what is sealed in it.
    let renamed = VaultEntry { key: token.key.clone(), ..other.clone() };
    wish["vault"]["entries"] = json!([renamed]);
    mesh.gets_nothing(&wish, "vault_damaged").await;
    let mut wish = mesh.honest();
    wish["vault"]["entries"] = json!([VaultEntry { content: other.content.clone(), ..token.clone() }]);
    mesh.gets_nothing(&wish, "vault_damaged").await;
    // The content key of another entry is not signed, but bound: this one is found when it is opened.
    let mut wish = mesh.honest();
    wish["vault"]["entries"] = json!([VaultEntry { wrap: other.wrap, ..token }]);
    let refused = mesh.world.outcome(NAME, &wish).await;
    assert_eq!(refused["reason"]["code"], "vault_damaged", "{refused}");
    assert_eq!((&refused["phase"], &refused["pid"]), (&json!("waiting"), &Value::Null));
}

#[tokio::test]
async fn attack_9_the_entry_of_another_member() {
    let mesh = Mesh::start().await;
    // The member's service refers to the owner's entry, and the member agrees to it.
    let mut wish = mesh.wish();
    wish["vault"] = material(&[mesh.token(2)], &[mesh.member.agree(NAME, &wish, &mesh.pin)]);
    mesh.gets_nothing(&wish, "awaiting_consent").await;
    // The owner's entry is offered as the member's.
    let mut wish = mesh.world.wish(&[]);
    refer(&mut wish, "TOKEN", Some(&mesh.member), "token", None);
    let stolen = VaultEntry { owner: vault::Signer::public(&mesh.member).clone(), ..mesh.token(2) };
    wish["vault"] = material(&[stolen], &[mesh.member.agree(NAME, &wish, &mesh.pin)]);
    mesh.gets_nothing(&wish, "vault_damaged").await;
    wish["generation"] = json!(900);
    wish["vault"]["entries"] = json!([mesh.token(2)]);
    mesh.gets_nothing(&wish, "vault_missing").await;
}

#[tokio::test]
async fn attack_10_its_own_vault_key() {
    let mesh = Mesh::start().await;
    let own = BoxKey::generate();
    // An entry whose content key is sealed to the broker's key: nobody gave this runner that one.
    let mut wish = mesh.honest();
    let wrap = mesh.owner.text(&own, "token", 2, CANARY).wrap;
    wish["vault"]["entries"] = json!([VaultEntry { wrap, ..mesh.token(2) }]);
    mesh.gets_nothing(&wish, "runner_not_trusted").await;
    // The same, called by the name of the key that the runner holds.
    let mut wish = mesh.honest();
    let token = mesh.token(2);
    let (kid, theirs) = (token.wrap.clone().expect("a wrap").kid, mesh.owner.text(&own, "token", 2, CANARY));
    let wrap = Some(Wrap { kid, ..theirs.wrap.expect("a wrap") });
    wish["vault"]["entries"] = json!([VaultEntry { wrap, ..token }]);
    let refused = mesh.world.outcome(NAME, &wish).await;
    assert_eq!((&refused["phase"], &refused["reason"]["code"]), (&json!("waiting"), &json!("vault_damaged")));
}

#[tokio::test]
async fn attack_11_its_own_grant() {
    let mesh = Mesh::start().await;
    let (broker, own) = (Person::new(66), BoxKey::generate());
    let runner = mesh.world.vault().await;
    let public = runner.public.expect("an open vault");
    let forged = wire::vault::Grant {
        signer: vault::Signer::public(&mesh.owner).clone(),
        ..broker.grant(&own, &public)
    };
    for grant in [broker.grant(&own, &public), forged] {
        let kid = grant.kid.clone();
        let (status, failure) = mesh.world.hold(&[mesh.owner.grant(&mesh.key, &public), grant]).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(failure["code"], "vault_damaged", "{failure}");
        assert!(failure["message"].as_str().expect("text").contains(kid.as_str()), "{failure}");
    }
    assert_eq!(mesh.world.vault().await.held, runner.held, "nothing changed");
    // A grant to another runner is none for this one.
    let elsewhere = mesh.owner.grant(&mesh.key, &BoxKey::generate().public());
    assert_eq!(mesh.world.hold(&[elsewhere]).await.1["code"], "vault_damaged");
}

#[tokio::test]
async fn attack_12_an_older_version_also_after_a_restart() {
    let mut mesh = Mesh::start().await;
    assert_eq!(mesh.world.outcome(NAME, &mesh.honest()).await["phase"], "ready");
    assert_eq!(mesh.world.remove(NAME).await, StatusCode::NO_CONTENT);
    let mut wish = mesh.honest();
    wish["vault"]["entries"] = json!([mesh.token(1)]);
    mesh.gets_nothing(&wish, "vault_stale").await;
    mesh.world.signal_runner(Signal::SIGKILL);
    mesh.world.runner_ended().await;
    mesh.world.run().await;
    mesh.world.unlock().await;
    mesh.world.trust(&mesh.owner, &mesh.key).await;
    mesh.gets_nothing(&wish, "vault_stale").await;
}

#[tokio::test]
async fn attack_13_a_version_below_what_was_agreed_to() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.wish();
    wish["vault"] = mesh.signed(&wish, |doc| {
        doc.min_versions = [("token".to_owned().try_into().expect("a name"), 3)].into();
    });
    mesh.gets_nothing(&wish, "vault_stale").await;
}

#[tokio::test]
async fn attack_14_a_withdrawn_consent() {
    let mesh = Mesh::start().await;
    let (old, mut newer) = (mesh.honest(), mesh.world.wish(&["banner"]));
    refer(&mut newer, "TOKEN", Some(&mesh.owner), "token", None);
    newer["vault"] = mesh.signed(&newer, |doc| (doc.serial, doc.floor) = (20, 20));
    assert_eq!(mesh.world.outcome(NAME, &newer).await["phase"], "ready");
    assert_eq!(mesh.world.remove(NAME).await, StatusCode::NO_CONTENT);
    mesh.gets_nothing(&old, "awaiting_consent").await;
}

#[tokio::test]
async fn attack_25_another_value_of_a_plain_variable_that_was_signed() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.wish();
    wish["spec"]["env_names"] = json!(["API_URL"]);
    wish["secrets"] = json!({"env": {"API_URL": "https://a.example"}, "env_salt": "a salt of a test"});
    let env = [("API_URL".to_owned(), wire::Secret::new("https://a.example"))].into();
    wish["spec"]["env_digest"] = json!(vault::consent::env_digest("a salt of a test", &env));
    wish["vault"] = material(&[mesh.token(2)], &[mesh.owner.agree(NAME, &wish, &mesh.pin)]);
    let mut evil = wish.clone();
    evil["secrets"]["env"]["API_URL"] = json!("https://evil.example");
    mesh.gets_nothing(&evil, "vault_damaged").await;
    let mut unsalted = wish.clone();
    unsalted["secrets"].as_object_mut().expect("an object").remove("env_salt");
    unsalted["generation"] = json!(2);
    mesh.gets_nothing(&unsalted, "vault_damaged").await;
    wish["generation"] = json!(3);
    assert_eq!(mesh.world.outcome(NAME, &wish).await["phase"], "ready", "the honest values");
}

#[tokio::test]
async fn attack_15_the_consent_for_another_service_mesh_or_pin() {
    let mesh = Mesh::start().await;
    for change in [
        (|doc| doc.service = wire::ServiceName::parse("other").expect("a name")) as fn(&mut ConsentDoc),
        |doc| doc.mesh = wire::MeshId::parse(&"B".repeat(32)).expect("a mesh"),
        |doc| doc.pin.integrity = "0".repeat(64),
        |doc| doc.pin.version = "0".repeat(64),
        |doc| doc.pin.lock_sha256 = "0".repeat(64),
    ] {
        let mut wish = mesh.wish();
        wish["vault"] = mesh.signed(&wish, change);
        mesh.gets_nothing(&wish, "awaiting_consent").await;
    }
}

#[tokio::test]
async fn attack_16_a_pin_that_is_not_what_is_installed() {
    let mesh = Mesh::start().await;
    // The document agrees to one archive; another one is deployed, and its pin says that it is the first.
    let mut wish = mesh.honest();
    let other = mesh.world.upload(b"process.stdin.resume()").await;
    wish["spec"]["source"]["sha256"] = json!(other);
    let mut pin = serde_json::to_value(&mesh.pin).expect("a pin");
    wish["pin"] = pin.clone();
    let refused = mesh.world.outcome(NAME, &wish).await;
    assert_ne!(refused["phase"], "ready", "{refused}");
    assert_eq!(mesh.world.vault().await.last_opening, 0);
    // The lock, which names every dependency, is part of what was agreed to.
    let mut wish = mesh.honest();
    pin["lock"] = json!("{\"evil\":1}");
    wish["pin"] = pin;
    let outcome = mesh.world.outcome(NAME, &wish).await;
    if outcome["phase"] == "ready" {
        // What the runner installed has no lock; what the broker says about it counts for nothing.
        assert_eq!(outcome["pin"]["lock"], Value::Null, "{outcome}");
    } else {
        assert_eq!(mesh.world.vault().await.last_opening, 0);
    }
}

#[tokio::test]
async fn attack_21_the_artefact_of_another_program_of_the_same_source() {
    let mesh = Mesh::start().await;
    let mut evil = mesh.world.wish(&[]);
    evil["spec"]["entry"] = json!("other.mjs");
    let ready = mesh.world.deploy("evil", &evil).await;
    assert_eq!(mesh.world.text("evil", "env", json!({"name": "OTHER"})).await, "entry");
    // What was agreed to names the same source, and nothing of an artefact.
    let mut wish = mesh.honest();
    wish["pin"] = ready["pin"].clone();
    wish["proven"] = json!(true);
    let ready = mesh.world.outcome(NAME, &wish).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
    assert_eq!(mesh.world.text(NAME, "env", json!({"name": "TOKEN"})).await, CANARY);
    assert_eq!(mesh.world.text(NAME, "env", json!({"name": "OTHER"})).await, "undefined");
}

#[tokio::test]
async fn attack_17_an_entry_that_was_removed() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    wish["vault"]["entries"] = json!([mesh.owner.entry(&mesh.key, "token", 3, EntryKind::Gone, b"")]);
    mesh.gets_nothing(&wish, "vault_missing").await;
    mesh.gets_nothing(&mesh.honest(), "vault_stale").await;
}

#[tokio::test]
async fn attack_18_a_signature_or_a_consent_with_a_changed_letter() {
    let mesh = Mesh::start().await;
    let mut wish = mesh.honest();
    let doc = wish["vault"]["consents"][0]["doc"].as_str().expect("text").replace("token", "toker");
    wish["vault"]["consents"][0]["doc"] = json!(doc);
    mesh.gets_nothing(&wish, "vault_damaged").await;
    let mut wish = mesh.honest();
    wish["vault"]["entries"][0]["version"] = json!(7);
    mesh.gets_nothing(&wish, "vault_damaged").await;
    let mut wish = mesh.honest();
    wish["vault"]["entries"] = json!([]);
    mesh.gets_nothing(&wish, "vault_missing").await;
}

#[tokio::test]
async fn attack_19_the_boot_key_of_another_runner() {
    let mut mesh = Mesh::start().await;
    let before = mesh.world.vault().await;
    mesh.world.signal_runner(Signal::SIGKILL);
    mesh.world.runner_ended().await;
    mesh.world.run().await;
    let wish = mesh.honest();
    mesh.gets_nothing(&wish, "vault_locked").await;
    let file = mesh.world.dir.path().join("data/vault/runner.key");
    let bytes = std::fs::read(&file).expect("there");
    for (id, byte) in [("b1", "cd"), ("b2", "ab")] {
        let path = "/v1/vault/boot-key";
        let (status, failure) = mesh.world.send(hyper::Method::PUT, path, boot_key(id, byte)).await;
        assert_eq!((status, &failure["code"]), (StatusCode::CONFLICT, &json!("vault_locked")));
    }
    assert_eq!(std::fs::read(&file).expect("there"), bytes, "untouched");
    mesh.world.unlock().await;
    assert_eq!(mesh.world.vault().await.runner, before.runner);
    mesh.world.waits(NAME, "runner_not_trusted").await;
}

/// A service that runs as its caller, as the member agreed to it, in the name of the member.
fn as_caller(mesh: &Mesh) -> Value {
    let mut wish = mesh.world.wish(&[]);
    refer(&mut wish, "TOKEN", None, "token", None);
    wish["spec"]["run_as"] = json!("caller");
    let entry = mesh.member.text(&mesh.key, "token", 1, CANARY);
    wish["vault"] = material(&[entry], &[mesh.member.agree(NAME, &wish, &mesh.pin)]);
    wish["vault"]["caller"] = json!(mesh.member.hex());
    wish
}

#[tokio::test]
async fn attack_20_the_instance_of_another_caller() {
    let mesh = Mesh::start().await;
    let own = format!("{NAME}.{}", "U".repeat(32));
    // Somebody else is named as the caller: the entries and the consent of the member are none of theirs.
    let mut wish = as_caller(&mesh);
    wish["vault"]["caller"] = json!(mesh.owner.hex());
    mesh.gets_nothing_as(&own, &wish, "vault_missing").await;
    let mut wish = as_caller(&mesh);
    wish["vault"].as_object_mut().expect("an object").remove("caller");
    mesh.gets_nothing_as(&own, &wish, "vault_missing").await;
    // It runs for the member; then the broker says of the same generation that it was for the owner.
    let mut wish = as_caller(&mesh);
    assert_eq!(mesh.world.outcome(&own, &wish).await["phase"], "ready");
    wish["vault"]["caller"] = json!(mesh.owner.hex());
    let (status, failure) = mesh.world.apply(&own, &wish).await;
    assert_eq!((status, &failure["code"]), (StatusCode::CONFLICT, &json!("conflict")), "{failure}");
    let booked = mesh.world.openings(0).await;
    assert_eq!((booked.len(), &booked[0]["caller"]), (1, &json!("U".repeat(32))));
    assert!(tokio::time::timeout(SOON, mesh.world.remove(&own)).await.is_ok());
}

/// Plants what Node and Python load from a home, then serves as it was asked to.
fn planter(path: &str) -> Vec<u8> {
    let spy = "process.env.STOLEN = process.env.TOKEN ?? 'no token';";
    let usual = "import os; os.environ['STOLEN'] = os.environ.get('TOKEN', 'no token')";
    let plant = format!(
        r#"import {{ mkdirSync as mk, writeFileSync as put }} from "node:fs";
        import {{ execFileSync as run }} from "node:child_process";
        mk(`${{process.env.HOME}}/.node_modules`, {{ recursive: true }});
        put(`${{process.env.HOME}}/.node_modules/optional-extra.js`, {spy:?});
        const site = run({path:?}, ["-c", "import site; print(site.getusersitepackages())"]).toString().trim();
        mk(site, {{ recursive: true }});
        put(`${{site}}/usercustomize.py`, {usual:?});
        put(`${{process.env.TMPDIR}}/planted`, "x");
        "#
    );
    [plant.as_bytes(), &world::fixture()].concat()
}

/// A server as many are: it takes an optional module if there is one.
const WITH_EXTRA: &str = r#"import { createRequire } from "node:module";
    try { createRequire(import.meta.url)("optional-extra"); } catch {}
    "#;

/// The least server that tells what its interpreter has loaded.
const IN_PYTHON: &str = r#"
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    result = {}
    if asked["method"] == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "p", "version": "1"}}
    elif asked["method"] == "tools/list":
        result = {"tools": [{"name": "env", "inputSchema": {"type": "object"}}]}
    elif asked["method"] == "tools/call":
        name = asked["params"]["arguments"]["name"]
        result = {"content": [{"type": "text", "text": os.environ.get(name, "undefined")}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"#;

/// Runs what nobody signed under the name of the service, with nothing of the vault; it leaves its traps.
async fn plants(mesh: &Mesh, python: &str) {
    let archive = mesh.world.upload(&planter(python)).await;
    let mut wish = mesh.world.wish(&[]);
    wish["spec"]["source"]["sha256"] = json!(archive);
    let ready = mesh.world.deploy(NAME, &wish).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
}

/// The victim runs twice: as anybody may run it, and as its owner agreed to it. What both found to have been loaded.
async fn finds(mesh: &Mesh, source: &Value) -> [String; 2] {
    let wish = || {
        let mut wish = mesh.world.wish(&[]);
        wish["spec"].as_object_mut().expect("a spec").extend(source.as_object().expect("fields").clone());
        wish
    };
    let pin = mesh.world.pin_of(&wish()).await;
    let stolen = || mesh.world.text(NAME, "env", json!({"name": "STOLEN"}));
    assert_eq!(mesh.world.deploy(NAME, &wish()).await["phase"], "ready");
    let plain = stolen().await;
    let mut agreed = wish();
    refer(&mut agreed, "TOKEN", Some(&mesh.owner), "token", None);
    agreed["vault"] = material(&[mesh.token(2)], &[mesh.owner.agree(NAME, &agreed, &pin)]);
    let ready = mesh.world.outcome(NAME, &agreed).await;
    assert_eq!(ready["phase"], "ready", "{ready}");
    assert_eq!(mesh.world.text(NAME, "env", json!({"name": "TOKEN"})).await, CANARY);
    [plain, stolen().await]
}

#[tokio::test]
async fn attack_22_files_that_an_unsigned_generation_of_the_name_left_in_its_home_for_node() {
    let mesh = Mesh::start().await;
    plants(&mesh, "python3").await;
    let archive = mesh.world.upload(&[WITH_EXTRA.as_bytes(), &world::fixture()].concat()).await;
    let mut source = mesh.world.wish(&[])["spec"].clone();
    source["source"]["sha256"] = json!(archive);
    assert_eq!(
        finds(&mesh, &source).await,
        ["no token", "undefined"],
        "the trap works, and not for the secret"
    );
    let temp = mesh.world.text(NAME, "temp", json!({})).await;
    let left = mesh.world.call(
        NAME,
        "read",
        json!({"path": temp.replace(temp.rsplit('/').next().expect("a name"), "planted")}),
    );
    assert!(left.await["error"].is_object(), "a file of another generation in /tmp");
}

#[tokio::test]
async fn attack_23_the_same_for_python() {
    let mesh = Mesh::start().await;
    plants(&mesh, "python3").await;
    let archive = mesh.world.upload_files(&[("server.py", IN_PYTHON.as_bytes())]).await;
    let mut source = mesh.world.wish(&[])["spec"].clone();
    source["source"]["sha256"] = json!(archive);
    source["runtime"] = json!("python");
    source["entry"] = json!("server.py");
    assert_eq!(
        finds(&mesh, &source).await,
        ["no token", "undefined"],
        "the trap works, and not for the secret"
    );
}

#[tokio::test]
async fn attack_24_files_that_a_generation_with_the_secrets_of_somebody_else_left() {
    let mesh = Mesh::start().await;
    // The member is an admin, and agrees to an own program under the name of the owner's service.
    let archive = mesh.world.upload(&planter("python3")).await;
    let mut theirs = mesh.world.wish(&[]);
    theirs["spec"]["source"]["sha256"] = json!(archive);
    let pin = mesh.world.pin_of(&theirs).await;
    refer(&mut theirs, "TOKEN", Some(&mesh.member), "token", None);
    let bait = mesh.member.text(&mesh.key, "token", 1, "no token");
    theirs["vault"] = material(&[bait], &[mesh.member.agree(NAME, &theirs, &pin)]);
    assert_eq!(mesh.world.outcome(NAME, &theirs).await["phase"], "ready");
    let archive = mesh.world.upload(&[WITH_EXTRA.as_bytes(), &world::fixture()].concat()).await;
    let mut source = mesh.world.wish(&[])["spec"].clone();
    source["source"]["sha256"] = json!(archive);
    assert_eq!(finds(&mesh, &source).await[1], "undefined");
}

#[tokio::test]
async fn generations_with_the_same_owners_keep_their_data_and_a_purge_takes_all_homes() {
    let mesh = Mesh::start().await;
    let visits = || mesh.world.text(NAME, "visit", json!({}));
    let plain = mesh.world.wish(&[]);
    mesh.world.deploy(NAME, &plain).await;
    assert_eq!((visits().await, visits().await), ("1".to_owned(), "2".to_owned()));
    let wish = mesh.honest();
    assert_eq!(mesh.world.outcome(NAME, &wish).await["phase"], "ready");
    assert_eq!(visits().await, "1", "an empty directory");
    let home = mesh.world.text(NAME, "env", json!({"name": "HOME"})).await;
    let mut lines =
        mesh.world.stream(hyper::Method::GET, &mesh.world.path(NAME, "/logs"), [][..].into()).await;
    let mut log = String::new();
    while let Some(line) = lines.next().await {
        log += &line.to_string();
    }
    assert_eq!(log.matches("starts with an empty data directory").count(), 1, "{log}");
    assert_eq!(mesh.world.outcome(NAME, &mesh.honest()).await["phase"], "ready");
    assert_eq!(visits().await, "2", "its owner agreed to both");
    mesh.world.deploy(NAME, &mesh.world.wish(&[])).await;
    assert_eq!(visits().await, "3", "that of the generations without secrets");
    let homes = || {
        let services = std::path::Path::new(&home).parent().and_then(|dir| dir.parent()).expect("of a mesh");
        let names = std::fs::read_dir(services).expect("there").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME)).count()
    };
    assert_eq!(homes(), 2, "{home}");
    assert_eq!(mesh.world.remove(NAME).await, StatusCode::NO_CONTENT);
    assert_eq!(homes(), 2);
    let purge = mesh.world.path(NAME, "?purge=true");
    let (status, _) = mesh.world.send(hyper::Method::DELETE, &purge, [][..].into()).await;
    assert_eq!((status, homes()), (StatusCode::NO_CONTENT, 0));
}
