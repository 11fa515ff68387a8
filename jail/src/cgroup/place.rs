//! Where on this machine a runner can make groups.
//!
//! Here: reading what is mounted and where we are, choosing a group to build below. Not here: the runner's place in it (see
//! [`super::claim`]), the groups of services (see [`super::layout`]).
//!
//! Version 2 gives controllers only to groups whose parent holds no process, so we must leave our own. What we may
//! rearrange like that is: a parent that was delegated to us (systemd's `DelegateSubgroup=sup`, or we ourselves earlier),
//! our own group when nobody else is in it, and for root the top of the hierarchy, which knows no such rule.
//! Invariant: no process of anybody else's is moved.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Unavailable;
use super::files::{pids, read, write};
use super::layout::{Hierarchies, Layout, hand_on};
use crate::process::Process;

/// The group for ourselves, next to the place.
pub(super) const SUPERVISOR: &str = "sup";
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// A process may fork while it is moved; its child is found by the next look.
const MOVES: usize = 5;

const REMEDY: &str = "start it with `systemd-run --user --scope -p Delegate=yes claudemesh up`, from a unit with `Delegate=yes` and \
    `DelegateSubgroup=sup`, or in a container of Docker 28 or later with `--security-opt writable-cgroups=true`";

/// What decides: usually of this process, in tests made up.
pub(super) struct Surroundings {
    pub(super) mountinfo: String,
    pub(super) membership: String,
    pub(super) pid: i32,
    pub(super) is_root: bool,
}

/// One hierarchy, seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    mount: PathBuf,
    own: PathBuf,
}

pub(super) fn unavailable(what: String) -> Unavailable {
    Unavailable { what, remedy: REMEDY }
}

impl Surroundings {
    pub(super) fn read() -> Result<Self, Unavailable> {
        let text = |path: &str| {
            fs::read_to_string(path).map_err(|error| unavailable(format!("{path} can't be read: {error}")))
        };
        Ok(Self {
            mountinfo: text("/proc/self/mountinfo")?,
            membership: text("/proc/self/cgroup")?,
            pid: std::process::id().cast_signed(),
            is_root: nix::unistd::geteuid().is_root(),
        })
    }

    /// The tree of a version 1 controller, or with `None` that of version 2.
    fn tree(&self, controller: Option<&str>) -> Option<Tree> {
        let own = self.membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next()?, fields.next()?);
            let is_it = match controller {
                None => names.is_empty() && line.starts_with("0:"),
                Some(wanted) => names.split(',').any(|name| name == wanted),
            };
            is_it.then_some(path)
        })?;
        self.mountinfo.lines().find_map(|line| mounted(line, controller, own))
    }
}

/// Reads one line of `mountinfo`; see `proc(5)`.
fn mounted(line: &str, controller: Option<&str>, own: &str) -> Option<Tree> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (kind, options) = (kind.next()?, kind.nth(1).unwrap_or(""));
    let fits = match controller {
        None => kind == "cgroup2",
        Some(wanted) => kind == "cgroup" && options.split(',').any(|option| option == wanted),
    };
    // A mount that shows only a part of the tree may not show us.
    let inside = Path::new(own).strip_prefix(root).ok()?;
    let mount = PathBuf::from(unescaped(mount));
    let own = if inside.as_os_str().is_empty() { mount.clone() } else { mount.join(inside) };
    (fits && !own.components().any(|part| part.as_os_str() == "..") && own.is_dir())
        .then_some(Tree { mount, own })
}

/// The four characters that `mountinfo` writes in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The group, one in each tree, to make our place in. Of version 2 it hands the controllers on.
pub(super) fn find(surroundings: &Surroundings) -> Result<Layout, Unavailable> {
    let v2 = surroundings.tree(None);
    let v1 = ["memory", "pids", "cpu"].map(|controller| surroundings.tree(Some(controller)));
    // A controller is in one of the two worlds only.
    match (v2, v1) {
        (_, [Some(memory), Some(pids), Some(cpu)]) => {
            let trees = Hierarchies {
                memory: memory.own,
                pids: pids.own,
                cpu: cpu.own,
                cpuacct: surroundings.tree(Some("cpuacct")).map(|tree| tree.own),
            };
            Ok(Layout::V1(trees))
        }
        (Some(tree), _) => base(surroundings, &tree).map(Layout::V2),
        (None, found) => {
            let missing: Vec<&str> = CONTROLLERS
                .into_iter()
                .zip(&found)
                .filter(|(_, tree)| tree.is_none())
                .map(|(name, _)| name)
                .collect();
            Err(unavailable(format!("no cgroup file system with {} is mounted", missing.join(", "))))
        }
    }
}

/// The version 2 group below which we may make groups that have controllers. It hands them on when this returns.
fn base(surroundings: &Surroundings, tree: &Tree) -> Result<PathBuf, Unavailable> {
    let Tree { mount, own } = tree;
    let is_supervisor = own != mount && own.file_name().is_some_and(|name| name == SUPERVISOR);
    if let Some(parent) = own.parent().filter(|_| is_supervisor)
        && prepare(parent).is_ok()
    {
        return Ok(parent.to_owned());
    }
    let here = leave(surroundings, own).and_then(|()| prepare(own));
    match here {
        Ok(()) => Ok(own.clone()),
        Err(why) if surroundings.is_root && own != mount && is_top(mount) => {
            prepare(mount).map(|()| mount.clone()).map_err(|_| why)
        }
        Err(why) => Err(why),
    }
}

/// The root of the whole hierarchy, as opposed to that of a cgroup namespace: the only group without a type.
fn is_top(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

/// Checks that we may make groups with controllers below this one and move processes between them; enables it.
fn prepare(group: &Path) -> Result<(), Unavailable> {
    check(group)?;
    enable(group)
}

/// Hands the controllers on to the groups below.
pub(super) fn enable(group: &Path) -> Result<(), Unavailable> {
    hand_on(group, &CONTROLLERS).map_err(|error| refused(group, &error))
}

fn check(group: &Path) -> Result<(), Unavailable> {
    let offered = read(group, "cgroup.controllers").map_err(|error| refused(group, &error))?;
    let is_missing = |name: &&str| !offered.split_ascii_whitespace().any(|offer| offer == *name);
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(is_missing).collect();
    if !missing.is_empty() {
        return Err(unavailable(format!("{} has no controller {}", group.display(), missing.join(", "))));
    }
    // Whoever moves a process must be allowed to write to the closest group above both ends.
    for file in ["cgroup.procs", "cgroup.subtree_control"] {
        let path = group.join(file);
        OpenOptions::new().write(true).open(&path).map_err(|error| refused(&path, &error))?;
    }
    Ok(())
}

/// Moves us and our kin to a group below, if nobody else is in this one.
fn leave(surroundings: &Surroundings, own: &Path) -> Result<(), Unavailable> {
    if is_top(own) {
        return Ok(());
    }
    check(own)?;
    let supervisor = own.join(SUPERVISOR);
    for _ in 0..MOVES {
        let members = pids(own).map_err(|error| refused(own, &error))?;
        if members.is_empty() {
            return Ok(());
        }
        if let Some(stranger) = members.iter().find(|pid| !is_kin(**pid, surroundings.pid)) {
            let what = format!("{} holds process {stranger}, which is not ours to move", own.display());
            return Err(unavailable(what));
        }
        match fs::create_dir(&supervisor) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refused(&supervisor, &error));
            }
            _ => {}
        }
        for pid in members {
            match write(&supervisor, "cgroup.procs", &pid.to_string()) {
                // One that has ended meanwhile needs no move.
                Err(error) if Path::new(&format!("/proc/{pid}")).exists() => {
                    return Err(refused(&supervisor, &error));
                }
                _ => {}
            }
        }
    }
    Err(unavailable(format!("{} does not get empty of our own processes", own.display())))
}

/// Ourselves, what we started, what runs the same program (the broker that started this runner), a container's init.
fn is_kin(pid: i32, own: i32) -> bool {
    let program =
        |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).map(|found| (found.dev(), found.ino())).ok();
    let is_same_program = || program(own).is_some_and(|ours| program(pid) == Some(ours));
    let mut ancestor = pid;
    while ancestor > 1 {
        if ancestor == own {
            return true;
        }
        let Some(process) = Process::read(ancestor) else { break };
        ancestor = process.parent;
    }
    pid == own || pid == 1 || is_same_program()
}

pub(super) fn refused(path: &Path, error: &io::Error) -> Unavailable {
    unavailable(format!("{}: {error}", path.display()))
}
