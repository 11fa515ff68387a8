//! A private PostgreSQL for tests: one server for each test process, one database for each test.
//!
//! Here: finding the programs, starting the server as a user that is not root, and fresh databases copied from a migrated
//! template. Not here: what is tested.
//! Invariant: the server ends with the test process, however that ends: it is told by the kernel (`PR_SET_PDEATHSIG`, by
//! way of setpriv(1)) when the thread that started it is gone, and that thread lives as long as the process.
//!
//! Without an installed PostgreSQL the tests are skipped with a line that says so; with `CI=true` they fail.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use broker::store::{Store, StoreConfig};
use nix::unistd::{Pid, User, chown, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const PREFIX: &str = "claudemesh-pg-";
const TEMPLATE: &str = "template_claudemesh";
const START: Duration = Duration::from_secs(60);

/// URL of a fresh database with the newest schema. `None`: there is no PostgreSQL here, and it was said.
pub async fn database() -> Option<String> {
    create(TEMPLATE).await
}

/// URL of a fresh database without any table.
pub async fn empty_database() -> Option<String> {
    create("template0").await
}

async fn create(template: &str) -> Option<String> {
    static CREATED: AtomicUsize = AtomicUsize::new(0);
    // One copy at a time: PostgreSQL refuses to copy a template that somebody else is connected to.
    static TURNS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let server = server()?;
    let _turn = TURNS.lock().await;
    let name = format!("t{}", CREATED.fetch_add(1, Ordering::Relaxed));
    server.create(&name, template).await.expect("a fresh database");
    Some(server.url(&name))
}

struct Server {
    dir: PathBuf,
}

/// Starts the server with the first call of the process.
fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let started = SERVER.get_or_init(|| {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || keep(&tell));
        match told.recv_timeout(START * 2).expect("the keeper of the server tells how it went") {
            Ok(dir) => Some(Server { dir }),
            Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no PostgreSQL: {why:#}"),
            Err(why) => {
                eprintln!("SKIPPED on PostgreSQL: {why:#}. `make setup` installs it.");
                None
            }
        }
    });
    started.as_ref()
}

/// The life of the thread that owns the server.
fn keep(tell: &std::sync::mpsc::Sender<anyhow::Result<PathBuf>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        match start().await {
            Err(why) => tell.send(Err(why)).expect("somebody waits"),
            Ok((dir, mut postgres)) => {
                tell.send(Ok(dir)).expect("somebody waits");
                let status = postgres.wait().await;
                panic!("the PostgreSQL of the tests ended by itself: {status:?}");
            }
        }
    });
}

async fn start() -> anyhow::Result<(PathBuf, Child)> {
    let programs = Programs::find()?;
    remove_dead();
    let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
    if let Some(user) = &programs.user {
        chown(&dir, Some(user.uid), Some(user.gid))?;
    }
    let data = dir.join("data");
    let mut initdb = programs.command("initdb", "KILL", &dir);
    initdb.arg("-D").arg(&data).args([
        "-A",
        "trust",
        "-U",
        "postgres",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    ]);
    let made = timeout(START, initdb.output()).await.context("initdb hangs")?;
    let made = made.context("running initdb by way of setpriv")?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    // QUIT: the postmaster ends at once and takes its children along.
    let mut postgres = programs.command("postgres", "QUIT", &dir);
    postgres.arg("-D").arg(&data).arg("-k").arg(&dir);
    // Only a unix socket in our own directory: no port to collide with anybody.
    for setting in [
        "listen_addresses=",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "shared_buffers=32MB",
        "max_connections=300",
    ] {
        postgres.args(["-c", setting]);
    }
    let log = std::fs::File::create(dir.join("log"))?;
    let child = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn()?;
    let server = Server { dir: dir.clone() };
    server.is_ready().await.with_context(|| std::fs::read_to_string(dir.join("log")).unwrap_or_default())?;
    server.create(TEMPLATE, "template0").await?;
    Store::open(StoreConfig { url: server.url(TEMPLATE), max_connections: 1 }).await?.close().await;
    Ok((dir, child))
}

impl Server {
    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.dir.display())
    }

    async fn is_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(why) if Instant::now() > deadline => bail!("not ready: {why}"),
                Err(_) => sleep(Duration::from_millis(25)).await,
            }
        }
    }

    async fn create(&self, name: &str, template: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let statement = format!("CREATE DATABASE {name} TEMPLATE {template}");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }
}

struct Programs {
    bin: PathBuf,
    /// Who runs it, when we are root: PostgreSQL refuses root.
    user: Option<User>,
}

impl Programs {
    fn find() -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        places.extend(versions.map(|version| version.path().join("bin")));
        let has_both = |dir: &&PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
        let bin = places.iter().find(has_both).context("neither PATH nor /usr/lib/postgresql has initdb")?;
        let user = if geteuid().is_root() {
            let users =
                ["postgres", "nobody"].into_iter().filter_map(|name| User::from_name(name).ok().flatten());
            Some(users.into_iter().next().context("no user `postgres` or `nobody` to run it")?)
        } else {
            None
        };
        Ok(Self { bin: bin.clone(), user })
    }

    /// Runs as that user, and gets `signal` when the thread that calls this is gone.
    fn command(&self, program: &str, signal: &str, dir: &Path) -> Command {
        let mut command = std::process::Command::new("setpriv");
        if let Some(user) = &self.user {
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups");
        }
        command.arg(format!("--pdeathsig={signal}")).arg("--").arg(self.bin.join(program));
        // A group of its own: Ctrl-C reaches the tests, and the server ends by the rule above.
        command.current_dir(dir).env("LC_ALL", "C").process_group(0);
        Command::from(command)
    }
}

/// Directories of test processes that are gone.
fn remove_dead() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
        // Our own id means that an earlier process had it.
        let is_dead = |pid| {
            pid == Pid::this().as_raw()
                || nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
        };
        if pid.is_some_and(is_dead) {
            // Another test process may be removing the same one.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
