//! That a hostile server in a strict jail gets nothing, and an honest one what it needs.
//!
//! Here: the probes of `hostile/`, run as root and as two ordinary users, and without a jail to show that they find
//! something where there is something to find; what only shows from outside. Not here: the claims that both isolations
//! share (see `construction.rs`, `teardown.rs`, `leaks.rs`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use jail::{Ending, Network};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::findings::*;
use support::world::*;
use support::*;

fn probe(program: &str, file: &str, user: Option<u32>, at_least: usize) {
    let Some(program) = system(program).filter(|_| cfg!(target_arch = "x86_64")) else { return };
    if user.is_some() && !nix::unistd::getuid().is_root() {
        return; // Only root can become somebody else; the caller has just shown the same for itself.
    }
    let world = World::of(user);
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

/// Not there, or dead and only not reaped yet by whoever inherited it.
fn is_over(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z") || rest.starts_with(" X"))
}

#[test]
fn kill_9_of_the_helper_at_any_moment_leaves_neither_init_nor_server() {
    let world = World::new();
    for moment in 0..40 {
        let mut run =
            start_strict(&world, sh("trap '' TERM HUP; while :; do sleep 1000; done"), None, |_| {});
        // Nothing tells from outside how far the construction is: these are moments, from its beginning to behind its end.
        let then = std::time::Instant::now() + std::time::Duration::from_micros(moment * 300);
        while std::time::Instant::now() < then {
            std::hint::spin_loop();
        }
        let helper = run.jailed().helper_pid();
        let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
        kill(Pid::from_raw(helper as i32), Signal::SIGKILL).unwrap();
        assert_eq!(run.output(), "", "at moment {moment}");
        let deadline = std::time::Instant::now() + LIMIT;
        while !children.split_whitespace().all(is_over) {
            assert!(std::time::Instant::now() < deadline, "at moment {moment}: {children} is left");
            // Nothing signals the end of another's child but its pid.
            nix::poll::poll(&mut [], nix::poll::PollTimeout::from(5_u8)).unwrap();
        }
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

#[test]
fn a_node_server_with_modules_of_its_own_answers_from_read_only_code() {
    let Some(node) = system("node") else { return };
    let world = World::new();
    let files = [
        ("package.json", r#"{"type":"module"}"#),
        ("node_modules/dep/package.json", r#"{"name":"dep","main":"main.js"}"#),
        (
            "node_modules/dep/main.js",
            "exports.answer = (line) => JSON.stringify({ got: JSON.parse(line).id });",
        ),
        (
            "index.js",
            "import { createInterface } from 'node:readline'; import dep from 'dep';\n\
             createInterface({ input: process.stdin }).on('line', (line) => console.log(dep.answer(line)));",
        ),
    ];
    for (name, text) in files {
        let path = world.path("code").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let main = world.path("code/index.js").to_str().unwrap().to_owned();
    let mut run = start_strict(&world, vec![node, main], None, |_| {});
    run.say("{\"id\":7}\n");
    assert_eq!(run.line(), r#"{"got":7}"#);
    run.stdin = None;
    assert_eq!(run.gone().ending, Ending::Code(0));
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
    // Others may mount what they like meanwhile, but not where a jail is put together or what it binds.
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = all.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
        places
            .filter(|place| place == "/" || place.starts_with("/proc") || place.starts_with("/usr"))
            .collect::<Vec<_>>()
    };
    let is_lived_in = |namespace: &fs::File| {
        let wanted = namespace.metadata().unwrap().ino();
        let all = fs::read_dir("/proc").unwrap();
        all.filter_map(|entry| fs::metadata(entry.ok()?.path().join("ns/mnt")).ok())
            .any(|found| found.ino() == wanted)
    };
    let mounts_before = mounts();
    let mut seen = 0;
    for turn in 0..100 {
        let world = World::new();
        let script =
            if turn % 2 == 0 { "(setsid sleep 1000 &) ; echo ready; read l" } else { "echo ready; exit 3" };
        let mut run = start_strict(&world, sh(script), None, |_| {});
        let server = run.started();
        // Held open, so that the kernel gives its number to no other jail while we look for who is left in it.
        let namespace = fs::File::open(format!("/proc/{server}/ns/mnt")).ok();
        assert_eq!(run.line(), "ready");
        if turn % 2 == 0 {
            run.jailed().kill().unwrap();
        }
        run.gone();
        if let Some(namespace) = namespace {
            seen += 1;
            assert!(!is_lived_in(&namespace), "turn {turn} left a process in its namespace");
        }
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!all.contains(world.dir.path().to_str().unwrap()), "{all}");
        let left: Vec<_> =
            fs::read_dir(world.path("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["home"], "only what the spec names");
    }
    assert_eq!(mounts(), mounts_before);
    assert!(seen >= 50, "only {seen} namespaces were seen while they were lived in");
}

#[test]
fn the_probes_find_what_is_open_without_a_jail() {
    let Some(python) = system("python3").filter(|_| cfg!(target_arch = "x86_64")) else { return };
    let world = World::of(Some(65534).filter(|_| nix::unistd::getuid().is_root()));
    let output = world.run_plainly(&python, "probe.py");
    let found = findings_in(&output, &"no jail");
    let leaks = of_verdict(&found, "LEAK");
    assert!(leaks.len() > 60, "a probe that never finds anything proves nothing: {} {leaks:?}", leaks.len());
}
