//! A hundred `kill -9` of the runner while servers that daemonise are up: nothing adds up.
//!
//! Slow, so not part of `make test`: `make soak`. `SOAK_ROUNDS` sets another number of rounds. The ten thousand kills of
//! single servers are in `jail/tests/soak.rs`.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::json;
use tests::{World, eventually, fixture, processes};

const SERVICES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

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

/// Groups that any runner of ours made, wherever they are.
fn cgroups(dir: &Path, is_ours: bool) -> usize {
    let below = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    below
        .map(|entry| {
            let is_ours = is_ours || entry.file_name().to_string_lossy().starts_with("claudemesh-");
            usize::from(is_ours) + cgroups(&entry.path(), is_ours)
        })
        .sum()
}

fn footprint(world: &World) -> Footprint {
    let runner = world.data().join("runner");
    Footprint {
        processes: processes::of(world.path()).len(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
        namespaces: namespaces(),
        cgroups: cgroups(Path::new("/sys/fs/cgroup"), false),
        sockets: fs::read_to_string("/proc/net/unix")
            .unwrap()
            .matches(&*world.path().to_string_lossy())
            .count(),
        temporary: fs::read_dir(runner.join("tmp")).into_iter().flatten().count()
            + fs::read_dir(runner.join("staging")).into_iter().flatten().count(),
    }
}

fn resident_kib(pid: i32) -> u64 {
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
    let before = (namespaces(), cgroups(Path::new("/sys/fs/cgroup"), false));
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("server"));
        for name in SERVICES {
            world.owner.ok(["deploy", name, folder.to_str().unwrap(), "--memory", "256m"]).await;
        }
        use_all(world).await;
        let (first, rounds) = (footprint(world), rounds());
        let mut memory = Vec::new();
        for round in 0..rounds {
            world.kill_9_runner().await;
            use_all(world).await;
            memory.push(resident_kib(world.runners()[0]));
            eprintln!("round {round}: {:?}, runner {} KiB", footprint(world), memory[memory.len() - 1]);
        }
        // What died is gone, whatever it was doing: the same servers leave the same footprint.
        eventually("the footprint is what it was", async || (footprint(world) == first).then_some(())).await;
        let (early, late) = (memory[0], memory[memory.len() - 1]);
        assert!(late < early * 2, "the runner's memory grows: {memory:?} KiB");
    })
    .await;
    let after = (namespaces(), cgroups(Path::new("/sys/fs/cgroup"), false));
    assert!(after.0 <= before.0 && after.1 <= before.1, "before {before:?}, after {after:?}");
}
