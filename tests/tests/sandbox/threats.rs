//! The table of docs/threat-model.md: the one list of what is stopped, and of what is not.
//!
//! A row says for each tier what stops the scenario. `**open**` in the cell of a tier: it is not stopped there;
//! `**open without cgroups**`: not where the runner has no control groups; `**open** unless the runner is root`: only where
//! all services have one uid. The last cell names the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub struct Threat {
    strict: String,
    light: String,
    tests: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    Strict,
    Light,
}

pub fn all() -> BTreeMap<String, Threat> {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit());
    let threats: BTreeMap<_, _> = rows.map(row).collect();
    assert!(threats.len() >= 66, "{} scenarios", threats.len());
    threats
}

fn row(line: &str) -> (String, Threat) {
    let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let [number, _what, strict, light, tests] = &cells[..] else { panic!("five cells: {line}") };
    let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    (number.clone(), Threat { strict: strict.clone(), light: light.clone(), tests })
}

impl Threat {
    /// Whether the document says that this is not stopped.
    pub fn is_open(&self, tier: Tier, has_cgroups: bool, is_root: bool) -> bool {
        let cell = if tier == Tier::Strict { &self.strict } else { &self.light };
        let is_open =
            cell.contains("**open**") && !(is_root && cell.contains("**open** unless the runner is root"));
        is_open || (!has_cgroups && cell.contains("**open without cgroups**"))
    }
}

/// Scenarios whose row names no test, or a test that does not exist.
pub fn without_a_test(threats: &BTreeMap<String, Threat>) -> Vec<String> {
    let sources = sources(&root());
    let exists = |name: &String| sources.iter().any(|text| text.contains(&format!("fn {name}(")));
    let is_bare = |threat: &Threat| threat.tests.is_empty() || !threat.tests.iter().all(exists);
    threats
        .iter()
        .filter(|(_, threat)| is_bare(threat))
        .map(|(n, threat)| format!("{n}: {:?}", threat.tests))
        .collect()
}

fn sources(dir: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !["target", ".git", ".tools", "node_modules"].iter().any(|skip| name == *skip) {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}
