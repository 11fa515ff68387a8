//! What a running step says: its pipes, its lines, the end of them.
//!
//! Not here: when a step is over ([`super::step`]), what makes a line safe to show ([`super::output`]).
//! Invariant: at most one buffer of each stream, the captured answer's limit and the tail are in memory.

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::output::{LineCutter, Tail};
use super::step::{Bench, Ended, Step};

/// Most of a captured answer that is kept (`npm view` of a range lists every version).
const CAPTURE_BYTES: usize = 4 << 20;

/// Our ends of a step's streams; its stdin is empty.
pub(super) struct Pipes {
    pub(super) out: Stream,
    pub(super) err: Stream,
}

pub(super) struct Stream {
    /// `None`: it has ended.
    pipe: Option<pipe::Receiver>,
    buffer: Box<[u8]>,
}

impl Pipes {
    pub(super) fn new() -> std::io::Result<(jail::Stdio, Self)> {
        let (out, their_out) = std::io::pipe()?;
        let (err, their_err) = std::io::pipe()?;
        let stdin = std::fs::File::open("/dev/null")?;
        let stdio = jail::Stdio { stdin: stdin.into(), stdout: their_out.into(), stderr: their_err.into() };
        let stream = |reader: std::io::PipeReader| -> std::io::Result<Stream> {
            let pipe = Some(pipe::Receiver::from_owned_fd(reader.into())?);
            Ok(Stream { pipe, buffer: vec![0; 64 << 10].into() })
        };
        Ok((stdio, Self { out: stream(out)?, err: stream(err)? }))
    }

    pub(super) fn are_open(&self) -> bool {
        self.out.is_open() || self.err.is_open()
    }
}

impl Stream {
    pub(super) fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Cancel-safe. Empty at the end.
    pub(super) async fn read(&mut self) -> &[u8] {
        let Some(pipe) = &mut self.pipe else { return &[] };
        match pipe.read(&mut self.buffer).await {
            Ok(n) if n > 0 => &self.buffer[..n],
            _ => {
                self.pipe = None;
                &[]
            }
        }
    }
}

/// What a running step has said so far.
pub(super) struct Heard<'a> {
    bench: &'a Bench,
    name: &'static str,
    capture: Option<Vec<u8>>,
    out: LineCutter,
    err: LineCutter,
    tail: Tail,
}

impl<'a> Heard<'a> {
    pub(super) fn new(bench: &'a Bench, step: &Step<'_>) -> Self {
        let capture = step.capture.then(Vec::new);
        Self {
            bench,
            name: step.name,
            capture,
            out: LineCutter::default(),
            err: LineCutter::default(),
            tail: Tail::default(),
        }
    }

    pub(super) fn stdout(&mut self, chunk: &[u8]) {
        match &mut self.capture {
            Some(kept) => kept.extend_from_slice(&chunk[..chunk.len().min(CAPTURE_BYTES - kept.len())]),
            None => self.out.push(chunk, |line| show(self.bench, self.name, &mut self.tail, line)),
        }
    }

    pub(super) fn stderr(&mut self, chunk: &[u8]) {
        self.err.push(chunk, |line| show(self.bench, self.name, &mut self.tail, line));
    }

    pub(super) fn end(mut self, success: bool) -> Ended {
        self.out.finish(|line| show(self.bench, self.name, &mut self.tail, line));
        self.err.finish(|line| show(self.bench, self.name, &mut self.tail, line));
        Ended { success, stdout: self.capture.unwrap_or_default(), tail: self.tail.into_lines() }
    }
}

fn show(bench: &Bench, step: &str, tail: &mut Tail, line: String) {
    bench.say(step, &line);
    tail.push(line);
}
