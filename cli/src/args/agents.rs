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
    /// The clients whose configuration is written
    #[arg(value_enum, required = true, value_name = "CLIENT")]
    pub clients: Vec<ClientName>,
    /// Also one entry for each service that you may call, named mesh-SERVICE
    #[arg(long)]
    pub services: bool,
    /// Claude Code: the MCP entry alone, without hooks and status line
    #[arg(long)]
    pub no_hooks: bool,
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// The clients whose configuration is written
    #[arg(value_enum, required = true, value_name = "CLIENT")]
    pub clients: Vec<ClientName>,
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct WriteArgs {
    /// Show what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub write: WriteArgs,
    /// Only these servers, by their names in the configuration
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Put the original entries back
    #[arg(long, conflicts_with_all = ["only", "forget"])]
    pub undo: bool,
    /// Delete the record that --undo needs; it holds the secrets that stood in the original entries
    #[arg(long, conflicts_with_all = ["only", "dry_run"])]
    pub forget: bool,
    #[command(flatten)]
    pub place: InMesh,
}
