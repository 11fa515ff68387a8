//! Kills at random moments, fifty rounds, then the invariants: every wished service answers, nothing is lost, doubled or
//! left behind.
//!
//! Every deploy has a content of its own, so that there is always something to fetch, install and publish when the kill
//! comes.
//!
//! `CHAOS_SEED=…` repeats a run (its kills and their order; not the scheduler's).

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use serde_json::json;
use tests::{Dice, Peer, World, eventually, fixture, processes};

const ROUNDS: u32 = 50;
const SERVICES: [&str; 3] = ["alpha", "beta", "gamma"];

#[derive(Debug, Clone, Copy)]
enum Victim {
    Broker,
    Runner,
    Both,
    Server,
    JailHelper,
}

const VICTIMS: [Victim; 5] =
    [Victim::Broker, Victim::Runner, Victim::Both, Victim::Server, Victim::JailHelper];

/// What is under way when the kill comes.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Quiet,
    Call,
    Deploy,
}

const MOMENTS: [Moment; 3] = [Moment::Quiet, Moment::Call, Moment::Deploy];

struct Story<'a> {
    world: &'a World,
    dice: Dice,
    /// Which of several victims.
    pick: usize,
    /// Generation that was reported ready last, per service.
    proven: [i64; SERVICES.len()],
    /// Kills that came while an artefact was being made.
    into_install: u32,
}

/// Whether this is a hosted server, whichever fixture it came from.
fn is_server(found: &processes::Found) -> bool {
    ["server.py", "built.js"].iter().any(|program| found.command.contains(program))
}

impl Story<'_> {
    async fn round(&mut self, n: u32) {
        let victim = VICTIMS[self.dice.roll(5) as usize];
        let moment = MOMENTS[self.dice.roll(3) as usize];
        let service = self.dice.roll(3) as usize;
        // About as long as what is under way takes.
        let is_built = self.dice.roll(2) == 0;
        let most = match (moment, is_built) {
            (Moment::Quiet | Moment::Call, _) => 120,
            (Moment::Deploy, false) => 500,
            (Moment::Deploy, true) => 1500,
        };
        let delay = Duration::from_millis(self.dice.roll(most));
        self.pick = self.dice.roll(1000) as usize;
        eprintln!("round {n}: kill {victim:?} {delay:?} into {moment:?} of {}", SERVICES[service]);
        let peer = self.world.owner.peer().await;
        let name = SERVICES[service];
        match moment {
            Moment::Quiet => self.kill(victim, delay).await,
            Moment::Call => {
                let call = json!({ "serverName": name, "toolName": "sleep", "args": { "ms": 100 } });
                let mut answers = peer.ask("mcp_call", call).await;
                self.kill(victim, delay).await;
                // A result, a typed error, or the end of a dead broker's socket; never silence.
                if let Some(frame) = answers.next().await {
                    assert!(frame["result"].is_object() || frame["code"].is_string(), "{frame}");
                }
            }
            Moment::Deploy => {
                let mut deploy = self.deploy(n, name, is_built);
                self.kill(victim, delay).await;
                // The deployer hears success or failure, or loses the broker; the record decides below.
                let waited = tokio::time::timeout(Duration::from_secs(120), deploy.wait()).await;
                waited.expect("the deployer is not left waiting").unwrap();
            }
        }
        self.check(n).await;
    }

    fn deploy(&self, n: u32, name: &str, is_built: bool) -> tokio::process::Child {
        let (folder, version) = (self.world.folder(&format!("round{n}")), format!("--args=round{n}"));
        let mut args = vec!["deploy", name];
        let folder = if is_built {
            fixture::built_folder(&folder, &version)
        } else {
            args.push("--args=normal");
            let server = format!("{}# round {n}\n", fixture::PYTHON);
            fixture::write_tree(&folder, &[("server.py", &server)])
        };
        args.extend([folder.to_str().unwrap(), &version]);
        self.world.owner.command(args).spawn().unwrap()
    }

    /// Artefacts that are being made, or that were left half made.
    fn staged(&self) -> usize {
        std::fs::read_dir(self.world.data().join("runner/staging")).unwrap().count()
    }

    async fn kill(&mut self, victim: Victim, delay: Duration) {
        tokio::time::sleep(delay).await;
        self.into_install += u32::from(self.staged() > 0);
        match victim {
            Victim::Broker => self.world.kill_9_broker().await,
            Victim::Runner => self.kill_runner(),
            Victim::Both => {
                self.world.kill_9_broker().await;
                self.kill_runner();
            }
            Victim::Server => self.kill_one(is_server),
            Victim::JailHelper => self.kill_one(|found| found.command.contains("claudemesh jail")),
        }
        if matches!(victim, Victim::Broker | Victim::Both) {
            self.world.up().await;
        }
    }

    fn kill_runner(&self) {
        self.world.runners().into_iter().for_each(processes::kill_9);
    }

    fn kill_one(&self, what: impl Fn(&processes::Found) -> bool) {
        let mut found = processes::of(self.world.path());
        found.retain(what);
        if let Some(process) = found.get(self.pick % found.len().max(1)) {
            processes::kill_9(process.pid);
        }
    }

    async fn check(&mut self, n: u32) {
        let peer = self.world.owner.peer().await;
        for (at, name) in SERVICES.iter().enumerate() {
            let status = eventually("every service answers", async || answers(&peer, name).await).await;
            let generation = status["generation"].as_i64().unwrap();
            assert!(
                generation >= self.proven[at],
                "round {n}: {name} went back from {}: {status}",
                self.proven[at]
            );
            self.proven[at] = generation;
        }
        eventually("one runner, one helper and one server per service", async || {
            let found = processes::of(self.world.path());
            let count = |what: &str| found.iter().filter(|p| p.command.contains(what)).count();
            let is_even = count("claudemesh runner ") == 1
                && found.iter().filter(|p| is_server(p)).count() == SERVICES.len()
                && count("claudemesh jail") == SERVICES.len();
            is_even.then_some(())
        })
        .await;
        eventually("nothing half made is left", async || (self.staged() == 0).then_some(())).await;
        let listed = peer.request("mcp_catalog", json!({})).await;
        assert_eq!(listed["services"].as_array().unwrap().len(), SERVICES.len(), "round {n}: {listed}");
    }
}

/// The status of a service that answers a call with the version that its record names.
async fn answers(peer: &Peer, name: &str) -> Option<serde_json::Value> {
    let answer = peer.call(name, "version", json!({})).await;
    let version = answer["result"].is_object().then(|| fixture::text(&answer["result"]))?;
    let status = peer.request("mcp_status", json!({ "server_name": name })).await["service"].clone();
    let settled = status["phase"] == "ready" && status["args"].as_array()?.last()? == &json!(version);
    settled.then_some(status)
}

#[tokio::test]
async fn fifty_kills_at_random_moments_lose_double_and_leave_nothing() {
    let dice = Dice::seeded("CHAOS_SEED");
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("python"));
        for name in SERVICES {
            world
                .owner
                .ok(["deploy", name, folder.to_str().unwrap(), "--args=normal", "--args=round0"])
                .await;
        }
        let mut story = Story { world, dice, pick: 0, proven: [1; SERVICES.len()], into_install: 0 };
        for n in 1..=ROUNDS {
            story.round(n).await;
        }
        let total: i64 = story.proven.iter().sum();
        let (deploys, installs) = (total - SERVICES.len() as i64, story.into_install);
        eprintln!("{ROUNDS} rounds, {deploys} deploys survived, {installs} kills came into an install");
    })
    .await;
}
