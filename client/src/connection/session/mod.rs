//! One link for all processes of a session.
//!
//! ```text
//!  process A ── holds the lock ── WebSocket ── broker
//!  process B ── unix socket ──┘       (when A ends, whoever gets the lock next connects)
//! ```
//!
//! Here: who holds the link, and what becomes of a process when that changes. [`place`]: lock and paths; [`hold`]: the
//! process that has the link; [`follow`]: the others; [`joiners`]: what they are owed; [`words`]: how they talk; [`status`]: what
//! a status line shows.
//! Invariant: at most one process of a session has a connection under the session's id, because it has the lock.

mod follow;
mod hold;
mod joiners;
mod place;
mod status;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::time::Duration;

use super::socket::{Ends, Link};
use super::{Announce, LinkState, Membership, Reconnect, SessionPlace};
use follow::Followed;
pub(super) use joiners::Joiners;
use place::Meeting;
pub use status::SessionStatus;

/// Between two attempts to get hold of the lock or of its holder.
const LEAST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Session {
    pub membership: Membership,
    pub announce: Announce,
    pub place: SessionPlace,
    /// What the ids of this process start with.
    pub prefix: Arc<str>,
    pub ends: Ends,
}

impl Session {
    /// Until the connection is closed here, or refused for good.
    pub(super) async fn run(mut self) {
        self.announce.session_id.clone_from(&self.place.session_id);
        let membership = &self.membership;
        let meeting = match Meeting::of(&self.place, &membership.mesh_id, &membership.member_id) {
            Ok(meeting) => meeting,
            Err(e) => return self.run_alone(&e.to_string()).await,
        };
        let closing = Arc::clone(&self.ends.closing);
        let mut pause = LEAST_PAUSE;
        loop {
            let why = match meeting.try_hold() {
                Ok(Some(hold)) => match hold::listen(&meeting) {
                    Ok(listener) => return self.hold(listener, hold, &meeting).await,
                    Err(e) => return self.run_alone(&e.to_string()).await,
                },
                Ok(None) => match follow::follow(&meeting, &self.prefix, &mut self.ends).await {
                    Followed::Closed => return,
                    Followed::OtherVersion(version) => {
                        let why = format!("it is shared by processes of version {version}");
                        return self.run_alone(&why).await;
                    }
                    Followed::Lost => {
                        pause = LEAST_PAUSE;
                        "the process that held the session's link has ended"
                    }
                    Followed::Unreached => "no process of the session answers yet",
                },
                Err(e) => return self.run_alone(&e.to_string()).await,
            };
            self.ends.report.send_replace(LinkState::Down(why.to_owned()));
            tokio::select! {
                biased;
                () = closing.notified() => {
                    self.ends.report.send_replace(LinkState::Ended("it was closed here".to_owned()));
                    return;
                }
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// A link of one's own, under a session id of one's own: the broker ends the older of two connections with the same.
    async fn run_alone(mut self, why: &str) {
        tracing::warn!("the session's link can not be shared, this process has its own: {why}");
        self.announce.session_id = format!("{}-{}", self.place.session_id, self.prefix);
        let Self { membership, announce, ends, .. } = &mut self;
        let link = Link { membership, announce, reconnect: Reconnect::Forever, ends, shared: None };
        link.run(None).await;
    }
}

/// Between a half and the whole.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    let _ = getrandom::fill(&mut byte);
    pause / 2 + pause * u32::from(byte[0]) / 512
}
