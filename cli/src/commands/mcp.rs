//! `mcp`: the roles that an MCP client starts.
//!
//! Invariants: nothing but MCP is written to stdout; whatever is wrong with the configuration, the client gets a server that says
//! so, because it shows no more of one that ends than that it failed.

use std::future::Future;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use client::{Connection, Membership, MeshEntry, SessionEnv};
use mcp::front::Eras;
use mcp::mesh::{Hands, Member, Packed, Reading, SkillSource};
use mcp::service::{CHANNEL, PEER_TYPE};
use tokio::signal::unix::{SignalKind, signal};
use wire::spec::ArchiveFormat;

use crate::args::McpArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::source::{Wanted, by_path};
use crate::{archive, env};

/// The same role alone, built and installed beside `claudemesh`.
const SMALL: &str = "claudemesh-mcp";

/// Becomes the executable of `mcp --service` alone, where it lies beside this one: a session has a process for each service,
/// and this program is large. Comes back where that is not so, or something is wrong, which is told here.
pub fn become_small(here: &Here, args: &McpArgs) {
    let Some(service) = &args.service else { return };
    let Ok((entry, ..)) = prepare(here) else { return };
    let small = std::env::current_exe().map(|exe| exe.with_file_name(SMALL));
    if let Ok(small) = small.as_deref()
        && small.is_file()
    {
        let mut command = std::process::Command::new(small);
        command.args(["mcp", "--service", service.as_str(), "--mesh", &entry.slug, "--config"]);
        // Comes back only when it failed; then this program does it.
        let _ = command.arg(&here.config_folder).exec();
    }
}

/// `here` is an error where there is no place for a configuration.
pub async fn mcp(here: Result<Here, Failure>, args: &McpArgs) -> Result<(), Failure> {
    let stop = asked_to_end()?;
    match here.and_then(|here| Ok((prepare(&here)?, here))) {
        Ok(((entry, membership, session), here)) => {
            let announce = session.announce(None, PEER_TYPE, CHANNEL);
            let place = session.place(&here.config_folder);
            let connection = Connection::join(membership.clone(), announce, &place);
            serve(
                &here,
                args,
                Member { connection, folder: here.config_folder.clone(), entry, membership },
                stop,
            )
            .await;
        }
        Err(failure) => {
            let eras = if args.channel { Eras::LegacyOnly } else { Eras::Both };
            mcp::mesh::adrift(words(&failure), eras, stop).await;
        }
    }
    Ok(())
}

fn prepare(here: &Here) -> Result<(MeshEntry, Membership, SessionEnv), Failure> {
    let entry = here.entry()?;
    let membership = Membership::of(&entry)?;
    let session = SessionEnv::read().map_err(|e| Failure::user(e.to_string()))?;
    Ok((entry, membership, session))
}

async fn serve(here: &Here, args: &McpArgs, member: Member, stop: impl Future<Output = ()>) {
    if args.channel {
        return mcp::channel::run_channel(member.connection, member.entry.slug, stop).await;
    }
    match &args.service {
        Some(name) => {
            let cache = mcp::service::cache_folder(&here.config_folder, &member.entry.mesh_id);
            mcp::service::run(member.connection, name.clone(), cache, stop).await;
        }
        None => mcp::mesh::run(member, Hands { pack, skill, variable: env::named_by_user }, stop).await,
    }
}

/// The failure with what to do about it, for a model that tells a person.
fn words(failure: &Failure) -> String {
    let Failure { message, cure, .. } = failure;
    let cure = cure.as_deref().unwrap_or(
        "In a terminal, `claudemesh join LINK` joins a mesh and `claudemesh up` starts one; with several, `--mesh SLUG` or \
         CLAUDEMESH_MESH chooses.",
    );
    format!("{message}\n{cure}\nThen restart this MCP server (in Claude Code: /mcp).")
}

/// Done when this process is told to end. Registered at once, so that no signal is lost.
fn asked_to_end() -> Result<impl Future<Output = ()>, Failure> {
    let on = |kind| signal(kind).map_err(|e| Failure::platform(format!("cannot listen for signals: {e}")));
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn pack(path: &Path) -> Result<Packed, String> {
    let packed = || match by_path(path)? {
        Wanted::Archive(path, format) => Ok(Packed { bytes: archive::read(&path)?, format }),
        _ => Ok(Packed { bytes: archive::pack(path)?.bytes, format: ArchiveFormat::TarGz }),
    };
    packed().map_err(|failure: Failure| text(&failure))
}

fn skill(source: SkillSource) -> Reading {
    Box::pin(async move {
        let read = match source {
            SkillSource::Path(path) => super::skill::read(Some(&path), None).await,
            SkillSource::Git { url, reference } => {
                super::skill::read(None, Some((&url, reference.as_deref()))).await
            }
        };
        read.map_err(|failure| text(&failure))
    })
}

fn text(failure: &Failure) -> String {
    match &failure.cure {
        Some(cure) => format!("{}\n{cure}", failure.message),
        None => failure.message.clone(),
    }
}
