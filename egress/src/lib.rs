//! The way out of a jail: by host name, through the runner, and no other.
//!
//! Here: the DNS answers, the doors that a jail's connections arrive at, the checks, the copying, the ledger of decisions.
//! Not here: making the sockets (crate `jail`), who may change the rules (the broker).
//!
//! ```text
//! jail:   getaddrinfo ─► 127.0.0.1:53   connect 11.198.0.7:443          HTTP proxy 127.0.0.1:3128 (or a light jail's)
//! runner: lookup: name ◄─► 11.198.0.7   door: address ─► name           proxy: CONNECT name:port, GET http://name/
//!                                             └──► rules ─► service: resolve, check addresses, connect ◄──┘
//!                                                  gate: TLS server name or Host ─► relay ─► ledger
//!                                                                                  └► inject, for the hosts of secrets
//! ```
//!
//! Invariants: a jail never learns a real address and never names one; a refused connection is booked and reset; dropping a
//! `serve` future closes everything that it held.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use wire::egress::PrivateHost;

mod address;
mod door;
mod gate;
pub mod inject;
mod ledger;
mod lookup;
mod names;
pub mod parse;
mod proxy;
mod relay;
mod rules;
mod service;
#[cfg(test)]
mod tests;
mod veil;

pub use inject::{InjectError, Injection};
pub use ledger::Ledger;
pub use rules::{PROXY_PORT, Rules};
pub use veil::Veil;

use door::Door;
use names::{FAKES, Range};
use service::{Resolver, Service};

/// What holds for every service of a runner.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// Names that may mean private addresses: the operator's own hosts. They still need a rule of the service. Link-local
    /// addresses and the cloud's metadata are not among them, whatever a name means.
    pub private: Vec<PrivateHost>,
    /// Connections of one service at once.
    pub max_connections: usize,
    /// Bytes of one service in both directions within 24 hours.
    pub max_daily_bytes: u64,
    /// To resolve a name and connect to it.
    pub connect_timeout: Duration,
    /// For a client to say what its port asks for: a ClientHello, the head of a request.
    pub head_timeout: Duration,
    /// After which a connection without a byte ends.
    pub idle_timeout: Duration,
    /// A PEM file of authorities that may vouch for the hosts of an [`Injection`], besides those of the machine.
    pub extra_ca: Option<PathBuf>,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            private: Vec::new(),
            max_connections: 256,
            max_daily_bytes: 50 << 30,
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            extra_ca: None,
        }
    }
}

/// The sockets of a jail that is filtered by names (`jail::Listeners`).
#[derive(Debug)]
pub struct Doors {
    pub dns: UdpSocket,
    pub proxy: TcpListener,
    pub ports: Vec<(u16, TcpListener)>,
}

/// The way out for all services of a runner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Egress {
    config: Arc<EgressConfig>,
    range: Range,
    resolver: Resolver,
}

impl Egress {
    pub fn new(config: EgressConfig) -> Self {
        Self { config: Arc::new(config), range: FAKES, resolver: Resolver::System }
    }

    /// Serves a strict jail until the future is dropped; then all its connections end.
    ///
    /// # Errors
    /// The sockets can't be waited on.
    pub async fn serve(&self, doors: Doors, rules: Rules, ledger: Arc<Ledger>) -> io::Result<()> {
        let service = self.service(rules, &ledger);
        let mut tasks = JoinSet::new();
        doors.dns.set_nonblocking(true)?;
        tasks.spawn(lookup::keep(tokio::net::UdpSocket::from_std(doors.dns)?, service.clone()));
        tasks.spawn(door::keep(listen(doors.proxy)?, Door::Proxy(None), service.clone()));
        for (port, listener) in doors.ports {
            tasks.spawn(door::keep(listen(listener)?, Door::Port(port), service.clone()));
        }
        attend(tasks, &ledger).await
    }

    /// Serves a light jail: an HTTP proxy on the loopback that wants `Proxy-Authorization: Basic` of
    /// `service:<token>`. Until the future is dropped.
    ///
    /// # Errors
    /// The socket can't be waited on.
    pub async fn serve_proxy(
        &self,
        listener: TcpListener,
        token: String,
        rules: Rules,
        ledger: Arc<Ledger>,
    ) -> io::Result<()> {
        let service = self.service(rules, &ledger);
        let mut tasks = JoinSet::new();
        let door = Door::Proxy(Some(proxy::Token::new(&token)));
        drop(token);
        tasks.spawn(door::keep(listen(listener)?, door, service));
        attend(tasks, &ledger).await
    }

    fn service(&self, rules: Rules, ledger: &Arc<Ledger>) -> Arc<Service> {
        let (config, resolver) = (self.config.clone(), self.resolver.clone());
        Arc::new(Service::new(config, rules, ledger.clone(), self.range, resolver))
    }
}

fn listen(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// No door closes by itself: one that does has failed, and the jail must not go on with half of its ways out.
async fn attend(mut tasks: JoinSet<()>, ledger: &Ledger) -> io::Result<()> {
    let ended = tokio::select! {
        () = ledger.settle() => None,
        ended = tasks.join_next() => ended,
    };
    match ended {
        Some(Err(failed)) => Err(io::Error::other(failed)),
        Some(Ok(())) | None => Err(io::Error::other("a door of the jail closed")),
    }
}
