//! The connection task: the one owner of a server's stdin and stdout and of the answers that are awaited.
//!
//! Here: limits in bytes before lines, ids that count, notifications to their callers, the server's own
//! requests, whose turn it is. Not here: what a request means, when to restart.
//! Invariant: whatever the server writes or refuses to read, only this connection suffers; when the task ends,
//! every waiter is answered.

mod asides;
mod asks;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::asks::Asks;
use self::turns::{GivenUp, Turns};
use super::client::{Call, CallError, Client, Order, Reply, Shared, Waiter, random_prefix};
use super::frame::{self, Message};
use super::giant::Giant;
use super::notice::Changed;
use crate::logs::{Stream, Voice};
use crate::rate::{self, Bucket, LINE_WEIGHT};

const READ_CHUNK: usize = 64 << 10;
/// Stop taking requests while this much waits to be written.
const WRITE_HIGH: usize = 1 << 20;
/// Answers to the server's own requests stop at this much unwritten output.
const REPLY_HIGH: usize = 4 << 20;
/// How long a server that closed its stdin may still answer.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one message from the server.
    pub message: usize,
    /// Calls without an answer.
    pub in_flight: usize,
    /// How long the server may refuse to read.
    pub write_stall: Duration,
    /// Bytes and lines of other output on stdout before the first answer counts as "not MCP".
    pub chatter_bytes: usize,
    pub chatter_lines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: 16 << 20,
            in_flight: 1024,
            write_stall: Duration::from_secs(30),
            chatter_bytes: 64 << 10,
            chatter_lines: 200,
        }
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server closed its stdout.
    Eof,
    Broken(String),
    /// The server did not read its stdin for [`Limits::write_stall`].
    Stalled,
    /// Before it was ready, the server wrote more than the limit of things that are not MCP.
    Chatter,
}

/// Makes a connection; nothing happens until the returned task runs. `changed` grows with each `list_changed`.
pub fn connect<R, W>(
    reader: R,
    writer: W,
    limits: Limits,
    voice: Arc<Voice>,
    changed: watch::Sender<Changed>,
) -> (Client, impl Future<Output = End> + Send)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let (tell, orders) = mpsc::unbounded_channel();
    let shared = Shared::new(random_prefix(), tell, limits.in_flight, voice.masking.clone());
    let conn = Conn {
        shared: shared.clone(),
        limits,
        voice,
        changed,
        pending: HashMap::new(),
        asks: Asks::default(),
        turns: Turns::default(),
        given_up: GivenUp::default(),
        out: BytesMut::with_capacity(READ_CHUNK),
        moved: Instant::now(),
        input: BytesMut::with_capacity(READ_CHUNK),
        scanned: 0,
        giant: None,
        chatter: (0, 0),
        strays: 0,
        bytes: Bucket::new(rate::BYTES),
        asides: Bucket::new(rate::ASIDES),
        was_held: false,
    };
    (Client::new(shared), conn.run(reader, writer, orders))
}

struct Conn {
    shared: Arc<Shared>,
    limits: Limits,
    voice: Arc<Voice>,
    changed: watch::Sender<Changed>,
    pending: HashMap<u64, Waiter>,
    asks: Asks,
    turns: Turns,
    given_up: GivenUp,
    out: BytesMut,
    /// When the server last took something, or `out` last got something to take.
    moved: Instant,
    input: BytesMut,
    /// Bytes of `input` that hold no line break.
    scanned: usize,
    /// Set while a message over the limit is being skipped.
    giant: Option<Giant>,
    chatter: (usize, usize),
    strays: u64,
    bytes: Bucket,
    asides: Bucket,
    was_held: bool,
}

impl Conn {
    async fn run<R, W>(mut self, mut reader: R, writer: W, mut orders: mpsc::UnboundedReceiver<Order>) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut writer = Some(writer);
        let mut dying = None;
        let end = loop {
            if orders.is_closed() && self.out.is_empty() {
                // Closing stdin is how a server is asked to end.
                writer = None;
            }
            let writing = writer.is_some() && !self.out.is_empty();
            let (held, turn) = (self.held_until(), self.turn_at());
            tokio::select! {
                order = orders.recv(), if !orders.is_closed() && self.out.len() < WRITE_HIGH =>
                    self.take_orders(order, &mut orders),
                () = tokio::time::sleep_until(held.unwrap_or(self.moved)), if held.is_some() => {}
                () = tokio::time::sleep_until(turn.unwrap_or(self.moved)), if turn.is_some() => self.next_in_line(),
                read = reader.read_buf(&mut self.input), if held.is_none() => match read {
                    Ok(0) => break End::Eof,
                    Ok(n) => {
                        self.bytes.take(n as f64);
                        if let Some(end) = self.take_input() { break end }
                    }
                    Err(e) => break End::Broken(format!("reading its stdout: {e}")),
                },
                wrote = write_some(&mut writer, &self.out), if writing => match wrote {
                    Ok(n) => { self.out.advance(n); self.moved = Instant::now(); }
                    // It closed its stdin, so it is ending; answers may still be in the other pipe.
                    Err(_) => {
                        self.refuse_more(&mut orders);
                        writer = None;
                        dying = Some(Instant::now() + LAST_WORDS);
                    }
                },
                () = tokio::time::sleep_until(dying.unwrap_or(self.moved)), if dying.is_some() => {
                    break End::Broken("it closed its stdin".to_owned());
                }
                () = tokio::time::sleep_until(self.moved + self.limits.write_stall), if writing => break End::Stalled,
            }
        };
        self.refuse_more(&mut orders);
        end
    }

    /// Takes what is waiting, so that many requests leave in one write.
    fn take_orders(&mut self, first: Option<Order>, orders: &mut mpsc::UnboundedReceiver<Order>) {
        let mut next = first;
        while let Some(order) = next {
            match order {
                Order::Send { id, line, waiter } => self.send_in_turn(id, line, waiter),
                Order::Reply { number, call, body } => self.reply_ask(number, call, body),
                Order::Tell { line } => self.write(&line),
                Order::Forget { id, reason } => self.forget(id, reason),
                Order::Close => return self.refuse_more(orders),
            }
            if self.out.len() >= WRITE_HIGH {
                return;
            }
            next = orders.try_recv().ok();
        }
    }

    /// Closes the queue; what waits in it was never sent and is told so.
    fn refuse_more(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        orders.close();
        while let Ok(order) = orders.try_recv() {
            match order {
                // A receiver that is gone does not want the answer.
                Order::Send { waiter, .. } => drop(waiter.reply.send(Err(CallError::NotSent))),
                Order::Forget { id, reason } => self.forget(id, reason),
                Order::Reply { number, call, body } => self.reply_ask(number, call, body),
                Order::Tell { .. } | Order::Close => {}
            }
        }
        for waiter in self.turns.refuse() {
            drop(waiter.reply.send(Err(CallError::NotSent)));
        }
    }

    /// The only way into `out`: a write can not stall before there is something to write.
    fn push(&mut self, line: &[u8]) {
        if self.out.is_empty() {
            self.moved = Instant::now();
        }
        self.out.extend_from_slice(line);
    }

    fn write(&mut self, line: &[u8]) {
        self.push(line);
        self.shared.queued.fetch_sub(line.len(), Ordering::Relaxed);
    }

    /// Until when the server waits with what it wants to say, because it said too much.
    fn held_until(&mut self) -> Option<Instant> {
        let until = self.bytes.held_until().max(self.asides.held_until())?;
        metrics::counter!("claudemesh_runner_held_total", "stream" => "stdout").increment(1);
        if !self.was_held {
            self.was_held = true;
            self.voice
                .say(Stream::Runner, "the server writes faster than is taken and is held back (said once)");
        }
        Some(until)
    }

    fn take_input(&mut self) -> Option<End> {
        self.shared.heard_ms.store(self.shared.age_ms(), Ordering::Relaxed);
        loop {
            let found = memchr::memchr(b'\n', &self.input[self.scanned..]);
            match (found, self.giant.take()) {
                (Some(at), None) => {
                    let line = self.input.split_to(self.scanned + at + 1).freeze();
                    self.scanned = 0;
                    if line.len() > self.limits.message {
                        self.end_giant(Giant::of(&line));
                    } else if let Some(end) = self.line(line) {
                        return Some(end);
                    }
                }
                (Some(at), Some(mut giant)) => {
                    giant.take(&self.input.split_to(at + 1));
                    self.end_giant(giant);
                    self.scanned = 0;
                }
                (None, Some(mut giant)) => {
                    giant.take(&self.input);
                    self.input.clear();
                    self.giant = Some(giant);
                    break;
                }
                (None, None) => {
                    self.scanned = self.input.len();
                    if self.scanned > self.limits.message {
                        self.giant = Some(Giant::of(&self.input));
                        // A new buffer: the old one has grown to the limit.
                        self.input = BytesMut::with_capacity(READ_CHUNK);
                        self.scanned = 0;
                    }
                    break;
                }
            }
        }
        self.input.reserve(READ_CHUNK);
        None
    }

    fn line(&mut self, line: Bytes) -> Option<End> {
        let text = line.trim_ascii();
        let known = match text.first() {
            None => return None,
            Some(b'{') => self.message(&line, text),
            // A batch, too: we send none, so nobody has to answer with one, and the protocol has dropped them.
            Some(_) => false,
        };
        if known { None } else { self.other_output(text) }
    }

    /// False when it is not JSON-RPC.
    fn message(&mut self, line: &Bytes, text: &[u8]) -> bool {
        if frame::is_too_deep(text) {
            self.refuse_deep(text);
            return true;
        }
        match frame::read(text) {
            None => return false,
            Some(Message::Result { id, result }) => {
                self.answer(id, Ok(Reply::Result(line.slice_ref(result.get().as_bytes()))));
            }
            Some(Message::Error { id, error }) => {
                self.answer(id, Ok(Reply::Error(line.slice_ref(error.get().as_bytes()))));
            }
            Some(Message::Request { id, method, params }) => {
                self.asides.take(1.0);
                self.serve(id, &method, params);
            }
            Some(Message::Notification { method, params }) => {
                self.asides.take(1.0);
                self.notification(&method, params);
            }
        }
        true
    }

    /// Dropped; the caller whose answer it was hears why.
    fn refuse_deep(&mut self, text: &[u8]) {
        self.asides.take(LINE_WEIGHT);
        self.voice.say(Stream::Runner, "the server sent a message that is nested too deeply; dropped");
        let number = Giant::of(text).find_id(&self.shared.prefix);
        if let Some(waiter) = number.and_then(|n| self.take_waiter(n)) {
            // The caller may have gone in this moment.
            let _ = waiter.reply.send(Err(CallError::TooDeep(frame::MAX_DEPTH)));
        }
    }

    fn answer(&mut self, id: &RawValue, answer: Result<Reply, CallError>) {
        let number = self.shared.number(id.get());
        match number.and_then(|number| self.take_waiter(number)) {
            // The caller may have gone in this moment; its cancellation then finds nothing to cancel.
            Some(waiter) => drop(waiter.reply.send(answer)),
            // It crossed its cancellation.
            None if number.is_some_and(|number| self.settle(number)) => self.asides.take(1.0),
            None => {
                self.asides.take(1.0);
                self.strays += 1;
                metrics::counter!("claudemesh_runner_stray_answers_total").increment(1);
                if self.strays == 1 {
                    self.voice.say(
                        Stream::Runner,
                        "the server answered an id that is not pending; dropped (said once)",
                    );
                }
            }
        }
    }

    fn other_output(&mut self, text: &[u8]) -> Option<End> {
        self.asides.take(LINE_WEIGHT);
        self.voice.say(Stream::Stdout, self.shared.masking.beginning(text, 2 * crate::logs::LINE_BYTES));
        if self.shared.ready.load(Ordering::Relaxed) {
            return None;
        }
        self.chatter = (self.chatter.0 + text.len(), self.chatter.1 + 1);
        let (bytes, lines) = self.chatter;
        (bytes > self.limits.chatter_bytes || lines > self.limits.chatter_lines).then_some(End::Chatter)
    }

    fn end_giant(&mut self, giant: Giant) {
        self.voice.say(
            Stream::Runner,
            format!("the server sent a message of more than {} bytes; dropped", self.limits.message),
        );
        // TypeScript servers write the id last, others first.
        let number = giant.find_id(&self.shared.prefix);
        if let Some(waiter) = number.and_then(|n| self.take_waiter(n)) {
            let _ = waiter.reply.send(Err(CallError::TooLarge(self.limits.message)));
        }
    }
}

async fn write_some<W: AsyncWrite + Unpin>(writer: &mut Option<W>, bytes: &[u8]) -> std::io::Result<usize> {
    match writer {
        Some(writer) => match writer.write(bytes).await? {
            0 => Err(std::io::ErrorKind::WriteZero.into()),
            n => Ok(n),
        },
        // Not reached: the branch is enabled only while there is a writer.
        None => Ok(0),
    }
}

#[cfg(test)]
#[path = "conn_tests.rs"]
mod tests;
