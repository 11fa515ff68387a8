//! `list_peers`, `set_status`.

use serde::Deserialize;
use wire::peer::mesh::{ListPeers, Peer, PeersList, SetStatus, StatusSet};

use super::super::Mesh;
use super::super::words::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Idle,
    Working,
    Dnd,
    NeedsInput,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    status: Word,
}

impl Mesh {
    pub(super) async fn list_peers(&self) -> Result<String, Refusal> {
        let PeersList { peers } = self.member.connection.request(&ListPeers {}).await?;
        Ok(peers.iter().map(line).collect::<Vec<_>>().join("\n"))
    }

    pub(super) async fn set_status(&self, input: Status) -> Result<String, Refusal> {
        let status = match input.status {
            Word::Idle => "idle",
            Word::Working => "working",
            Word::Dnd => "dnd",
            Word::NeedsInput => "needs_input",
        };
        let set: StatusSet = self.member.connection.request(&SetStatus { status: status.to_owned() }).await?;
        Ok(format!("the others see you as {}", set.status))
    }
}

fn line(peer: &Peer) -> String {
    let groups = peer.groups.iter().map(|group| match &group.role {
        Some(role) => format!("{}:{role}", group.name),
        None => group.name.clone(),
    });
    let groups = groups.collect::<Vec<_>>().join(",");
    let mut line = format!("- {} ({})", peer.display_name, peer.status);
    for (word, value) in [
        ("", peer.peer_type.as_deref().unwrap_or_default()),
        ("groups ", groups.as_str()),
        ("on ", peer.hostname.as_deref().unwrap_or_default()),
        ("in ", peer.cwd.as_str()),
        ("— ", peer.summary.as_deref().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            line.push_str(&format!(", {word}{value}"));
        }
    }
    line
}
