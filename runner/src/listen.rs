//! Where the API listens: a unix socket or TCP, HTTP/1.1 and HTTP/2 on both.
//!
//! Here: locks, sockets, connections. Not here: routes (see [`crate::api`]).
//! Invariant: a socket or a data directory that a living runner uses is never taken from it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Listen;

/// How long open connections may take to finish when the runner ends.
const FINISH: Duration = Duration::from_secs(2);
/// A pause after a failed accept (too many open files, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another runner is using {0}")]
    InUse(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    #[error("listening on {0}: {1}")]
    Tcp(std::net::SocketAddr, #[source] io::Error),
}

/// Held for as long as the runner lives; the kernel releases it, however the runner ends.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

impl Lock {
    pub fn take(path: &Path) -> Result<Self, ListenError> {
        let fail = |e| ListenError::Io(path.to_owned(), e);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(ListenError::InUse(path.to_owned())),
            Err((_, errno)) => Err(fail(errno.into())),
        }
    }
}

/// Makes a directory that only we can read.
pub fn private_dir(path: &Path) -> Result<(), ListenError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| ListenError::Io(path.to_owned(), e))
}

/// A bound socket.
pub enum Bound {
    Unix { listener: UnixListener, path: PathBuf, _lock: Lock },
    Tcp(TcpListener),
}

impl Bound {
    pub async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        match listen {
            Listen::Unix(path) => Self::bind_unix(path),
            Listen::Tcp { addr, .. } => {
                TcpListener::bind(addr).await.map(Self::Tcp).map_err(|e| ListenError::Tcp(*addr, e))
            }
        }
    }

    fn bind_unix(path: &Path) -> Result<Self, ListenError> {
        let fail = |e| ListenError::Io(path.to_owned(), e);
        if let Some(parent) = path.parent() {
            private_dir(parent)?;
        }
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let lock = Lock::take(&beside(".lock"))?;
        // Bound under another name and moved: nobody can connect before the mode is right, and a stale
        // socket is replaced in one step.
        let fresh = beside("~");
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(fail)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        std::fs::rename(&fresh, path).map_err(fail)?;
        Ok(Self::Unix { listener, path: path.to_owned(), _lock: lock })
    }

    /// For people and for tests.
    pub fn address(&self) -> String {
        match self {
            Self::Unix { path, .. } => format!("unix:{}", path.display()),
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "tcp".to_owned(), |a| a.to_string()),
        }
    }

    /// Serves until `ended`, then lets open requests finish for a moment.
    pub async fn serve(self, router: Router, ended: CancellationToken) {
        let connections = TaskTracker::new();
        let abort = CancellationToken::new();
        loop {
            tokio::select! {
                () = self.accept(&router, &ended, &abort, &connections) => {}
                () = ended.cancelled() => break,
            }
        }
        connections.close();
        if tokio::time::timeout(FINISH, connections.wait()).await.is_err() {
            abort.cancel();
            connections.wait().await;
        }
        if let Self::Unix { path, .. } = &self {
            // Left behind, it would only be replaced by the next runner.
            let _ = std::fs::remove_file(path);
        }
    }

    async fn accept(
        &self,
        router: &Router,
        ended: &CancellationToken,
        abort: &CancellationToken,
        connections: &TaskTracker,
    ) {
        let (router, ended, abort) = (router.clone(), ended.clone(), abort.clone());
        let failed = match self {
            Self::Unix { listener, .. } => match listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router, ended, abort));
                    return;
                }
                Err(e) => e,
            },
            Self::Tcp(listener) => match listener.accept().await {
                Ok((stream, _)) => {
                    // Nagle's algorithm costs 40 ms a call. A socket that can not have it off is closing.
                    let _ = stream.set_nodelay(true);
                    notice_loss(&stream);
                    connections.spawn(connection(stream, router, ended, abort));
                    return;
                }
                Err(e) => e,
            },
        };
        tracing::warn!("a connection could not be accepted: {failed}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Sockets that are kept say nothing for hours: only the kernel can notice that the other machine is gone.
fn notice_loss(stream: &tokio::net::TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &30))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &10))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &3));
    if let Err(e) = set {
        tracing::debug!("a connection's keep-alive could not be set: {e}");
    }
}

async fn connection<S>(stream: S, router: Router, ended: CancellationToken, abort: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(4096)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_send_buf_size(1 << 20);
    let serving =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let mut is_ending = false;
    loop {
        tokio::select! {
            // A connection that breaks is the peer's business; what it asked for is cancelled.
            _ = serving.as_mut() => return,
            () = ended.cancelled(), if !is_ending => {
                is_ending = true;
                serving.as_mut().graceful_shutdown();
            }
            () = abort.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/r.sock");
        let listen = Listen::Unix(path.clone());
        let first = Bound::bind(&listen).await.expect("binds");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Bound::bind(&listen).await, Err(ListenError::InUse(_))));
        drop(first);
        assert!(path.exists(), "a killed runner leaves its socket");
        let second = Bound::bind(&listen).await.expect("replaces it");
        tokio::net::UnixStream::connect(&path).await.expect("connects");
        let ended = CancellationToken::new();
        ended.cancel();
        second.serve(Router::new(), ended).await;
        assert!(!path.exists(), "a runner that ends takes it away");
    }
}
