//! What the service says outside of requests: one stream from the broker, replaced when the client wants something else.

use std::sync::Arc;
use std::time::Duration;

use client::connection::{ListenEvent, ListenStream};
use client::{ClientError, LinkState};
use serde::Deserialize;
use wire::peer::calls::McpListen;

use super::{Shared, Wishes};

const PAUSE: Duration = Duration::from_secs(2);
/// The broker may have to reach a runner first.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// For ever.
pub(super) async fn hear(shared: Arc<Shared>) {
    let mut wishes = shared.wishes.subscribe();
    let mut stream: Option<ListenStream> = None;
    let mut pause = PAUSE;
    loop {
        let wanted = wishes.borrow_and_update().clone();
        let number = wanted.number;
        let mut opening = std::pin::pin!(open(&shared, wanted, pause));
        // The old stream is heard until the new one is there.
        let opened = loop {
            tokio::select! {
                opened = opening.as_mut() => break opened,
                event = heard(&mut stream) => shared.pass(&mut stream, event),
                changed = wishes.changed() => match changed {
                    Ok(()) => break Ok(None),
                    Err(_) => return,
                },
            }
        };
        match opened {
            Ok(None) => continue,
            Ok(Some(new)) => {
                stream = Some(new);
                shared.heard.send_replace(number);
                pause = PAUSE;
                // It may have changed while nobody listened.
                shared.stale.notify_one();
            }
            Err(Refused) => {
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        while stream.is_some() {
            tokio::select! {
                event = heard(&mut stream) => shared.pass(&mut stream, event),
                changed = wishes.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            }
        }
    }
}

/// Nobody listens; the pause is over.
struct Refused;

/// A stream that listens. Waits when that is refused: the service may be gone, or the link.
async fn open(shared: &Shared, wishes: Wishes, pause: Duration) -> Result<Option<ListenStream>, Refused> {
    let Wishes { resources, log_level, number } = wishes;
    let listen = McpListen { server_name: shared.name.to_string(), resources, log_level };
    let mut link = shared.connection.state();
    let is_up = link.wait_for(|link| !matches!(link, LinkState::Down(_))).await.is_ok();
    let opened = async {
        let mut stream = shared.connection.listen(&listen).await?;
        let first = tokio::time::timeout(ANSWER_LIMIT, stream.next()).await;
        match first.map_err(|_| ClientError::Timeout(ANSWER_LIMIT.as_secs()))?? {
            ListenEvent::Listening | ListenEvent::Notification(_) => Ok(stream),
            ListenEvent::Ended(end) => {
                let why = end.error.unwrap_or_default();
                Err(ClientError::Local(why))
            }
        }
    };
    let why = match opened.await {
        Ok(stream) if is_up => return Ok(Some(stream)),
        Ok(_) => "the link is gone".to_owned(),
        Err(e) => e.to_string(),
    };
    tracing::debug!("nothing is heard of {}: {why}", shared.name);
    // Who waits for it would wait in vain.
    shared.heard.send_replace(number);
    // A service that comes back shows in its lists.
    let mut view = shared.view.subscribe();
    view.borrow_and_update();
    let _ = tokio::time::timeout(pause, view.changed()).await;
    Err(Refused)
}

/// Never, without a stream.
async fn heard(stream: &mut Option<ListenStream>) -> Result<ListenEvent, ClientError> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

impl Shared {
    fn pass(&self, stream: &mut Option<ListenStream>, event: Result<ListenEvent, ClientError>) {
        #[derive(Deserialize)]
        struct Method {
            method: String,
        }
        match event {
            Ok(ListenEvent::Listening) => {}
            Ok(ListenEvent::Notification(notice)) => {
                let method = serde_json::from_str::<Method>(notice.get()).map(|m| m.method);
                if method.is_ok_and(|method| method.ends_with("/list_changed")) {
                    self.stale.notify_one();
                } else {
                    // Nobody listens before the client has come, and that is fine.
                    let _ = self.notices.send(notice);
                }
            }
            Ok(ListenEvent::Ended(_)) | Err(_) => {
                *stream = None;
                self.stale.notify_one();
            }
        }
    }
}
