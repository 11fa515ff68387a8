//! Flags of `connect`, `disconnect` and `import`.

use clap::{Args, ValueEnum};

use super::InMesh;

/// An MCP client whose configuration we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum ClientName {
    ClaudeCode,
    Codex,
    Cursor,
    Vscode,
    Gemini,
    Opencode,
}

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The client whose configuration is written
    #[arg(value_enum)]
    pub client: ClientName,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Show what was found and what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask: host everything that can be hosted
    #[arg(long, short)]
    pub yes: bool,
    /// Only these servers, by their names in the configuration
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    #[command(flatten)]
    pub place: InMesh,
}
