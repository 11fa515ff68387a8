//! What an instance gets of the vault, and what is masked in what it says.
//!
//! Here: opened values as variables and files, and which plain variables count as secrets. Not here: opening (see
//! [`crate::vault`]).
//! Invariant: a variable that refers to the vault is either what its owner sealed, or there is no instance.

use std::sync::Arc;

use egress::Veil;
use jail::SecretFile;
use vault::{Redactor, consent};
use wire::report::Reason;
use wire::runner::Apply;
use wire::spec::{Pin, ServiceSpec};
use wire::vault::ConsentDoc;
use wire::{ErrorCode, ServiceKey, Tier};

use crate::prepare::Prepared;
use crate::vault::{Start, Value, Vault, Why};

/// In the name of a plain variable: its value is masked like one of the vault.
const TELLTALE: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH"];

/// Whether this tier can show what the spec refers to.
pub fn fits(spec: &ServiceSpec, tier: Tier) -> Result<(), Reason> {
    let files: Vec<&str> = spec
        .vault
        .iter()
        .filter(|(_, reference)| reference.file.is_some())
        .map(|(name, _)| name.as_str())
        .collect();
    if tier == Tier::Strict || files.is_empty() {
        return Ok(());
    }
    let message = format!(
        "files of secrets need the strict jail, which this runner can not build: {}",
        files.join(", ")
    );
    Err(Reason { code: ErrorCode::IsolationUnavailable, message, stderr: vec![] })
}

/// The pin to prepare by. It comes from the broker, and its lock names code that no registry vouches for. So with secrets it
/// counts only when an owner of them has signed it for this service, in whatever state; else the source is resolved anew, and
/// what that gives has to be signed.
pub fn signed_pin<'a>(key: &ServiceKey, apply: &'a Apply) -> Option<&'a Pin> {
    let pin = apply.pin.as_ref()?;
    if apply.spec.vault.is_empty() {
        return Some(pin);
    }
    let named = consent::pin(pin);
    let owners = consent::owners(&apply.spec, apply.vault.caller.as_ref());
    let names_it = |doc: &ConsentDoc| {
        doc.mesh == key.mesh && doc.service.as_str() == key.name.plain() && doc.pin == named
    };
    let mut signed = apply.vault.consents.iter().filter(|one| owners.contains(&one.signer));
    signed.any(|one| consent::check(one).is_ok_and(|doc| names_it(&doc))).then_some(pin)
}

/// Opens what the spec refers to.
pub async fn open(
    vault: &Arc<Vault>,
    key: &ServiceKey,
    apply: &Arc<Apply>,
    prepared: &Arc<Prepared>,
    why: Why,
) -> Result<Vec<Value>, Reason> {
    if apply.spec.vault.is_empty() {
        return Ok(vec![]);
    }
    let (vault, key, apply, prepared) = (vault.clone(), key.clone(), apply.clone(), prepared.clone());
    let opened = tokio::task::spawn_blocking(move || {
        vault.open(&Start { key: &key, apply: &apply, pin: &prepared.pin, why })
    });
    let reason = |code, message| Reason { code, message, stderr: vec![] };
    match opened.await {
        Ok(opened) => opened.map_err(|e| reason(e.code(), e.to_string())),
        Err(_) => Err(reason(ErrorCode::Internal, "opening the secrets panicked".to_owned())),
    }
}

/// What masks the values in everything that the instance says. `env`: its plain variables.
pub fn redactor(values: &[Value], env: &[(String, String)]) -> Redactor {
    Redactor::new(all(values, env))
}

/// What masks them in the names of hosts.
pub fn veil(values: &[Value], env: &[(String, String)]) -> Veil {
    Veil::new(all(values, env))
}

fn all<'a>(values: &'a [Value], env: &'a [(String, String)]) -> impl Iterator<Item = &'a [u8]> {
    let plain = env.iter().filter(|(name, _)| is_telltale(name)).map(|(_, value)| value.as_bytes());
    values.iter().map(|value| value.bytes.as_slice()).chain(plain)
}

fn is_telltale(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    TELLTALE.iter().any(|sign| name.contains(sign))
}

/// The values as variables, and the files that some of them name.
pub fn place(values: Vec<Value>, env: &mut Vec<(String, String)>) -> Result<Vec<SecretFile>, Reason> {
    let mut files = vec![];
    for Value { variable, file, mut bytes } in values {
        let bytes = std::mem::take(&mut *bytes);
        match file {
            Some(path) => {
                env.push((variable, path.clone()));
                let file = SecretFile { path: path.into(), bytes };
                // Two variables may name one file; it is of one entry then.
                if files.iter().all(|other: &SecretFile| other.path != file.path) {
                    files.push(file);
                }
            }
            None => {
                let text = String::from_utf8(bytes).map_err(|e| {
                    drop(zeroize::Zeroizing::new(e.into_bytes()));
                    let message = format!("{variable}: the value is no text");
                    Reason { code: ErrorCode::VaultError, message, stderr: vec![] }
                })?;
                env.push((variable, text));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::testing::Person;

    #[test]
    fn plain_variables_that_sound_like_secrets_are_masked_and_others_are_not() {
        for name in ["API_KEY", "github_token", "AUTHORIZATION", "DB_PASSWORD", "AWS_SECRET"] {
            assert!(is_telltale(name), "{name}");
        }
        for name in ["LANG", "NODE_ENV", "BASE_URL"] {
            assert!(!is_telltale(name), "{name}");
        }
    }

    #[test]
    fn a_file_reference_makes_a_file_and_a_variable_that_names_it() {
        let value = |file: Option<&str>| Value {
            variable: "A".to_owned(),
            file: file.map(str::to_owned),
            bytes: b"${HOME}".to_vec().into(),
        };
        let mut env = vec![];
        let files = place(vec![value(None), value(Some("/secrets/a"))], &mut env).unwrap();
        let pair = |value: &str| ("A".to_owned(), value.to_owned());
        assert_eq!(env, [pair("${HOME}"), pair("/secrets/a")], "a value of the vault is not looked into");
        assert_eq!((files.len(), files[0].bytes.as_slice()), (1, &b"${HOME}"[..]));
    }

    #[test]
    fn a_lock_counts_only_when_an_owner_of_the_secrets_signed_it() {
        let (owner, stranger) = (Person::new(1), Person::new(2));
        let pin = |lock: &str| Pin {
            kind: "npm".into(),
            name: "p".into(),
            version: "1.0.0".into(),
            integrity: "sha512-x".into(),
            artefact: "aa".repeat(32),
            lock: lock.into(),
        };
        let source = wire::spec::Source::Npx { package: "p".into(), bin: None };
        let mut spec = ServiceSpec { args: vec!["new".into()], ..ServiceSpec::of(source) };
        let key = ServiceKey {
            mesh: wire::MeshId::parse(&"M".repeat(32)).unwrap(),
            name: wire::ServiceName::parse("app").unwrap(),
        };
        let agreed = |by: &Person, service: &str, pin: &Pin| {
            let doc = ConsentDoc {
                v: 1,
                mesh: key.mesh.clone(),
                service: wire::ServiceName::parse(service).unwrap(),
                // Another state of the service: its code is what counts.
                spec: ServiceSpec { args: vec!["old".into()], ..spec.clone() },
                pin: consent::pin(pin),
                serial: 1,
                floor: 0,
                min_versions: Default::default(),
            };
            consent::sign(by, &doc)
        };
        let good = agreed(&owner, "app", &pin("{}"));
        let offered = [
            (vec![], false),
            (vec![agreed(&stranger, "app", &pin("{}"))], false),
            (vec![agreed(&owner, "other", &pin("{}"))], false),
            (vec![agreed(&owner, "app", &pin("{\"evil\":1}"))], false),
            (vec![wire::vault::Consent { signature: "00".repeat(64), ..good.clone() }], false),
            (vec![good], true),
        ];
        let mut apply = |consents, is_secret: bool| {
            let reference = wire::vault::VaultRef::parse("$vault:t", Some(vault::Signer::public(&owner)));
            let vault = reference.into_iter().flatten().map(|one| ("T".to_owned(), one));
            spec.vault = if is_secret { vault.collect() } else { Default::default() };
            Apply {
                generation: wire::Generation(1),
                spec: spec.clone(),
                secrets: Default::default(),
                pin: Some(pin("{}")),
                proven: false,
                policy: Default::default(),
                vault: wire::vault::Material { consents, ..Default::default() },
            }
        };
        for (consents, counts) in offered {
            let apply = apply(consents, true);
            assert_eq!(signed_pin(&key, &apply).is_some(), counts);
        }
        assert!(
            signed_pin(&key, &apply(vec![], false)).is_some(),
            "without secrets it is the broker's to say"
        );
    }
}
