//! That a strict jail is whole or not at all.
//!
//! Here: specs that can't be built and machines that lack something; each names its step and starts nothing.
//! Not here: what a jail that was built holds (see `strict.rs`).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::fs;

use jail::{Isolation, JailSpec, Report, Step, View};
use support::world::*;
use support::*;

/// The failure, after checking that no server was reported.
fn refusal(mut run: Run) -> (Step, String) {
    let reports: Vec<_> =
        run.rest().into_iter().filter(|report| !matches!(report, Report::Step { .. })).collect();
    let [Report::Failed { step, message, .. }, Report::Gone] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!(survivors(&run.mark), [0; 0]);
    assert!(!run.jailed().wait(LIMIT).unwrap().unwrap().success());
    (*step, message.clone())
}

#[test]
fn a_view_that_can_not_be_built_starts_nothing_and_names_the_step() {
    let world = World::new();
    std::os::unix::fs::symlink(world.path("code"), world.path("link")).unwrap();
    type Change = fn(&World, &mut JailSpec);
    let cases: [(Change, Step, &str); 5] = [
        (|w, s| strict(s).read_only.push(w.path("nothing")), Step::Sources, "nothing"),
        (|w, s| strict(s).read_only.push(w.path("link")), Step::Sources, "symbolic link"),
        (|w, s| strict(s).read_only.push(w.path("link/sub")), Step::Sources, "symbolic link"),
        (|w, s| s.home = w.path("secret"), Step::Directories, "secret"),
        (|_, s| strict(s).tmpfs_bytes = 1, Step::Exec, "nowhere"),
    ];
    for (change, step, word) in cases {
        let run = start_strict(&world, vec!["/nowhere".into()], None, |spec| change(&world, spec));
        let (failed, message) = refusal(run);
        assert_eq!(failed, step, "{message}");
        assert!(message.contains(word), "{message}");
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
        (libc::SYS_clone, Step::Namespaces),
        (libc::SYS_openat2, Step::Sources),
        (libc::SYS_setresuid, if is_root { Step::Identity } else { Step::Exec }),
        (libc::SYS_sethostname, Step::Network),
        (libc::SYS_mount, Step::Root),
        (libc::SYS_open_tree, Step::System),
        (libc::SYS_mount_setattr, Step::System),
        (libc::SYS_move_mount, Step::System),
        (libc::SYS_pivot_root, Step::Pivot),
        (libc::SYS_umount2, Step::Pivot),
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
            spec.isolation = Isolation::Strict(View { uid: world.uid, ..View::default() });
        });
        let (failed, message) = refusal(run);
        assert_eq!(failed, step, "without {call}: {message}");
    }
}

#[test]
fn without_user_namespaces_nothing_starts() {
    if system("python3").is_none() {
        return;
    }
    let world = World::new();
    let (wrapper, script, copy) =
        (world.path("wrapper"), world.path("code/no_namespaces.py"), world.path("helper"));
    fs::write(&script, include_str!("hostile/no_namespaces.py")).unwrap();
    install(&helper(), &copy);
    let line = format!("exec /usr/bin/python3 {} {} \"$@\"", script.display(), copy.display());
    install_script(&wrapper, &line);
    let run = start_with(&wrapper, sh(":"), |spec| {
        world.furnish(spec);
        spec.isolation = Isolation::Strict(View::default());
    });
    let (step, message) = refusal(run);
    assert_eq!(step, Step::Namespaces, "{message}");
    assert!(message.contains("ENOSPC"), "{message}");
}

#[test]
fn root_must_give_a_uid_and_a_user_can_give_none_but_its_own() {
    let world = World::new();
    let is_root = nix::unistd::getuid().is_root();
    let wrong = if is_root { None } else { Some(12345) };
    let run = start_strict(&world, sh(":"), None, |spec| strict(spec).uid = wrong);
    assert_eq!(refusal(run).0, Step::Identity);
    if is_root {
        let other = start_strict(&world, sh(":"), Some(1000), |spec| strict(spec).uid = Some(1001));
        assert!(refusal(other).1.contains("only root"));
    }
}

#[test]
fn a_home_of_another_service_is_refused_and_an_unused_one_of_roots_is_taken() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let world = World::new();
    fs::create_dir(world.path("data/home")).unwrap();
    start_strict(&world, sh(":"), None, |_| {}).gone();
    let (step, message) = refusal(start_strict(&world, sh(":"), None, |spec| strict(spec).uid = view().uid));
    assert_eq!(step, Step::Directories);
    assert!(message.contains("no directory of uid"), "{message}");
    let world = World::new();
    fs::create_dir_all(world.path("data/home/of-root")).unwrap();
    assert_eq!(refusal(start_strict(&world, sh(":"), None, |_| {})).0, Step::Directories, "used by root");
}
