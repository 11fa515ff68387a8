//! A private container engine: a real `dockerd` with its own directory, containerd, cgroups and socket.
//!
//! Here: [`Engine`], one image of the host's own programs, [`Container`]. Not here: what runs inside, claims.
//! Invariant: [`Engine::end`] leaves no process, mount, cgroup or file of the engine behind, and says so if it can't.
//!
//! The image holds next to nothing: the host's `/usr` is bound into each container, read-only. That takes no download
//! and no minute, and the programs inside are the ones that were tested outside. Containers share the host's network:
//! what is planted on its loopback must be within reach, or a probe that fails would prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::processes;
use crate::world::eventually;

const IMAGE: &str = "claudemesh-test:1";
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Engine {
    dir: TempDir,
    daemon: Child,
    cgroup: String,
}

/// A container that runs, and is removed with its engine.
pub struct Container {
    pub name: String,
    socket: String,
    user: String,
}

/// How a container is started.
pub struct Order<'a> {
    pub name: &'a str,
    pub user: &'a str,
    /// Security options and the like, as `docker run` takes them.
    pub flags: &'a [String],
    /// Bound at the path that it has on the host, to be written.
    pub volume: &'a Path,
    /// Bound read-only at the path that it has on the host.
    pub programs: &'a [PathBuf],
    pub env: &'a [(String, String)],
    pub command: &'a [String],
}

impl Engine {
    /// Why there can be none here, or the engine. Only a missing feature is an answer; what fails otherwise panics.
    ///
    /// # Errors
    /// What is missing.
    pub async fn start() -> Result<Self, String> {
        if !nix::unistd::getuid().is_root() {
            return Err("only root can run a container engine of its own".into());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
        if let Some(missing) = ["dockerd", "docker"].into_iter().find(|program| !has(program)) {
            return Err(format!("no `{missing}`: scripts/setup.sh test installs it"));
        }
        // Not `claudemesh-…`: a runner sweeps control groups of that name which no living runner holds.
        let dir = tempfile::Builder::new().prefix("mesh-docker-").tempdir().unwrap();
        let cgroup = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        // Not the machine's own.
        fs::write(dir.path().join("daemon.json"), "{}").unwrap();
        let mut command = Command::new("dockerd");
        let files = [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")];
        for (flag, name) in files.into_iter().chain([("--config-file", "daemon.json")]) {
            command.arg(flag).arg(dir.path().join(name));
        }
        command
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &format!("/{cgroup}")])
            .args(["--host", &socket_in(dir.path())])
            .env_remove("DOCKER_HOST")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true);
        let daemon = command.spawn().unwrap();
        let mut engine = Self { dir, daemon, cgroup };
        engine.ready().await;
        engine.import().await;
        Ok(engine)
    }

    async fn ready(&mut self) {
        eventually("the container engine answers", async || {
            if let Ok(Some(status)) = self.daemon.try_wait() {
                panic!("dockerd ended: {status}\n{}", self.log());
            }
            let mut asked = docker(&socket_in(self.dir.path()));
            asked.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
            asked.status().await.is_ok_and(|status| status.success()).then_some(())
        })
        .await;
    }

    fn socket(&self) -> String {
        socket_in(self.dir.path())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn import(&self) {
        let tar = self.dir.path().join("image.tar");
        fs::write(&tar, almost_nothing()).unwrap();
        run(docker(&self.socket()).arg("import").arg(&tar).arg(IMAGE)).await;
    }

    /// Starts it and does not wait for anything inside.
    pub async fn run(&self, order: &Order<'_>) -> Container {
        let socket = self.socket();
        let mut command = docker(&socket);
        command.args(["run", "--detach", "--network", "host", "--name", order.name, "--user", order.user]);
        command.args(order.flags);
        let system = ["/usr", "/etc/ssl"].map(PathBuf::from);
        for path in system.iter().chain(order.programs).filter(|path| path.exists()) {
            command.arg("--volume").arg(format!("{0}:{0}:ro", path.display()));
        }
        command.arg("--volume").arg(format!("{0}:{0}", order.volume.display()));
        for (name, value) in order.env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        run(command.arg("--workdir").arg(order.volume).arg(IMAGE).args(order.command)).await;
        Container { name: order.name.into(), socket, user: order.user.into() }
    }

    /// Ends the engine with all that it runs. Panics when something of it is left.
    pub async fn end(mut self) {
        if let Some(pid) = self.daemon.id() {
            processes::terminate(pid.cast_signed());
        }
        let ended = timeout(PATIENCE, self.daemon.wait()).await;
        let left = processes::of(self.dir.path());
        left.iter().for_each(|found| processes::kill_9(found.pid));
        unmount_below(self.dir.path());
        let groups = remove_cgroups(&self.cgroup);
        assert!(ended.is_ok(), "dockerd does not end: {}", self.log());
        assert!(left.is_empty(), "left behind by the engine: {left:#?}");
        assert!(groups.is_empty(), "cgroups left behind by the engine: {groups:?}");
    }
}

/// A panicking test must not leave an engine behind, either.
impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.daemon.start_kill();
        processes::of(self.dir.path()).iter().for_each(|found| processes::kill_9(found.pid));
        unmount_below(self.dir.path());
        remove_cgroups(&self.cgroup);
    }
}

impl Container {
    /// A command that runs inside, as the container's user, with its stdin held open.
    pub fn exec(&self, env: &[(String, String)]) -> Command {
        let mut command = docker(&self.socket);
        command.args(["exec", "--interactive", "--user", &self.user]);
        for (name, value) in env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        command.arg(&self.name);
        command
    }

    /// What the first process inside has printed.
    pub async fn logs(&self) -> String {
        let output = docker(&self.socket).args(["logs", &self.name]).output().await.unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    pub async fn is_running(&self) -> bool {
        let format = "{{.State.Running}}";
        run(docker(&self.socket).args(["inspect", "--format", format, &self.name])).await.trim() == "true"
    }

    /// Ends it as an operator would, then removes it.
    pub async fn stop(&self) {
        run(docker(&self.socket).args(["stop", "--time", "30", &self.name])).await;
        run(docker(&self.socket).args(["rm", "--force", &self.name])).await;
    }
}

fn socket_in(dir: &Path) -> String {
    format!("unix://{}", dir.join("docker.sock").display())
}

fn docker(socket: &str) -> Command {
    let mut command = Command::new("docker");
    command
        .args(["--host", socket])
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .stdin(Stdio::null());
    command.kill_on_drop(true);
    command
}

/// Runs a command that must work, and gives what it printed.
async fn run(command: &mut Command) -> String {
    let output = timeout(PATIENCE, command.output()).await.expect("docker answers").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {said}", command.as_std());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A root file system of empty directories and links into `/usr`, as Debian lays it out.
fn almost_nothing() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entry = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, name, content).unwrap();
    };
    for dir in
        ["dev", "etc", "etc/ssl", "home", "opt", "proc", "root", "run", "srv", "sys", "usr", "var", "var/lib"]
    {
        entry(dir, tar::EntryType::Directory, 0o755, b"", "");
    }
    entry("tmp", tar::EntryType::Directory, 0o1777, b"", "");
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        if Path::new("/").join(name).is_symlink() {
            entry(name, tar::EntryType::Symlink, 0o777, b"", &format!("usr/{name}"));
        }
    }
    let passwd =
        b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    entry("etc/passwd", tar::EntryType::Regular, 0o644, passwd, "");
    entry("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nnode:x:1000:\nnogroup:x:65534:\n", "");
    entry(
        "etc/nsswitch.conf",
        tar::EntryType::Regular,
        0o644,
        b"passwd: files\ngroup: files\nhosts: files dns\n",
        "",
    );
    if let Ok(cache) = fs::read("/etc/ld.so.cache") {
        entry("etc/ld.so.cache", tar::EntryType::Regular, 0o644, &cache, "");
    }
    tar.into_inner().unwrap()
}

/// The engine keeps a network namespace mounted in its directory, even after it ended.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for place in places.filter(|place| place.starts_with(dir)).collect::<Vec<_>>().into_iter().rev() {
        let _ = umount2(place, MntFlags::MNT_DETACH);
    }
}

/// Removes the engine's groups in every hierarchy; gives those that would not go.
fn remove_cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups =
        hierarchies.chain([root.to_owned()]).map(|path| path.join(name)).filter(|path| path.is_dir());
    groups.filter(|group| !remove_group(group)).collect()
}

fn remove_group(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok()
}
