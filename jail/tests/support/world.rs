//! The world around a hostile server: what it would like to reach, and a strict jail in the midst of it.
//!
//! Here: directories, secrets, listeners, a victim; helpers that run as another user. Not here: claims.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jail::{Isolation, JailSpec, LightView, View};
use tempfile::TempDir;

use super::{Run, helper, start_with, view};

/// What a hostile server would like to reach, and the directory that holds its code.
pub struct World {
    pub dir: TempDir,
    /// The service whose world it is.
    pub uid: Option<u32>,
    pub victim: Child,
    port: TcpListener,
    _abstract: UnixListener,
    _socket: UnixListener,
}

pub fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a world");
}

/// A process of this user, or of `user`, with a secret in its environment.
fn victim(user: Option<u32>) -> Child {
    let mut command = match user {
        None => Command::new("/bin/sleep"),
        Some(user) => {
            let mut command = Command::new("/usr/bin/setpriv");
            let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()];
            command.args(ids).arg("/bin/sleep");
            command
        }
    };
    command.arg("1000").env("SECRET_OF_THE_VICTIM", "canary").spawn().expect("a world")
}

impl World {
    /// With a victim of the same uid: what it is kept from, nothing but the jail keeps it from.
    pub fn of(user: Option<u32>) -> Self {
        let mut world = Self::new();
        let first = std::mem::replace(&mut world.victim, victim(user));
        end(first);
        world
    }

    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a world");
        open_to_all(dir.path(), 0o777);
        for sub in ["code", "sibling", "data"] {
            fs::create_dir(dir.path().join(sub)).expect("a world");
            open_to_all(&dir.path().join(sub), 0o777);
        }
        for (name, text) in [
            ("probe.py", include_str!("../hostile/probe.py")),
            ("probe.js", include_str!("../hostile/probe.js")),
        ] {
            fs::write(dir.path().join("code").join(name), text).expect("a world");
        }
        for secret in ["secret", "sibling/secret"] {
            fs::write(dir.path().join(secret), "canary").expect("a world");
            open_to_all(&dir.path().join(secret), 0o644);
        }
        let name =
            SocketAddr::from_abstract_name(dir.path().as_os_str().as_encoded_bytes()).expect("a world");
        let socket = UnixListener::bind(dir.path().join("socket")).expect("a world");
        open_to_all(&dir.path().join("socket"), 0o777);
        Self {
            uid: view().uid,
            victim: victim(None),
            port: TcpListener::bind("127.0.0.1:0").expect("a world"),
            _abstract: UnixListener::bind_addr(&name).expect("a world"),
            _socket: socket,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Environment and directories for a probe.
    pub fn furnish(&self, spec: &mut JailSpec) {
        let text = |name: &str| self.path(name).to_str().expect("a world").to_owned();
        let port = self.port.local_addr().expect("a world").port().to_string();
        let mut env = vec![
            ("CODE".to_owned(), text("code")),
            ("SECRET".into(), text("secret")),
            ("SIBLING".into(), text("sibling/secret")),
            ("SOCKET".into(), text("socket")),
            ("ABSTRACT".into(), self.dir.path().to_str().expect("a world").into()),
            ("PORT".into(), port),
            ("VICTIM".into(), self.victim.id().to_string()),
        ];
        for kind in ["pid", "mnt", "ipc", "uts", "user", "cgroup", "net"] {
            let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a world");
            env.push((format!("NS_{kind}"), own.to_str().expect("a world").into()));
        }
        spec.env.extend(env);
        spec.cwd = self.path("code");
        spec.home = self.path("data").join("home");
        spec.tmp = "/tmp".into();
    }
}

impl World {
    /// The output of a probe that nothing holds: as this user, or as nobody when that is root.
    pub fn run_plainly(&self, program: &str, file: &str) -> String {
        let (mut spec, _) = super::spec(Vec::new(), self.dir.path());
        self.furnish(&mut spec);
        let home = self.path("plain-home");
        fs::create_dir(&home).expect("a world");
        open_to_all(&home, 0o777);
        let file = self.path("code").join(file);
        let mut command = Command::new("/usr/bin/setpriv");
        if nix::unistd::getuid().is_root() {
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        }
        command.args(["--", program]).arg(file).env_clear().envs(spec.env.clone());
        command.env("HOME", &home).env("TMPDIR", &home).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = command.spawn().and_then(|child| child.wait_with_output()).expect("a probe");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// Starts `argv` in a light jail: as this process's user with a uid for the service, or as `user`.
pub fn start_light(
    world: &World,
    argv: Vec<String>,
    user: Option<u32>,
    change: impl FnOnce(&mut JailSpec),
) -> Run {
    let exe = user.map_or_else(helper, |user| helper_as(world, user));
    start_with(&exe, argv, |spec| {
        world.furnish(spec);
        spec.tmp = world.path("data").join("tmp");
        let uid = world.uid.filter(|_| user.is_none());
        spec.isolation = Isolation::Light(LightView { uid, ..LightView::default() });
        change(spec);
    })
}

fn end(mut child: Child) {
    child.kill().expect("a world");
    child.wait().expect("a world");
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// By another process: a file that this one has written may still be open for writing in what another test is just forking,
/// and then can't be executed.
pub fn install(from: &Path, to: &Path) {
    let mut copying = Command::new("/bin/cp").arg(from).arg(to).spawn().expect("a world");
    assert!(copying.wait().expect("a world").success());
}

pub fn install_script(path: &Path, line: &str) {
    let text = path.with_extension("text");
    fs::write(&text, format!("#!/bin/sh\n{line}\n")).expect("a world");
    install(&text, path);
    open_to_all(path, 0o755);
}

/// A helper that first becomes this user; only root can.
pub fn helper_as(world: &World, user: u32) -> PathBuf {
    let (copy, wrapper) = (world.path("helper"), world.path("wrapper"));
    install(&helper(), &copy);
    let become_user = format!("/usr/bin/setpriv --reuid={user} --regid={user} --clear-groups");
    install_script(&wrapper, &format!("exec {become_user} {} \"$@\"", copy.display()));
    wrapper
}

/// A helper on a machine that refuses one system call.
pub fn helper_without(world: &World, call: i64) -> PathBuf {
    let (wrapper, filter) = (world.path("wrapper"), world.path("code/deny.py"));
    fs::write(&filter, include_str!("../hostile/deny.py")).expect("a world");
    let line = format!("exec /usr/bin/python3 {} {call} {} \"$@\"", filter.display(), helper().display());
    install_script(&wrapper, &line);
    wrapper
}

pub fn system(program: &str) -> Option<String> {
    let path = format!("/usr/bin/{program}");
    Path::new(&path).exists().then_some(path)
}

/// Starts `argv` strictly: as this process's user, or as `user`.
pub fn start_strict(
    world: &World,
    argv: Vec<String>,
    user: Option<u32>,
    change: impl FnOnce(&mut JailSpec),
) -> Run {
    let exe = user.map_or_else(helper, |user| helper_as(world, user));
    start_with(&exe, argv, |spec| {
        world.furnish(spec);
        let uid = world.uid.filter(|_| user.is_none());
        spec.isolation = Isolation::Strict(View { uid, ..View::default() });
        change(spec);
    })
}
