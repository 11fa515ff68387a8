//! Whether what somebody waits for has come true: a pure function of what is wanted and what was observed.
//!
//! A level, not an event: it does not matter when the question was asked, or what happened in between.

use wire::report::{GenerationReport, Phase, Reason, ServiceReport};
use wire::spec::Pin;
use wire::{ErrorCode, Generation};

use super::desired::Desired;
use crate::store::Wanted;

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// This generation serves.
    Serve(Generation),
    /// No process is left.
    Rest,
    /// Nothing is left.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Running,
    Failed(Reason),
    /// It is prepared, and held back until it may open its secrets. It goes on by itself then.
    Held {
        reason: Reason,
        pin: Option<Box<Pin>>,
    },
    /// Somebody asked for something else since.
    Superseded,
    Stopped {
        /// It is recorded, and will be carried out when the runner returns.
        runner_away: bool,
    },
    /// Nobody knows yet, and the patience is used up.
    Late,
}

/// How sure the report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// It is what the runner said last, and there is nothing to tell the runner.
    Settled,
    /// The runner is about to be told something, or has been and may not have done it.
    Busy,
    /// The runner can not be asked.
    Away,
}

pub(super) fn verdict(
    goal: Goal,
    desired: Option<&Desired>,
    report: Option<&ServiceReport>,
    sight: Sight,
) -> Option<Verdict> {
    let runner_away = sight == Sight::Away;
    match goal {
        Goal::Serve(generation) => serve(generation, desired, report, sight),
        Goal::Rest => match desired {
            Some(desired) if desired.row.wanted == Wanted::Running => Some(Verdict::Superseded),
            _ => (runner_away || report.is_none()).then_some(Verdict::Stopped { runner_away }),
        },
        Goal::Gone => match desired {
            None => Some(Verdict::Stopped { runner_away: false }),
            Some(desired) if desired.row.wanted != Wanted::Gone => Some(Verdict::Superseded),
            Some(_) => runner_away.then_some(Verdict::Stopped { runner_away }),
        },
    }
}

fn serve(
    generation: Generation,
    desired: Option<&Desired>,
    report: Option<&ServiceReport>,
    sight: Sight,
) -> Option<Verdict> {
    let Some(desired) = desired.filter(|desired| desired.row.wanted != Wanted::Gone) else {
        return Some(Verdict::Superseded);
    };
    let failed = desired.row.failed.as_ref().filter(|failed| failed.generation == generation);
    if let Some(failed) = failed {
        return Some(Verdict::Failed(failed.reason.clone()));
    }
    if desired.row.target != generation {
        return Some(Verdict::Superseded);
    }
    if desired.row.wanted == Wanted::Stopped {
        return Some(Verdict::Stopped { runner_away: false });
    }
    let report = report?;
    if let Some(held) = report.candidate.iter().chain(&report.serving).find(|seen| is_held(seen, generation))
    {
        // What it waits for may be on its way to the runner.
        return (sight == Sight::Settled).then(|| Verdict::Held {
            reason: reason(held, ErrorCode::VaultError, "it may not open its secrets"),
            pin: held.pin.clone().map(Box::new),
        });
    }
    let seen = report.serving.as_ref().or(report.candidate.as_ref());
    let seen = seen.filter(|seen| seen.generation == generation)?;
    match seen.phase {
        Phase::Ready | Phase::Idle if desired.proven => Some(Verdict::Running),
        Phase::CrashLoop => {
            Some(Verdict::Failed(reason(seen, ErrorCode::ServiceFailed, "it keeps crashing")))
        }
        _ => None,
    }
}

fn is_held(seen: &GenerationReport, generation: Generation) -> bool {
    seen.generation == generation && seen.phase == Phase::Waiting
}

fn reason(seen: &GenerationReport, code: ErrorCode, message: &str) -> Reason {
    let unknown = || Reason { code, message: message.into(), stderr: Vec::new() };
    seen.reason.clone().unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use wire::{MemberId, MeshId, Scope, ServiceKey, ServiceName};

    use super::*;
    use crate::store::{FailedGeneration, Service};

    fn desired(target: i64, latest: i64, wanted: Wanted, proven: bool) -> Desired {
        let key = ServiceKey {
            mesh: MeshId::parse(&"M".repeat(32)).expect("mesh"),
            name: ServiceName::parse("s").expect("name"),
        };
        let row = Service {
            key,
            deployed_by: MemberId::parse(&"U".repeat(32)).expect("member"),
            scope: Scope::Peer,
            wanted,
            target: Generation(target),
            latest: Generation(latest),
            failed: None,
            created_at: 0,
            updated_at: 0,
        };
        let policy = wire::Policy::default();
        Desired { row, proven, material: None, vaulted: None, fallback: None, policy, has_callers: false }
    }

    fn failed(desired: Desired, generation: i64) -> Desired {
        let reason = Reason { code: ErrorCode::StartExited, message: "boom".into(), stderr: vec![] };
        let failed = Some(FailedGeneration { generation: Generation(generation), reason });
        Desired { row: Service { failed, ..desired.row }, ..desired }
    }

    fn serving(generation: i64, phase: Phase) -> ServiceReport {
        let one = GenerationReport {
            generation: Generation(generation),
            phase,
            reason: None,
            last_fall: None,
            pin: None,
            restarts: 0,
            ready_since_ms: None,
            pid: None,
            usage: None,
            tier: None,
        };
        let service = desired(1, 1, Wanted::Running, true).row.key;
        ServiceReport { service, revision: 1, serving: Some(one), candidate: None, egress: vec![] }
    }

    const TWO: Goal = Goal::Serve(Generation(2));

    #[test]
    fn a_deploy_is_running_once_it_is_proven_and_serves() {
        let at = |proven, generation, phase| {
            let wanted = desired(2, 2, Wanted::Running, proven);
            verdict(TWO, Some(&wanted), Some(&serving(generation, phase)), Sight::Settled)
        };
        assert_eq!(at(false, 2, Phase::Ready), None);
        assert_eq!(at(true, 1, Phase::Ready), None);
        assert_eq!(at(true, 2, Phase::Backoff), None);
        assert_eq!(at(true, 2, Phase::Ready), Some(Verdict::Running));
    }

    #[test]
    fn a_failed_deploy_says_so_whether_or_not_an_older_one_serves() {
        for target in [1, 2] {
            let wanted = failed(desired(target, 2, Wanted::Running, true), 2);
            let answer = verdict(TWO, Some(&wanted), Some(&serving(1, Phase::Ready)), Sight::Settled);
            assert!(matches!(answer, Some(Verdict::Failed(reason)) if reason.message == "boom"));
        }
    }

    #[test]
    fn a_deploy_that_is_held_back_says_so_once_the_runner_has_been_told_all_there_is() {
        let mut report = serving(1, Phase::Ready);
        let waiting =
            GenerationReport { generation: Generation(2), ..serving(2, Phase::Waiting).serving.expect("it") };
        report.candidate = Some(waiting);
        let wanted = desired(2, 2, Wanted::Running, false);
        assert_eq!(verdict(TWO, Some(&wanted), Some(&report), Sight::Busy), None);
        let held = verdict(TWO, Some(&wanted), Some(&report), Sight::Settled);
        assert!(matches!(held, Some(Verdict::Held { .. })), "{held:?}");
        let other = verdict(
            Goal::Serve(Generation(1)),
            Some(&desired(1, 2, Wanted::Running, true)),
            Some(&report),
            Sight::Settled,
        );
        assert_eq!(other, Some(Verdict::Running), "the older one serves on");
    }

    #[test]
    fn a_newer_deploy_a_stop_and_a_removal_each_answer_the_waiter() {
        let at = |wanted: Option<Desired>| verdict(TWO, wanted.as_ref(), None, Sight::Settled);
        assert_eq!(at(Some(desired(3, 3, Wanted::Running, false))), Some(Verdict::Superseded));
        assert_eq!(at(Some(desired(2, 2, Wanted::Gone, false))), Some(Verdict::Superseded));
        assert_eq!(at(None), Some(Verdict::Superseded));
        let stopped = at(Some(desired(2, 2, Wanted::Stopped, false)));
        assert_eq!(stopped, Some(Verdict::Stopped { runner_away: false }));
    }

    #[test]
    fn a_stop_is_done_when_the_runner_says_so_or_can_not_be_asked() {
        let wanted = desired(2, 2, Wanted::Stopped, true);
        let report = serving(2, Phase::Stopping);
        assert_eq!(verdict(Goal::Rest, Some(&wanted), Some(&report), Sight::Settled), None);
        let done = Some(Verdict::Stopped { runner_away: false });
        assert_eq!(verdict(Goal::Rest, Some(&wanted), None, Sight::Settled), done);
        let away = Some(Verdict::Stopped { runner_away: true });
        assert_eq!(verdict(Goal::Rest, Some(&wanted), Some(&report), Sight::Away), away);
    }

    #[test]
    fn a_removal_is_done_when_the_record_is_gone() {
        let wanted = desired(2, 2, Wanted::Gone, true);
        assert_eq!(verdict(Goal::Gone, Some(&wanted), None, Sight::Settled), None);
        assert_eq!(
            verdict(Goal::Gone, Some(&wanted), None, Sight::Away),
            Some(Verdict::Stopped { runner_away: true })
        );
        assert_eq!(
            verdict(Goal::Gone, None, None, Sight::Settled),
            Some(Verdict::Stopped { runner_away: false })
        );
    }
}
