//! A world: one `claudemesh up` with a directory, a port and an owner of its own.
//!
//! Invariant: when [`World::scene`] returns, no process of the world is left, and if the scene went well none had to be
//! killed by us.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::peer::{PATIENCE, Peer};
use crate::person::Person;
use crate::processes;

/// How a world differs from the usual one.
#[derive(Default, Clone)]
pub struct Setup {
    /// Environment of `claudemesh up`.
    pub env: Vec<(String, String)>,
    /// The size in MiB of a file system of its own for the runner. Needs root.
    pub runner_disk_mib: Option<u32>,
}

pub struct World {
    dir: TempDir,
    setup: Setup,
    pub owner: Person,
    up: Mutex<Option<Child>>,
    /// Known after the first start; later starts ask for the same.
    addr: Mutex<Option<String>>,
}

/// Asks again and again until there is an answer. Panics after two minutes.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The binary that `cargo build -p cli` makes, beside the running test executable.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let binary = profile.join("claudemesh");
    assert!(binary.is_file(), "{} is missing: run `cargo build -p cli` first", binary.display());
    binary
}

/// `claudemesh` with a clean home and the registries that this machine is configured for.
pub(crate) fn claudemesh(home: &Path, config: &Path) -> Command {
    let mut command = Command::new(binary());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("HOME", home)
        .env("CLAUDEMESH_CONFIG_DIR", config)
        .env("PATH", format!("{}:{path}", root.join(".tools/bin").display()))
        .env_remove("CLAUDEMESH_DATA")
        .env_remove("DATABASE_URL")
        .current_dir(home)
        .kill_on_drop(true);
    if let Ok(real) = std::env::var("HOME") {
        // A clean home must not lose the registry that the machine is set up for.
        let npmrc = Path::new(&real).join(".npmrc");
        if npmrc.is_file() {
            command.env("npm_config_userconfig", npmrc);
        }
    }
    command
}

impl World {
    /// Runs a scene in a fresh world and takes the world down after it, panic or not.
    pub async fn scene(act: impl AsyncFnOnce(&World)) {
        Self::scene_with(Setup::default(), act).await;
    }

    pub async fn scene_with(setup: Setup, act: impl AsyncFnOnce(&World)) {
        Self::play(Self::prepare(setup), async |world| {
            world.up().await;
            act(world).await;
        })
        .await;
    }

    async fn play(world: Self, act: impl AsyncFnOnce(&World)) {
        let outcome = std::panic::AssertUnwindSafe(act(&world)).catch_unwind().await;
        if outcome.is_ok() {
            world.down().await;
        }
        let left = processes::of(world.path());
        if outcome.is_err() || !left.is_empty() {
            world.show_logs();
        }
        world.wipe().await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(left.is_empty(), "left behind by a graceful stop: {left:#?}");
    }

    fn prepare(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("claudemesh-world-").tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(&home).unwrap();
        let owner = Person { name: "owner".into(), config: dir.path().join("owner"), home };
        let world = Self { dir, setup, owner, up: Mutex::default(), addr: Mutex::default() };
        let disk = world.data().join("runner");
        std::fs::create_dir_all(&disk).unwrap();
        if let Some(mib) = world.setup.runner_disk_mib {
            let size = format!("size={mib}m");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), flags, Some(size.as_str())).unwrap();
        } else {
            // Worlds share what package managers download, or a run would fetch everything a dozen times.
            let shared = binary().with_file_name("test-cache");
            std::fs::create_dir_all(&shared).unwrap();
            std::os::unix::fs::symlink(shared, disk.join("cache")).unwrap();
        }
        world
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// A new empty directory inside the world.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join("folders").join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// As [`Self::scene_with`], and nothing runs yet.
    pub async fn scene_unstarted(setup: Setup, act: impl AsyncFnOnce(&World)) {
        Self::play(Self::prepare(setup), act).await;
    }

    /// Starts `claudemesh up` and waits until a hello is answered.
    pub async fn up(&self) {
        self.up_with(&[]).await;
    }

    pub async fn up_with(&self, extra_env: &[(&str, &str)]) {
        let mut child = self.spawn_up(extra_env).await;
        let peer = eventually("the broker answers a hello", async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("`claudemesh up` ended: {status}");
            }
            self.try_peer().await
        });
        drop(peer.await);
        let url = self.owner.broker_url();
        let addr = url.trim_start_matches("ws://").trim_end_matches("/ws");
        *self.addr.lock().await = Some(addr.to_owned());
        *self.up.lock().await = Some(child);
    }

    async fn spawn_up(&self, extra_env: &[(&str, &str)]) -> Child {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path().join("up.log")).unwrap();
        let listen = self.addr.lock().await.clone().unwrap_or_else(|| "127.0.0.1:0".into());
        let mut command = claudemesh(&self.owner.home, &self.owner.config);
        command
            .args(["up", "--listen", &listen, "--data"])
            .arg(self.data())
            .envs(self.setup.env.clone())
            .envs(extra_env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command.spawn().unwrap()
    }

    /// Starts `claudemesh up` and kills it after this time, wherever it is then.
    pub async fn up_killed_after(&self, delay: Duration) {
        let mut child = self.spawn_up(&[]).await;
        sleep(delay).await;
        child.kill().await.unwrap();
    }

    /// From the next start on, at the address of another world that is down.
    pub async fn take_address_of(&self, other: &World) {
        (*self.addr.lock().await).clone_from(&*other.addr.lock().await);
    }

    /// `None` while the broker is not there.
    pub async fn try_peer(&self) -> Option<Peer> {
        if !self.owner.config.join("config.json").is_file() {
            return None;
        }
        Peer::try_connect(&self.owner.broker_url(), &self.owner.identity()).await.ok()
    }

    pub async fn http(&self) -> String {
        format!("http://{}", self.addr.lock().await.as_deref().unwrap())
    }

    /// Ends `up` as Ctrl-C does and waits for it.
    pub async fn down(&self) {
        let Some(mut child) = self.up.lock().await.take() else { return };
        if let Some(pid) = child.id() {
            processes::terminate(pid.cast_signed());
        }
        timeout(PATIENCE, child.wait()).await.expect("`claudemesh up` ends when told to").unwrap();
    }

    pub async fn kill_9_broker(&self) {
        let mut child = self.up.lock().await.take().expect("the broker is up");
        child.kill().await.unwrap();
    }

    /// Process ids of the runner (one, unless something is wrong).
    pub fn runners(&self) -> Vec<i32> {
        let is_runner = |found: &processes::Found| found.command.contains("claudemesh runner --");
        processes::of(self.path()).into_iter().filter(is_runner).map(|found| found.pid).collect()
    }

    /// Kills the runner and waits until it is gone.
    pub async fn kill_9_runner(&self) {
        let runners = self.runners();
        assert_eq!(runners.len(), 1, "one runner");
        processes::kill_9(runners[0]);
        eventually("the runner is gone", async || (!processes::is_alive(runners[0])).then_some(())).await;
    }

    /// A new member, who joins by a link as a second person would.
    pub async fn join(&self, name: &str, invite_flags: &[&str]) -> Person {
        let mut args = vec!["invite", "--name", name];
        args.extend(invite_flags);
        let invite = self.owner.json(args).await;
        let link = invite["link"].as_str().unwrap_or_else(|| panic!("a link in {invite}"));
        let person = Person {
            name: name.to_owned(),
            config: self.path().join(name),
            home: self.folder(&format!("home-{name}")),
        };
        person.ok(["join", link]).await;
        person
    }

    /// The status document of a service, as its owner sees it.
    pub async fn status(&self, name: &str) -> Value {
        let peer = self.owner.peer().await;
        peer.request("mcp_status", serde_json::json!({ "server_name": name })).await["service"].clone()
    }

    fn show_logs(&self) {
        for name in ["up.log", "data/runner.log"] {
            let text = std::fs::read_to_string(self.path().join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("── last lines of {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }

    /// Kills whatever is left and makes the directory removable.
    async fn wipe(&self) {
        drop(self.up.lock().await.take());
        eventually("every process of the world is gone", async || {
            let left = processes::of(self.path());
            left.iter().for_each(|found| processes::kill_9(found.pid));
            left.is_empty().then_some(())
        })
        .await;
        if self.setup.runner_disk_mib.is_some() {
            nix::mount::umount2(&self.data().join("runner"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        make_removable(self.path());
    }
}

/// Artefacts are read-only folders; only root could remove them as they are.
fn make_removable(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700));
            make_removable(&entry.path());
        }
    }
}
