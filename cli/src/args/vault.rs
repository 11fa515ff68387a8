//! Flags of the commands about secrets: the vault, its keys, the runners that may open it, and consent.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use wire::vault::{RunnerId, VaultName};

use super::roles::{DataArgs, ListenArg, RunnerArgs};
use super::{InMesh, NameArgs};

/// `--mesh` also behind the word that says what to do.
#[derive(Debug, Clone, Default, Args)]
pub struct InMeshBelow {
    /// The mesh to talk to, when you are a member of several
    #[arg(long = "mesh", id = "in_mesh", value_name = "SLUG", global = true)]
    pub mesh: Option<String>,
}

impl From<&InMeshBelow> for InMesh {
    fn from(place: &InMeshBelow) -> Self {
        Self { mesh: place.mesh.clone() }
    }
}

/// Secrets that only the jail sees. They are sealed on this machine; the broker can't open them.
#[derive(Debug, Args)]
pub struct VaultArgs {
    #[command(subcommand)]
    pub act: VaultAct,
    #[command(flatten)]
    pub place: InMeshBelow,
}

#[derive(Debug, Subcommand)]
pub enum VaultAct {
    /// Store a secret, or a new value of it: typed without echo, from stdin, or from a file
    Set(SetArgs),
    /// Your entries
    Ls,
    /// Remove an entry; services that hold it are stopped
    Rm(EntryArgs),
    /// The versions of an entry
    History(EntryArgs),
    /// Give an entry that is there a new value; services that hold it start again with it
    Rotate(SetArgs),
    /// Who opened what, for which service, when
    Ledger(LedgerArgs),
}

#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the entry: letters, digits, `_`, `-`, `.`
    #[arg(value_parser = vault_name)]
    pub key: VaultName,
    /// Take the content of this file, byte for byte, for a file in the jail
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Refused: everybody on the machine can read the arguments of a process.
    #[arg(hide = true, num_args = 0.., allow_hyphen_values = true)]
    pub extra: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct EntryArgs {
    /// Name of the entry
    #[arg(value_parser = vault_name)]
    pub key: VaultName,
}

#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// Of this entry only
    #[arg(value_parser = vault_name)]
    pub key: Option<VaultName>,
    /// Of this service only
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub lines: u32,
}

/// Without a word behind it: the runner alone. With one: which runners may open the mesh's vault.
#[derive(Debug, Args)]
pub struct RunnerCommand {
    #[command(subcommand)]
    pub act: Option<RunnerAct>,
    #[command(flatten)]
    pub role: RunnerArgs,
    #[command(flatten)]
    pub place: InMeshBelow,
}

#[derive(Debug, Subcommand)]
pub enum RunnerAct {
    /// The runners of the mesh, and which of them may open its vault
    Ls,
    /// Let a runner open the mesh's vault; only the mesh's owner can
    Trust(RunnerIdArgs),
    /// Take that from a runner, and rotate the vault key
    Revoke(RunnerIdArgs),
    /// The id of a runner, from itself; asked on its own machine
    Id(OwnIdArgs),
}

#[derive(Debug, Args)]
pub struct RunnerIdArgs {
    /// The whole id, as `claudemesh runner id` shows it on the runner's machine
    #[arg(value_parser = runner_id)]
    pub id: RunnerId,
}

#[derive(Debug, Args)]
pub struct OwnIdArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Where a runner without `up` listens: unix:PATH, or HOST:PORT with its token
    #[arg(long, value_name = "ADDR", conflicts_with = "data")]
    pub at: Option<ListenArg>,
    /// File that holds the runner's token
    #[arg(long, value_name = "FILE", requires = "at")]
    pub at_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct KeyCommand {
    #[command(subcommand)]
    pub act: KeyAct,
    #[command(flatten)]
    pub place: InMeshBelow,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum KeyAct {
    /// Exchange the broker's at-rest key and the mesh's vault key, while services run
    Rotate,
}

#[derive(Debug, Args)]
pub struct ConsentArgs {
    #[command(flatten)]
    pub service: NameArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

fn vault_name(text: &str) -> Result<VaultName, String> {
    VaultName::parse(text).map_err(|e| e.to_string())
}

fn runner_id(text: &str) -> Result<RunnerId, String> {
    RunnerId::parse(text).map_err(|e| e.to_string())
}
