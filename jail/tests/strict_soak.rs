//! Ten thousand forced kills of servers that fork, daemonise and ignore signals: nothing adds up.
//!
//! Slow, so not part of `make test`: `make soak`. `SOAK_KILLS` sets another number. The killed runners are in
//! `tests/tests/soak.rs`. Namespaces are those of all processes that can be seen, for what a jail left behind need not look
//! like it: run it where nobody else makes any, or in a pid namespace of its own.

mod support;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jail::Network;
use jail::cgroup::{Cgroups, GroupLimits};
use support::{helper, sh, start_with, strict};

const KILLS: usize = 10_000;
const AT_ONCE: usize = 4;
/// For what others on the machine do meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two daemons in sessions of their own, a child in its own, all deaf to everything but SIGKILL.
const SERVER: &str = "trap '' TERM HUP INT QUIT USR1\n\
    for n in 1 2; do (setsid sh -c \"trap '' TERM HUP; sleep 1000\" >/dev/null 2>&1 &); done\n\
    sh -c 'sleep 1000' &\n\
    echo up\n\
    sleep 1000\n";

/// What there is; that others on the machine took something of theirs away is no fault.
#[derive(Debug)]
struct Left {
    namespaces: usize,
    mounts: usize,
    descriptors: usize,
    children: usize,
    cgroups: usize,
}

impl Left {
    fn is_within(&self, first: &Self) -> bool {
        let Self { namespaces, mounts, descriptors, children, cgroups } = self;
        *namespaces <= first.namespaces
            && *mounts <= first.mounts
            && *descriptors <= first.descriptors
            && *children <= first.children
            && *cgroups <= first.cgroups
    }
}

/// Control groups of that place in all hierarchies, itself included.
fn cgroups_of(dir: &Path, place: &str, is_inside: bool) -> usize {
    let below = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    below
        .map(|entry| {
            let is_inside = is_inside || entry.file_name() == place;
            usize::from(is_inside) + cgroups_of(&entry.path(), place, is_inside)
        })
        .sum()
}

fn name() -> String {
    format!("soak-{}", std::process::id())
}

fn left() -> Left {
    let numbered = |dir: &str| {
        let entries = fs::read_dir(dir).expect("a directory").flatten();
        let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        entries
            .filter(move |entry| entry.file_name().to_str().is_some_and(is_number))
            .map(|entry| entry.path())
    };
    let kinds = ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"];
    let namespaces = numbered("/proc")
        .flat_map(|process| kinds.map(|kind| fs::read_link(process.join("ns").join(kind)).ok()))
        .flatten()
        .collect::<HashSet<_>>();
    let own = format!("PPid:\t{}", std::process::id());
    let is_child = |process: &std::path::PathBuf| {
        fs::read_to_string(process.join("status")).is_ok_and(|status| status.lines().any(|line| line == own))
    };
    Left {
        namespaces: namespaces.len(),
        mounts: fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count(),
        descriptors: numbered("/proc/self/fd").count(),
        children: numbered("/proc").filter(is_child).count(),
        cgroups: cgroups_of(Path::new("/sys/fs/cgroup"), &format!("claudemesh-{}", name()), false),
    }
}

/// What is left when it is no more than at first, or in the end.
#[expect(clippy::disallowed_methods, reason = "others on the machine do not tell us when they are done")]
fn settled(first: &Left) -> Left {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = left();
        if now.is_within(first) || Instant::now() >= end {
            return now;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn kill_one(cgroups: Option<&Cgroups>, n: usize) {
    let limits = GroupLimits { memory_bytes: 64 << 20, pids: 32, milli_cpus: None };
    let group = cgroups.map(|cgroups| cgroups.make(&format!("s{n}"), limits).expect("a group"));
    let mut run = start_with(&helper(), sh(SERVER), |spec| {
        strict(spec).network = Network::Filtered { ports: vec![80, 443] };
        spec.cgroups = group.iter().flat_map(|group| group.directories()).collect();
    });
    assert_eq!(run.line(), "up");
    run.jailed().kill().expect("told");
    run.gone();
}

#[test]
fn ten_thousand_forced_kills_leave_nothing() {
    let kills = std::env::var("SOAK_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let cgroups = Cgroups::find(&name());
    if let Err(why) = &cgroups {
        println!("without cgroups: {why}");
    }
    let cgroups = cgroups.ok();
    let round = |from: usize, to: usize| {
        let next = AtomicUsize::new(from);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= to {
                            break;
                        }
                        kill_one(cgroups.as_ref(), n);
                        if n.is_multiple_of(1000) {
                            println!("{n} kills, {} KiB", resident_kib());
                        }
                    }
                });
            }
        });
    };
    // What threads and allocators keep for good is there after the first few.
    round(0, kills / 20);
    let (first, memory) = (left(), resident_kib());
    round(kills / 20, kills);
    let last = settled(&first);
    assert!(last.is_within(&first), "{first:?} after the first twentieth, now {last:?}");
    assert_eq!(cgroups.is_some(), first.cgroups > 0, "the groups are looked for where they are");
    let now = resident_kib();
    println!("{kills} kills; {memory} KiB after the first twentieth, {now} KiB at the end");
    assert!(now < memory + 4096, "memory grows: {memory} KiB, then {now} KiB");
}
