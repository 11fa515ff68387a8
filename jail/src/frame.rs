//! Frames on the control socket and on the exec pipe: a length in four little-endian bytes, then JSON.
//!
//! Here: encoding, and decoding from whatever pieces arrive. Not here: sockets.
//! Invariant: a reader never holds more than one frame of [`MAX_REPORT`] bytes and what one read adds to it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the largest spec: what `execve` takes (2 MiB of arguments and environment) would not fit a larger one.
pub(crate) const MAX_SPEC: usize = 4 << 20;
/// Bytes of the largest report or command.
pub(crate) const MAX_REPORT: usize = 64 << 10;

const HEAD: usize = 4;

/// What can be wrong with a frame. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    #[error("a frame holds no message of this protocol (byte {0})")]
    Malformed(usize),
}

/// `room`: bytes to reserve.
pub(crate) fn encode<T: Serialize>(message: &T, room: usize, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = Vec::with_capacity(HEAD + room);
    frame.extend_from_slice(&[0; HEAD]);
    serde_json::to_writer(&mut frame, message).map_err(|_| FrameError::Malformed(0))?;
    let length = frame.len() - HEAD;
    let head = u32::try_from(length).ok().filter(|_| length <= limit).ok_or(FrameError::TooLong(length))?;
    frame[..HEAD].copy_from_slice(&head.to_le_bytes());
    Ok(frame)
}

/// The body's length, as a frame's first four bytes give it.
pub(crate) fn body_length(head: [u8; HEAD], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(head) as usize;
    if length > limit { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// serde's own message quotes the text that it refuses, which may be a secret; the place is enough.
pub(crate) fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| FrameError::Malformed(error.column()))
}

/// Bytes that arrived and are not a whole frame yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let end = HEAD + body_length(*head, MAX_REPORT)?;
        let Some(body) = self.bytes.get(HEAD..end) else { return Ok(None) };
        let message = decode_body(body)?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_from_any_pieces() {
        let mut stream = encode(&"one", 0, MAX_REPORT).unwrap();
        stream.extend(encode(&"two", 0, MAX_REPORT).unwrap());
        for size in 1..=stream.len() {
            let mut inbox = Inbox::default();
            let mut seen = Vec::<String>::new();
            for piece in stream.chunks(size) {
                inbox.push(piece);
                while let Some(text) = inbox.next().unwrap() {
                    seen.push(text);
                }
            }
            assert_eq!(seen, ["one", "two"], "pieces of {size}");
            assert!(inbox.bytes.is_empty());
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_is_awaited() {
        let mut inbox = Inbox::default();
        inbox.push(&u32::MAX.to_le_bytes());
        assert_eq!(inbox.next::<String>(), Err(FrameError::TooLong(u32::MAX as usize)));
        assert_eq!(encode(&"x".repeat(70), 0, 64), Err(FrameError::TooLong(72)));
    }

    #[test]
    fn a_refused_body_is_not_quoted() {
        let refusal = decode_body::<u8>(br#""the-secret""#).unwrap_err();
        assert!(!refusal.to_string().contains("secret"), "{refusal}");
    }
}
