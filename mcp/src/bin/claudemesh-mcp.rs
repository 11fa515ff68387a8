//! What `claudemesh mcp --service NAME` becomes where this executable lies beside it.
//!
//! Here: one role alone. A session has a process of it for each service, and `claudemesh` would bring the pages of every role along.
//! Not here: arguments that people write, and what is said when the configuration is broken (`claudemesh` has looked already).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use client::{Config, Connection, Membership, SessionEnv};
use mcp::service::{CHANNEL, PEER_TYPE};
use tokio::signal::unix::{SignalKind, signal};
use wire::ServiceName;

/// As `claudemesh` writes them: what `ps` shows reads like the command that it stands for.
struct Args {
    service: ServiceName,
    mesh: String,
    config_folder: PathBuf,
}

fn main() -> ExitCode {
    leave_no_core();
    // stdout is the client's.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// It holds the member's identity. As in `claudemesh`: a limit of 0 would still start a `core_pattern` that is a program.
fn leave_no_core() {
    use nix::sys::resource::{Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}

fn run() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let args = read(&words).ok_or("started by `claudemesh mcp --service NAME`, and by nobody else")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let done = runtime.block_on(serve(args));
    // A blocked read of stdin must not keep the process.
    runtime.shutdown_background();
    done
}

fn read(words: &[String]) -> Option<Args> {
    let [role, service_flag, service, mesh_flag, mesh, config_flag, folder] = words else { return None };
    let flags = [role, service_flag, mesh_flag, config_flag].map(String::as_str);
    if flags != ["mcp", "--service", "--mesh", "--config"] {
        return None;
    }
    let service = ServiceName::parse(service).ok()?;
    Some(Args { service, mesh: mesh.clone(), config_folder: Path::new(folder).to_owned() })
}

async fn serve(Args { service, mesh, config_folder }: Args) -> Result<(), String> {
    let on = |kind| signal(kind).map_err(|e| e.to_string());
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let config = Config::load(&config_folder).map_err(|e| e.to_string())?;
    let entry = config.choose(Some(&mesh)).map_err(|e| e.to_string())?;
    let membership = Membership::of(entry).map_err(|e| e.to_string())?;
    let session = SessionEnv::read().map_err(|e| e.to_string())?;
    let announce = session.announce(None, PEER_TYPE, CHANNEL);
    let connection = Connection::join(membership, announce, &session.place(&config_folder));
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let cache = mcp::service::cache_folder(&config_folder, &entry.mesh_id);
    mcp::service::run(connection, service, cache, stop).await;
    Ok(())
}
