//! Kills at random moments of everything that changes the vault: afterwards it is as before or as wanted, each secret opens,
//! and the services come back with it.
//!
//! Each act is tried with each victim, at a moment within the time that the act usually takes. `VAULT_CHAOS_SEED=…` repeats
//! the moments.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::{Dice, Peer, Person, Setup, World, eventually, fixture, processes};
use tokio::io::AsyncWriteExt as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Set,
    Remove,
    Rotate,
    Trust,
    Consent,
}

const ACTS: [Act; 5] = [Act::Set, Act::Remove, Act::Rotate, Act::Trust, Act::Consent];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Broker,
    Runner,
    Client,
}

const VICTIMS: [Victim; 3] = [Victim::Broker, Victim::Runner, Victim::Client];

fn digest(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

/// The connected runner, once it may open the vault.
async fn trusted(world: &World) -> String {
    eventually("the runner is trusted", async || {
        let found = world.owner.json(["runner", "ls"]).await;
        let runner = found["runners"].as_array()?.iter().find(|runner| runner["connected"] == true)?;
        let is_trusted = runner["granted"].as_array().is_some_and(|granted| !granted.is_empty());
        is_trusted.then(|| runner["id"].as_str().unwrap().to_owned())
    })
    .await
}

async fn digest_held(peer: &Peer, service: &str, name: &str) -> String {
    let answer = peer.call(service, "digest", json!({ "name": name })).await;
    fixture::text(&answer["result"])
}

/// Through whatever the kill has begun: a restart, a swap of instances.
async fn serves(person: &Person, service: &str, value: &str) {
    eventually("the service holds what the vault holds", async || {
        let peer = Peer::try_connect(&person.broker_url(), &person.identity()).await.ok()?;
        (digest_held(&peer, service, "TOKEN").await == digest(value)).then_some(())
    })
    .await;
}

struct Story<'a> {
    world: &'a World,
    bo: Person,
    runner: String,
    dice: Dice,
    /// What the vault holds of the owner's entry.
    value: String,
    version: i64,
}

impl<'a> Story<'a> {
    async fn begin(world: &'a World) -> Self {
        let (owner, value) = (&world.owner, "the first value".to_owned());
        let runner = trusted(world).await;
        let bo = world.join("Bo", &[]).await;
        owner.fed(["vault", "set", "token"], value.as_bytes()).await;
        bo.fed(["vault", "set", "token"], b"the value of bo").await;
        let folder = fixture::keeper_folder(&world.folder("keeper"));
        let folder = folder.to_str().unwrap();
        let plain = "--env=PLAIN=sealed at rest";
        owner.ok(["deploy", "svc", folder, "--env=TOKEN=$vault:token", plain]).await;
        bo.ok(["deploy", "bos", folder, "--env=TOKEN=$vault:token"]).await;
        let dice = Dice::seeded("VAULT_CHAOS_SEED");
        Self { world, bo, runner, dice, value, version: 1 }
    }

    fn new_value(n: usize) -> String {
        format!("the value of round {n}")
    }

    /// What must be there before the act.
    async fn prepare(&self, act: Act, n: usize) {
        let owner = &self.world.owner;
        match act {
            Act::Set | Act::Rotate => {}
            Act::Remove => drop(owner.fed(["vault", "set", &format!("spare{n}")], b"to be removed").await),
            Act::Trust => drop(owner.ok(["runner", "revoke", &self.runner]).await),
            Act::Consent => {
                let rule = json!({ "server_name": "svc", "allow": [format!("round{n}.example")] });
                let asked = owner.peer().await.ask("mcp_network", rule).await.verdict().await;
                assert_eq!(asked["status"], "awaiting_consent", "{asked}");
            }
        }
    }

    fn arguments(&self, act: Act, n: usize) -> Vec<String> {
        let spare = format!("spare{n}");
        let words: &[&str] = match act {
            Act::Set => &["vault", "set", "token"],
            Act::Remove => &["vault", "rm", &spare],
            Act::Rotate => &["key", "rotate"],
            Act::Trust => &["runner", "trust", &self.runner],
            Act::Consent => &["consent", "svc", "--yes"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Acts, with a kill after a while, if any. Says whether the act said that it is done, and how long it took.
    async fn act(&self, act: Act, n: usize, kill: Option<(Victim, Duration)>) -> (bool, Duration) {
        let since = Instant::now();
        let mut command = self.world.owner.command(self.arguments(act, n));
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        // It may be gone already.
        let _ = child.stdin.take().unwrap().write_all(Self::new_value(n).as_bytes()).await;
        if let Some((victim, delay)) = kill {
            tokio::time::sleep(delay).await;
            match victim {
                Victim::Broker => self.world.kill_9_broker().await,
                Victim::Runner => self.world.kill_9_runner().await,
                Victim::Client => processes::kill_9(child.id().unwrap().cast_signed()),
            }
        }
        let ended = tokio::time::timeout(tests::peer::PATIENCE, child.wait()).await;
        let done = ended.expect("nobody is left waiting").unwrap().success();
        let took = since.elapsed();
        if kill.is_some_and(|(victim, _)| victim == Victim::Broker) {
            self.world.up().await;
        }
        (done, took)
    }

    async fn check(&mut self, act: Act, n: usize, done: bool) {
        let owner = &self.world.owner;
        match act {
            Act::Set => self.is_old_or_new(n, done).await,
            Act::Remove => {
                let spare = format!("spare{n}");
                let is_there = owner.json(["vault", "ls"]).await.to_string().contains(&spare);
                assert!(!(done && is_there), "it said that it is removed");
                if is_there {
                    owner.ok(["vault", "rm", &spare]).await;
                }
                assert!(!owner.json(["vault", "ls"]).await.to_string().contains(&spare));
            }
            // The broker may be finishing what the killed client began, which is a conflict until then.
            Act::Rotate => self.works(&["key", "rotate"]).await,
            Act::Trust => {
                self.works(&["runner", "trust", &self.runner]).await;
                assert_eq!(trusted(self.world).await, self.runner, "a runner keeps its key");
            }
            Act::Consent => {
                let host = format!("round{n}.example");
                self.works(&["consent", "svc", "--yes"]).await;
                eventually("what was signed runs", async || {
                    let network = owner.json(["status", "svc"]).await["network"].to_string();
                    network.contains(&host).then_some(())
                })
                .await;
            }
        }
        if matches!(act, Act::Rotate | Act::Trust) {
            // A process that runs proves nothing of what the runner can open.
            owner.ok(["stop", "svc"]).await;
            self.works(&["start", "svc"]).await;
        }
        serves(owner, "svc", &self.value).await;
        serves(&self.bo, "bos", "the value of bo").await;
        let plain = digest_held(&owner.peer().await, "svc", "PLAIN").await;
        assert_eq!(plain, digest("sealed at rest"));
    }

    /// At once, or as soon as what was killed has come back.
    async fn works(&self, command: &[&str]) {
        eventually(&command.join(" "), async || {
            self.world.owner.run(command).await.status.success().then_some(())
        })
        .await;
    }

    async fn is_old_or_new(&mut self, n: usize, done: bool) {
        let history = self.world.owner.json(["vault", "history", "token"]).await;
        let versions = history["versions"].as_array().unwrap().iter();
        let newest = versions.filter_map(|version| version["version"].as_i64()).max().unwrap();
        assert!(newest == self.version || newest == self.version + 1, "{history}");
        assert!(!done || newest == self.version + 1, "it said that it is stored");
        if newest > self.version {
            (self.version, self.value) = (newest, Self::new_value(n));
        }
    }
}

#[tokio::test]
async fn whoever_is_killed_in_whatever_act_no_secret_is_lost() {
    World::scene(async |world| {
        let mut story = Story::begin(world).await;
        let (mut n, mut finished) = (0, 0);
        for act in ACTS {
            story.prepare(act, n).await;
            let (done, usual) = story.act(act, n, None).await;
            assert!(done, "{act:?} works when nobody is killed");
            story.check(act, n, done).await;
            for victim in VICTIMS {
                n += 1;
                let delay = story.dice.roll(u64::try_from(usual.as_millis()).unwrap() + 1);
                eprintln!("round {n}: kill {victim:?} {delay} ms into {act:?} ({usual:?})");
                story.prepare(act, n).await;
                let kill = Some((victim, Duration::from_millis(delay)));
                let (done, _) = story.act(act, n, kill).await;
                finished += u32::from(done);
                story.check(act, n, done).await;
            }
            n += 1;
        }
        eprintln!("{finished} acts of {} were done nevertheless", ACTS.len() * VICTIMS.len());
        let listed: Value = world.owner.json(["vault", "ls"]).await;
        assert_eq!(listed["entries"].as_array().unwrap().len(), 1, "{listed}");
    })
    .await;
}

#[tokio::test]
async fn a_first_start_that_is_killed_leaves_a_runner_that_can_be_trusted() {
    let mut dice = Dice::seeded("VAULT_CHAOS_SEED");
    for round in 0..4 {
        let (delay, runner_too) = (Duration::from_millis(dice.roll(700)), dice.roll(2) == 0);
        eprintln!("round {round}: kill up {delay:?} into its first start, its runner too: {runner_too}");
        World::scene_unstarted(Setup::default(), async |world| {
            world.up_killed_after(delay).await;
            if runner_too {
                world.runners().into_iter().for_each(processes::kill_9);
            }
            world.up().await;
            let id = trusted(world).await;
            world.owner.fed(["vault", "set", "token"], b"a value").await;
            let folder = fixture::keeper_folder(&world.folder("keeper"));
            let deploy = ["deploy", "svc", folder.to_str().unwrap(), "--env=TOKEN=$vault:token"];
            world.owner.ok(deploy).await;
            world.down().await;
            world.up().await;
            serves(&world.owner, "svc", "a value").await;
            assert_eq!(trusted(world).await, id, "the same key, from disk");
        })
        .await;
    }
}
