//! What a hostile server reports of its attempts.
//!
//! Here: reading and sorting it. Not here: the attempts (see `hostile/`), claims.

use std::collections::BTreeMap;

use super::Run;

/// Verdict and detail by the probe's name.
pub type Findings = BTreeMap<String, (String, String)>;

pub fn findings(run: &mut Run) -> Findings {
    let output = run.output();
    let reports = run.rest();
    findings_in(&output, &reports)
}

pub fn findings_in(output: &str, reports: &dyn std::fmt::Debug) -> Findings {
    let found: Findings = output
        .lines()
        .filter_map(|line| serde_json::from_str::<(String, String, String)>(line).ok())
        .map(|(name, verdict, detail)| (name, (verdict, detail)))
        .collect();
    assert!(found.contains_key("end"), "the probe did not come to its end: {reports:?}\n{output}");
    found
}

pub fn of_verdict<'a>(found: &'a Findings, wanted: &str) -> Vec<(&'a String, &'a String)> {
    found
        .iter()
        .filter(|(_, (verdict, _))| verdict == wanted)
        .map(|(name, (_, detail))| (name, detail))
        .collect()
}

pub fn assert_harmless(found: &Findings, at_least: usize) {
    assert_eq!(of_verdict(found, "LEAK"), [], "leaks");
    assert_eq!(of_verdict(found, "BROKEN"), [], "broken for honest servers");
    assert!(found.len() >= at_least, "{} probes only", found.len());
}
