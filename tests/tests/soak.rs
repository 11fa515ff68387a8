//! A hundred `kill -9` of the runner while servers that daemonise are up: nothing adds up.
//!
//! Slow, so not part of `make test`: `make soak`. `SOAK_ROUNDS` sets another number of rounds. The ten thousand kills of
//! single servers are in `jail/tests/strict_soak.rs`.
//!
//! Mounts and namespaces are those of all processes that can be seen, for what was left behind by a jail need not look like
//! it: run it where nobody else makes any, or in a pid namespace of its own.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tests::{World, eventually, fixture, processes};
use tokio::time::{Instant, sleep};

const SERVICES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// For what the kernel clears away in its own time, and for what others on the machine do meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// More is a leak: a few hundred bytes a round are a queue that is not emptied.
const MORE_KIB: u64 = 4096;

/// What the kernel and the disk hold for a world.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Footprint {
    processes: usize,
    mounts: usize,
    namespaces: usize,
    cgroups: usize,
    sockets: usize,
    temporary: usize,
}

fn rounds() -> u32 {
    std::env::var("SOAK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Namespaces of all processes of the machine, by kind and inode.
fn namespaces() -> usize {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let links = pids.flat_map(|process| {
        ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"]
            .map(|kind| fs::read_link(process.path().join("ns").join(kind)).ok())
    });
    links.flatten().collect::<HashSet<_>>().len()
}

/// What the world's runner calls its place among the control groups; `None`: it has none.
fn place(world: &World) -> Option<String> {
    processes::of(world.path()).iter().find_map(|found| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", found.pid)).ok()?;
        text.split(['/', '\n']).find(|part| part.starts_with("claudemesh-")).map(str::to_owned)
    })
}

/// Groups of that place in all hierarchies, itself included.
fn cgroups(dir: &Path, place: &str, is_inside: bool) -> usize {
    let below = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    below
        .map(|entry| {
            let is_inside = is_inside || entry.file_name() == place;
            usize::from(is_inside) + cgroups(&entry.path(), place, is_inside)
        })
        .sum()
}

fn cgroups_of(place: Option<&str>) -> usize {
    place.map_or(0, |place| cgroups(Path::new("/sys/fs/cgroup"), place, false))
}

fn footprint(world: &World, place: Option<&str>) -> Footprint {
    let runner = world.data().join("runner");
    Footprint {
        processes: processes::of(world.path()).len(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
        namespaces: namespaces(),
        cgroups: cgroups_of(place),
        sockets: fs::read_to_string("/proc/net/unix")
            .unwrap()
            .matches(&*world.path().to_string_lossy())
            .count(),
        temporary: fs::read_dir(runner.join("tmp")).into_iter().flatten().count()
            + fs::read_dir(runner.join("staging")).into_iter().flatten().count(),
    }
}

/// Two looks, a second apart, that agree.
async fn settled(world: &World, place: Option<&str>) -> Footprint {
    let mut last = footprint(world, place);
    let end = Instant::now() + PATIENCE;
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = footprint(world, place);
        if now == last {
            return now;
        }
        assert!(Instant::now() < end, "no two looks agree: {last:?}, then {now:?}");
        last = now;
    }
}

/// Of `claudemesh up`, which lives through it all; a runner is as young as the round.
fn resident_kib(world: &World) -> u64 {
    let is_up = |found: &&processes::Found| found.command.contains("claudemesh up ");
    let pid = processes::of(world.path()).iter().find(is_up).expect("`up` runs").pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// Every service answers and has left a daemon behind.
async fn use_all(world: &World) {
    for name in SERVICES {
        eventually(&format!("{name} answers"), async || {
            let peer = world.owner.peer().await;
            let answer = peer
                .request("mcp_call", json!({ "serverName": name, "toolName": "spawn", "args": {} }))
                .await;
            answer["result"].is_object().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_hundred_killed_runners_leave_nothing() {
    let before = namespaces();
    let mut place_of_world = None;
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("server"));
        for name in SERVICES {
            world.owner.ok(["deploy", name, folder.to_str().unwrap(), "--memory", "256m"]).await;
        }
        use_all(world).await;
        // What pools keep is there after the first time.
        world.kill_9_runner().await;
        use_all(world).await;
        place_of_world = place(world);
        let place = place_of_world.as_deref();
        let first = settled(world, place).await;
        eprintln!("control groups: {place:?}, footprint {first:?}");
        let mut memory = Vec::new();
        for round in 0..rounds() {
            world.kill_9_runner().await;
            use_all(world).await;
            memory.push(resident_kib(world));
            eprintln!("round {round}: {:?}, `up` {} KiB", footprint(world, place), memory[memory.len() - 1]);
        }
        // What died is gone, whatever it was doing: the same servers leave the same footprint.
        let end = Instant::now() + PATIENCE;
        while footprint(world, place) != first && Instant::now() < end {
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(footprint(world, place), first, "after {} rounds", rounds());
        let (early, late) = (memory[memory.len() / 10], memory[memory.len() - 1]);
        assert!(late < early + MORE_KIB, "memory grows: {memory:?} KiB");
    })
    .await;
    let left = async || {
        let left = (namespaces().saturating_sub(before), cgroups_of(place_of_world.as_deref()));
        (left == (0, 0)).then_some(())
    };
    eventually("no namespace and no control group of the world is left", left).await;
}
