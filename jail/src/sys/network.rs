//! A network namespace of one's own, made useful.
//!
//! Here: the loopback, the one route, sockets that listen. Not here: which of them a jail gets (see
//! [`crate::strict`]).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, listen, recv, send, setsockopt,
    socket, sockopt,
};

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;
/// Every address in it is local to a filtered jail. Of no special purpose, on purpose: servers that guard against requests
/// to inside hosts refuse what a resolver answers from a reserved range such as 198.18.0.0/15. That it has an owner outside
/// (who announces none of it) costs nothing, since no address but these can be reached from a jail at all.
const FAKES: Ipv4Addr = Ipv4Addr::new(11, 198, 0, 0);
const FAKES_LENGTH: u8 = 15;

/// A new network namespace has a loopback that is down; a server may well talk to itself.
pub(crate) fn raise_loopback() -> Result<(), Errno> {
    // SAFETY: takes three integers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = Errno::result(socket)? as RawFd;
    // SAFETY: the call has just made this descriptor, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is valid for reading during the call, and this call only reads it.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) }).map(drop)
}

/// `local 11.198.0.0/15 dev lo`: a connection to any of these addresses arrives at whoever listens on its port here.
pub(crate) fn route_fakes() -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &new_route(), MsgFlags::empty())?;
    let mut answer = [0_u8; 128];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // A header of 16 bytes, its kind at 4; then the error, 0 for success.
    let number =
        |place: usize| answer[..length].get(place..place + 4)?.first_chunk().copied().map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|kind| kind.first_chunk().copied()).map(u16::from_ne_bytes);
    match (kind.map(i32::from), number(16)) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(Errno::from_raw(-error)),
        _ => Err(Errno::EPROTO),
    }
}

fn new_route() -> [u8; 44] {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = [0; 44];
    let mut put = |place: usize, bytes: &[u8]| message[place..place + bytes.len()].copy_from_slice(bytes);
    // nlmsghdr: length, kind, flags, sequence, sender.
    put(0, &44_u32.to_ne_bytes());
    put(4, &libc::RTM_NEWROUTE.to_ne_bytes());
    put(6, &(flags as u16).to_ne_bytes());
    put(8, &1_u32.to_ne_bytes());
    // rtmsg: family, lengths of destination and source, tos, table, protocol, scope, kind, flags.
    let table = [libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL];
    put(16, &[libc::AF_INET as u8, FAKES_LENGTH, 0, 0, table[0], table[1], table[2], table[3]]);
    // Two attributes: length, kind, value.
    put(28, &8_u16.to_ne_bytes());
    put(30, &libc::RTA_DST.to_ne_bytes());
    put(32, &FAKES.octets());
    put(36, &8_u16.to_ne_bytes());
    put(38, &libc::RTA_OIF.to_ne_bytes());
    put(40, &LOOPBACK.to_ne_bytes());
    message
}

/// A UDP socket, bound.
pub(crate) fn udp(address: Ipv4Addr, port: u16) -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, NEW, None)?;
    bind(&socket, address, port)?;
    Ok(socket)
}

/// A TCP socket, listening. `is_shared`: another one may have the port with another address.
pub(crate) fn tcp(address: Ipv4Addr, port: u16, is_shared: bool) -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, NEW, None)?;
    if is_shared {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    bind(&socket, address, port)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}

const NEW: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

fn bind(socket: &OwnedFd, address: Ipv4Addr, port: u16) -> Result<(), Errno> {
    // SAFETY: all zeroes is a valid `sockaddr_in`.
    let mut at: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    at.sin_family = libc::AF_INET as libc::sa_family_t;
    at.sin_port = port.to_be();
    at.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: `at` is an address of `size` bytes, valid for reading during the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&at).cast(), size) };
    Errno::result(bound).map(drop)
}
