//! That many jails leave nothing behind in the runner's process.
//!
//! Here: one test, alone in its process, since it counts descriptors and children.

mod support;

use std::fs;
use std::time::Instant;

use nix::poll::{PollTimeout, poll};
use support::*;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Children of this process, zombies included.
fn children() -> usize {
    let me = format!(" {} ", std::process::id());
    let stats = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    stats
        .filter(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.get(2..).is_some_and(|rest| rest.starts_with(&me)))
        })
        .count()
}

#[test]
fn two_hundred_jails_leave_no_process_no_zombie_and_no_descriptor() {
    let argv = daemonising("");
    drop(start(sh("exit 0")));
    let (fds_before, children_before) = (descriptors(), children());
    let mut marks = Vec::new();
    for turn in 0..200 {
        let mut run = start(match turn % 4 {
            0 => argv.clone(),
            1 => sh("(setsid sleep 1000 &); exit 1"),
            2 => vec!["/nowhere".into()],
            _ => sh("sleep 1000 & echo; wait"),
        });
        marks.push(run.mark.clone());
        if turn == 3 {
            assert!(children() > children_before, "the count sees helpers");
        }
        match turn % 4 {
            // Killed before, while and after the server starts; dropped without a wait.
            0 => drop(run.jailed.take()),
            3 => {
                run.line();
                drop(run.jailed.take());
            }
            _ => drop(run.rest()),
        }
    }
    let deadline = Instant::now() + LIMIT;
    while jail::reap_dropped() > 0 {
        assert!(Instant::now() < deadline, "helpers are still there");
        // Nothing signals the end of a dropped helper but its pid.
        poll(&mut [], PollTimeout::from(5_u8)).unwrap();
    }
    assert_eq!(children(), children_before);
    assert_eq!(descriptors(), fds_before);
    assert_eq!(marks.iter().flat_map(|mark| survivors(mark)).collect::<Vec<_>>(), [0; 0]);
}
