//! Entries of the original's form: envelopes, opaque to us. A name of an owner holds one of these or an entry of ours.
//!
//! Not here: who may write (`crate::vault`), entries of ours ([`super::entries`]).

use wire::vault::VaultName;
use wire::{MeshId, PublicKey};

use super::row::Place;
use super::{Entries, StoreError, execute, fetch_all, fetch_optional};

/// What the original's clients store. Everything but the key and the type is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub key: VaultName,
    pub ciphertext: String,
    pub nonce: String,
    pub sealed_key: String,
    pub entry_type: String,
    pub mount_path: Option<String>,
    pub description: Option<String>,
    pub updated_at: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT key_name, ciphertext, nonce, sealed_key, entry_type, mount_path, description, updated_at \
             FROM vault_envelope ",
            $rest
        )
    };
}

const SET_ENVELOPE: &str = "INSERT INTO vault_envelope (mesh_id, owner, key_name, ciphertext, nonce, sealed_key, \
    entry_type, mount_path, description, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
    ON CONFLICT (mesh_id, owner, key_name) DO UPDATE SET ciphertext = excluded.ciphertext, nonce = excluded.nonce, \
    sealed_key = excluded.sealed_key, entry_type = excluded.entry_type, mount_path = excluded.mount_path, \
    description = excluded.description, updated_at = excluded.updated_at";
const ENVELOPE: &str = select!("WHERE mesh_id = $1 AND owner = $2 AND key_name = $3");
const ENVELOPES: &str = select!("WHERE mesh_id = $1 AND owner = $2 ORDER BY key_name");
const DELETE_ENVELOPE: &str =
    "DELETE FROM vault_envelope WHERE mesh_id = $1 AND owner = $2 AND key_name = $3";

impl Entries<'_> {
    /// Stores an envelope in place of the one of its name.
    pub async fn set_envelope(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        envelope: &Envelope,
    ) -> Result<(), StoreError> {
        let Envelope { key, ciphertext, nonce, sealed_key, entry_type, mount_path, description, updated_at } =
            envelope;
        execute!(
            &mut *self.tx,
            SET_ENVELOPE,
            mesh.as_str(),
            owner.as_str(),
            key.as_str(),
            ciphertext,
            nonce,
            sealed_key,
            entry_type,
            mount_path.as_deref(),
            description.as_deref(),
            *updated_at
        )?;
        Ok(())
    }

    pub async fn envelope(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<Option<Envelope>, StoreError> {
        let row: Option<EnvelopeRow> =
            fetch_optional!(&mut *self.tx, ENVELOPE, mesh.as_str(), owner.as_str(), key.as_str())?;
        row.map(|row| row.read(mesh, owner)).transpose()
    }

    /// By name.
    pub async fn envelopes(&mut self, mesh: &MeshId, owner: &PublicKey) -> Result<Vec<Envelope>, StoreError> {
        let rows: Vec<EnvelopeRow> = fetch_all!(&mut *self.tx, ENVELOPES, mesh.as_str(), owner.as_str())?;
        rows.into_iter().map(|row| row.read(mesh, owner)).collect()
    }

    /// `false` when there is none.
    pub async fn delete_envelope(
        &mut self,
        mesh: &MeshId,
        owner: &PublicKey,
        key: &VaultName,
    ) -> Result<bool, StoreError> {
        let (mesh, owner, key) = (mesh.as_str(), owner.as_str(), key.as_str());
        Ok(execute!(&mut *self.tx, DELETE_ENVELOPE, mesh, owner, key)? == 1)
    }
}

#[derive(sqlx::FromRow)]
struct EnvelopeRow {
    key_name: String,
    ciphertext: String,
    nonce: String,
    sealed_key: String,
    entry_type: String,
    mount_path: Option<String>,
    description: Option<String>,
    updated_at: i64,
}

impl EnvelopeRow {
    fn read(self, mesh: &MeshId, owner: &PublicKey) -> Result<Envelope, StoreError> {
        let Self { key_name, ciphertext, nonce, sealed_key, entry_type, mount_path, description, updated_at } =
            self;
        let id = format!("{mesh}/{owner}/{key_name}");
        let place = Place { table: "vault_envelope", id: &id };
        let key = place.id("key_name", VaultName::parse, &key_name)?;
        Ok(Envelope { key, ciphertext, nonce, sealed_key, entry_type, mount_path, description, updated_at })
    }
}
