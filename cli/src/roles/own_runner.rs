//! `up` trusts its own runner: on one machine the owner's hand, the mesh and the runner are one.
//!
//! The runner's key comes from its own socket and not from the broker. Invariant: whatever fails here, `up` serves.

use std::time::Duration;

use client::{Announce, ClientError, Connection, Membership, MeshEntry, MeshVault, Reconnect};
use tokio::time::{Instant, sleep};
use wire::ErrorCode;
use wire::vault::{BoxPublic, VaultState};

use super::asked::RunnerAt;
use super::data::DataFolder;
use crate::commands::state_words;
use crate::failure::Failure;
use crate::here::Here;

/// The runner waits for its boot key, which the broker hands over once they are linked.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Makes the mesh's first vault key and lets the runner have it, unless that is so already. Says whether it had to.
pub async fn trust_own_runner(here: &Here, entry: &MeshEntry, data: &DataFolder) -> Result<bool, Failure> {
    let end = Instant::now() + PATIENCE;
    let public = own_key(data, end).await?;
    // What a command has learned since we started must not be written over.
    let config = here.config()?;
    let entry = config.meshes.iter().find(|known| known.mesh_id == entry.mesh_id).unwrap_or(entry).clone();
    let membership = Membership::of(&entry)?;
    let announce = Announce::here("human", "claudemesh-up");
    let connection = Connection::open(membership, announce, Reconnect::Never).await?;
    let trusted = match MeshVault::new(&connection, &here.config_folder, entry) {
        Ok(mut vault) => trusted(&mut vault, &public, end).await,
        Err(error) => Err(error),
    };
    connection.close().await;
    Ok(trusted?)
}

async fn own_key(data: &DataFolder, end: Instant) -> Result<BoxPublic, Failure> {
    let at = RunnerAt::Socket(data.runner_socket());
    loop {
        let found = at.vault().await;
        if let Ok(vault) = &found
            && let (VaultState::Open, Some(public)) = (&vault.state, &vault.public)
        {
            return Ok(public.clone());
        }
        if Instant::now() >= end {
            let state = state_words(&found?.state);
            return Err(Failure::of_code(ErrorCode::VaultLocked, format!("the runner's vault is {state}")));
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn trusted(vault: &mut MeshVault<'_>, public: &BoxPublic, end: Instant) -> Result<bool, ClientError> {
    loop {
        match vault.trust_own(public).await {
            // The broker may hear of the runner a moment later than we did.
            Err(error)
                if matches!(error.code(), Some(ErrorCode::NotFound | ErrorCode::RunnerUnavailable))
                    && Instant::now() < end =>
            {
                sleep(LOOK_EVERY).await;
            }
            done => return done,
        }
    }
}
