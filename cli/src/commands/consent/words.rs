//! What somebody is asked to agree to, in words, and what has changed since they last did.

use std::collections::BTreeMap;

use wire::peer::trust::DriftChange;
use wire::spec::{ServiceSpec, Source};
use wire::vault::{ConsentAsk, ConsentDoc, ConsentPin, RunAs, VaultName};

use crate::commands::deploy::pin_text;
use crate::commands::drift::change_words;
use crate::out::bold;
use crate::plain::plain_line;
use crate::units;

/// Also when the broker does not show the last that was signed.
pub const NONE_BEFORE: &str = "there is no last signature of yours for this service to compare it with";

/// Everything, and the changes.
pub fn all(ask: &ConsentAsk, previous: Option<&ConsentDoc>) -> String {
    let mut lines =
        vec![bold(&format!("{} (generation {})", plain_line(ask.service.as_str()), ask.generation))];
    lines.extend(rows(ask).into_iter().map(|(name, text)| format!("  {name:<10}{text}")));
    let text =
        |spec: &ServiceSpec, pin: &ConsentPin| serde_json::json!({ "spec": spec, "pin": pin }).to_string();
    let (now, name) = (text(&ask.spec, &ask.pin), "consent".to_owned());
    lines.push(match previous.map(|doc| text(&doc.spec, &doc.pin)) {
        None => NONE_BEFORE.to_owned(),
        Some(before) if before == now => "the same as you signed before".to_owned(),
        Some(before) => {
            let change =
                DriftChange { kind: "your".to_owned(), name, before: Some(before), after: Some(now) };
            change_words(&change, None)
        }
    });
    lines.join("\n")
}

fn rows(ask: &ConsentAsk) -> Vec<(&'static str, String)> {
    let ConsentAsk { spec, pin, versions, .. } = ask;
    let list = |items: Vec<String>, empty: &str| {
        // Where one ends and the next begins must be seen.
        let quoted = items.iter().map(|item| match item.contains([' ', ',', '"', '\'']) || item.is_empty() {
            true => format!("{item:?}"),
            false => item.clone(),
        });
        match items.as_slice() {
            [] => empty.to_owned(),
            _ => plain_line(&quoted.collect::<Vec<_>>().join(", ")),
        }
    };
    let network = spec.network.iter().map(ToString::to_string).collect();
    let mut rows = vec![
        ("source", source(&spec.source)),
        (
            "code",
            format!("{} ({})", pin_text(&pin.kind, &pin.name, &pin.version), plain_line(&pin.integrity)),
        ),
        ("arguments", list(spec.args.clone(), "-")),
        ("variables", list(spec.env_names.clone(), "-")),
        ("secrets", secrets(spec, versions)),
        ("network", list(network, "nowhere")),
        (
            "run as",
            match spec.run_as {
                RunAs::Deployer => {
                    "deployer: one instance, which everybody who sees the service may call".to_owned()
                }
                RunAs::Caller => "caller: an instance of your own, which only you call".to_owned(),
            },
        ),
    ];
    let started =
        spec.entry.iter().cloned().chain(spec.runtime.map(|by| format!("by {by:?}").to_lowercase()));
    let started = started.collect::<Vec<_>>();
    if !started.is_empty() {
        rows.push(("starts", plain_line(&started.join(" "))));
    }
    if let Some(tier) = spec.isolation {
        rows.push(("jail", format!("{} or stronger", tier.as_str())));
    }
    if let Some(until) = spec.learn_until_ms {
        rows.push(("learning", format!("any public host until {}", units::moment(until, units::now_ms()))));
    }
    if !spec.inject.is_empty() {
        rows.push(("inject", list(spec.inject.iter().map(ToString::to_string).collect(), "-")));
    }
    if spec.allow_scripts {
        rows.push(("scripts", "install scripts of its packages run".to_owned()));
    }
    if spec.unmasked_results {
        rows.push(("results", "passed on as they are, with the secrets that are in them".to_owned()));
    }
    rows
}

/// `TOKEN ← github-token (version 3)`, also of a file.
pub fn secrets(spec: &ServiceSpec, versions: &BTreeMap<VaultName, i64>) -> String {
    if spec.vault.is_empty() {
        return "no secrets".to_owned();
    }
    let each = spec.vault.iter().map(|(variable, reference)| {
        let version = versions.get(&reference.key).map(|version| format!(" (version {version})"));
        let file = reference.file.as_ref().map(|path| format!(" at {path}"));
        let (file, version) = (file.unwrap_or_default(), version.unwrap_or_default());
        plain_line(&format!("{variable} ← {}{file}{version}", reference.key))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn source(source: &Source) -> String {
    let or_none = |what: &str, text: &Option<String>| {
        text.as_ref().map(|text| format!(" {what} {text}")).unwrap_or_default()
    };
    plain_line(&match source {
        Source::Npx { package, bin } => format!("npm {package}{}", or_none("executable", bin)),
        Source::Uvx { package, bin } => format!("pypi {package}{}", or_none("executable", bin)),
        Source::Git { url, reference, subdir } => {
            format!("git {url}{}{}", or_none("at", reference), or_none("folder", subdir))
        }
        Source::Archive { sha256, label, .. } => format!("archive {label} {sha256}"),
    })
}

#[cfg(test)]
mod tests {
    use wire::ServiceName;

    use super::*;

    #[test]
    fn hostile_texts_can_not_draw_their_own_card() {
        let ask = ConsentAsk {
            service: ServiceName::parse("svc").unwrap(),
            generation: 1,
            spec: ServiceSpec {
                args: vec!["x\n  network   nowhere\u{1b}[2J".into()],
                ..ServiceSpec::of(Source::Npx { package: "p\r".into(), bin: None })
            },
            pin: ConsentPin {
                kind: "npm".into(),
                name: "p\u{202e}".into(),
                version: "1\n".into(),
                integrity: "\u{1b}".into(),
                lock_sha256: String::new(),
            },
            versions: [].into(),
            previous: None,
        };
        let text = all(&ask, None);
        assert!(
            !text.chars().any(|c| (c.is_control() && c != '\n' && c != '\u{1b}') || c == '\u{202e}'),
            "{text:?}"
        );
        assert_eq!(text.matches("\n  network").count(), 1, "{text}");
    }
}
