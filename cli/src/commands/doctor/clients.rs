//! The MCP clients of this machine: whether they start us, and whether what they start is there and is this program.

use std::path::Path;
use std::time::Duration;

use super::{Finding, Verdict, broken, fine, missing};
use crate::args::ClientName;
use crate::commands::agents::clients::{ALL, Client, client};
use crate::commands::agents::connect::{all_ours, refresh};
use crate::commands::agents::edit::Original;
use crate::commands::agents::text::Format;
use crate::commands::agents::{claude, clients::OUR_NAME};
use crate::env;
use crate::failure::Failure;
use crate::here::Here;

/// For another version of us to say which.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// Clients that are not installed are not talked of.
pub async fn findings(here: &Here, fix: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in ALL {
        let Ok(client) = client(name) else { continue };
        if !client.is_here() {
            continue;
        }
        let mut finding = of(&client).await;
        if fix && finding.is_repairable {
            finding.finding = repaired(here, &client, finding.finding).await;
        }
        findings.push(finding.finding);
    }
    findings
}

struct Checked {
    finding: Finding,
    is_repairable: bool,
}

async fn repaired(here: &Here, client: &Client, before: Finding) -> Finding {
    let check = before.check.clone();
    match refresh(here, client.name).await {
        Ok(_) => {
            let mut after = of(client).await.finding;
            if after.verdict == Verdict::Fine {
                after.detail.push_str(", repaired");
            }
            after
        }
        Err(failure) => broken(check, failure.message, failure.cure.unwrap_or_default()),
    }
}

async fn of(client: &Client) -> Checked {
    let check = format!("client.{}", client.word());
    let sound = |finding| Checked { finding, is_repairable: false };
    let commands = match commands(client) {
        Ok(commands) => commands,
        Err(failure) => return sound(broken(check, failure.message, failure.cure.unwrap_or_default())),
    };
    let connect = format!("claudemesh connect {}", client.word());
    if commands.is_empty() {
        return sound(missing(check, format!("{} does not know the mesh", client.title), connect));
    }
    let cure = format!("claudemesh doctor --fix, or: {connect}");
    let mut others = commands.clone();
    others.retain(|command| !is_this_program(command));
    others.sort();
    others.dedup();
    for command in &others {
        if !is_there(command) {
            let detail = format!("{} starts {command}, which is not there", client.title);
            return Checked { finding: broken(check, detail, cure), is_repairable: true };
        }
    }
    for command in &others {
        let version = version_of(command).await;
        if version.as_deref() != Some(env!("CARGO_PKG_VERSION")) {
            let version = version.unwrap_or_else(|| "which does not say its version".to_owned());
            let detail = format!(
                "{} starts {command}, {version}; this is {}",
                client.title,
                env!("CARGO_PKG_VERSION")
            );
            return Checked { finding: missing(check, detail, cure), is_repairable: true };
        }
    }
    let places =
        if commands.len() == 1 { "1 place".to_owned() } else { format!("{} places", commands.len()) };
    sound(fine(check, format!("{} starts this version, in {places}", client.title)))
}

/// What of ours the client starts: entries, and of Claude Code also hooks.
fn commands(client: &Client) -> Result<Vec<String>, Failure> {
    let read = |path: &Path, format: Format| -> Result<serde_json::Value, Failure> {
        Ok(Original::read(path)?.draft(format)?.document.value().clone())
    };
    let value = read(&client.file, client.format)?;
    let entries = all_ours(&value, client.servers, client.style).into_iter();
    let mut commands: Vec<String> = entries.map(|(_, program)| program.command).collect();
    if client.name == ClientName::ClaudeCode {
        let settings = read(&claude::settings_file()?, Format::Json)?;
        commands.extend(claude::commands(&settings).iter().filter_map(|line| claude::executable(line)));
    }
    Ok(commands)
}

fn is_this_program(command: &str) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    std::env::current_exe()
        .is_ok_and(|own| real(Path::new(command)).is_some_and(|found| Some(found) == real(&own)))
}

fn is_there(command: &str) -> bool {
    if command == OUR_NAME {
        return env::search_path().iter().any(|folder| super::is_executable(&folder.join(OUR_NAME)));
    }
    super::is_executable(Path::new(command))
}

/// `0.1.0` of `claudemesh 0.1.0`.
async fn version_of(command: &str) -> Option<String> {
    let mut asked = tokio::process::Command::new(command);
    asked.arg("version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_DEADLINE, asked.output()).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().strip_prefix(OUR_NAME)?.trim().to_owned()).filter(|version| !version.is_empty())
}
