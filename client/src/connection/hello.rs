//! Connecting and saying hello.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use wire::peer::Body;
use wire::peer::hello::{Group, Hello, HelloAck};
use wire::{MemberId, MeshId};

use super::frame::{Frame, News};
use crate::address::BrokerAddress;
use crate::config::MeshEntry;
use crate::error::{ClientError, read_code};
use crate::identity::{Identity, random_hex};

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// A result may be 16 MiB, and JSON in JSON grows.
const MAX_FRAME: usize = 64 << 20;
/// All of it is zeroed before each read.
const READ_BUFFER: usize = 16 << 10;

/// As whom we connect, and where.
#[derive(Debug, Clone)]
pub struct Membership {
    pub mesh_id: MeshId,
    pub member_id: MemberId,
    pub identity: Identity,
    pub broker: BrokerAddress,
}

impl Membership {
    /// # Errors
    /// When the stored key or address is damaged.
    pub fn of(entry: &MeshEntry) -> Result<Self, ClientError> {
        let identity =
            entry.identity().map_err(|e| ClientError::Local(format!("mesh `{}`: {e}", entry.slug)))?;
        Ok(Self {
            mesh_id: entry.mesh_id.clone(),
            member_id: entry.member_id.clone(),
            identity,
            broker: BrokerAddress::parse(&entry.broker_url)?,
        })
    }
}

/// How this connection presents itself. Labels; nothing here gives access.
#[derive(Debug, Clone)]
pub struct Announce {
    pub session_id: String,
    pub display_name: Option<String>,
    pub cwd: String,
    pub hostname: Option<String>,
    pub peer_type: String,
    pub channel: String,
    pub model: Option<String>,
    pub groups: Option<Vec<Group>>,
    /// What the session is for.
    pub role: Option<String>,
}

impl Announce {
    /// This process, with a new session id.
    pub fn here(peer_type: &str, channel: &str) -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        Self {
            session_id: random_hex(),
            display_name: None,
            cwd: std::env::current_dir().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            hostname: hostname.map(|name| name.trim().to_owned()),
            peer_type: peer_type.to_owned(),
            channel: channel.to_owned(),
            model: None,
            groups: None,
            role: None,
        }
    }
}

pub(super) async fn connect(
    membership: &Membership,
    announce: &Announce,
    news: &News,
) -> Result<(Socket, HelloAck), ClientError> {
    crate::install_tls();
    let url = membership.broker.socket();
    let unreachable = |why: String| ClientError::Unreachable { url: url.to_owned(), why };
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    // Without TCP_NODELAY a small call waits 40 ms for the delayed acknowledgement of the previous one.
    let no_delay = true;
    let attempt = tokio_tungstenite::connect_async_with_config(url, Some(limits), no_delay);
    let (mut socket, _) = tokio::time::timeout(CONNECT_DEADLINE, attempt)
        .await
        .map_err(|_| unreachable(format!("no connection within {} s", CONNECT_DEADLINE.as_secs())))?
        .map_err(|e| unreachable(e.to_string()))?;
    let text = hello_frame(membership, announce)?;
    let exchange = async {
        socket.send(Message::text(text)).await.map_err(|e| unreachable(e.to_string()))?;
        await_ack(&mut socket, news).await
    };
    let ack = tokio::time::timeout(HELLO_DEADLINE, exchange)
        .await
        .map_err(|_| unreachable("the broker did not answer the hello".to_owned()))??;
    Ok((socket, ack))
}

fn hello_frame(membership: &Membership, announce: &Announce) -> Result<String, ClientError> {
    let timestamp = now_ms();
    let pubkey = membership.identity.public().as_str();
    let text = wire::canonical::hello(&membership.mesh_id, membership.member_id.as_str(), pubkey, timestamp);
    let Announce { session_id, display_name, cwd, hostname, peer_type, channel, model, groups, role } =
        announce.clone();
    #[expect(clippy::cast_precision_loss, reason = "a time in milliseconds fits 53 bits")]
    let hello = Hello {
        mesh_id: membership.mesh_id.as_str().to_owned(),
        member_id: membership.member_id.as_str().to_owned(),
        pubkey: pubkey.to_owned(),
        session_pubkey: None,
        display_name,
        session_id,
        pid: i64::from(std::process::id()),
        cwd,
        hostname,
        peer_type: Some(peer_type),
        channel: Some(channel),
        model,
        groups,
        role,
        timestamp: timestamp as f64,
        signature: membership.identity.sign(&text),
    };
    wire::peer::write(None, &hello).map_err(|e| ClientError::Local(format!("cannot write the hello: {e}")))
}

async fn await_ack(socket: &mut Socket, news: &News) -> Result<HelloAck, ClientError> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let frame = Frame::new(text);
                match frame.kind()?.as_ref() {
                    HelloAck::TYPE | "error" => return frame.read(),
                    // The original broker lets events overtake the ack.
                    kind if News::is_news(kind) => news.publish(kind, &frame),
                    _ => {}
                }
            }
            Some(Ok(Message::Close(frame))) => return Err(refused(frame)),
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err(ClientError::Closed(e.to_string())),
            None => return Err(ClientError::Closed("it ended during the hello".to_owned())),
        }
    }
}

/// The close reason of a refused hello is its error code (peer-protocol reference §1.11).
fn refused(frame: Option<CloseFrame>) -> ClientError {
    let reason = frame.map(|f| f.reason.to_string()).unwrap_or_default();
    match read_code(&reason) {
        Some(code) => {
            ClientError::Broker { code: Some(code), message: code.cause().to_owned(), stderr: Vec::new() }
        }
        None => ClientError::Closed(format!("it was closed during the hello ({reason})")),
    }
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
