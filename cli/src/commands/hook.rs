//! `hook`: a command hook of an agent says what its session is doing.
//!
//! A hook must not disturb the agent: it ends soon, says nothing on stdout, and always well (for some agents another exit code of
//! a hook means "stop"). Why nothing came of it is told on stderr when CLAUDEMESH_HOOK_DEBUG is set.

use std::time::Duration;

use client::{Membership, MeshEntry, SessionEnv, SessionStatus};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use wire::peer::mesh::HookStatus;

use crate::args::{Activity, HookArgs};
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use crate::plain::plain_line;

const INPUT_DEADLINE: Duration = Duration::from_millis(500);
const INPUT_LIMIT: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(1);

/// What agents tell their hooks; some of it.
#[derive(Debug, Default, Deserialize)]
struct Input {
    #[serde(default)]
    session_id: Option<String>,
    #[serde(default)]
    cwd: Option<String>,
}

/// Never an error; see above.
pub async fn hook(here: &Here, args: &HookArgs) -> Result<(), Failure> {
    if let Err(failure) = report(here, args.activity).await {
        complain(&failure.message);
    }
    Ok(())
}

/// On stderr, for who asked.
pub fn complain(why: &str) {
    if env::hook_debug() {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "claudemesh hook: {}", plain_line(why));
    }
}

async fn report(here: &Here, activity: Activity) -> Result<(), Failure> {
    let input = input().await;
    let config = here.config()?;
    // Nothing says in which mesh the session is, unless a mesh is named: its presence tells.
    let entries: Vec<MeshEntry> = match here.mesh.as_deref() {
        Some(_) => vec![config.choose(here.mesh.as_deref())?.clone()],
        None => config.meshes.clone(),
    };
    let session = SessionEnv::read().map_err(|e| Failure::user(e.to_string()))?;
    let reports = entries.iter().map(|entry| report_to(here, &session, &input, (entry, activity)));
    for outcome in futures_util::future::join_all(reports).await {
        if let Err(failure) = outcome {
            complain(&failure.message);
        }
    }
    Ok(())
}

async fn report_to(
    here: &Here,
    session: &SessionEnv,
    input: &Input,
    (entry, activity): (&MeshEntry, Activity),
) -> Result<(), Failure> {
    let membership = Membership::of(entry)?;
    let known = session.session_id.clone().or_else(|| {
        let places = session.places(&here.config_folder);
        let lives = |place: &&client::SessionPlace| {
            SessionStatus::read(place, &entry.mesh_id, &entry.member_id).is_some()
        };
        places.iter().find(lives).map(|place| place.session_id.clone())
    });
    let status = status(activity, known, input);
    client::http::set_status(&membership, &status, LIMIT).await?;
    Ok(())
}

/// Who knows the session names it and nothing else: by its folder, another session could be found.
fn status(activity: Activity, known: Option<String>, input: &Input) -> HookStatus {
    let status = match activity {
        Activity::Idle => "idle",
        Activity::Working => "working",
        Activity::NeedsInput => "needs_input",
    };
    let status = status.to_owned();
    if known.is_some() {
        return HookStatus { cwd: String::new(), status, pid: None, session_id: known };
    }
    let here = || std::env::current_dir().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    HookStatus {
        cwd: input.cwd.clone().unwrap_or_else(here),
        status,
        pid: Some(i64::from(std::os::unix::process::parent_id())),
        session_id: input.session_id.clone(),
    }
}

/// Whatever came in time and can be read; a hook without input is one, too.
async fn input() -> Input {
    let mut bytes = Vec::new();
    let mut stdin = tokio::io::stdin().take(INPUT_LIMIT);
    let _ = tokio::time::timeout(INPUT_DEADLINE, stdin.read_to_end(&mut bytes)).await;
    serde_json::from_slice(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_known_is_named_by_nothing_but_its_id() {
        let input = Input { session_id: Some("of the agent".into()), cwd: Some("/w".into()) };
        let named = status(Activity::NeedsInput, Some("s".into()), &input);
        assert_eq!((named.session_id.as_deref(), named.cwd.as_str(), named.pid), (Some("s"), "", None));
        assert_eq!(named.status, "needs_input");
        let guessed = status(Activity::Idle, None, &input);
        assert_eq!((guessed.session_id.as_deref(), guessed.cwd.as_str()), (Some("of the agent"), "/w"));
        assert!(guessed.pid.is_some());
        assert_ne!(status(Activity::Working, None, &Input::default()).cwd, "");
    }
}
