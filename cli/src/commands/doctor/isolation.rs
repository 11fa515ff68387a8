//! What jails can be built: on this machine, by the mesh's runner, and what the mesh demands.
//!
//! Here: the findings. Not here: the attempts (crate `jail`, through the runner's own account of them).
//! Invariant: a demand that can't be met is broken; a demand that nobody could tell us is taken for the strictest.

use client::Connection;
use serde::Serialize;
use wire::isolation::{IsolationReport, PrimitiveReport};
use wire::peer::trust::{MeshPolicy, MeshPolicyResult, RunnerStatus, RunnerStatusResult};
use wire::{Policy, Tier};

use super::{Finding, Verdict, broken, fine, missing};
use crate::roles;

#[derive(Debug, Default, Serialize)]
pub struct Isolation {
    #[serde(skip_serializing_if = "Option::is_none")]
    here: Option<IsolationReport>,
    /// Of the mesh's runner; `None`: there is none, or nobody told us.
    #[serde(skip_serializing_if = "Option::is_none")]
    runner: Option<IsolationReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
    /// Why the runner's part is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

impl Isolation {
    /// Tries every primitive on this machine.
    pub async fn try_here(&mut self) {
        self.here = tokio::task::spawn_blocking(roles::isolation_here).await.ok();
    }

    pub async fn ask(&mut self, connection: &Connection) {
        match connection.request::<_, MeshPolicyResult>(&MeshPolicy::default()).await {
            Ok(found) => self.policy = Some(found.policy),
            Err(e) => self.unknown = Some(e.to_string()),
        }
        match connection.request::<_, RunnerStatusResult>(&RunnerStatus {}).await {
            Ok(found) => self.runner = found.runner.map(|health| health.isolation),
            Err(e) => self.unknown = Some(e.to_string()),
        }
    }

    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(here) = &self.here {
            findings.push(summary("here", "this machine", here));
            findings.extend(here.primitives.iter().map(|primitive| of(primitive, "here", None)));
        }
        let demand = self.policy.unwrap_or_default().min_isolation;
        match (&self.runner, &self.unknown) {
            (Some(runner), _) => {
                findings.push(summary("runner", "the runner", runner));
                let unmet = (runner.tier < Some(demand)).then_some(demand);
                findings.extend(runner.primitives.iter().map(|primitive| of(primitive, "runner", unmet)));
                findings.push(verdict(runner, demand));
            }
            (None, Some(why)) => findings.push(missing(
                "demand",
                format!("the broker does not say what its runner can build: {why}"),
                "Use the same version on both sides.",
            )),
            (None, None) => {}
        }
        findings
    }
}

fn summary(place: &'static str, words: &str, report: &IsolationReport) -> Finding {
    let check = format!("{place}.jail");
    match report.tier {
        Some(Tier::Strict) => fine(check, format!("{words} can build the strict jail")),
        Some(Tier::Light) => missing(
            check,
            format!(
                "{words} can build the light jail only: services see its processes and their command lines"
            ),
            "What is missing below grants the strict one.",
        ),
        None => missing(
            check,
            format!("{words} can build no jail, so no service would start"),
            "What is missing below grants one.",
        ),
    }
}

/// `unmet`: the demand that the runner does not meet; what that needs is then broken and not just missing.
fn of(primitive: &PrimitiveReport, place: &str, unmet: Option<Tier>) -> Finding {
    let check = format!("{place}.{}", primitive.name);
    let Some(refusal) = &primitive.refusal else { return fine(check, "works") };
    let needed = match primitive.needed_by {
        Some(tier) => format!("the {tier} jail needs it"),
        None => "without it limits hold for each process alone".to_owned(),
    };
    let is_broken = unmet.is_some_and(|demand| primitive.needed_by.is_some_and(|by| by <= demand));
    Finding {
        check: check.into(),
        verdict: if is_broken { Verdict::Broken } else { Verdict::Missing },
        detail: format!("{refusal}; {needed}"),
        cure: (!primitive.remedy.is_empty()).then(|| primitive.remedy.clone()),
    }
}

fn verdict(runner: &IsolationReport, demand: Tier) -> Finding {
    match runner.tier {
        Some(tier) if tier >= demand => {
            fine("demand", format!("the mesh demands {demand}; services run in the {tier} jail"))
        }
        Some(tier) => broken(
            "demand",
            format!("the mesh demands {demand}, the runner can build at most {tier}: no service starts"),
            format!(
                "Grant what is missing above. Or let an admin lower it: claudemesh policy --min-isolation {tier}"
            ),
        ),
        None => broken(
            "demand",
            format!("the mesh demands {demand}, the runner can build no jail: no service starts"),
            "Grant what is missing above.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primitive(name: &str, needed_by: Option<Tier>, refusal: Option<&str>) -> PrimitiveReport {
        let remedy = if refusal.is_some() { "grant it" } else { "" };
        PrimitiveReport {
            name: name.into(),
            needed_by,
            refusal: refusal.map(str::to_owned),
            remedy: remedy.into(),
        }
    }

    fn light() -> IsolationReport {
        IsolationReport {
            tier: Some(Tier::Light),
            primitives: vec![
                primitive("landlock", Some(Tier::Light), None),
                primitive("user_namespace", Some(Tier::Strict), Some("EPERM")),
                primitive("cgroup", None, Some("not delegated")),
            ],
        }
    }

    fn policy(min_isolation: Tier) -> Option<Policy> {
        Some(Policy { min_isolation, ..Policy::default() })
    }

    fn verdict_of(findings: &[Finding], check: &str) -> Verdict {
        findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("{check}")).verdict
    }

    #[test]
    fn a_demand_that_is_not_met_is_broken_and_names_what_is_missing() {
        let isolation =
            Isolation { runner: Some(light()), policy: policy(Tier::Strict), ..Isolation::default() };
        let findings = isolation.findings();
        assert_eq!(verdict_of(&findings, "demand"), Verdict::Broken);
        assert_eq!(verdict_of(&findings, "runner.user_namespace"), Verdict::Broken);
        assert_eq!(verdict_of(&findings, "runner.cgroup"), Verdict::Missing);
        assert_eq!(verdict_of(&findings, "runner.landlock"), Verdict::Fine);
        let cures: Vec<&str> = findings.iter().filter_map(|finding| finding.cure.as_deref()).collect();
        assert!(cures.contains(&"grant it"), "{cures:?}");
    }

    #[test]
    fn a_demand_that_is_met_is_fine_and_an_unknown_one_is_strict() {
        let met = Isolation { runner: Some(light()), policy: policy(Tier::Light), ..Isolation::default() };
        assert_eq!(verdict_of(&met.findings(), "demand"), Verdict::Fine);
        assert!(met.findings().iter().all(|finding| finding.verdict != Verdict::Broken));
        let unknown = Isolation { runner: Some(light()), ..Isolation::default() };
        assert_eq!(verdict_of(&unknown.findings(), "demand"), Verdict::Broken);
    }

    #[test]
    fn this_machine_may_lack_what_only_a_runner_needs() {
        let none = IsolationReport { tier: None, ..light() };
        let isolation = Isolation { here: Some(none.clone()), ..Isolation::default() };
        assert!(isolation.findings().iter().all(|finding| finding.verdict != Verdict::Broken));
        let runner = Isolation { runner: Some(none), policy: policy(Tier::Light), ..Isolation::default() };
        assert_eq!(verdict_of(&runner.findings(), "demand"), Verdict::Broken);
    }
}
