//! Who listens to a service outside of calls, and what they want to hear.
//!
//! Here: seats, what all of them want together, who gets which notification. Not here: asking a server for it (see
//! [`crate::mcp::tuning`]), what a server says (see [`crate::mcp`]).
//! Invariants: a seat outlives instances and ends with the service. What an instance that runs as one member says reaches
//! only that member. A seat that does not read is taken away, so that nothing is missed unknowingly; log messages are advice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wire::runner::Listen;
use wire::{ErrorCode, PublicKey};

use crate::mcp::lists::Kinds;
use crate::mcp::notice::Level;
use crate::service::door::Serves;

/// Listeners of one service.
const SEATS: usize = 1024;
/// URIs of one listener, and of all of a service; bytes of one's.
const URIS: usize = 1000;
const ALL_URIS: usize = 10_000;
const URI_BYTES: usize = 256 << 10;
/// Notifications that wait for a listener to read. Log messages leave room for the others.
const QUEUE: usize = 256;
const LOG_ROOM: usize = 64;
/// How long a server may take to be asked for what a new listener wants.
const TUNE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    #[error("`{0}` is no level of log messages")]
    Level(String),
    #[error("more than {URIS} resources, or {} KiB of their URIs", URI_BYTES >> 10)]
    Uris,
    #[error("too many listen to this service, or to too many resources")]
    Full,
    #[error("this instance runs as another member")]
    NotTheirs,
    #[error("what the service says was not read in time; listen again")]
    Slow,
}

impl AudienceError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Level(_) | Self::Uris => ErrorCode::InvalidArgs,
            Self::Full | Self::Slow => ErrorCode::Busy,
            Self::NotTheirs => ErrorCode::Forbidden,
        }
    }
}

/// Of one service.
pub struct Audience {
    hall: Mutex<Hall>,
    wanted: watch::Sender<Arc<Wanted>>,
    stage: watch::Sender<Stage>,
}

#[derive(Default)]
struct Hall {
    seats: BTreeMap<u64, Seat>,
    next: u64,
    /// Whom the instance serves that plays, or played last.
    serves: Option<Serves>,
}

struct Seat {
    sink: mpsc::Sender<Bytes>,
    session: Option<Arc<str>>,
    caller: Option<PublicKey>,
    resources: BTreeSet<String>,
    level: Option<Level>,
}

/// What all listeners want together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    version: u64,
    pub resources: BTreeSet<String>,
    pub level: Option<Level>,
}

/// The instance that plays, and what it was asked for.
#[derive(Debug, Default, Clone, Copy)]
struct Stage {
    player: Option<u64>,
    tuned: u64,
}

impl Default for Audience {
    fn default() -> Self {
        Self {
            hall: Mutex::default(),
            wanted: watch::Sender::new(Arc::default()),
            stage: watch::Sender::new(Stage::default()),
        }
    }
}

impl Audience {
    /// Takes a seat; it is given up by dropping what comes back.
    pub fn join(
        self: &Arc<Self>,
        listen: Listen,
        session: Option<Arc<str>>,
        caller: Option<PublicKey>,
    ) -> Result<Listener, AudienceError> {
        let Listen { resources, log_level } = listen;
        if resources.len() > URIS || resources.iter().map(String::len).sum::<usize>() > URI_BYTES {
            return Err(AudienceError::Uris);
        }
        let level = match log_level {
            Some(text) => {
                Some(Level::parse(&text).ok_or_else(|| AudienceError::Level(crate::logs::clean(&text)))?)
            }
            None => None,
        };
        let (sink, said) = mpsc::channel(QUEUE);
        let seat =
            Seat { sink, session, caller: caller.clone(), resources: resources.into_iter().collect(), level };
        let mut hall = self.hall();
        if hall.serves.as_ref().is_some_and(|serves| serves.admits(caller.as_ref()).is_err()) {
            return Err(AudienceError::NotTheirs);
        }
        let wants_more = seat.resources.difference(&self.wanted.borrow().resources).count();
        if hall.seats.len() >= SEATS || self.wanted.borrow().resources.len() + wants_more > ALL_URIS {
            return Err(AudienceError::Full);
        }
        hall.next += 1;
        let number = hall.next;
        hall.seats.insert(number, seat);
        self.sum_up(&hall);
        let version = self.wanted.borrow().version;
        drop(hall);
        Ok(Listener { audience: self.clone(), number, caller, version, said })
    }

    /// An instance plays from now on, for those that it serves.
    pub fn play(self: &Arc<Self>, serves: Serves) -> Player {
        let mut hall = self.hall();
        hall.next += 1;
        let number = hall.next;
        hall.seats.retain(|_, seat| serves.admits(seat.caller.as_ref()).is_ok());
        hall.serves = Some(serves);
        self.stage.send_replace(Stage { player: Some(number), tuned: 0 });
        self.sum_up(&hall);
        Player { audience: self.clone(), number, wanted: self.wanted.subscribe() }
    }

    pub fn list_changed(&self, kinds: Kinds) {
        for (is_changed, name) in
            [(kinds.tools, "tools"), (kinds.prompts, "prompts"), (kinds.resources, "resources")]
        {
            if is_changed {
                let event = Bytes::from(format!(r#"{{"method":"notifications/{name}/list_changed"}}"#));
                self.tell(&event, |_| true);
            }
        }
    }

    /// To whom this resource, or one that it is a part of, is of interest.
    pub fn updated(&self, uri: &str, event: &Bytes) {
        self.tell(event, |seat| {
            seat.resources.contains(uri) || seat.resources.iter().any(|of| is_part(uri, of))
        });
    }

    /// To those that want messages of this level; of one session, if it is a matter of theirs.
    pub fn log(&self, level: Option<Level>, of: Option<&Arc<str>>, event: &Bytes) {
        let hall = self.hall();
        for seat in hall.seats.values() {
            let is_wanted = seat.level.is_some_and(|least| level.is_none_or(|level| level >= least));
            let is_theirs = of.is_none_or(|session| seat.session.as_ref() == Some(session));
            if is_wanted && is_theirs && seat.sink.capacity() > LOG_ROOM {
                // Room was seen under the lock; a seat that was just given up does not care.
                let _ = seat.sink.try_send(event.clone());
            }
        }
    }

    /// The least level that a session asked for, if it did.
    pub fn level_of(&self, session: &Arc<str>) -> Option<Level> {
        let hall = self.hall();
        let theirs = hall.seats.values().filter(|seat| seat.session.as_ref() == Some(session));
        theirs.filter_map(|seat| seat.level).min()
    }

    /// What is a matter of one session: to the newest seat of it. Without a session to name: if only one listens.
    pub fn tell_one(&self, of: Option<&Arc<str>>, event: &Bytes) {
        let newest = {
            let hall = self.hall();
            let Some(session) = of.or_else(|| hall.seats.values().next_back()?.session.as_ref()) else {
                return;
            };
            let is_theirs = |seat: &Seat| seat.session.as_ref() == Some(session);
            if of.is_none() && !hall.seats.values().all(is_theirs) {
                return;
            }
            hall.seats.iter().rev().find(|(_, seat)| is_theirs(seat)).map(|(number, _)| *number)
        };
        let Some(newest) = newest else { return };
        self.tell_seats(event, |number, _| number == newest);
    }

    fn tell(&self, event: &Bytes, wants: impl Fn(&Seat) -> bool) {
        self.tell_seats(event, |_, seat| wants(seat));
    }

    fn tell_seats(&self, event: &Bytes, wants: impl Fn(u64, &Seat) -> bool) {
        let mut hall = self.hall();
        let before = hall.seats.len();
        hall.seats.retain(|number, seat| !wants(*number, seat) || seat.sink.try_send(event.clone()).is_ok());
        if hall.seats.len() != before {
            self.sum_up(&hall);
        }
    }

    fn sum_up(&self, hall: &Hall) {
        let resources: BTreeSet<String> =
            hall.seats.values().flat_map(|seat| seat.resources.iter().cloned()).collect();
        let level = hall.seats.values().filter_map(|seat| seat.level).min();
        self.wanted.send_if_modified(|wanted| {
            if wanted.resources == resources && wanted.level == level {
                return false;
            }
            *wanted = Arc::new(Wanted { version: wanted.version + 1, resources, level });
            true
        });
    }

    fn hall(&self) -> MutexGuard<'_, Hall> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `a/b` and `a/b/` are parts of `a` and `a/`; `ab` is none of `a`.
fn is_part(uri: &str, of: &str) -> bool {
    uri.strip_prefix(of).is_some_and(|rest| rest.is_empty() || of.ends_with('/') || rest.starts_with('/'))
}

/// A seat.
pub struct Listener {
    audience: Arc<Audience>,
    number: u64,
    caller: Option<PublicKey>,
    version: u64,
    said: mpsc::Receiver<Bytes>,
}

impl Listener {
    /// Waits until the instance that plays, if one does, was asked for what this listener wants.
    pub async fn tuned(&self) {
        let mut stage = self.audience.stage.subscribe();
        let is_tuned = |stage: &Stage| stage.player.is_none() || stage.tuned >= self.version;
        // A server that takes longer tells of it when it does.
        let _ = timeout(TUNE, stage.wait_for(is_tuned)).await;
    }

    /// The next notification; an error when the seat is taken away. Cancel-safe.
    pub async fn next(&mut self) -> Result<Bytes, AudienceError> {
        match self.said.recv().await {
            Some(event) => Ok(event),
            None => {
                let hall = self.audience.hall();
                let is_theirs =
                    hall.serves.as_ref().is_none_or(|serves| serves.admits(self.caller.as_ref()).is_ok());
                Err(if is_theirs { AudienceError::Slow } else { AudienceError::NotTheirs })
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut hall = self.audience.hall();
        if hall.seats.remove(&self.number).is_some() {
            self.audience.sum_up(&hall);
        }
    }
}

/// The instance that plays.
pub struct Player {
    audience: Arc<Audience>,
    number: u64,
    wanted: watch::Receiver<Arc<Wanted>>,
}

impl Player {
    /// What is wanted now.
    pub fn wanted(&mut self) -> Arc<Wanted> {
        self.wanted.borrow_and_update().clone()
    }

    /// Waits for something else to be wanted.
    pub async fn changed(&mut self) {
        // The sender lives in the audience, and that in here.
        let _ = self.wanted.changed().await;
    }

    /// The server was asked for all of this.
    pub fn tuned(&self, to: &Wanted) {
        self.audience.stage.send_if_modified(|stage| {
            let is_ours = stage.player == Some(self.number);
            if is_ours {
                stage.tuned = to.version;
            }
            is_ours
        });
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.audience.stage.send_if_modified(|stage| {
            let is_ours = stage.player == Some(self.number);
            if is_ours {
                stage.player = None;
            }
            is_ours
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(resources: &[&str], log_level: Option<&str>) -> Listen {
        Listen {
            resources: resources.iter().map(|&uri| uri.to_owned()).collect(),
            log_level: log_level.map(str::to_owned),
        }
    }

    fn session(name: &str) -> Option<Arc<str>> {
        Some(Arc::from(name))
    }

    fn said(listener: &mut Listener) -> Vec<String> {
        std::iter::from_fn(|| listener.said.try_recv().ok())
            .map(|event| String::from_utf8(event.to_vec()).expect("text"))
            .collect()
    }

    fn event(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn updates_reach_those_that_subscribed_to_the_resource_or_what_it_is_in() {
        let audience = Arc::new(Audience::default());
        let mut file = audience.join(listen(&["f:/a/b"], None), None, None).expect("a seat");
        let mut folder = audience.join(listen(&["f:/a"], None), None, None).expect("a seat");
        for uri in ["f:/a/b", "f:/a/c", "f:/ab", "f:/"] {
            audience.updated(uri, &Bytes::from(uri.to_owned()));
        }
        assert_eq!(said(&mut file), ["f:/a/b"]);
        assert_eq!(said(&mut folder), ["f:/a/b", "f:/a/c"]);
    }

    #[test]
    fn log_messages_reach_those_that_want_their_level_and_are_meant() {
        let audience = Arc::new(Audience::default());
        let mut loud = audience.join(listen(&[], Some("debug")), session("a"), None).expect("a seat");
        let mut quiet = audience.join(listen(&[], Some("error")), session("b"), None).expect("a seat");
        let mut silent = audience.join(listen(&[], None), session("b"), None).expect("a seat");
        audience.log(Level::parse("info"), None, &event("1"));
        audience.log(Level::parse("alert"), None, &event("2"));
        audience.log(Level::parse("alert"), session("b").as_ref(), &event("3"));
        assert_eq!(
            (said(&mut loud), said(&mut quiet)),
            (vec!["1".into(), "2".into()], vec!["2".into(), "3".into()])
        );
        assert!(said(&mut silent).is_empty());
        assert_eq!(audience.wanted.borrow().level, Level::parse("debug"));
        drop(loud);
        assert_eq!(audience.wanted.borrow().level, Level::parse("error"));
        let wrong = audience.join(listen(&[], Some("loud")), None, None).err().expect("refused");
        assert_eq!(wrong.code(), ErrorCode::InvalidArgs);
    }

    #[test]
    fn what_is_a_matter_of_one_session_is_told_once_and_to_no_other() {
        let audience = Arc::new(Audience::default());
        let mut first = audience.join(listen(&[], None), session("a"), None).expect("a seat");
        audience.tell_one(None, &event("alone"));
        let mut second = audience.join(listen(&[], None), session("a"), None).expect("a seat");
        audience.tell_one(None, &event("still one session"));
        let mut other = audience.join(listen(&[], None), session("b"), None).expect("a seat");
        audience.tell_one(None, &event("whose?"));
        audience.tell_one(session("a").as_ref(), &event("a's"));
        assert_eq!(said(&mut first), ["alone"]);
        assert_eq!(said(&mut second), ["still one session", "a's"]);
        assert!(said(&mut other).is_empty());
    }

    #[tokio::test]
    async fn a_listener_that_does_not_read_loses_log_messages_first_and_then_its_seat() {
        let audience = Arc::new(Audience::default());
        let mut slow = audience.join(listen(&["u"], Some("debug")), None, None).expect("a seat");
        for _ in 0..QUEUE {
            audience.log(None, None, &event("log"));
        }
        for _ in 0..LOG_ROOM {
            audience.updated("u", &event("update"));
        }
        assert_eq!(said(&mut slow).len(), QUEUE, "nothing but log messages was lost");
        for _ in 0..=QUEUE {
            audience.updated("u", &event("update"));
        }
        assert_eq!(said(&mut slow).len(), QUEUE);
        assert_eq!(slow.next().await, Err(AudienceError::Slow));
        assert!(audience.wanted.borrow().resources.is_empty(), "nobody wants it any more");
    }

    #[tokio::test]
    async fn what_runs_as_one_member_is_heard_by_no_other() {
        let key = |seed: &str| PublicKey::parse(&seed.repeat(32)).expect("a key");
        let (ann, bo) = (key("ab"), key("cd"));
        let audience = Arc::new(Audience::default());
        let mut hers = audience.join(listen(&["a"], None), None, Some(ann.clone())).expect("a seat");
        let mut his = audience.join(listen(&["b"], None), None, Some(bo.clone())).expect("a seat");
        let mut player = audience.play(Serves::Only(ann));
        assert_eq!(his.next().await, Err(AudienceError::NotTheirs));
        assert_eq!(player.wanted().resources.iter().collect::<Vec<_>>(), ["a"]);
        let refused = audience.join(listen(&[], None), None, Some(bo)).err();
        assert_eq!(refused, Some(AudienceError::NotTheirs));
        audience.updated("a", &event("update"));
        assert_eq!(said(&mut hers), ["update"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_is_told_when_the_server_was_asked_and_not_before() {
        let audience = Arc::new(Audience::default());
        let asleep = audience.join(listen(&["a"], None), None, None).expect("a seat");
        asleep.tuned().await;
        let mut player = audience.play(Serves::Everybody);
        let listener = audience.join(listen(&["a", "b"], None), None, None).expect("a seat");
        {
            let mut tuned = std::pin::pin!(listener.tuned());
            assert!(timeout(TUNE / 2, tuned.as_mut()).await.is_err());
            let wanted = player.wanted();
            player.tuned(&wanted);
            timeout(Duration::from_millis(1), tuned).await.expect("now");
        }
        // One that takes its place knows nothing of it, and the end of the one before is not its end.
        let next = audience.play(Serves::Everybody);
        drop(player);
        assert!(timeout(TUNE / 2, listener.tuned()).await.is_err());
        drop(next);
        timeout(Duration::from_millis(1), listener.tuned()).await.expect("nobody plays");
    }

    #[test]
    fn listeners_and_what_they_want_are_bounded() {
        let audience = Arc::new(Audience::default());
        let many: Vec<String> = (0..=URIS).map(|n| n.to_string()).collect();
        let too_many = audience.join(Listen { resources: many, log_level: None }, None, None).err();
        assert_eq!(too_many, Some(AudienceError::Uris));
        let seats: Vec<Listener> =
            (0..SEATS).map(|_| audience.join(listen(&["u"], None), None, None).expect("a seat")).collect();
        assert_eq!(audience.join(listen(&[], None), None, None).err(), Some(AudienceError::Full));
        drop(seats);
        assert!(audience.wanted.borrow().resources.is_empty());
        let of = |part: usize| Listen {
            resources: (0..URIS).map(|n| format!("{part}-{n}")).collect(),
            log_level: None,
        };
        let full: Vec<Listener> =
            (0..ALL_URIS / URIS).map(|part| audience.join(of(part), None, None).expect("a seat")).collect();
        assert_eq!(audience.join(listen(&["more"], None), None, None).err(), Some(AudienceError::Full));
        drop(full);
    }
}
