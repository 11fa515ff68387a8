//! `backup` and `restore`: one mesh in one encrypted file, made and read on the broker's own machine.
//!
//! The file opens with its passphrase alone: it holds the mesh's at-rest keys, and the owner's identity when whoever makes
//! it is the owner. Not here: what belongs to a mesh (`broker::backup`), how the file is encrypted (`vault::passphrase`).
//! Invariant: a file or database is there whole or not at all, whenever we are killed.

use std::path::{Path, PathBuf};

use broker::backup::{self, Backup, BackupError};
use broker::store::{Store, StoreConfig};
use broker::{AtRest, AtRestError};
use client::Identity;
use client::config::write_private;
use serde::Serialize;
use wire::{ErrorCode, PublicKey, Secret};
use zeroize::Zeroizing;

use super::broker::database_of;
use super::data::{DataFolder, Held, given_roots};
use super::owner::OwnerFiles;
use crate::args::BackupArgs;
use crate::commands::passphrase;
use crate::failure::Failure;
use crate::here::Here;
use crate::units;

#[derive(Serialize)]
struct Done {
    mesh: String,
    mesh_id: String,
    file: PathBuf,
    bytes: usize,
    /// Its owner's identity is in the file.
    owner: bool,
}

impl Done {
    fn of(backup: &Backup, file: &Path, bytes: usize) -> Self {
        let (mesh, mesh_id) = (backup.name.clone(), backup.mesh.to_string());
        Self { mesh, mesh_id, file: file.to_owned(), bytes, owner: backup.owner_secret.is_some() }
    }
}

/// Reads one snapshot; the broker may be running.
pub async fn backup(here: &Here, args: &BackupArgs) -> Result<(), Failure> {
    if args.file.exists() {
        let message = format!("{} is there already; nothing was written", args.file.display());
        return Err(Failure::user(message).with_cure("Name a new file."));
    }
    let (store, at_rest, held) = open(args, Want::Existing).await?;
    let made = backup::make(&store, &at_rest, args.mesh.as_deref()).await.map_err(failed);
    store.close().await;
    drop(held);
    let mut made = made?;
    made.owner_secret = owner_secret(here, &made.owner)?;
    let passphrase = passphrase(args.passphrase_file.as_deref(), true)?;
    let plain = Zeroizing::new(serde_json::to_vec(&made).map_err(|e| Failure::platform(e.to_string()))?);
    let sealed = vault::passphrase::seal(&passphrase, &plain);
    // A name alone has no folder that could be synced.
    let file = std::path::absolute(&args.file).map_err(|e| unwritten(&args.file, &e))?;
    write_private(&file, &sealed).map_err(|e| unwritten(&file, &e))?;
    let done = Done::of(&made, &args.file, sealed.len());
    if here.out.json {
        return here.out.document(&done);
    }
    here.out.line(format!(
        "{} is in {} ({})",
        done.mesh,
        args.file.display(),
        units::size(done.bytes as u64)
    ));
    if !done.owner {
        here.out.remark("its owner's identity is not in it: that is in the config of another person");
    }
    here.out.remark("whoever has the file and its passphrase has everything");
    Ok(())
}

/// Writes the mesh into a database that does not have it; `claudemesh up` then serves it.
pub async fn restore(here: &Here, args: &BackupArgs) -> Result<(), Failure> {
    let sealed = std::fs::read(&args.file)
        .map_err(|e| Failure::user(format!("cannot read {}: {e}", args.file.display())))?;
    let passphrase = passphrase(args.passphrase_file.as_deref(), false)?;
    let plain = vault::passphrase::open(&passphrase, &sealed)
        .map_err(|e| Failure::user(format!("{}: {e}", args.file.display())))?;
    // serde's own message could quote a key.
    let read: Backup = serde_json::from_slice(&plain)
        .map_err(|_| Failure::user(format!("{} is no backup of this version", args.file.display())))?;
    let (store, at_rest, held) = open(args, Want::New).await?;
    let restored = backup::restore(&store, &at_rest, &read).await;
    store.close().await;
    let home = held.as_ref().map_or(here.config_folder.as_path(), |(data, _)| data.path());
    let files = OwnerFiles::in_folder(home);
    let expected = expected_owner(here, &read, held.is_some())?.filter(|_| !files.are_there());
    match restored {
        // One that was killed between the database and the owner is ended here.
        Err(BackupError::IsThere) if expected.is_some() => {}
        restored => restored.map_err(failed)?,
    }
    if let Some(secret) = expected {
        files.expect_owner(&read.name, secret)?;
    }
    let next = match (&held, expected) {
        (Some(_), Some(_)) => "claudemesh up",
        (None, Some(_)) => "start its broker, with --bootstrap, which takes the owner's identity from here",
        (_, None) => "start its broker",
    };
    drop(held);
    if here.out.json {
        return here.out.document(&Done::of(&read, &args.file, sealed.len()));
    }
    here.out.line(format!(
        "{} is back, as it was at {}",
        read.name,
        units::moment(read.made_ms, units::now_ms())
    ));
    here.out.remark(format!("next: {next}; then its owner trusts the new runner (on one machine `up` does)"));
    Ok(())
}

/// Whose identity the first start is to find, beside the data folder or in the config folder; in that it may be already.
fn expected_owner<'a>(here: &Here, read: &'a Backup, is_folder: bool) -> Result<Option<&'a Secret>, Failure> {
    let is_known = !is_folder && owner_secret(here, &read.owner)?.is_some();
    Ok(read.owner_secret.as_ref().filter(|_| !is_known))
}

enum Want {
    Existing,
    New,
}

type Opened = (Store, AtRest, Option<(DataFolder, Held)>);

/// The database that the flags name. A data folder is held while something is written to it.
async fn open(args: &BackupArgs, want: Want) -> Result<Opened, Failure> {
    let given = database_of(args.database_url_file.as_deref())?;
    let (url, roots, held) = match (given, want) {
        (Some(url), _) => {
            let roots = given_roots(&args.key)?;
            if roots.is_empty() {
                return Err(Failure::user(
                    "the key of this database is needed: BROKER_ENCRYPTION_KEY or --key-file",
                ));
            }
            (url.expose().to_owned(), roots, None)
        }
        (None, Want::Existing) => {
            let data = DataFolder::of(&args.data)?;
            if !data.join("broker.db").is_file() {
                return Err(Failure::user(format!("{} holds no mesh", data.path().display())));
            }
            (data.database_url(), data.at_rest_roots(&args.key)?, None)
        }
        (None, Want::New) => {
            let data = DataFolder::of(&args.data)?;
            let held = data.hold()?;
            if OwnerFiles::in_folder(data.path()).are_there() {
                let message = format!("{} has a mesh already; nothing was changed", data.path().display());
                return Err(Failure::of_code(ErrorCode::Conflict, message)
                    .with_cure("Restore into a new --data folder."));
            }
            (data.database_url(), data.at_rest_roots(&args.key)?, Some((data, held)))
        }
    };
    let opened = Store::open(StoreConfig { url, max_connections: 2 }).await;
    let store = opened.map_err(|e| Failure::platform(format!("the database can not be opened: {e}")))?;
    let at_rest = AtRest::new(roots).map_err(|e| failed(AtRestError::from(e).into()))?;
    Ok((store, at_rest, held))
}

/// Of the config, when it is the owner's.
fn owner_secret(here: &Here, owner: &PublicKey) -> Result<Option<Secret>, Failure> {
    let config = here.config()?;
    let entry = config.meshes.iter().find(|entry| entry.pubkey == *owner);
    Ok(entry
        .filter(|entry| Identity::from_secret(&entry.secret_key).is_ok())
        .map(|entry| entry.secret_key.clone()))
}

fn failed(error: BackupError) -> Failure {
    Failure::of_code(error.code(), error.to_string())
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::platform(format!("cannot write {}: {error}", path.display()))
}
