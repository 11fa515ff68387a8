//! Claims about consents.

use std::collections::BTreeMap;

use wire::spec::{ServiceSpec, Source};
use wire::vault::{RunAs, VaultRef};
use wire::{EgressRule, MeshId, ServiceName, Tier};

use super::*;
use crate::testing::{flipped_and_cut, member, mesh, name};

fn spec() -> ServiceSpec {
    let vault = VaultRef { owner: Some(member(1).public().clone()), key: name("token"), file: None };
    ServiceSpec {
        vault: BTreeMap::from([("TOKEN".to_owned(), vault)]),
        ..ServiceSpec::of(Source::Npx { package: "server".to_owned(), bin: None })
    }
}

fn full_pin() -> Pin {
    Pin {
        kind: "npm".to_owned(),
        name: "server".to_owned(),
        version: "1.2.3".to_owned(),
        integrity: "sha512-abc".to_owned(),
        artefact: "aa".repeat(32),
        lock: "{}".to_owned(),
    }
}

fn doc() -> ConsentDoc {
    ConsentDoc {
        v: 1,
        mesh: mesh('A'),
        service: ServiceName::parse("github").unwrap(),
        spec: spec(),
        pin: pin(&full_pin()),
        serial: 10,
        floor: 3,
        min_versions: BTreeMap::from([(name("token"), 2)]),
    }
}

fn signed_text(text: &str) -> Consent {
    let signer = member(1);
    let signature = signer.sign(&consent_statement(signer.public(), text));
    Consent { signer: signer.public().clone(), doc: text.to_owned(), signature }
}

#[test]
fn what_was_signed_is_what_is_read() {
    let consent = sign(&member(1), &doc());
    assert_eq!(consent.signer, *member(1).public());
    assert_eq!(check(&consent), Ok(doc()));
    let back: Consent = serde_json::from_str(&serde_json::to_string(&consent).unwrap()).unwrap();
    assert_eq!(check(&back), Ok(doc()));
}

#[test]
fn no_character_of_a_consent_may_change_and_no_other_may_claim_it() {
    let consent = sign(&member(1), &doc());
    // A sample, for it is long: each field has many.
    for doc in flipped_and_cut(&consent.doc).step_by(11) {
        assert_eq!(check(&Consent { doc, ..consent.clone() }), Err(Refused::Signature));
    }
    for signature in flipped_and_cut(&consent.signature) {
        assert_eq!(check(&Consent { signature, ..consent.clone() }), Err(Refused::Signature));
    }
    let claimed = Consent { signer: member(2).public().clone(), ..consent.clone() };
    assert_eq!(check(&claimed), Err(Refused::Signature));
    let spaced = Consent { doc: format!("{} ", consent.doc), ..consent };
    assert_eq!(check(&spaced), Err(Refused::Signature));
}

#[test]
fn a_signature_for_something_else_is_no_consent() {
    let signer = member(1);
    let doc = serde_json::to_string(&doc()).unwrap();
    for signed in [
        doc.clone(),
        format!("{CONSENT_PURPOSE}\n{doc}"),
        statement("claudemesh/vault/v1/entry", &[signer.public().as_str(), &doc]),
    ] {
        let consent =
            Consent { signer: signer.public().clone(), doc: doc.clone(), signature: signer.sign(&signed) };
        assert_eq!(check(&consent), Err(Refused::Signature));
    }
}

#[test]
fn a_document_that_is_not_understood_as_a_whole_is_refused() {
    let good = serde_json::to_value(doc()).unwrap();
    let with = |field: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[field] = value;
        changed.to_string()
    };
    check(&signed_text(&good.to_string())).expect("as it is");
    let caller = format!("github.{}", "U".repeat(32));
    for odd in [
        with("v", 2.into()),
        with("v", 0.into()),
        with("later", true.into()),
        with("floor", (-1).into()),
        with("floor", 11.into()),
        with("service", caller.into()),
        with("service", "../x".into()),
        with("mesh", "short".into()),
        with("spec", serde_json::Value::Null),
        with("spec", serde_json::json!({ "source": { "type": "npx", "package": "a" }, "later": 1 })),
        "{}".to_owned(),
        "[]".to_owned(),
        String::new(),
        "[".repeat(100_000),
        format!("{good}{good}"),
    ] {
        assert!(matches!(check(&signed_text(&odd)), Err(Refused::Form(_))), "{:.80}", odd);
    }
    for edge in [with("floor", 10.into()), with("floor", 0.into())] {
        check(&signed_text(&edge)).expect("the floor is between 0 and the serial");
    }
}

#[test]
fn a_consent_covers_exactly_the_service_that_was_signed() {
    let (doc, spec, pin) = (doc(), spec(), pin(&full_pin()));
    let covers = |mesh: &MeshId, service: &str, spec: &ServiceSpec, pin: &ConsentPin| {
        super::covers(&doc, &Wanted { mesh, service, spec, pin })
    };
    let here = mesh('A');
    assert!(covers(&here, "github", &spec, &pin));
    assert!(!covers(&mesh('B'), "github", &spec, &pin));
    assert!(!covers(&here, "github2", &spec, &pin));
    assert!(!covers(&here, &format!("github.{}", "U".repeat(32)), &spec, &pin));
}

#[test]
fn a_change_of_anything_in_the_spec_is_not_covered() {
    let (doc, here, pin) = (doc(), mesh('A'), pin(&full_pin()));
    let host = || vec![EgressRule::parse("evil.example").unwrap()];
    type Change = fn(&mut ServiceSpec);
    let changes: [(&str, Change); 14] = [
        ("source", |s| s.source = Source::Npx { package: "server@2".to_owned(), bin: None }),
        ("bin", |s| s.source = Source::Npx { package: "server".to_owned(), bin: Some("x".to_owned()) }),
        ("runtime", |s| s.runtime = Some(wire::spec::Runtime::Node)),
        ("args", |s| s.args = vec!["--dump-env".to_owned()]),
        ("entry", |s| s.entry = Some("x.js".to_owned())),
        ("env_names", |s| s.env_names = vec!["NODE_OPTIONS".to_owned()]),
        ("limits", |s| s.limits.memory_mb += 1),
        ("idle", |s| s.idle_stop_s = Some(1)),
        ("scripts", |s| s.allow_scripts = true),
        ("learn", |s| s.learn_until_ms = Some(1)),
        ("isolation", |s| s.isolation = Some(Tier::Strict)),
        ("run_as", |s| s.run_as = RunAs::Caller),
        ("unmasked", |s| s.unmasked_results = true),
        ("vault", |s| s.vault.values_mut().for_each(|r| r.file = Some("/secrets/x".to_owned()))),
    ];
    let is_covered =
        |spec: &ServiceSpec| covers(&doc, &Wanted { mesh: &here, service: "github", spec, pin: &pin });
    for (what, change) in changes {
        let mut changed = spec();
        change(&mut changed);
        assert!(!is_covered(&changed), "{what}");
    }
    assert!(!is_covered(&ServiceSpec { network: host(), ..spec() }));
    assert!(!is_covered(&ServiceSpec { inject: host(), ..spec() }));
    let renamed = BTreeMap::from([("OTHER".to_owned(), spec().vault["TOKEN"].clone())]);
    assert!(!is_covered(&ServiceSpec { vault: renamed, ..spec() }));
}

#[test]
fn other_code_is_not_covered_but_the_tools_of_another_runner_are() {
    let (doc, here, spec) = (doc(), mesh('A'), spec());
    let is_covered = |changed: Pin| {
        covers(&doc, &Wanted { mesh: &here, service: "github", spec: &spec, pin: &pin(&changed) })
    };
    assert!(is_covered(Pin { artefact: "bb".repeat(32), ..full_pin() }));
    for changed in [
        Pin { kind: "git".to_owned(), ..full_pin() },
        Pin { name: "servers".to_owned(), ..full_pin() },
        Pin { version: "1.2.4".to_owned(), ..full_pin() },
        Pin { integrity: "sha512-abd".to_owned(), ..full_pin() },
        Pin { lock: "{ }".to_owned(), ..full_pin() },
        Pin { lock: String::new(), ..full_pin() },
    ] {
        assert!(!is_covered(changed.clone()), "{changed:?}");
    }
    assert_eq!(pin(&Pin { lock: String::new(), ..full_pin() }).lock_sha256, "");
}

#[test]
fn each_owner_is_named_once_and_the_caller_only_where_there_is_one() {
    let reference = |seed: Option<u8>, key: &str| VaultRef {
        owner: seed.map(|seed| member(seed).public().clone()),
        key: name(key),
        file: None,
    };
    let vault = [(Some(2), "b"), (Some(1), "a"), (Some(2), "a"), (None, "c")]
        .into_iter()
        .enumerate()
        .map(|(at, (seed, key))| (format!("V{at}"), reference(seed, key)));
    let spec = ServiceSpec { vault: vault.collect(), ..spec() };
    let mut both = vec![member(1).public().clone(), member(2).public().clone()];
    both.sort();
    assert_eq!(owners(&spec, None), both);
    assert_eq!(owners(&spec, Some(member(2).public())), both);
    let mut three = [both, vec![member(3).public().clone()]].concat();
    three.sort();
    assert_eq!(owners(&spec, Some(member(3).public())), three);
    assert_eq!(owners(&ServiceSpec { vault: BTreeMap::new(), ..spec }, Some(member(3).public())), []);
}

#[test]
fn plain_variables_are_bound_by_a_digest_that_tells_nothing_without_its_salt() {
    let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, Secret> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect()
    };
    let mine = env(&[("URL", "https://a.example"), ("MODE", "x")]);
    let digest = env_digest("salt", &mine);
    for other in [
        env(&[("URL", "https://evil.example"), ("MODE", "x")]),
        env(&[("URL", "https://a.example")]),
        env(&[("URL", "https://a.exampleMODE"), ("MODE", "x")]),
        env(&[("UR", "Lhttps://a.example"), ("MODE", "x")]),
    ] {
        assert_ne!(env_digest("salt", &other), digest);
    }
    assert_ne!(env_digest("other", &mine), digest);
    let secrets = |env: &BTreeMap<String, Secret>, salt: Option<&str>| wire::spec::Secrets {
        env: env.clone(),
        env_salt: salt.map(Secret::new),
        git_token: None,
    };
    let bound = ServiceSpec { env_digest: Some(digest), ..spec() };
    assert!(
        is_env_of(&bound, &secrets(&mine, Some("salt"))) && is_env_of(&spec(), &secrets(&env(&[]), None))
    );
    assert!(
        !is_env_of(&bound, &secrets(&mine, None)) && !is_env_of(&bound, &secrets(&env(&[]), Some("salt")))
    );
    assert!(!is_env_of(&spec(), &secrets(&mine, Some("salt"))), "values that nobody signed");
}
