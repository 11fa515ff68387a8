//! Machines that are not this one, as trees of plain files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::place::Surroundings;
use super::{Cgroups, GroupEvents, GroupLimits, GroupUsage};

const LIMITS: GroupLimits = GroupLimits { memory_bytes: 512 << 20, pids: 128, milli_cpus: Some(500) };

struct Machine {
    dir: TempDir,
    surroundings: Surroundings,
}

impl Machine {
    /// One cgroup2 mount, and us in `own` (as `/proc/self/cgroup` has it).
    fn v2(own: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let mount = dir.path().display();
        let mountinfo = format!(
            "22 1 0:20 / /proc rw shared:5 - proc proc rw\n31 23 0:28 / {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        );
        let surroundings = Surroundings {
            mountinfo,
            membership: format!("0::{own}\n"),
            pid: std::process::id().cast_signed(),
            is_root: false,
        };
        let machine = Self { dir, surroundings };
        machine.group("", "cpuset cpu io memory pids", &[]);
        fs::remove_file(machine.dir.path().join("cgroup.type")).unwrap();
        machine
    }

    fn group(&self, name: &str, controllers: &str, members: &[i32]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        let members: String = members.iter().map(|pid| format!("{pid}\n")).collect();
        for (file, text) in [
            ("cgroup.type", "domain\n"),
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            ("cgroup.procs", &members),
        ] {
            fs::write(path.join(file), text).unwrap();
        }
        path
    }

    /// A plain file system makes no files with a directory, so what `find` reads of its own place is laid out before.
    fn find(&self, base: &Path) -> Result<Cgroups, String> {
        let place = base.join("claudemesh-r");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("cgroup.subtree_control"), "").unwrap();
        Cgroups::find_in(&self.surroundings, "r").map_err(|why| why.to_string())
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

#[test]
fn below_a_delegated_parent_we_stay_where_we_are() {
    let machine = Machine::v2("/app.slice/mesh.service/sup");
    let unit = machine.group("app.slice/mesh.service", "cpu memory pids", &[]);
    machine.group("app.slice/mesh.service/sup", "", &[own_pid(), 1]);
    let cgroups = machine.find(&unit).unwrap();
    assert_eq!(cgroups.version(), "v2");
    assert_eq!(text(&unit.join("cgroup.subtree_control")), "+memory +pids +cpu");
    let group = cgroups.make("echo-1", LIMITS).unwrap();
    let [directory] = group.directories().try_into().unwrap();
    assert_eq!(directory, unit.join("claudemesh-r/echo-1"));
    assert_eq!(text(&unit.join("claudemesh-r/cgroup.subtree_control")), "+memory +pids +cpu");
}

#[test]
fn the_top_of_the_hierarchy_needs_no_leaving() {
    let machine = Machine::v2("/");
    machine.find(machine.dir.path()).unwrap();
    assert_eq!(text(&machine.dir.path().join("cgroup.procs")), "");
    assert!(!machine.dir.path().join("sup").exists());
}

#[test]
fn a_group_that_others_are_in_is_left_alone() {
    let machine = Machine::v2("/user.slice/session.scope");
    // Our parent is in our session, and we did not start it.
    let parent = std::os::unix::process::parent_id().cast_signed();
    let session = machine.group("user.slice/session.scope", "cpu memory pids", &[own_pid(), parent]);
    let why = machine.find(&session).unwrap_err();
    assert!(why.contains(&format!("process {parent}")) && why.contains("Delegate=yes"), "{why}");
    assert!(!session.join("sup").exists());
    assert_eq!(text(&session.join("cgroup.subtree_control")), "");
}

#[test]
fn root_in_a_session_makes_its_groups_at_the_top() {
    let mut machine = Machine::v2("/user.slice/session.scope");
    let parent = std::os::unix::process::parent_id().cast_signed();
    machine.group("user.slice/session.scope", "cpu memory pids", &[own_pid(), parent]);
    machine.surroundings.is_root = true;
    let cgroups = machine.find(machine.dir.path()).unwrap();
    let group = cgroups.make("echo", LIMITS).unwrap();
    assert_eq!(group.directories(), [machine.dir.path().join("claudemesh-r/echo")]);
}

#[test]
fn a_missing_controller_is_named() {
    let machine = Machine::v2("/unit");
    let unit = machine.group("unit", "memory pids", &[own_pid()]);
    let why = machine.find(&unit).unwrap_err();
    assert!(why.contains("no controller cpu:"), "{why}");
    assert!(!unit.join("sup").exists(), "nothing is moved in vain");
}

#[test]
fn a_machine_without_cgroups_says_so() {
    let mut machine = Machine::v2("/");
    machine.surroundings.mountinfo = "22 1 0:20 / /proc rw - proc proc rw\n".into();
    let why = machine.find(machine.dir.path()).unwrap_err();
    assert!(why.starts_with("no cgroup file system with memory, pids, cpu is mounted"), "{why}");
}

#[test]
fn a_mount_that_does_not_show_us_is_not_ours() {
    let mut machine = Machine::v2("/../other");
    machine.group("other", "cpu memory pids", &[]);
    assert!(machine.find(machine.dir.path()).is_err(), "the root of our cgroup namespace is elsewhere");
    // A mount of one container's part, seen from another one's group.
    machine.surroundings.membership = "0::/docker/two\n".into();
    machine.surroundings.mountinfo = machine.surroundings.mountinfo.replace("0:28 / ", "0:28 /docker/one ");
    assert!(machine.find(machine.dir.path()).is_err());
    machine.surroundings.membership = "0::/docker/one\n".into();
    machine.find(machine.dir.path()).unwrap();
}

#[test]
fn limits_are_written_as_version_2_has_them() {
    let machine = Machine::v2("/");
    let cgroups = machine.find(machine.dir.path()).unwrap();
    let group = cgroups.make("echo", LIMITS).unwrap();
    let directory = &group.directories()[0];
    for (file, value) in [
        ("memory.max", "536870912"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "128"),
        ("cpu.max", "50000 100000"),
    ] {
        assert_eq!(text(&directory.join(file)), value, "{file}");
    }
    group.set_cpu(1).unwrap();
    assert_eq!(text(&directory.join("cpu.max")), "1000 100000", "no less than the kernel takes");
    let free = cgroups.make("free", GroupLimits { milli_cpus: None, ..LIMITS }).unwrap();
    assert_eq!(text(&free.directories()[0].join("cpu.max")), "max 100000");
}

#[test]
fn readings_are_taken_as_version_2_has_them() {
    let machine = Machine::v2("/");
    let cgroups = machine.find(machine.dir.path()).unwrap();
    let group = cgroups.make("echo", LIMITS).unwrap();
    for (file, value) in [
        ("memory.current", "5000000\n"),
        ("memory.stat", "anon 1000000\nfile 3000000\ninactive_file 2000000\nactive_file 1000000\n"),
        ("pids.current", "7\n"),
        ("cpu.stat", "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n"),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n"),
        ("pids.events", "max 11\n"),
    ] {
        fs::write(group.directories()[0].join(file), value).unwrap();
    }
    let usage = GroupUsage { memory_bytes: 3_000_000, pids: 7, cpu_ms: 1234 };
    assert_eq!(group.usage().unwrap(), usage);
    assert_eq!(group.events().unwrap(), GroupEvents { oom_kills: 3, pids_refused: 11 });
}

#[test]
fn version_1_has_a_tree_for_each_controller_that_may_be_shared() {
    let dir = TempDir::new().unwrap();
    for tree in ["memory/box", "pids/box", "cpu,cpuacct"] {
        fs::create_dir_all(dir.path().join(tree)).unwrap();
    }
    let line = |place: &str, root: &str, options: &str| {
        format!("32 31 0:29 {root} {}/{place} rw - cgroup cgroup rw,{options}\n", dir.path().display())
    };
    let surroundings = Surroundings {
        mountinfo: [
            line("memory", "/", "memory"),
            line("pids", "/", "pids"),
            line("cpu,cpuacct", "/box", "cpu,cpuacct"),
        ]
        .concat(),
        membership: "4:memory:/box\n8:pids:/box\n2:cpu,cpuacct:/box\n1:name=systemd:/init.scope\n0::/\n"
            .into(),
        pid: own_pid(),
        is_root: true,
    };
    let cgroups = Cgroups::find_in(&surroundings, "r").unwrap();
    assert_eq!(cgroups.version(), "v1");
    let group = cgroups.make("echo", LIMITS).unwrap();
    let places = ["memory/box", "pids/box", "cpu,cpuacct"];
    let expected = places.map(|place| dir.path().join(place).join("claudemesh-r/echo"));
    assert_eq!(group.directories(), expected);
    for (place, file, value) in [
        (0, "memory.limit_in_bytes", "536870912"),
        (0, "memory.memsw.limit_in_bytes", "536870912"),
        (1, "pids.max", "128"),
        (2, "cpu.cfs_period_us", "100000"),
        (2, "cpu.cfs_quota_us", "50000"),
    ] {
        assert_eq!(text(&expected[place].join(file)), value, "{file}");
    }
}
