//! What a server finds when it starts.
//!
//! Here: each step's effect, seen from inside, and each step's failure. Not here: the end (see `teardown.rs`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use jail::{Ending, Isolation, Limits, Report, Step};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use support::*;

fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn the_environment_is_exactly_the_specs() {
    let argv = vec!["/usr/bin/env".into(), "-0".into()];
    let mut run = start_with(&helper(), argv, |spec| {
        spec.env.push(("API_KEY".into(), "line one\nline two = ü".into()));
        spec.env.push(("HOME".into(), spec.home.to_str().unwrap().into()));
    });
    let output = run.output();
    run.gone();
    let seen: Vec<_> = output.split_terminator('\0').collect();
    let home = format!("HOME={}", run.spec.home.display());
    let tmp = format!("TMPDIR={}", run.spec.tmp.display());
    let expected = BTreeSet::from([run.mark.as_str(), "API_KEY=line one\nline two = ü", &home, &tmp]);
    assert_eq!(seen.len(), expected.len(), "each once: {seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn home_and_tmp_are_private_and_the_server_starts_in_its_directory() {
    let work = tempfile::tempdir().unwrap();
    let script = "pwd; echo a > \"$HOME/a\"; echo b > \"$TMPDIR/b\"; cat \"$HOME/a\" \"$TMPDIR/b\"";
    let mut run = start_with(&helper(), sh(script), |spec| spec.cwd = work.path().into());
    let output = run.output();
    run.gone();
    assert_eq!(words(&output), [work.path().to_str().unwrap(), "a", "b"]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(run.spec.home.clone()), mode(run.spec.tmp.clone())), (0o700, 0o700));
    assert_eq!(mode(run.spec.home.join("a")), 0o600, "umask 077");
}

#[test]
fn the_server_leads_a_session_and_a_group_of_its_own() {
    let mut run = start(py("import os; print(os.getpid(), os.getsid(0), os.getpgid(0), os.getppid())"));
    let pid = run.started().to_string();
    let output = run.output();
    let helper = run.jailed().helper_pid().to_string();
    run.gone();
    if is_strict() {
        assert_eq!(words(&output), ["2", "2", "2", "1"], "inside; outside it is {pid}");
    } else {
        assert_eq!(words(&output), [&pid, &pid, &pid, &helper]);
    }
}

#[test]
fn no_descriptor_but_the_three_streams_is_inherited_by_server_or_helper() {
    let leaked = tempfile::NamedTempFile::new().unwrap();
    // Without close-on-exec, as a careless library would leave it.
    let careless = fcntl(leaked.as_file(), FcntlArg::F_DUPFD(100)).unwrap();
    let mut run = start(sh("ls /proc/self/fd; read line"));
    run.started();
    let fds: Vec<_> = (0..4).map(|_| run.line()).collect();
    assert_eq!(fds, ["0", "1", "2", "3"], "3 is what `ls` reads the directory with");
    let helper = run.jailed().helper_pid();
    // The helper's files in `/proc` are root's, so an ordinary user can't look, which is a claim of its own.
    match fs::read_dir(format!("/proc/{helper}/fd")) {
        Err(error) if !is_root() => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        fds => {
            fds.unwrap().for_each(|fd| assert_ne!(fs::read_link(fd.unwrap().path()).unwrap(), leaked.path()))
        }
    }
    run.say("\n");
    run.gone();
    nix::unistd::close(careless).unwrap();
}

#[test]
fn the_helper_holds_no_end_of_the_servers_streams() {
    let mut run = start(sh("exec >&- 2>&-; read line"));
    run.started();
    assert_eq!(run.output(), "", "the end comes while the server is still running");
    run.say("\n");
    assert_eq!(run.gone().ending, Ending::Code(0));
}

#[test]
fn privileges_are_final_and_signals_are_at_their_default() {
    let mut run = start(vec!["/bin/cat".into(), "/proc/self/status".into()]);
    let status = run.output();
    run.gone();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("NoNewPrivs:"), "1");
    for set in ["SigBlk:", "SigIgn:", "SigPnd:", "ShdPnd:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
}

#[test]
fn limits_are_hard() {
    let argv = vec!["/bin/cat".into(), "/proc/self/limits".into()];
    let mut run = start_with(&helper(), argv, |spec| {
        spec.limits = Limits {
            memory_bytes: Some(256 << 20),
            max_processes: Some(50),
            open_files: 77,
            file_size_bytes: Some(5 << 20),
        };
    });
    let limits = run.output();
    run.gone();
    let row =
        |name: &str| words(limits.lines().find_map(|line| line.strip_prefix(name)).unwrap())[..2].join(" ");
    assert_eq!(row("Max data size"), "268435456 268435456");
    assert_eq!(row("Max open files"), "77 77");
    assert_eq!(row("Max file size"), "5242880 5242880");
    assert_eq!(row("Max core file size"), "1 1", "less than any file, and no program either");
}

#[test]
fn the_spec_is_in_no_argv_and_no_environment_of_the_helper() {
    let mut run = start(sh("read line"));
    run.started();
    let helper = run.jailed().helper_pid();
    assert_eq!(fs::read(format!("/proc/{helper}/cmdline")).unwrap(), b"claudemesh\0jail\0");
    match fs::read(format!("/proc/{helper}/environ")) {
        Err(error) if !is_root() => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        environment => assert_eq!(environment.unwrap(), b""),
    }
    run.say("\n");
    run.gone();
}

#[test]
fn every_step_is_reported_in_order() {
    let mut run = start(sh("exit 0"));
    let names: Vec<_> = run
        .rest()
        .into_iter()
        .filter_map(|report| if let Report::Step { name } = report { Some(name) } else { None })
        .collect();
    use Step::*;
    let strict = [
        Spec,
        Supervise,
        Directories,
        Cgroup,
        Namespaces,
        Sources,
        Identity,
        Network,
        Root,
        System,
        Binds,
        Devices,
        Proc,
        Secrets,
        Pivot,
        Capabilities,
        NoNewPrivileges,
        Lifeline,
        Fork,
        Session,
        Stdio,
        WorkingDirectory,
        Limits,
        Signals,
        Descriptors,
        Landlock,
        Seccomp,
        Exec,
    ];
    let light = [
        Spec,
        Supervise,
        Directories,
        Sources,
        Fork,
        Cgroup,
        Identity,
        Capabilities,
        Session,
        Stdio,
        WorkingDirectory,
        Limits,
        NoNewPrivileges,
        Signals,
        Descriptors,
        ParentDeath,
        Landlock,
        Seccomp,
        Exec,
    ];
    assert_eq!(names, if is_strict() { strict.as_slice() } else { &light });
}

/// An empty directory that the service's uid can be given.
fn empty(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::create_dir(&path).unwrap();
    (dir, path)
}

fn writable(spec: &mut jail::JailSpec) -> &mut Vec<std::path::PathBuf> {
    match &mut spec.isolation {
        Isolation::Strict(view) => &mut view.writable,
        Isolation::Light(view) => &mut view.writable,
    }
}

#[test]
fn a_writable_directory_can_be_written_and_is_the_services_own() {
    let (_dir, path) = empty("build");
    let script = format!("mkdir {0}/sub && echo kept > {0}/sub/file && cat {0}/sub/file", path.display());
    let mut run = start_with(&helper(), sh(&script), |spec| writable(spec).push(path.clone()));
    assert_eq!(run.output(), "kept\n");
    run.gone();
    assert_eq!(fs::read_to_string(path.join("sub/file")).unwrap(), "kept\n");
    if is_root() {
        let mut other = start_with(&helper(), sh(":"), |spec| writable(spec).push(path.clone()));
        assert_eq!(failure(&mut other).0, Step::Directories);
    }
}

#[test]
fn a_writable_directory_that_is_not_there_is_not_made() {
    let (_dir, path) = empty("build");
    let missing = path.join("missing");
    let mut run = start_with(&helper(), sh(":"), |spec| writable(spec).push(missing.clone()));
    assert_eq!(failure(&mut run).0, Step::Directories);
    assert!(!missing.exists());
}

#[test]
fn the_server_is_killed_before_its_helper_when_memory_runs_out() {
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let mut run = start(sh("cat /proc/self/oom_score_adj; read line"));
    run.started();
    assert_eq!(run.line(), (own + 500).min(1000).to_string());
    let helper = run.jailed().helper_pid();
    assert_eq!(fs::read_to_string(format!("/proc/{helper}/oom_score_adj")).unwrap().trim(), own.to_string());
    run.say("\n");
    run.gone();
}

/// A group of version 1 or 2 for one test.
struct TestGroup(std::path::PathBuf);

impl TestGroup {
    /// One of each version that this machine has.
    fn make() -> Vec<Self> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("jail-test-{}-{}-{next}", std::process::id(), is_strict());
        let places =
            ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let places = places.into_iter().filter(|place| place.join("cgroup.procs").exists());
        let made: Vec<_> = places
            .map(|place| place.join(&name))
            .filter(|group| fs::create_dir(group).is_ok())
            .map(Self)
            .collect();
        if made.is_empty() {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no cgroup can be made");
            println!("skipped: no cgroup can be made here");
        }
        made
    }

    fn members(&self) -> String {
        fs::read_to_string(self.0.join("cgroup.procs")).unwrap()
    }
}

impl Drop for TestGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_server_and_what_it_starts_are_in_the_group_and_the_helper_is_not() {
    TestGroup::make().iter().for_each(in_the_group);
}

fn in_the_group(group: &TestGroup) {
    let script = "sleep 1000 & cat /proc/self/cgroup; echo end; read line; kill %1";
    let mut run = start_with(&helper(), sh(script), |spec| spec.cgroups.push(group.0.clone()));
    let server = run.started().to_string();
    let seen: Vec<_> = std::iter::from_fn(|| Some(run.line()).filter(|line| line != "end")).collect();
    let members = group.members();
    let helper = run.jailed().helper_pid().to_string();
    assert!(words(&members).contains(&server.as_str()) && words(&members).len() >= 2, "{members}");
    assert!(!words(&members).contains(&helper.as_str()), "{members}");
    if is_strict() {
        assert!(seen.iter().all(|line| line.ends_with(":/")), "the group is all there is: {seen:?}");
    }
    run.say("\n");
    run.gone();
    assert_eq!(group.members(), "");
    fs::remove_dir(&group.0).unwrap();
}

#[test]
fn a_group_that_can_not_be_joined_starts_nothing() {
    let mut run =
        start_with(&helper(), sh(":"), |spec| spec.cgroups.push("/sys/fs/cgroup/no-such-group".into()));
    let (step, _, message) = failure(&mut run);
    assert_eq!(step, Step::Cgroup);
    assert!(message.contains("no-such-group"), "{message}");
}

/// The failure, after checking that no server was ever reported and that nothing is left.
fn failure(run: &mut Run) -> (Step, Option<i32>, String) {
    let reports: Vec<_> =
        run.rest().into_iter().filter(|report| !matches!(report, Report::Step { .. })).collect();
    let [Report::Failed { step, errno, message }, Report::Gone] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!(survivors(&run.mark), [0; 0]);
    assert!(!run.jailed().wait(LIMIT).unwrap().unwrap().success());
    (*step, *errno, message.clone())
}

#[test]
fn a_program_that_is_not_there_is_a_failed_exec() {
    let (step, errno, message) = failure(&mut start(vec!["/nowhere/server".into()]));
    assert_eq!((step, errno), (Step::Exec, Some(nix::errno::Errno::ENOENT as i32)));
    assert!(message.contains("/nowhere/server"), "{message}");
}

#[test]
fn a_file_that_is_no_program_is_a_failed_exec() {
    let (step, errno, _) = failure(&mut start(vec!["/etc/passwd".into()]));
    assert_eq!((step, errno), (Step::Exec, Some(nix::errno::Errno::EACCES as i32)));
}

#[test]
fn a_missing_working_directory_and_a_home_that_is_a_file_name_their_step() {
    let mut run = start_with(&helper(), sh(":"), |spec| spec.cwd = "/nowhere".into());
    assert_eq!(failure(&mut run).0, Step::WorkingDirectory);
    let mut run = start_with(&helper(), sh(":"), |spec| spec.home = "/etc/passwd".into());
    assert_eq!(failure(&mut run).0, Step::Directories);
}

#[test]
fn a_spec_that_breaks_the_rules_starts_no_helper() {
    let (mut spec, _) = spec(sh(":"), std::path::Path::new("/tmp"));
    spec.env.push(("HOME".into(), "/root".into()));
    let nothing = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let stdio = jail::Stdio { stdin: nothing(), stdout: nothing(), stderr: nothing() };
    let refusal = jail::spawn(&helper(), &spec, stdio).unwrap_err();
    assert!(matches!(refusal, jail::SpawnError::Spec(jail::BadSpec::EnvOwned("HOME"))), "{refusal}");
}

/// A helper that is sent `order` with the descriptors in `fds`; gives all its answers.
fn answers(order: &[u8], fds: &[i32]) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut helper = Command::new(helper()).arg("jail").stdin(OwnedFd::from(theirs)).spawn().unwrap();
    let rights = [ControlMessage::ScmRights(fds)];
    let sent =
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(order)], &rights, MsgFlags::empty(), None).unwrap();
    (&ours).write_all(&order[sent..]).unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = Vec::new();
    // The refusal comes first; then a reset, for the helper goes without reading the rest.
    let end = std::io::Read::read_to_end(&mut &ours, &mut answer);
    assert!(end.is_ok_and(|n| n > 0) || !answer.is_empty(), "no answer in time");
    assert!(!helper.wait().unwrap().success());
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_broken_order_is_refused_without_quoting_it() {
    let body = br#"{"argv":["/bin/true"],"env":"the-secret"}"#;
    let order = [&(body.len() as u32).to_le_bytes()[..], body].concat();
    for (order, fds) in [
        (order.as_slice(), &[0, 1, 2][..]),
        (&order, &[0, 1]),
        (&order, &[0, 1, 2, 0]),
        (&[0xff; 4], &[0, 1, 2]),
    ] {
        let answer = answers(order, fds);
        assert!(answer.contains(r#""report":"failed","step":"spec""#), "{answer}");
        assert!(answer.contains(r#""report":"gone""#), "{answer}");
        assert!(!answer.contains("secret"), "{answer}");
    }
}

#[test]
fn the_role_started_by_hand_says_what_it_is() {
    let started =
        Command::new(helper()).arg("jail").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = started.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("the runner starts"));
}

#[test]
fn an_ordinary_user_gets_the_same_jail_and_a_process_limit() {
    if !nix::unistd::getuid().is_root() {
        return; // The other tests have just shown it, and only root can become somebody else.
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = dir.path().join("helper");
    world::install(&helper(), &copy);
    let wrapper = dir.path().join("wrapper");
    let become_nobody = "/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups";
    world::install_script(&wrapper, &format!("exec {become_nobody} {} \"$@\"", copy.display()));
    let script = "id -u; grep processes /proc/self/limits; (setsid sleep 1000 &) ; read line";
    let mut run = start_with(&wrapper, sh(script), |spec| {
        (spec.home, spec.tmp) = (dir.path().join("h"), dir.path().join("t"));
        spec.limits.max_processes = Some(40);
        match &mut spec.isolation {
            Isolation::Strict(view) => view.uid = None,
            Isolation::Light(view) => view.uid = None,
        }
    });
    run.started();
    assert_eq!(run.line(), "65534");
    let limit: u64 = words(&run.line())[2].parse().unwrap();
    assert!((40..4000).contains(&limit), "{limit}");
    run.jailed().kill().unwrap();
    assert_eq!(run.gone().ending, Ending::Signal(9));
}
