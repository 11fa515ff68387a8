//! Where a service may connect to: a changed list is a new generation with the same pin and secrets.
//!
//! Here: `mcp_network`, and what a redeploy without a list keeps. Not here: reading rules (`super::new_service`),
//! holding them (the runner).

use catalog::access::{Action, Caller};
use wire::egress::MAX_RULES;
use wire::peer::trust::McpNetwork;
use wire::spec::ServiceSpec;
use wire::{EgressRule, ServiceKey};

use super::new_service::network_rules;
use super::versions::{again, version_of};
use super::{Change, DeployError, Version, permitted, present};
use crate::app::Broker;
use crate::clock;
use crate::store::{Service, Tx};
use crate::views::MeshView;

const MINUTE_MS: i64 = 60_000;
const LONGEST_LESSON: u32 = 1440;

/// Adds rules, takes rules away, begins or ends learning.
///
/// # Errors
/// [`DeployError`].
pub async fn change_network(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    frame: &McpNetwork,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, &frame.server_name, Action::Update)?;
    let mut tx = broker.store.begin().await?;
    let row = present(&mut tx, service.key()).await?;
    let current = tx.generations().find(&row.key, row.target).await?.ok_or(DeployError::Conflict)?;
    // Who opens the network of a stopped service has not asked for it to run.
    let mut version = Version { starts: false, ..version_of(broker, &mut tx, current).await? };
    changed(&mut version.spec, frame, clock::now_ms())?;
    let change = again(broker, caller, tx, row, version).await?;
    tell(caller, service.key(), frame);
    Ok(change)
}

/// The rules are no secret and were read before: they are ASCII.
fn tell(caller: &Caller, key: &ServiceKey, frame: &McpNetwork) {
    let McpNetwork { server_name: _, allow, deny, learn_minutes } = frame;
    let learning = match learn_minutes {
        None => String::new(),
        Some(0) => ", learning ends".to_owned(),
        Some(minutes) => format!(", learning for {minutes} minutes"),
    };
    tracing::info!(
        target: "audit", { mesh.id = %key.mesh, service.name = %key.name, member.id = %caller.member },
        "member {} changes the network of {key}: allow [{}], deny [{}]{learning}",
        caller.member, allow.join(", "), deny.join(", ")
    );
}

/// A redeploy that names no list keeps that of the current target, and what is being learned.
pub(super) async fn keep(
    tx: &mut Tx,
    existing: Option<&Service>,
    spec: &mut ServiceSpec,
) -> Result<(), DeployError> {
    let Some(service) = existing else { return Ok(()) };
    let current = tx.generations().find(&service.key, service.target).await?.ok_or(DeployError::Conflict)?;
    spec.network = current.spec.network;
    spec.learn_until_ms = current.spec.learn_until_ms;
    Ok(())
}

fn changed(spec: &mut ServiceSpec, frame: &McpNetwork, now_ms: i64) -> Result<(), DeployError> {
    let McpNetwork { server_name: _, allow, deny, learn_minutes } = frame;
    let refuse = |message: String| Err(DeployError::Network(message));
    if allow.is_empty() && deny.is_empty() && learn_minutes.is_none() {
        return refuse("one of allow, deny and learn_minutes is needed".into());
    }
    let (allow, deny) = (network_rules("allow", allow)?, network_rules("deny", deny)?);
    if let Some(known) = allow.iter().find(|rule| spec.network.contains(rule)) {
        return refuse(format!("allow: `{known}` is allowed already"));
    }
    if let Some(unknown) = deny.iter().find(|rule| !spec.network.contains(rule)) {
        return refuse(format!("deny: `{unknown}` is not on the list{}", covering(&spec.network, unknown)));
    }
    spec.network.retain(|rule| !deny.contains(rule));
    spec.network.extend(allow);
    if spec.network.len() > MAX_RULES {
        return refuse(format!("allow: at most {MAX_RULES} rules"));
    }
    match *learn_minutes {
        None => {}
        Some(0) if spec.learn_until_ms.is_none() => {
            return refuse("learn_minutes: it is not learning".into());
        }
        Some(0) => spec.learn_until_ms = None,
        Some(minutes) if minutes <= LONGEST_LESSON => {
            spec.learn_until_ms = Some(now_ms + i64::from(minutes) * MINUTE_MS);
        }
        Some(_) => return refuse(format!("learn_minutes: 0 to {LONGEST_LESSON}")),
    }
    Ok(())
}

/// Whoever denies a host that a wildcard allows would think it is denied now.
fn covering(rules: &[EgressRule], rule: &EgressRule) -> String {
    let wire::egress::Host::Name(host) = &rule.host else { return String::new() };
    let wider = rules.iter().find(|known| known.covers(host, rule.port));
    wider.map_or_else(String::new, |wider| format!("; `{wider}` allows it"))
}

#[cfg(test)]
mod tests {
    use wire::spec::Source;

    use super::*;

    fn spec(rules: &[&str]) -> ServiceSpec {
        ServiceSpec {
            network: rules.iter().map(|rule| EgressRule::parse(rule).expect("a rule")).collect(),
            ..ServiceSpec::of(Source::Npx { package: "p".into(), bin: None })
        }
    }

    fn asked(allow: &[&str], deny: &[&str], learn_minutes: Option<u32>) -> McpNetwork {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        McpNetwork { server_name: "s".into(), allow: texts(allow), deny: texts(deny), learn_minutes }
    }

    #[test]
    fn rules_come_and_go_and_the_rest_stays() {
        let mut spec = spec(&["a.com", "b.com"]);
        changed(&mut spec, &asked(&["c.com:8443"], &["a.com"], None), 5).expect("changes");
        let now: Vec<_> = spec.network.iter().map(ToString::to_string).collect();
        assert_eq!((now, spec.learn_until_ms), (vec!["b.com:443".to_owned(), "c.com:8443".to_owned()], None));
    }

    #[test]
    fn learning_has_an_end_and_can_be_ended() {
        let mut spec = spec(&[]);
        changed(&mut spec, &asked(&[], &[], Some(10)), 5).expect("learns");
        assert_eq!(spec.learn_until_ms, Some(600_005));
        changed(&mut spec, &asked(&[], &[], Some(0)), 5).expect("ends");
        assert_eq!(spec.learn_until_ms, None);
    }

    #[test]
    fn what_changes_nothing_or_makes_no_sense_is_refused_with_its_field() {
        for (asked, says) in [
            (asked(&[], &[], None), "one of allow"),
            (asked(&["A.com:443"], &[], None), "allow: `a.com:443` is allowed already"),
            (asked(&[], &["c.com"], None), "deny: `c.com:443` is not on the list"),
            (
                asked(&[], &["x.d.com"], None),
                "deny: `x.d.com:443` is not on the list; `*.d.com:443` allows it",
            ),
            (asked(&["127.0.0.1"], &[], None), "allow: `127.0.0.1` is an address"),
            (asked(&[], &[], Some(1441)), "learn_minutes: 0 to 1440"),
            (asked(&[], &[], Some(0)), "learn_minutes: it is not learning"),
        ] {
            let before = spec(&["a.com", "*.d.com"]);
            let mut after = before.clone();
            let error = changed(&mut after, &asked, 5).expect_err("refused");
            assert!(error.to_string().starts_with(says), "{error}");
            assert_eq!(after, before);
        }
        let full: Vec<_> = (0..MAX_RULES).map(|n| format!("h{n}.example")).collect();
        let mut spec = spec(&full.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(changed(&mut spec, &asked(&["more.example"], &[], None), 5).is_err());
    }
}
