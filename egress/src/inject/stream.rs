//! Two streams around TLS.
//!
//! Here: a client whose first bytes were read already; a server whose bytes are counted. Not here: TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::relay::Meter;

/// Says the bytes that were read of it once more.
pub(super) struct Again<'a> {
    said: Vec<u8>,
    at: usize,
    client: &'a mut TcpStream,
}

impl<'a> Again<'a> {
    pub(super) fn new(said: Vec<u8>, client: &'a mut TcpStream) -> Self {
        Self { said, at: 0, client }
    }
}

impl AsyncRead for Again<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.said[self.at..];
        if rest.is_empty() {
            return Pin::new(&mut *self.client).poll_read(cx, buffer);
        }
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Again<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.client).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.client).poll_shutdown(cx)
    }
}

/// Every byte is counted, those of TLS too; at the cap nothing more moves.
pub(super) struct Metered<'a> {
    server: &'a mut TcpStream,
    meter: &'a Meter<'a>,
}

impl<'a> Metered<'a> {
    pub(super) fn new(server: &'a mut TcpStream, meter: &'a Meter<'a>) -> Self {
        Self { server, meter }
    }
}

impl AsyncRead for Metered<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.server).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        Poll::Ready(self.meter.received(read).map_err(io::Error::other))
    }
}

impl AsyncWrite for Metered<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.meter.is_over() {
            return Poll::Ready(Err(io::Error::other(crate::relay::Over)));
        }
        let written = ready!(Pin::new(&mut *self.server).poll_write(cx, bytes))?;
        // How many the kernel takes is known only now; what is above the cap is one buffer at most.
        Poll::Ready(self.meter.sent(written).map(|()| written).map_err(io::Error::other))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.server).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.server).poll_shutdown(cx)
    }
}
