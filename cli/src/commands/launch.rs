//! `launch`: Claude Code in the mesh.
//!
//! Here: the session's identity, finding and running `claude`. [`folder`]: the session's own folder; [`entries`]: what
//! is written into it.
//! Invariant: no file of Claude Code's is touched; what a session adds is in a folder of its own, which goes when it ends.

mod entries;
mod folder;

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use client::session::parse_groups;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use wire::peer::hosting::{McpCatalog, McpCatalogResult};

use crate::args::LaunchArgs;
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use entries::{CHANNEL, Session};
use folder::SessionFolder;

/// For the list of services. Without it the session has their tools all the same, under `claudemesh`.
const CATALOG_DEADLINE: Duration = Duration::from_secs(5);

pub async fn launch(here: &Here, args: &LaunchArgs) -> Result<u8, Failure> {
    let entry = here.entry()?;
    if let Some(groups) = &args.groups {
        parse_groups(groups).map_err(|e| Failure::user(e.to_string()))?;
    }
    let claude = find_claude()?;
    let (session_id, is_new) = match session_of(&args.args) {
        Chosen::New => (uuid::Uuid::new_v4().to_string(), true),
        Chosen::Known(id) => (id, false),
        Chosen::Unknown => (uuid::Uuid::new_v4().to_string(), false),
    };
    let session = Session {
        id: session_id,
        mesh: entry.slug.clone(),
        config_folder: env::own_config_folder().map(PathBuf::into_os_string),
        display_name: args.name.clone().or(here.config()?.display_name),
        role: args.role.clone(),
        groups: args.groups.clone(),
    };
    let services = services(here).await;
    let exe = std::env::current_exe()
        .map_err(|e| Failure::platform(format!("cannot find the program that runs now: {e}")))?;
    let failed = |e: std::io::Error| Failure::platform(format!("cannot make the session's folder: {e}"));
    let folder = SessionFolder::make(&here.config_folder.join("launch")).map_err(failed)?;
    let file = folder.path().join("mcp.json");
    let document = entries::document(&exe, &session, &services, args.channel).to_string();
    client::config::write_private(&file, document.as_bytes()).map_err(failed)?;

    // `=`, because either flag would take what follows it as one more value.
    let mut command = Command::new(&claude);
    command.arg(assigned("--mcp-config", &file));
    if is_new {
        command.arg(format!("--session-id={}", session.id));
    }
    if args.channel {
        command.arg(format!("--dangerously-load-development-channels=server:{CHANNEL}"));
    }
    command.args(&args.args).envs(session.variables()).envs(env::limits_of_claude());
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status = run(command, &claude).await?;
    drop(folder);
    Ok(code_of(status))
}

fn assigned(flag: &str, value: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(format!("{flag}="));
    text.push(value);
    text
}

enum Chosen {
    New,
    /// The user says which.
    Known(String),
    /// Claude Code says which, when it has started.
    Unknown,
}

fn session_of(args: &[String]) -> Chosen {
    let mut chosen = Chosen::New;
    for (n, arg) in args.iter().enumerate() {
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.as_str(), args.get(n + 1).map(String::as_str)),
        };
        match flag {
            "--session-id" | "--resume" | "-r" => {
                let id = value.filter(|value| uuid::Uuid::try_parse(value).is_ok());
                chosen = id.map_or(Chosen::Unknown, |id| Chosen::Known(id.to_owned()));
            }
            "--continue" | "-c" => return Chosen::Unknown,
            "--" => break,
            _ => {}
        }
    }
    chosen
}

fn find_claude() -> Result<PathBuf, Failure> {
    let places = env::search_path().into_iter().chain(env::claude_folders());
    let found = places.map(|folder| folder.join("claude")).find(|path| is_program(path));
    found.ok_or_else(|| {
        Failure::user("`claude` is not in PATH, and not where its installers put it")
            .with_cure("Install Claude Code with `npm install -g @anthropic-ai/claude-code`, then try again.")
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The services in scope that are not stopped. A broker that is away is no reason not to start.
async fn services(here: &Here) -> Vec<String> {
    let ask = async {
        let connection = here.connect().await?;
        let found = connection.request::<_, McpCatalogResult>(&McpCatalog {}).await;
        connection.close().await;
        found.map_err(Failure::from)
    };
    let why = match tokio::time::timeout(CATALOG_DEADLINE, ask).await {
        Ok(Ok(found)) => {
            let live = found.services.into_iter().filter(|service| service.status != "stopped");
            return live.map(|service| service.name).collect();
        }
        Ok(Err(failure)) => failure.message,
        Err(_) => "no answer".to_owned(),
    };
    here.out.remark(format!("services get no entries of their own in this session: {why}"));
    Vec::new()
}

/// Until it has ended. SIGINT and SIGQUIT come from the terminal, which sends them to both of us: they are its to obey.
async fn run(mut command: Command, claude: &Path) -> Result<ExitStatus, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::platform(format!("cannot listen to signals: {e}")));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let _interrupt = listen(SignalKind::interrupt())?;
    let _quit = listen(SignalKind::quit())?;
    let mut child =
        command.spawn().map_err(|e| Failure::platform(format!("cannot start {}: {e}", claude.display())))?;
    loop {
        tokio::select! {
            status = child.wait() => {
                return status.map_err(|e| Failure::platform(format!("lost sight of claude: {e}")));
            }
            _ = terminate.recv() => pass_on(&child, Signal::SIGTERM),
            _ = hangup.recv() => pass_on(&child, Signal::SIGHUP),
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(pid) = child.id() {
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
    }
}

/// As a shell reports it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_choice_of_a_session_is_kept() {
        let chosen =
            |line: &str| match session_of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()) {
                Chosen::New => "new".to_owned(),
                Chosen::Known(id) => id,
                Chosen::Unknown => "unknown".to_owned(),
            };
        let id = "0b8e1f8e-6c0d-4a5e-9c43-0f4f7f6b2a11";
        assert_eq!(chosen("-p hello"), "new");
        assert_eq!(chosen(&format!("--resume {id} -p x")), id);
        assert_eq!(chosen(&format!("--session-id={id}")), id);
        assert_eq!(chosen("--resume"), "unknown");
        assert_eq!(chosen("-c -p x"), "unknown");
        assert_eq!(chosen(&format!("--continue --session-id {id}")), "unknown");
        assert_eq!(chosen("-p -- --resume"), "new");
    }

    #[test]
    fn a_signal_is_reported_as_by_a_shell() {
        assert_eq!(code_of(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code_of(ExitStatus::from_raw(15)), 143);
    }
}
