//! A mesh in one file, and back on another machine: members, services with their secrets, uploads. And whatever such a file
//! is not.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::{Dice, Peer, Person, Setup, World, eventually, fixture, pg, processes};
use tokio::process::{Child, Command};

const PASSPHRASE: &str = "correct horse battery";
const TOKEN: &str = "cm-backup-token-77b1";
const CREDS: &str = "cm-backup-creds-90ad";
const PLAIN: &str = "cm-backup-plain-c3f0";
const BO: &str = "cm-backup-bo-5512";

fn digest(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

async fn trusted(owner: &Person) -> String {
    eventually("the runner is trusted", async || {
        let output = owner.run(["--json", "runner", "ls"]).await;
        let found: Value = serde_json::from_slice(&output.stdout).ok()?;
        let runner = found["runners"].as_array()?.iter().find(|runner| runner["connected"] == true)?;
        let is_trusted = runner["granted"].as_array().is_some_and(|granted| !granted.is_empty());
        is_trusted.then(|| runner["id"].as_str().unwrap().to_owned())
    })
    .await
}

async fn serves(person: &Person, service: &str, name: &str, value: &str) {
    eventually("the service is back with its secret", async || {
        let peer = Peer::try_connect(&person.broker_url(), &person.identity()).await.ok()?;
        let answer = peer.call(service, "digest", json!({ "name": name })).await;
        (fixture::text(&answer["result"]) == digest(value)).then_some(())
    })
    .await;
}

/// A mesh with everything that a backup has to hold. Gives its other member.
async fn furnish(world: &World) -> Person {
    let owner = &world.owner;
    trusted(owner).await;
    let bo = world.join("Bo", &[]).await;
    owner.fed(["vault", "set", "token"], TOKEN.as_bytes()).await;
    owner.fed(["vault", "set", "creds"], CREDS.as_bytes()).await;
    bo.fed(["vault", "set", "token"], BO.as_bytes()).await;
    let folder = fixture::keeper_folder(&world.folder("keeper"));
    let folder = folder.to_str().unwrap();
    let (token, creds) = ("--env=TOKEN=$vault:token", "--env=CREDS=$vault:creds:file:/secrets/creds");
    let plain = format!("--env=PLAIN={PLAIN}");
    owner.ok(["deploy", "svc", folder, token, creds, &plain, "--mesh-wide"]).await;
    owner.ok(["deploy", "each", folder, token, "--run-as=caller", "--mesh-wide"]).await;
    bo.ok(["deploy", "bos", folder, token]).await;
    bo.ok(["consent", "each", "--yes"]).await;
    serves(&bo, "each", "TOKEN", BO).await;
    bo
}

async fn is_as_it_was(owner: &Person, bo: &Person) {
    serves(owner, "svc", "TOKEN", TOKEN).await;
    serves(owner, "svc", "PLAIN", PLAIN).await;
    let file = owner.peer().await.call_text("svc", "file", json!({ "name": "CREDS" })).await;
    assert_eq!(file, format!("/secrets/creds {} 400 own", digest(CREDS)));
    serves(owner, "each", "TOKEN", TOKEN).await;
    serves(bo, "bos", "TOKEN", BO).await;
    serves(bo, "each", "TOKEN", BO).await;
    let members = owner.json(["members"]).await.to_string();
    assert!(members.contains("Bo"), "{members}");
}

/// What everybody could do before, they can do again.
async fn goes_on(owner: &Person, bo: &Person) {
    bo.fed(["vault", "rotate", "token"], b"another of bo").await;
    serves(bo, "bos", "TOKEN", "another of bo").await;
    owner.ok(["key", "rotate"]).await;
    owner.ok(["stop", "svc"]).await;
    owner.ok(["start", "svc"]).await;
    serves(owner, "svc", "TOKEN", TOKEN).await;
    let history = bo.json(["vault", "history", "token"]).await;
    assert_eq!(history["versions"].as_array().unwrap().len(), 2, "{history}");
    let ledger = owner.json(["vault", "ledger", "--service", "svc"]).await;
    let runners: std::collections::BTreeSet<_> = ledger["lines"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| line["act"] == "opened")
        .map(|line| line["runner"].to_string())
        .collect();
    assert_eq!(runners.len(), 2, "the ledger of the old machine came along: {ledger}");
}

async fn restored(person: &Person, file: &Path, data: &Path) {
    let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
    person.fed(["restore", file, "--data", data], PASSPHRASE.as_bytes()).await;
}

#[tokio::test]
async fn a_mesh_comes_back_on_another_machine_with_its_members_services_and_secrets() {
    World::scene(async |first| {
        let bo = furnish(first).await;
        let data = first.data();
        let args = ["--json", "backup", "mesh.backup", "--data", data.to_str().unwrap()];
        let peer = first.owner.peer().await;
        let (made, _) = tokio::join!(first.owner.fed(args, PASSPHRASE.as_bytes()), async {
            for _ in 0..20 {
                peer.call_text("svc", "digest", json!({ "name": "TOKEN" })).await;
            }
        });
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["owner"], true, "{made}");
        let file = first.owner.home.join("mesh.backup");
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let refused = first.owner.fed_refused(&args, PASSPHRASE).await;
        assert!(refused.contains("there already"), "{refused}");
        let (identity, old) = (first.owner.identity(), trusted(&first.owner).await);
        first.down().await;

        World::scene_unstarted(Setup::default(), async |second| {
            second.take_address_of(first).await;
            restored(&second.owner, &file, &second.data()).await;
            second.up().await;
            assert_eq!(second.owner.identity().pubkey(), identity.pubkey(), "the same owner");
            assert_eq!(second.owner.identity().mesh_id, identity.mesh_id, "of the same mesh");
            assert_ne!(trusted(&second.owner).await, old, "another runner");
            is_as_it_was(&second.owner, &bo).await;
            goes_on(&second.owner, &bo).await;
            second.down().await;
            second.up().await;
            serves(&second.owner, "svc", "TOKEN", TOKEN).await;
        })
        .await;
    })
    .await;
}

/// A machine without anything.
struct Machine {
    _dir: tempfile::TempDir,
    person: Person,
    data: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("claudemesh-backup-").tempdir().unwrap();
        let (home, config) = (dir.path().join("home"), dir.path().join("config"));
        std::fs::create_dir(&home).unwrap();
        let data = dir.path().join("data");
        Self { person: Person { name: "somebody".into(), config, home }, data, _dir: dir }
    }

    async fn refuses(&self, file: &Path, passphrase: &str) -> String {
        let (file, data) = (file.to_str().unwrap(), self.data.to_str().unwrap());
        self.person.fed_refused(&["restore", file, "--data", data], passphrase).await
    }

    /// The mesh and its owner are there, for the next `up` to find.
    fn is_restored(&self) -> bool {
        self.data.join("first-run.json").is_file()
    }
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_changes_nothing() {
    World::scene(async |world| {
        trusted(&world.owner).await;
        world.owner.fed(["vault", "set", "token"], TOKEN.as_bytes()).await;
        let (file, data) = (world.folder("backups").join("good"), world.data());
        let (path, data) = (file.to_str().unwrap(), data.to_str().unwrap());
        let short = world.owner.fed_refused(&["backup", path, "--data", data], "short").await;
        assert!(short.contains("at least") && !file.exists(), "{short}");
        world.owner.fed(["backup", path, "--data", data], PASSPHRASE.as_bytes()).await;
        let good = std::fs::read(&file).unwrap();
        let busy = world.owner.fed_refused(&["restore", path, "--data", data], PASSPHRASE).await;
        assert!(busy.contains("runs already"), "{busy}");

        let machine = Machine::new();
        let bad = world.folder("backups").join("bad");
        let refuses = async |bytes: &[u8]| {
            std::fs::write(&bad, bytes).unwrap();
            let why = machine.refuses(&bad, PASSPHRASE).await;
            assert!(!machine.is_restored(), "{why}");
            why
        };
        assert!(machine.refuses(&file, "correct horse batterz").await.contains("passphrase"));
        for bytes in [0, 1, 40, good.len() / 2, good.len() - 2] {
            refuses(&good[..bytes]).await;
        }
        for n in 0..8 {
            let mut flipped = good.clone();
            flipped[n * (good.len() - 2) / 7] ^= 1 << n;
            refuses(&flipped).await;
        }
        // Who knows the passphrase can write anything into it.
        let plain = vault::passphrase::open(PASSPHRASE, &good).unwrap();
        let forge = async |change: &dyn Fn(&mut Value)| {
            let mut document: Value = serde_json::from_slice(&plain).unwrap();
            change(&mut document);
            refuses(&vault::passphrase::seal(PASSPHRASE, document.to_string().as_bytes())).await
        };
        let newer = forge(&|backup| backup["schema"] = "9999_future".into()).await;
        assert!(newer.contains("newer"), "{newer}");
        assert!(forge(&|backup| backup["v"] = 2.into()).await.contains("newer"));
        forge(&|backup| backup["more"] = 1.into()).await;
        forge(&|backup| backup["tables"] = json!([])).await;
        forge(&|backup| backup["tables"][0]["name"] = "sqlite_master".into()).await;
        forge(&|backup| backup["tables"][0]["columns"][0] = "id) SELECT 1 --".into()).await;
        forge(&|backup| backup["tables"][0]["rows"][0] = json!([])).await;
        let key =
            forge(&|backup| backup["keys"] = json!([{ "is_active": true, "created_at": 1, "key": TOKEN }]));
        assert!(!key.await.contains(TOKEN), "a damaged key is not repeated");
        refuses(&vault::passphrase::seal(PASSPHRASE, b"{}")).await;

        // After all of that the good one can still be had, once.
        restored(&machine.person, &file, &machine.data).await;
        assert!(machine.is_restored());
        let again = machine.refuses(&file, PASSPHRASE).await;
        assert!(again.contains("has a mesh already"), "{again}");
    })
    .await;
}

#[tokio::test]
async fn a_restore_that_is_killed_can_be_done_again() {
    World::scene(async |world| {
        let bo = furnish(world).await;
        let (file, data) = (world.folder("backups").join("mesh"), world.data());
        let backup = ["backup", file.to_str().unwrap(), "--data", data.to_str().unwrap()];
        world.owner.fed(backup, PASSPHRASE.as_bytes()).await;
        world.down().await;
        let passphrase = world.folder("typed").join("passphrase");
        std::fs::write(&passphrase, PASSPHRASE).unwrap();
        let mut dice = Dice::seeded("BACKUP_SEED");
        let usual = {
            let (machine, since) = (Machine::new(), Instant::now());
            restored(&machine.person, &file, &machine.data).await;
            since.elapsed()
        };
        let restore = |person: &Person, data: &Path| {
            let mut command = person.command(["restore"]);
            command.arg(&file).arg("--data").arg(data).arg("--passphrase-file").arg(&passphrase);
            command
        };
        for round in 0..6 {
            // The last part is where something is written.
            let delay = usual.mul_f64(0.5) + usual.mul_f64(dice.roll(600) as f64 / 1000.0);
            let machine = Machine::new();
            let mut child = restore(&machine.person, &machine.data).spawn().unwrap();
            tokio::time::sleep(delay).await;
            let was_done = child.try_wait().unwrap().is_some();
            child.kill().await.unwrap();
            eprintln!("round {round}: killed after {delay:?} of {usual:?}, done: {was_done}");
            let again = restore(&machine.person, &machine.data).output().await.unwrap();
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(again.status.success() || said.contains("has a mesh already"), "{said}");
            assert!(machine.is_restored(), "{said}");
        }

        World::scene_unstarted(Setup::default(), async |second| {
            restored(&second.owner, &file, &second.data()).await;
            // As if it had been killed between the database and the owner.
            std::fs::remove_file(second.data().join("first-run.json")).unwrap();
            restored(&second.owner, &file, &second.data()).await;
            second.take_address_of(world).await;
            second.up().await;
            trusted(&second.owner).await;
            is_as_it_was(&second.owner, &bo).await;
        })
        .await;
    })
    .await;
}

/// The roles apart, on PostgreSQL.
struct Apart<'a> {
    world: &'a World,
    owner: Person,
    database: PathBuf,
    key: PathBuf,
    addr: String,
}

impl Apart<'_> {
    fn role(&self, command: &mut Command, log: &str) -> Child {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.world.path().join(log)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn socket(&self) -> String {
        format!("unix:{}", self.world.path().join("apart.sock").display())
    }

    fn broker(&self) -> Child {
        let args = ["broker", "--bootstrap=acme", "--listen", &self.addr, "--runner", &self.socket()];
        let mut command = self.owner.command(args);
        command.arg("--database-url-file").arg(&self.database).arg("--key-file").arg(&self.key);
        self.role(&mut command, "up.log")
    }

    fn runner(&self) -> Child {
        let mut command = self.owner.command(["runner", "--listen", &self.socket(), "--data"]);
        self.role(command.arg(self.world.path().join("apart")), "apart.log")
    }

    async fn trust(&self) {
        eventually("the runner is trusted", async || {
            let id = self.owner.run(["runner", "id", "--at", &self.socket()]).await;
            let id = String::from_utf8(id.stdout).unwrap();
            let done = self.owner.run(["runner", "trust", id.trim()]).await;
            done.status.success().then_some(())
        })
        .await;
    }
}

async fn end(mut child: Child) {
    processes::terminate(child.id().expect("it runs").cast_signed());
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, child.wait()).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_mesh_moves_from_sqlite_into_postgresql() {
    let Some(url) = pg::empty_database().await else { return };
    World::scene(async |world| {
        let bo = furnish(world).await;
        let (file, data) = (world.folder("backups").join("mesh"), world.data());
        let backup = ["backup", file.to_str().unwrap(), "--data", data.to_str().unwrap()];
        world.owner.fed(backup, PASSPHRASE.as_bytes()).await;
        let (old, addr) =
            (world.owner.identity(), world.http().await.trim_start_matches("http://").to_owned());
        world.down().await;

        let home = world.folder("home-apart");
        let at = |name: &str| world.folder("apart-keys").join(name);
        let owner = Person { name: "owner again".into(), config: world.path().join("owner-apart"), home };
        let apart = Apart { world, owner, database: at("url"), key: at("root"), addr };
        std::fs::write(&apart.database, &url).unwrap();
        std::fs::write(&apart.key, "cd".repeat(32)).unwrap();
        let (url, key) = (apart.database.to_str().unwrap(), apart.key.to_str().unwrap());
        let restore = ["restore", file.to_str().unwrap(), "--database-url-file", url, "--key-file", key];
        apart.owner.fed(restore, PASSPHRASE.as_bytes()).await;
        let again = apart.owner.fed_refused(&restore, PASSPHRASE).await;
        assert!(again.contains("in this database already"), "{again}");

        let (broker, runner) = (apart.broker(), apart.runner());
        eventually("the owner is there", async || {
            apart.owner.config.join("config.json").is_file().then_some(())
        })
        .await;
        assert_eq!(
            apart.owner.identity().pubkey(),
            old.pubkey(),
            "the owner's identity came out of the file"
        );
        assert_eq!(apart.owner.identity().mesh_id, old.mesh_id);
        apart.trust().await;
        is_as_it_was(&apart.owner, &bo).await;
        goes_on(&apart.owner, &bo).await;
        // And back: PostgreSQL into SQLite.
        let back = world.folder("backups").join("back");
        let backup = ["backup", back.to_str().unwrap(), "--database-url-file", url, "--key-file", key];
        apart.owner.fed(backup, PASSPHRASE.as_bytes()).await;
        end(broker).await;
        end(runner).await;
        let machine = Machine::new();
        restored(&machine.person, &back, &machine.data).await;
        assert!(machine.is_restored());
    })
    .await;
}
