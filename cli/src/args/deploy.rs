//! Flags of `deploy`, and those that name an audience.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wire::vault::RunAs;
use wire::{EgressRule, Scope, Tier};

use super::InMesh;
use super::jail::{Place, place, rule, tier};
use crate::failure::Failure;
use crate::units::{parse_cpus, parse_duration, parse_mib};

/// Host an MCP server: from a command (`-- npx …`, `-- uvx …`), from PyPI, from git, from a folder or an archive.
///
/// Deploying a name again states the whole service: an argument, a variable, a limit that is not named is its default again.
/// Only who sees it and where it may connect to stay as they are until they are named, for these were decided apart
/// (`scope`, `allow`, `deny`).
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Name of the service: letters, digits, `-`, `_`
    pub name: String,
    /// A folder, or a .zip, .mcpb or .tgz file
    pub path: Option<PathBuf>,
    /// A PyPI package: name, name==1.2, name[extra]
    #[arg(long, value_name = "PACKAGE")]
    pub uvx: Option<String>,
    /// A git repository
    #[arg(long, value_name = "URL")]
    pub git: Option<String>,
    /// Branch, tag or commit of --git
    #[arg(long = "ref", value_name = "REF", requires = "git")]
    pub reference: Option<String>,
    /// Folder inside the repository
    #[arg(long, value_name = "DIR", requires = "git")]
    pub subdir: Option<String>,
    /// File that holds the token of a private repository
    #[arg(long, value_name = "FILE", requires = "git")]
    pub git_token_file: Option<PathBuf>,
    /// Which executable of the package
    #[arg(long, value_name = "NAME")]
    pub bin: Option<String>,
    /// Which file of the project to start, instead of the detected one
    #[arg(long, value_name = "FILE")]
    pub entry: Option<String>,
    /// node, bun or python, instead of the detected one
    #[arg(long, value_name = "RUNTIME", value_parser = ["node", "bun", "python"])]
    pub runtime: Option<String>,
    /// An argument of the server; repeat it for several
    #[arg(long = "args", value_name = "ARG", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// NAME=VALUE for the server; NAME alone takes the value from your environment; a VALUE of `$vault:KEY` or
    /// `$vault:KEY:file:/secrets/NAME` is taken from your vault when the server starts
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// File of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Memory that the server may have, its processes together [default: 512m]
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u32>,
    /// Processors that it may use, e.g. 0.5 [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub cpus: Option<f64>,
    /// Processes and threads that it may have [default: 128]
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,
    /// Size of its data directory [default: 1g]
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub disk: Option<u32>,
    /// Where it may connect to, e.g. api.github.com,*.githubusercontent.com:443; `none` for nowhere, as a new service has it
    #[arg(long, value_name = "HOST[:PORT],…", value_delimiter = ',', value_parser = place)]
    pub network: Vec<Place>,
    /// The weakest jail that it may run in: strict, or light where the mesh allows that
    #[arg(long, value_name = "TIER", value_parser = tier)]
    pub isolation: Option<Tier>,
    /// Files that each process may have open
    #[arg(long, value_name = "N")]
    pub open_files: Option<u32>,
    /// Stop it after this long without a call; a call wakes it
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub idle_stop: Option<Duration>,
    /// Let npm run the install scripts of packages
    #[arg(long)]
    pub allow_scripts: bool,
    /// Whose vault entries it gets: deployer, or caller for an instance of each caller with their own [default: deployer]
    #[arg(long, value_name = "WHO", value_parser = run_as)]
    pub run_as: Option<RunAs>,
    /// The process only gets a placeholder; the value goes into the headers of its requests to this host. Repeat it for several
    #[arg(long, value_name = "HOST[:PORT]", value_parser = rule)]
    pub inject: Vec<EgressRule>,
    /// Pass on results of its tools as they are, with the secrets that are in them
    #[arg(long)]
    pub unmasked_results: bool,
    /// Everybody in the mesh may see and call it
    #[arg(long, group = "audience")]
    pub mesh_wide: bool,
    #[command(flatten)]
    pub audience: Audience,
    #[command(flatten)]
    pub place: InMesh,
    /// The command as you would run it yourself: npx … or uvx …
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl DeployArgs {
    pub fn scope(&self) -> Result<Option<Scope>, Failure> {
        one_of(self.mesh_wide, &self.audience)
    }

    /// `None`: as it is.
    pub fn network(&self) -> Result<Option<Vec<String>>, Failure> {
        let rules = self.network.iter().filter_map(Place::rule).map(ToString::to_string).collect::<Vec<_>>();
        match self.network.len() {
            0 => Ok(None),
            _ if rules.is_empty() || rules.len() == self.network.len() => Ok(Some(rules)),
            _ => Err(Failure::user("--network none stands alone: it means nowhere")),
        }
    }
}

fn run_as(text: &str) -> Result<RunAs, String> {
    match text {
        "deployer" => Ok(RunAs::Deployer),
        "caller" => Ok(RunAs::Caller),
        _ => Err("write deployer or caller".to_owned()),
    }
}

/// Who may see and call a service, narrower than everybody.
#[derive(Debug, Clone, Default, Args)]
pub struct Audience {
    /// The members of one group
    #[arg(long, value_name = "GROUP", group = "audience")]
    pub group: Option<String>,
    /// The members of any of these groups
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "audience")]
    pub groups: Vec<String>,
    /// The members with this role in a group
    #[arg(long, value_name = "ROLE", group = "audience")]
    pub role: Option<String>,
    /// These members, by display name or id
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "audience")]
    pub peers: Vec<String>,
    /// Only you
    #[arg(long, group = "audience")]
    pub peer: bool,
}

/// `None`: nothing was chosen. That only one was chosen is clap's check.
pub(super) fn one_of(mesh_wide: bool, audience: &Audience) -> Result<Option<Scope>, Failure> {
    let Audience { group, groups, role, peers, peer } = audience;
    let scope = if mesh_wide {
        Scope::Mesh
    } else if *peer {
        Scope::Peer
    } else if let Some(group) = group {
        Scope::Group { group: group_name(group)? }
    } else if let Some(role) = role {
        Scope::Role { role: named("--role", role)? }
    } else if !groups.is_empty() {
        Scope::Groups { groups: groups.iter().map(|g| group_name(g)).collect::<Result<BTreeSet<_>, _>>()? }
    } else if !peers.is_empty() {
        Scope::Peers { allow: peers.iter().map(|p| named("--peers", p)).collect::<Result<BTreeSet<_>, _>>()? }
    } else {
        return Ok(None);
    };
    Ok(Some(scope))
}

fn group_name(text: &str) -> Result<String, Failure> {
    named("a group", text.trim().strip_prefix('@').unwrap_or(text))
}

fn named(what: &str, text: &str) -> Result<String, Failure> {
    match text.trim() {
        "" => Err(Failure::user(format!("{what} needs a name"))),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_its_scope() {
        let audience = |change: fn(&mut Audience)| {
            let mut audience = Audience::default();
            change(&mut audience);
            serde_json::to_string(&one_of(false, &audience).unwrap()).unwrap()
        };
        assert_eq!(audience(|_| ()), "null");
        assert_eq!(audience(|a| a.peer = true), r#"{"type":"peer"}"#);
        assert_eq!(audience(|a| a.group = Some("@eng".into())), r#"{"type":"group","group":"eng"}"#);
        assert_eq!(
            audience(|a| a.groups = vec!["b".into(), "a".into()]),
            r#"{"type":"groups","groups":["a","b"]}"#
        );
        assert_eq!(audience(|a| a.role = Some("lead".into())), r#"{"type":"role","role":"lead"}"#);
        assert_eq!(audience(|a| a.peers = vec!["Ana".into()]), r#"{"type":"peers","allow":["Ana"]}"#);
        let empty = Audience { peers: vec![String::new()], ..Audience::default() };
        assert!(one_of(false, &empty).is_err());
    }
}
