//! What two processes of a session say to each other: messages of four bytes of length, one of kind, and the rest.
//!
//! Frames of the broker go both ways as they are; around them, what a process must know to be told apart.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::connection::inbox::Nature;

/// Only processes of the same version share a link.
pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/1");
/// A little more than the largest frame.
const MAX_MESSAGE: usize = (64 << 20) + 4096;

const GREETING: u8 = 1;
const ANSWER: u8 = 2;
const ASK: u8 = 3;
const TELL: u8 = 4;
const FORGET: u8 = 5;
const UP: u8 = 6;
const DOWN: u8 = 7;
const ENDED: u8 = 8;
const LEAVING: u8 = 9;
const FRAME: u8 = 10;

/// The first message of a joiner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub version: String,
    /// What its request ids start with.
    pub prefix: String,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) enum Answer {
    Welcome,
    /// The holder is leaving, or has no room.
    Later,
    OtherVersion(String),
}

/// From a joiner to the holder. `epoch`: for which time of the link it is meant.
#[derive(Debug)]
pub(super) enum Note {
    Ask { epoch: u32, is_once: bool, nature: Nature, id: String, text: String },
    Tell { epoch: u32, text: String },
    Forget { id: String },
}

/// From the holder to a joiner.
#[derive(Debug, Clone)]
pub(super) enum Word {
    /// With the `hello_ack`.
    Up {
        epoch: u32,
        ack: Arc<str>,
    },
    Down(Arc<str>),
    Ended(Arc<str>),
    /// New requests are better kept for the next holder.
    Leaving,
    Frame(Utf8Bytes),
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a message of a session: {what}"))
}

async fn put<W: AsyncWrite + Unpin>(to: &mut W, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum::<usize>() + 1;
    let length = u32::try_from(length).map_err(|_| broken("too long"))?;
    to.write_all(&length.to_le_bytes()).await?;
    to.write_u8(kind).await?;
    for part in parts {
        to.write_all(part).await?;
    }
    Ok(())
}

/// `None`: the other side has ended.
async fn take<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<(u8, Vec<u8>)>> {
    let length = match from.read_u32_le().await {
        Ok(length) => length as usize,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    if length == 0 || length > MAX_MESSAGE {
        return Err(broken("its length"));
    }
    let kind = from.read_u8().await?;
    let mut rest = Vec::new();
    from.take(length as u64 - 1).read_to_end(&mut rest).await?;
    if rest.len() + 1 == length { Ok(Some((kind, rest))) } else { Err(broken("it is cut off")) }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| broken("not UTF-8"))
}

fn split_epoch(bytes: &mut Vec<u8>) -> io::Result<u32> {
    let head = bytes.first_chunk::<4>().copied().ok_or_else(|| broken("no epoch"))?;
    bytes.drain(..4);
    Ok(u32::from_le_bytes(head))
}

pub(super) async fn greet<W: AsyncWrite + Unpin>(to: &mut W, greeting: &Greeting) -> io::Result<()> {
    put(to, GREETING, &[&serde_json::to_vec(greeting)?]).await?;
    to.flush().await
}

pub(super) async fn greeting<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Greeting> {
    match take(from).await? {
        Some((GREETING, bytes)) => Ok(serde_json::from_slice(&bytes)?),
        _ => Err(broken("no greeting")),
    }
}

pub(super) async fn reply<W: AsyncWrite + Unpin>(to: &mut W, answer: &Answer) -> io::Result<()> {
    put(to, ANSWER, &[&serde_json::to_vec(answer)?]).await?;
    to.flush().await
}

pub(super) async fn answer<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Answer> {
    match take(from).await? {
        Some((ANSWER, bytes)) => Ok(serde_json::from_slice(&bytes)?),
        _ => Err(broken("no answer to the greeting")),
    }
}

/// Not flushed.
pub(super) async fn write_note<W: AsyncWrite + Unpin>(to: &mut W, note: &Note) -> io::Result<()> {
    match note {
        Note::Ask { epoch, is_once, nature, id, text } => {
            let nature = match nature {
                Nature::Errand => 0,
                Nature::Call => 1,
                Nature::Standing => 2,
            };
            let id_length = u8::try_from(id.len()).map_err(|_| broken("a long id"))?;
            let head = [u8::from(*is_once), nature, id_length];
            put(to, ASK, &[&epoch.to_le_bytes(), &head, id.as_bytes(), text.as_bytes()]).await
        }
        Note::Tell { epoch, text } => put(to, TELL, &[&epoch.to_le_bytes(), text.as_bytes()]).await,
        Note::Forget { id } => put(to, FORGET, &[id.as_bytes()]).await,
    }
}

pub(super) async fn read_note<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Note>> {
    let Some((kind, mut bytes)) = take(from).await? else { return Ok(None) };
    Ok(Some(match kind {
        ASK => {
            let epoch = split_epoch(&mut bytes)?;
            let [is_once, nature, id_length] =
                bytes.first_chunk::<3>().copied().ok_or_else(|| broken("a short request"))?;
            let nature = match nature {
                0 => Nature::Errand,
                1 => Nature::Call,
                _ => Nature::Standing,
            };
            let end = 3 + usize::from(id_length);
            let id = bytes.get(3..end).ok_or_else(|| broken("a short request"))?.to_vec();
            bytes.drain(..end);
            Note::Ask { epoch, is_once: is_once == 1, nature, id: text(id)?, text: text(bytes)? }
        }
        TELL => Note::Tell { epoch: split_epoch(&mut bytes)?, text: text(bytes)? },
        FORGET => Note::Forget { id: text(bytes)? },
        _ => return Err(broken("an unknown kind")),
    }))
}

/// Not flushed.
pub(super) async fn write_word<W: AsyncWrite + Unpin>(to: &mut W, word: &Word) -> io::Result<()> {
    match word {
        Word::Up { epoch, ack } => put(to, UP, &[&epoch.to_le_bytes(), ack.as_bytes()]).await,
        Word::Down(why) => put(to, DOWN, &[why.as_bytes()]).await,
        Word::Ended(why) => put(to, ENDED, &[why.as_bytes()]).await,
        Word::Leaving => put(to, LEAVING, &[]).await,
        Word::Frame(text) => put(to, FRAME, &[text.as_bytes()]).await,
    }
}

pub(super) async fn read_word<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Word>> {
    let Some((kind, mut bytes)) = take(from).await? else { return Ok(None) };
    Ok(Some(match kind {
        UP => Word::Up { epoch: split_epoch(&mut bytes)?, ack: text(bytes)?.into() },
        DOWN => Word::Down(text(bytes)?.into()),
        ENDED => Word::Ended(text(bytes)?.into()),
        LEAVING => Word::Leaving,
        FRAME => Word::Frame(text(bytes)?.into()),
        _ => return Err(broken("an unknown kind")),
    }))
}
