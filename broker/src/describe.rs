//! How services look to a caller: catalog rows, status cards, schemas, and the offers of `hello_ack`.
//!
//! Here: pure functions from what is wanted (`views`) and what was observed to frames. Not here: who may see it.

use std::sync::Arc;

use catalog::access::{self, Action, Caller, Decision};
use catalog::drift;
use serde::Deserialize;
use wire::peer::hosting::{FailedUpdate, McpSchemaResult, ServiceOffer, ServiceStatus};
use wire::peer::trust::Suspicion;
use wire::report::{GenerationReport, Lists, Phase, Reason, ServiceReport};
use wire::spec::{Pin, Source};
use wire::{ErrorCode, Generation};

use crate::clock;
use crate::observed::Observed;
use crate::views::{MeshView, ServiceView};

/// Bytes of a name that are shown where it may be repeated.
pub const LONG_NAME: usize = 128;

/// The services that the caller may call, with their tools. Also those that are asleep or restarting: a call wakes them.
pub fn offers(observed: &Observed, view: &MeshView, caller: &Caller) -> Vec<ServiceOffer> {
    view.services()
        .filter(|service| access::may_call(caller, service.subject()) && is_offered(service))
        .map(|service| ServiceOffer {
            name: service.name().to_string(),
            description: description(service, service.lists_for(caller)),
            status: phase(service, observed.get(service.key()).as_deref()).status().into(),
            tools: tools(service.lists_for(caller)),
            deployed_by: view.name_of(service.deployed_by()),
        })
        .collect()
}

/// Whether it has ever been ready and people want it to run.
pub fn is_offered(service: &ServiceView) -> bool {
    service.lists().is_some() && !service.is_stopped() && service.failure().is_none()
}

/// One service, without what has to be read from the store ([`crate::approvals`], [`crate::audit`]).
pub fn status(observed: &Observed, view: &MeshView, caller: &Caller, service: &ServiceView) -> ServiceStatus {
    let report = observed.get(service.key());
    let shown = report.as_deref().and_then(current);
    let row = service.row();
    let manageable = access::decide(caller, Action::Update, Some(service.subject())) == Decision::Allow;
    let failed = row.failed.as_ref().filter(|_| !row.has_failed());
    let failed = failed.map(|failed| (failed.generation, &failed.reason));
    let failed_update = failed.or(report.as_deref().and_then(held_back)).map(|(generation, reason)| {
        FailedUpdate { generation: generation.0, reason: redacted(reason, manageable) }
    });
    let spec = service.spec();
    let lists = service.lists_for(caller);
    let held = service.quarantine_for(caller);
    let is_shown = |found: &&Suspicion| held.is_none_or(|held| !held.holds_tool(&found.tool));
    // A server may call a tool whatever it likes, at any length, and many suspicions repeat the name.
    let named = |found: &Suspicion| Suspicion { tool: cut(&found.tool, LONG_NAME), what: found.what.clone() };
    let suspicions = service.suspicions().iter().filter(is_shown).map(named).collect();
    ServiceStatus {
        name: service.name().to_string(),
        kind: "mcp".into(),
        description: description(service, lists),
        status: phase(service, report.as_deref()).status().into(),
        tool_count: lists.map_or(0, |lists| lists.tools.len()),
        deployed_by: view.name_of(service.deployed_by()),
        scope: service.scope().clone(),
        source_type: source_type(&spec.source).into(),
        runtime: spec.runtime,
        created_at: clock::iso(row.created_at),
        phase: phase(service, report.as_deref()).as_str().into(),
        generation: service.target().0,
        reason: reason(observed, service, shown).map(|reason| redacted(&reason, manageable)),
        last_fall: shown
            .and_then(|generation| generation.last_fall.as_ref())
            .map(|reason| redacted(reason, manageable)),
        failed_update,
        pin: service.pin().map(shown_pin),
        source: source_line(&spec.source, service.pin()),
        env_names: if manageable { spec.env_names.clone() } else { Vec::new() },
        vault: Vec::new(),
        run_as: spec.run_as,
        inject: if manageable { spec.inject.clone() } else { Vec::new() },
        unmasked_results: spec.unmasked_results,
        args: if manageable { spec.args.clone() } else { Vec::new() },
        restarts: shown.map_or(0, |generation| generation.restarts),
        usage: shown.and_then(|generation| generation.usage),
        limits: spec.limits,
        tier: shown.and_then(|generation| generation.tier),
        network: if manageable { spec.network.clone() } else { Vec::new() },
        learning_until: spec.learn_until_ms.filter(|until| *until > clock::now_ms()).map(clock::iso),
        egress: Vec::new(),
        drift: None,
        suspicions,
        ready_since: shown.and_then(|generation| generation.ready_since_ms).map(clock::iso),
        pid: shown.filter(|_| manageable).and_then(|generation| generation.pid),
        updated_at: clock::iso(row.updated_at),
        manageable,
    }
}

/// What the last ready instance listed, as far as the caller may have it.
pub fn schema(service: &ServiceView, caller: &Caller, tool: Option<&str>) -> McpSchemaResult {
    let server_name = service.name().to_string();
    let Some(lists) = service.lists_for(caller) else {
        return McpSchemaResult { server_name, ..McpSchemaResult::default() };
    };
    let named = lists.tools.iter().map(|raw| (drift::tool_name(raw).unwrap_or_default(), raw));
    let wanted = named.filter(|(name, _)| tool.is_none_or(|tool| tool == name));
    let (names, tools) =
        wanted.map(|(name, raw)| (catalog::names::svc_name(service.name(), &name), raw.clone())).unzip();
    McpSchemaResult {
        server_name,
        tools,
        names,
        prompts: lists.prompts.clone(),
        resources: lists.resources.clone(),
        resource_templates: lists.resource_templates.clone(),
        server_info: Some(lists.server_info.clone()),
        capabilities: Some(lists.capabilities.clone()),
        instructions: lists.instructions.clone(),
        protocol: Some(lists.protocol.clone()),
    }
}

/// Without the tools and prompts that have no name, or two: what is withheld and what is called is told by the name.
pub fn named_only(mut lists: Lists) -> Lists {
    for definitions in [&mut lists.tools, &mut lists.prompts] {
        definitions.retain(|raw| drift::tool_name(raw).is_some());
    }
    lists
}

/// The names of the tools, in order; a definition without one counts as empty.
pub fn tool_names(lists: &Lists) -> Vec<String> {
    lists.tools.iter().map(|raw| drift::tool_name(raw).unwrap_or_default()).collect()
}

/// What the server says about itself, else what the original said about every one.
pub fn description(service: &ServiceView, lists: Option<&Arc<Lists>>) -> String {
    #[derive(Deserialize)]
    struct ServerInfo {
        #[serde(default)]
        title: Option<String>,
        #[serde(default)]
        description: Option<String>,
    }
    let info = lists.and_then(|l| serde_json::from_str::<ServerInfo>(l.server_info.get()).ok());
    let own = info.and_then(|info| info.description.or(info.title)).filter(|text| !text.is_empty());
    own.unwrap_or_else(|| format!("MCP server: {}", service.name()))
}

/// The generation that people see: what serves, else what is on its way.
pub fn current(report: &ServiceReport) -> Option<&GenerationReport> {
    report.serving.as_ref().or(report.candidate.as_ref())
}

/// The version that waits for its secrets, while an older one serves.
fn held_back(report: &ServiceReport) -> Option<(Generation, &Reason)> {
    report.serving.as_ref()?;
    let candidate = report.candidate.as_ref().filter(|candidate| candidate.phase == Phase::Waiting)?;
    Some((candidate.generation, candidate.reason.as_ref()?))
}

/// Where the service is in its life, from the wish first: a stopped service is stopped whatever was seen last.
pub fn phase(service: &ServiceView, report: Option<&ServiceReport>) -> Phase {
    let seen = report.and_then(current).map(|generation| generation.phase);
    match seen {
        Some(phase @ Phase::Stopping) if service.is_stopped() => phase,
        _ if service.is_stopped() => Phase::Stopped,
        _ if service.failure().is_some() => Phase::Failed,
        // Wanted, and not with the runner yet.
        Some(Phase::Stopped | Phase::Failed) | None if service.is_proven() => Phase::Starting,
        Some(Phase::Stopped | Phase::Failed) | None => Phase::Fetching,
        Some(phase) => phase,
    }
}

fn reason(observed: &Observed, service: &ServiceView, shown: Option<&GenerationReport>) -> Option<Reason> {
    if let Some(reason) = service.failure() {
        return Some(reason.clone());
    }
    if service.is_stopped() {
        return None;
    }
    if let Some(trouble) = observed.trouble(service.key()) {
        return Some(trouble);
    }
    if !observed.link().is_up() {
        let message = "the runner is not connected; this is the last known state".to_owned();
        return Some(Reason { code: ErrorCode::RunnerUnavailable, message, stderr: Vec::new() });
    }
    shown.and_then(|generation| generation.reason.clone())
}

/// A pin for people. Its lock is tens of KiB that only a runner reads; the generation keeps it.
pub fn shown_pin(pin: &Pin) -> Pin {
    let Pin { kind, name, version, integrity, artefact, lock: _ } = pin;
    Pin {
        kind: kind.clone(),
        name: name.clone(),
        version: version.clone(),
        integrity: integrity.clone(),
        artefact: artefact.clone(),
        lock: String::new(),
    }
}

/// A report to be kept for listings: what it is proven by stands in the generation, its connections in their own table.
pub fn kept_report(report: &ServiceReport) -> ServiceReport {
    let mut kept = ServiceReport { egress: Vec::new(), ..report.clone() };
    for pin in kept.serving.iter_mut().chain(&mut kept.candidate).filter_map(|g| g.pin.as_mut()) {
        pin.lock = String::new();
    }
    kept
}

/// The last lines of a process may hold what only those who manage it should read, like its logs.
fn redacted(reason: &Reason, manageable: bool) -> Reason {
    let stderr = if manageable { reason.stderr.clone() } else { Vec::new() };
    Reason { stderr, ..reason.clone() }
}

pub fn source_type(source: &Source) -> &'static str {
    match source {
        Source::Npx { .. } => "npx",
        Source::Uvx { .. } => "uvx",
        Source::Git { .. } => "git",
        Source::Archive { .. } => "zip",
    }
}

/// One line for people; the pinned version once it is known.
pub fn source_line(source: &Source, pin: Option<&Pin>) -> String {
    match (source, pin) {
        (Source::Npx { .. }, Some(pin)) => format!("npm {}@{}", pin.name, pin.version),
        (Source::Npx { package, .. }, None) => format!("npm {package}"),
        (Source::Uvx { .. }, Some(pin)) => format!("pypi {}=={}", pin.name, pin.version),
        (Source::Uvx { package, .. }, None) => format!("pypi {package}"),
        (Source::Git { url, .. }, Some(pin)) => {
            format!("git {} @ {}", without_credentials(url), pin.version.get(..7).unwrap_or(&pin.version))
        }
        (Source::Git { url, reference, .. }, None) => {
            format!("git {} @ {}", without_credentials(url), reference.as_deref().unwrap_or("HEAD"))
        }
        (Source::Archive { sha256, label, .. }, _) => {
            let short = sha256.get(..12).unwrap_or(sha256);
            if label.is_empty() { format!("archive {short}") } else { format!("archive {label} ({short})") }
        }
    }
}

/// A URL may carry `user:password@`; whoever pasted it did not mean to show it to the mesh.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

/// At most so many bytes of a text, and how many there are more.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let kept = &text[..end];
    format!("{kept}… ({} bytes more)", text.len() - kept.len())
}

/// Tools of a service as events and terminal statuses carry them.
pub fn tools(lists: Option<&Arc<Lists>>) -> Vec<wire::RawJson> {
    lists.map(|lists| lists.tools.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("aéb", 2), "a… (3 bytes more)");
    }

    #[test]
    fn a_pasted_password_is_not_shown() {
        let source = Source::Git {
            url: "https://ana:hunter2@git.example/r@v.git".into(),
            reference: None,
            subdir: None,
        };
        assert_eq!(source_line(&source, None), "git https://git.example/r@v.git @ HEAD");
    }

    #[test]
    fn a_kept_report_and_a_shown_pin_have_no_lock_and_the_rest() {
        let pin = Pin {
            kind: "npm".into(),
            name: "x".into(),
            version: "1".into(),
            integrity: "sha512-x".into(),
            artefact: "a".into(),
            lock: "{}".into(),
        };
        let bare = Pin { lock: String::new(), ..pin.clone() };
        assert_eq!(shown_pin(&pin), bare);
        let one = GenerationReport {
            generation: wire::Generation(1),
            phase: Phase::Ready,
            reason: None,
            last_fall: None,
            pin: Some(pin),
            restarts: 0,
            ready_since_ms: None,
            pid: None,
            usage: None,
            tier: None,
        };
        let service = wire::ServiceKey {
            mesh: wire::MeshId::parse(&"M".repeat(32)).expect("mesh"),
            name: wire::ServiceName::parse("s").expect("name"),
        };
        let report = ServiceReport {
            service,
            revision: 1,
            serving: Some(one.clone()),
            candidate: Some(one),
            egress: vec![],
        };
        let kept = kept_report(&report);
        let pins = kept.serving.iter().chain(&kept.candidate).map(|g| g.pin.clone());
        assert_eq!(pins.collect::<Vec<_>>(), [Some(bare.clone()), Some(bare)]);
    }
}
