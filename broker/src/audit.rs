//! What became of the connections of services: told in the log, kept, and shown to those who manage them.
//!
//! Here: one line for each kind of decision that a service never had before, and the sums over all lives of the runner.
//! Not here: deciding (crate `egress`), the table (`crate::store`), when reports are saved (`crate::reconcile`).

use std::collections::BTreeMap;

use catalog::access::Caller;
use catalog::quarantine;
use wire::ServiceKey;
use wire::report::EgressDecision;

use crate::app::Broker;
use crate::clock;
use crate::observed::Link;
use crate::store::{Counted, Store, StoreError, summed};
use crate::views::ServiceView;

/// Decisions that are shown of one service: that let it through, and that did not.
const SHOWN: usize = 100;
/// Lines about one service at a time: it can ask for ever new names, and must not fill the log.
const LINES: usize = 10;
/// A host name has at most 253 characters.
const MAX_HOST: usize = 253;

/// What the runner counted since it started, not written yet: by service and life of the runner.
pub(crate) type Unwritten = BTreeMap<(ServiceKey, String), Vec<EgressDecision>>;

/// Writes what the runner counted, and tells of each new kind of decision.
///
/// # Errors
/// [`StoreError`]; nothing was written then.
pub(crate) async fn keep(store: &Store, unwritten: &Unwritten) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    let mut fresh = Vec::new();
    for ((key, boot), decisions) in unwritten {
        fresh.push((key, tx.egress().record(key, boot, decisions, clock::now_ms()).await?));
    }
    tx.commit().await?;
    for (key, mut decisions) in fresh {
        // Where it got to is what must not be left out.
        decisions.sort_by_key(|decision| !decision.verdict.is_allowed());
        for EgressDecision { host, port, verdict, .. } in decisions.iter().take(LINES) {
            tracing::info!(
                target: "audit", { mesh.id = %key.mesh, service.name = %key.name },
                "{key} connects to {host}:{port}: {}", verdict.as_str()
            );
        }
        if decisions.len() > LINES {
            tracing::info!(
                target: "audit", { mesh.id = %key.mesh, service.name = %key.name },
                "{key} connects to {} hosts more than it did before", decisions.len() - LINES
            );
        }
    }
    Ok(())
}

/// The sums for somebody who manages the service, the newest last; empty for everybody else.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn egress(
    broker: &Broker,
    caller: &Caller,
    service: &ServiceView,
) -> Result<Vec<EgressDecision>, StoreError> {
    if quarantine::applies_to(caller, service.subject()) {
        return Ok(Vec::new());
    }
    let mut tx = broker.store.read().await?;
    let mut rows = tx.egress().of(service.key()).await?;
    drop(tx);
    // The store is a little behind: what the runner said of its present life replaces what was written of it.
    if let (Link::Up(health), Some(report)) = (broker.observed.link(), broker.observed.get(service.key())) {
        for decision in &report.egress {
            let is_it = |row: &Counted| row.boot == health.boot && is_same(&row.decision, decision);
            rows.retain(|row| !is_it(row));
            rows.push(Counted { boot: health.boot.clone(), decision: decision.clone() });
        }
    }
    Ok(summed(rows, SHOWN))
}

fn is_same(a: &EgressDecision, b: &EgressDecision) -> bool {
    (&a.host, a.port, a.verdict) == (&b.host, b.port, b.verdict)
}

/// The service chose this text, and people and databases read it: PostgreSQL takes no zero byte, terminals take too much.
pub(crate) fn printable(host: &str) -> String {
    host.chars().take(MAX_HOST).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_a_service_made_up_is_harmless() {
        assert_eq!(printable("a.com\0\u{1b}[2J\u{202e}é"), "a.com??[2J??");
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_HOST);
    }
}
