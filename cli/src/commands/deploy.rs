//! `deploy`, `update`, `rollback`, `start`, `stop`, `rm`: one frame, then its statuses to the last.

use std::path::Path;

use client::{Connection, Membership};
use serde::Serialize;
use wire::ServiceName;
use wire::peer::Body;
use wire::peer::hosting::{
    McpDeployStatus, McpRollback, McpScope, McpScopeResult, McpStart, McpStop, McpUndeploy, McpUpdate,
};
use wire::spec::Pin;

use super::follow::{Progress, to_the_end};
use super::services::scope_words;
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
    let wanted = choose(args)?;
    let upload = match &wanted {
        Wanted::Folder(path) => Some(upload_folder(here, path).await?),
        Wanted::Archive(path, _) => Some(upload(here, archive::read(path)?).await?),
        Wanted::Npx { .. } | Wanted::Uvx { .. } | Wanted::Git { .. } => None,
    };
    let frame = settings::frame(args, &wanted, upload)?;
    let connection = here.connect().await?;
    let done = follow(here, &connection, &args.name, &frame).await;
    let shown = match done {
        Ok(status) => show_running(here, &connection, &status).await,
        Err(failure) => Err(failure),
    };
    connection.close().await;
    shown
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

async fn follow<B: Body + Serialize>(
    here: &Here,
    connection: &Connection,
    name: &str,
    frame: &B,
) -> Result<McpDeployStatus, Failure> {
    let stream = connection.deploy(frame).await?;
    to_the_end(here.out, name, stream).await
}

async fn show_running(here: &Here, connection: &Connection, status: &McpDeployStatus) -> Result<(), Failure> {
    let out = here.out;
    if out.json {
        return out.document(status);
    }
    let name = &status.server_name;
    let tools = status.tools.as_deref().unwrap_or_default();
    let pinned = status.pin.as_ref().map(|pin| format!(": {}", pin_words(pin))).unwrap_or_default();
    out.line(format!("{name} is {}{pinned}, {}", plain_line(&status.status), count(tools.len(), "tool")));
    if out.quiet {
        return Ok(());
    }
    // Only a hint: a broker that does not answer it has still deployed.
    let asked = connection.request(&McpScope { server_name: name.clone(), scope: None }).await;
    if let Ok(McpScopeResult { scope, .. }) = asked {
        out.line(format!("  seen by   {}", scope_words(&scope)));
        if matches!(scope, wire::Scope::Peer) {
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
    let version = match pin.kind.as_str() {
        "git" | "archive" => brief_hash(&pin.version),
        _ => brief(&pin.version, 40),
    };
    let joint = if matches!(pin.kind.as_str(), "git" | "archive") { " @ " } else { "@" };
    format!("{} {}{joint}{version}", plain_line(&pin.kind), brief(&pin.name, 100))
}

fn brief_hash(hash: &str) -> String {
    plain_line(hash).chars().take(12).collect()
}

pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// A change of state without a source: one frame, one line.
async fn change<B: Body + Serialize>(here: &Here, name: &str, frame: &B, word: &str) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let done = follow(here, &connection, name, frame).await;
    connection.close().await;
    let status = done?;
    if here.out.json {
        return here.out.document(&status);
    }
    let pinned = status.pin.as_ref().map(|pin| format!(" ({})", pin_words(pin))).unwrap_or_default();
    here.out.line(format!("{name} {word}{pinned}"));
    Ok(())
}

pub async fn update(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpUpdate { server_name: name }, "is up to date").await
}

pub async fn rollback(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpRollback { server_name: name }, "is back at the version before").await
}

pub async fn start(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpStart { server_name: name }, "is running").await
}

pub async fn stop(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpStop { server_name: name }, "is stopped").await
}

pub async fn remove(here: &Here, name: String) -> Result<(), Failure> {
    change(here, &name.clone(), &McpUndeploy { server_name: name }, "is removed").await
}

#[cfg(test)]
mod tests {
    use super::*;

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
