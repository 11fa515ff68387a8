//! How a server ends, and that nothing outlives it.
//!
//! Here: every way to the end, each with processes that don't want to go. Not here: the start (see `construction.rs`).

mod support;

use jail::{Ending, Reading, Report, usage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::*;

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("it is alive");
}

#[test]
fn streams_pass_through_and_the_end_of_stdin_ends_a_good_server() {
    let mut run = start(vec!["/bin/cat".into()]);
    run.say("one\n");
    assert_eq!(run.line(), "one");
    run.stdin = None;
    let exit = run.gone();
    assert_eq!(exit.ending, Ending::Code(0));
    assert!(!exit.oom_hint && exit.max_rss_kb > 0);
}

#[test]
fn exit_code_signal_and_processor_time_are_reported() {
    assert_eq!(start(sh("exit 7")).gone().ending, Ending::Code(7));
    let killed = start(sh("kill -SEGV $$")).gone();
    assert_eq!((killed.ending, killed.oom_hint), (Ending::Signal(11), false));
    let busy = start(py("import time\nwhile time.process_time() < 0.2: pass")).gone();
    assert!((200..10_000).contains(&busy.cpu_ms), "{busy:?}");
}

#[test]
fn a_sigkill_by_anybody_is_not_taken_for_want_of_memory() {
    let mut run = start(sh("read line"));
    let server = run.started();
    send(server, Signal::SIGKILL);
    let exit = run.gone();
    assert_eq!((exit.ending, exit.oom_hint), (Ending::Signal(9), false));
}

#[test]
fn a_server_that_dies_at_its_memory_limit_is_hinted_at() {
    let eater = py("hoard = []\nwhile True: hoard.append(bytearray(65536))");
    let mut run = start_with(&helper(), eater, |spec| spec.limits.memory_bytes = Some(128 << 20));
    let exit = run.gone();
    assert!(exit.oom_hint, "{exit:?}");
    assert_ne!(exit.ending, Ending::Code(0));
}

#[test]
fn terminate_reaches_the_whole_group() {
    let mut run = start(sh("sleep 1000 & echo ready; wait"));
    assert_eq!(run.line(), "ready");
    run.jailed().terminate().unwrap();
    assert_eq!(run.gone().ending, Ending::Signal(15));
}

#[test]
fn a_server_that_ignores_sigterm_is_killed_by_kill() {
    let mut run = start(sh("trap 'echo no' TERM; echo ready; while :; do sleep 1000 & wait; done"));
    assert_eq!(run.line(), "ready");
    run.jailed().terminate().unwrap();
    assert_eq!(run.line(), "no");
    run.jailed().kill().unwrap();
    assert_eq!(run.gone().ending, Ending::Signal(9));
}

#[test]
fn a_daemon_does_not_outlive_the_servers_own_exit() {
    let mut run = start(daemonising("sys.exit(3)"));
    assert!(run.line().starts_with("daemon "));
    assert_eq!(survivors(&run.mark).len(), 2);
    run.say("\n");
    assert_eq!(run.gone().ending, Ending::Code(3));
}

#[test]
fn a_daemon_does_not_outlive_kill() {
    let mut run = start(daemonising(""));
    assert!(run.line().starts_with("daemon "));
    run.jailed().kill().unwrap();
    assert_eq!(run.gone().ending, Ending::Signal(9));
}

#[test]
fn dropping_the_jail_kills_server_and_daemon() {
    let mut run = start(daemonising(""));
    assert!(run.line().starts_with("daemon "));
    drop(run.jailed.take());
    // Its end comes when the last process of the tree has closed it.
    assert_eq!(run.output(), "");
    assert_eq!(survivors(&run.mark), [0; 0]);
}

#[test]
fn sigterm_to_the_helper_kills_the_tree() {
    let mut run = start(daemonising(""));
    assert!(run.line().starts_with("daemon "));
    let helper = run.jailed().helper_pid();
    send(helper, Signal::SIGTERM);
    assert_eq!(run.gone().ending, Ending::Signal(9));
}

#[test]
fn a_killed_helper_takes_the_server_with_it() {
    let mut run = start(sh("trap '' TERM HUP INT; echo ready; while :; do read line; done"));
    run.started();
    assert_eq!(run.line(), "ready");
    let helper = run.jailed().helper_pid();
    send(helper, Signal::SIGKILL);
    assert_eq!(run.output(), "");
    assert_eq!(survivors(&run.mark), [0; 0]);
    assert_eq!(run.rest(), [], "a killed helper can't say Gone");
    assert!(run.jailed().terminate().is_err());
    assert!(run.jailed().wait(LIMIT).unwrap().is_some());
}

/// Light: wrong, and known. Without a pid namespace nothing ties a process to us once its parent and its subreaper are
/// gone. Strict: all go with init, and init goes with its helper.
#[test]
fn a_daemon_outlives_a_killed_helper_only_without_a_pid_namespace() {
    let mut run = start(daemonising(""));
    let daemon: i32 = run.line().strip_prefix("daemon ").unwrap().parse().unwrap();
    let helper = run.jailed().helper_pid();
    send(helper, Signal::SIGKILL);
    assert_eq!(run.jailed().wait(LIMIT).unwrap().map(|status| status.success()), Some(false));
    if !is_strict() {
        assert!(survivors(&run.mark).contains(&daemon));
        kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    }
    assert_eq!(run.output(), "");
    assert_eq!(survivors(&run.mark), [0; 0]);
}

#[test]
fn a_helper_that_was_stopped_is_overcome_by_force() {
    let mut run = start(daemonising(""));
    run.started();
    assert!(run.line().starts_with("daemon "));
    let helper = run.jailed().helper_pid();
    send(helper, Signal::SIGSTOP);
    run.jailed().force_kill().unwrap();
    assert!(run.jailed().wait(LIMIT).unwrap().is_some());
    assert_eq!(run.output(), "");
    assert_eq!(survivors(&run.mark), [0; 0]);
    run.jailed().force_kill().unwrap();
    assert_eq!(run.jailed().try_read_report().unwrap(), Reading::Closed);
}

/// 40 processes of all descents fork without end while they are killed; half of their children run from their session.
const BOMB: &str = "
import os, time
def churn():
    while True:
        pid = os.fork()
        if pid == 0:
            if os.getpid() % 2: os.setsid()
            if os.fork() == 0: time.sleep(0.2)
            os._exit(0)
        os.waitpid(pid, 0)
def grow(depth):
    for _ in range(3):
        if os.fork() == 0:
            if depth % 2: os.setsid()
            if depth: grow(depth - 1)
            if depth == 0: os.write(1, b'.')
            churn()
grow(2)
time.sleep(1000)
";

#[test]
fn a_fork_bomb_is_gone_when_it_is_said_to_be() {
    let mut run = start(py(BOMB));
    run.started();
    for _ in 0..27 {
        readable(&run.stdout, std::time::Instant::now() + LIMIT);
        std::io::Read::read_exact(&mut run.stdout, &mut [0]).unwrap();
    }
    run.jailed().kill().unwrap();
    assert_eq!(run.gone().ending, Ending::Signal(9));
}

/// Two processes in sessions of their own, each starting the other again when it dies.
const WATCHDOGS: &str = "
import os, time
def guard(level):
    os.setsid()
    while True:
        pid = os.fork()
        if pid == 0:
            if level: guard(level - 1)
            os.write(1, b'.')
            while True: time.sleep(1000)
        os.waitpid(pid, 0)
if os.fork() == 0: guard(1)
time.sleep(1000)
";

#[test]
fn processes_that_start_each_other_again_are_gone_too() {
    let mut run = start(py(WATCHDOGS));
    run.started();
    readable(&run.stdout, std::time::Instant::now() + LIMIT);
    run.jailed().kill().unwrap();
    run.gone();
}

#[test]
fn usage_counts_the_tree_and_nothing_when_it_is_gone() {
    let mut run = start(sh("sleep 1000 & sleep 1000 & echo ready; wait"));
    run.started();
    assert_eq!(run.line(), "ready");
    let helper = run.jailed().helper_pid();
    let used = usage(helper).unwrap();
    assert_eq!(used.processes, 3);
    assert!((100 << 10..100 << 20).contains(&used.rss_bytes), "{used:?}");
    run.jailed().kill().unwrap();
    run.gone();
    assert_eq!(usage(helper).unwrap(), jail::Usage::default());
}

#[test]
fn orphans_that_end_while_the_server_runs_are_reaped() {
    let mut run = start(sh("for i in 1 2 3; do (sh -c 'exit 0' &) ; done; (sh -c 'echo done' &); read line"));
    let server = run.started();
    assert_eq!(run.line(), "done");
    run.say("\n");
    let reports = run.rest();
    let [Report::Exited(exit), Report::Gone] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!(exit.ending, Ending::Code(0), "the server {server} ended by itself, not its orphans");
}
