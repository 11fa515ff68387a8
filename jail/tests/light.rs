//! What a hostile server gets in a light jail, and what it does not.
//!
//! Here: the probes of `hostile/`, run as root and as an ordinary user, against the list of what a light jail leaves open
//! and of what it costs honest servers. Not here: the claims that both isolations share (see `construction.rs`,
//! `teardown.rs`, `leaks.rs`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use jail::{Isolation, JailSpec, LightView, Report, Step};
use support::findings::*;
use support::world::*;
use support::*;

fn probed(program: &str, file: &str, user: Option<u32>) -> Option<Findings> {
    let program = system(program).filter(|_| cfg!(target_arch = "x86_64"))?;
    if user.is_some() && !nix::unistd::getuid().is_root() {
        return None; // Only root can become somebody else.
    }
    let world = World::of(user);
    let file = world.path("code").join(file).to_str().unwrap().to_owned();
    let mut run = start_light(&world, vec![program, file], user, |_| {});
    let found = findings(&mut run);
    assert_eq!(survivors(&run.mark), [0; 0]);
    Some(found)
}

/// What there is to see without a view of one's own: names of processes, of files and of mounts, the kernel's public
/// figures, the host's name and routes. None of it is the content of a file outside, or a way to another process.
const LEFT_OPEN: [&str; 15] = [
    "climb out by ..",
    "mounts that obey setuid programs",
    "other processes in /proc",
    "read /proc/config.gz",
    "read /proc/kallsyms",
    "routes",
    "the command line of a stranger",
    "the host's cgroup namespace",
    "the host's ipc namespace",
    "the host's mnt namespace",
    "the host's net namespace",
    "the host's pid namespace",
    "the host's user namespace",
    "the host's uts namespace",
    "writable mounts",
];
/// Besides, where there is no uid of its own: the modes of that uid's files, its keys by name, and a bounding set that only
/// root can empty.
const OF_A_SHARED_UID: [&str; 3] = ["capabilities in CapBnd", "make the code writable", "read /proc/keys"];
/// What it costs an honest server: no `/tmp` but `TMPDIR`, no socket that listens, no shared memory by name (which the
/// locks of `multiprocessing` are made of), no entry of its own in `/etc/passwd`.
const NOT_THERE: [&str; 5] =
    ["/tmp", "its own loopback by name", "its own name", "its own path socket", "multiprocessing"];

/// Not every machine has every one of them; but none is open that is not listed.
fn assert_listed(found: &Findings, verdict: &str, listed: &[&str]) {
    let others: Vec<_> =
        of_verdict(found, verdict).into_iter().filter(|(name, _)| !listed.contains(&name.as_str())).collect();
    assert_eq!(others, [], "{verdict}");
}

#[test]
fn hostile_python_gets_what_is_listed_and_nothing_else() {
    let Some(found) = probed("python3", "probe.py", None) else { return };
    let is_root = nix::unistd::getuid().is_root();
    let shared: &[&str] = if is_root { &[] } else { &OF_A_SHARED_UID };
    assert_listed(&found, "LEAK", &[&LEFT_OPEN, shared].concat());
    assert_listed(&found, "BROKEN", &NOT_THERE);
    assert!(found.len() >= 150, "{} probes only", found.len());
}

#[test]
fn hostile_python_with_the_runners_uid_gets_what_is_listed_and_nothing_else() {
    let Some(found) = probed("python3", "probe.py", Some(1000)) else { return };
    assert_listed(&found, "LEAK", &[&LEFT_OPEN[..], &OF_A_SHARED_UID].concat());
    assert_listed(&found, "BROKEN", &NOT_THERE);
    assert!(found.len() >= 150, "{} probes only", found.len());
}

#[test]
fn hostile_node_gets_what_is_listed_and_honest_node_runs() {
    for user in [None, Some(1000)] {
        let Some(found) = probed("node", "probe.js", user) else { continue };
        assert_listed(&found, "LEAK", &["node: the host's name"]);
        assert_listed(&found, "BROKEN", &["node: its own server and fetch"]);
        assert!(found.len() >= 20, "{} probes only", found.len());
    }
}

/// A server that prints what Python finds for each expression; an error by its name.
fn asked(world: &World, user: Option<u32>, port: Option<u16>, questions: &[&str]) -> Vec<String> {
    let script = "import ctypes, errno, os, resource, signal, socket, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        def call(*args):\n\
        \x20   if libc.syscall(*[ctypes.c_long(a) for a in args]) < 0: raise OSError(ctypes.get_errno(), '')\n\
        \x20   return 'done'\n\
        def connect(family, *address):\n\
        \x20   with socket.socket(family) as s: s.connect(address if len(address) > 1 else address[0]); return 'in'\n\
        for question in sys.argv[1:]:\n\
        \x20   try: print(eval(question))\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])\n";
    let mut argv = vec![python(), "-c".into(), script.into()];
    argv.extend(questions.iter().map(|question| (*question).to_owned()));
    let mut run = start_light(world, argv, user, |spec| light(spec).proxy_port = port);
    let output = run.output();
    run.gone();
    output.lines().map(str::to_owned).collect()
}

/// This process's own user, and another one if we can be that.
fn users() -> Vec<Option<u32>> {
    if nix::unistd::getuid().is_root() { vec![None, Some(1000)] } else { vec![None] }
}

#[test]
fn the_proxys_port_is_the_only_way_out() {
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [proxy, other] = [&proxy, &other].map(|listener| listener.local_addr().unwrap().port());
    for user in users() {
        let world = World::of(user);
        let to = |port: u16| format!("connect(socket.AF_INET, '127.0.0.1', {port})");
        let (to_proxy, to_other) = (to(proxy), to(other));
        let questions = [
            to_proxy.as_str(),
            &to_other,
            "connect(socket.AF_INET6, '::1', 80)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET)",
            "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socket().listen()",
            "socket.socket().bind(('127.0.0.1', 0))",
            "len(socket.socketpair())",
        ];
        let answers = asked(&world, user, Some(proxy), &questions);
        let expected =
            ["in", "EACCES", "EACCES", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EACCES", "2"];
        assert_eq!(answers, expected, "{user:?}");
        assert_eq!(asked(&world, user, None, &questions[..1]), ["EACCES"], "without a port there is none");
    }
}

/// What we would like to refuse and can not: Landlock's rules name ports. So the tier is no boundary against whoever
/// listens on the proxy's port on another machine.
#[test]
fn the_proxys_port_of_another_address_is_reached_past_the_proxy() {
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = proxy.local_addr().unwrap().port();
    let _another = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
    for user in users() {
        let question = format!("connect(socket.AF_INET, '127.0.0.2', {port})");
        assert_eq!(asked(&World::of(user), user, Some(port), &[&question]), ["in"], "{user:?}");
    }
}

#[test]
fn others_of_the_same_uid_are_out_of_reach() {
    for user in users() {
        let world = World::of(user);
        let victim = world.victim.id();
        let (environ, limits, signal, rank) = (
            format!("open('/proc/{victim}/environ').read()"),
            format!("resource.prlimit({victim}, resource.RLIMIT_NOFILE, (1, 1))"),
            format!("os.kill({victim}, signal.SIGKILL)"),
            format!("os.setpriority(os.PRIO_PROCESS, {victim}, 19)"),
        );
        let questions = [
            environ.as_str(),
            &limits,
            &signal,
            &rank,
            "os.setpriority(os.PRIO_USER, 0, 19)",
            "call(29, 77, 4096, 0o1777)", // shmget
            "call(68, 77, 0o1777)",       // msgget
            "open('/dev/shm/left-behind', 'w')",
            "open('/etc/machine-id')",
            "resource.prlimit(0, resource.RLIMIT_NOFILE)[0] > 9",
        ];
        let answers = asked(&world, user, None, &questions);
        // Another uid's environment is refused by that already; so are its limits.
        let expected =
            ["EACCES", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EACCES", "EACCES", "True"];
        if cfg!(target_arch = "x86_64") {
            assert_eq!(answers, expected, "{user:?}");
        }
    }
}

#[test]
fn what_is_named_can_be_read_or_written_and_nothing_beside_it() {
    for user in users() {
        let world = World::of(user);
        let (secret, code) = (world.path("secret"), world.path("code"));
        let script = format!(
            "cat {secret}; ls {dir}; cat {code}/probe.py > /dev/null && echo read; echo x 2>&1 > {code}/new; \
             echo kept > $HOME/file; echo kept > $TMPDIR/file; cat $HOME/file $TMPDIR/file",
            secret = secret.display(),
            dir = world.dir.path().display(),
            code = code.display()
        );
        let mut run = start_light(&world, sh(&format!("exec 2>&1; {script}")), user, |_| {});
        let output = run.output();
        run.gone();
        let denied = output.lines().filter(|line| line.ends_with("ermission denied")).count();
        assert_eq!(denied, 3, "{output}");
        assert!(output.contains("read\n") && output.ends_with("kept\nkept\n"), "{output}");
    }
}

#[test]
fn a_service_of_root_has_a_uid_of_its_own_and_no_capability() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let world = World::new();
    let mut run = start_light(
        &world,
        sh("grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status"),
        None,
        |_| {},
    );
    let output = run.output();
    run.gone();
    let uid = world.uid.unwrap();
    let words: Vec<&str> = output.split_whitespace().collect();
    let ids = format!("{uid} {uid} {uid} {uid}");
    let none = "0000000000000000";
    let expected = format!(
        "Uid: {ids} Gid: {ids} Groups: CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: {none} CapAmb: {none} \
         NoNewPrivs: 1 Seccomp: 2"
    );
    assert_eq!(words.join(" "), expected);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&run.spec.home).unwrap()), uid);
}

/// The failure, after checking that no server was reported.
fn refusal(mut run: Run) -> (Step, String) {
    let reports: Vec<_> =
        run.rest().into_iter().filter(|report| !matches!(report, Report::Step { .. })).collect();
    let [Report::Failed { step, message, .. }, Report::Gone] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!(survivors(&run.mark), [0; 0]);
    (*step, message.clone())
}

#[test]
fn a_light_jail_that_can_not_be_built_starts_nothing_and_names_the_step() {
    let world = World::new();
    std::os::unix::fs::symlink(world.path("code"), world.path("link")).unwrap();
    type Change = fn(&World, &mut JailSpec);
    let cases: [(Change, Step, &str); 4] = [
        (|w, s| light(s).read_only.push(w.path("nothing")), Step::Sources, "nothing"),
        (|w, s| light(s).read_only.push(w.path("link")), Step::Sources, "symbolic link"),
        (|w, s| light(s).writable.push(w.path("nothing")), Step::Directories, "nothing"),
        (|w, s| light(s).uid = w.uid.is_none().then_some(12345), Step::Identity, "root"),
    ];
    for (change, step, word) in cases {
        let (failed, message) =
            refusal(start_light(&world, vec!["/nowhere".into()], None, |spec| change(&world, spec)));
        assert_eq!(failed, step, "{message}");
        assert!(message.contains(word), "{message}");
    }
    if nix::unistd::getuid().is_root() {
        // Not the service's own, and used.
        let owned = start_light(&world, sh(":"), None, |spec| light(spec).writable.push(world.path("code")));
        assert_eq!(refusal(owned).0, Step::Directories);
    }
}

#[test]
fn whatever_the_machine_refuses_nothing_starts_with_less() {
    use nix::libc;
    if system("python3").is_none() {
        return;
    }
    let is_root = nix::unistd::getuid().is_root();
    let cases = [
        (libc::SYS_openat2, Step::Sources),
        (libc::SYS_setresuid, if is_root { Step::Identity } else { Step::Exec }),
        (libc::SYS_setgroups, if is_root { Step::Identity } else { Step::Exec }),
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
            spec.tmp = world.path("data").join("tmp");
            spec.isolation = Isolation::Light(LightView { uid: world.uid, ..LightView::default() });
        });
        let (failed, message) = refusal(run);
        assert_eq!(failed, step, "without {call}: {message}");
    }
}

/// A helper that is started by `line`, a command that takes the helper's path as its last argument.
fn helper_by(world: &World, line: &str) -> std::path::PathBuf {
    let (wrapper, copy) = (world.path("wrapper"), world.path("helper"));
    install(&helper(), &copy);
    install_script(&wrapper, &format!("exec {line} {} \"$@\"", copy.display()));
    wrapper
}

fn start_by(world: &World, line: &str, argv: Vec<String>, uid: Option<u32>) -> Run {
    start_with(&helper_by(world, line), argv, |spec| {
        world.furnish(spec);
        spec.tmp = world.path("data").join("tmp");
        spec.isolation = Isolation::Light(LightView { uid, ..LightView::default() });
    })
}

#[test]
fn it_needs_no_namespace() {
    if system("python3").is_none() {
        return;
    }
    let world = World::new();
    let script = world.path("code/no_namespaces.py");
    std::fs::write(&script, include_str!("hostile/no_namespaces.py")).unwrap();
    let mut run = start_by(&world, &format!("/usr/bin/python3 {}", script.display()), sh("echo in"), None);
    assert_eq!(run.output(), "in\n");
    run.gone();
}

#[test]
fn a_containers_root_with_six_capabilities_is_enough_and_none_reaches_the_server() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let world = World::new();
    let few = "+chown,+dac_override,+fowner,+kill,+setgid,+setuid";
    let line = format!("/usr/bin/setpriv --bounding-set=-all,{few} --inh-caps=-all");
    let mut run =
        start_by(&world, &line, sh("id -u; grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status"), world.uid);
    let output = run.output();
    run.gone();
    let expected = format!("{} CapInh: 0 CapPrm: 0 CapEff: 0 CapAmb: 0", world.uid.unwrap());
    assert_eq!(
        output.replace("0000000000000000", "0").split_whitespace().collect::<Vec<_>>().join(" "),
        expected
    );
}
