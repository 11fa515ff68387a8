//! Who sees a service: changing its scope, and telling those whom the change concerns.

use std::sync::Arc;

use catalog::access::{self, Action, Caller, Decision, Subject};
use catalog::quarantine;
use wire::peer::mesh::{McpDeployed, McpScopeChanged, McpUndeployed};
use wire::report::Lists;
use wire::{MemberId, Scope, ServiceKey};

use super::DeployError;
use crate::app::Broker;
use crate::commit::commit;
use crate::peer::events;
use crate::store::StoreError;
use crate::views::{MeshView, ServiceView};
use crate::{approvals, clock, describe};

/// Answers the scope that holds now.
///
/// # Errors
/// [`DeployError`].
pub async fn set_scope(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    service: &ServiceView,
    scope: Scope,
) -> Result<Scope, DeployError> {
    let before = service.scope();
    if *before == scope {
        return Ok(scope);
    }
    names_members(view, &scope)?;
    let action = Action::of_scope_change(before, &scope);
    match access::decide(caller, action, Some(service.subject())) {
        Decision::Allow => {}
        Decision::NotFound => return Err(DeployError::NotFound(service.name().to_string())),
        Decision::Forbidden if action == Action::Widen => {
            return Err(DeployError::Forbidden("only admins may show a service to more members"));
        }
        Decision::Forbidden => {
            return Err(DeployError::Forbidden("only who deployed it and admins may change its scope"));
        }
    }
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    let known = tx.services().set_scope(service.key(), before, &scope, clock::now_ms()).await;
    known.map_err(|error| match error {
        StoreError::Conflict => DeployError::Conflict,
        other => DeployError::Store(other),
    })?;
    if [before, &scope].contains(&&Scope::Peer) {
        approvals::approve_what_is_there(&mut tx, service.key(), &caller.member).await?;
    }
    commit(broker, &caller.mesh, tx).await?;
    // What is offered may have changed with it.
    let Ok(view) = broker.views.of(&caller.mesh).await else { return Ok(scope) };
    tell_change(broker, &view, caller, service.key(), (before, &scope)).await;
    Ok(scope)
}

/// A name that nobody has would belong to whoever joins under it.
pub(super) fn names_members(view: &MeshView, scope: &Scope) -> Result<(), DeployError> {
    let Scope::Peers { allow } = scope else { return Ok(()) };
    let is_member = |name: &&String| {
        view.callers().any(|c| c.display_name == **name || c.member.as_str() == name.as_str())
    };
    match allow.iter().find(|name| !is_member(name)) {
        Some(stranger) => Err(DeployError::NoSuchMember(crate::error::shown(stranger))),
        None => Ok(()),
    }
}

/// Those who gained sight hear `mcp_deployed`, those who lost it `mcp_undeployed`, everyone else who sees it
/// `mcp_scope_changed`; nobody else hears anything.
pub(super) async fn tell_change(
    broker: &Broker,
    view: &MeshView,
    caller: &Caller,
    key: &ServiceKey,
    (before, after): (&Scope, &Scope),
) {
    let Some(service) = view.service(key.name.as_str()) else { return };
    let subject = Subject { scope: after, ..service.subject() };
    let change = access::scope_change(before, subject, view.callers());
    let (name, by) = (key.name.to_string(), caller.display_name.clone());
    if describe::is_offered(service) {
        for (is_manager, lists) in [(true, service.lists()), (false, service.offered())] {
            let data = McpDeployed { scope: after.clone(), ..deployed_event(view, service, lists) };
            let gained = |member: &MemberId| {
                change.gained.contains(member) && manages(view, member, service) == is_manager
            };
            events::tell_members(&broker.presences, &key.mesh, ("mcp_deployed", &data), gained);
        }
    }
    let data = McpUndeployed { name: name.clone(), by: by.clone() };
    let lost = |member: &MemberId| change.lost.contains(member);
    events::tell_members(&broker.presences, &key.mesh, ("mcp_undeployed", &data), lost);
    let data = McpScopeChanged { name, scope: after.clone(), by };
    let kept = |member: &MemberId| {
        !change.gained.contains(member)
            && !change.lost.contains(member)
            && view.caller(member).is_some_and(|member| access::may_see(&member, subject))
    };
    events::tell_members(&broker.presences, &key.mesh, ("mcp_scope_changed", &data), kept);
}

/// Whether the quarantine of the service leaves this member out.
pub fn manages(view: &MeshView, member: &MemberId, service: &ServiceView) -> bool {
    view.caller(member).is_some_and(|caller| !quarantine::applies_to(&caller, service.subject()))
}

/// For those who may have `lists`.
pub fn deployed_event(view: &MeshView, service: &ServiceView, lists: Option<&Arc<Lists>>) -> McpDeployed {
    let tools = describe::tools(lists);
    McpDeployed {
        name: service.name().to_string(),
        description: describe::description(service, lists),
        tool_count: tools.len(),
        deployed_by: view.name_of(service.deployed_by()),
        scope: service.scope().clone(),
        tools,
    }
}
