//! The command line: every command and flag. `docs/cli.md` describes them; a test compares the two.
//!
//! Not here: what a command does (see [`crate::commands`] and [`crate::roles`]).

mod agents;
mod backup;
mod deploy;
mod jail;
mod lend;
mod roles;
mod services;
mod session;
mod vault;

pub use agents::{ClientName, ConnectArgs, DisconnectArgs, ImportArgs, WriteArgs};
pub use backup::BackupArgs;
pub use deploy::DeployArgs;
pub use jail::{ApproveArgs, LearnArgs, PolicyArgs, RulesArgs};
pub use lend::{ShareArgs, SkillAct, SkillCommand};
pub use roles::{BrokerArgs, DataArgs, KeyArgs, LimitArgs, ListenArg, RunnerArgs, UpArgs};
pub use services::{CallArgs, LogsArgs, NameArgs, ScopeArgs, ToolsArgs};
pub use session::{Activity, HookArgs, LaunchArgs, McpArgs};
pub use vault::{
    ConsentArgs, KeyAct, KeyCommand, LedgerArgs, OwnIdArgs, RunnerAct, RunnerCommand, SetArgs, VaultAct,
    VaultArgs,
};

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::units::parse_duration;

/// Runs a team's MCP servers once and offers them to every agent of the mesh.
#[derive(Debug, Parser)]
#[command(name = "claudemesh", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// The mesh to talk to, when you are a member of several
    #[arg(long, value_name = "SLUG", env = "CLAUDEMESH_MESH")]
    pub mesh: Option<String>,
    /// Print one JSON document (JSON lines when following)
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// `--mesh` after the command means the same as before it. `scope` is the exception: there it is the audience.
#[derive(Debug, Clone, Default, Args)]
pub struct InMesh {
    /// The mesh to talk to, when you are a member of several
    #[arg(long = "mesh", id = "in_mesh", value_name = "SLUG")]
    pub mesh: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Broker and runner on this machine; the first run makes a mesh and you its owner
    Up(UpArgs),
    /// Stop a running `up`
    Down(DataArgs),
    /// The broker alone
    Broker(BrokerArgs),
    /// The runner alone; or which runners may open the mesh's vault
    Runner(Box<RunnerCommand>),
    /// Host an MCP server
    Deploy(Box<DeployArgs>),
    /// List the services that you may see
    Ls(InMesh),
    /// Everything about one service
    Status(NameArgs),
    /// What a service offers; with TOOL, how to call it
    Tools(ToolsArgs),
    /// Call a tool
    Call(CallArgs),
    /// The last lines of a service
    Logs(LogsArgs),
    /// Show or set who sees and calls a service
    Scope(ScopeArgs),
    /// Why a service fails, or what it was refused
    Why(NameArgs),
    /// Let a service connect to these hosts
    Allow(RulesArgs),
    /// Take hosts off a service's list
    Deny(RulesArgs),
    /// Find out where a service connects to, and propose its list
    Learn(LearnArgs),
    /// Accept what has changed in a service's tools, after looking at it
    Approve(ApproveArgs),
    /// Fetch the newest version that the source allows
    Update(NameArgs),
    /// Go back to the version that served before
    Rollback(NameArgs),
    /// End the process and keep everything else
    Stop(NameArgs),
    /// Start a stopped or failed service
    Start(NameArgs),
    /// Remove a service and its data
    Rm(NameArgs),
    /// Secrets that only the jail sees
    Vault(VaultArgs),
    /// Agree to a service as it is now: until then your secrets stay closed to it
    Consent(ConsentArgs),
    /// The keys that secrets are encrypted with
    Key(KeyCommand),
    /// Put a mesh into one encrypted file, on its broker's machine
    Backup(BackupArgs),
    /// Bring a mesh back from such a file
    Restore(BackupArgs),
    /// Put the mesh into an MCP client's configuration
    Connect(ConnectArgs),
    /// Take the mesh out of an MCP client's configuration again
    Disconnect(DisconnectArgs),
    /// Host the MCP servers that your clients are configured with
    Import(ImportArgs),
    /// Start Claude Code in the mesh
    Launch(LaunchArgs),
    /// What an MCP client starts: the mesh, or one service, over stdio
    Mcp(McpArgs),
    /// Lend an MCP server of this machine to the mesh
    Share(ShareArgs),
    /// Instructions that the mesh shares
    Skill(SkillCommand),
    /// What a client's hooks start: reports what the session is doing
    Hook(HookArgs),
    /// One line about the mesh, for a client's status line
    StatusLine(InMesh),
    /// Make an invite link
    Invite(InviteArgs),
    /// Become a member of a mesh
    Join(JoinArgs),
    /// Who is connected
    Peers(InMesh),
    /// Who belongs to the mesh
    Members(InMesh),
    /// Change what the mesh holds about a member
    Member(MemberArgs),
    /// Show or set what the mesh demands of every service
    Policy(PolicyArgs),
    /// Check this installation and say what to do
    Doctor(DoctorArgs),
    /// Print the version
    Version,
}

impl Command {
    /// The `--mesh` that was written after the command.
    pub fn mesh(&self) -> Option<&str> {
        let place = match self {
            Self::Deploy(args) => &args.place,
            Self::Ls(place) | Self::Peers(place) | Self::Members(place) | Self::StatusLine(place) => place,
            Self::Connect(args) => &args.place,
            Self::Disconnect(args) => &args.place,
            Self::Import(args) => &args.place,
            Self::Launch(args) => &args.place,
            Self::Mcp(args) => &args.place,
            Self::Share(args) => &args.place,
            Self::Hook(args) => &args.place,
            Self::Status(args)
            | Self::Why(args)
            | Self::Update(args)
            | Self::Rollback(args)
            | Self::Stop(args)
            | Self::Start(args)
            | Self::Rm(args) => &args.place,
            Self::Allow(args) | Self::Deny(args) => &args.place,
            Self::Learn(args) => &args.place,
            Self::Approve(args) => &args.place,
            Self::Policy(args) => &args.place,
            Self::Tools(args) => &args.place,
            Self::Call(args) => &args.place,
            Self::Logs(args) => &args.place,
            Self::Invite(args) => &args.place,
            Self::Member(args) => &args.place,
            Self::Doctor(args) => &args.place,
            Self::Consent(args) => &args.service.place,
            Self::Vault(VaultArgs { place, .. }) | Self::Key(KeyCommand { place, .. }) => {
                return place.mesh.as_deref();
            }
            Self::Runner(args) => return args.place.mesh.as_deref(),
            Self::Skill(args) => return args.place.mesh.as_deref(),
            Self::Backup(_)
            | Self::Restore(_)
            | Self::Up(_)
            | Self::Down(_)
            | Self::Broker(_)
            | Self::Scope(_)
            | Self::Join(_)
            | Self::Version => return None,
        };
        place.mesh.as_deref()
    }
}

#[derive(Debug, Args)]
pub struct InviteArgs {
    /// The display name that the new member gets
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long, value_parser = ["admin", "member", "guest"], default_value = "member")]
    pub role: String,
    /// Groups of the new member, each with an optional role: eng:lead,ops
    #[arg(long, value_name = "GROUPS")]
    pub groups: Option<String>,
    /// How often the link may be used
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub uses: u32,
    /// How long the link is valid
    #[arg(long, default_value = "7d", value_parser = parse_duration, value_name = "TIME")]
    pub expires: Duration,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// ic://join/TOKEN or https://HOST/join/TOKEN
    pub link: String,
    /// Your display name; the invite's own goes first
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct MemberArgs {
    /// Display name or member id
    pub name: String,
    /// owner, admin, member or guest
    #[arg(long, value_parser = ["admin", "member", "guest"])]
    pub role: Option<String>,
    /// A free label
    #[arg(long)]
    pub role_tag: Option<String>,
    /// All groups, each with an optional role: eng:lead,ops; "" for none
    #[arg(long, value_name = "GROUPS")]
    pub groups: Option<String>,
    /// Remove the member: connections close, services stop
    #[arg(long)]
    pub revoke: bool,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Repair what can be repaired in the configuration of your MCP clients
    #[arg(long)]
    pub fix: bool,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub place: InMesh,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_mesh_may_be_named_before_or_after_the_command() {
        assert_eq!(parse("claudemesh --mesh a ls").mesh.as_deref(), Some("a"));
        assert_eq!(parse("claudemesh ls --mesh a").command.mesh(), Some("a"));
        assert_eq!(parse("claudemesh logs x --mesh a --json").command.mesh(), Some("a"));
        assert_eq!(parse("claudemesh skill ls --mesh a").command.mesh(), Some("a"));
    }

    #[test]
    fn in_scope_mesh_is_the_audience() {
        let Command::Scope(args) = parse("claudemesh --mesh acme scope echo --mesh").command else {
            panic!()
        };
        assert!(matches!(args.audience(), Ok(Some(wire::Scope::Mesh))));
    }

    #[test]
    fn two_audiences_are_refused() {
        for line in
            ["scope e --mesh --peer", "scope e --group a --role b", "deploy e --mesh-wide --peers a p"]
        {
            assert!(Cli::try_parse_from(format!("claudemesh {line}").split_whitespace()).is_err(), "{line}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "allow e",
            "allow e 10.0.0.1",
            "deny e https://a.com",
            "learn e --stop --accept",
            "learn e --stop --minutes 5",
            "learn e --yes",
            "learn e --minutes 0",
            "policy --min-isolation none",
            "deploy e p --isolation docker",
            "deploy e p --cpus 0",
            "deploy e p --run-as nobody",
            "deploy e p --inject 10.0.0.1",
            "runner --listen unix:/x --data /y --custody tpm",
            "runner trust 0123",
            "runner id --data /x --at unix:/y",
            "vault set",
            "vault set a/b",
            "vault rm",
            "key",
            "connect",
            "connect notepad",
            "import --undo --only x",
            "mcp --service x --channel",
            "share x",
            "share x --stop -- y",
            "skill share --ref v1",
        ] {
            assert!(Cli::try_parse_from(format!("claudemesh {line}").split_whitespace()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_examples_of_the_documentation_parse() {
        for line in [
            "claudemesh up --data /d --listen 127.0.0.1:0 --name acme",
            "claudemesh deploy everything --mesh-wide -- npx -y @modelcontextprotocol/server-everything",
            "claudemesh deploy time --uvx mcp-server-time --args --local-timezone=UTC",
            "claudemesh deploy mine --git https://x/y.git --ref v1 --subdir srv --env A=b --env TOKEN",
            "claudemesh deploy mine ./folder --memory 512m --idle-stop 10m --allow-scripts",
            "claudemesh deploy mine ./folder --cpus 0.5 --pids 100 --disk 1g --isolation strict --network a.com:443,*.b.com --network c.com",
            "claudemesh deploy mine ./folder --network none",
            "claudemesh allow mine a.com b.com:8443 *.c.com",
            "claudemesh deny mine a.com",
            "claudemesh learn mine --minutes 30",
            "claudemesh learn mine --stop",
            "claudemesh learn mine --accept --yes",
            "claudemesh why mine",
            "claudemesh approve mine --yes",
            "claudemesh policy --min-isolation light --min-release-age 3d",
            "claudemesh up --private-host gitlab.corp:443,registry.corp --private-host c.corp",
            "claudemesh call e t {\"json\":1} --timeout 5s",
            "claudemesh call e t -",
            "claudemesh logs e -f -n 200",
            "claudemesh scope e --peers Ana,Bo",
            "claudemesh scope e",
            "claudemesh invite --name bo --groups eng:lead,ops --uses 2 --expires 1d",
            "claudemesh member bo --revoke",
            "claudemesh runner --listen unix:/x --data /y",
            "claudemesh runner --listen unix:/x --data /y --custody file --boot-key-file /z",
            "claudemesh runner ls --mesh a",
            "claudemesh runner trust 0123456789abcdef0123456789abcdef",
            "claudemesh runner id --data /y",
            "claudemesh vault set github-token",
            "claudemesh vault set creds --file ./creds.json",
            "claudemesh vault ledger github-token --service github",
            "claudemesh key rotate",
            "claudemesh consent github --yes",
            "claudemesh connect claude-code codex --services --dry-run",
            "claudemesh disconnect claude-code --yes",
            "claudemesh import --only github --only jira -y",
            "claudemesh import --undo",
            "claudemesh launch --name Ana --role review --groups eng:lead,ops --channel -- -p hi --model x",
            "claudemesh mcp --service everything --mesh a",
            "claudemesh share lab --persistent --description x -- python3 server.py --port 1",
            "claudemesh share lab --stop",
            "claudemesh skill share packages/tidy --git https://x/y.git --ref v1 --name tidy --mesh a",
            "claudemesh hook needs-input",
            "claudemesh status-line",
            "claudemesh doctor --fix",
            "claudemesh deploy gh --run-as caller --inject api.github.com --inject b.com:8443 --unmasked-results p",
        ] {
            parse(line);
        }
    }
}
