//! What this machine lets us build, found by trying.
//!
//! Here: one attempt a primitive, each in a forked child that ends with it. Not here: what to do about a refusal; but
//! each primitive says what usually grants it.
//! Invariant: the children call nothing that allocates or locks, so a process with threads may ask, too.

use std::fmt::Arguments;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, ForkResult, Gid, Pid, Uid, chdir, pivot_root};

use crate::sys;
use crate::sys::mount::{NO_SUID, READ_ONLY, clone_tree, restrict_tree};
use crate::sys::network::{raise_loopback, route_fakes};
use crate::sys::privilege::{deny_by_landlock, fork_into, landlock_abi, refuse_foreign_numbers};

/// Any but root's.
const SOME_UID: u32 = 20_001;
const LANDLOCK_READ_FILE: u64 = 1 << 2;
const LANDLOCK_CONNECT_TCP: u64 = 1 << 1;

/// Every attempt takes milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// The kinds of jail, weaker first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    Light,
    Strict,
}

/// One thing that a jail is built of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Primitive {
    /// Descriptors closed by range, paths opened without symbolic links, processes held by descriptor.
    SystemCalls,
    /// A service's uid other than our own: only asked of root.
    ServiceUid,
    /// Rules for files.
    Landlock,
    /// Rules for TCP.
    LandlockNet,
    Seccomp,
    UserNamespace,
    /// A service's uid in a user namespace: only asked of root.
    MappedUid,
    /// Mount, pid, ipc, uts and cgroup.
    Namespaces,
    NetworkNamespace,
    /// Memory file systems, and binds made read-only.
    Mounts,
    PivotRoot,
    /// Of a pid namespace's own, with the limit on further user namespaces.
    FreshProc,
}

/// Why a primitive is not there, and what usually grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{primitive} is refused ({errno}): {}", primitive.remedy())]
pub struct Refused {
    pub primitive: Primitive,
    pub errno: Errno,
}

impl Primitive {
    pub const ALL: [Self; 12] = [
        Self::SystemCalls,
        Self::ServiceUid,
        Self::Landlock,
        Self::LandlockNet,
        Self::Seccomp,
        Self::UserNamespace,
        Self::MappedUid,
        Self::Namespaces,
        Self::NetworkNamespace,
        Self::Mounts,
        Self::PivotRoot,
        Self::FreshProc,
    ];

    /// The jails that can't be built without it. Not always both when it is the light one: a strict jail has no use for
    /// [`Self::LandlockNet`], so a kernel of before Linux 6.7 can hold the stronger of the two.
    pub fn needed_by(self) -> &'static [Tier] {
        match self {
            Self::SystemCalls | Self::ServiceUid | Self::Landlock | Self::Seccomp => {
                &[Tier::Light, Tier::Strict]
            }
            Self::LandlockNet => &[Tier::Light],
            Self::UserNamespace
            | Self::MappedUid
            | Self::Namespaces
            | Self::NetworkNamespace
            | Self::Mounts
            | Self::PivotRoot
            | Self::FreshProc => &[Tier::Strict],
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::SystemCalls => "system_calls",
            Self::ServiceUid => "service_uid",
            Self::Landlock => "landlock",
            Self::LandlockNet => "landlock_net",
            Self::Seccomp => "seccomp",
            Self::UserNamespace => "user_namespace",
            Self::MappedUid => "mapped_uid",
            Self::Namespaces => "namespaces",
            Self::NetworkNamespace => "network_namespace",
            Self::Mounts => "mounts",
            Self::PivotRoot => "pivot_root",
            Self::FreshProc => "fresh_proc",
        }
    }

    /// What usually grants it, for a person to read.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::SystemCalls => "Linux 5.13 or newer, and no filter around it that is older",
            Self::ServiceUid => {
                "root with CAP_SETUID and CAP_SETGID (in Docker: `--cap-add SETUID --cap-add SETGID`), or no root"
            }
            Self::Landlock => "Linux 5.13 or newer with `landlock` in the kernel's `lsm=` list",
            Self::LandlockNet => "Linux 6.7 or newer with `landlock` in the kernel's `lsm=` list",
            Self::Seccomp => "a kernel with CONFIG_SECCOMP_FILTER",
            Self::UserNamespace | Self::Namespaces => {
                "on a host: `sysctl -w user.max_user_namespaces=10000`, on Debian before 11 `sysctl -w \
                 kernel.unprivileged_userns_clone=1`, on Ubuntu an AppArmor profile with `userns,` for this program or \
                 `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`; in Docker, with images/seccomp-runner.json of \
                 the source as PROFILE: `docker run --user 1000:1000 --cap-drop ALL --security-opt no-new-privileges --security-opt \
                 seccomp=PROFILE --security-opt apparmor=unconfined --security-opt systempaths=unconfined …`"
            }
            Self::MappedUid => "root with CAP_SETUID and CAP_SETGID in its own user namespace, or no root",
            Self::NetworkNamespace => {
                "`sysctl -w user.max_net_namespaces=10000`; in Docker: as for user_namespace"
            }
            Self::Mounts | Self::PivotRoot => {
                "in Docker: as for user_namespace; another profile must allow mount, umount2, pivot_root, open_tree, move_mount \
                 and mount_setattr"
            }
            // The kernel gives no fresh one where parts of the present one are hidden.
            Self::FreshProc if unistd::geteuid().is_root() => {
                "in Docker: run it as another user, `--user 1000:1000 --security-opt systempaths=unconfined`. Not \
                 systempaths=unconfined alone: with that a root in the container can write the host's core_pattern, which is \
                 a way out of the container"
            }
            Self::FreshProc => {
                "in Docker: `--security-opt systempaths=unconfined`, and never without `--user 1000:1000`"
            }
        }
    }

    fn attempt(self) -> Result<(), Errno> {
        match self {
            Self::SystemCalls => system_calls(),
            Self::ServiceUid => service_uid(),
            Self::Landlock => landlock(1, [LANDLOCK_READ_FILE, 0]),
            Self::LandlockNet => landlock(4, [LANDLOCK_READ_FILE, LANDLOCK_CONNECT_TCP]),
            Self::Seccomp => prctl::set_no_new_privs().and_then(|()| refuse_foreign_numbers()),
            Self::UserNamespace => enter(CloneFlags::empty()),
            Self::MappedUid => mapped_uid(),
            Self::Namespaces => enter(
                CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS
                    | CloneFlags::CLONE_NEWCGROUP,
            ),
            Self::NetworkNamespace => {
                enter(CloneFlags::CLONE_NEWNET).and_then(|()| raise_loopback()).and_then(|()| route_fakes())
            }
            Self::Mounts => mounts(),
            Self::PivotRoot => empty_root().and_then(|()| pivot_root(".", ".")),
            Self::FreshProc => fresh_proc(),
        }
    }
}

impl std::fmt::Display for Primitive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Tries everything; takes some tens of milliseconds.
pub fn probe() -> Vec<(Primitive, Result<(), Refused>)> {
    Primitive::ALL.into_iter().map(|primitive| (primitive, tried(primitive))).collect()
}

/// Whether a strict jail can be built here; if not, the first primitive that is missing. A view with the host's network
/// could do without a network namespace, but no machine is known that has the others and not that.
pub fn strict_available() -> Result<(), Refused> {
    available(Tier::Strict)
}

/// Whether a light jail can be built here; if not, the first primitive that is missing.
pub fn light_available() -> Result<(), Refused> {
    available(Tier::Light)
}

fn available(tier: Tier) -> Result<(), Refused> {
    let is_needed = |primitive: &Primitive| primitive.needed_by().contains(&tier);
    Primitive::ALL.into_iter().filter(is_needed).try_for_each(tried)
}

fn tried(primitive: Primitive) -> Result<(), Refused> {
    in_a_child(|| primitive.attempt()).map_err(|errno| Refused { primitive, errno })
}

/// The attempt's error travels as the exit code; no number of an error is over 255.
fn in_a_child(attempt: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    match sys::fork()? {
        ForkResult::Child => sys::exit_now(attempt().map_or_else(|errno| errno as i32, |()| 0)),
        ForkResult::Parent { child } => judge(child),
    }
}

fn judge(child: Pid) -> Result<(), Errno> {
    // Before anything that can fail: a child that hangs must not make us hang.
    let is_over = sys::pidfd_open(child.as_raw()).and_then(|handle| {
        let timeout = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout)
    });
    if is_over != Ok(1) {
        let _ = kill(child, Signal::SIGKILL);
    }
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
        _ if is_over == Ok(1) => Err(Errno::EINTR),
        _ => Err(Errno::ETIMEDOUT),
    }
}

fn system_calls() -> Result<(), Errno> {
    sys::close_from(1 << 20)?;
    sys::pidfd_open(Pid::this().as_raw())?;
    let how = OpenHow::new().flags(OFlag::O_PATH).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, "/", how).map(drop)
}

/// Into a user namespace with our own uid in it, and into `more`.
fn enter(more: CloneFlags) -> Result<(), Errno> {
    let (uid, gid) = (unistd::geteuid().as_raw(), unistd::getegid().as_raw());
    prctl::set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWUSER | more)?;
    write("/proc/self/uid_map", format_args!("{uid} {uid} 1\n"))?;
    write("/proc/self/setgroups", format_args!("deny"))?;
    write("/proc/self/gid_map", format_args!("{gid} {gid} 1\n"))
}

/// One `write`, as the maps demand.
fn write(path: &str, text: Arguments<'_>) -> Result<(), Errno> {
    let text = Line::of(text)?;
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    unistd::write(&file, text.as_str().as_bytes()).map(drop)
}

/// Text on the stack.
struct Line {
    bytes: [u8; 64],
    length: usize,
}

impl Line {
    fn of(text: Arguments<'_>) -> Result<Self, Errno> {
        let mut line = Self { bytes: [0; 64], length: 0 };
        let mut rest = &mut line.bytes[..];
        rest.write_fmt(text).map_err(|_| Errno::ENOBUFS)?;
        let left = rest.len();
        line.length = line.bytes.len() - left;
        Ok(line)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

/// A rule set of these rights, in this version or a later one.
fn landlock(least: u32, [files, tcp]: [u64; 2]) -> Result<(), Errno> {
    if landlock_abi()? < least {
        return Err(Errno::EOPNOTSUPP);
    }
    prctl::set_no_new_privs()?;
    deny_by_landlock(files, tcp)
}

fn service_uid() -> Result<(), Errno> {
    if !unistd::geteuid().is_root() {
        return Ok(());
    }
    unistd::setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(SOME_UID), Gid::from_raw(SOME_UID));
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)
}

fn mapped_uid() -> Result<(), Errno> {
    if !unistd::geteuid().is_root() {
        return Ok(());
    }
    match fork_into(CloneFlags::CLONE_NEWUSER, None)? {
        ForkResult::Child => {
            unistd::pause();
            sys::exit_now(0)
        }
        ForkResult::Parent { child } => {
            let mapped = Line::of(format_args!("/proc/{child}/uid_map"))
                .and_then(|path| write(path.as_str(), format_args!("{SOME_UID} {SOME_UID} 1\n")));
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            mapped
        }
    }
}

fn empty_root() -> Result<(), Errno> {
    enter(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    chdir("/proc")
}

fn mounts() -> Result<(), Errno> {
    empty_root()?;
    let usr = open("/usr", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    restrict_tree(clone_tree(&usr)?, READ_ONLY | NO_SUID)
}

fn fresh_proc() -> Result<(), Errno> {
    enter(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
    // Only a child is in the new pid namespace.
    in_a_child(|| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
        write("/proc/sys/user/max_user_namespaces", format_args!("0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_judged_by_what_became_of_it() {
        assert_eq!(in_a_child(|| Ok(())), Ok(()));
        assert_eq!(in_a_child(|| Err(Errno::EPERM)), Err(Errno::EPERM));
        let killed = in_a_child(|| kill(Pid::this(), Signal::SIGKILL));
        assert_eq!(killed, Err(Errno::EINTR));
    }

    #[test]
    fn a_refusal_names_the_primitive_and_a_way_to_it() {
        let refused = Refused { primitive: Primitive::FreshProc, errno: Errno::EPERM };
        let text = refused.to_string();
        assert!(text.contains("fresh_proc") && text.contains("systempaths=unconfined"), "{text}");
    }

    #[test]
    fn a_tier_is_there_when_nothing_that_it_needs_is_refused() {
        let found = probe();
        for (tier, there) in [(Tier::Light, light_available()), (Tier::Strict, strict_available())] {
            let needed = found.iter().filter(|(primitive, _)| primitive.needed_by().contains(&tier));
            let first = needed.clone().find_map(|(_, result)| result.err());
            assert_eq!(there.err(), first);
            assert!(needed.count() >= 5);
        }
        assert!(!Primitive::LandlockNet.needed_by().contains(&Tier::Strict), "Linux 6.1 holds a strict jail");
    }

    #[test]
    fn every_primitive_has_a_name_of_its_own_and_a_remedy() {
        let names: std::collections::BTreeSet<_> = Primitive::ALL.iter().map(|one| one.as_str()).collect();
        assert_eq!(names.len(), Primitive::ALL.len());
        assert!(Primitive::ALL.iter().all(|one| one.remedy().len() > 20));
    }

    #[test]
    fn probing_changes_nothing_here() {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = (mounts(), std::fs::read_link("/proc/self/ns/user").unwrap());
        let found = probe();
        assert_eq!(found.len(), Primitive::ALL.len());
        assert_eq!((mounts(), std::fs::read_link("/proc/self/ns/user").unwrap()), before);
    }
}
