//! What sessions are doing: `idle`, `working`, `dnd`, `needs_input` (peer-protocol reference §3.2.2).
//!
//! Here: the rules of writing and forgetting, and which session a hook speaks of. Not here: who signed the hook's request (`http`).
//! A status is not announced: it is read with `list_peers`. Nothing sweeps: `working` that is too old is not believed when it is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wire::peer::mesh::{HookStatus, HookStatusSet};
use wire::{MemberId, MeshId};

use crate::clock;
use crate::peer::presence::{Presence, Presences};

/// A signal of a higher rank is not taken for one of a lower rank for so long.
const FRESH: i64 = 30_000;
/// What a hook said waits so long for its session.
const EARLY: i64 = 10_000;
/// What may wait for sessions of one member, and of all.
const MAX_EARLY: usize = 16;
const MAX_EARLY_MEMBERS: usize = 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activity {
    #[default]
    Idle,
    Working,
    /// Do not disturb; only people say it.
    Dnd,
    NeedsInput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("status: one of `idle`, `working`, `dnd`, `needs_input`")]
pub struct BadActivity;

impl Activity {
    pub const ALL: [Self; 4] = [Self::Idle, Self::Working, Self::Dnd, Self::NeedsInput];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Working => "working",
            Self::Dnd => "dnd",
            Self::NeedsInput => "needs_input",
        }
    }

    /// # Errors
    /// [`BadActivity`].
    pub fn parse(text: &str) -> Result<Self, BadActivity> {
        Self::ALL.into_iter().find(|activity| activity.as_str() == text).ok_or(BadActivity)
    }
}

/// Who said it. Ordered by rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    #[default]
    Manual,
    Hook,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    activity: Activity,
    source: Source,
    at: i64,
}

impl Said {
    /// What is believed of it now.
    fn now(self, now: i64, working_for: i64) -> Activity {
        let is_old = self.activity == Activity::Working && now - self.at > working_for;
        if is_old { Activity::Idle } else { self.activity }
    }

    fn write(&mut self, activity: Activity, source: Source, at: i64) {
        if self.activity == Activity::Dnd && source == Source::Hook {
            return;
        }
        let is_fresh = at - self.at <= FRESH;
        if self.activity == activity && source < self.source && is_fresh {
            self.at = at;
        } else {
            *self = Self { activity, source, at };
        }
    }
}

/// What one presence is doing.
#[derive(Debug, Default)]
pub struct Doing(Mutex<Said>);

impl Doing {
    pub fn now(&self, now_ms: i64, working_for: Duration) -> Activity {
        self.get().now(now_ms, i64::try_from(working_for.as_millis()).unwrap_or(i64::MAX))
    }

    pub fn write(&self, activity: Activity, source: Source, now_ms: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(activity, source, now_ms);
    }

    /// Of the connection that this one replaces.
    pub fn take_over(&self, old: &Doing) {
        let said = old.get();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }

    fn get(&self) -> Said {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member says what their session is doing.
pub fn of_session(presences: &Presences, own: &Presence, activity: Activity) {
    let now = clock::now_ms();
    let all = presences.of_mesh(&own.mesh);
    let same = all.iter().filter(|p| p.member == own.member && p.session_id == own.session_id);
    same.for_each(|presence| presence.status.write(activity, Source::Manual, now));
    own.status.write(activity, Source::Manual, now);
}

/// A hook of the member says what one of their sessions is doing.
pub fn by_hook(
    presences: &Presences,
    early: &Early,
    (mesh, member): (&MeshId, &MemberId),
    (hook, activity): (HookStatus, Activity),
) -> HookStatusSet {
    let now = clock::now_ms();
    let all = presences.of_mesh(mesh);
    let own: Vec<&Arc<Presence>> = all.iter().filter(|presence| presence.member == *member).collect();
    let meant = meant(&own, &hook);
    let Some(last) = meant.last() else {
        early.keep(mesh, member, Waiting { hook, activity, at: now });
        // It may have come in while we looked.
        for presence in presences.of_mesh(mesh).iter().filter(|p| p.member == *member) {
            early.meet(presence);
        }
        return HookStatusSet { ok: true, presence_id: None, pending: true };
    };
    meant.iter().for_each(|presence| presence.status.write(activity, Source::Hook, now));
    HookStatusSet { ok: true, presence_id: Some(last.presence_id.clone()), pending: false }
}

/// By session, else by process and folder, else the newest in the folder: never by less than that.
fn meant<'a>(own: &[&'a Arc<Presence>], hook: &HookStatus) -> Vec<&'a Arc<Presence>> {
    let of = |is: &dyn Fn(&Presence) -> bool| own.iter().copied().filter(|p| is(p)).collect::<Vec<_>>();
    let session = hook.session_id.as_deref().filter(|id| !id.is_empty());
    if let Some(session) = session {
        let found = of(&|p| p.session_id == session);
        if !found.is_empty() {
            return found;
        }
    }
    if hook.cwd.is_empty() {
        return Vec::new();
    }
    if let Some(pid) = hook.pid {
        let found = of(&|p| p.pid == pid && p.labels.cwd == hook.cwd);
        if !found.is_empty() {
            return found;
        }
    }
    of(&|p| p.labels.cwd == hook.cwd).pop().into_iter().collect()
}

struct Waiting {
    hook: HookStatus,
    activity: Activity,
    at: i64,
}

/// What hooks said of sessions that are not here yet: an agent's first hook may be faster than its servers.
#[derive(Default)]
pub struct Early(Mutex<HashMap<(MeshId, MemberId), Vec<Waiting>>>);

impl Early {
    /// Tells a presence what was said of it before it came.
    pub fn meet(&self, presence: &Arc<Presence>) {
        let of = (presence.mesh.clone(), presence.member.clone());
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = waiting.get_mut(&of) else { return };
        let now = clock::now_ms();
        kept.retain(|waiting| now - waiting.at <= EARLY);
        kept.retain(|waiting| {
            let is_meant = !meant(&[presence], &waiting.hook).is_empty();
            if is_meant {
                presence.status.write(waiting.activity, Source::Hook, waiting.at);
            }
            !is_meant
        });
        if kept.is_empty() {
            waiting.remove(&of);
        }
    }

    fn keep(&self, mesh: &MeshId, member: &MemberId, new: Waiting) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_EARLY_MEMBERS {
            waiting.retain(|_, kept| kept.iter().any(|old| new.at - old.at <= EARLY));
        }
        if waiting.len() >= MAX_EARLY_MEMBERS {
            return;
        }
        let kept = waiting.entry((mesh.clone(), member.clone())).or_default();
        kept.retain(|old| new.at - old.at <= EARLY && old.hook.session_id != new.hook.session_id);
        if kept.len() < MAX_EARLY {
            kept.push(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(activity: Activity, source: Source, at: i64) -> Said {
        Said { activity, source, at }
    }

    fn after(before: Said, activity: Activity, source: Source, at: i64) -> Said {
        let mut said = before;
        said.write(activity, source, at);
        said
    }

    #[test]
    fn the_rules_of_writing_are_those_of_the_reference() {
        use Activity::*;
        use Source::*;
        let working = said(Working, Hook, 1000);
        // Another status is always taken, whoever says it.
        assert_eq!(after(working, Idle, Manual, 2000), said(Idle, Manual, 2000));
        assert_eq!(after(working, NeedsInput, Hook, 2000), said(NeedsInput, Hook, 2000));
        // The same: a lower rank changes only the time, unless what was said is stale.
        assert_eq!(after(working, Working, Manual, 2000), said(Working, Hook, 2000));
        assert_eq!(after(working, Working, Manual, 1001 + FRESH), said(Working, Manual, 1001 + FRESH));
        assert_eq!(after(said(Working, Manual, 0), Working, Hook, 1), said(Working, Hook, 1));
        // Do not disturb ends by hand only.
        let dnd = said(Dnd, Manual, 1000);
        assert_eq!(after(dnd, Working, Hook, 2000), dnd);
        assert_eq!(after(dnd, Idle, Manual, 2000), said(Idle, Manual, 2000));
    }

    #[test]
    fn only_working_is_not_believed_for_ever() {
        for activity in Activity::ALL {
            let later = said(activity, Source::Hook, 0).now(1001, 1000);
            let wanted = if activity == Activity::Working { Activity::Idle } else { activity };
            assert_eq!(later, wanted);
            assert_eq!(said(activity, Source::Hook, 0).now(1000, 1000), activity);
            assert_eq!(Activity::parse(activity.as_str()), Ok(activity));
        }
        assert!(Activity::parse("busy").is_err());
    }
}
