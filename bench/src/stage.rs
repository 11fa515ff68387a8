//! A `claudemesh up` of its own in a temporary directory, and a connection to it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::direct::Recipe;
use anyhow::{Context as _, Result, bail, ensure};
use client::{Announce, Config, Connection, Membership, MeshVault, Reconnect};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wire::peer::hosting::{McpStatus, McpStatusResult, ServiceStatus};

const PATIENCE: Duration = Duration::from_secs(60);

/// What the machine lets `up` do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Grants {
    All,
    /// As in a default container: no jail but the light one can be built.
    NoNamespaces,
}

pub struct Stage {
    binary: PathBuf,
    grants: Grants,
    dir: TempDir,
    up: Option<Child>,
    listen: String,
}

impl Stage {
    /// # Errors
    /// When `up` does not answer in time.
    pub async fn start(binary: &Path) -> Result<Self> {
        Self::start_with(binary, Grants::All).await
    }

    /// # Errors
    /// When `up` does not answer in time.
    pub async fn start_with(binary: &Path, grants: Grants) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("claudemesh-bench-").tempdir()?;
        // A light jail has no view of its own: the uids of services must be able to pass.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let mut stage =
            Self { binary: binary.to_owned(), grants, dir, up: None, listen: "127.0.0.1:0".to_owned() };
        stage.up().await?;
        Ok(stage)
    }

    fn command(&self) -> Command {
        self.dressed(Command::new(&self.binary))
    }

    /// The one that starts the runner, and so decides about its jails.
    fn up_command(&self) -> Result<Command> {
        if self.grants == Grants::All {
            return Ok(self.command());
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(crate::weaker::ROLE).arg(&self.binary);
        Ok(self.dressed(command))
    }

    fn dressed(&self, mut command: Command) -> Command {
        command
            .env("CLAUDEMESH_CONFIG_DIR", self.dir.path().join("config"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts `up` and gives a connection as soon as a hello is answered.
    ///
    /// # Errors
    /// When that takes too long, or `up` ends.
    pub async fn up(&mut self) -> Result<Connection> {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("up.log"))?;
        let mut child = self
            .up_command()?
            .args(["up", "--listen", &self.listen, "--data"])
            .arg(self.dir.path().join("data"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the binary")?;
        let end = Instant::now() + PATIENCE;
        let connection = loop {
            if let Ok(connection) = self.connect().await {
                break connection;
            }
            if let Some(status) = child.try_wait()? {
                bail!("`up` ended: {status}; see {}", self.dir.path().display());
            }
            ensure!(Instant::now() < end, "`up` does not answer");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        self.up = Some(child);
        let url = self.entry()?.broker_url;
        self.listen = url.trim_start_matches("ws://").trim_end_matches("/ws").to_owned();
        Ok(connection)
    }

    fn entry(&self) -> Result<client::MeshEntry> {
        Ok(Config::load(&self.dir.path().join("config"))?.choose(None)?.clone())
    }

    /// # Errors
    /// When the broker is not there.
    pub async fn connect(&self) -> Result<Connection> {
        let membership = Membership::of(&self.entry()?)?;
        Ok(Connection::open(membership, Announce::here("human", "bench"), Reconnect::Never).await?)
    }

    /// How an MCP client starts the proxy of a service, in a session of its own choice.
    pub fn proxy(&self, service: &str, session: &str) -> Recipe {
        let words = ["mcp", "--service", service].map(str::to_owned);
        let config = self.dir.path().join("config").to_string_lossy().into_owned();
        Recipe {
            argv: [self.binary.to_string_lossy().into_owned()].into_iter().chain(words).collect(),
            cwd: self.dir.path().to_owned(),
            env: vec![
                ("CLAUDEMESH_CONFIG_DIR".to_owned(), config),
                ("CLAUDEMESH_SESSION_ID".to_owned(), session.to_owned()),
            ],
        }
    }

    /// The processes that run the echo server here.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn echo_servers(&self) -> Result<usize> {
        let root = self.dir.path().to_string_lossy().into_owned();
        let is_one = |pid: &str| {
            let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = words.split('\0').next().unwrap_or_default();
            program.starts_with(&root) && program.ends_with("/echo")
        };
        let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_str().is_some_and(is_one)).count())
    }

    /// Runs a command of the binary that must work.
    ///
    /// # Errors
    /// When it fails; with what it printed.
    pub async fn run(&self, args: &[&str]) -> Result<()> {
        let output = self.command().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let output = output.wait_with_output().await?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Deploys the native echo server as a bundle with a binary.
    ///
    /// # Errors
    /// When the echo binary is missing or the deploy fails.
    pub async fn deploy_echo(&self, name: &str) -> Result<()> {
        self.deploy_echo_with(name, &[]).await
    }

    /// [`Self::deploy_echo`], with further flags.
    ///
    /// # Errors
    /// As there.
    pub async fn deploy_echo_with(&self, name: &str, flags: &[String]) -> Result<()> {
        let folder = self.dir.path().join("echo");
        if !folder.exists() {
            std::fs::create_dir_all(&folder)?;
            let echo = std::env::current_exe()?.with_file_name("echo");
            std::fs::copy(&echo, folder.join("echo"))
                .with_context(|| format!("{} is missing", echo.display()))?;
            std::fs::write(folder.join("manifest.json"), ECHO_MANIFEST)?;
        }
        let folder = folder.to_string_lossy();
        let mut args = vec!["deploy", name, &*folder];
        args.extend(flags.iter().map(String::as_str));
        self.run(&args).await
    }

    /// # Errors
    /// When there is no such service.
    pub async fn status(&self, connection: &Connection, name: &str) -> Result<ServiceStatus> {
        let answer: McpStatusResult = connection.request(&McpStatus { server_name: name.to_owned() }).await?;
        Ok(answer.service)
    }

    /// The owner's view of the vault, once `up` trusts its own runner.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn vault<'c>(&self, connection: &'c Connection) -> Result<MeshVault<'c>> {
        let folder = self.dir.path().join("config");
        let end = Instant::now() + PATIENCE;
        loop {
            let vault = MeshVault::new(connection, &folder, self.entry()?)?;
            if vault.runners().await?.iter().any(|runner| !runner.granted.is_empty()) {
                return Ok(vault);
            }
            ensure!(Instant::now() < end, "`up` does not trust its runner");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn broker_pid(&self) -> Option<u32> {
        self.up.as_ref().and_then(Child::id)
    }

    /// # Errors
    /// When the broker cannot be killed.
    pub async fn kill_9_broker(&mut self) -> Result<()> {
        let mut up = self.up.take().context("the broker is up")?;
        Ok(up.kill().await?)
    }

    /// Ends `up` as a person would.
    ///
    /// # Errors
    /// When it does not end well.
    pub async fn down(mut self) -> Result<()> {
        self.run(&["down", "--data", &self.dir.path().join("data").to_string_lossy()]).await?;
        let mut up = self.up.take().context("the broker is up")?;
        let status: ExitStatus =
            tokio::time::timeout(PATIENCE, up.wait()).await.context("`up` does not end")??;
        ensure!(status.success(), "`up` ended with {status}");
        Ok(())
    }
}

/// A measurement that failed must not leave a runner and its servers behind.
impl Drop for Stage {
    fn drop(&mut self) {
        if self.up.is_some() {
            let _ = std::process::Command::new(&self.binary)
                .env("CLAUDEMESH_CONFIG_DIR", self.dir.path().join("config"))
                .args(["down", "--data"])
                .arg(self.dir.path().join("data"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

const ECHO_MANIFEST: &str = r#"{
  "manifest_version": "0.3", "name": "echo", "version": "1.0.0", "description": "echo", "author": {"name": "bench"},
  "server": {"type": "binary", "entry_point": "echo", "mcp_config": {"command": "${__dirname}/echo", "args": []}}
}"#;
