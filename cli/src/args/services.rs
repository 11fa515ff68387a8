//! Flags of the commands about one service.

use std::time::Duration;

use clap::Args;

use super::InMesh;
use super::deploy::{Audience, one_of};
use crate::failure::Failure;
use crate::units::parse_duration;

#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the service
    pub name: String,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct ToolsArgs {
    /// Name of the service
    pub name: String,
    /// Show the arguments of this tool
    pub tool: Option<String>,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct CallArgs {
    /// Name of the service
    pub name: String,
    /// Name of the tool, as the service calls it
    pub tool: String,
    /// The arguments, a JSON object; `-` reads it from stdin
    #[arg(value_name = "JSON")]
    pub args: Option<String>,
    /// Give up after this long, at most 10 minutes
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the service
    pub name: String,
    /// Go on with what comes
    #[arg(long, short)]
    pub follow: bool,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub lines: u32,
    #[command(flatten)]
    pub place: InMesh,
}

/// Without a flag: shows the scope.
#[derive(Debug, Args)]
pub struct ScopeArgs {
    /// Name of the service
    pub name: String,
    /// Everybody in the mesh
    #[arg(long = "mesh", visible_alias = "mesh-wide", group = "audience")]
    pub mesh_wide: bool,
    #[command(flatten)]
    pub narrow: Audience,
}

impl ScopeArgs {
    pub fn audience(&self) -> Result<Option<wire::Scope>, Failure> {
        one_of(self.mesh_wide, &self.narrow)
    }
}
