//! What of a service was approved, and what changed since.
//!
//! Here: what is approved by itself when a service lists something or its scope changes, the drift for those who manage it,
//! and `mcp_approve`. Not here: the rule (`catalog::quarantine`), withholding (`crate::views`).
//! Invariant: lists and their approval change in one transaction, in which the scope is read with the mesh's turn taken;
//! so nothing slips through while a scope is being widened.

use catalog::access::{self, Action, Caller, Decision};
use catalog::quarantine::{self, Item, Kind};
use serde::Serialize;
use wire::peer::mesh::McpUpdated;
use wire::peer::trust::Drift;
use wire::report::Lists;
use wire::spec::ServiceSpec;
use wire::{ErrorCode, MemberId, RawJson, ServiceKey};

use crate::app::Broker;
use crate::commit::commit;
use crate::deploy;
use crate::error::FrameError;
use crate::peer::events;
use crate::store::{StoreError, StoredGeneration, Tx};
use crate::views::{MeshView, ServiceView};
use crate::{clock, describe};

/// Of all changed definitions together.
const SHOWN_BYTES: usize = 1 << 20;

/// What the deployment is bound to. A pin's artefact and lock follow from the rest.
fn spec_item(generation: &StoredGeneration) -> Option<Item> {
    #[derive(Serialize)]
    struct Bound<'a> {
        spec: &'a ServiceSpec,
        version: Option<&'a str>,
        integrity: Option<&'a str>,
    }
    let pin = generation.pin.as_ref();
    let bound = Bound {
        spec: &generation.spec,
        version: pin.map(|pin| pin.version.as_str()),
        integrity: pin.map(|pin| pin.integrity.as_str()),
    };
    let raw: RawJson = serde_json::value::to_raw_value(&bound).ok()?;
    Some(Item::spec(&raw))
}

fn items(lists: &Lists, generation: &StoredGeneration) -> Vec<Item> {
    quarantine::items(lists).into_iter().chain(spec_item(generation)).collect()
}

/// A service has listed something, which was just written in `tx` after the mesh's turn was taken.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn listed(tx: &mut Tx, key: &ServiceKey, lists: &Lists) -> Result<(), StoreError> {
    let Some(row) = tx.services().find(key).await? else { return Ok(()) };
    let Some(generation) = tx.generations().find(key, lists.generation).await? else { return Ok(()) };
    let approved = tx.approvals().get(key).await?;
    let by = &generation.deployed_by;
    let now = clock::now_ms();
    if quarantine::approves_itself(approved.as_ref().map(|approval| &*approval.items), &row.scope) {
        tx.approvals().put(key, &items(lists, &generation), by, now).await?;
        return Ok(());
    }
    if let Some(approval) = approved.filter(|_| *by == row.deployed_by) {
        // Their own deploy approves what it is bound to; what the server says of itself is another matter.
        let said = approval.items.into_iter().filter(|item| item.kind != Kind::Spec);
        let items: Vec<_> = said.chain(spec_item(&generation)).collect();
        tx.approvals().put(key, &items, by, now).await?;
    }
    Ok(())
}

/// The scope of a service changes from or to its deployer's own: nobody else was affected, or nobody else is.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn approve_what_is_there(
    tx: &mut Tx,
    key: &ServiceKey,
    by: &MemberId,
) -> Result<(), StoreError> {
    if let Some(present) = present(tx, key).await? {
        tx.approvals().put(key, &present, by, clock::now_ms()).await?;
    }
    Ok(())
}

/// Everything that is there to be approved; `None` before the first lists.
async fn present(tx: &mut Tx, key: &ServiceKey) -> Result<Option<Vec<Item>>, StoreError> {
    let Some(listing) = tx.lists().get(key).await? else { return Ok(None) };
    let Some(generation) = tx.generations().find(key, listing.lists.generation).await? else {
        return Ok(None);
    };
    Ok(Some(items(&listing.lists, &generation)))
}

async fn present_drift(tx: &mut Tx, key: &ServiceKey) -> Result<Option<(Drift, Vec<Item>)>, StoreError> {
    let approved = tx.approvals().get(key).await?.map(|approval| approval.items).unwrap_or_default();
    let Some(present) = present(tx, key).await? else { return Ok(None) };
    Ok(quarantine::drift_of(&approved, &present).map(|drift| (drift, present)))
}

/// What changed since it was approved, for somebody who manages the service; `None` for everybody else.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn drift(
    broker: &Broker,
    caller: &Caller,
    service: &ServiceView,
) -> Result<Option<Drift>, StoreError> {
    if quarantine::applies_to(caller, service.subject()) {
        return Ok(None);
    }
    let mut tx = broker.store.read().await?;
    Ok(present_drift(&mut tx, service.key()).await?.map(|(drift, _)| readable(drift)))
}

/// A server chooses how long its texts are, and must not be able to make its own status too large to be sent. The digest is
/// of the whole texts.
fn readable(mut drift: Drift) -> Drift {
    let texts = drift.changes.iter().flat_map(|change| [&change.before, &change.after]).flatten();
    let each = fair_share(texts.map(String::len).collect(), SHOWN_BYTES);
    for change in &mut drift.changes {
        change.name = describe::cut(&change.name, describe::LONG_NAME);
        for text in [&mut change.before, &mut change.after].into_iter().flatten() {
            *text = describe::cut(text, each);
        }
    }
    drift
}

/// How long a text may be, so that all fit: what the short ones leave belongs to the long ones.
fn fair_share(mut lengths: Vec<usize>, mut room: usize) -> usize {
    lengths.sort_unstable();
    let all = lengths.len();
    for (at, length) in lengths.into_iter().enumerate() {
        let share = room / (all - at);
        if length > share {
            return share;
        }
        room -= length;
    }
    usize::MAX
}

/// Approves exactly the drift that the caller saw; then it is offered to everybody in the scope.
///
/// # Errors
/// `not_found`, `forbidden`, or `conflict` when the drift is another one, or none.
pub(crate) async fn approve(
    broker: &Broker,
    caller: &Caller,
    service: &ServiceView,
    digest: &str,
) -> Result<(), FrameError> {
    match access::decide(caller, Action::Update, Some(service.subject())) {
        Decision::Allow => {}
        Decision::NotFound => return Err(FrameError::not_found(service.name().as_str())),
        Decision::Forbidden => {
            let message = "only who deployed it and admins may approve what changed";
            return Err(FrameError::new(ErrorCode::Forbidden, message));
        }
    }
    let key = service.key();
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&key.mesh).await?;
    let conflict = |message| FrameError::new(ErrorCode::Conflict, message);
    let (drift, present) =
        present_drift(&mut tx, key).await?.ok_or_else(|| conflict("nothing of it waits to be approved"))?;
    if drift.digest != digest {
        return Err(conflict("it has changed again since you looked; look at it once more"));
    }
    tx.approvals().put(key, &present, &caller.member, clock::now_ms()).await?;
    commit(broker, &key.mesh, tx).await?;
    tracing::info!(
        target: "audit", { mesh.id = %key.mesh, service.name = %key.name, member.id = %caller.member },
        "{} changes of {key} approved", drift.changes.len()
    );
    if let Ok(view) = broker.views.of(&key.mesh).await {
        tell(broker, &view, key);
    }
    Ok(())
}

/// Those who got something that was withheld from them hear of it as of an update.
fn tell(broker: &Broker, view: &MeshView, key: &ServiceKey) {
    let Some(service) = view.service(key.name.as_str()).filter(|service| describe::is_offered(service))
    else {
        return;
    };
    let data = McpUpdated {
        name: service.name().to_string(),
        prev_sha: None,
        new_sha: service.pin().map(|pin| pin.version.clone()),
        tools: describe::tools(service.offered()),
    };
    let hears = |member: &MemberId| {
        let calls = view.caller(member).is_some_and(|caller| access::may_call(&caller, service.subject()));
        calls && !deploy::manages(view, member, service)
    };
    events::tell_members(&broker.presences, &key.mesh, ("mcp_updated", &data), hears);
}

#[cfg(test)]
mod tests {
    use wire::peer::trust::DriftChange;

    use super::*;

    #[test]
    fn a_status_can_be_sent_however_long_a_servers_texts_are() {
        let long = "x".repeat(4 << 20);
        let change = DriftChange { kind: "tool".into(), name: long.clone(), before: Some(long), after: None };
        let short =
            DriftChange { kind: "tool".into(), name: "a".into(), before: None, after: Some("{}".into()) };
        let shown = readable(Drift { digest: "d".into(), changes: vec![change, short.clone()] });
        assert!(serde_json::to_string(&shown).expect("JSON").len() <= SHOWN_BYTES + 1000);
        assert_eq!((&shown.changes[1], shown.digest.as_str()), (&short, "d"));
    }

    #[test]
    fn nothing_is_cut_that_would_fit() {
        assert_eq!(fair_share(vec![3, 3, 4], 10), usize::MAX);
        assert_eq!(fair_share(vec![100, 2, 100], 10), 4);
        assert_eq!(fair_share(vec![], 10), usize::MAX);
    }
}
