//! Where a `claudemesh up` runs for these tests: on this machine as root or as somebody else, or in a container.
//!
//! Here: starting it, commands beside it, ending it with nothing left. Not here: what is deployed.
//! The whole site is one directory, which has the same path inside a container as outside.

use std::fs::OpenOptions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt as _;
use tempfile::TempDir;
use tests::docker::{Container, Engine, Order};
use tests::{Peer, Person, eventually, processes, world};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub enum Place<'a> {
    Host,
    /// This machine, with no privilege at all.
    User(u32),
    Container {
        engine: &'a Engine,
        user: &'a str,
        flags: Vec<String>,
    },
}

enum Running {
    Process(Child),
    Container(Container),
}

pub struct Site<'a> {
    dir: TempDir,
    place: Place<'a>,
    env: Vec<(String, String)>,
    running: Option<Running>,
    pub owner: Person,
}

impl<'a> Site<'a> {
    /// Runs a scene beside a fresh `claudemesh up` and takes everything down after it, panic or not.
    pub async fn scene(place: Place<'a>, env: &[(&str, &str)], act: impl AsyncFnOnce(&Site<'a>)) {
        let mut site = Self::prepare(place, env);
        let story = async {
            site.up().await;
            act(&site).await;
        };
        let outcome = std::panic::AssertUnwindSafe(story).catch_unwind().await;
        if outcome.is_err() {
            site.show_logs().await;
        }
        let is_graceful = site.down().await;
        let left = processes::of(site.path());
        left.iter().for_each(|found| processes::kill_9(found.pid));
        make_removable(site.path());
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(is_graceful, "`claudemesh up` does not end when told to");
        assert!(left.is_empty(), "left behind by a graceful stop: {left:#?}");
    }

    fn prepare(place: Place<'a>, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("claudemesh-site-").tempdir().unwrap();
        // A container's user, and who plays the victim, must be able to go there.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let within = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            if let Some(uid) = place.uid() {
                chown(&path, Some(uid), Some(uid)).unwrap();
            }
            path
        };
        for name in ["data", "victim", "folders"] {
            within(name);
        }
        let owner = Person { name: "owner".into(), config: within("owner"), home: within("home") };
        // The workspace may lie where only its owner can go.
        // By a process of its own: a child that another test forks meanwhile would hold a descriptor of ours open for
        // writing, and then the copy can't be executed.
        let copied = std::process::Command::new("cp")
            .arg(world::binary())
            .arg(dir.path().join("claudemesh"))
            .spawn()
            .and_then(|mut copy| copy.wait());
        assert!(copied.unwrap().success(), "the binary is copied");
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Self { dir, place, env, running: None, owner }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut env = vec![
            ("HOME".into(), text(&self.owner.home)),
            ("CLAUDEMESH_CONFIG_DIR".into(), text(&self.owner.config)),
            ("PATH".into(), format!("{}:{PATH}", tools().join("bin").display())),
        ];
        env.extend(self.env.clone());
        env
    }

    async fn up(&mut self) {
        let binary = self.path().join("claudemesh");
        let command =
            [binary.to_str().unwrap(), "up", "--listen", "127.0.0.1:0", "--data"].map(str::to_owned);
        let command = [&command[..], &[self.data().to_str().unwrap().to_owned()]].concat();
        let running = match &self.place {
            Place::Host | Place::User(_) => {
                let log =
                    OpenOptions::new().create(true).append(true).open(self.path().join("up.log")).unwrap();
                let mut process = self.beside(&command);
                process.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
                Running::Process(process.spawn().unwrap())
            }
            Place::Container { engine, user, flags } => {
                let name = self.path().file_name().unwrap().to_str().unwrap();
                let order = Order {
                    name,
                    user,
                    flags,
                    volume: self.path(),
                    programs: &[tools(), root().join("tests/fixtures")],
                    env: &self.environment(),
                    command: &command,
                };
                Running::Container(engine.run(&order).await)
            }
        };
        self.running = Some(running);
        eventually("the broker answers a hello", async || {
            self.still_runs().await;
            self.try_peer().await
        })
        .await;
    }

    async fn still_runs(&mut self) {
        let runs = match self.running.as_mut().expect("started") {
            Running::Process(child) => child.try_wait().unwrap().is_none(),
            Running::Container(container) => container.is_running().await,
        };
        assert!(runs, "`claudemesh up` ended by itself");
    }

    async fn try_peer(&self) -> Option<Peer> {
        if !self.owner.config.join("config.json").is_file() {
            return None;
        }
        Peer::try_connect(&self.owner.broker_url(), &self.owner.identity()).await.ok()
    }

    /// A command where `up` runs, as whom it runs.
    pub fn beside(&self, argv: &[String]) -> Command {
        let mut command = match (&self.place, &self.running) {
            (Place::Container { .. }, Some(Running::Container(container))) => {
                let mut command = container.exec(&[]);
                command.args(argv);
                return command;
            }
            (Place::Container { .. }, _) => panic!("the container does not run"),
            (Place::Host, _) => Command::new(&argv[0]),
            (Place::User(uid), _) => {
                let uid = uid.to_string();
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]).arg(&argv[0]);
                command
            }
        };
        command.args(&argv[1..]).env_clear().envs(self.environment()).current_dir(self.path());
        command
    }

    /// Which of the process's numbers the processes beside `up` see: the outermost, or that of the container.
    pub fn seen_pid(&self, pid: i32) -> Option<i32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let depth = usize::from(matches!(self.place, Place::Container { .. }));
        numbers.split_whitespace().nth(depth)?.parse().ok()
    }

    /// Whether each service has a uid of its own here.
    pub fn is_root(&self) -> bool {
        self.place.uid().unwrap_or_else(|| nix::unistd::getuid().as_raw()) == 0
    }

    pub fn port(&self) -> u16 {
        let url = self.owner.broker_url();
        url.trim_start_matches("ws://").trim_end_matches("/ws").rsplit(':').next().unwrap().parse().unwrap()
    }

    async fn down(&mut self) -> bool {
        match self.running.take() {
            Some(Running::Process(mut child)) => {
                if let Some(pid) = child.id() {
                    processes::terminate(pid.cast_signed());
                }
                timeout(PATIENCE, child.wait()).await.is_ok()
            }
            Some(Running::Container(container)) => {
                container.stop().await;
                true
            }
            None => true,
        }
    }

    async fn show_logs(&self) {
        let mut texts = vec![("data/runner.log", std::fs::read_to_string(self.data().join("runner.log")))];
        texts.push(("up.log", std::fs::read_to_string(self.path().join("up.log"))));
        if let Some(Running::Container(container)) = &self.running {
            texts.push(("the container", Ok(container.logs().await)));
        }
        for (name, text) in texts {
            let text = text.unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("── last lines of {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

impl Place<'_> {
    fn uid(&self) -> Option<u32> {
        match self {
            Self::Host => None,
            Self::User(uid) => Some(*uid),
            Self::Container { user, .. } => user.split(':').next()?.parse().ok(),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn tools() -> PathBuf {
    root().join(".tools")
}

/// Artefacts are read-only folders, and homes may hold what nobody can enter.
fn make_removable(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o700));
            make_removable(&entry.path());
        }
    }
}

/// The runner's options of docker-compose.yml, as `docker run` takes them: one home for what is recommended.
pub fn recommended_flags() -> Vec<String> {
    let compose = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let runner = compose.split("\n  runner:\n").nth(1).expect("a service `runner`");
    let lines = runner.lines().take_while(|line| line.starts_with("    "));
    let mut flags = Vec::new();
    let mut lists_options = false;
    for line in lines.map(|line| line.split(" #").next().unwrap().trim()) {
        let option = line.strip_prefix("- ").filter(|_| lists_options);
        if let Some(option) = option {
            let option = option.replace("seccomp=images/", &format!("seccomp={}/images/", root().display()));
            flags.extend([
                "--security-opt".into(),
                option.replace("no-new-privileges:", "no-new-privileges="),
            ]);
        }
        lists_options = line == "security_opt:" || option.is_some();
        match line {
            "read_only: true" => flags.push("--read-only".into()),
            "cap_drop: [ALL]" => flags.push("--cap-drop=ALL".into()),
            "pids_limit: 2048" => flags.push("--pids-limit=2048".into()),
            "ulimits: { core: 0 }" => flags.push("--ulimit=core=0".into()),
            "mem_limit: 4g" => flags.push("--memory=4g".into()),
            "memswap_limit: 4g" => flags.push("--memory-swap=4g".into()),
            _ => {}
        }
        if let Some(list) = line.strip_prefix("tmpfs: [").and_then(|rest| rest.strip_suffix(']')) {
            let places = list.split("\", \"").map(|place| place.trim_matches('"'));
            flags.extend(places.map(|place| format!("--tmpfs={place}")));
        }
    }
    assert!(flags.len() >= 14, "docker-compose.yml names all that a strict jail needs: {flags:?}");
    flags
}
