//! What has to happen so that the runner holds what people want: a pure function of the two.
//!
//! Here: [`plan`]. Not here: doing it, retrying it, and judging what the runner reports (`super::verdict`).
//! Invariant: when a plan has been carried out, the next one is empty.

use std::collections::BTreeMap;

use wire::report::{GenerationReport, Phase, ServiceReport};
use wire::{ErrorCode, Generation, Policy, ServiceKey};

use crate::deploy::Mark;

/// What people want of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `target` serves. While it is unproven and nothing serves, `fallback` (the version that worked before) comes first.
    Run { target: Turn, fallback: Option<Turn>, policy: Policy },
    /// No process; its data stays.
    Rest,
    /// No process, no data, and then no record.
    Gone,
}

/// A generation, and what the runner needs to open its references to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub generation: Generation,
    /// `None`: it has no references.
    pub material: Option<Mark>,
}

/// With what the runner was last given a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub policy: Policy,
    pub material: Option<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Apply(ServiceKey, Generation),
    /// End the processes.
    Stop(ServiceKey),
    /// End the processes and remove the data.
    Purge(ServiceKey),
}

impl Action {
    pub fn key(&self) -> &ServiceKey {
        match self {
            Self::Apply(key, _) | Self::Stop(key) | Self::Purge(key) => key,
        }
    }
}

/// At most one action for each service. `applied`: with what the runner was last given each.
pub fn plan(
    wishes: &BTreeMap<ServiceKey, Wish>,
    observed: &BTreeMap<ServiceKey, ServiceReport>,
    applied: &BTreeMap<ServiceKey, Told>,
) -> Vec<Action> {
    let wanted = wishes
        .iter()
        .filter_map(|(key, wish)| step(key, *wish, observed.get(key), applied.get(key).copied()));
    // Nobody asked for a stray's data to go: it may be that the broker lost its database, not the people their wish.
    let strays = observed.keys().filter(|key| !wishes.contains_key(*key)).cloned().map(Action::Stop);
    wanted.chain(strays).collect()
}

fn step(key: &ServiceKey, wish: Wish, seen: Option<&ServiceReport>, applied: Option<Told>) -> Option<Action> {
    match (wish, seen) {
        // Also when the runner does not know the service: only its answer proves that no data is left.
        (Wish::Gone, _) => Some(Action::Purge(key.clone())),
        (Wish::Rest, None) => None,
        (Wish::Rest, Some(_)) => Some(Action::Stop(key.clone())),
        (Wish::Run { target, fallback, policy: _ }, None) => {
            Some(Action::Apply(key.clone(), fallback.unwrap_or(target).generation))
        }
        (Wish::Run { target, fallback, policy }, Some(report)) => {
            let under_way = match fallback {
                _ if is_under_way(report, target.generation) => Some(target),
                Some(fallback) if is_returning(report, fallback, target) => Some(fallback),
                _ => None,
            };
            // The same generation again changes nothing at the runner but the policy, and what waits for its secrets.
            let is_settled =
                under_way.is_some_and(|turn| applied == Some(Told { policy, material: turn.material }));
            (!is_settled).then(|| Action::Apply(key.clone(), under_way.unwrap_or(target).generation))
        }
    }
}

/// After a restart of the runner the version that worked starts again before a new one may try.
fn is_returning(report: &ServiceReport, fallback: Turn, target: Turn) -> bool {
    report.serving.is_none()
        && report.candidate.as_ref().is_some_and(|candidate| {
            candidate.generation == fallback.generation
                && match candidate.phase {
                    Phase::Failed | Phase::Backoff | Phase::CrashLoop => false,
                    // What holds back every service with secrets would hold back the new version as well.
                    Phase::Waiting => target.material.is_some() && is_of_the_runner(candidate),
                    _ => true,
                }
        })
}

/// Whether it waits for something that the whole runner lacks.
fn is_of_the_runner(waiting: &GenerationReport) -> bool {
    let code = waiting.reason.as_ref().map(|reason| reason.code);
    matches!(code, Some(ErrorCode::VaultLocked | ErrorCode::RunnerNotTrusted | ErrorCode::LedgerFailed))
}

/// Whether the runner already has, or is already making, this generation.
fn is_under_way(report: &ServiceReport, generation: Generation) -> bool {
    let serves = report.serving.as_ref().is_some_and(|g| g.generation == generation);
    match &report.candidate {
        Some(candidate) if candidate.generation == generation => true,
        // A failed candidate does nothing any more; a live one would take over.
        Some(candidate) => serves && candidate.phase == Phase::Failed,
        None => serves,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::report::GenerationReport;
    use wire::{MeshId, ServiceName};

    use super::*;

    fn key(n: u8) -> ServiceKey {
        ServiceKey {
            mesh: MeshId::parse(&"M".repeat(32)).expect("mesh"),
            name: ServiceName::parse(&format!("s{n}")).expect("name"),
        }
    }

    fn at(generation: i64, phase: Phase) -> GenerationReport {
        GenerationReport {
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
        }
    }

    fn seen(n: u8, serving: Option<i64>, candidate: Option<(i64, Phase)>) -> ServiceReport {
        ServiceReport {
            service: key(n),
            revision: 1,
            serving: serving.map(|g| at(g, Phase::Ready)),
            candidate: candidate.map(|(g, phase)| at(g, phase)),
            egress: vec![],
        }
    }

    fn turn(generation: i64) -> Turn {
        Turn { generation: Generation(generation), material: None }
    }

    fn told(policy: Policy) -> Told {
        Told { policy, material: None }
    }

    fn run(target: i64) -> Wish {
        Wish::Run { target: turn(target), fallback: None, policy: Policy::default() }
    }

    fn mark(n: u8) -> Option<Mark> {
        Some(Mark::of([n.to_string().as_str()]))
    }

    fn one(wish: Wish, report: Option<ServiceReport>) -> Vec<Action> {
        let observed = report.into_iter().map(|r| (r.service.clone(), r)).collect();
        plan(
            &BTreeMap::from([(key(1), wish)]),
            &observed,
            &BTreeMap::from([(key(1), told(Policy::default()))]),
        )
    }

    #[test]
    fn a_service_the_runner_does_not_know_is_applied() {
        assert_eq!(one(run(3), None), [Action::Apply(key(1), Generation(3))]);
    }

    #[test]
    fn what_already_runs_or_is_on_its_way_is_left_alone() {
        assert_eq!(one(run(3), Some(seen(1, Some(3), None))), []);
        assert_eq!(one(run(3), Some(seen(1, Some(2), Some((3, Phase::Installing))))), []);
        assert_eq!(one(run(2), Some(seen(1, Some(2), Some((3, Phase::Failed))))), []);
    }

    #[test]
    fn another_generation_is_replaced_and_an_unwanted_candidate_called_off() {
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        assert_eq!(one(run(4), Some(seen(1, Some(3), None))), apply(4));
        assert_eq!(one(run(4), Some(seen(1, Some(2), Some((3, Phase::Starting))))), apply(4));
        assert_eq!(one(run(2), Some(seen(1, Some(2), Some((3, Phase::Starting))))), apply(2));
        assert_eq!(one(run(2), Some(seen(1, None, Some((3, Phase::Failed))))), apply(2));
    }

    #[test]
    fn rest_stops_and_gone_purges_even_what_is_not_there() {
        assert_eq!(one(Wish::Rest, Some(seen(1, Some(3), None))), [Action::Stop(key(1))]);
        assert_eq!(one(Wish::Rest, None), []);
        assert_eq!(one(Wish::Gone, None), [Action::Purge(key(1))]);
    }

    #[test]
    fn after_a_restart_the_version_that_worked_starts_before_the_untried_one() {
        let wish = Wish::Run { target: turn(3), fallback: Some(turn(2)), policy: Policy::default() };
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        assert_eq!(one(wish, None), apply(2));
        assert_eq!(one(wish, Some(seen(1, None, Some((2, Phase::Starting))))), []);
        assert_eq!(one(wish, Some(seen(1, Some(2), None))), apply(3));
        assert_eq!(one(wish, Some(seen(1, None, Some((2, Phase::Backoff))))), apply(3));
    }

    #[test]
    fn another_policy_is_told_to_the_runner_for_whatever_it_is_running() {
        let light = Policy { min_isolation: wire::Tier::Light, ..Policy::default() };
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        let default = Some(told(Policy::default()));
        assert_eq!(after(Some(told(light)), run(3), seen(1, Some(3), None)), apply(3));
        assert_eq!(after(None, run(3), seen(1, Some(3), None)), apply(3), "in doubt it is told again");
        assert_eq!(after(default, run(3), seen(1, Some(3), None)), []);
        let wish = Wish::Run { target: turn(3), fallback: Some(turn(2)), policy: light };
        let returning = seen(1, None, Some((2, Phase::Starting)));
        assert_eq!(after(default, wish, returning), apply(2));
    }

    fn after(applied: Option<Told>, wish: Wish, report: ServiceReport) -> Vec<Action> {
        let applied = applied.map(|told| (key(1), told)).into_iter().collect();
        plan(&BTreeMap::from([(key(1), wish)]), &BTreeMap::from([(key(1), report)]), &applied)
    }

    fn with(generation: i64, material: Option<Mark>) -> Turn {
        Turn { generation: Generation(generation), material }
    }

    #[test]
    fn other_entries_or_consents_are_given_for_whichever_generation_is_on_its_way() {
        let wish = |target, fallback| Wish::Run { target, fallback, policy: Policy::default() };
        let told = |material| Some(Told { policy: Policy::default(), material });
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        let waiting = || seen(1, Some(2), Some((3, Phase::Waiting)));
        let wanted = wish(with(3, mark(1)), Some(with(2, mark(2))));
        assert_eq!(after(told(mark(1)), wanted, waiting()), [], "it waits, and was given all there is");
        assert_eq!(after(told(mark(2)), wanted, waiting()), apply(3));
        assert_eq!(after(told(None), wanted, seen(1, Some(3), None)), apply(3));
        let returning = seen(1, None, Some((2, Phase::Starting)));
        assert_eq!(after(told(mark(2)), wanted, returning.clone()), []);
        assert_eq!(after(told(mark(1)), wanted, returning), apply(2));
    }

    #[test]
    fn a_version_that_waits_is_passed_over_unless_the_next_one_would_wait_for_the_same() {
        let waits = |code| {
            let mut report = seen(1, None, Some((2, Phase::Waiting)));
            let reason = wire::report::Reason { code, message: String::new(), stderr: vec![] };
            report.candidate.as_mut().expect("there").reason = Some(reason);
            report
        };
        let told = Some(Told { policy: Policy::default(), material: mark(2) });
        let turns = |material| Wish::Run {
            target: with(3, material),
            fallback: Some(with(2, mark(2))),
            policy: Policy::default(),
        };
        let apply = [Action::Apply(key(1), Generation(3))];
        assert_eq!(after(told, turns(mark(1)), waits(ErrorCode::VaultMissing)), apply);
        assert_eq!(after(told, turns(mark(1)), waits(ErrorCode::VaultLocked)), []);
        assert_eq!(after(told, turns(None), waits(ErrorCode::VaultLocked)), apply, "it has no secrets");
    }

    #[test]
    fn strays_are_stopped_and_keep_their_data() {
        let observed = BTreeMap::from([(key(9), seen(9, Some(1), None))]);
        assert_eq!(plan(&BTreeMap::new(), &observed, &BTreeMap::new()), [Action::Stop(key(9))]);
    }

    fn turns(generations: std::ops::Range<i64>) -> impl Strategy<Value = Turn> {
        (generations, proptest::option::of(0_u8..4))
            .prop_map(|(generation, material)| with(generation, material.and_then(mark)))
    }

    /// Of a generation of one of these wishes.
    fn material(wish: &Wish, generation: Generation) -> Option<Mark> {
        let Wish::Run { target, fallback, .. } = wish else { return None };
        [Some(*target), *fallback].into_iter().flatten().find(|t| t.generation == generation)?.material
    }

    fn wish() -> impl Strategy<Value = Wish> {
        prop_oneof![
            (turns(1..4), proptest::option::of(turns(4..6))).prop_map(|(target, fallback)| Wish::Run {
                target,
                fallback,
                policy: Policy::default(),
            }),
            Just(Wish::Rest),
            Just(Wish::Gone),
        ]
    }

    fn phase() -> impl Strategy<Value = Phase> {
        prop_oneof![
            Just(Phase::Fetching),
            Just(Phase::Starting),
            Just(Phase::Ready),
            Just(Phase::Waiting),
            Just(Phase::Failed)
        ]
    }

    proptest! {
        /// A runner that does as told, and holds back what it may not open, ends up with what is wished, and then nothing
        /// is left to do.
        #[test]
        fn carrying_out_a_plan_reaches_the_wish(
            wishes in proptest::collection::btree_map(0_u8..6, wish(), 0..6),
            held in proptest::collection::btree_map(
                0_u8..6,
                (proptest::option::of(1_i64..4), proptest::option::of((1_i64..4, phase()))),
                0..6,
            ),
            held_back in proptest::collection::btree_set(0_u8..4, 0..4),
        ) {
            let held_back: std::collections::BTreeSet<_> = held_back.into_iter().filter_map(mark).collect();
            let mut wishes: BTreeMap<_, _> = wishes.into_iter().map(|(n, w)| (key(n), w)).collect();
            let mut observed: BTreeMap<_, _> =
                held.into_iter().map(|(n, (s, c))| (key(n), seen(n, s, c))).collect();
            let mut applied = BTreeMap::new();
            // Thrice, because an untried version waits for the one that worked, or that is found to be held back.
            for _ in 0..3 {
            let actions = plan(&wishes, &observed, &applied);
            let distinct: std::collections::BTreeSet<_> = actions.iter().map(Action::key).collect();
            prop_assert_eq!(distinct.len(), actions.len());
            for action in actions {
                match action {
                    Action::Apply(key, generation) => {
                        let material = material(&wishes[&key], generation);
                        applied.insert(key.clone(), Told { policy: Policy::default(), material });
                        let report = observed.entry(key.clone()).or_insert_with(|| seen(0, None, None));
                        let serves = report.serving.as_ref().is_some_and(|s| s.generation == generation);
                        if !serves && material.is_some_and(|mark| held_back.contains(&mark)) {
                            report.candidate = Some(at(generation.0, Phase::Waiting));
                        } else {
                            report.serving = Some(at(generation.0, Phase::Ready));
                            report.candidate = None;
                        }
                    }
                    Action::Stop(key) => drop(observed.remove(&key)),
                    Action::Purge(key) => {
                        observed.remove(&key);
                        // The record goes once the purge is confirmed.
                        if wishes.get(&key) == Some(&Wish::Gone) {
                            wishes.remove(&key);
                        }
                    }
                }
            }
            }
            prop_assert_eq!(plan(&wishes, &observed, &applied), vec![]);
        }
    }
}
