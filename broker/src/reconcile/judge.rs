//! What a report means for what is wanted: proven, failed, crashed, changed.
//!
//! Here: the writes that follow from observation (`proven`, `failed`, lists, the last report). Not here: what is done
//! next (`super::plan` sees it from the written state).

use catalog::names;
use wire::report::{GenerationReport, Lists, Phase, Reason, ServiceReport};
use wire::{ErrorCode, Generation, ServiceKey};

use super::desired::Desired;
use super::plan::Told;
use super::{Reconciler, announce};
use crate::commit::commit_observed;
use crate::deploy::Mark;
use crate::store::{FailedGeneration, StoreError};
use crate::{approvals, audit, callers, clock, describe};

/// What has to be written about one service.
enum Judgement {
    Failed(Generation, Reason),
    /// The target is ready for the first time.
    Proven(Box<GenerationReport>),
    /// A proven target listed something.
    Relisted,
}

impl Reconciler {
    /// Takes a report in, unless a newer one is known already: an answer to an apply may come after an event.
    pub(super) async fn report(&mut self, mut report: ServiceReport) {
        let key = report.service.clone();
        let is_old = |known: &ServiceReport| self.is_synced && known.revision > report.revision;
        if self.broker.observed.get(&key).is_some_and(|known| is_old(&known)) {
            return;
        }
        for decision in &mut report.egress {
            decision.host = audit::printable(&decision.host);
        }
        let now = report.clone();
        let before = self.broker.observed.record(report);
        if !now.egress.is_empty() && before.as_ref().is_none_or(|before| before.egress != now.egress) {
            // Each instance counts for itself; the sums are of the service.
            let life = key.name.caller().map_or(self.boot.clone(), |of| format!("{}.{of}", self.boot));
            self.unwritten.insert((callers::service_of(&key), life), now.egress.clone());
        }
        if self.is_synced && before.as_deref().and_then(phase) != phase(&now) {
            if key.name.is_plain() {
                self.unsaved.insert(key.clone());
            }
            let has_secrets = self.wishes.get(&key).is_some_and(|desired| desired.material.is_some());
            if has_secrets && phase(&now).is_some_and(|(_, phase)| phase == Phase::Ready) {
                self.rounds.hurry();
            }
            if let Some(serving) = &now.serving
                && matches!(serving.phase, Phase::Backoff | Phase::CrashLoop)
            {
                announce::crashed(&self.broker, &key, serving).await;
            }
        }
    }

    pub(super) async fn judge_all(&mut self) {
        let judged: Vec<_> = self
            .wishes
            .iter()
            // While an action is on its way the report may still be of before it.
            .filter(|(key, _)| !self.busy.contains(*key))
            .filter_map(|(key, desired)| Some((key.clone(), self.judge(key, desired)?)))
            .collect();
        for (key, judgement) in judged {
            match judgement {
                Judgement::Failed(generation, reason) => self.fail(&key, generation, reason).await,
                Judgement::Proven(report) => self.prove(&key, *report).await,
                Judgement::Relisted => self.relist(&key).await,
            }
        }
    }

    fn judge(&self, key: &ServiceKey, desired: &Desired) -> Option<Judgement> {
        // The instance of a caller lists nothing of its own and proves nothing.
        if !key.name.is_plain() || !matches!(desired.wish(), super::plan::Wish::Run { .. }) {
            return None;
        }
        let target = desired.row.target;
        let report = self.broker.observed.get(key)?;
        let of_target = |g: &&GenerationReport| g.generation == target;
        let failed = report.candidate.iter().chain(&report.serving).filter(of_target);
        // What waits for its secrets is not at fault: it starts once it may open them.
        if let Some(failed) = failed.clone().find(|g| g.phase == Phase::Failed && !waits(g)) {
            let reason = failed.reason.clone().unwrap_or_else(|| Reason {
                code: ErrorCode::ServiceFailed,
                message: "it did not become ready".into(),
                stderr: Vec::new(),
            });
            return Some(Judgement::Failed(target, reason));
        }
        let serving = report.serving.as_ref().filter(of_target)?;
        let listed = self.lists.get(key).is_some_and(|lists| lists.generation == target);
        match serving.phase {
            Phase::Ready | Phase::Idle if listed && !desired.proven => {
                Some(Judgement::Proven(Box::new(serving.clone())))
            }
            _ if listed && desired.proven => Some(Judgement::Relisted),
            _ => None,
        }
    }

    /// The generation will not become ready: remember why, and go back to what worked.
    pub(super) async fn fail(&mut self, key: &ServiceKey, generation: Generation, reason: Reason) {
        let Some(desired) = self.wishes.get(key) else { return };
        tracing::info!(
            mesh.id = %key.mesh, service.name = %key.name, generation = generation.0,
            "generation {generation} of {key} failed: {}", reason.code
        );
        let failed = FailedGeneration { generation, reason };
        // A proven target only fails by a name collision of new lists; it has no need to be replaced by itself.
        let fallback = desired.fallback.map(|turn| turn.generation);
        let written = async {
            let mut tx = self.broker.store.begin().await?;
            tx.services().record_failure(key, &failed, fallback, clock::now_ms()).await?;
            commit_observed(&self.broker, &key.mesh, tx).await
        };
        let written = written.await;
        self.lists.remove(key);
        self.written(written).await;
    }

    async fn prove(&mut self, key: &ServiceKey, serving: GenerationReport) {
        let Some(lists) = self.lists.remove(key) else { return };
        if let Some(reason) = collision(key, &lists) {
            return self.fail(key, serving.generation, reason).await;
        }
        let view = self.broker.views.of(&key.mesh).await.ok();
        let written = async {
            let mut tx = self.broker.store.begin().await?;
            tx.meshes().take_turns(&key.mesh).await?;
            let is_listed = tx.lists().put(key, &lists, clock::now_ms()).await?;
            tx.services().mark_proven(key, serving.generation, serving.pin.as_ref()).await?;
            if is_listed {
                approvals::listed(&mut tx, key, &lists).await?;
            }
            commit_observed(&self.broker, &key.mesh, tx).await
        };
        let written: Result<(), StoreError> = written.await;
        let is_written = written.is_ok();
        if !is_written {
            self.lists.insert(key.clone(), lists);
        }
        self.written(written).await;
        if is_written {
            announce::proven(&self.broker, key, view.as_deref()).await;
        }
    }

    /// The tools, prompts or resources of a proven service may have changed while it runs.
    async fn relist(&mut self, key: &ServiceKey) {
        let Some(lists) = self.lists.remove(key) else { return };
        let view = match self.broker.views.find(&key.mesh).await {
            Ok(Some(view)) => view,
            Ok(None) => return,
            Err(error) => {
                self.lists.insert(key.clone(), lists);
                return self.store_failed(&error);
            }
        };
        let service = view.service(key.name.as_str()).filter(|service| service.is_approved());
        let known = service.and_then(|service| service.lists().cloned());
        if known.as_deref().is_some_and(|known| is_same(known, &lists)) {
            return;
        }
        if let Some(reason) = collision(key, &lists) {
            // The running version stays; only the list that can not be offered is left out.
            tracing::warn!(mesh.id = %key.mesh, service.name = %key.name, "new lists of {key} refused: {}", reason.message);
            return;
        }
        let written = async {
            let mut tx = self.broker.store.begin().await?;
            tx.meshes().take_turns(&key.mesh).await?;
            if tx.lists().put(key, &lists, clock::now_ms()).await? {
                approvals::listed(&mut tx, key, &lists).await?;
            }
            commit_observed(&self.broker, &key.mesh, tx).await
        };
        let written: Result<(), StoreError> = written.await;
        let is_written = written.is_ok();
        if !is_written {
            // Until it is written, others go on being offered what was there before.
            self.lists.insert(key.clone(), lists);
        }
        self.written(written).await;
        if is_written {
            announce::proven(&self.broker, key, Some(&view)).await;
        }
    }

    async fn written(&mut self, written: Result<(), StoreError>) {
        match written {
            Ok(()) => self.refresh().await,
            Err(error) => self.store_failed(&error),
        }
    }

    /// Fills the table of reports with what was known before this broker started.
    pub(super) async fn recall(&mut self) {
        let read = async {
            let mut tx = self.broker.store.read().await?;
            let materials = tx.policies().materials().await?;
            let told = |(key, policy)| {
                let material = materials.get(&key).and_then(|text| Mark::parse(text));
                (key, Told { policy, material })
            };
            let applied = tx.policies().applied().await?.into_iter().map(told).collect();
            Ok::<_, StoreError>((tx.observed().list_all().await?, applied))
        };
        match read.await {
            Ok((reports, applied)) => {
                self.applied = applied;
                for last in reports {
                    self.broker.observed.record(last.report);
                }
            }
            Err(error) => self.store_failed(&error),
        }
    }

    /// Writes the reports that changed, together, and what became of connections.
    pub(super) async fn save(&mut self) {
        if !self.unwritten.is_empty() {
            match audit::keep(&self.broker.store, &self.unwritten).await {
                Ok(()) => self.unwritten.clear(),
                Err(error) => self.store_failed(&error),
            }
        }
        if self.unsaved.is_empty() {
            return;
        }
        let written = async {
            let mut tx = self.broker.store.begin().await?;
            for key in &self.unsaved {
                if let Some(report) = self.broker.observed.get(key) {
                    tx.observed().put(&describe::kept_report(&report), clock::now_ms()).await?;
                }
            }
            tx.commit().await
        };
        match written.await {
            Ok(()) => self.unsaved.clear(),
            Err(error) => self.store_failed(&error),
        }
    }
}

fn waits(seen: &GenerationReport) -> bool {
    seen.reason.as_ref().is_some_and(|reason| reason.code.is_vault_wait())
}

fn phase(report: &ServiceReport) -> Option<(Generation, Phase)> {
    describe::current(report).map(|generation| (generation.generation, generation.phase))
}

/// Two tools that clients could not tell apart.
fn collision(key: &ServiceKey, lists: &Lists) -> Option<Reason> {
    let tools = describe::tool_names(lists);
    let found = names::collision(&key.name, tools.iter().map(String::as_str))?;
    let message = format!(
        "the tools `{}` and `{}` would both be `{}` at clients",
        found.first, found.second, found.name
    );
    Some(Reason { code: ErrorCode::NameCollision, message, stderr: Vec::new() })
}

fn is_same(a: &Lists, b: &Lists) -> bool {
    let raw = |lists: &[wire::RawJson], others: &[wire::RawJson]| {
        lists.len() == others.len() && lists.iter().zip(others).all(|(a, b)| a.get() == b.get())
    };
    raw(&a.tools, &b.tools)
        && raw(&a.prompts, &b.prompts)
        && raw(&a.resources, &b.resources)
        && raw(&a.resource_templates, &b.resource_templates)
        && a.instructions == b.instructions
        && a.server_info.get() == b.server_info.get()
}
