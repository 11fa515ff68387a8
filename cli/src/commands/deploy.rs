//! `deploy`, `update`, `rollback`, `start`, `stop`, `rm`: one frame, then its statuses to the last.

use std::path::Path;

use client::{ClientError, Connection, Membership};
use serde::Serialize;
use wire::peer::Body;
use wire::peer::hosting::{
    McpDeploy, McpDeployStatus, McpRollback, McpStart, McpStatus, McpStatusResult, McpStop, McpUndeploy,
    McpUpdate, ServiceStatus,
};
use wire::spec::Pin;
use wire::{Secret, ServiceName, Tier};

use super::card::scope_words;
use super::consent::{Asked, settle};
use super::follow::{Progress, to_the_end};
use super::tools::example_call;
use crate::archive;
use crate::args::DeployArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::{brief, plain_line};
use crate::settings;
use crate::source::{Wanted, choose};
use crate::units;

pub async fn deploy(here: &Here, args: &DeployArgs) -> Result<(), Failure> {
    // What can be known here is said before anything is uploaded.
    ServiceName::parse(&args.name)
        .map_err(|e| Failure::of_code(wire::ErrorCode::InvalidName, e.to_string()))?;
    args.network()?;
    let wanted = choose(args)?;
    let upload = match &wanted {
        Wanted::Folder(path) => Some(upload_folder(here, path).await?),
        Wanted::Archive(path, _) => Some(upload(here, archive::read(path)?).await?),
        Wanted::Npx { .. } | Wanted::Uvx { .. } | Wanted::Git { .. } => None,
    };
    let frame = settings::frame(args, &wanted, upload, salt_of(here, &args.name)?)?;
    let asked = asked(here, &frame)?;
    let connection = here.connect().await?;
    let shown = match follow(here, &connection, &args.name, &frame).await {
        Ok(status) => match settle(here, &connection, &args.name, status, &asked).await {
            Ok(status) => show_running(here, &connection, &status).await,
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    connection.close().await;
    shown
}

fn salt_of(here: &Here, name: &str) -> Result<Secret, Failure> {
    here.entry()?.env_salt(name).map_err(|e| Failure::user(e.to_string()))
}

/// The frame as the broker has to understand it, to hold against what it wants signed.
fn asked(here: &Here, frame: &McpDeploy) -> Result<Asked, Failure> {
    let new = broker::NewService::read(frame.clone(), &here.entry()?.pubkey)
        .map_err(|e| Failure::of_code(e.code(), e.to_string()))?;
    Ok(Asked::Service { spec: Box::new(new.spec), network: new.network })
}

async fn upload_folder(here: &Here, path: &Path) -> Result<String, Failure> {
    let mut progress = Progress::new(here.out, "pack");
    progress.show("pack", &path.display().to_string());
    let packed = archive::pack(path)?;
    progress.show("upload", &format!("{} files, {}", packed.files, units::size(packed.bytes.len() as u64)));
    upload(here, packed.bytes).await
}

async fn upload(here: &Here, bytes: Vec<u8>) -> Result<String, Failure> {
    let membership: Membership = here.membership()?;
    Ok(client::http::upload(&membership, bytes.into()).await?.file_id)
}

pub async fn follow<B: Body + Serialize>(
    here: &Here,
    connection: &Connection,
    name: &str,
    frame: &B,
) -> Result<McpDeployStatus, Failure> {
    let stream = connection.deploy(frame).await?;
    match to_the_end(here.out, name, stream).await {
        // Only of a service that was tried: a refused request has nothing to do with its jail.
        Err(failure) if failure.code.is_some() && failure.note.is_some() => {
            Err(explained(connection, name, failure).await)
        }
        ended => ended,
    }
}

/// With the jail and the refused connections in its note: a server that was refused its own backend only says `fetch failed`.
async fn explained(connection: &Connection, name: &str, mut failure: Failure) -> Failure {
    // Only a hint: the failure is the same without it.
    if let Ok(found) = status_of(connection, name).await {
        let blocked = found.egress.iter().filter(|decision| !decision.verdict.is_allowed()).count();
        let mut note = failure.note.take().map(|note| format!("{note}; ")).unwrap_or_default();
        note.push_str(&jail_words(&found));
        if blocked > 0 {
            note.push_str(&format!("; {} refused to it: claudemesh why {name}", count(blocked, "host")));
        }
        failure.note = Some(note);
    }
    failure
}

async fn status_of(connection: &Connection, name: &str) -> Result<ServiceStatus, ClientError> {
    let frame = McpStatus { server_name: name.to_owned() };
    let found: McpStatusResult = connection.request(&frame).await?;
    Ok(found.service)
}

/// `jail strict, connects to api.github.com:443`.
fn jail_words(service: &ServiceStatus) -> String {
    let tier = service.tier.map_or("none", Tier::as_str);
    let places = service.network.iter().map(ToString::to_string).collect::<Vec<_>>();
    let places = if places.is_empty() { "nowhere".to_owned() } else { brief(&places.join(", "), 200) };
    format!("jail {tier}, connects to {places}")
}

async fn show_running(here: &Here, connection: &Connection, status: &McpDeployStatus) -> Result<(), Failure> {
    let out = here.out;
    if out.json {
        return out.document(status);
    }
    let name = &plain_line(&status.server_name);
    let tools = status.tools.as_deref().unwrap_or_default();
    let pinned = status.pin.as_ref().map(|pin| format!(": {}", pin_words(pin))).unwrap_or_default();
    out.line(format!("{name} is {}{pinned}, {}", plain_line(&status.status), count(tools.len(), "tool")));
    if out.quiet {
        return Ok(());
    }
    // Only a hint: a broker that does not answer it has still deployed.
    if let Ok(found) = status_of(connection, name).await {
        out.line(format!("  runs in   {}", jail_words(&found)));
        if found.network.is_empty() && found.learning_until.is_none() {
            out.line(format!("  allow     claudemesh allow {name} HOST (or: claudemesh learn {name})"));
        }
        out.line(format!("  seen by   {}", scope_words(&found.scope)));
        if matches!(found.scope, wire::Scope::Peer) {
            out.line(format!("  share it  claudemesh scope {name} --mesh"));
        }
    }
    if let Some(example) = tools.first().and_then(|tool| example_call(name, tool)) {
        out.line(format!("  call it   {example}"));
    }
    out.line(format!("  look at   claudemesh tools {name}"));
    Ok(())
}

pub fn pin_words(pin: &Pin) -> String {
    pin_text(&pin.kind, &pin.name, &pin.version)
}

pub fn pin_text(kind: &str, name: &str, version: &str) -> String {
    let version = match kind {
        "git" | "archive" => brief_hash(version),
        _ => brief(version, 40),
    };
    let joint = if matches!(kind, "git" | "archive") { " @ " } else { "@" };
    format!("{} {}{joint}{version}", plain_line(kind), brief(name, 100))
}

fn brief_hash(hash: &str) -> String {
    plain_line(hash).chars().take(12).collect()
}

pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A change of state without a source: one frame, one line.
pub async fn change<B: Body + Serialize>(
    here: &Here,
    name: &str,
    frame: &B,
    (asked, word): (Asked, &str),
) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let done = match follow(here, &connection, name, frame).await {
        Ok(status) => settle(here, &connection, name, status, &asked).await,
        Err(failure) => Err(failure),
    };
    connection.close().await;
    let status = done?;
    if here.out.json {
        return here.out.document(&status);
    }
    let pinned = status.pin.as_ref().map(|pin| format!(" ({})", pin_words(pin))).unwrap_or_default();
    // A generation that waits for somebody to start the service.
    let rests = status.generation.is_some() && status.status == "stopped";
    let rest = if rests { format!("; it is stopped: claudemesh start {name}") } else { String::new() };
    here.out.line(format!("{name} {word}{pinned}{rest}"));
    Ok(())
}

pub async fn update(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpUpdate { server_name: name }, (Asked::Update, "is up to date")).await
}

pub async fn rollback(here: &Here, name: String) -> Result<(), Failure> {
    change(
        here,
        &name.clone(),
        &McpRollback { server_name: name },
        (Asked::Earlier, "is back at the version before"),
    )
    .await
}

pub async fn start(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpStart { server_name: name }, (Asked::Same, "is running")).await
}

pub async fn stop(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpStop { server_name: name }, (Asked::Same, "is stopped")).await
}

pub async fn remove(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpUndeploy { server_name: name }, (Asked::Same, "is removed")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jail_is_said_with_where_it_leads() {
        let mut service = crate::commands::card::tests::service();
        assert_eq!(
            jail_words(&service),
            "jail strict, connects to api.github.com:443, *.githubusercontent.com:443"
        );
        (service.tier, service.network) = (None, Vec::new());
        assert_eq!(jail_words(&service), "jail none, connects to nowhere");
    }

    #[test]
    fn a_pin_is_said_in_a_few_words() {
        let pin = |kind: &str, name: &str, version: &str| Pin {
            kind: kind.into(),
            name: name.into(),
            version: version.into(),
            integrity: String::new(),
            artefact: String::new(),
            lock: String::new(),
        };
        assert_eq!(pin_words(&pin("npm", "@a/b", "1.2.3")), "npm @a/b@1.2.3");
        assert_eq!(pin_words(&pin("git", "https://x/y", &"a".repeat(40))), "git https://x/y @ aaaaaaaaaaaa");
        assert!(!pin_words(&pin("npm", "a\u{1b}[2J", "1")).contains('\u{1b}'));
    }
}
