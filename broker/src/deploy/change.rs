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
use wire::{ErrorCode, ServiceKey};

use crate::app::Broker;
use crate::describe;
use crate::reconcile::{Goal, Verdict, Watch};

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
    goal: Goal,
    progress: mpsc::Receiver<Progress>,
    verdict: oneshot::Receiver<Verdict>,
    ends: Instant,
}

impl Change {
    /// Tells the reconciler that somebody waits.
    pub(super) async fn watch(broker: &Broker, key: ServiceKey, goal: Goal) -> Self {
        let (progress_out, progress) = mpsc::channel(LINES);
        let (verdict_out, verdict) = oneshot::channel();
        let watch = Watch { key: key.clone(), goal, progress: progress_out, verdict: verdict_out };
        broker.reconciler.watch(watch).await;
        let patience = if matches!(goal, Goal::Serve(_)) { SERVE } else { REST };
        Self { key, goal, progress, verdict, ends: Instant::now() + patience }
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
        McpDeployStatus {
            server_name: self.key.name.to_string(),
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

    fn failed(&self, reason: Reason) -> McpDeployStatus {
        McpDeployStatus { error: Some(reason.message.clone()), reason: Some(reason), ..self.blank("failed") }
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
        Verdict::Failed(reason) => {
            let serving = serving(broker, change).await.filter(|serving| Some(*serving) != generation);
            McpDeployStatus { serving, ..change.failed(reason) }
        }
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
    McpDeployStatus { generation, ..status }
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

/// The generation that goes on serving after a failed one.
async fn serving(broker: &Broker, change: &Change) -> Option<i64> {
    let view = broker.views.of(&change.key.mesh).await.ok()?;
    let service = view.service(change.key.name.as_str())?;
    let is_up = service.is_proven() && !service.is_stopped() && service.failure().is_none();
    is_up.then(|| service.target().0)
}
