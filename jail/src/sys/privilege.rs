//! Namespaces entered, privileges given up.
//!
//! Here: the calls. Not here: their order, which is what makes them sound (see [`crate::strict`]).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_ulong};
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, Pid};

/// CLONE_INTO_CGROUP, which does not fit the type that the C library's constants have.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `fork`, with the child as the first process of new namespaces, and in the cgroup (of version 2) whose directory is given.
pub(crate) fn fork_into(namespaces: CloneFlags, group: Option<BorrowedFd<'_>>) -> Result<ForkResult, Errno> {
    let forked = match group {
        Some(group) => {
            // SAFETY: all zeroes is a valid `clone_args`.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = namespaces.bits() as u64 | INTO_CGROUP;
            args.exit_signal = libc::SIGCHLD as u64;
            args.cgroup = group.as_raw_fd() as u64;
            let size = size_of::<libc::clone_args>();
            // SAFETY: `args` is valid for reading `size` bytes during the call; as to the rest, see below.
            unsafe { libc::syscall(libc::SYS_clone3, &args, size) }
        }
        None => {
            let flags = c_long::from(namespaces.bits() | libc::SIGCHLD);
            let none: c_long = 0;
            // SAFETY: without CLONE_VM and with no stack given this is `fork`: the child goes on with a copy of all
            // memory. The helper is single-threaded, so no lock is held by a thread that the child lacks.
            unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) }
        }
    };
    match Errno::result(forked)? {
        0 => Ok(ForkResult::Child),
        child => Ok(ForkResult::Parent { child: Pid::from_raw(child as i32) }),
    }
}

/// No capability can come back by executing a program, whatever its owner and its attributes. Wants CAP_SETPCAP.
pub(crate) fn bound_capabilities() -> Result<(), Errno> {
    for capability in 0..64 {
        if prctl(libc::PR_CAPBSET_READ, capability).is_err() {
            break; // The kernel knows no capability of this number, nor of any higher one.
        }
        prctl(libc::PR_CAPBSET_DROP, capability)?;
    }
    let all_and_locked = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl(libc::PR_SET_SECUREBITS, all_and_locked as c_ulong).map(drop)
}

/// Gives up every capability that this process has, for it and for all that it forks.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
    // The kernel's own structures, version 3: {version, pid}, then {effective, permitted, inheritable} twice.
    let mut header = [0x2008_0522_u32, 0];
    let nothing = [0_u32; 6];
    // SAFETY: both arrays have the layout that version 3 prescribes and are valid for reading during the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), nothing.as_ptr()) }).map(drop)
}

fn prctl(option: c_int, argument: c_ulong) -> Result<c_int, Errno> {
    let none: c_ulong = 0;
    // SAFETY: the options used here take integers only.
    Errno::result(unsafe { libc::prctl(option, argument, none, none, none) })
}

/// Which Landlock this kernel has; an error where it has none.
pub(crate) fn landlock_abi() -> Result<u32, Errno> {
    let (nothing, size, version) = (std::ptr::null::<u8>(), 0_usize, 1_u32);
    // SAFETY: with the version flag the call takes no attributes and makes no descriptor.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, size, version) };
    Errno::result(abi).map(|abi| abi as u32)
}

/// Puts this process under a rule set of these rights (files, TCP) that allows none of them. For trying only.
pub(crate) fn deny_by_landlock(files: u64, tcp: u64) -> Result<(), Errno> {
    // `landlock_ruleset_attr`; an older kernel takes fewer bytes, and more if they are zero.
    let rights = [files, tcp];
    let (size, no_flags) = (size_of_val(&rights), 0_u32);
    // SAFETY: `rights` is valid for reading `size` bytes during the call.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, rights.as_ptr(), size, no_flags) };
    let made = Errno::result(made)? as RawFd;
    // SAFETY: the call has just made this descriptor, and nobody else owns it.
    let rules = unsafe { OwnedFd::from_raw_fd(made) };
    // SAFETY: takes two integers.
    let held = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), no_flags) };
    Errno::result(held).map(drop)
}

/// The first number that no list of ours has judged: Linux 6.17 ends at 469. From 424 on, all machines have the same ones.
const UNJUDGED: u32 = 470;

/// A filter ahead of all others: no system call that is younger than theirs, and none by a number of another calling
/// convention, which they would not know. (The x32 numbers of x86-64 carry bit 30 and report the same architecture.)
pub(crate) fn refuse_foreign_numbers() -> Result<(), Errno> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { code: at_least as u16, jt: 0, jf: 1, k: UNJUDGED },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` names `len` instructions that live until the call returns; the kernel copies and checks them.
    let set = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&filter))
    };
    Errno::result(set).map(drop)
}
