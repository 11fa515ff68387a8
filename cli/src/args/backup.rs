//! Flags of `backup` and `restore`.

use std::path::PathBuf;

use clap::Args;

use super::{DataArgs, KeyArgs};

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The encrypted file
    pub file: PathBuf,
    #[command(flatten)]
    pub data: DataArgs,
    /// File that holds the URL of a broker's database, instead of the data folder's
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
    #[command(flatten)]
    pub key: KeyArgs,
    /// File that holds the passphrase; else it is asked for, or read from stdin
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Slug or id of the mesh, when the database holds several
    #[arg(long, env = "CLAUDEMESH_MESH", value_name = "SLUG")]
    pub mesh: Option<String>,
}
