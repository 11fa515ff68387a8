//! Reports on their way to the runner, many in one message.
//!
//! Here: [`Outbox`]. Not here: when it is sent.
//! Invariant: the order of the reports is kept, and none is sent twice.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use crate::frame::{self, MAX_REPORT};
use crate::report::Report;
use crate::sys::rights;

/// Each message wakes the runner, and thirty steps take less time than thirty awakenings.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
}

impl Outbox {
    pub(super) fn put(&mut self, report: &Report) {
        self.bytes.extend(frame::encode(report, 256, MAX_REPORT).unwrap_or_default());
    }

    /// A runner that is gone or doesn't read is noticed by its end of the socket, never by waiting here.
    pub(super) fn send(&mut self, control: &UnixStream) {
        let _ = self.send_with(control, &[]);
    }

    pub(super) fn send_with(&mut self, control: &UnixStream, fds: &[OwnedFd]) -> Result<(), Errno> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        match rights::send(control, &bytes, fds, MsgFlags::MSG_DONTWAIT)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(Errno::EAGAIN),
        }
    }
}
