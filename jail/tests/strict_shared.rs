//! What all processes of a machine or of a user share: no server uses it up or changes it for others.
//!
//! Here: one question a claim, asked by Python in strict jails of root and of an ordinary user. Not here: the scenarios of
//! `hostile/`.
mod support;

use std::collections::BTreeMap;

use support::world::{World, start_strict, system};

const PRELUDE: &str = "
import ctypes, errno, fcntl, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def say(name, answer):
    print(f'{name}\\t{answer}', flush=True)
def tried(name, what):
    try:
        say(name, what())
    except OSError as error:
        say(name, errno.errorcode[error.errno])
def call(number, *arguments):
    done = libc.syscall(number, *[ctypes.c_long(one) for one in arguments])
    return 'done' if done >= 0 else errno.errorcode[ctypes.get_errno()]
";

/// What the script said, once for each kind of user.
fn asked(script: &str) -> Vec<BTreeMap<String, String>> {
    let Some(python) = system("python3") else {
        assert!(std::env::var_os("CI").is_none(), "no python3");
        eprintln!("skipped: no python3 of the system");
        return Vec::new();
    };
    let others = nix::unistd::getuid().is_root().then_some(Some(1000));
    let users = [None].into_iter().chain(others);
    let answers = users.map(|user| {
        let world = World::of(user);
        let argv = vec![python.clone(), "-c".into(), format!("{PRELUDE}{script}")];
        let output = start_strict(&world, argv, user, |_| {}).output();
        let lines = output.lines().map(|line| line.split_once('\t').unwrap_or(("", line)));
        lines.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
    });
    answers.collect()
}

#[test]
fn watches_timers_and_signals_of_one_server_leave_enough_for_the_user_that_started_it() {
    let script = "
n = 0
while n < 1000 and libc.inotify_init() >= 0: n += 1
say('instances', n)
class Event(ctypes.Structure):
    _fields_ = [('value', ctypes.c_void_p), ('signal', ctypes.c_int), ('notify', ctypes.c_int), ('rest', ctypes.c_char * 48)]
event, timer, n = Event(None, 10, 0, b''), ctypes.c_void_p(), 0
while n < 100000 and libc.timer_create(0, ctypes.byref(event), ctypes.byref(timer)) == 0: n += 1
say('timers', n)
";
    for said in asked(script) {
        let number = |name: &str| said[name].parse::<u32>().unwrap();
        assert!((1..=16).contains(&number("instances")), "{said:?}");
        assert!((1..=1024).contains(&number("timers")), "{said:?}");
    }
}

#[test]
fn what_the_kernel_learned_lately_is_refused_and_what_nobody_has_judged_is_not_there() {
    let script = "
for number in [448, 457, 458, 460, 467, 469]:
    say(number, call(number, -1, 0, 0, 0, 0))
for number in list(range(470, 600)) + [1000, 0x3fffffff, 0x40000000]:
    answer = call(number, -1, 0, 0, 0, 0)
    if answer != 'ENOSYS': say(number, answer)
say('known', call(451, -1, 0, 0, 0))
";
    for mut said in asked(script) {
        assert_ne!(said.remove("known").unwrap(), "EPERM", "an ordinary one");
        assert_eq!(said.len(), 6, "{said:?}");
        assert!(said.values().all(|answer| answer == "EPERM"), "{said:?}");
    }
}

#[test]
fn the_kernels_command_line_is_the_machines_own() {
    for said in asked("say('line', open('/proc/cmdline').read() == '')") {
        assert_eq!(said["line"], "True");
    }
}

#[test]
fn no_lease_makes_others_wait_and_no_rank_is_taken_back() {
    let script = "
path = os.environ['HOME'] + '/leased'
open(path, 'w').close()
for kind in [0, 1]:
    tried(f'lease {kind}', lambda: fcntl.fcntl(os.open(path, os.O_RDONLY), 1024, kind))
tried('flags', lambda: fcntl.fcntl(0, fcntl.F_GETFL) >= 0)
before = open('/proc/self/oom_score_adj').read()
tried('rank', lambda: os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'0'))
say('kept', open('/proc/self/oom_score_adj').read() == before)
";
    for said in asked(script) {
        let answer = |name: &str| said[name].as_str();
        assert_eq!([answer("lease 0"), answer("lease 1"), answer("flags")], ["EPERM", "EPERM", "True"]);
        assert_eq!([answer("rank"), answer("kept")], ["EACCES", "True"], "{said:?}");
    }
}

#[test]
fn sockets_are_of_the_ordinary_protocols_only() {
    let script = "
for family in [socket.AF_INET, socket.AF_INET6]:
    for protocol in range(300):
        for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]:
            try:
                socket.socket(family, kind, protocol).close()
                say(f'{protocol}', 'there')
            except PermissionError:
                pass
            except OSError:
                say(f'{protocol}', 'asked for')
tried('ulp', lambda: socket.socket().setsockopt(6, 31, b'tls'))
tried('nodelay', lambda: socket.socket().setsockopt(6, 1, 1))
tried('netlink', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) is None)
tried('pair', lambda: socket.socketpair() is None)
";
    for mut said in asked(script) {
        assert_eq!(said.remove("ulp").unwrap(), "EPERM");
        assert_eq!(said.remove("nodelay").unwrap(), "None");
        assert_eq!(said.remove("netlink").unwrap(), "False");
        assert_eq!(said.remove("pair").unwrap(), "False");
        let protocols: Vec<&str> = said.keys().map(String::as_str).collect();
        assert!(protocols.iter().all(|one| ["0", "1", "6", "17", "58"].contains(one)), "{said:?}");
        assert!(protocols.contains(&"6") && protocols.contains(&"17"), "{said:?}");
    }
}
