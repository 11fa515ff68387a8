//! What a service may be asked to be. Pure.
//!
//! Here: rules over an [`Apply`]. Not here: rules of sources (see [`crate::prepare`]).
//! Invariant: a message names the field and the rule, never a value.

use std::collections::BTreeMap;

use wire::ErrorCode;
use wire::runner::Apply;
use wire::vault::{MAX_REFERENCES, RunAs, VaultRef};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWish {
    #[error("environment name `{0}` must be letters, digits and `_`, and not start with a digit")]
    EnvName(String),
    #[error("environment variable `{0}` is refused: it changes how programs are loaded")]
    EnvLoader(String),
    #[error("environment variable `{0}` is set by the runner")]
    EnvOurs(String),
    #[error("environment variable `{0}` holds a NUL character")]
    EnvNul(String),
    #[error("no value was sent for environment variable `{0}`")]
    EnvMissing(String),
    #[error("a value was sent for `{0}`, which `env_names` does not name")]
    EnvUnnamed(String),
    #[error("`args` holds a NUL character")]
    ArgNul,
    #[error("`limits.{0}` must be between {1} and {2}")]
    Limit(&'static str, u32, u32),
    #[error("`network` holds more than {0} rules")]
    Rules(usize),
    #[error("`idle_stop_s` must be at least 1")]
    Idle,
    #[error("`vault` holds more than {0} references, or more entries and consents than they can need")]
    References(usize),
    #[error("environment variable `{0}` is both in `env_names` and in `vault`")]
    EnvTwice(String),
    #[error("the reference of `{0}` is not one: see `$vault:KEY` and `$vault:KEY:file:/secrets/NAME`")]
    Reference(String),
    #[error("the reference of `{0}` names the same file as another one of another entry")]
    SameFile(String),
    #[error("the reference of `{0}` names no owner, which only a service that runs as its caller may")]
    NoOwner(String),
}

impl BadWish {
    pub fn code(&self) -> ErrorCode {
        ErrorCode::InvalidArgs
    }
}

/// Checks everything that needs no I/O.
pub fn check(apply: &Apply) -> Result<(), BadWish> {
    let Apply { generation: _, spec, secrets, pin: _, proven: _, policy: _, vault: _ } = apply;
    for name in &spec.env_names {
        check_name(name)?;
        let value = secrets.env.get(name).ok_or_else(|| BadWish::EnvMissing(name.clone()))?;
        if value.expose().contains('\0') {
            return Err(BadWish::EnvNul(name.clone()));
        }
    }
    check_vault(apply)?;
    if let Some(name) = secrets.env.keys().find(|name| !spec.env_names.contains(name)) {
        return Err(BadWish::EnvUnnamed(name.clone()));
    }
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return Err(BadWish::ArgNul);
    }
    if spec.idle_stop_s == Some(0) {
        return Err(BadWish::Idle);
    }
    if spec.network.len() > wire::egress::MAX_RULES {
        return Err(BadWish::Rules(wire::egress::MAX_RULES));
    }
    let limits = spec.limits;
    for (name, value, least, most) in [
        ("memory_mb", limits.memory_mb, 64, 65_536),
        ("milli_cpus", limits.milli_cpus, 10, 256_000),
        ("pids", limits.pids, 8, 65_536),
        ("open_files", limits.open_files, 64, 65_536),
        ("disk_mb", limits.disk_mb, 1, 1_048_576),
    ] {
        if !(least..=most).contains(&value) {
            return Err(BadWish::Limit(name, least, most));
        }
    }
    Ok(())
}

/// Form and number only: what a reference leads to is said when an instance starts.
fn check_vault(apply: &Apply) -> Result<(), BadWish> {
    let Apply { spec, vault, .. } = apply;
    // Consents of several generations may be offered at once.
    if spec.vault.len() > MAX_REFERENCES
        || vault.entries.len() > MAX_REFERENCES
        || vault.consents.len() > 2 * MAX_REFERENCES
    {
        return Err(BadWish::References(MAX_REFERENCES));
    }
    let mut files = BTreeMap::new();
    for (name, reference) in &spec.vault {
        check_name(name)?;
        if spec.env_names.contains(name) {
            return Err(BadWish::EnvTwice(name.clone()));
        }
        if !matches!(VaultRef::parse(&reference.text(), reference.owner.as_ref()), Some(Ok(same)) if same == *reference)
        {
            return Err(BadWish::Reference(name.clone()));
        }
        if reference.owner.is_none() && spec.run_as != RunAs::Caller {
            return Err(BadWish::NoOwner(name.clone()));
        }
        if let Some(file) = &reference.file {
            let entry = (&reference.owner, &reference.key);
            if files.insert(file, entry).is_some_and(|other| other != entry) {
                return Err(BadWish::SameFile(name.clone()));
            }
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), BadWish> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.len() > 256 || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(plain)
    {
        return Err(BadWish::EnvName(name.chars().take(64).filter(|c| !c.is_control()).collect()));
    }
    match name {
        "NODE_OPTIONS" | "BASH_ENV" => Err(BadWish::EnvLoader(name.to_owned())),
        _ if name.starts_with("LD_") => Err(BadWish::EnvLoader(name.to_owned())),
        "PATH" | "HOME" | "TMPDIR" => Err(BadWish::EnvOurs(name.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wish(change: impl FnOnce(&mut serde_json::Value)) -> Result<(), BadWish> {
        let mut apply = json!({
            "generation": 1, "proven": false, "secrets": {"env": {}},
            "spec": {"source": {"type": "npx", "package": "x"}},
        });
        change(&mut apply);
        check(&serde_json::from_value(apply).expect("an apply"))
    }

    fn with_env(name: &str) -> Result<(), BadWish> {
        wish(|apply| {
            apply["spec"]["env_names"] = json!([name]);
            apply["secrets"]["env"][name] = json!("hunter2");
        })
    }

    #[test]
    fn names_that_load_code_are_refused_and_ordinary_ones_are_not() {
        for name in ["API_KEY", "_x", "NODE_ENV", "LDAP_URL"] {
            assert_eq!(with_env(name), Ok(()), "{name}");
        }
        for name in
            ["LD_PRELOAD", "LD_AUDIT", "NODE_OPTIONS", "BASH_ENV", "PATH", "HOME", "A=B", "1A", "", "A B"]
        {
            let refused = with_env(name).expect_err(name);
            assert!(!refused.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn names_and_values_must_match() {
        let named = wish(|apply| apply["spec"]["env_names"] = json!(["A"]));
        assert_eq!(named, Err(BadWish::EnvMissing("A".to_owned())));
        let unnamed = wish(|apply| apply["secrets"]["env"] = json!({"B": "x"}));
        assert_eq!(unnamed, Err(BadWish::EnvUnnamed("B".to_owned())));
    }

    #[test]
    fn references_are_checked_before_anything_is_made_of_them() {
        let owner = "ab".repeat(32);
        let with = |vault: serde_json::Value| wish(|apply| apply["spec"]["vault"] = vault);
        assert_eq!(with(json!({"A": {"owner": owner, "key": "a", "file": "/secrets/a"}})), Ok(()));
        let refused = |vault| with(vault).expect_err("refused");
        assert!(matches!(
            refused(json!({"LD_PRELOAD": {"owner": owner, "key": "a"}})),
            BadWish::EnvLoader(_)
        ));
        assert!(matches!(refused(json!({"A": {"key": "a"}})), BadWish::NoOwner(_)));
        for path in ["/etc/passwd", "/secrets/../a", "/secrets/a:file:/secrets/b", ""] {
            let bad = refused(json!({"A": {"owner": owner, "key": "a", "file": path}}));
            assert!(matches!(bad, BadWish::Reference(_)), "{path}");
        }
        let two = json!({"A": {"owner": owner, "key": "a", "file": "/secrets/a"},
                         "B": {"owner": owner, "key": "b", "file": "/secrets/a"}});
        assert!(matches!(refused(two), BadWish::SameFile(_)));
        let many: serde_json::Map<_, _> =
            (0..65).map(|n| (format!("V{n}"), json!({"owner": owner, "key": "a"}))).collect();
        assert!(matches!(refused(many.into()), BadWish::References(64)));
        let twice = wish(|apply| {
            apply["spec"]["env_names"] = json!(["A"]);
            apply["secrets"]["env"]["A"] = json!("x");
            apply["spec"]["vault"] = json!({"A": {"owner": owner, "key": "a"}});
        });
        assert_eq!(twice, Err(BadWish::EnvTwice("A".to_owned())));
    }

    #[test]
    fn limits_outside_their_range_are_refused() {
        for (name, value) in
            [("memory_mb", 1), ("open_files", 70_000), ("disk_mb", 0), ("milli_cpus", 9), ("pids", 7)]
        {
            assert!(wish(|apply| apply["spec"]["limits"] = json!({ name: value })).is_err(), "{name}");
        }
        assert_eq!(wish(|apply| apply["spec"]["idle_stop_s"] = json!(0)), Err(BadWish::Idle));
        assert_eq!(wish(|_| {}), Ok(()));
    }
}
