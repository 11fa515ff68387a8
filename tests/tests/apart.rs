//! The roles apart: `claudemesh broker` on PostgreSQL, `claudemesh runner` on TCP with a token.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use tests::{Person, eventually, fixture, pg, processes};
use tokio::process::{Child, Command};

/// Both roles as two processes, and the owner that `--bootstrap` makes.
struct Apart {
    dir: tempfile::TempDir,
    owner: Person,
    database: String,
    broker_addr: String,
    runner_addr: String,
}

impl Apart {
    fn new(database: String) -> Self {
        let dir = tempfile::Builder::new().prefix("claudemesh-apart-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("home")).unwrap();
        std::fs::write(at("runner.token"), "a-token-of-this-test\n").unwrap();
        std::fs::write(at("broker.key"), "ab".repeat(32)).unwrap();
        let owner = Person { name: "owner".into(), config: at("owner"), home: at("home") };
        Self { owner, database, broker_addr: free_address(), runner_addr: free_address(), dir }
    }

    fn start(&self, command: &mut Command) -> Child {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn broker(&self) -> Child {
        let runner = format!("http://{}", self.runner_addr);
        let args = ["broker", "--listen", &self.broker_addr, "--runner", &runner, "--bootstrap", "acme"];
        let mut command = self.owner.command(args);
        command
            .env("DATABASE_URL", &self.database)
            .arg("--runner-token-file")
            .arg(self.dir.path().join("runner.token"))
            .arg("--key-file")
            .arg(self.dir.path().join("broker.key"));
        self.start(&mut command)
    }

    fn runner(&self, token: &Path) -> Child {
        let mut command = self.owner.command(["runner", "--listen", &self.runner_addr, "--data"]);
        command.arg(self.dir.path().join("runner")).arg("--token-file").arg(token);
        self.start(&mut command)
    }

    async fn until_runner_is(&self, connected: bool) {
        let url = format!("http://{}/health/ready", self.broker_addr);
        eventually("the broker sees its runner as it is", async || {
            let ready: serde_json::Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            (ready["runner"]["connected"] == connected).then_some(())
        })
        .await;
    }
}

/// Free a moment ago; both roles must know each other's address before they run.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn end(mut child: Child) {
    processes::terminate(child.id().expect("it runs").cast_signed());
    let status = tokio::time::timeout(tests::peer::PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "ended in order: {status}");
}

#[tokio::test]
async fn broker_and_runner_work_as_two_processes_on_postgresql_and_tcp() {
    let Some(database) = pg::empty_database().await else { return };
    client::install_tls();
    let apart = Apart::new(database);
    let (mut broker, runner) = (apart.broker(), apart.runner(&apart.dir.path().join("runner.token")));
    apart.until_runner_is(true).await;

    let folder = fixture::python_folder(&apart.dir.path().join("folder"));
    apart.owner.ok(["deploy", "apart", folder.to_str().unwrap()]).await;
    let pid = apart.owner.peer().await.pid_of("apart").await;

    broker.kill().await.unwrap();
    let broker = apart.broker();
    apart.until_runner_is(true).await;
    let again = apart.owner.peer().await.pid_of("apart").await;
    assert_eq!(again, pid, "a broker that comes back finds the service running");

    end(runner).await;
    let wrong = apart.dir.path().join("wrong.token");
    std::fs::write(&wrong, "another-token\n").unwrap();
    let stranger = apart.runner(&wrong);
    let health = format!("http://{}/health", apart.runner_addr);
    eventually("the runner with another token is up", async || {
        (reqwest::get(&health).await.ok()?.status() == 401).then_some(())
    })
    .await;
    apart.until_runner_is(false).await;
    end(stranger).await;
    let runner = apart.runner(&apart.dir.path().join("runner.token"));
    apart.until_runner_is(true).await;
    let peer = apart.owner.peer().await;
    assert_ne!(peer.pid_of("apart").await, pid, "a new runner, a new process");

    end(broker).await;
    end(runner).await;
    let left = processes::of(apart.dir.path());
    assert!(left.is_empty(), "left behind: {left:#?}");
}
