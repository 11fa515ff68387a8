//! Bytes both ways, counted.
//!
//! Here: the copying, half-close, the end of an idle connection. Not here: which connection may be made.
//! Invariant: a byte is counted before it goes on, so a service ends at its cap and not behind it.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use wire::report::Verdict;

use crate::gate::{self, Opening, Speech};
use crate::ledger::{Ledger, Traffic};
use crate::service::Refusal;

const SMALL: usize = 8 << 10;
/// A connection that fills the small buffer gets this one.
const LARGE: usize = 64 << 10;

/// What one connection is counted by.
pub(crate) struct Meter<'a> {
    ledger: &'a Ledger,
    max_daily_bytes: u64,
    traffic: Arc<Traffic>,
    moved: AtomicU64,
    is_over: AtomicBool,
}

/// The service has used up what it may; the connection ends.
#[derive(Debug, thiserror::Error)]
#[error("this service is over its limit of traffic")]
pub(crate) struct Over;

/// How the client's side begins.
pub(crate) enum Start<'a> {
    /// It has spoken, and was checked.
    Checked(Opening),
    /// It may speak when it likes; then it is looked at. The bytes that came already, the host, the time for a head.
    Unheard(Vec<u8>, &'a str, Duration),
}

enum Failure {
    Read,
    Write,
    Over,
}

impl From<Over> for Failure {
    fn from(Over: Over) -> Self {
        Self::Over
    }
}

impl<'a> Meter<'a> {
    pub(crate) fn new(ledger: &'a Ledger, traffic: Arc<Traffic>, max_daily_bytes: u64) -> Self {
        let (moved, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { ledger, max_daily_bytes, traffic, moved, is_over }
    }

    /// Before they go to the host.
    pub(crate) fn sent(&self, bytes: usize) -> Result<(), Over> {
        self.count(&self.traffic.sent, bytes)
    }

    /// Before they go to the jail.
    pub(crate) fn received(&self, bytes: usize) -> Result<(), Over> {
        self.count(&self.traffic.received, bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn count(&self, counter: &AtomicU64, bytes: usize) -> Result<(), Over> {
        let bytes = bytes as u64;
        if self.ledger.spend(bytes) > self.max_daily_bytes {
            self.is_over.store(true, Ordering::Relaxed);
            return Err(Over);
        }
        counter.fetch_add(bytes, Ordering::Relaxed);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Ends when nothing has moved for this time, or for at most twice as long.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            if self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// Until both sides have ended, or one of them is gone.
///
/// # Errors
/// The client was refused by what it said, or by what it has used up.
pub(crate) async fn both(
    client: &mut TcpStream,
    server: &mut TcpStream,
    start: Start<'_>,
    meter: &Meter<'_>,
    idle: Duration,
) -> Result<(), Refusal> {
    let (mut from_client, to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let up = async {
        let opening = match start {
            Start::Checked(opening) => opening,
            Start::Unheard(early, host, limit) => {
                gate::opening(Speech::Any, &mut from_client, early, (host, 0), limit).await?
            }
        };
        let sent = async {
            meter.sent(opening.bytes.len())?;
            to_server.write_all(&opening.bytes).await.map_err(|_| Failure::Write)?;
            drop(opening.bytes);
            forward(from_client, to_server, opening.rest, |n| meter.sent(n)).await
        };
        match sent.await {
            // A server that no longer listens may still be answering.
            Ok(()) | Err(Failure::Write) => Ok(()),
            Err(Failure::Read) => Err(Refusal::Gone),
            Err(Failure::Over) => Err(Refusal::Verdict(Verdict::OverLimit)),
        }
    };
    let down = async {
        let received = forward(from_server, to_client, None, |n| meter.received(n));
        received.await.map_err(|failure| match failure {
            Failure::Read | Failure::Write => Refusal::Gone,
            Failure::Over => Refusal::Verdict(Verdict::OverLimit),
        })
    };
    tokio::select! {
        done = async { tokio::try_join!(up, down) } => done.map(drop),
        () = meter.idle(idle) => Err(Refusal::Gone),
    }
}

/// Copies to the end, then tells the other side. `most`: what comes after so many bytes is read and dropped.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut most: Option<u64>,
    count: impl Fn(usize) -> Result<(), Over>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; SMALL];
    loop {
        let read = from.read(&mut buffer).await.map_err(|_| Failure::Read)?;
        if read == 0 {
            // Of one that is gone already, nobody needs to hear.
            let _ = to.shutdown().await;
            return Ok(());
        }
        let passed = match &mut most {
            None => read,
            Some(left) => {
                let passed = usize::try_from(*left).map_or(read, |left| left.min(read));
                *left -= passed as u64;
                passed
            }
        };
        count(passed)?;
        to.write_all(&buffer[..passed]).await.map_err(|_| Failure::Write)?;
        if read == buffer.len() && read < LARGE {
            buffer = vec![0; LARGE];
        }
    }
}

/// Ends a connection so that the other side hears of it as a failure, and not as an end.
pub(crate) fn reset(stream: TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    if socket.set_linger(Some(Duration::ZERO)).is_err() {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
