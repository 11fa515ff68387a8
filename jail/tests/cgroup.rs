//! Groups of the real kernel, with real processes in them: version 2 or 1, whichever this machine lets us use.
//!
//! Here: what each limit does to a bomb, readings, killing, removal. Not here: reading odd machines (see the crate's own
//! tests), the helper that puts a server into its groups.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jail::cgroup::{Cgroups, Group, GroupLimits};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// `None`, said aloud, on a machine that gives us no groups.
fn found(name: &str) -> Option<Cgroups> {
    match Cgroups::find(name) {
        Ok(cgroups) => Some(cgroups),
        Err(why) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("{why}"),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

fn limits() -> GroupLimits {
    GroupLimits { memory_bytes: 96 * MIB, pids: 20, milli_cpus: None }
}

/// A process that waits for a word, is put into a group, and then does what its script says.
struct Member {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Member {
    fn of(group: &Group, script: &str) -> Self {
        let mut member = Self::waiting(script);
        join(&group.directories(), member.child.id());
        member.go();
        member
    }

    fn waiting(script: &str) -> Self {
        let script = format!("import os, sys, time, signal\nsys.stdin.readline()\n{script}\n");
        let mut child = Command::new("python3")
            .args(["-u", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdout }
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().expect("open").write_all(b"go\n").expect("it listens");
    }

    fn line(&mut self) -> String {
        if self.stdout.buffer().is_empty() {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(self.stdout.get_ref()), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(LIMIT).expect("short")).expect("poll");
            assert_eq!(ready, 1, "nothing came in time");
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    fn ended(&mut self) -> ExitStatus {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(self.stdout.get_ref()), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(LIMIT).expect("short")).expect("poll");
        assert_eq!(ready, 1, "it does not end");
        self.stdout.read_to_end(&mut Vec::new()).expect("the end");
        self.child.wait().expect("a child")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn join(directories: &[PathBuf], pid: u32) {
    for directory in directories {
        fs::write(directory.join("cgroup.procs"), pid.to_string()).expect("we may move our child");
    }
}

fn members(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).expect("a group");
    text.lines().map(str::to_owned).collect()
}

/// Fork as fast as they can, for ever, and hear no SIGTERM.
const RABBITS: &str = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
said = False
os.setsid()
while True:
    try:
        os.fork()
    except OSError:
        if not said: os.write(1, b'full\\n')
        said = True
";

#[test]
fn a_memory_bomb_is_killed_and_counted() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("bomb", limits()).unwrap();
    let mut bomb = Member::of(&group, "held = []\nwhile True: held.append(bytearray(1 << 20))");
    assert_eq!(bomb.ended().signal(), Some(nix::libc::SIGKILL));
    let events = group.events().unwrap();
    assert!(events.oom_kills > 0 && events.pids_refused == 0, "{events:?}");
}

#[test]
fn memory_in_files_counts_too() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("memfd", limits()).unwrap();
    let script = "held = os.memfd_create('bomb')\nfor _ in range(2048): os.write(held, b'x' * (1 << 20))";
    assert_eq!(Member::of(&group, script).ended().signal(), Some(nix::libc::SIGKILL));
    assert!(group.events().unwrap().oom_kills > 0);
}

#[test]
fn a_fork_bomb_ends_at_the_limit_and_is_counted() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("forks", limits()).unwrap();
    let mut bomb = Member::of(&group, RABBITS);
    assert_eq!(bomb.line(), "full");
    assert_eq!(group.usage().unwrap().pids, 20);
    let events = group.events().unwrap();
    assert!(events.pids_refused > 0 && events.oom_kills == 0, "{events:?}");
}

#[test]
fn killing_empties_a_group_that_forks_all_the_while() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("rabbits", limits()).unwrap();
    let mut rabbits = Member::of(&group, RABBITS);
    assert_eq!(rabbits.line(), "full");
    group.kill().unwrap();
    for directory in group.directories() {
        assert_eq!(members(&directory), [""; 0], "{}", directory.display());
    }
    assert_eq!(rabbits.ended().signal(), Some(nix::libc::SIGKILL));
    group.kill().expect("an empty group is killed at once");
}

#[test]
fn the_page_cache_is_no_use_and_memory_is() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("cache", limits()).unwrap();
    let scratch = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"))
        .or_else(|_| tempfile::NamedTempFile::new())
        .unwrap();
    let kind = nix::sys::statfs::statfs(scratch.path()).unwrap().filesystem_type();
    if kind == nix::sys::statfs::TMPFS_MAGIC {
        return println!("skipped: files in memory are use, and there is no other place for one here");
    }
    let path = scratch.path().display();
    let script = format!(
        "f = open('{path}', 'wb')\nf.write(b'x' * (40 << 20)); f.flush(); os.fsync(f.fileno()); print('written')\n\
         sys.stdin.readline(); held = b'y' * (30 << 20); print('held'); sys.stdin.readline()"
    );
    let mut writer = Member::of(&group, &script);
    assert_eq!(writer.line(), "written");
    let with_cache = group.usage().unwrap().memory_bytes;
    writer.go();
    assert_eq!(writer.line(), "held");
    let with_heap = group.usage().unwrap().memory_bytes;
    // The writer's buffer of 40 MiB is freed; an interpreter takes about 10.
    assert!(with_cache < 35 * MIB, "{with_cache}");
    assert!(with_heap >= with_cache.max(28 * MIB), "{with_heap} after {with_cache}");
}

#[test]
fn a_quota_of_processor_time_holds_from_when_it_is_set() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("spinner", limits()).unwrap();
    let spin = "
def spin(seconds):
    wall, used = time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds: pass
    print((time.process_time() - used) / (time.monotonic() - wall))
spin(0.4)
sys.stdin.readline()
spin(1.5)
";
    let mut spinner = Member::of(&group, spin);
    let free: f64 = spinner.line().parse().unwrap();
    let before = group.usage().unwrap().cpu_ms;
    group.set_cpu(100).unwrap();
    spinner.go();
    let since = Instant::now();
    let bounded: f64 = spinner.line().parse().unwrap();
    let counted = group.usage().unwrap().cpu_ms - before;
    let window = since.elapsed().as_millis() as u64;
    assert!(bounded < 0.2, "{bounded} of a processor, {free} without quota");
    assert!(counted > 0 && counted < window / 4, "{counted} ms of {window} ms");
}

#[test]
fn a_dropped_group_leaves_neither_process_nor_directory() {
    let Some(cgroups) = found(&name()) else { return };
    let group = cgroups.make("short", limits()).unwrap();
    let directories = group.directories();
    let mut member = Member::of(&group, RABBITS);
    assert_eq!(member.line(), "full");
    drop(group);
    assert_eq!(member.ended().signal(), Some(nix::libc::SIGKILL));
    assert!(directories.iter().all(|directory| !directory.exists()), "{directories:?}");
    let again = cgroups.make("short", limits()).expect("the name is free again");
    let place: Vec<_> = again.directories().iter().map(|path| path.parent().unwrap().to_owned()).collect();
    drop(again);
    drop(cgroups);
    assert!(place.iter().all(|directory| !directory.exists()), "{place:?}");
}

/// What `kill -9` of a runner leaves: no lock, but groups with processes, and here a group within a group besides.
fn left_by_a_dead_runner(name: &str) -> Option<(Vec<PathBuf>, Member)> {
    let cgroups = found(name)?;
    let directories = cgroups.make("left", limits()).expect("as before").directories();
    for directory in &directories {
        fs::create_dir(directory).expect("as before");
        fs::create_dir(directory.join("deeper")).expect("as before");
    }
    let orphan = Member::waiting("while True: time.sleep(1000)");
    join(
        &directories.iter().map(|directory| directory.join("deeper")).collect::<Vec<_>>(),
        orphan.child.id(),
    );
    Some((directories, orphan))
}

#[test]
fn a_runner_sweeps_what_a_dead_one_of_its_name_left() {
    let name = name();
    let Some((directories, mut orphan)) = left_by_a_dead_runner(&name) else { return };
    let cgroups = Cgroups::find(&name).expect("as before");
    assert_eq!(orphan.ended().signal(), Some(nix::libc::SIGKILL));
    assert!(directories.iter().all(|directory| !directory.exists()), "{directories:?}");
    drop(cgroups);
}

#[test]
fn a_runner_sweeps_what_dead_ones_of_other_names_left() {
    let Some((directories, mut orphan)) = left_by_a_dead_runner(&name()) else { return };
    let living = Cgroups::find(&name()).expect("as before");
    let group = living.make("mine", limits()).unwrap();
    let next = Cgroups::find(&name()).expect("as before");
    assert_eq!(orphan.ended().signal(), Some(nix::libc::SIGKILL));
    // The sweep may be that of another test's runner, which is still at it.
    let end = Instant::now() + LIMIT;
    let is_left = || directories.iter().any(|directory| directory.parent().unwrap().exists());
    while is_left() && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(!is_left(), "{directories:?}");
    assert!(group.directories().iter().all(|directory| directory.exists()), "the living one's are untouched");
    drop((next, group, living));
}

#[test]
fn two_living_runners_do_not_share_a_name() {
    let name = name();
    let Some(cgroups) = found(&name) else { return };
    let group = cgroups.make("mine", limits()).unwrap();
    let refusal = Cgroups::find(&name).expect_err("the first one lives");
    assert!(refusal.what.contains("living runner"), "{refusal}");
    assert!(
        group.directories().iter().all(|directory| directory.exists()),
        "the first one's group is untouched"
    );
    drop(cgroups);
    Cgroups::find(&name).expect("the first one is gone");
}

#[test]
fn groups_do_not_disturb_each_other() {
    let Some(cgroups) = found(&name()) else { return };
    let quiet = cgroups.make("quiet", limits()).unwrap();
    let loud = cgroups.make("loud", limits()).unwrap();
    let mut bystander = Member::of(
        &quiet,
        "print('here')\nsys.stdin.readline()\nos.waitpid(os.fork() or os._exit(0), 0)\nprint('fine')",
    );
    assert_eq!(bystander.line(), "here");
    let mut forks = Member::of(&loud, RABBITS);
    assert_eq!(forks.line(), "full");
    let mut bomb = Member::waiting("held = []\nwhile True: held.append(bytearray(1 << 20))");
    loud.kill().unwrap();
    join(&loud.directories(), bomb.child.id());
    bomb.go();
    assert_eq!(bomb.ended().signal(), Some(nix::libc::SIGKILL));
    drop(loud);
    bystander.go();
    assert_eq!(bystander.line(), "fine");
    assert_eq!(quiet.events().unwrap(), Default::default());
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let Some(cgroups) = found(&name()) else { return };
    for id in ["", ".", "..", "a/b", "../b", ".probe", "a b", "ä"] {
        assert_eq!(cgroups.make(id, limits()).unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "{id}");
        assert!(Cgroups::find(id).is_err(), "{id}");
    }
}
