//! What a client hears outside of requests: changed lists, updated resources, log messages.
//!
//! Here: who wants what, in either era, and the wording. Not here: where it comes from.
//! Invariant: a modern client hears only what one of its `subscriptions/listen` asked for.

use std::collections::BTreeSet;

use serde::Deserialize;
use wire::RawJson;

use super::eras::{KEY_SUBSCRIPTION, LEVELS, declares};
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
        self.resource_subscriptions.iter().flatten().any(|wanted| {
            uri.strip_prefix(wanted.as_str()).is_some_and(|rest| {
                rest.is_empty() || wanted.ends_with('/') || rest.starts_with(['/', '#', '?'])
            })
        })
    }
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
    /// Index in [`LEVELS`].
    level: Option<usize>,
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
        self.level = Some(level);
    }

    /// Each modern request has a level of its own; the server is told the least.
    pub(super) fn lower_level(&mut self, level: usize) {
        self.level = Some(self.level.map_or(level, |old| old.min(level)));
    }

    /// Index in [`LEVELS`].
    pub(super) fn level(&self) -> Option<usize> {
        self.level
    }

    /// Opens a stream and acknowledges it.
    pub(super) fn listen(
        &mut self,
        peer: &Peer,
        id: &RawJson,
        asked: Filter,
        about: &About,
        told: Changes,
    ) -> Result<(), TooMuch> {
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
        peer.notify("notifications/subscriptions/acknowledged", Some(params.end().get()));
        self.streams.push(Stream { id: id.clone(), filter, told });
        Ok(())
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
        let level = self.level.map(|level| LEVELS[level].to_owned());
        (uris.into_iter().take(MAX_URIS).cloned().collect(), level)
    }

    pub(super) fn tell_changes(&mut self, peer: &Peer, now: Changes) {
        for list in List::ALL {
            if self.is_ready && list.count(self.told) != list.count(now) {
                peer.notify(list.method(), None);
            }
            for stream in &self.streams {
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
        for stream in &mut self.streams {
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
        if self.is_ready {
            peer.notify(&method, params.as_ref().map(|params| params.get()));
        }
        let Some(params) = params.as_ref().and_then(|params| Members::read(params.get())) else { return };
        if method != "notifications/resources/updated" {
            return;
        }
        let Some(uri) = params.text("uri") else { return };
        for stream in self.streams.iter().filter(|stream| stream.filter.wants_update(&uri)) {
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
