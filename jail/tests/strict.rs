//! That a hostile server in a strict jail gets nothing, and an honest one what it needs.
//!
//! Here: the probes of `hostile/`, run as root and as two ordinary users, and in a light jail to show that they find
//! something where there is something to find; what only shows from outside. Not here: the claims that both isolations
//! share (see `construction.rs`, `teardown.rs`, `leaks.rs`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use jail::{Ending, Isolation, JailSpec, Network, Report, Step, View};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::*;
use tempfile::TempDir;

/// What a hostile server would like to reach, and the directory that holds its code.
struct World {
    dir: TempDir,
    /// The service whose world it is.
    uid: Option<u32>,
    victim: Child,
    port: TcpListener,
    _abstract: UnixListener,
    _socket: UnixListener,
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path(), 0o777);
        for sub in ["code", "sibling", "data"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
            open_to_all(&dir.path().join(sub), 0o777);
        }
        for (name, text) in
            [("probe.py", include_str!("hostile/probe.py")), ("probe.js", include_str!("hostile/probe.js"))]
        {
            fs::write(dir.path().join("code").join(name), text).unwrap();
        }
        for secret in ["secret", "sibling/secret"] {
            fs::write(dir.path().join(secret), "canary").unwrap();
            open_to_all(&dir.path().join(secret), 0o644);
        }
        let name = SocketAddr::from_abstract_name(dir.path().as_os_str().as_encoded_bytes()).unwrap();
        let socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        open_to_all(&dir.path().join("socket"), 0o777);
        let victim =
            Command::new("/bin/sleep").arg("1000").env("SECRET_OF_THE_VICTIM", "canary").spawn().unwrap();
        Self {
            uid: view().uid,
            victim,
            port: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&name).unwrap(),
            _socket: socket,
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Environment and directories for a probe.
    fn furnish(&self, spec: &mut JailSpec) {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let port = self.port.local_addr().unwrap().port().to_string();
        let mut env = vec![
            ("CODE".to_owned(), text("code")),
            ("SECRET".into(), text("secret")),
            ("SIBLING".into(), text("sibling/secret")),
            ("SOCKET".into(), text("socket")),
            ("ABSTRACT".into(), self.dir.path().to_str().unwrap().into()),
            ("PORT".into(), port),
            ("VICTIM".into(), self.victim.id().to_string()),
        ];
        for kind in ["pid", "mnt", "ipc", "uts", "user", "cgroup", "net"] {
            let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            env.push((format!("NS_{kind}"), own.to_str().unwrap().into()));
        }
        spec.env.extend(env);
        spec.cwd = self.path("code");
        spec.home = self.path("data").join("home");
        spec.tmp = "/tmp".into();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// A helper that first becomes this user; only root can.
fn helper_as(world: &World, user: u32) -> PathBuf {
    let (copy, wrapper) = (world.path("helper"), world.path("wrapper"));
    fs::copy(helper(), &copy).unwrap();
    let become_user = format!("/usr/bin/setpriv --reuid={user} --regid={user} --clear-groups");
    fs::write(&wrapper, format!("#!/bin/sh\nexec {become_user} {} \"$@\"\n", copy.display())).unwrap();
    open_to_all(&wrapper, 0o755);
    wrapper
}

fn system(program: &str) -> Option<String> {
    let path = format!("/usr/bin/{program}");
    Path::new(&path).exists().then_some(path)
}

/// Starts `argv` strictly: as this process's user, or as `user`.
fn start_strict(
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

/// Verdict and detail by the probe's name.
type Findings = BTreeMap<String, (String, String)>;

fn findings(run: &mut Run) -> Findings {
    let output = run.output();
    let found: Findings = output
        .lines()
        .filter_map(|line| serde_json::from_str::<(String, String, String)>(line).ok())
        .map(|(name, verdict, detail)| (name, (verdict, detail)))
        .collect();
    let reports = run.rest();
    assert!(found.contains_key("end"), "the probe did not come to its end: {reports:?}\n{output}");
    found
}

fn of_verdict<'a>(found: &'a Findings, wanted: &str) -> Vec<(&'a String, &'a String)> {
    found
        .iter()
        .filter(|(_, (verdict, _))| verdict == wanted)
        .map(|(name, (_, detail))| (name, detail))
        .collect()
}

fn assert_harmless(found: &Findings, at_least: usize) {
    assert_eq!(of_verdict(found, "LEAK"), [], "leaks");
    assert_eq!(of_verdict(found, "BROKEN"), [], "broken for honest servers");
    assert!(found.len() >= at_least, "{} probes only", found.len());
}

fn probe(program: &str, file: &str, user: Option<u32>, at_least: usize) {
    let Some(program) = system(program) else { return };
    if user.is_some() && !nix::unistd::getuid().is_root() {
        return; // Only root can become somebody else; the caller has just shown the same for itself.
    }
    let world = World::new();
    let file = world.path("code").join(file).to_str().unwrap().to_owned();
    let mut run = start_strict(&world, vec![program, file], user, |_| {});
    assert_harmless(&findings(&mut run), at_least);
    assert_eq!(survivors(&run.mark), [0; 0]);
}

#[test]
fn hostile_python_gets_nothing_from_this_user() {
    probe("python3", "probe.py", None, 150);
}

#[test]
fn hostile_python_gets_nothing_from_user_1000() {
    probe("python3", "probe.py", Some(1000), 150);
}

#[test]
fn hostile_python_gets_nothing_from_nobody() {
    probe("python3", "probe.py", Some(65534), 150);
}

#[test]
fn hostile_node_gets_nothing_and_honest_node_runs() {
    probe("node", "probe.js", None, 20);
}

#[test]
fn hostile_node_gets_nothing_from_user_1000() {
    probe("node", "probe.js", Some(1000), 20);
}

/// What only shows from outside, with a server that is asked by lines on its stdin.
#[test]
fn kill_9_of_the_outer_helper_leaves_nothing_for_root_and_for_a_user() {
    for user in [None, Some(1000)] {
        if user.is_some() && !nix::unistd::getuid().is_root() {
            continue;
        }
        let world = World::new();
        let script = "trap '' TERM HUP INT; echo up; \
            (setsid sh -c 'echo up; (setsid sh -c \"echo up; exec sleep 1000\" &) ; sleep 1000; :' &) ; read l";
        let mut run = start_strict(&world, sh(script), user, |_| {});
        let server = run.started();
        assert_eq!([run.line(), run.line(), run.line()], ["up", "up", "up"]);
        let before = survivors(&run.mark);
        assert!(
            before.len() >= 3 && before.contains(&(server as i32)),
            "{server} is the server's own pid: {before:?}"
        );
        kill(Pid::from_raw(run.jailed().helper_pid() as i32), Signal::SIGKILL).unwrap();
        assert_eq!(run.output(), "", "the end of the stream is the end of its last holder");
        assert_eq!(survivors(&run.mark), [0; 0]);
    }
}

#[test]
fn what_a_server_writes_at_home_is_there_for_the_next_one_and_belongs_to_it() {
    let world = World::new();
    start_strict(&world, sh("echo kept > ~/file; echo lost > /tmp/file"), None, |_| {}).gone();
    let mut run = start_strict(&world, sh("cat ~/file; cat /tmp/file"), None, |_| {});
    let output = run.output();
    run.gone();
    assert!(output.starts_with("kept\n") && output.contains("/tmp/file: No such file"), "{output}");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(run.spec.home.join("file")).unwrap());
    assert_eq!(owner, world.uid.unwrap_or(nix::unistd::getuid().as_raw()));
}

/// The failure, after checking that no server was reported.
fn refusal(mut run: Run) -> (Step, String) {
    let reports: Vec<_> =
        run.rest().into_iter().filter(|report| !matches!(report, Report::Step { .. })).collect();
    let [Report::Failed { step, message, .. }, Report::Gone] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!(survivors(&run.mark), [0; 0]);
    assert!(!run.jailed().wait(LIMIT).unwrap().unwrap().success());
    (*step, message.clone())
}

#[test]
fn a_view_that_can_not_be_built_starts_nothing_and_names_the_step() {
    let world = World::new();
    std::os::unix::fs::symlink(world.path("code"), world.path("link")).unwrap();
    type Change = fn(&World, &mut JailSpec);
    let cases: [(Change, Step, &str); 5] = [
        (|w, s| strict(s).read_only.push(w.path("nothing")), Step::Sources, "nothing"),
        (|w, s| strict(s).read_only.push(w.path("link")), Step::Sources, "symbolic link"),
        (|w, s| strict(s).read_only.push(w.path("link/sub")), Step::Sources, "symbolic link"),
        (|w, s| s.home = w.path("secret"), Step::Directories, "secret"),
        (|_, s| strict(s).tmpfs_bytes = 1, Step::Exec, "nowhere"),
    ];
    for (change, step, word) in cases {
        let run = start_strict(&world, vec!["/nowhere".into()], None, |spec| change(&world, spec));
        let (failed, message) = refusal(run);
        assert_eq!(failed, step, "{message}");
        assert!(message.contains(word), "{message}");
    }
}

/// A helper on a machine that refuses one system call.
fn helper_without(world: &World, call: i64) -> PathBuf {
    let (wrapper, filter) = (world.path("wrapper"), world.path("code/deny.py"));
    fs::write(&filter, include_str!("hostile/deny.py")).unwrap();
    let line = format!("exec /usr/bin/python3 {} {call} {} \"$@\"", filter.display(), helper().display());
    fs::write(&wrapper, format!("#!/bin/sh\n{line}\n")).unwrap();
    open_to_all(&wrapper, 0o755);
    wrapper
}

#[test]
fn whatever_the_machine_refuses_nothing_starts_with_less() {
    use nix::libc;
    if system("python3").is_none() {
        return;
    }
    let is_root = nix::unistd::getuid().is_root();
    let cases = [
        (libc::SYS_clone, Step::Namespaces),
        (libc::SYS_openat2, Step::Sources),
        (libc::SYS_setresuid, if is_root { Step::Identity } else { Step::Exec }),
        (libc::SYS_sethostname, Step::Network),
        (libc::SYS_mount, Step::Root),
        (libc::SYS_open_tree, Step::System),
        (libc::SYS_mount_setattr, Step::System),
        (libc::SYS_move_mount, Step::System),
        (libc::SYS_pivot_root, Step::Pivot),
        (libc::SYS_umount2, Step::Pivot),
        (libc::SYS_capset, Step::Capabilities),
        (libc::SYS_prlimit64, Step::Limits),
        (libc::SYS_landlock_create_ruleset, Step::Landlock),
        (libc::SYS_landlock_add_rule, Step::Landlock),
        (libc::SYS_landlock_restrict_self, Step::Landlock),
        (libc::SYS_seccomp, Step::Seccomp),
    ];
    for (call, step) in cases {
        let world = World::new();
        let run = start_with(&helper_without(&world, call), vec!["/nowhere".into()], |spec| {
            world.furnish(spec);
            spec.isolation = Isolation::Strict(View { uid: world.uid, ..View::default() });
        });
        let (failed, message) = refusal(run);
        assert_eq!(failed, step, "without {call}: {message}");
    }
}

#[test]
fn without_user_namespaces_nothing_starts() {
    if system("python3").is_none() {
        return;
    }
    let world = World::new();
    let (wrapper, script, copy) =
        (world.path("wrapper"), world.path("code/no_namespaces.py"), world.path("helper"));
    fs::write(&script, include_str!("hostile/no_namespaces.py")).unwrap();
    fs::copy(helper(), &copy).unwrap();
    let line = format!("exec /usr/bin/python3 {} {} \"$@\"", script.display(), copy.display());
    fs::write(&wrapper, format!("#!/bin/sh\n{line}\n")).unwrap();
    open_to_all(&wrapper, 0o755);
    let run = start_with(&wrapper, sh(":"), |spec| {
        world.furnish(spec);
        spec.isolation = Isolation::Strict(View::default());
    });
    let (step, message) = refusal(run);
    assert_eq!(step, Step::Namespaces, "{message}");
    assert!(message.contains("ENOSPC"), "{message}");
}

#[test]
fn root_must_give_a_uid_and_a_user_can_give_none_but_its_own() {
    let world = World::new();
    let is_root = nix::unistd::getuid().is_root();
    let wrong = if is_root { None } else { Some(12345) };
    let run = start_strict(&world, sh(":"), None, |spec| strict(spec).uid = wrong);
    assert_eq!(refusal(run).0, Step::Identity);
    if is_root {
        let other = start_strict(&world, sh(":"), Some(1000), |spec| strict(spec).uid = Some(1001));
        assert!(refusal(other).1.contains("only root"));
    }
}

#[test]
fn a_home_of_another_service_is_refused() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let world = World::new();
    start_strict(&world, sh(":"), None, |_| {}).gone();
    let (step, message) = refusal(start_strict(&world, sh(":"), None, |spec| strict(spec).uid = view().uid));
    assert_eq!(step, Step::Directories);
    assert!(message.contains("no directory of uid"), "{message}");
}

#[test]
fn the_hosts_network_is_there_when_it_is_asked_for_and_only_then() {
    let Some(python) = system("python3") else { return };
    let world = World::new();
    let script =
        "import os, socket; socket.create_connection(('127.0.0.1', int(os.environ['PORT']))); print('in')";
    let argv = vec![python, "-c".into(), script.into()];
    let mut run = start_strict(&world, argv.clone(), None, |spec| strict(spec).network = Network::Host);
    assert_eq!(run.output(), "in\n");
    run.gone();
    let mut run = start_strict(&world, argv, None, |_| {});
    assert!(run.output().contains("ConnectionRefused"));
    assert_eq!(run.gone().ending, Ending::Code(1));
}

#[test]
fn the_private_tmp_has_its_size_and_the_process_limit_is_the_services_own() {
    let world = World::new();
    let script = "head -c 3000000 /dev/zero > /tmp/x; stat -c %s /tmp/x; i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done; echo more";
    let mut run =
        start_strict(&world, sh(script), Some(1000).filter(|_| nix::unistd::getuid().is_root()), |spec| {
            strict(spec).tmpfs_bytes = 1 << 20;
            spec.limits.max_processes = Some(10);
        });
    let output = run.output();
    run.gone();
    assert!(output.contains("No space left") && output.contains("\n1048576\n"), "{output}");
    assert!(output.contains("fork") && !output.contains("more"), "{output}");
}

#[test]
fn a_hundred_strict_jails_leave_the_hosts_mounts_namespaces_and_directories_as_they_were() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let namespaces = || {
        let all = fs::read_dir("/proc").unwrap();
        let links = all.filter_map(|entry| fs::read_link(entry.ok()?.path().join("ns/mnt")).ok());
        links.collect::<std::collections::BTreeSet<_>>()
    };
    let mounts_before = mounts();
    let mut own = Vec::new();
    for turn in 0..100 {
        let world = World::new();
        let script =
            if turn % 2 == 0 { "(setsid sleep 1000 &) ; echo ready; read l" } else { "echo ready; exit 3" };
        let mut run = start_strict(&world, sh(script), None, |_| {});
        let server = run.started();
        own.extend(fs::read_link(format!("/proc/{server}/ns/mnt")).ok());
        assert_eq!(run.line(), "ready");
        if turn % 2 == 0 {
            run.jailed().kill().unwrap();
        }
        run.gone();
        let left: Vec<_> =
            fs::read_dir(world.path("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["home"], "only what the spec names");
    }
    assert_eq!(mounts(), mounts_before);
    let now = namespaces();
    assert!(own.len() >= 50 && own.iter().all(|namespace| !now.contains(namespace)));
}

#[test]
fn the_probes_find_what_a_light_jail_leaves_open() {
    let Some(python) = system("python3") else { return };
    let world = World::new();
    let file = world.path("code/probe.py").to_str().unwrap().to_owned();
    // Root would really unmount `/proc`; an ordinary user only reads what it should not.
    let is_root = nix::unistd::getuid().is_root();
    let exe = if is_root { helper_as(&world, 65534) } else { helper() };
    let mut run = start_with(&exe, vec![python, file], |spec| {
        world.furnish(spec);
        spec.isolation = Isolation::Light;
    });
    let found = findings(&mut run);
    let leaks = of_verdict(&found, "LEAK");
    assert!(leaks.len() > 60, "a probe that never finds anything proves nothing: {} {leaks:?}", leaks.len());
}
