//! Whether what is to be signed is what was asked for.
//!
//! Here: a pure comparison. Not here: asking people, signing.
//! Invariant: silence is never agreement: what is neither stated in the command nor in the document that was signed before is
//! shown first.

use wire::EgressRule;
use wire::spec::{ServiceSpec, Source};
use wire::vault::{ConsentAsk, ConsentDoc, ConsentPin};

use super::words;

/// What a command asks of a service.
#[derive(Debug)]
pub enum Asked {
    /// All of it. `network: None` leaves that as it was.
    Service { spec: Box<ServiceSpec>, network: Option<Vec<EgressRule>> },
    /// What was signed before, with another network.
    Network { allow: Vec<EgressRule>, deny: Vec<EgressRule>, learn_minutes: Option<u32> },
    /// What was signed before, of another version.
    Update,
    /// What was signed before.
    Same,
    /// What an earlier version was: to be looked at.
    Earlier,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Judgement {
    AsAsked,
    /// It may be right, but nobody has said so: the reason.
    Unasked(String),
    /// It contradicts what was asked: the fields.
    Another(String),
}

/// Between the broker's clock and ours; a hello is refused beyond a minute.
const SKEW_MS: i64 = 90_000;
const MINUTE_MS: i64 = 60_000;

pub fn judge(asked: &Asked, ask: &ConsentAsk, previous: Option<&ConsentDoc>, now_ms: i64) -> Judgement {
    if let Asked::Service { spec, network } = asked {
        return of_service(spec, network.as_deref(), ask, previous);
    }
    let Some(previous) = previous else {
        return Judgement::Unasked(words::NONE_BEFORE.to_owned());
    };
    let mut expected = previous.spec.clone();
    let pin_may_change = matches!(asked, Asked::Update);
    match asked {
        Asked::Network { allow, deny, learn_minutes } => {
            expected.network.retain(|rule| !deny.contains(rule));
            expected
                .network
                .extend(allow.iter().filter(|rule| !previous.spec.network.contains(rule)).cloned());
            match learn_minutes {
                None => {}
                Some(0) => expected.learn_until_ms = None,
                Some(minutes) => {
                    let latest = now_ms + i64::from(*minutes) * MINUTE_MS + SKEW_MS;
                    expected.learn_until_ms = Some(latest.min(ask.spec.learn_until_ms.unwrap_or(latest)));
                }
            }
        }
        Asked::Earlier => return Judgement::Unasked("this is an earlier version of it".to_owned()),
        Asked::Update | Asked::Same | Asked::Service { .. } => {}
    }
    let fields = differing(&expected, &ask.spec);
    if !fields.is_empty() {
        return Judgement::Unasked(format!("more has changed since you signed it: {}", fields.join(", ")));
    }
    match ask.pin == previous.pin || (pin_may_change && is_update(&previous.pin, &ask.pin)) {
        true => Judgement::AsAsked,
        false => Judgement::Unasked("it is other code than you signed".to_owned()),
    }
}

/// Whether this is a later version of the same thing. One that is older, or of which that can't be told, is looked at: old
/// versions have known holes. Commits have no order; whose they are, the repository decides.
fn is_update(before: &ConsentPin, after: &ConsentPin) -> bool {
    let is_same = (&before.kind, &before.name) == (&after.kind, &after.name);
    let is_later = match after.kind.as_str() {
        "npm" | "pypi" if before.version == after.version => before.integrity == after.integrity,
        "npm" | "pypi" => numbers(&before.version).zip(numbers(&after.version)).is_some_and(|(b, a)| b < a),
        _ => true,
    };
    is_same && is_later
}

/// The numbers that a version begins with, without zeros at their end.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let end = version.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(version.len());
    let numbers = version[..end].trim_end_matches('.').split('.').map(|part| part.parse().ok());
    let mut numbers = numbers.collect::<Option<Vec<u64>>>()?;
    numbers.truncate(numbers.iter().rposition(|n| *n != 0).map_or(0, |last| last + 1));
    Some(numbers)
}

fn of_service(
    asked: &ServiceSpec,
    network: Option<&[EgressRule]>,
    ask: &ConsentAsk,
    previous: Option<&ConsentDoc>,
) -> Judgement {
    let mut expected = asked.clone();
    match network {
        Some(network) => expected.network = network.to_vec(),
        None => {
            expected.network.clone_from(&ask.spec.network);
            expected.learn_until_ms = ask.spec.learn_until_ms;
        }
    }
    let fields = differing(&expected, &ask.spec);
    if !fields.is_empty() {
        return Judgement::Another(fields.join(", "));
    }
    if let Some(why) = other_code(&ask.spec.source, &ask.pin) {
        return Judgement::Another(why);
    }
    let reaches_nothing = ask.spec.network.is_empty() && ask.spec.learn_until_ms.is_none();
    let is_known = previous.is_some_and(|doc| {
        doc.spec.network == ask.spec.network && doc.spec.learn_until_ms == ask.spec.learn_until_ms
    });
    match network.is_some() || reaches_nothing || is_known {
        true => Judgement::AsAsked,
        false => Judgement::Unasked("it keeps a network that you have not signed".to_owned()),
    }
}

/// Names of the fields that differ.
fn differing(a: &ServiceSpec, b: &ServiceSpec) -> Vec<String> {
    if a == b {
        return Vec::new();
    }
    let fields = |spec: &ServiceSpec| match serde_json::to_value(spec) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (a, b) = (fields(a), fields(b));
    let mut names: Vec<String> =
        a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).cloned().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        // They differ all the same: never taken for equal.
        names.push("spec".to_owned());
    }
    names
}

/// Why a pin can't be of this source. An exact version must be exactly that one; of a range the newest is for people to see.
fn other_code(source: &Source, pin: &ConsentPin) -> Option<String> {
    let is_of_it = match source {
        Source::Npx { package, .. } => {
            let (name, version) = npm(package);
            pin.kind == "npm" && pin.name == name && version.is_none_or(|exact| pin.version == exact)
        }
        Source::Uvx { package, .. } => {
            let (name, version) = pypi(package);
            pin.kind == "pypi"
                && normal(&pin.name) == normal(name)
                && version.is_none_or(|exact| pin.version == exact)
        }
        Source::Git { url, reference, .. } => {
            let is_commit = |text: &&String| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
            pin.kind == "git"
                && pin.name == *url
                && reference.as_ref().filter(is_commit).is_none_or(|commit| pin.version == *commit)
        }
        Source::Archive { sha256, .. } => pin.kind == "archive" && pin.version == *sha256,
    };
    (!is_of_it).then(|| format!("the code is {} {} {}", pin.kind, pin.name, pin.version))
}

/// `@scope/name@1.2.3`: the name, and the version when it is one and not a range or a tag.
fn npm(package: &str) -> (&str, Option<&str>) {
    match package.char_indices().skip(1).find(|(_, c)| *c == '@') {
        Some((at, _)) => (&package[..at], exact(&package[at + 1..], 3)),
        None => (package, None),
    }
}

/// With at least so many numbers; a pre-release is as exact as a release.
fn exact(version: &str, parts: usize) -> Option<&str> {
    let version = version.strip_prefix(['v', '=']).unwrap_or(version);
    let (numbers, rest) = version.split_at(version.find(['-', '+']).unwrap_or(version.len()));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_rest = rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'+'));
    let is_exact = numbers.split('.').count() >= parts && numbers.split('.').all(is_number) && is_rest;
    // npm leaves the build out of a version.
    is_exact.then(|| version.split('+').next().unwrap_or(version))
}

/// `name[extra]==1.2`, `name@1.2`.
fn pypi(package: &str) -> (&str, Option<&str>) {
    let end = package.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')));
    let name = &package[..end.unwrap_or(package.len())];
    // `1.2` also means `1.2.0`: only the full form is compared.
    let version =
        package.rsplit_once("==").or_else(|| package.rsplit_once('@')).map(|(_, version)| version.trim());
    (name, version.and_then(|version| exact(version, 3)))
}

/// PEP 503.
fn normal(name: &str) -> String {
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use wire::vault::VaultRef;
    use wire::{MeshId, PublicKey, ServiceName};

    use super::*;

    fn rule(text: &str) -> EgressRule {
        EgressRule::parse(text).unwrap()
    }

    fn spec() -> ServiceSpec {
        let owner = PublicKey::parse(&"ab".repeat(32)).unwrap();
        let reference = VaultRef::parse("$vault:token", Some(&owner)).unwrap().unwrap();
        ServiceSpec {
            vault: [("TOKEN".to_owned(), reference)].into(),
            ..ServiceSpec::of(Source::Npx { package: "p@^1".into(), bin: None })
        }
    }

    fn pin(version: &str) -> ConsentPin {
        ConsentPin {
            kind: "npm".into(),
            name: "p".into(),
            version: version.into(),
            integrity: "sha512-x".into(),
            lock_sha256: String::new(),
        }
    }

    fn ask(spec: ServiceSpec, version: &str) -> ConsentAsk {
        ConsentAsk {
            service: ServiceName::parse("svc").unwrap(),
            generation: 2,
            spec,
            pin: pin(version),
            versions: [].into(),
            previous: None,
        }
    }

    fn signed(spec: ServiceSpec) -> ConsentDoc {
        ConsentDoc {
            v: 1,
            mesh: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            service: ServiceName::parse("svc").unwrap(),
            spec,
            pin: pin("1.0.0"),
            serial: 5,
            floor: 0,
            min_versions: [].into(),
        }
    }

    fn deploy(network: Option<Vec<EgressRule>>) -> Asked {
        Asked::Service { spec: Box::new(spec()), network }
    }

    #[test]
    fn a_deploy_signs_exactly_what_was_stated() {
        assert_eq!(judge(&deploy(None), &ask(spec(), "1.2.3"), None, 0), Judgement::AsAsked);
        for change in [
            |spec: &mut ServiceSpec| spec.args.push("--evil".into()),
            |spec: &mut ServiceSpec| spec.source = Source::Npx { package: "evil".into(), bin: None },
            |spec: &mut ServiceSpec| drop(spec.vault.insert("X".into(), spec.vault["TOKEN"].clone())),
            |spec: &mut ServiceSpec| spec.unmasked_results = true,
            |spec: &mut ServiceSpec| spec.run_as = wire::vault::RunAs::Caller,
            |spec: &mut ServiceSpec| spec.env_names.push("X".into()),
            |spec: &mut ServiceSpec| spec.allow_scripts = true,
        ] {
            let mut changed = spec();
            change(&mut changed);
            let judged = judge(&deploy(None), &ask(changed, "1.2.3"), None, 0);
            assert!(matches!(judged, Judgement::Another(_)), "{judged:?}");
        }
    }

    #[test]
    fn a_network_that_was_named_is_signed_and_one_that_is_kept_only_when_it_was_signed_before() {
        let open = ServiceSpec { network: vec![rule("a.com")], ..spec() };
        let judged = |asked: &Asked, previous: Option<&ConsentDoc>| {
            judge(asked, &ask(open.clone(), "1.2.3"), previous, 0)
        };
        assert_eq!(judged(&deploy(Some(vec![rule("a.com")])), None), Judgement::AsAsked);
        assert!(matches!(judged(&deploy(Some(vec![])), None), Judgement::Another(_)));
        assert!(matches!(judged(&deploy(None), None), Judgement::Unasked(_)));
        assert_eq!(judged(&deploy(None), Some(&signed(open.clone()))), Judgement::AsAsked);
        assert!(matches!(judged(&deploy(None), Some(&signed(spec()))), Judgement::Unasked(_)));
        let learning = ServiceSpec { learn_until_ms: Some(i64::MAX), ..spec() };
        let judged = judge(&deploy(None), &ask(learning, "1.2.3"), None, 0);
        assert!(matches!(judged, Judgement::Unasked(_)), "{judged:?}");
    }

    #[test]
    fn an_update_signs_another_version_and_nothing_else() {
        let judged =
            |spec, version: &str| judge(&Asked::Update, &ask(spec, version), Some(&signed(self::spec())), 0);
        assert_eq!(judged(spec(), "1.9.0"), Judgement::AsAsked);
        let more = ServiceSpec { args: vec!["x".into()], ..spec() };
        assert_eq!(
            judged(more, "1.9.0"),
            Judgement::Unasked("more has changed since you signed it: args".into())
        );
        assert!(matches!(judge(&Asked::Update, &ask(spec(), "1.9.0"), None, 0), Judgement::Unasked(_)));
        for other in ["0.9.9", "1.0.0-rc.1", "1", "latest", ""] {
            assert!(matches!(judged(spec(), other), Judgement::Unasked(_)), "{other}");
        }
        let same_version = ConsentAsk {
            pin: ConsentPin { integrity: "sha512-y".into(), ..pin("1.0.0") },
            ..ask(spec(), "")
        };
        let judged = judge(&Asked::Update, &same_version, Some(&signed(spec())), 0);
        assert!(matches!(judged, Judgement::Unasked(_)), "other bytes of the same version: {judged:?}");
        let judged = judge(&Asked::Same, &ask(spec(), "1.9.0"), Some(&signed(spec())), 0);
        assert!(matches!(judged, Judgement::Unasked(_)), "a start is no update: {judged:?}");
    }

    #[test]
    fn allow_deny_and_learn_sign_that_rule_and_that_time_and_no_more() {
        let before = ServiceSpec { network: vec![rule("a.com")], ..spec() };
        let judged = |asked: &Asked, network: &[&str], learn_until_ms| {
            let network = network.iter().map(|text| rule(text)).collect();
            let after = ServiceSpec { network, learn_until_ms, ..spec() };
            judge(asked, &ask(after, "1.0.0"), Some(&signed(before.clone())), 0) == Judgement::AsAsked
        };
        let asked = |allow: &[&str], deny: &[&str], learn_minutes| Asked::Network {
            allow: allow.iter().map(|text| rule(text)).collect(),
            deny: deny.iter().map(|text| rule(text)).collect(),
            learn_minutes,
        };
        assert!(judged(&asked(&["b.com"], &[], None), &["a.com", "b.com"], None));
        assert!(!judged(&asked(&["b.com"], &[], None), &["a.com", "b.com", "evil.com"], None));
        assert!(judged(&asked(&[], &["a.com"], None), &[], None));
        assert!(!judged(&asked(&[], &["a.com"], None), &["a.com"], None));
        assert!(judged(&asked(&[], &[], Some(10)), &["a.com"], Some(600_000)));
        assert!(!judged(&asked(&[], &[], Some(10)), &["a.com"], Some(6_000_000)));
        assert!(!judged(&asked(&[], &[], Some(10)), &["a.com"], None));
        assert!(!judged(&asked(&["b.com"], &[], None), &["a.com", "b.com"], Some(600_000)));
        assert!(judged(&asked(&[], &[], Some(0)), &["a.com"], None));
    }

    #[test]
    fn a_rollback_is_always_looked_at() {
        let judged = judge(&Asked::Earlier, &ask(spec(), "1.0.0"), Some(&signed(spec())), 0);
        assert!(matches!(judged, Judgement::Unasked(_)));
    }

    #[test]
    fn a_pin_must_be_of_its_source() {
        let of = |kind: &str, name: &str, version: &str| ConsentPin {
            kind: kind.into(),
            name: name.into(),
            ..pin(version)
        };
        let npx = |package: &str| Source::Npx { package: package.into(), bin: None };
        let uvx = |package: &str| Source::Uvx { package: package.into(), bin: None };
        let git = |reference: Option<&str>| Source::Git {
            url: "https://x/y".into(),
            reference: reference.map(str::to_owned),
            subdir: None,
        };
        let commit = "a".repeat(40);
        for (source, pin, fits) in [
            (npx("@a/b@1.2.3"), of("npm", "@a/b", "1.2.3"), true),
            (npx("@a/b@1.2.3"), of("npm", "@a/b", "1.2.4"), false),
            (npx("@a/b@^1"), of("npm", "@a/b", "1.2.4"), true),
            (npx("b"), of("npm", "c", "1.2.4"), false),
            (npx("b@1.2.3-rc.1"), of("npm", "b", "1.2.3-rc.2"), false),
            (npx("b@v1.2.3-rc.1+x"), of("npm", "b", "1.2.3-rc.1"), true),
            (npx("b@1.2.x"), of("npm", "b", "1.2.4"), true),
            (npx("b"), of("pypi", "b", "1.2.4"), false),
            (uvx("My_Pkg[x]==1.2.0"), of("pypi", "my-pkg", "1.2.0"), true),
            (uvx("pkg==1.2.0"), of("pypi", "pkg", "1.2.1"), false),
            (uvx("pkg@1.2"), of("pypi", "pkg", "1.2.0"), true),
            (git(None), of("git", "https://x/y", &commit), true),
            (git(Some(&commit)), of("git", "https://x/y", &"b".repeat(40)), false),
            (git(None), of("git", "https://evil/y", &commit), false),
        ] {
            assert_eq!(other_code(&source, &pin).is_none(), fits, "{source:?} {pin:?}");
        }
    }
}
