//! What became of the connections of each service, over all lives of the runner.
//!
//! A report counts from the start of one life of the runner (its boot), so it is written as it is: the same report twice, or
//! an older one late, changes nothing. Bounds: [`KEPT_ROWS`] rows a service of what was let through and as many of what was
//! not, the newest, for [`KEPT_MS`]: a service that asks for ever new names does not wash out where it has been.
//! Not here: what is allowed (crate `egress`), who may read it (`crate::describe`).

use std::collections::{BTreeMap, BTreeSet};

use wire::ServiceKey;
use wire::report::{EgressDecision, Verdict};

use super::row::Place;
use super::{StoreError, Tx, execute, fetch_all};

/// Most rows of one service that were let through, and most that were refused.
pub const KEPT_ROWS: i64 = 500;
/// 30 days.
pub const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

pub struct Egress<'t> {
    pub(super) tx: &'t mut Tx,
}

const PUT: &str = "INSERT INTO egress_decision (mesh_id, name, boot, host, port, verdict, count, last_ms, sent_bytes, \
    received_bytes, injected) SELECT s.mesh_id, s.name, $3, $4, $5, $6, $7, $8, $9, $10, $11 \
    FROM service s WHERE s.mesh_id = $1 AND s.name = $2 \
    ON CONFLICT (mesh_id, name, boot, host, port, verdict) DO UPDATE SET count = excluded.count, \
    last_ms = excluded.last_ms, sent_bytes = excluded.sent_bytes, received_bytes = excluded.received_bytes, \
    injected = excluded.injected WHERE egress_decision.count <= excluded.count AND egress_decision.sent_bytes <= excluded.sent_bytes \
    AND egress_decision.received_bytes <= excluded.received_bytes AND egress_decision.injected <= excluded.injected";
const OF: &str = "SELECT boot, host, port, verdict, count, last_ms, sent_bytes, received_bytes, injected \
    FROM egress_decision \
    WHERE mesh_id = $1 AND name = $2";
const FORGET_OLD: &str = "DELETE FROM egress_decision WHERE mesh_id = $1 AND name = $2 AND last_ms < $3";
const FORGET_MANY: &str = "DELETE FROM egress_decision WHERE mesh_id = $1 AND name = $2 \
    AND CASE WHEN verdict IN ('allowed', 'learned') THEN 1 ELSE 0 END = $4 \
    AND (boot, host, port, verdict) NOT IN (SELECT e.boot, e.host, e.port, e.verdict FROM egress_decision e \
    WHERE e.mesh_id = $1 AND e.name = $2 AND CASE WHEN e.verdict IN ('allowed', 'learned') THEN 1 ELSE 0 END = $4 \
    ORDER BY e.last_ms DESC, e.boot, e.host, e.port, e.verdict LIMIT $3)";

/// What makes two decisions one line: host, port and verdict.
type Kind = (String, u16, Verdict);

/// One row: a decision in one life of the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    pub boot: String,
    pub decision: EgressDecision,
}

impl Egress<'_> {
    /// Takes in what the runner counted in its life `boot`. Answers the kinds that this service never had before.
    pub async fn record(
        &mut self,
        key: &ServiceKey,
        boot: &str,
        decisions: &[EgressDecision],
        at: i64,
    ) -> Result<Vec<EgressDecision>, StoreError> {
        let (mesh, name) = (key.mesh.as_str(), key.name.as_str());
        let rows = self.of(key).await?;
        let mut known: BTreeSet<Kind> = rows.iter().map(|counted| kind(&counted.decision)).collect();
        let is_written =
            |decision: &EgressDecision| rows.iter().any(|row| row.boot == boot && row.decision == *decision);
        let mut fresh = Vec::new();
        for decision in decisions.iter().filter(|decision| !is_written(decision)) {
            let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            let rows = execute!(
                &mut *self.tx,
                PUT,
                mesh,
                name,
                boot,
                decision.host.as_str(),
                i64::from(decision.port),
                decision.verdict.as_str(),
                count(decision.count),
                decision.last_ms,
                count(decision.sent_bytes),
                count(decision.received_bytes),
                count(decision.injected)
            )?;
            if known.insert(kind(decision)) && rows == 1 {
                fresh.push(decision.clone());
            }
        }
        execute!(&mut *self.tx, FORGET_OLD, mesh, name, at - KEPT_MS)?;
        for passed in [0_i64, 1] {
            execute!(&mut *self.tx, FORGET_MANY, mesh, name, KEPT_ROWS, passed)?;
        }
        Ok(fresh)
    }

    /// Every row of a service.
    pub async fn of(&mut self, key: &ServiceKey) -> Result<Vec<Counted>, StoreError> {
        let rows: Vec<EgressRow> = fetch_all!(&mut *self.tx, OF, key.mesh.as_str(), key.name.as_str())?;
        let id = key.to_string();
        let place = Place { table: "egress_decision", id: &id };
        rows.into_iter().map(|row| row.read(&place)).collect()
    }
}

/// Adds up what several lives of the runner counted; the newest last, at most `most` that were let through and `most` that
/// were not.
pub fn summed(rows: impl IntoIterator<Item = Counted>, most: usize) -> Vec<EgressDecision> {
    let mut sums: BTreeMap<Kind, EgressDecision> = BTreeMap::new();
    for Counted { boot: _, decision } in rows {
        let sum = sums.entry(kind(&decision)).or_insert_with(|| EgressDecision {
            count: 0,
            sent_bytes: 0,
            received_bytes: 0,
            injected: 0,
            ..decision.clone()
        });
        sum.count = sum.count.saturating_add(decision.count);
        sum.sent_bytes = sum.sent_bytes.saturating_add(decision.sent_bytes);
        sum.received_bytes = sum.received_bytes.saturating_add(decision.received_bytes);
        sum.injected = sum.injected.saturating_add(decision.injected);
        sum.last_ms = sum.last_ms.max(decision.last_ms);
    }
    let by_time = |mut all: Vec<EgressDecision>| {
        all.sort_by_key(|decision| decision.last_ms);
        all
    };
    let newest = |all: Vec<EgressDecision>| {
        let more = all.len().saturating_sub(most);
        by_time(all).split_off(more)
    };
    let (passed, refused) = sums.into_values().partition(|decision| decision.verdict.is_allowed());
    by_time([newest(passed), newest(refused)].concat())
}

fn kind(decision: &EgressDecision) -> Kind {
    (decision.host.clone(), decision.port, decision.verdict)
}

#[derive(sqlx::FromRow)]
struct EgressRow {
    boot: String,
    host: String,
    port: i64,
    verdict: String,
    count: i64,
    last_ms: i64,
    sent_bytes: i64,
    received_bytes: i64,
    injected: i64,
}

impl EgressRow {
    fn read(self, place: &Place<'_>) -> Result<Counted, StoreError> {
        let Self { boot, host, port, verdict, count, last_ms, sent_bytes, received_bytes, injected } = self;
        let positive = |column, n: i64| u64::try_from(n).map_err(|_| place.broken(column));
        let decision = EgressDecision {
            host,
            port: u16::try_from(port).map_err(|_| place.broken("port"))?,
            verdict: place.json("verdict", &format!("\"{verdict}\""))?,
            count: positive("count", count)?,
            last_ms,
            sent_bytes: positive("sent_bytes", sent_bytes)?,
            received_bytes: positive("received_bytes", received_bytes)?,
            injected: positive("injected", injected)?,
        };
        Ok(Counted { boot, decision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(boot: &str, host: &str, count: u64, last_ms: i64) -> Counted {
        let decision = EgressDecision {
            host: host.into(),
            port: 443,
            verdict: Verdict::NotListed,
            count,
            last_ms,
            sent_bytes: count,
            received_bytes: 0,
            injected: 0,
        };
        Counted { boot: boot.into(), decision }
    }

    #[test]
    fn lives_of_the_runner_are_added_up_and_the_newest_kept() {
        let rows = [
            counted("1", "a", 3, 10),
            counted("1", "b", 1, 30),
            counted("2", "a", 4, 20),
            counted("2", "c", 1, 5),
        ];
        let sums = summed(rows, 2);
        let short: Vec<_> =
            sums.iter().map(|d| (d.host.as_str(), d.count, d.sent_bytes, d.last_ms)).collect();
        assert_eq!(short, [("a", 7, 7, 20), ("b", 1, 1, 30)]);
    }

    #[test]
    fn what_was_let_through_is_shown_however_much_was_refused_since() {
        let mut rows: Vec<_> =
            (0..50_u8).map(|n| counted("1", &format!("h{n}"), 1, 100 + i64::from(n))).collect();
        rows[0].decision.verdict = Verdict::Allowed;
        let hosts: Vec<_> = summed(rows, 3).into_iter().map(|decision| decision.host).collect();
        assert_eq!(hosts, ["h0", "h47", "h48", "h49"]);
    }
}
