//! A proxy that records what two processes say to each other, and what they said as messages: of web sockets without their
//! masks.
//!
//! Here: one listener before one server, TCP or unix. Not here: what is looked for in a record (`scan`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

/// One direction of one connection.
#[derive(Default)]
struct Said {
    to_server: bool,
    bytes: Vec<u8>,
}

type Record = Arc<Mutex<Vec<Arc<Mutex<Said>>>>>;

pub struct Tap {
    record: Record,
    _task: JoinSet<()>,
}

/// What one side said on one connection: the bytes, and the web socket messages in it.
pub struct Heard {
    pub to_server: bool,
    pub bytes: Vec<u8>,
    pub messages: Vec<Vec<u8>>,
}

impl Tap {
    /// Before a server on TCP; gives the tap's own address.
    pub async fn on_tcp(server: String) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let record = Record::default();
        let (heard, mut task) = (Arc::clone(&record), JoinSet::new());
        task.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Dropped when nobody listens there: the client then sees what it would see without us.
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                pipe(&heard, &mut pipes, client.into_split(), server.into_split());
            }
        });
        (Self { record, _task: task }, addr)
    }

    /// Before a server on a unix socket, on a socket of our own.
    pub fn on_unix(server: PathBuf, own: &Path) -> Self {
        let listener = UnixListener::bind(own).unwrap();
        let record = Record::default();
        let (heard, mut task) = (Arc::clone(&record), JoinSet::new());
        task.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&server).await else { continue };
                pipe(&heard, &mut pipes, client.into_split(), server.into_split());
            }
        });
        Self { record, _task: task }
    }

    pub fn heard(&self) -> Vec<Heard> {
        let said = self.record.lock().unwrap();
        let of = |said: &Arc<Mutex<Said>>| {
            let said = said.lock().unwrap();
            let (to_server, bytes) = (said.to_server, said.bytes.clone());
            Heard { to_server, messages: messages(&bytes), bytes }
        };
        said.iter().map(of).collect()
    }
}

fn pipe<R, W>(record: &Record, pipes: &mut JoinSet<()>, client: (R, W), server: (R, W))
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    for (to_server, from, to) in [(true, client.0, server.1), (false, server.0, client.1)] {
        let said = Arc::new(Mutex::new(Said { to_server, bytes: Vec::new() }));
        record.lock().unwrap().push(Arc::clone(&said));
        pipes.spawn(pass(from, to, said));
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, said: Arc<Mutex<Said>>) {
    let mut chunk = vec![0_u8; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        said.lock().unwrap().bytes.extend_from_slice(&chunk[..read]);
        if to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// The messages behind the head of an upgrade; none when there was no upgrade.
fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Vec::new() };
    if !String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase().contains("upgrade: websocket") {
        return Vec::new();
    }
    let (mut rest, mut found, mut message) = (&bytes[head + 4..], Vec::new(), Vec::new());
    while let Some((is_last, payload, used)) = frame(rest) {
        message.extend(payload);
        if is_last {
            found.push(std::mem::take(&mut message));
        }
        rest = &rest[used..];
    }
    found
}

/// The first frame (RFC 6455 §5.2), when it is there whole: whether its message ends with it, its payload, its length.
fn frame(bytes: &[u8]) -> Option<(bool, Vec<u8>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (len, at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let (mask, at) = match second & 0x80 {
        0 => ([0; 4], at),
        _ => (bytes.get(at..at + 4)?.try_into().ok()?, at + 4),
    };
    let end = at.checked_add(len)?;
    let payload = bytes.get(at..end)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Some((first & 0x80 != 0, payload.collect(), end))
}
