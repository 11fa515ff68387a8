//! The system calls that no safe wrapper offers.
//!
//! Here: `unsafe`, one call a function. Not here: decisions.

pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod privilege;
pub(crate) mod rights;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::ForkResult;

use crate::report::{Ending, Verdict};

/// Closes every descriptor from `first` on. Only for a process that owns nothing above it, or will never use it again.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    close_range(first, u32::MAX)
}

/// Closes every descriptor above 2 but those in `keep`.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = first.max(kept + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes three integers and no pointer. Callers close descriptors whose owners are never used or dropped
    // afterwards: the helper before it opened any, the forked child on its way to `exec` or `_exit`.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(done).map(drop)
}

/// Takes over a descriptor that arrived by SCM_RIGHTS.
pub(crate) fn adopt(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us in `recvmsg`, and each is adopted once.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Keeps the pages that hold this value out of the swap space, also after it is gone.
pub(crate) fn lock<T>(value: &T) -> Result<(), Errno> {
    // SAFETY: the range is that of a reference, and nothing is read or written: the kernel notes that it must stay.
    let done = unsafe { libc::mlock(std::ptr::from_ref(value).cast(), size_of::<T>()) };
    Errno::result(done).map(drop)
}

pub(crate) fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: the helper is single-threaded, so the child may allocate and lock like any process.
    unsafe { nix::unistd::fork() }
}

/// Ends a forked child without running what its parent registered for its own exit.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Every signal back to its default disposition; `exec` alone would keep the ignored ones ignored.
pub(crate) fn default_dispositions() {
    // The kernel's own structure: handler (SIG_DFL is 0), flags, restorer, mask; 64 bits each. Not the C library's
    // call, which refuses the two signals that it keeps for itself, and those can be inherited as ignored, too.
    let default = [0_u64; 4];
    let previous = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: `default` is valid for reading during the call, a null pointer asks for no answer, the size is that
        // of the mask. SIG_DFL installs no handler. KILL and STOP refuse with EINVAL; they are at their default.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), previous, size_of::<u64>())
        };
    }
}

/// A child as `waitid` sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Children {
    /// None is left: the whole tree is gone, since a subreaper inherits every orphan below it.
    None,
    /// There are some, none has ended.
    Alive,
    /// This one has ended and waits to be reaped.
    Ended(i32),
}

/// Looks for an ended child, and leaves it a zombie, so that its pid and process group stay ours until [`reap`].
pub(crate) fn ended_child() -> Result<Children, Errno> {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is valid for writing during the call.
    let done = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) };
    match Errno::result(done) {
        Err(Errno::ECHILD) => Ok(Children::None),
        Err(errno) => Err(errno),
        // SAFETY: after a successful `waitid` the field is set, or zero when no child has ended.
        Ok(_) => match unsafe { info.si_pid() } {
            0 => Ok(Children::Alive),
            pid => Ok(Children::Ended(pid)),
        },
    }
}

/// What an ended child used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    pub(crate) ending: Ending,
    pub(crate) max_rss_kb: u64,
    pub(crate) cpu_ms: u64,
}

impl From<Verdict> for Reaped {
    fn from(Verdict { ending, max_rss_kb, cpu_ms }: Verdict) -> Self {
        Self { ending, max_rss_kb, cpu_ms }
    }
}

/// Reaps a child that [`ended_child`] has seen, so it never waits.
pub(crate) fn reap(pid: i32) -> Result<Reaped, Errno> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for writing during the call.
    Errno::result(unsafe { libc::wait4(pid, &mut status, 0, &mut used) })?;
    let ending = if libc::WIFSIGNALED(status) {
        Ending::Signal(libc::WTERMSIG(status))
    } else {
        Ending::Code(libc::WEXITSTATUS(status))
    };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    Ok(Reaped { ending, max_rss_kb: used.ru_maxrss as u64, cpu_ms: ms(used.ru_utime) + ms(used.ru_stime) })
}

/// A handle that stays on this process even when the pid is given to another.
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(opened)? as RawFd;
    // SAFETY: the call has just made this descriptor (close-on-exec), and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn pidfd_signal(process: &OwnedFd, signal: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is what the call documents for "as kill(2) does it".
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0) };
    Errno::result(sent).map(drop)
}

/// Bytes of a memory page.
pub(crate) fn page_bytes() -> io::Result<u64> {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    size.and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// The number behind an error of the standard library.
pub(crate) fn raw(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
