//! Hostile MCP servers, hosted by the real product, get what docs/threat-model.md says: nothing, in a strict jail.
//!
//! Here: five places (root, an ordinary user, a container with the recommended options, one with none as an ordinary user,
//! and as root), what the servers of `fixtures/hostile` say they got, what their victim says, and that they find something where nobody hides it.
//! Not here: how a jail is built (`jail/tests`), the protocol against lawful servers (`awkward.rs`, `lifecycle.rs`).

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod bare;
mod protocol;
mod site;
mod threats;
mod victim;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use site::{Place, Site, recommended_flags};
use tests::docker::Engine;
use tests::{Peer, eventually, fixture};
use threats::Tier;
use victim::{Secrets, Victim};

const PYTHON: [(&str, &str); 3] = [
    ("server.py", include_str!("../../fixtures/hostile/python/server.py")),
    ("attacks.py", include_str!("../../fixtures/hostile/python/attacks.py")),
    ("kernel.py", include_str!("../../fixtures/hostile/python/kernel.py")),
];
const NODE: [(&str, &str); 3] = [
    ("index.js", include_str!("../../fixtures/hostile/node/index.js")),
    ("attacks.js", include_str!("../../fixtures/hostile/node/attacks.js")),
    ("package.json", include_str!("../../fixtures/hostile/node/package.json")),
];
/// Tight, so that a bomb goes off early.
const LIMITS: [&str; 4] = ["--memory=256m", "--cpus=0.5", "--pids=96", "--disk=32m"];
/// Each ends the service where its limit is one of the whole service, and may end it where it is one of each process.
const BOMBS: [(&str, &str); 5] = [
    // What forks share is counted for each of them where there are no control groups.
    ("40", "out_of_memory"),
    ("41", "out_of_memory"),
    ("41m", "out_of_memory"),
    ("43", "disk_exceeded"),
    ("43t", "disk_exceeded"),
];

/// On a busy machine nobody gets more than their share, limit or not.
const BY_LOAD: [&str; 1] = ["42"];

/// Scenario → what leaked, by which server.
type Leaks = BTreeMap<String, Vec<String>>;

fn folder_of_python(site: &Site<'_>) -> String {
    let folder = fixture::write_tree(&site.path().join("folders/python"), &PYTHON);
    folder.to_str().unwrap().to_owned()
}

fn folder_of_node(site: &Site<'_>) -> String {
    let folder = fixture::write_tree(&site.path().join("folders/node"), &NODE);
    folder.to_str().unwrap().to_owned()
}

/// Says why this place can't be had, which CI never accepts.
fn skip(why: &str) {
    assert!(std::env::var("CI").is_err(), "skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

/// All scenarios by both servers, against the document.
async fn the_suite(site: &Site<'_>, tier: Tier, secrets: &Secrets) {
    let sibling = victim::sibling(site, secrets).await;
    let mut victim = Victim::plant(site, secrets).await;
    let targets = victim.targets(site, &sibling);
    let mut found = Findings::default();
    for (name, folder) in [("python", folder_of_python(site)), ("node", folder_of_node(site))] {
        deploy_hostile(site, name, &folder, &targets).await;
        let peer = site.owner.peer().await;
        let status = status(&peer, name).await;
        assert_eq!(status["tier"], if tier == Tier::Strict { "strict" } else { "light" }, "{status}");
        let scenarios = call(&peer, name, "scenarios", json!({})).await;
        for scenario in scenarios.as_array().unwrap_or_else(|| panic!("a list: {scenarios}")) {
            let verdict =
                call(&peer, name, "attack", json!({ "scenario": scenario, "targets": targets })).await;
            assert!(verdict["lost"].is_null(), "{name} {scenario}: {verdict}");
            found.one(name, &verdict, secrets);
        }
        let has_cgroups = status["usage"]["cpu_ms"].is_u64();
        found.has_cgroups = Some(has_cgroups);
        for (scenario, code) in BOMBS {
            // Node has fewer ways to go wrong.
            if name == "python" || scenario == "41" || scenario == "43" {
                found.bomb(site, name, scenario, code, &targets, secrets).await;
            }
        }
        site.owner.ok(["rm", name]).await;
    }
    let report = victim.report().await;
    let still = call(&site.owner.peer().await, "sibling", "pid", json!({})).await;
    victim.leave().await;
    assert!(still.as_u64().is_some() || still.is_number(), "the sibling serves on: {still}");
    assert_eq!(victim::intruders(&targets), [""; 0].map(std::path::PathBuf::from), "written outside");
    found.judge(tier, site.is_root());
    if tier == Tier::Strict {
        let untouched =
            json!({ "signals": 0, "connections": [], "datagrams": 0, "intact": true, "strangers": [] });
        assert_eq!(report, untouched, "what the victim saw");
    } else {
        assert_eq!(
            (&report["signals"], &report["intact"], &report["strangers"]),
            (&json!(0), &json!(true), &json!([]))
        );
    }
}

async fn deploy_hostile(site: &Site<'_>, name: &str, folder: &str, targets: &Value) {
    // The name is allowed and means this machine: only the check of what it resolves to stands between.
    let rebind = format!("--network={}:{}", victim::hostname(), targets["tcp"][0]);
    let mut args = vec!["deploy", name, folder, &rebind, "--env=OWN_TOKEN=its-own"];
    args.extend(LIMITS);
    site.owner.ok(args).await;
}

async fn status(peer: &Peer, name: &str) -> Value {
    // Usage is sampled a while after the start.
    eventually("the usage is known", async || {
        let answer = peer.request("mcp_status", json!({ "server_name": name })).await;
        let service = answer["service"].clone();
        service["usage"].is_object().then_some(service)
    })
    .await
}

async fn call(peer: &Peer, name: &str, tool: &str, args: Value) -> Value {
    let request = json!({ "serverName": name, "toolName": tool, "args": args, "deadlineMs": 110_000 });
    let answer = peer.request("mcp_call", request).await;
    let text = fixture::text(&answer["result"]);
    serde_json::from_str(&text).unwrap_or_else(|_| json!({ "lost": answer }))
}

#[derive(Default)]
struct Findings {
    leaks: Leaks,
    tried: BTreeSet<String>,
    has_cgroups: Option<bool>,
}

impl Findings {
    fn one(&mut self, server: &str, verdict: &Value, secrets: &Secrets) {
        let scenario = verdict["scenario"].as_str().unwrap().to_owned();
        assert_eq!(verdict["broken"].as_array().map_or(0, Vec::len), 0, "a broken probe: {server} {verdict}");
        assert_ne!(verdict["tried"], 0, "no probe is no proof: {server} {verdict}");
        let detail = verdict["detail"].as_str().unwrap();
        // Whatever a probe makes of it: a secret of somebody else in its hands is a leak.
        let is_leak = verdict["leaked"] == true || secrets.all().iter().any(|secret| detail.contains(secret));
        self.tried.insert(scenario.clone());
        if is_leak {
            self.leaks.entry(scenario).or_default().push(format!("{server}: {detail}"));
        }
    }

    /// Fires a bomb that may end the service. It is stopped when the allocation is refused, or when the service ends with
    /// the code that says why.
    async fn bomb(
        &mut self,
        site: &Site<'_>,
        name: &str,
        scenario: &str,
        code: &str,
        targets: &Value,
        secrets: &Secrets,
    ) {
        let peer = site.owner.peer().await;
        let verdict = call(&peer, name, "attack", json!({ "scenario": scenario, "targets": targets })).await;
        if !verdict["lost"].is_object() {
            self.one(name, &verdict, secrets);
        } else {
            self.tried.insert(scenario.into());
            let reason = eventually("the reason of the end is known", async || {
                let answer = peer.request("mcp_status", json!({ "server_name": name })).await;
                answer.to_string().contains(code).then_some(answer)
            });
            reason.await;
        }
        // A fresh one for the next: its home may be full, its restarts used up.
        site.owner.ok(["rm", name]).await;
        let folder = if name == "node" { folder_of_node(site) } else { folder_of_python(site) };
        deploy_hostile(site, name, &folder, targets).await;
    }

    fn judge(&self, tier: Tier, is_root: bool) {
        let threats = threats::all();
        let has_cgroups = self.has_cgroups.unwrap();
        let mut wrong = Vec::new();
        for scenario in &self.tried {
            let row =
                threats.get(scenario).unwrap_or_else(|| panic!("{scenario} is not in docs/threat-model.md"));
            match (row.is_open(tier, has_cgroups, is_root), self.leaks.get(scenario)) {
                (false, Some(how)) => wrong.push(format!("{scenario} LEAKED and is not listed: {how:#?}")),
                (true, None) if !BY_LOAD.contains(&scenario.as_str()) => {
                    wrong.push(format!("{scenario} is listed as open for {tier:?}, but it is stopped"))
                }
                _ => {}
            }
        }
        let place = format!("{tier:?}, cgroups: {has_cgroups}, root: {is_root}");
        assert!(wrong.is_empty(), "{place}:\n{}", wrong.join("\n"));
        assert!(self.tried.len() >= 46, "only {} scenarios were tried", self.tried.len());
    }
}

async fn suite_in(place: Place<'_>, tier: Tier) {
    let secrets = Secrets::new();
    let env = [("UP_TOKEN", secrets.environment_of_up.as_str())];
    Site::scene(place, &env, async |site| {
        if tier == Tier::Light {
            refused_by_the_default_policy(site).await;
            site.owner.ok(["policy", "--min-isolation", "light"]).await;
        }
        the_suite(site, tier, &secrets).await;
    })
    .await;
}

/// Fail closed: what can't be jailed as the mesh demands does not start, and says what would help.
async fn refused_by_the_default_policy(site: &Site<'_>) {
    let refusal = site.owner.refused(["deploy", "refused", &folder_of_python(site)]).await;
    assert_eq!(refusal.code, "isolation_unavailable", "{}", refusal.text);
    for flag in ["seccomp=", "apparmor=", "systempaths=unconfined"] {
        assert!(refusal.text.contains(flag), "names the flag {flag}: {}", refusal.text);
    }
    site.owner.ok(["rm", "refused"]).await;
}

#[tokio::test]
async fn hostile_servers_get_nothing_from_root() {
    if is_root() {
        suite_in(Place::Host, Tier::Strict).await;
    } else {
        skip("only root can be root");
    }
}

#[tokio::test]
async fn hostile_servers_get_nothing_from_an_ordinary_user() {
    if is_root() {
        suite_in(Place::User(1000), Tier::Strict).await;
    } else {
        // Whoever runs this is an ordinary user.
        suite_in(Place::Host, Tier::Strict).await;
    }
}

#[tokio::test]
async fn hostile_servers_get_nothing_in_a_container_and_what_the_document_says_in_a_bare_one() {
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => return skip(&why),
    };
    let user = "1000:1000";
    suite_in(Place::Container { engine: &engine, user, flags: recommended_flags() }, Tier::Strict).await;
    for user in [user, "0:0"] {
        suite_in(Place::Container { engine: &engine, user, flags: Vec::new() }, Tier::Light).await;
    }
    engine.end().await;
}

/// The same probes with nothing between, as an ordinary user: what they can't find there they could not miss in a jail.
#[tokio::test]
async fn the_probes_find_what_nobody_hides() {
    let bare = bare::Bare::start().await;
    for (server, at_least) in [("python", 25), ("node", 12)] {
        let leaks = bare.leaks(server).await;
        assert!(leaks.len() >= at_least, "{server} finds only {leaks:?}");
    }
    bare.end().await;
}

#[test]
fn every_scenario_of_the_threat_model_names_a_test_that_exists() {
    assert_eq!(threats::without_a_test(&threats::all()), [""; 0]);
}
