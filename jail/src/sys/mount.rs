//! Mounts by descriptor: what is bound is what was opened, whatever its path means by then.
//!
//! Here: the three calls of the descriptor interface. Not here: which trees, and where (see [`crate::strict`]).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(crate) const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(crate) const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(crate) const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

const HERE: &std::ffi::CStr = c"";

/// A copy of the mount at `source` and of all below it, attached nowhere yet.
pub(crate) fn clone_tree(source: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_EMPTY_PATH as libc::c_uint
        | libc::AT_RECURSIVE as libc::c_uint;
    let source = source.as_fd().as_raw_fd();
    // SAFETY: the path is a constant C string; the rest are integers.
    let opened = unsafe { libc::syscall(libc::SYS_open_tree, source, HERE.as_ptr(), flags) };
    let fd = Errno::result(opened)? as RawFd;
    // SAFETY: the call has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds attributes to a mount and all below it. Nothing is ever taken away, so what a more privileged namespace locked
/// is no obstacle.
pub(crate) fn restrict_tree(tree: impl AsFd, attributes: u64) -> Result<(), Errno> {
    set_attributes(tree, attributes, libc::AT_RECURSIVE)
}

/// Adds attributes to one mount and to none below it.
pub(crate) fn restrict_mount(mount: impl AsFd, attributes: u64) -> Result<(), Errno> {
    set_attributes(mount, attributes, 0)
}

fn set_attributes(mount: impl AsFd, attributes: u64, reach: libc::c_int) -> Result<(), Errno> {
    // SAFETY: all zeroes is a valid `mount_attr`: it changes nothing.
    let mut wanted: libc::mount_attr = unsafe { std::mem::zeroed() };
    wanted.attr_set = attributes;
    let flags = reach | libc::AT_EMPTY_PATH;
    let mount = mount.as_fd().as_raw_fd();
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a constant C string, and `wanted` is valid for reading `size` bytes during the call.
    let set = unsafe { libc::syscall(libc::SYS_mount_setattr, mount, HERE.as_ptr(), flags, &wanted, size) };
    Errno::result(set).map(drop)
}

/// Puts a copy made by [`clone_tree`] on top of `place`.
pub(crate) fn attach_tree(tree: impl AsFd, place: impl AsFd) -> Result<(), Errno> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (tree, place) = (tree.as_fd().as_raw_fd(), place.as_fd().as_raw_fd());
    let here = HERE.as_ptr();
    // SAFETY: both paths are constant C strings; the rest are integers.
    Errno::result(unsafe { libc::syscall(libc::SYS_move_mount, tree, here, place, here, flags) }).map(drop)
}
