//! The system calls that no server needs and that have let people out of sandboxes, refused.
//!
//! Here: the list, and how each is refused. Not here: limits by user or file, which other steps hold.
//! Invariant: a call that a run-time library tries and can do without answers ENOSYS, so that it takes its other way;
//! everything else answers EPERM. A call that is younger than this list is ENOSYS, too: nobody has judged it yet. Nothing
//! is killed, and memory stays executable: V8 needs it.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::libc::*;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sys::privilege::refuse_foreign_numbers;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Each with a way round that libraries know.
const UNKNOWN: [c_long; 5] =
    [SYS_clone3, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_memfd_secret];

/// Calls that are younger than the C library's list; their numbers are the same on every machine.
const PROCESS_MRELEASE: c_long = 448;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_SET_SELF_ATTR: c_long = 460;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;

const REFUSED: [c_long; 66] = [
    // Other processes.
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_process_madvise,
    SYS_pidfd_getfd,
    SYS_kcmp,
    PROCESS_MRELEASE,
    // Namespaces and mounts.
    SYS_unshare,
    SYS_setns,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_open_tree,
    OPEN_TREE_ATTR,
    STATMOUNT,
    LISTMOUNT,
    SYS_move_mount,
    SYS_mount_setattr,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    SYS_fanotify_init,
    SYS_quotactl,
    SYS_quotactl_fd,
    FILE_SETATTR,
    LSM_SET_SELF_ATTR,
    // The kernel's keys, programs, counters and page faults.
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    // The machine.
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_syslog,
    SYS_vhangup,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_nfsservctl,
    SYS_lookup_dcookie,
    SYS_personality,
    // Memory of others, by node.
    SYS_migrate_pages,
    SYS_move_pages,
    SYS_mbind,
    SYS_set_mempolicy,
    SYS_set_mempolicy_home_node,
    // Of x86 only: repeated elsewhere so that the list keeps its length.
    OF_X86[0],
    OF_X86[1],
    OF_X86[2],
    OF_X86[3],
    OF_X86[4],
];

#[cfg(target_arch = "x86_64")]
const OF_X86: [c_long; 5] = [SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib, SYS_ustat];
#[cfg(not(target_arch = "x86_64"))]
const OF_X86: [c_long; 5] = [SYS_acct; 5];

const NEW_NAMESPACES: u64 = (CLONE_NEWUSER
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWNET
    | CLONE_NEWIPC
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
    | CLONE_NEWTIME) as u64;
/// Besides, in a light jail. A socket that listens without having been bound gets a port that Landlock was not asked about.
const REFUSED_LIGHT: [c_long; 6] = [SYS_listen, SYS_shmget, SYS_shmat, SYS_msgget, SYS_semget, SYS_mq_open];
const IOPRIO_WHO_PROCESS_NUMBER: u64 = 1;

/// The kind of a socket, without SOCK_CLOEXEC and SOCK_NONBLOCK.
const KIND: u64 = 0xf;
/// An old way to a packet socket.
const SOCK_PACKET_NUMBER: c_int = 10;
/// The rest goes round TCP's rules, or is a part of the kernel that it would load for anybody who asks.
const PROTOCOLS: [c_int; 5] = [0, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6];
/// TCP_FASTOPEN_CONNECT, and TCP_ULP, which puts another protocol into a socket's place.
const TCP_OPTIONS: [u64; 2] = [30, 31];
/// A lease makes whoever opens the file wait for its holder: with one uid for all, the runner and other services, too.
const F_SETLEASE_NUMBER: u64 = 1024;
/// TIOCSTI, TIOCLINUX, TIOCSETD: typing into a terminal, selecting on a console, another line discipline.
const TERMINAL: [u64; 3] = [0x5412, 0x541c, 0x5423];

/// Whose process is filtered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Filter {
    Strict,
    /// Landlock does not hold every way to the network, and nothing keeps System V's objects and other processes of the
    /// uid apart. `path_sockets`: Landlock holds those.
    Light {
        path_sockets: bool,
    },
}

/// For the process that is about to become the server, after `no_new_privs`. Lasts for all that it executes.
pub(crate) fn install(filter: Filter) -> Result<(), SetupError> {
    apply(filter).map_err(|what| build(Step::Seccomp, what, Errno::ENOTSUP))
}

fn apply(filter: Filter) -> Result<(), String> {
    let text = |error: seccompiler::Error| error.to_string();
    let refused = compile(refused(filter).map_err(|error| error.to_string())?, EPERM)?;
    let unknown = compile(UNKNOWN.map(|call| (call, Vec::new())).into(), ENOSYS)?;
    seccompiler::apply_filter(&refused).map_err(text)?;
    seccompiler::apply_filter(&unknown).map_err(text)?;
    refuse_foreign_numbers().map_err(|errno| errno.to_string())
}

fn compile(rules: Rules, errno: c_int) -> Result<BpfProgram, String> {
    let text = |error: BackendError| error.to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).map_err(text)?;
    filter.try_into().map_err(text)
}

fn refused(filter: Filter) -> Result<Rules, BackendError> {
    let mut rules: Rules = REFUSED.map(|call| (call, Vec::new())).into();
    let mut each_namespace = Vec::new();
    for bit in (0..64).map(|shift| 1_u64 << shift).filter(|bit| NEW_NAMESPACES & bit != 0) {
        each_namespace.push(rule([argument(0, Width::Qword, Is::MaskedEq(bit), bit)?])?);
    }
    rules.insert(SYS_clone, each_namespace);
    rules.insert(SYS_socket, sockets()?);
    rules.insert(SYS_socketpair, vec![rule([argument(0, Width::Dword, Is::Ne, AF_UNIX as u64)?])?]);
    let fast = |place| {
        rule([argument(place, Width::Dword, Is::MaskedEq(MSG_FASTOPEN as u64), MSG_FASTOPEN as u64)?])
    };
    rules.insert(SYS_sendto, vec![fast(3)?]);
    rules.insert(SYS_sendmsg, vec![fast(2)?]);
    rules.insert(SYS_sendmmsg, vec![fast(3)?]);
    let option = |option| {
        rule([
            argument(1, Width::Dword, Is::Eq, IPPROTO_TCP as u64)?,
            argument(2, Width::Dword, Is::Eq, option)?,
        ])
    };
    rules.insert(SYS_setsockopt, TCP_OPTIONS.into_iter().map(option).collect::<Result<_, _>>()?);
    rules.insert(SYS_fcntl, vec![rule([argument(1, Width::Dword, Is::Eq, F_SETLEASE_NUMBER)?])?]);
    let terminal = TERMINAL.map(|request| rule([argument(1, Width::Dword, Is::Eq, request)?]));
    rules.insert(SYS_ioctl, terminal.into_iter().collect::<Result<_, _>>()?);
    if let Filter::Light { path_sockets } = filter {
        rules.insert(SYS_socket, light_sockets(path_sockets)?);
        rules.extend(REFUSED_LIGHT.map(|call| (call, Vec::new())));
        rules.extend(of_others()?);
    }
    Ok(rules)
}

/// What a process may do to others of its uid, without being in their pid namespace: only to itself.
fn of_others() -> Result<Rules, BackendError> {
    let differs = |place, value| rule([argument(place, Width::Dword, Is::Ne, value)?]);
    let mut rules = Rules::new();
    for call in
        [SYS_prlimit64, SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam, SYS_sched_setscheduler]
    {
        rules.insert(call, vec![differs(0, 0)?]);
    }
    // A kind of target, then which one.
    rules.insert(SYS_setpriority, vec![differs(0, PRIO_PROCESS as u64)?, differs(1, 0)?]);
    rules.insert(SYS_ioprio_set, vec![differs(0, IOPRIO_WHO_PROCESS_NUMBER)?, differs(1, 0)?]);
    Ok(rules)
}

/// Refused: everything but TCP, and path sockets where nothing else decides about them.
fn light_sockets(path_sockets: bool) -> Result<Vec<SeccompRule>, BackendError> {
    let not_unix = || argument(0, Width::Dword, Is::Ne, AF_UNIX as u64);
    let mut families = vec![AF_INET, AF_INET6];
    families.extend(path_sockets.then_some(AF_UNIX));
    let other_family = families.into_iter().map(|family| argument(0, Width::Dword, Is::Ne, family as u64));
    let mut rules = vec![SeccompRule::new(other_family.collect::<Result<_, _>>()?)?];
    // A masked value can be compared for being equal only.
    for kind in (0..=KIND).filter(|kind| *kind != SOCK_STREAM as u64) {
        rules.push(rule([not_unix()?, argument(1, Width::Dword, Is::MaskedEq(KIND), kind)?])?);
    }
    rules.push(rule([
        not_unix()?,
        argument(2, Width::Dword, Is::Ne, 0)?,
        argument(2, Width::Dword, Is::Ne, IPPROTO_TCP as u64)?,
    ])?);
    Ok(rules)
}

/// Refused: every family but these three and the list of one's own addresses; raw and packet kinds; protocols but the
/// ordinary ones.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let other_family = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];
    let other_family = other_family.map(|family| argument(0, Width::Dword, Is::Ne, family as u64));
    let other_family = SeccompRule::new(other_family.into_iter().collect::<Result<_, _>>()?)?;
    let other_netlink = rule([
        argument(0, Width::Dword, Is::Eq, AF_NETLINK as u64)?,
        argument(2, Width::Dword, Is::Ne, NETLINK_ROUTE as u64)?,
    ])?;
    // Netlink sockets are of the raw kind by nature; the rule above is theirs.
    let kind = |kind: c_int| {
        rule([
            argument(0, Width::Dword, Is::Ne, AF_NETLINK as u64)?,
            argument(1, Width::Dword, Is::MaskedEq(KIND), kind as u64)?,
        ])
    };
    let internet = [AF_UNIX, AF_NETLINK].map(|family| argument(0, Width::Dword, Is::Ne, family as u64));
    let other_protocol =
        PROTOCOLS.map(|protocol| argument(2, Width::Dword, Is::Ne, protocol.unsigned_abs().into()));
    let other_protocol = internet.into_iter().chain(other_protocol).collect::<Result<_, _>>()?;
    Ok(vec![
        other_family,
        other_netlink,
        kind(SOCK_RAW)?,
        kind(SOCK_PACKET_NUMBER)?,
        kind(SOCK_RDM)?,
        SeccompRule::new(other_protocol)?,
    ])
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

fn argument(place: u8, width: Width, is: Is, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(place, width, is, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_compile_and_no_call_is_in_two_lists() {
        for filter in
            [Filter::Strict, Filter::Light { path_sockets: false }, Filter::Light { path_sockets: true }]
        {
            let rules = refused(filter).unwrap();
            assert!(UNKNOWN.iter().all(|call| !rules.contains_key(call)));
            assert!(compile(rules, EPERM).is_ok());
        }
    }

    #[test]
    fn a_light_jail_refuses_whatever_a_strict_one_refuses() {
        let light = refused(Filter::Light { path_sockets: true }).unwrap();
        let strict = refused(Filter::Strict).unwrap();
        let weaker =
            strict.iter().filter(|(call, rules)| **call != SYS_socket && light.get(call) != Some(*rules));
        assert_eq!(weaker.count(), 0);
    }
}
