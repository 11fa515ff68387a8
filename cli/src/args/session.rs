//! Flags of `launch`, `mcp`, `hook` and `status-line`: what a session of an agent is made of.

use clap::{Args, ValueEnum};
use wire::ServiceName;

use super::InMesh;

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// The name that peers see
    #[arg(long)]
    pub name: Option<String>,
    /// What this session is for; also its role in each of its groups that names none; a label
    #[arg(long)]
    pub role: Option<String>,
    /// Groups of this session, each with an optional role: eng:lead,ops
    #[arg(long, value_name = "GROUPS")]
    pub groups: Option<String>,
    /// Let peers' messages and events come into the session; Claude Code asks whether you want that
    #[arg(long)]
    pub channel: bool,
    #[command(flatten)]
    pub place: InMesh,
    /// Passed on to `claude`
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

#[derive(Debug, Args)]
pub struct McpArgs {
    /// One hosted service as one MCP server
    #[arg(long, value_name = "NAME", conflicts_with = "channel", value_parser = ServiceName::parse)]
    pub service: Option<ServiceName>,
    /// Only what is pushed into the session
    #[arg(long)]
    pub channel: bool,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Activity {
    Idle,
    Working,
    NeedsInput,
}

#[derive(Debug, Args)]
pub struct HookArgs {
    /// What the session is doing now
    #[arg(value_enum)]
    pub activity: Activity,
    #[command(flatten)]
    pub place: InMesh,
}
