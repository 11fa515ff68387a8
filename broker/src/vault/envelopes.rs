//! Entries of the original's form: opaque envelopes, which are stored and handed back.
//!
//! Nothing of ours opens them, so no service can refer to one.

use catalog::access::Action;
use wire::peer::vault::{VaultAck, VaultGet, VaultGetResult, VaultSealed, VaultSet};
use wire::vault::{EntryKind, MAX_ENTRIES, MAX_FILE_VALUE, VaultName};

use super::{Asker, VaultError};
use crate::clock;
use crate::commit::commit;
use crate::store::{Act, ActKind, Envelope, Tx};

/// Base64 of the largest value and what a cipher adds to it.
const MAX_CIPHERTEXT: usize = (MAX_FILE_VALUE + 64) / 3 * 4 + 4;
const MAX_NONCE: usize = 64;
const MAX_SEALED_KEY: usize = 512;
const MAX_TEXT: usize = 1024;
/// Of one answer.
const MAX_ANSWER: usize = 8 << 20;

/// Stores an envelope in place of the one of its name.
///
/// # Errors
/// [`VaultError`].
pub async fn set(asker: Asker<'_>, frame: VaultSet) -> Result<VaultAck, VaultError> {
    let Asker { broker, caller, view: _ } = asker;
    if !asker.may(Action::KeepSecrets) {
        return Err(VaultError::Forbidden("guests keep no secrets in the vault"));
    }
    let envelope = checked(frame)?;
    let owner = asker.key()?;
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    if is_ours(&mut tx, asker, &envelope.key).await? {
        return Err(VaultError::Conflict("an entry of another form has this name; remove it first"));
    }
    asker.has_room(&mut tx, &envelope.key, &envelope.ciphertext).await?;
    let is_new = tx.entries().envelope(&caller.mesh, owner, &envelope.key).await?.is_none();
    if is_new && tx.entries().count(&caller.mesh, owner).await? >= MAX_ENTRIES {
        return Err(VaultError::TooMuch("you have as many entries as a member may have: 1,000"));
    }
    tx.entries().set_envelope(&caller.mesh, owner, &envelope).await?;
    let act = asker.act(ActKind::Set);
    tx.ledger().did(&Act { entry: Some((owner.clone(), envelope.key.clone())), ..act }).await?;
    commit(broker, &caller.mesh, tx).await?;
    Ok(VaultAck { key: envelope.key.to_string(), action: "stored".into() })
}

fn checked(frame: VaultSet) -> Result<Envelope, VaultError> {
    let VaultSet { key, ciphertext, nonce, sealed_key, entry_type, mount_path, description } = frame;
    for (text, most) in [(&ciphertext, MAX_CIPHERTEXT), (&nonce, MAX_NONCE), (&sealed_key, MAX_SEALED_KEY)] {
        if text.is_empty() || text.len() > most || !text.bytes().all(is_base64) {
            return Err(VaultError::Args(
                "ciphertext, nonce and sealed_key are base64, of at most 512 KiB, 64 and 512 characters",
            ));
        }
    }
    if entry_type != "env" && entry_type != "file" {
        return Err(VaultError::Args("entry_type is `env` or `file`"));
    }
    for text in [&mount_path, &description].into_iter().flatten() {
        // PostgreSQL takes no zero byte.
        if text.len() > MAX_TEXT || text.contains('\0') {
            return Err(VaultError::Args(
                "mount_path and description have at most 1,024 bytes, none of them zero",
            ));
        }
    }
    let key = VaultName::parse(&key)?;
    let updated_at = clock::now_ms();
    Ok(Envelope { key, ciphertext, nonce, sealed_key, entry_type, mount_path, description, updated_at })
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=')
}

/// Whether an entry of ours has the name.
async fn is_ours(tx: &mut Tx, asker: Asker<'_>, key: &VaultName) -> Result<bool, VaultError> {
    let newest = tx.entries().newest_bare(&asker.caller.mesh, asker.key()?, key).await?;
    Ok(newest.is_some_and(|newest| newest.kind != EntryKind::Gone))
}

/// The caller's own; names without one are left out.
///
/// # Errors
/// [`VaultError`].
pub async fn get(asker: Asker<'_>, frame: VaultGet) -> Result<VaultGetResult, VaultError> {
    if frame.keys.len() > MAX_ENTRIES {
        return Err(VaultError::Args("at most 1,000 keys at a time"));
    }
    let (mesh, owner) = (&asker.caller.mesh, asker.key()?);
    let (mut entries, mut size) = (Vec::new(), 0);
    let mut tx = asker.broker.store.read().await?;
    for key in frame.keys {
        // What is no name names no entry.
        let Ok(key) = VaultName::parse(&key) else { continue };
        let Some(envelope) = tx.entries().envelope(mesh, owner, &key).await? else { continue };
        let Envelope { key, ciphertext, nonce, sealed_key, entry_type, mount_path, .. } = envelope;
        size += ciphertext.len();
        if size > MAX_ANSWER {
            return Err(VaultError::TooMuch(
                "the answer would be larger than 8 MiB; ask for fewer keys at a time",
            ));
        }
        let key = key.to_string();
        entries.push(VaultSealed { key, ciphertext, nonce, sealed_key, entry_type, mount_path });
    }
    Ok(VaultGetResult { entries })
}

/// Removes an envelope of the caller.
///
/// # Errors
/// [`VaultError`].
pub async fn delete(asker: Asker<'_>, key: &str) -> Result<VaultAck, VaultError> {
    let Asker { broker, caller, view: _ } = asker;
    let key = VaultName::parse(key)?;
    let owner = asker.key()?;
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    if !tx.entries().delete_envelope(&caller.mesh, owner, &key).await? {
        return if is_ours(&mut tx, asker, &key).await? {
            Err(VaultError::Conflict(
                "the entry is removed by a version that its owner signs: `claudemesh vault rm`",
            ))
        } else {
            Ok(VaultAck { key: key.to_string(), action: "not_found".into() })
        };
    }
    let act = asker.act(ActKind::Removed);
    tx.ledger().did(&Act { entry: Some((owner.clone(), key.clone())), ..act }).await?;
    commit(broker, &caller.mesh, tx).await?;
    Ok(VaultAck { key: key.to_string(), action: "deleted".into() })
}
