//! What a client hears outside of requests: changed lists, updated resources, log messages.
//!
//! Here: who wants what, in either era, and the wording. Not here: where it comes from.
//! Invariant: a modern client hears only what one of its `subscriptions/listen` asked for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use wire::RawJson;

use super::eras::{self, KEY_SUBSCRIPTION, LEVELS, declares, level_index};
use super::exchange::Bare;
use super::{About, Changes};
use crate::raw::{Members, Object, raw};
use crate::stdio::Peer;

/// Subscriptions of one client at once, in either era.
const MAX_URIS: usize = 1000;
const MAX_STREAMS: usize = 64;

/// What a `subscriptions/listen` asks for, and what it is granted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Filter {
    tools_list_changed: Option<bool>,
    prompts_list_changed: Option<bool>,
    resources_list_changed: Option<bool>,
    resource_subscriptions: Option<Vec<String>>,
}

impl Filter {
    fn granted(self, about: &About) -> Self {
        let list = |asked: Option<bool>, name| {
            (asked == Some(true)).then(|| declares(&about.capabilities, name, None))
        };
        let has_updates = declares(&about.capabilities, "resources", Some("subscribe"));
        Self {
            tools_list_changed: list(self.tools_list_changed, "tools").filter(|on| *on),
            prompts_list_changed: list(self.prompts_list_changed, "prompts").filter(|on| *on),
            resources_list_changed: list(self.resources_list_changed, "resources").filter(|on| *on),
            resource_subscriptions: self
                .resource_subscriptions
                .filter(|uris| has_updates && !uris.is_empty()),
        }
    }

    fn written(&self) -> RawJson {
        let mut object = Object::default();
        let flags = [
            ("toolsListChanged", self.tools_list_changed),
            ("promptsListChanged", self.prompts_list_changed),
            ("resourcesListChanged", self.resources_list_changed),
        ];
        for (name, _) in flags.iter().filter(|(_, flag)| *flag == Some(true)) {
            object.put(name, "true");
        }
        if let Some(uris) = &self.resource_subscriptions {
            object.put("resourceSubscriptions", &serde_json::json!(uris).to_string());
        }
        object.end()
    }

    fn wants_list(&self, list: List) -> bool {
        let flag = match list {
            List::Tools => self.tools_list_changed,
            List::Prompts => self.prompts_list_changed,
            List::Resources => self.resources_list_changed,
        };
        flag == Some(true)
    }

    /// An update may name a part of what was subscribed.
    fn wants_update(&self, uri: &str) -> bool {
        self.resource_subscriptions.iter().flatten().any(|wanted| is_part(uri, wanted))
    }
}

fn is_part(uri: &str, of: &str) -> bool {
    uri.strip_prefix(of)
        .is_some_and(|rest| rest.is_empty() || of.ends_with('/') || rest.starts_with(['/', '#', '?']))
}

/// What a client of the legacy era said by `logging/setLevel`, also for requests that were in work by then.
#[derive(Clone, Default)]
pub(super) struct LegacyLevel(Arc<AtomicUsize>);

impl LegacyLevel {
    /// Index in [`LEVELS`]. `None`: the server's own idea of it counts.
    pub(super) fn get(&self) -> Option<usize> {
        self.0.load(Ordering::Acquire).checked_sub(1)
    }

    fn set(&self, level: usize) {
        self.0.store(level + 1, Ordering::Release);
    }

    /// `params`: of `notifications/message`. A server may be slow to do as it was told, and others may want more of it.
    pub(super) fn admits(&self, params: Option<&RawJson>) -> bool {
        self.get().is_none_or(|least| message_level(params).is_none_or(|level| level >= least))
    }
}

/// Index in [`LEVELS`]. `params`: of `notifications/message`.
pub(super) fn message_level(params: Option<&RawJson>) -> Option<usize> {
    level_index(&Members::read(params?.get())?.text("level")?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Tools,
    Prompts,
    Resources,
}

impl List {
    const ALL: [Self; 3] = [Self::Tools, Self::Prompts, Self::Resources];

    fn count(self, changes: Changes) -> u64 {
        match self {
            Self::Tools => changes.tools,
            Self::Prompts => changes.prompts,
            Self::Resources => changes.resources,
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Tools => "notifications/tools/list_changed",
            Self::Prompts => "notifications/prompts/list_changed",
            Self::Resources => "notifications/resources/list_changed",
        }
    }
}

struct Stream {
    id: RawJson,
    filter: Filter,
    told: Changes,
    /// It is acknowledged.
    is_open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooMuch {
    Uris,
    Streams,
}

/// One client's ears.
#[derive(Default)]
pub(super) struct Hearing {
    /// The client of the legacy era has said that it is ready.
    is_ready: bool,
    told: Changes,
    uris: BTreeSet<String>,
    level: LegacyLevel,
    /// Of the modern era, where each request has its own: how many are in work, by level,
    in_work: [usize; LEVELS.len()],
    /// and the least of this minute and of the one before, so that the server is not told anew for each request.
    recent: [Option<usize>; 2],
    streams: Vec<Stream>,
}

impl Hearing {
    /// The handshake is answered. What changes from now on, the client learns once it says that it is ready.
    pub(super) fn begin_legacy(&mut self, told: Changes) {
        self.told = told;
    }

    pub(super) fn be_ready(&mut self) {
        self.is_ready = true;
    }

    pub(super) fn subscribe(&mut self, uri: &str) -> Result<(), TooMuch> {
        if self.uris.len() >= MAX_URIS && !self.uris.contains(uri) {
            return Err(TooMuch::Uris);
        }
        self.uris.insert(uri.to_owned());
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, uri: &str) {
        self.uris.remove(uri);
    }

    pub(super) fn set_level(&mut self, level: usize) {
        self.level.set(level);
    }

    /// A modern request with this level begins.
    pub(super) fn begin_request(&mut self, level: usize) {
        self.in_work[level] += 1;
        self.recent[0] = Some(self.recent[0].map_or(level, |old| old.min(level)));
    }

    pub(super) fn end_request(&mut self, level: usize) {
        self.in_work[level] = self.in_work[level].saturating_sub(1);
    }

    /// A minute is over.
    pub(super) fn grow_older(&mut self) {
        self.recent = [None, self.recent[0]];
    }

    /// What the server is to say at least, to whomever it concerns here.
    fn least_level(&self) -> Option<usize> {
        let in_work = self.in_work.iter().position(|requests| *requests > 0);
        [self.level.get(), in_work, self.recent[0], self.recent[1]].into_iter().flatten().min()
    }

    pub(super) fn legacy_level(&self) -> LegacyLevel {
        self.level.clone()
    }

    /// Opens a stream. What comes back is its acknowledgement, to be sent before anything else of it.
    pub(super) fn listen(
        &mut self,
        id: &RawJson,
        asked: Filter,
        about: &About,
        told: Changes,
    ) -> Result<RawJson, TooMuch> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(TooMuch::Streams);
        }
        let wanted = self.streams.iter().map(|stream| &stream.filter).chain([&asked]);
        let uris: usize =
            wanted.map(|filter| filter.resource_subscriptions.as_ref().map_or(0, Vec::len)).sum();
        if uris > MAX_URIS {
            return Err(TooMuch::Uris);
        }
        let filter = asked.granted(about);
        let mut params = Object::default();
        params.put("_meta", tag(id).get()).put("notifications", filter.written().get());
        self.streams.push(Stream { id: id.clone(), filter, told, is_open: false });
        Ok(params.end())
    }

    /// Acknowledges a stream, if it was not closed meanwhile, and tells what changed since it was asked for.
    pub(super) fn acknowledge(&mut self, peer: &Peer, id: &RawJson, acknowledgement: &RawJson, now: Changes) {
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id.get() == id.get()) else { return };
        stream.is_open = true;
        peer.notify("notifications/subscriptions/acknowledged", Some(acknowledgement.get()));
        self.tell_changes(peer, now);
    }

    /// `false`: there is no such stream.
    pub(super) fn close(&mut self, id: &str) -> bool {
        let before = self.streams.len();
        self.streams.retain(|stream| stream.id.get() != id);
        self.streams.len() < before
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.streams.iter().any(|stream| stream.id.get() == id)
    }

    /// What the offer is to listen for.
    pub(super) fn wishes(&self) -> (Vec<String>, Option<String>) {
        let streams = self.streams.iter().filter_map(|stream| stream.filter.resource_subscriptions.as_ref());
        let uris: BTreeSet<&String> = self.uris.iter().chain(streams.flatten()).collect();
        let level = self.least_level().map(|level| LEVELS[level].to_owned());
        (uris.into_iter().take(MAX_URIS).cloned().collect(), level)
    }

    pub(super) fn tell_changes(&mut self, peer: &Peer, now: Changes) {
        for list in List::ALL {
            if self.is_ready && list.count(self.told) != list.count(now) {
                peer.notify(list.method(), None);
            }
            for stream in self.streams.iter().filter(|stream| stream.is_open) {
                if stream.filter.wants_list(list) && list.count(stream.told) != list.count(now) {
                    let mut params = Object::default();
                    params.put("_meta", tag(&stream.id).get());
                    peer.notify(list.method(), Some(params.end().get()));
                }
            }
        }
        if self.is_ready {
            self.told = now;
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.is_open) {
            stream.told = now;
        }
    }

    /// A notification of the server that belongs to no request.
    pub(super) fn tell(&self, peer: &Peer, notice: &RawJson) {
        let Ok(Bare { method, params }) = serde_json::from_str::<Bare>(notice.get()) else { return };
        // Lists are compared before the client is told that they changed.
        if method.ends_with("/list_changed") {
            return;
        }
        let is_for_legacy = method != "notifications/message" || self.level.admits(params.as_ref());
        if self.is_ready && is_for_legacy {
            let own = params.clone().map(eras::without_subscription);
            peer.notify(&method, own.as_ref().map(|params| params.get()));
        }
        let Some(params) = params.as_ref().and_then(|params| Members::read(params.get())) else { return };
        if method != "notifications/resources/updated" {
            return;
        }
        let Some(uri) = params.text("uri") else { return };
        for stream in self.streams.iter().filter(|stream| stream.is_open && stream.filter.wants_update(&uri))
        {
            let meta = params.get("_meta").and_then(|meta| Members::read(meta.get())).unwrap_or_default();
            let meta = meta.write(|_| true, &[(KEY_SUBSCRIPTION, stream.id.get())]);
            let params = params.write(|_| true, &[("_meta", meta.get())]);
            peer.notify(&method, Some(params.get()));
        }
    }
}

/// `_meta` of what belongs to a stream.
fn tag(id: &RawJson) -> RawJson {
    raw(format!("{{\"{KEY_SUBSCRIPTION}\":{}}}", id.get()))
}
