//! Telling peers what became of a service. Tools changed: those who may call it hear of it. Trouble: those who may see it.

use catalog::access::{may_call, may_see};
use wire::ServiceKey;
use wire::peer::mesh::{McpCrashed, McpUpdated};
use wire::report::GenerationReport;

use crate::app::Broker;
use crate::deploy::{deployed_event, manages};
use crate::describe;
use crate::peer::events;
use crate::views::MeshView;

/// Another version or other lists serve: `mcp_deployed` for a service that offered nothing before, else `mcp_updated`.
pub(super) async fn proven(broker: &Broker, key: &ServiceKey, before: Option<&MeshView>) {
    let Ok(view) = broker.views.of(&key.mesh).await else { return };
    let Some(service) = view.service(key.name.as_str()) else { return };
    let calls = |member: &wire::MemberId| {
        view.caller(member).is_some_and(|caller| may_call(&caller, service.subject()))
    };
    let old = before.and_then(|view| view.service(key.name.as_str())).filter(|old| old.lists().is_some());
    let previous = match old {
        None => None,
        Some(_) => previous_version(broker, key, service.target()).await,
    };
    for (is_manager, lists) in [(true, service.lists()), (false, service.offered())] {
        let hears = |member: &wire::MemberId| calls(member) && manages(&view, member, service) == is_manager;
        match old {
            None => {
                let data = deployed_event(&view, service, lists);
                events::tell_members(&broker.presences, &key.mesh, ("mcp_deployed", &data), hears);
            }
            Some(_) => {
                let data = McpUpdated {
                    name: service.name().to_string(),
                    prev_sha: previous.clone(),
                    new_sha: service.pin().map(|pin| pin.version.clone()),
                    tools: describe::tools(lists),
                };
                events::tell_members(&broker.presences, &key.mesh, ("mcp_updated", &data), hears);
            }
        }
    }
}

async fn previous_version(broker: &Broker, key: &ServiceKey, target: wire::Generation) -> Option<String> {
    let mut tx = broker.store.read().await.ok()?;
    let previous = tx.generations().previous_proven(key, target).await.ok()??;
    previous.pin.map(|pin| pin.version)
}

pub(super) async fn crashed(broker: &Broker, key: &ServiceKey, serving: &GenerationReport) {
    let Ok(view) = broker.views.of(&key.mesh).await else { return };
    let Some(service) = view.service(key.name.as_str()) else { return };
    let error =
        serving.reason.as_ref().map_or_else(|| "it ended".to_owned(), |reason| reason.message.clone());
    let reason = serving.reason.clone().map(|reason| wire::report::Reason { stderr: Vec::new(), ..reason });
    let data = McpCrashed { name: service.name().to_string(), error, restarts: serving.restarts, reason };
    let sees = |member: &wire::MemberId| {
        view.caller(member).is_some_and(|caller| may_see(&caller, service.subject()))
    };
    events::tell_members(&broker.presences, &key.mesh, ("mcp_crashed", &data), sees);
}
