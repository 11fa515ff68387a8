//! This process's own stdin and stdout, without a thread between where they are pipes or sockets (all MCP clients).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

enum Kind {
    Pipe(OwnedFd),
    Socket(OwnedFd),
    Other,
}

fn kind(fd: impl AsFd) -> Kind {
    let Ok(copy) = fd.as_fd().try_clone_to_owned() else { return Kind::Other };
    let file = File::from(copy);
    let Ok(kind) = file.metadata().map(|m| m.file_type()) else { return Kind::Other };
    match (kind.is_fifo(), kind.is_socket()) {
        (true, _) => Kind::Pipe(file.into()),
        (_, true) => Kind::Socket(file.into()),
        _ => Kind::Other,
    }
}

fn socket(fd: OwnedFd) -> Option<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    // Fails for what is no unix socket.
    stream.local_addr().ok()?;
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()
}

/// Needs a tokio runtime with I/O.
pub fn stdin() -> Box<dyn AsyncRead + Unpin + Send> {
    match kind(std::io::stdin()) {
        Kind::Pipe(fd) => match pipe::Receiver::from_owned_fd(fd) {
            Ok(pipe) => Box::new(pipe),
            Err(_) => Box::new(tokio::io::stdin()),
        },
        Kind::Socket(fd) => match socket(fd) {
            Some(stream) => Box::new(stream),
            None => Box::new(tokio::io::stdin()),
        },
        Kind::Other => Box::new(tokio::io::stdin()),
    }
}

/// Needs a tokio runtime with I/O.
pub fn stdout() -> Box<dyn AsyncWrite + Unpin + Send> {
    match kind(std::io::stdout()) {
        Kind::Pipe(fd) => match pipe::Sender::from_owned_fd(fd) {
            Ok(pipe) => Box::new(pipe),
            Err(_) => Box::new(tokio::io::stdout()),
        },
        Kind::Socket(fd) => match socket(fd) {
            Some(stream) => Box::new(stream),
            None => Box::new(tokio::io::stdout()),
        },
        Kind::Other => Box::new(tokio::io::stdout()),
    }
}
