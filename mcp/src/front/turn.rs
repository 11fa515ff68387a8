//! One client, from its first line to its last: the loop that owns the conversation.
//!
//! Here: which message means what, in which era. Not here: what each era wants of params and results (`eras`).
//! Invariant: the loop never waits for an offer; whatever does is a task of its own.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use wire::RawJson;

use super::desk::{Refusal, Retry, Ticket};
use super::eras::{self, Abilities, ModernHead, Spoken};
use super::exchange::{Caller, Exchange, Speaks, can_ask};
use super::hearing::Filter;
use super::room::{Greeting, Room, Session, empty};
use super::{Changes, Eras, Offer, code, error, unknown_method};
use crate::raw::Members;
use crate::stdio::{Answer, Incoming, Peer};

const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Requests that run when the client closes its side may still be answered for this long.
const FAREWELL: Duration = Duration::from_millis(500);
pub(super) struct Turn<O> {
    room: Arc<Room<O>>,
    eras: Eras,
    tasks: JoinSet<()>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Initialize {
    protocol_version: String,
    capabilities: RawJson,
    #[serde(default)]
    client_info: Option<RawJson>,
}

impl<O: Offer> Turn<O> {
    pub(super) fn new(peer: Peer, offer: Arc<O>, eras: Eras) -> Self {
        Self { room: Arc::new(Room::new(peer, offer)), eras, tasks: JoinSet::new() }
    }

    pub(super) async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>) {
        let mut changes = Some(self.room.changes.clone());
        let mut notices = self.room.offer.notices();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                message = incoming.recv() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                now = next_change(&mut changes) => self.room.state().hearing.tell_changes(&self.room.peer, now),
                notice = next_notice(&mut notices) => self.room.state().hearing.tell(&self.room.peer, &notice),
                Some(ended) = self.tasks.join_next_with_id() => self.reap(ended.err()),
                _ = sweep.tick() => {
                    self.room.desk.sweep();
                    self.room.state().hearing.grow_older();
                    self.room.wish();
                }
            }
        }
        let farewell = async {
            while !self.room.desk.is_clear()
                && let Some(ended) = self.tasks.join_next_with_id().await
            {
                self.reap(ended.err());
            }
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        self.tasks.shutdown().await;
    }

    fn reap(&self, failure: Option<tokio::task::JoinError>) {
        if let Some(failure) = failure.filter(tokio::task::JoinError::is_panic) {
            tracing::error!("a request failed inside claudemesh");
            self.room.desk.bury(&self.room.peer, failure.id());
        }
    }

    fn take(&mut self, message: Incoming) {
        match message {
            Incoming::Request { id, method, params } => {
                if let Err(answer) = self.request(&id, method, params) {
                    self.room.peer.answer(&id, &answer);
                }
            }
            Incoming::Notification { method, params } => self.notification(&method, params.as_ref()),
            Incoming::Nonsense => {}
        }
    }

    fn notification(&self, method: &str, params: Option<&RawJson>) {
        match method {
            "notifications/initialized" => {
                {
                    let mut state = self.room.state();
                    state.hearing.be_ready();
                    state.hearing.tell_changes(&self.room.peer, *self.room.changes.borrow());
                }
                self.room.offer.ready();
            }
            "notifications/cancelled" => {
                let params = params.and_then(|params| Members::read(params.get()));
                let Some(id) = params.and_then(|params| params.get("requestId")) else { return };
                self.room.desk.cancel(id.get());
                let is_stream = self.room.state().hearing.close(id.get());
                if is_stream {
                    self.room.wish();
                }
            }
            // Roots are asked for anew whenever somebody wants them.
            _ => {}
        }
    }

    /// `Err`: the answer, at once.
    fn request(&mut self, id: &RawJson, method: String, params: Option<RawJson>) -> Result<(), Answer> {
        if method == "initialize" {
            return self.initialize(id, params.as_ref());
        }
        let spoken = match self.eras {
            Eras::Both => eras::spoken(params.as_ref()),
            Eras::LegacyOnly => Spoken::Legacy,
        };
        match spoken {
            Spoken::Refused(answer) => Err(answer),
            Spoken::Modern(head) => self.modern(id, method, params, head),
            Spoken::Legacy => self.legacy(id, method, params),
        }
    }

    fn initialize(&mut self, id: &RawJson, params: Option<&RawJson>) -> Result<(), Answer> {
        let said: Option<Initialize> = params.and_then(|params| serde_json::from_str(params.get()).ok());
        let invalid = || {
            Answer::Error(error(code::INVALID_PARAMS, "`initialize` needs protocolVersion and capabilities"))
        };
        let Initialize { protocol_version, capabilities, client_info } = said.ok_or_else(invalid)?;
        let abilities = Abilities::read(&capabilities).ok_or_else(invalid)?;
        let newest = eras::LEGACY[eras::LEGACY.len() - 1];
        let version = eras::LEGACY.into_iter().find(|known| *known == protocol_version).unwrap_or(newest);
        self.room.state().session = Some(Session { abilities, client: client_info });
        let greeting = Greeting::begin(&self.room.greeted);
        self.spawn(id, String::new(), move |room, ticket| async move {
            let about = room.offer.about().await;
            let now = *room.changes.borrow();
            room.state().hearing.begin_legacy(now);
            room.desk.finish(&room.peer, ticket, Answer::Result(eras::initialize_result(&about, version)));
            drop(greeting);
        })
    }

    fn legacy(&mut self, id: &RawJson, method: String, params: Option<RawJson>) -> Result<(), Answer> {
        if method == "ping" {
            return Err(empty());
        }
        let (session, level) = {
            let state = self.room.state();
            (state.session.clone(), state.hearing.legacy_level())
        };
        let session = match (session, self.eras) {
            (Some(session), _) => session,
            (None, Eras::Both) => return Err(eras::missing("io.modelcontextprotocol/protocolVersion")),
            (None, Eras::LegacyOnly) => Session { abilities: Abilities::none(), client: None },
        };
        match method.as_str() {
            "logging/setLevel" => self.set_level(id, params.as_ref()),
            "resources/subscribe" | "resources/unsubscribe" => {
                self.subscribe(id, params.as_ref(), method == "resources/subscribe")
            }
            _ => {
                let Session { abilities, client } = session;
                self.work(
                    id,
                    method,
                    params,
                    String::new(),
                    Speaks::Legacy { abilities, client, log_level: level },
                )
            }
        }
    }

    fn set_level(&mut self, id: &RawJson, params: Option<&RawJson>) -> Result<(), Answer> {
        let level = params.and_then(|params| eras::level_index(&Members::read(params.get())?.text("level")?));
        self.spawn(id, String::new(), move |room, ticket| async move {
            let about = room.offer.about().await;
            let answer = match level {
                _ if !eras::declares(&about.capabilities, "logging", None) => unknown_method(),
                None => Answer::Error(error(code::INVALID_PARAMS, "`level` must be a logging level")),
                Some(level) => {
                    room.state().hearing.set_level(level);
                    room.wish();
                    room.heard().await;
                    empty()
                }
            };
            room.desk.finish(&room.peer, ticket, answer);
        })
    }

    fn subscribe(&mut self, id: &RawJson, params: Option<&RawJson>, is_on: bool) -> Result<(), Answer> {
        let uri = params.and_then(|params| Members::read(params.get())?.text("uri"));
        self.spawn(id, String::new(), move |room, ticket| async move {
            let about = room.offer.about().await;
            let answer = match uri {
                _ if !eras::declares(&about.capabilities, "resources", Some("subscribe")) => unknown_method(),
                None => Answer::Error(error(code::INVALID_PARAMS, "`uri` must be a string")),
                Some(uri) => room.heed(&uri, is_on).await,
            };
            room.desk.finish(&room.peer, ticket, answer);
        })
    }

    fn modern(
        &mut self,
        id: &RawJson,
        method: String,
        params: Option<RawJson>,
        head: ModernHead,
    ) -> Result<(), Answer> {
        match method.as_str() {
            "server/discover" => self.spawn(id, String::new(), |room, ticket| async move {
                let about = room.offer.about().await;
                room.desk.finish(&room.peer, ticket, Answer::Result(eras::discover_result(&about)));
            }),
            "subscriptions/listen" => self.listen(id, params.as_ref()),
            // They went with the legacy era.
            "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" => {
                Err(unknown_method())
            }
            _ => self.modern_work(id, method, params, head),
        }
    }

    /// A retry goes to the call that waits for it; everything else is new.
    fn modern_work(
        &mut self,
        id: &RawJson,
        method: String,
        params: Option<RawJson>,
        head: ModernHead,
    ) -> Result<(), Answer> {
        if !can_ask(&method) {
            return self.work(id, method, params, String::new(), Speaks::Modern(head));
        }
        let members = params.as_ref().and_then(|params| Members::read(params.get())).unwrap_or_default();
        let own = |key: &str| !matches!(key, "_meta" | "inputResponses" | "requestState");
        let binding = format!("{method} {}", members.write(own, &[]).get());
        if let Some(handle) = members.text("requestState") {
            let responses =
                members.get("inputResponses").and_then(|responses| Members::read(responses.get()));
            let meta = members.get("_meta").and_then(|meta| Members::read(meta.get())).unwrap_or_default();
            let token = meta.get("progressToken").map(ToOwned::to_owned);
            let retry = Retry { binding: &binding, responses: responses.unwrap_or_default(), token };
            match self.room.desk.resume(&self.room.peer, &handle, id, &retry) {
                Ok(()) => return Ok(()),
                // It may be a state of the server's own: then the server is to see it.
                Err(Refusal::UnknownState) => {}
                Err(refusal) => return Err(refusal.answer()),
            }
        }
        self.work(id, method, params, binding, Speaks::Modern(head))
    }

    fn listen(&mut self, id: &RawJson, params: Option<&RawJson>) -> Result<(), Answer> {
        let filter = params.and_then(|params| {
            serde_json::from_str::<Filter>(Members::read(params.get())?.get("notifications")?.get()).ok()
        });
        let Some(filter) = filter else {
            return Err(Answer::Error(error(code::INVALID_PARAMS, "`notifications` must be a filter")));
        };
        if self.room.state().hearing.has(id.get()) {
            return Err(Refusal::IdInUse.answer());
        }
        let id_of_stream = id.clone();
        self.spawn(id, String::new(), move |room, ticket| async move {
            let about = room.offer.about().await;
            let now = *room.changes.borrow();
            let opened = room.state().hearing.listen(&id_of_stream, filter, &about, now);
            match opened {
                Ok(acknowledgement) => {
                    room.wish();
                    room.heard().await;
                    let now = *room.changes.borrow();
                    room.state().hearing.acknowledge(&room.peer, &id_of_stream, &acknowledgement, now);
                    // It is answered by its end, which is the end of this process.
                    room.desk.leave(ticket);
                }
                Err(too_much) => room.desk.finish(&room.peer, ticket, too_much.answer()),
            }
        })
    }

    fn work(
        &mut self,
        id: &RawJson,
        method: String,
        params: Option<RawJson>,
        binding: String,
        speaks: Speaks,
    ) -> Result<(), Answer> {
        self.spawn(id, binding, move |room, ticket| async move {
            let _wanting = room.want_messages(&speaks);
            let (peer, desk) = (room.peer.clone(), Arc::clone(&room.desk));
            let caller = Arc::new(Caller { peer, desk, ticket, speaks });
            let answer = room.handle(Exchange { method, params, caller }).await;
            room.desk.finish(&room.peer, ticket, answer);
        })
    }

    fn spawn<F>(
        &mut self,
        id: &RawJson,
        binding: String,
        work: impl FnOnce(Arc<Room<O>>, Ticket) -> F,
    ) -> Result<(), Answer>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ticket = self.room.desk.open(id, binding).map_err(Refusal::answer)?;
        let abort = self.tasks.spawn(work(Arc::clone(&self.room), ticket));
        self.room.desk.staff(ticket, abort);
        Ok(())
    }
}

/// Never, once nothing can change any more.
async fn next_change(changes: &mut Option<watch::Receiver<Changes>>) -> Changes {
    if let Some(receiver) = changes
        && receiver.changed().await.is_ok()
    {
        return *receiver.borrow_and_update();
    }
    *changes = None;
    pending().await
}

async fn next_notice(notices: &mut Option<broadcast::Receiver<RawJson>>) -> RawJson {
    loop {
        let Some(receiver) = notices else { return pending().await };
        match receiver.recv().await {
            Ok(notice) => return notice,
            Err(broadcast::error::RecvError::Lagged(lost)) => tracing::warn!("{lost} notices were lost"),
            Err(broadcast::error::RecvError::Closed) => *notices = None,
        }
    }
}
