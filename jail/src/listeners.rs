//! The sockets of a filtered jail, as the runner gets them.
//!
//! Here: [`Listeners`], and how they are put together from what arrives. Not here: making them (see [`crate::strict`]),
//! answering on them.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

/// Sockets in the network namespace of a jail with [`crate::Network::Filtered`], made before the server runs: nobody
/// inside holds them. They do not block.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1:53.
    pub dns: UdpSocket,
    /// 127.0.0.1:3128, for clients that use an HTTP proxy.
    pub proxy: TcpListener,
    /// 0.0.0.0 on each port of the view. The local address of a connection is the one that the client meant.
    pub ports: Vec<(u16, TcpListener)>,
}

impl Listeners {
    /// In the order in which init sends them. `None`: nothing that an init sends.
    pub(crate) fn of(sent: Vec<OwnedFd>) -> Option<Self> {
        let mut sent = sent.into_iter();
        let dns = UdpSocket::from(sent.next()?);
        let proxy = TcpListener::from(sent.next()?);
        let ports = sent.map(TcpListener::from).map(|door| Some((door.local_addr().ok()?.port(), door)));
        Some(Self { dns, proxy, ports: ports.collect::<Option<_>>()? })
    }
}
