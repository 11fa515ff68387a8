//! What the doors of one jail share, and the questions that they ask of it.
//!
//! Here: which name is meant, whether it may be connected to, the connection to it. Not here: what the client says on it.
//! Invariants: an address is connected to only if it came out of a lookup made for this connection, and was checked after
//! it; the lookups of one service take a bounded number of threads, however slow they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use wire::report::Verdict;

use crate::address::{self, Reach};
use crate::ledger::{Place, Traffic};
use crate::names::{Names, Range};
use crate::{EgressConfig, Ledger, Rules};

/// Lookups of one service at once: each holds a thread until the system's resolver gives up.
const MAX_LOOKUPS: usize = 16;
/// Lookups of all services at once: the runner's own work needs threads of the same pool.
const MAX_ALL_LOOKUPS: usize = 128;
static ALL_LOOKUPS: Semaphore = Semaphore::const_new(MAX_ALL_LOOKUPS);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Of the connections of all services, one gets no more than such a part.
const SHARE: usize = 4;
const MOST_PLACES: usize = 1 << 16;
static ALL_PLACES: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(*N_PLACES));
/// Connections of all services at once, each with two descriptors: half of what the runner may open is for its own work.
static N_PLACES: LazyLock<usize> = LazyLock::new(|| {
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(open_files / 4).unwrap_or(MOST_PLACES).clamp(SHARE, MOST_PLACES)
});

/// Reserved, and discarded: addresses that no machine has.
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// Why a connection is not made, or not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Verdict(Verdict),
    /// One of the two went away; nobody was refused anything.
    Gone,
}

/// One jail, as its doors see it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) config: Arc<EgressConfig>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) rules: Rules,
    names: Mutex<Names>,
    resolver: Resolver,
    lookups: Arc<Semaphore>,
}

/// Who knows the addresses of names.
#[derive(Debug, Clone)]
pub(crate) enum Resolver {
    System,
    #[cfg(test)]
    Table(Arc<std::collections::HashMap<String, Vec<SocketAddr>>>),
}

impl Service {
    pub(crate) fn new(
        config: Arc<EgressConfig>,
        rules: Rules,
        ledger: Arc<Ledger>,
        range: Range,
        resolver: Resolver,
    ) -> Self {
        let names = Mutex::new(Names::new(range));
        Self { config, ledger, rules, names, resolver, lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }

    /// For one connection, until it is dropped; `None`: this service has as many as it may, or all services together.
    pub(crate) fn take_place(&self) -> Option<(Place, SemaphorePermit<'static>)> {
        let among_all = ALL_PLACES.try_acquire().ok()?;
        let place = self.ledger.take_place(self.config.max_connections.min(*N_PLACES / SHARE))?;
        Some((place, among_all))
    }

    pub(crate) fn record(&self, host: &str, port: u16, verdict: Verdict) -> Arc<Traffic> {
        self.ledger.record(self.rules.shown(host), port, verdict)
    }

    /// See [`Ledger::record_lookup`].
    pub(crate) fn record_lookup(&self, host: &str) {
        self.ledger.record_lookup(self.rules.shown(host));
    }

    /// The fake address of a name; `None`: the name is not to be used.
    pub(crate) fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        let is_known = self.rules.names(name, SystemTime::now());
        is_known.then(|| self.names.lock().unwrap_or_else(PoisonError::into_inner).address_of(name))
    }

    /// The name that a client looked up to get this address.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<String> {
        let IpAddr::V4(address) = address.to_canonical() else { return None };
        self.names.lock().unwrap_or_else(PoisonError::into_inner).name_of(address)
    }

    /// The verdict to be booked once the connection is there.
    ///
    /// # Errors
    /// It is not to be made.
    pub(crate) fn admit(&self, host: &str, port: u16) -> Result<Verdict, Refusal> {
        let verdict = self.rules.verdict(host, port, SystemTime::now());
        let verdict = verdict.ok_or(Refusal::Verdict(Verdict::NotListed))?;
        if self.ledger.spend(0) >= self.config.max_daily_bytes {
            return Err(Refusal::Verdict(Verdict::OverLimit));
        }
        Ok(verdict)
    }

    /// Resolves and connects, within the deadline.
    ///
    /// # Errors
    /// Nobody is there, or only addresses that nobody may be connected to.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        admitted: Verdict,
    ) -> Result<TcpStream, Refusal> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let unreachable = Refusal::Verdict(Verdict::Unreachable);
        // What is learned is public: no operator meant a private name for a service that nobody has looked at yet.
        let mut grants = self.config.private.iter().filter(|private| private.rule.covers(host, port));
        let grant = grants.next().filter(|_| admitted == Verdict::Allowed);
        let found = match grant.and_then(|grant| grant.address) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => {
                let found = timeout_at(deadline, self.resolve(host, port)).await.map_err(|_| unreachable)?;
                found.map_err(|_| unreachable)?
            }
        };
        if found.is_empty() {
            return Err(unreachable);
        }
        let is_granted = grant.is_some();
        let may = |to: &SocketAddr| may_connect(*to, is_granted);
        let addresses: Vec<_> = found.into_iter().filter(may).collect();
        if addresses.is_empty() {
            return Err(Refusal::Verdict(Verdict::PrivateAddress));
        }
        let n_addresses = addresses.len();
        for (n, address) in addresses.into_iter().enumerate() {
            // The ones that are left get their share of the time.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(n_addresses - n).unwrap_or(1);
            if let Ok(Ok(stream)) = timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        Err(unreachable)
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match &self.resolver {
            Resolver::System => {
                let permit = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
                let among_all = ALL_LOOKUPS.acquire().await.map_err(io::Error::other)?;
                let host = host.to_owned();
                let look_up = move || {
                    // Held by the thread: a lookup that nobody waits for any longer still takes its place.
                    let _permits = (permit, among_all);
                    let found = (host.as_str(), port).to_socket_addrs()?;
                    Ok(found.take(MAX_ADDRESSES).collect())
                };
                tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)?
            }
            #[cfg(test)]
            Resolver::Table(table) => table.get(host).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }
}

fn may_connect(to: SocketAddr, is_granted: bool) -> bool {
    match address::reach(to.ip()) {
        Reach::Public => is_granted || !is_this_machine(to),
        Reach::Private => is_granted,
        Reach::Never => false,
    }
}

/// A public address can be this machine's own; what listens here is not meant for services. Sends nothing.
fn is_this_machine(to: SocketAddr) -> bool {
    let nobody = match to {
        SocketAddr::V4(_) => IpAddr::from(NOBODY_V4),
        SocketAddr::V6(_) => IpAddr::from(NOBODY_V6),
    };
    // Where the kernel lets anybody bind any address (`ip_nonlocal_bind`), the way to the address has to tell.
    can_bind(to.ip()) && (!can_bind(nobody) || begins_at_its_end(to).unwrap_or(true))
}

fn can_bind(address: IpAddr) -> bool {
    !UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

fn begins_at_its_end(to: SocketAddr) -> io::Result<bool> {
    let any = if to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip() == to.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[test]
    fn one_service_takes_a_part_of_what_the_runner_may_open_whatever_its_cap() {
        let config = Arc::new(EgressConfig { max_connections: usize::MAX, ..EgressConfig::default() });
        let ledger = Arc::<Ledger>::default();
        let service = Service::new(config, Rules::default(), ledger, crate::names::FAKES, Resolver::System);
        let places: Vec<_> = std::iter::from_fn(|| service.take_place()).collect();
        assert!((1..=*N_PLACES / SHARE).contains(&places.len()), "{} of {}", places.len(), *N_PLACES);
        drop(places);
        assert!(service.take_place().is_some());
    }

    #[test]
    fn a_grant_opens_private_addresses_and_not_the_metadata() {
        assert!(!may_connect(to("10.0.0.1:443"), false) && may_connect(to("10.0.0.1:443"), true));
        assert!(!may_connect(to("169.254.169.254:80"), true));
        assert!(!may_connect(to("[::ffff:127.0.0.1]:80"), false));
    }

    #[test]
    fn this_machine_knows_its_own_addresses() {
        assert!(is_this_machine(to("127.0.0.1:1")) && is_this_machine(to("127.64.3.2:1")));
        for other in ["203.0.113.253:443", "1.1.1.1:443", "[2606:4700::1111]:443"] {
            assert!(!is_this_machine(to(other)), "{other}");
        }
        assert!(!can_bind(NOBODY_V4.into()), "or this test proves little");
        assert!(begins_at_its_end(to("127.0.0.1:1")).expect("a loopback"));
    }
}
