//! Descriptors that travel beside bytes on a socket.
//!
//! Here: one send, one receipt. Not here: what they mean.
//! Invariant: whatever descriptor arrives has an owner at once, also when others were lost on the way.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use super::adopt;

/// Words for the largest number of descriptors that the kernel sends at once (253), and for the sender.
const SPACE: usize = 160;

/// Sends `bytes`, with `fds` beside the first of them. Says how many bytes went.
pub(crate) fn send(
    socket: &UnixStream,
    bytes: &[u8],
    fds: &[impl AsFd],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags | MsgFlags::MSG_NOSIGNAL, None)
}

/// What one receipt brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Bytes; none at the end of the connection.
    pub(crate) length: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// Who sent it, if the socket asks for that.
    pub(crate) sender: Option<Pid>,
    /// Some descriptors did not get through: this process has too many.
    pub(crate) is_cut: bool,
}

/// Receives into `bytes`. The kernel ends a receipt behind bytes that descriptors came with.
pub(crate) fn receive(socket: &UnixStream, bytes: &mut [u8]) -> Result<Received, Errno> {
    let mut space = [0_u64; SPACE];
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes is a valid `msghdr`: no name, no bytes, no control part.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut piece;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space) as _;
    // SAFETY: `message` names `bytes` and `space`, both valid for writing and with their true sizes during the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = Errno::result(got)? as usize;
    let is_cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    let mut received = Received { length, is_cut, ..Received::default() };
    // SAFETY: the kernel has filled the control part and set its length; `space` is aligned for a header and lives.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !part.is_null() {
        // SAFETY: FIRSTHDR and NXTHDR give null or a whole header inside the control part.
        let header = unsafe { &*part };
        // SAFETY: as above, and the data of `cmsg_len` bytes follows the header.
        let (data, none) = unsafe { (libc::CMSG_DATA(part), libc::CMSG_LEN(0) as usize) };
        let size = (header.cmsg_len as usize).saturating_sub(none);
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for place in 0..size / size_of::<RawFd>() {
                    // SAFETY: `place` is inside the data, whose numbers may lie unaligned.
                    received.fds.push(adopt(unsafe { data.cast::<RawFd>().add(place).read_unaligned() }));
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                // SAFETY: the data holds a whole `ucred`, which may lie unaligned.
                let sender = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                received.sender = Some(Pid::from_raw(sender.pid));
            }
            _ => {}
        }
        // SAFETY: `part` is a header of this message.
        part = unsafe { libc::CMSG_NXTHDR(&message, part) };
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_arrive_with_the_bytes_they_were_sent_with_and_not_later() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let none: [OwnedFd; 0] = [];
        send(&ours, b"a", &none, MsgFlags::empty()).unwrap();
        let many: Vec<OwnedFd> = (0..253).map(|_| file.try_clone().unwrap().into()).collect();
        send(&ours, b"b", &many, MsgFlags::empty()).unwrap();
        send(&ours, b"c", &none, MsgFlags::empty()).unwrap();
        let mut bytes = [0; 16];
        let first = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((first.length, first.fds.len(), first.is_cut), (2, 253, false));
        let rest = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((&bytes[..rest.length], rest.fds.len()), (&b"c"[..], 0));
    }
}
