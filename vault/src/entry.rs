//! Entries: sealed and signed by their owner, opened by who holds the vault key, sealed again to another one.
//!
//! The value lies under a random content key, used once (AES-256-GCM, nonce zero); the content key lies under the vault
//! key (HPKE). The owner signs everything but the wrap, so that a rotation exchanges wraps and needs no owner.
//! Not here: which versions were seen before, and who may store an entry.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use wire::vault::{BoxPublic, EntryKind, MAX_ENV_VALUE, MAX_FILE_VALUE, VaultEntry, VaultName, Wrap, WrapOf};
use wire::{MeshId, PublicKey};
use zeroize::Zeroizing;

use crate::framing::{framed, from_base64, sha256_hex, statement, to_base64, verify};
use crate::keys::{BoxKey, key_id, seal_to};
use crate::{Refused, Signer, boxed};

const CONTENT_PURPOSE: &str = "claudemesh/vault/v1/content";
const WRAP_PURPOSE: &str = "claudemesh/vault/v1/wrap";
const ENTRY_PURPOSE: &str = "claudemesh/vault/v1/entry";
const CONTENT_KEY: usize = 32;
const TAG: usize = 16;

/// What is sealed, and for what.
pub struct NewEntry<'a> {
    pub mesh: &'a MeshId,
    pub key: &'a VaultName,
    pub version: i64,
    pub created_ms: i64,
}

/// Whether a value may be sealed as this kind. Sealing does not ask; opening does.
///
/// # Errors
/// [`Refused::Form`].
pub fn check_value(kind: EntryKind, plain: &[u8]) -> Result<(), Refused> {
    match kind {
        EntryKind::Env if plain.len() > MAX_ENV_VALUE => {
            Err(Refused::Form("the value of a variable is longer than 64 KiB"))
        }
        EntryKind::Env if plain.contains(&0) || std::str::from_utf8(plain).is_err() => {
            Err(Refused::Form("the value of a variable is UTF-8 text without zero bytes"))
        }
        EntryKind::File if plain.len() > MAX_FILE_VALUE => {
            Err(Refused::Form("the value is longer than 512 KiB"))
        }
        EntryKind::Gone => Err(Refused::Form("an entry that is gone has no value")),
        EntryKind::Env | EntryKind::File => Ok(()),
    }
}

/// Seals `plain`, which [`check_value`] took, to a vault key, which [`crate::keys::check_key`] took, and signs the entry.
/// `kind` is not [`EntryKind::Gone`].
pub fn seal(
    owner: &dyn Signer,
    new: &NewEntry<'_>,
    kind: EntryKind,
    to: &BoxPublic,
    plain: &[u8],
) -> VaultEntry {
    let mut entry = unsigned(owner, new, kind);
    let mut content_key = Zeroizing::new([0_u8; CONTENT_KEY]);
    getrandom::fill(content_key.as_mut()).expect("the operating system has random numbers");
    let sealed = cipher(content_key.as_ref())
        .encrypt(&Nonce::default(), Payload { msg: plain, aad: &content_frame(new.mesh, &entry) })
        .expect("AES-GCM seals up to 64 GiB");
    entry.content = to_base64(&sealed);
    let bound = Bound::of(new.mesh, &entry);
    entry.wrap = Some(bound.wrap(to, content_key.as_ref()).expect("a checked vault key can be sealed to"));
    entry.signature = owner.sign(&entry_statement(new.mesh, &entry));
    entry
}

/// The version that says that there is nothing any more.
pub fn gone(owner: &dyn Signer, new: &NewEntry<'_>) -> VaultEntry {
    let mut entry = unsigned(owner, new, EntryKind::Gone);
    entry.signature = owner.sign(&entry_statement(new.mesh, &entry));
    entry
}

fn unsigned(owner: &dyn Signer, new: &NewEntry<'_>, kind: EntryKind) -> VaultEntry {
    VaultEntry {
        owner: owner.public().clone(),
        key: new.key.clone(),
        version: new.version,
        kind,
        created_ms: new.created_ms,
        content: String::new(),
        signature: String::new(),
        wrap: None,
    }
}

/// Whether the owner that the entry names signed it for this mesh, and its form. Opens nothing.
///
/// # Errors
/// [`Refused`].
pub fn check(mesh: &MeshId, entry: &VaultEntry) -> Result<(), Refused> {
    if entry.version < 1 {
        return Err(Refused::Form("the version of an entry is below 1"));
    }
    let longest = match entry.kind {
        EntryKind::Env => MAX_ENV_VALUE,
        EntryKind::File => MAX_FILE_VALUE,
        EntryKind::Gone => 0,
    };
    match (&entry.wrap, entry.kind) {
        (None, EntryKind::Gone) if entry.content.is_empty() => {}
        (_, EntryKind::Gone) => return Err(Refused::Form("an entry that is gone has no value")),
        (None, _) => return Err(Refused::Form("an entry has no key")),
        (Some(wrap), _) => {
            check_wrap(wrap)?;
            let content = from_base64(&entry.content)?;
            if content.len() < TAG {
                return Err(Refused::Damaged);
            }
            if content.len() > longest + TAG {
                return Err(Refused::Form("the value of an entry is too long"));
            }
        }
    }
    verify(&entry.owner, &entry.signature, &entry_statement(mesh, entry))
}

/// Whether this has the form of a wrap. Only its vault key opens it; so a broker checks the wraps of a rotation.
///
/// # Errors
/// [`Refused::Damaged`].
pub fn check_wrap(wrap: &Wrap) -> Result<(), Refused> {
    if from_base64(&wrap.sealed)?.len() == boxed::sealed_len(CONTENT_KEY) {
        Ok(())
    } else {
        Err(Refused::Damaged)
    }
}

/// The value. The signature is not looked at again: [`check`] does that.
///
/// # Errors
/// [`Refused::OtherKey`] when it is sealed to another key than `key`, [`Refused::Form`] when the value is none of its
/// kind, [`Refused::Damaged`] in every other case.
pub fn open(key: &BoxKey, mesh: &MeshId, entry: &VaultEntry) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let wrap = entry.wrap.as_ref().ok_or(Refused::Damaged)?;
    let content_key = Bound::of(mesh, entry).unwrap(key, wrap)?;
    let content = from_base64(&entry.content)?;
    let plain = cipher(&content_key)
        .decrypt(&Nonce::default(), Payload { msg: &content, aad: &content_frame(mesh, entry) })
        .map(Zeroizing::new)
        .map_err(|_| Refused::Damaged)?;
    check_value(entry.kind, &plain)?;
    Ok(plain)
}

/// What a rotation has to know of an entry; `None` of one that is gone.
pub fn wrap_of(entry: &VaultEntry) -> Option<WrapOf> {
    let wrap = entry.wrap.clone()?;
    Some(WrapOf {
        owner: entry.owner.clone(),
        key: entry.key.clone(),
        version: entry.version,
        kind: entry.kind,
        created_ms: entry.created_ms,
        content_sha256: sha256_hex(entry.content.as_bytes()),
        wrap,
    })
}

/// Seals the content key of an entry to another vault key. The content and the owner's signature stay as they are.
///
/// # Errors
/// As [`open`]; [`Refused::Form`] when nothing can be sealed to the new key.
pub fn rewrap(old: &BoxKey, new: &BoxPublic, mesh: &MeshId, of: &WrapOf) -> Result<Wrap, Refused> {
    let WrapOf { owner, key, version, kind, created_ms, content_sha256, wrap } = of;
    let fields = fields(mesh, owner, key, *version, *kind, *created_ms);
    let bound = Bound { fields, content_sha256: content_sha256.clone() };
    let content_key = bound.unwrap(old, wrap)?;
    bound.wrap(new, &content_key)
}

/// What binds a wrap to its place.
struct Bound {
    fields: [String; 6],
    content_sha256: String,
}

impl Bound {
    fn of(mesh: &MeshId, entry: &VaultEntry) -> Self {
        Self { fields: fields_of(mesh, entry), content_sha256: sha256_hex(entry.content.as_bytes()) }
    }

    fn frame(&self, kid: &str) -> Vec<u8> {
        let mut fields: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        fields.extend([kid, &self.content_sha256]);
        framed(WRAP_PURPOSE, &fields)
    }

    fn wrap(&self, to: &BoxPublic, content_key: &[u8]) -> Result<Wrap, Refused> {
        let kid = key_id(to);
        let sealed = seal_to(to, WRAP_PURPOSE, &self.frame(kid.as_str()), content_key)?;
        Ok(Wrap { kid, sealed })
    }

    fn unwrap(&self, key: &BoxKey, wrap: &Wrap) -> Result<Zeroizing<Vec<u8>>, Refused> {
        if wrap.kid != key_id(&key.public()) {
            return Err(Refused::OtherKey(wrap.kid.clone()));
        }
        let content_key = key.open(WRAP_PURPOSE, &self.frame(wrap.kid.as_str()), &wrap.sealed)?;
        if content_key.len() == CONTENT_KEY { Ok(content_key) } else { Err(Refused::Damaged) }
    }
}

fn cipher(content_key: &[u8]) -> Aes256Gcm {
    Aes256Gcm::new_from_slice(content_key).expect("a content key is 32 bytes")
}

fn fields(
    mesh: &MeshId,
    owner: &PublicKey,
    key: &VaultName,
    version: i64,
    kind: EntryKind,
    created_ms: i64,
) -> [String; 6] {
    [
        mesh.to_string(),
        owner.to_string(),
        key.to_string(),
        version.to_string(),
        kind.as_str().to_owned(),
        created_ms.to_string(),
    ]
}

fn fields_of(mesh: &MeshId, entry: &VaultEntry) -> [String; 6] {
    let VaultEntry { owner, key, version, kind, created_ms, content: _, signature: _, wrap: _ } = entry;
    fields(mesh, owner, key, *version, *kind, *created_ms)
}

fn content_frame(mesh: &MeshId, entry: &VaultEntry) -> Vec<u8> {
    framed(CONTENT_PURPOSE, &fields_of(mesh, entry).each_ref().map(String::as_str))
}

fn entry_statement(mesh: &MeshId, entry: &VaultEntry) -> String {
    let fields = fields_of(mesh, entry);
    let content = sha256_hex(entry.content.as_bytes());
    let mut fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    fields.push(&content);
    statement(ENTRY_PURPOSE, &fields)
}

#[cfg(test)]
mod tests;
