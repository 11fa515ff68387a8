//! Waiting for what was asked to come true.
//!
//! Here: [`Change`], which the asking connection holds, and the statuses it is answered with. Dropping it changes nothing:
//! the reconciler goes on.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use wire::peer::hosting::McpDeployStatus;
use wire::report::Reason;
use wire::runner::Progress;
use wire::spec::Pin;
use wire::{ErrorCode, MemberId, ServiceKey};

use super::consent;
use crate::app::Broker;
use crate::describe;
use crate::reconcile::{Goal, Verdict, Watch};

/// A stop takes at most 5 s of grace per process; the rest is slack.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the runner may fetch, install, build and start.
const SERVE: Duration = Duration::from_secs(30 * 60);
const REST: Duration = Duration::from_secs(40);
/// Progress lines that may wait for a slow client; what is more is left out.
const LINES: usize = 64;

pub enum News {
    Progress(Progress),
    Verdict(Verdict),
}

/// Something was asked of a service.
pub struct Change {
    key: ServiceKey,
    /// Who asked.
    by: MemberId,
    goal: Goal,
    progress: mpsc::Receiver<Progress>,
    verdict: oneshot::Receiver<Verdict>,
    ends: Instant,
}

impl Change {
    /// Tells the reconciler that somebody waits.
    pub(super) async fn watch(broker: &Broker, (key, by): (ServiceKey, MemberId), goal: Goal) -> Self {
        let (progress_out, progress) = mpsc::channel(LINES);
        let (verdict_out, verdict) = oneshot::channel();
        let watch = Watch { key: key.clone(), goal, progress: progress_out, verdict: verdict_out };
        broker.reconciler.watch(watch).await;
        let patience = if matches!(goal, Goal::Serve(_)) { SERVE } else { REST };
        Self { key, by, goal, progress, verdict, ends: Instant::now() + patience }
    }

    /// `building`, for what takes long. A stop and a removal are answered once, at their end.
    pub fn first_status(&self) -> Option<McpDeployStatus> {
        match self.goal {
            Goal::Serve(generation) => {
                Some(McpDeployStatus { generation: Some(generation.0), ..self.blank("building") })
            }
            Goal::Rest | Goal::Gone => None,
        }
    }

    /// The next line of progress, or the verdict, after which there is nothing more.
    pub async fn news(&mut self) -> Option<News> {
        tokio::select! {
            biased;
            Some(progress) = self.progress.recv() => Some(News::Progress(progress)),
            verdict = &mut self.verdict => verdict.ok().map(News::Verdict),
            () = sleep_until(self.ends) => Some(News::Verdict(Verdict::Late)),
        }
    }

    fn blank(&self, status: &str) -> McpDeployStatus {
        plain_status(&self.key, status)
    }

    fn failed(&self, reason: Reason) -> McpDeployStatus {
        McpDeployStatus { error: Some(reason.message.clone()), reason: Some(reason), ..self.blank("failed") }
    }
}

/// A status word, and nothing else.
pub fn plain_status(key: &ServiceKey, status: &str) -> McpDeployStatus {
    McpDeployStatus {
        server_name: key.name.to_string(),
        status: status.into(),
        tools: None,
        error: None,
        reason: None,
        generation: None,
        pin: None,
        serving: None,
        consent: None,
    }
}

/// The terminal status of a change.
pub async fn final_status(broker: &Broker, change: &Change, verdict: Verdict) -> McpDeployStatus {
    let generation = match change.goal {
        Goal::Serve(generation) => Some(generation.0),
        Goal::Rest | Goal::Gone => None,
    };
    let plain = |code: ErrorCode, message: &str| Reason { code, message: message.into(), stderr: Vec::new() };
    let status = match verdict {
        Verdict::Running => running(broker, change).await,
        Verdict::Failed(reason) => change.failed(reason),
        Verdict::Held { reason, pin } => held(broker, change, reason, pin.map(|pin| *pin)).await,
        Verdict::Superseded => {
            change.failed(plain(ErrorCode::Superseded, "a newer request replaced this one"))
        }
        Verdict::Stopped { runner_away: false } => change.blank("stopped"),
        Verdict::Stopped { runner_away: true } => {
            let message = "recorded; the runner is away and carries it out when it returns";
            let reason = plain(ErrorCode::RunnerUnavailable, message);
            McpDeployStatus { reason: Some(reason), ..change.blank("stopped") }
        }
        Verdict::Late => {
            let message = "still under way; `claudemesh status` tells more";
            change.failed(plain(ErrorCode::InstallTimeout, message))
        }
    };
    let has_failed = matches!(status.status.as_str(), "failed" | "awaiting_consent");
    let serving = if has_failed { serving(broker, change).await } else { None };
    let serving = serving.filter(|serving| Some(*serving) != generation);
    McpDeployStatus { generation, serving, ..status }
}

/// It goes on by itself; who can do something about it is told what.
async fn held(broker: &Broker, change: &Change, reason: Reason, pin: Option<Pin>) -> McpDeployStatus {
    let (true, Goal::Serve(generation)) = (reason.code == ErrorCode::AwaitingConsent, change.goal) else {
        return change.failed(reason);
    };
    let Ok(view) = broker.views.of(&change.key.mesh).await else { return change.failed(reason) };
    let Some(signer) = view.key_of(&change.by) else { return change.failed(reason) };
    let shown = pin.as_ref().map(describe::shown_pin);
    match consent::asked_for(broker, &view, (&change.key, generation), signer, pin).await {
        Ok(Some(ask)) => McpDeployStatus {
            status: "awaiting_consent".into(),
            consent: Some(Box::new(ask)),
            pin: shown,
            ..change.failed(reason)
        },
        Ok(None) => change.failed(reason),
        Err(error) => {
            tracing::warn!("what there is to sign for {} can not be read: {error}", change.key);
            change.failed(reason)
        }
    }
}

async fn running(broker: &Broker, change: &Change) -> McpDeployStatus {
    let Ok(view) = broker.views.of(&change.key.mesh).await else { return change.blank("running") };
    let Some(service) = view.service(change.key.name.as_str()) else { return change.blank("running") };
    McpDeployStatus {
        tools: Some(describe::tools(service.lists())),
        pin: service.pin().map(describe::shown_pin),
        ..change.blank("running")
    }
}

/// The generation that goes on serving after a failed one, or while one is held back.
async fn serving(broker: &Broker, change: &Change) -> Option<i64> {
    let view = broker.views.of(&change.key.mesh).await.ok()?;
    let service = view.service(change.key.name.as_str())?;
    if service.is_stopped() || service.failure().is_some() {
        return None;
    }
    if service.is_proven() {
        return Some(service.target().0);
    }
    let report = broker.observed.get(&change.key)?;
    report.serving.as_ref().map(|serving| serving.generation.0)
}

/// Waits for a stop that is under way: its service's last report would pass for that of the new start.
pub(super) async fn ended(broker: &Broker, key: &ServiceKey) {
    let gone = async {
        loop {
            let revision = broker.observed.revision();
            if broker.observed.get(key).is_none() {
                return;
            }
            broker.observed.changed_since(revision).await;
        }
    };
    tokio::select! {
        // A stop that takes longer has failed, and whoever starts it now hears how it stands.
        _ = tokio::time::timeout(STOP_PATIENCE, gone) => {}
        // What it holds is looked at anew when it is back.
        () = broker.observed.runner_leaves() => {}
    }
}
