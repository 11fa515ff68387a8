//! What has to happen so that the runner holds what people want: a pure function of the two.
//!
//! Here: [`plan`]. Not here: doing it, retrying it, and judging what the runner reports (`super::verdict`).
//! Invariant: when a plan has been carried out, the next one is empty.

use std::collections::BTreeMap;

use wire::report::{Phase, ServiceReport};
use wire::{Generation, Policy, ServiceKey};

/// What people want of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `target` serves. While it is unproven and nothing serves, `fallback` (the version that worked before) comes first.
    Run { target: Generation, fallback: Option<Generation>, policy: Policy },
    /// No process; its data stays.
    Rest,
    /// No process, no data, and then no record.
    Gone,
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

/// At most one action for each service. `applied`: the policy under which the runner was last given each.
pub fn plan(
    wishes: &BTreeMap<ServiceKey, Wish>,
    observed: &BTreeMap<ServiceKey, ServiceReport>,
    applied: &BTreeMap<ServiceKey, Policy>,
) -> Vec<Action> {
    let wanted = wishes
        .iter()
        .filter_map(|(key, wish)| step(key, *wish, observed.get(key), applied.get(key).copied()));
    // Nobody asked for a stray's data to go: it may be that the broker lost its database, not the people their wish.
    let strays = observed.keys().filter(|key| !wishes.contains_key(*key)).cloned().map(Action::Stop);
    wanted.chain(strays).collect()
}

fn step(
    key: &ServiceKey,
    wish: Wish,
    seen: Option<&ServiceReport>,
    applied: Option<Policy>,
) -> Option<Action> {
    match (wish, seen) {
        // Also when the runner does not know the service: only its answer proves that no data is left.
        (Wish::Gone, _) => Some(Action::Purge(key.clone())),
        (Wish::Rest, None) => None,
        (Wish::Rest, Some(_)) => Some(Action::Stop(key.clone())),
        (Wish::Run { target, fallback, policy: _ }, None) => {
            Some(Action::Apply(key.clone(), fallback.unwrap_or(target)))
        }
        (Wish::Run { target, fallback, policy }, Some(report)) => {
            let under_way = match fallback {
                _ if is_under_way(report, target) => Some(target),
                Some(fallback) if is_returning(report, fallback) => Some(fallback),
                _ => None,
            };
            // The same generation again changes nothing at the runner but the policy.
            let is_settled = under_way.is_some() && applied == Some(policy);
            (!is_settled).then(|| Action::Apply(key.clone(), under_way.unwrap_or(target)))
        }
    }
}

/// After a restart of the runner the version that worked starts again before a new one may try.
fn is_returning(report: &ServiceReport, fallback: Generation) -> bool {
    report.serving.is_none()
        && report.candidate.as_ref().is_some_and(|candidate| {
            candidate.generation == fallback
                && !matches!(candidate.phase, Phase::Failed | Phase::Backoff | Phase::CrashLoop)
        })
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

    fn run(target: i64) -> Wish {
        Wish::Run { target: Generation(target), fallback: None, policy: Policy::default() }
    }

    fn one(wish: Wish, report: Option<ServiceReport>) -> Vec<Action> {
        let observed = report.into_iter().map(|r| (r.service.clone(), r)).collect();
        plan(&BTreeMap::from([(key(1), wish)]), &observed, &BTreeMap::from([(key(1), Policy::default())]))
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
        let wish =
            Wish::Run { target: Generation(3), fallback: Some(Generation(2)), policy: Policy::default() };
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        assert_eq!(one(wish, None), apply(2));
        assert_eq!(one(wish, Some(seen(1, None, Some((2, Phase::Starting))))), []);
        assert_eq!(one(wish, Some(seen(1, Some(2), None))), apply(3));
        assert_eq!(one(wish, Some(seen(1, None, Some((2, Phase::Backoff))))), apply(3));
    }

    #[test]
    fn another_policy_is_told_to_the_runner_for_whatever_it_is_running() {
        let light = Policy { min_isolation: wire::Tier::Light, ..Policy::default() };
        let told = |applied: Option<Policy>, wish: Wish, report: ServiceReport| {
            let applied = applied.map(|policy| (key(1), policy)).into_iter().collect();
            plan(&BTreeMap::from([(key(1), wish)]), &BTreeMap::from([(key(1), report)]), &applied)
        };
        let apply = |g| vec![Action::Apply(key(1), Generation(g))];
        assert_eq!(told(Some(light), run(3), seen(1, Some(3), None)), apply(3));
        assert_eq!(told(None, run(3), seen(1, Some(3), None)), apply(3), "in doubt it is told again");
        assert_eq!(told(Some(Policy::default()), run(3), seen(1, Some(3), None)), []);
        let wish = Wish::Run { target: Generation(3), fallback: Some(Generation(2)), policy: light };
        let returning = seen(1, None, Some((2, Phase::Starting)));
        assert_eq!(told(Some(Policy::default()), wish, returning), apply(2));
    }

    #[test]
    fn strays_are_stopped_and_keep_their_data() {
        let observed = BTreeMap::from([(key(9), seen(9, Some(1), None))]);
        assert_eq!(plan(&BTreeMap::new(), &observed, &BTreeMap::new()), [Action::Stop(key(9))]);
    }

    fn wish() -> impl Strategy<Value = Wish> {
        prop_oneof![
            (1_i64..4, proptest::option::of(4_i64..6)).prop_map(|(target, fallback)| Wish::Run {
                target: Generation(target),
                fallback: fallback.map(Generation),
                policy: Policy::default(),
            }),
            Just(Wish::Rest),
            Just(Wish::Gone),
        ]
    }

    fn phase() -> impl Strategy<Value = Phase> {
        prop_oneof![Just(Phase::Fetching), Just(Phase::Starting), Just(Phase::Ready), Just(Phase::Failed)]
    }

    proptest! {
        /// A runner that does as told ends up with what is wished, and then nothing is left to do.
        #[test]
        fn carrying_out_a_plan_reaches_the_wish(
            wishes in proptest::collection::btree_map(0_u8..6, wish(), 0..6),
            held in proptest::collection::btree_map(
                0_u8..6,
                (proptest::option::of(1_i64..4), proptest::option::of((1_i64..4, phase()))),
                0..6,
            ),
        ) {
            let mut wishes: BTreeMap<_, _> = wishes.into_iter().map(|(n, w)| (key(n), w)).collect();
            let mut observed: BTreeMap<_, _> =
                held.into_iter().map(|(n, (s, c))| (key(n), seen(n, s, c))).collect();
            let mut applied = BTreeMap::new();
            // Twice, because an untried version waits for the one that worked.
            for _ in 0..2 {
            let actions = plan(&wishes, &observed, &applied);
            let distinct: std::collections::BTreeSet<_> = actions.iter().map(Action::key).collect();
            prop_assert_eq!(distinct.len(), actions.len());
            for action in actions {
                match action {
                    Action::Apply(key, generation) => {
                        applied.insert(key.clone(), Policy::default());
                        let report = observed.entry(key.clone()).or_insert_with(|| seen(0, None, None));
                        report.serving = Some(at(generation.0, Phase::Ready));
                        report.candidate = None;
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
