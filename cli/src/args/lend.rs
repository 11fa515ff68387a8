//! Flags of `share` and `skill`: what one member gives the others.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use wire::ServiceName;

use super::InMesh;
use super::vault::InMeshBelow;

#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The name under which the others call it
    #[arg(value_parser = ServiceName::parse)]
    pub name: ServiceName,
    /// What `ls` shows; else the command, without what looks secret in it
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Stay listed, as offline, when this command ends
    #[arg(long)]
    pub persistent: bool,
    /// Take the name back: a persistent server is forgotten
    #[arg(long, conflicts_with_all = ["persistent", "description", "command"])]
    pub stop: bool,
    #[command(flatten)]
    pub place: InMesh,
    /// The MCP server to run here
    #[arg(last = true, value_name = "CMD", required_unless_present = "stop")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SkillCommand {
    #[command(subcommand)]
    pub act: SkillAct,
    #[command(flatten)]
    pub place: InMeshBelow,
}

#[derive(Debug, Subcommand)]
pub enum SkillAct {
    /// List the mesh's skills
    Ls {
        /// Part of a name, description or tag
        query: Option<String>,
    },
    /// Print a skill; with --to, write it and its files into a folder
    Show {
        name: String,
        #[arg(long, value_name = "FOLDER")]
        to: Option<PathBuf>,
    },
    /// Share a folder or zip with a SKILL.md, or a SKILL.md alone
    Share {
        /// A folder, a zip, a SKILL.md, or with --git a folder in the repository
        path: Option<PathBuf>,
        /// Take it from this repository
        #[arg(long, value_name = "URL")]
        git: Option<String>,
        /// Branch, tag or commit
        #[arg(long = "ref", value_name = "REF", requires = "git")]
        reference: Option<String>,
        /// Instead of the name in SKILL.md
        #[arg(long)]
        name: Option<String>,
    },
    /// Take a skill back
    Rm { name: String },
}
