//! The network inside: a loopback, and in a filtered jail the doors that the runner answers at.
//!
//! Here: which sockets there are, and their way out. Not here: the kernel's calls (see [`crate::sys::network`]), the
//! answers.
//! Invariant: the sockets are gone from init before the server is forked; only the runner holds them.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::unistd;

use super::LISTENERS;
use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sys::network::{raise_loopback, route_fakes, tcp, udp};
use crate::sys::rights;
use crate::view::{Network, PROXY_PORT, View};

const DNS_PORT: u16 = 53;

pub(super) fn isolate(view: &View, tie: &UnixStream) -> Result<(), SetupError> {
    let failed = |what: &'static str| move |errno| build(Step::Network, what, errno);
    unistd::sethostname("jail").map_err(failed("host name"))?;
    match &view.network {
        Network::Host => Ok(()),
        Network::None => raise_loopback().map_err(failed("loopback")),
        Network::Filtered { ports } => {
            raise_loopback().map_err(failed("loopback"))?;
            route_fakes().map_err(failed("the route of 11.198.0.0/15"))?;
            let doors = doors(ports)?;
            rights::send(tie, &[LISTENERS], &doors, MsgFlags::empty()).map_err(failed("the way out"))?;
            Ok(())
        }
    }
}

/// DNS, the proxy, then the ports.
fn doors(ports: &[u16]) -> Result<Vec<OwnedFd>, SetupError> {
    let failed = |port: u16| move |errno: Errno| build(Step::Network, format!("port {port}"), errno);
    let (local, any) = (Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED);
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    // A rule for the proxy's own port: on the loopback it is the proxy that answers, elsewhere the other door.
    let is_shared = ports.contains(&PROXY_PORT);
    let mut doors = vec![
        udp(local, DNS_PORT).map_err(failed(DNS_PORT))?,
        tcp(local, PROXY_PORT, is_shared).map_err(failed(PROXY_PORT))?,
    ];
    for port in ports {
        doors.push(tcp(any, port, is_shared && port == PROXY_PORT).map_err(failed(port))?);
    }
    Ok(doors)
}
