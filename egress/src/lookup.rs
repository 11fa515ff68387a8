//! The DNS server of a jail. It asks nobody.
//!
//! Here: the socket. Not here: the packets (see [`crate::parse::dns`]), the addresses (see [`crate::names`]).
//! Invariant: a query is never passed on, so none can carry anything out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::parse::dns::{self, MAX_QUERY, NotAQuery, Query};
use crate::service::Service;

/// Queries that are answered within one [`WINDOW`]; the kernel keeps or drops the others.
const MAX_QUERIES: u32 = 500;
const WINDOW: Duration = Duration::from_millis(100);
/// After a failure of the socket: most often the last client has gone.
const PAUSE: Duration = Duration::from_millis(10);

/// Until it is dropped.
pub(crate) async fn keep(socket: UdpSocket, service: Arc<Service>) {
    let mut packet = [0; MAX_QUERY];
    let (mut window, mut queries) = (Instant::now(), 0);
    loop {
        if window.elapsed() > WINDOW {
            (window, queries) = (Instant::now(), 0);
        }
        if queries >= MAX_QUERIES {
            tokio::time::sleep_until(window + WINDOW).await;
            continue;
        }
        match socket.recv_from(&mut packet).await {
            Ok((length, client)) => reply(&socket, client, &packet[..length], &service).await,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        queries += 1;
    }
}

async fn reply(socket: &UdpSocket, client: SocketAddr, packet: &[u8], service: &Service) {
    let answer = match dns::read(packet) {
        Ok(query) => answer(&query, service),
        Err(NotAQuery::Answer(header)) => header.to_vec(),
        Err(NotAQuery::Silence) => return,
    };
    // A client that does not take its answer asks again.
    let _ = socket.send_to(&answer, client).await;
}

fn answer(query: &Query<'_>, service: &Service) -> Vec<u8> {
    let Some(name) = &query.name else { return query.no_such_name() };
    match service.address_of(name) {
        Some(address) if query.wants_address => query.address(address),
        Some(_) => query.empty(),
        None => {
            // Clients ask for every type of address they know: one of these questions counts.
            if query.wants_address {
                service.record_lookup(name);
            }
            query.no_such_name()
        }
    }
}
