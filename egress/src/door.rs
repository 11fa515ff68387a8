//! A listener of a jail: each connection to it means a name.
//!
//! Here: accepting, the cap on connections, the way of one connection. Not here: HTTP proxying (see [`crate::proxy`]).
//! Invariant: whatever is refused is booked, and reset.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{error, warn};
use wire::report::Verdict;

use crate::gate::{self, Speech};
use crate::inject;
use crate::proxy::{self, Token};
use crate::relay::{self, Meter, Start};
use crate::service::{Refusal, Service};

/// Before the next try, when the kernel gives no connection (most often: no file descriptor is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After a refusal for want of a place: a service that only knocks must not keep us busy.
const FULL_PAUSE: Duration = Duration::from_millis(10);

pub(crate) enum Door {
    Port(u16),
    Proxy(Option<Token>),
}

/// Until it is dropped; then its connections end.
pub(crate) async fn keep(listener: TcpListener, door: Door, service: Arc<Service>) {
    let door = Arc::new(door);
    let mut connections = JoinSet::new();
    let mut is_failing = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    is_failing = false;
                    match service.take_place() {
                        Some(place) => {
                            let (door, service) = (door.clone(), service.clone());
                            connections.spawn(async move {
                                door.serve(&service, client).await;
                                drop(place);
                            });
                        }
                        None => {
                            door.turn_away(&service, client);
                            tokio::time::sleep(FULL_PAUSE).await;
                        }
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(%error, "no connection can be accepted from a jail; trying again");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => if let Err(ended) = ended {
                error!(error = %ended, "a connection of a jail ended by a panic");
            },
        }
    }
}

impl Door {
    async fn serve(&self, service: &Service, client: TcpStream) {
        let _ = client.set_nodelay(true);
        match self {
            Self::Port(port) => serve(service, *port, client).await,
            Self::Proxy(token) => proxy::serve(service, token.as_ref(), client).await,
        }
    }

    /// Nothing was said yet, so a proxy's client is booked with the address of the proxy.
    fn turn_away(&self, service: &Service, client: TcpStream) {
        if let Ok(local) = client.local_addr() {
            let named = service.name_of(local.ip()).unwrap_or_else(|| local.ip().to_string());
            let port = if let Self::Port(port) = self { *port } else { local.port() };
            service.record(&named, port, Verdict::OverLimit);
        }
        relay::reset(client);
    }
}

async fn serve(service: &Service, port: u16, mut client: TcpStream) {
    let Ok(local) = client.local_addr() else { return };
    let Some(host) = service.name_of(local.ip()) else {
        service.record(&local.ip().to_string(), port, Verdict::NotListed);
        return relay::reset(client);
    };
    if let Err(refusal) = pass(service, &mut client, (&host, port)).await {
        book(service, (&host, port), refusal);
        relay::reset(client);
    }
}

async fn pass(service: &Service, client: &mut TcpStream, (host, port): (&str, u16)) -> Result<(), Refusal> {
    let admitted = service.admit(host, port)?;
    let limit = service.config.head_timeout;
    if let Some(injection) = service.rules.injection(host, port) {
        let (server, opening) = tokio::try_join!(
            service.connect(host, port, admitted),
            gate::opening(Speech::Tls, client, Vec::new(), (host, port), limit),
        )?;
        return inject::run(service, injection, (client, opening.bytes, server), (host, port, admitted))
            .await;
    }
    let speech = Speech::on(port);
    let (server, start) = if speech == Speech::Any {
        let server = service.connect(host, port, admitted).await?;
        (server, Start::Unheard(Vec::new(), host, limit))
    } else {
        let (server, opening) = tokio::try_join!(
            service.connect(host, port, admitted),
            gate::opening(speech, client, Vec::new(), (host, port), limit),
        )?;
        (server, Start::Checked(opening))
    };
    relay(service, (client, server), (host, port, admitted), start).await
}

/// Books the connection and keeps it until it ends.
///
/// # Errors
/// It was cut off.
pub(crate) async fn relay(
    service: &Service,
    (client, mut server): (&mut TcpStream, TcpStream),
    (host, port, admitted): (&str, u16, Verdict),
    start: Start<'_>,
) -> Result<(), Refusal> {
    let traffic = service.record(host, port, admitted);
    let meter = Meter::new(&service.ledger, traffic, service.config.max_daily_bytes);
    let ended = relay::both(client, &mut server, start, &meter, service.config.idle_timeout).await;
    if ended.is_err() {
        relay::reset(server);
    }
    ended
}

/// Who went away by itself was refused nothing.
pub(crate) fn book(service: &Service, (host, port): (&str, u16), refusal: Refusal) {
    if let Refusal::Verdict(verdict) = refusal {
        service.record(host, port, verdict);
    }
}
