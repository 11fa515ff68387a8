//! What a status line shows, without asking the network: the holder of the link keeps it in a file.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use wire::peer::mesh::{ListPeers, PeersList, SystemPush};
use wire::{MemberId, MeshId};

use super::place;
use crate::connection::frame::Waiter;
use crate::connection::inbox::{Command, Nature};
use crate::connection::{LinkState, REQUEST_DEADLINE, SessionPlace};

/// Peers often come and go in numbers.
const SETTLE: Duration = Duration::from_secs(1);
/// Sessions of one's own member come and go unheard.
const REFRESH: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    pub is_online: bool,
    /// Other sessions that are connected to the mesh.
    pub peers: usize,
    /// What the others see this session as.
    pub display_name: String,
}

impl SessionStatus {
    /// `None` when no process of the session lives.
    pub fn read(place: &SessionPlace, mesh: &MeshId, member: &MemberId) -> Option<Self> {
        let base = place::base(place, mesh, member);
        let text = std::fs::read(base.with_extension("status")).ok()?;
        let status = serde_json::from_slice(&text).ok()?;
        place::is_held(&base).then_some(status)
    }
}

pub(super) struct Watch {
    pub path: PathBuf,
    pub state: watch::Receiver<LinkState>,
    pub pushes: broadcast::Receiver<Arc<SystemPush>>,
    /// To the link.
    pub ask: mpsc::Sender<Command>,
    pub prefix: Arc<str>,
    pub session_id: String,
}

impl Watch {
    /// For ever. Writes when something has changed, at most once a second.
    pub(super) async fn keep(mut self) {
        let mut written = None;
        for n in 1_u64.. {
            let ack = match &*self.state.borrow_and_update() {
                LinkState::Up(ack) => Some(Arc::clone(ack)),
                LinkState::Down(_) | LinkState::Ended(_) => None,
            };
            let status = match ack {
                Some(ack) => {
                    let list = self.peers(n).await;
                    let peers = list.as_ref().map_or(0, |list| self.others(list));
                    let own = list.iter().flat_map(|l| &l.peers).find(|p| p.session_id == self.session_id);
                    let name = own.map_or(&ack.member_display_name, |peer| &peer.display_name);
                    SessionStatus { is_online: true, peers, display_name: name.clone() }
                }
                None => SessionStatus { is_online: false, peers: 0, display_name: String::new() },
            };
            if written.as_ref() != Some(&status) {
                if let Err(e) = replace(&self.path, &status) {
                    tracing::debug!("{}: {e}", self.path.display());
                }
                written = Some(status);
            }
            self.change().await;
        }
    }

    fn others(&self, list: &PeersList) -> usize {
        list.peers.iter().filter(|peer| peer.session_id != self.session_id).count()
    }

    async fn peers(&self, n: u64) -> Option<PeersList> {
        let id = format!("{}.status-{n}", self.prefix);
        let text = wire::peer::write(Some(&id), &ListPeers {}).ok()?;
        let (waiter, answer) = oneshot::channel();
        let ask = Command::Ask { id, nature: Nature::Errand, text, waiter: Waiter::Once(waiter) };
        self.ask.send(ask).await.ok()?;
        tokio::time::timeout(REQUEST_DEADLINE, answer).await.ok()?.ok()?.read().ok()
    }

    /// Waits until something may have changed, and a moment more.
    async fn change(&mut self) {
        tokio::select! {
            _ = self.state.changed() => {}
            () = news_of_peers(&mut self.pushes) => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
        tokio::time::sleep(SETTLE).await;
        // What came meanwhile is seen by the look that follows.
        while matches!(self.pushes.try_recv(), Ok(_) | Err(broadcast::error::TryRecvError::Lagged(_))) {}
    }
}

async fn news_of_peers(pushes: &mut broadcast::Receiver<Arc<SystemPush>>) {
    loop {
        match pushes.recv().await {
            Ok(push) if push.event.starts_with("peer_") => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Not synced: a status that is lost with the machine was not worth waiting for, on the task that carries the link.
fn replace(path: &Path, status: &SessionStatus) -> std::io::Result<()> {
    let new = path.with_extension("status.new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(status)?)?;
    std::fs::rename(&new, path)
}
