//! What a mesh demands of the jail of every service, and of the age of what is installed.
//!
//! Here: reading it, and who may change it. Not here: holding it (the runner), giving it to the runner (`crate::reconcile`
//! compares it with what was applied).

use catalog::access::{self, Action, Caller, Decision};
use wire::peer::trust::MeshPolicy;
use wire::{ErrorCode, Policy};

use crate::app::Broker;
use crate::clock;
use crate::commit::commit;
use crate::error::FrameError;
use crate::store::Wanted;

/// A year.
const LONGEST_AGE_S: u64 = 365 * 24 * 3600;

/// Answers the policy that holds now; sets first what the frame gives.
///
/// # Errors
/// `forbidden` for who may not set it, `invalid_args`.
pub async fn read_or_set(broker: &Broker, caller: &Caller, frame: MeshPolicy) -> Result<Policy, FrameError> {
    let MeshPolicy { min_isolation, min_release_age_s } = frame;
    if min_isolation.is_none() && min_release_age_s.is_none() {
        return Ok(broker.views.of(&caller.mesh).await?.mesh().policy);
    }
    if access::decide(caller, Action::SetPolicy, None) != Decision::Allow {
        return Err(FrameError::new(ErrorCode::Forbidden, "only admins may change the policy of the mesh"));
    }
    if min_release_age_s.is_some_and(|age| age > LONGEST_AGE_S) {
        return Err(FrameError::invalid(format!("min_release_age_s: 0 to {LONGEST_AGE_S}")));
    }
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    let mesh = tx.meshes().find(&caller.mesh).await?;
    let before = mesh.ok_or_else(|| FrameError::new(ErrorCode::MeshNotFound, "no such mesh"))?.policy;
    let after = Policy {
        min_isolation: min_isolation.unwrap_or(before.min_isolation),
        min_release_age_s: min_release_age_s.unwrap_or(before.min_release_age_s),
    };
    if after == before {
        return Ok(after);
    }
    tx.policies().set(&caller.mesh, after).await?;
    // What failed by the old policy is tried by the new one.
    for service in tx.services().list(&caller.mesh).await? {
        let by_policy = |code| matches!(code, ErrorCode::IsolationUnavailable | ErrorCode::TooNew);
        let failed =
            service.failed.as_ref().filter(|_| service.has_failed() && service.wanted == Wanted::Running);
        if failed.is_some_and(|failed| by_policy(failed.reason.code)) {
            tx.services().set_wanted(&service.key, Wanted::Running, clock::now_ms()).await?;
        }
    }
    commit(broker, &caller.mesh, tx).await?;
    tell(caller, before, after);
    Ok(after)
}

fn tell(caller: &Caller, before: Policy, after: Policy) {
    let is_lower =
        after.min_isolation < before.min_isolation || after.min_release_age_s < before.min_release_age_s;
    let said = format!(
        "the policy of mesh {} was {}: min_isolation {} -> {}, min_release_age_s {} -> {}, by member {}",
        caller.mesh,
        if is_lower { "lowered" } else { "raised" },
        before.min_isolation,
        after.min_isolation,
        before.min_release_age_s,
        after.min_release_age_s,
        caller.member,
    );
    if is_lower {
        tracing::warn!(target: "audit", { mesh.id = %caller.mesh, member.id = %caller.member }, "{said}");
    } else {
        tracing::info!(target: "audit", { mesh.id = %caller.mesh, member.id = %caller.member }, "{said}");
    }
}
