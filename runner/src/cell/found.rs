//! What this machine lets us build, as people and brokers read it.
//!
//! Here: the probe's answers as an [`IsolationReport`]. Pure. Not here: probing (crate `jail`).
//! Invariant: a tier is named only if nothing that it needs was refused.

use jail::cgroup::{Cgroups, Unavailable};
use jail::{Primitive, Refused};
use wire::Tier;
use wire::isolation::{IsolationReport, PrimitiveReport};

/// What stands for the operator's own choice among the primitives.
const CONFIGURATION: &str = "configuration";

/// `strongest`: what the operator lets us use.
pub fn report(
    probed: Vec<(Primitive, Result<(), Refused>)>,
    cgroups: Option<&Result<Cgroups, Unavailable>>,
    strongest: Tier,
) -> IsolationReport {
    let of_probe = |(primitive, outcome): (Primitive, Result<(), Refused>)| PrimitiveReport {
        name: primitive.as_str().to_owned(),
        needed_by: [Tier::Light, Tier::Strict].into_iter().find(|tier| is_needed(primitive, *tier)),
        refusal: outcome.as_ref().err().map(|refused| refused.errno.desc().to_owned()),
        remedy: outcome.map_or_else(|_| primitive.remedy().to_owned(), |()| String::new()),
    };
    let mut primitives: Vec<PrimitiveReport> = probed.into_iter().map(of_probe).collect();
    if strongest < Tier::Strict {
        primitives.push(PrimitiveReport {
            name: CONFIGURATION.to_owned(),
            needed_by: Some(Tier::Strict),
            refusal: Some(format!("the operator allows at most {strongest}")),
            remedy: "the runner's own configuration".to_owned(),
        });
    }
    let tier = [Tier::Strict, Tier::Light].into_iter().find(|tier| {
        primitives.len() >= Primitive::ALL.len() && refused(&primitives, *tier).next().is_none()
    });
    primitives.push(match cgroups {
        Some(Ok(_)) => of_group(None),
        Some(Err(unavailable)) => of_group(Some((unavailable.what.clone(), unavailable.remedy))),
        None => of_group(Some(("switched off".to_owned(), "the runner's own configuration"))),
    });
    IsolationReport { tier, primitives }
}

/// What is refused of all that `tier` needs, and the remedies.
pub fn missing(report: &IsolationReport, tier: Tier) -> String {
    let all: Vec<String> = refused(&report.primitives, tier)
        .filter_map(|p| Some(format!("{} ({}): {}", p.name, p.refusal.as_ref()?, p.remedy)))
        .collect();
    all.join("; ")
}

fn refused(primitives: &[PrimitiveReport], tier: Tier) -> impl Iterator<Item = &PrimitiveReport> {
    let of_name = |name: &str| Primitive::ALL.into_iter().find(|primitive| primitive.as_str() == name);
    primitives.iter().filter(move |report| {
        let is_needed = match of_name(&report.name) {
            Some(primitive) => is_needed(primitive, tier),
            None => report.needed_by.is_some_and(|by| by <= tier),
        };
        is_needed && report.refusal.is_some()
    })
}

fn is_needed(primitive: Primitive, tier: Tier) -> bool {
    let tier = match tier {
        Tier::Light => jail::Tier::Light,
        Tier::Strict => jail::Tier::Strict,
    };
    primitive.needed_by().contains(&tier)
}

fn of_group(refused: Option<(String, &str)>) -> PrimitiveReport {
    let (refusal, remedy) = refused.map_or((None, ""), |(what, remedy)| (Some(what), remedy));
    PrimitiveReport { name: "cgroup".to_owned(), needed_by: None, refusal, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    fn without(missing: &[Primitive], strongest: Tier) -> IsolationReport {
        let probed = Primitive::ALL.into_iter().map(|primitive| {
            let refused = Refused { primitive, errno: Errno::EPERM };
            (primitive, if missing.contains(&primitive) { Err(refused) } else { Ok(()) })
        });
        report(probed.collect(), None, strongest)
    }

    #[test]
    fn the_tier_is_the_strongest_of_which_nothing_is_missing() {
        assert_eq!(without(&[], Tier::Strict).tier, Some(Tier::Strict));
        assert_eq!(without(&[], Tier::Light).tier, Some(Tier::Light));
        assert_eq!(without(&[Primitive::UserNamespace], Tier::Strict).tier, Some(Tier::Light));
        assert_eq!(without(&[Primitive::LandlockNet], Tier::Strict).tier, Some(Tier::Strict));
        assert_eq!(without(&[Primitive::LandlockNet, Primitive::Mounts], Tier::Strict).tier, None);
        assert_eq!(without(&[Primitive::Landlock], Tier::Strict).tier, None);
        assert_eq!(report(vec![], None, Tier::Strict).tier, None, "what was not tried does not work");
        assert_eq!(without(&Primitive::ALL, Tier::Strict).tier, None);
    }

    #[test]
    fn a_refusal_says_what_would_grant_it_and_a_missing_cgroup_costs_no_tier() {
        let found = without(&[Primitive::FreshProc], Tier::Strict);
        let proc = found.primitives.iter().find(|p| p.name == "fresh_proc").expect("listed");
        assert!(proc.refusal.is_some() && !proc.remedy.is_empty());
        let words = missing(&found, Tier::Strict);
        assert!(words.starts_with("fresh_proc (") && words.contains(&proc.remedy), "{words}");
        assert_eq!(missing(&found, Tier::Light), "");
        let group = found.primitives.last().expect("listed");
        assert_eq!((group.name.as_str(), group.needed_by), ("cgroup", None));
        assert!(group.refusal.is_some());
    }
}
