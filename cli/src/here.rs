//! Where a command runs: the config, the chosen mesh, the output, and a connection made of them.

use std::path::PathBuf;

use client::{Announce, Config, Connection, Membership, MeshEntry, Reconnect};

use crate::env;
use crate::failure::Failure;
use crate::out::Out;

/// Tells other peers what this connection is.
const CHANNEL: &str = "claudemesh-cli";
const PEER_TYPE: &str = "human";

pub struct Here {
    pub out: Out,
    pub config_folder: PathBuf,
    /// What `--mesh` or CLAUDEMESH_MESH says.
    pub mesh: Option<String>,
}

impl Here {
    pub fn new(out: Out, mesh: Option<String>) -> Result<Self, Failure> {
        Ok(Self { out, config_folder: env::config_folder()?, mesh })
    }

    pub fn config(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.config_folder)?)
    }

    pub fn entry(&self) -> Result<MeshEntry, Failure> {
        Ok(self.config()?.choose(self.mesh.as_deref())?.clone())
    }

    pub fn membership(&self) -> Result<Membership, Failure> {
        Ok(Membership::of(&self.entry()?)?)
    }

    pub async fn connect(&self) -> Result<Connection, Failure> {
        self.connect_as(Reconnect::Never).await
    }

    pub async fn connect_as(&self, reconnect: Reconnect) -> Result<Connection, Failure> {
        let config = self.config()?;
        let membership = Membership::of(config.choose(self.mesh.as_deref())?)?;
        let announce = Announce::here(PEER_TYPE, CHANNEL);
        Ok(Connection::open(membership, announce, reconnect).await?)
    }
}
