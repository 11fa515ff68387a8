//! Entries: sealed and signed by their owner, opened by who holds the vault key, sealed again to another one.

use wire::MeshId;
use wire::vault::{BoxPublic, EntryKind, VaultEntry, VaultName, Wrap, WrapOf};
use zeroize::Zeroizing;

use crate::keys::BoxKey;
use crate::{Refused, Signer};

/// What is sealed, and for what.
pub struct NewEntry<'a> {
    pub mesh: &'a MeshId,
    pub key: &'a VaultName,
    pub version: i64,
    pub created_ms: i64,
}

/// Seals `plain` to a vault key, which the caller has checked, and signs the entry. `kind` is not [`EntryKind::Gone`].
pub fn seal(
    _owner: &dyn Signer,
    _new: &NewEntry<'_>,
    _kind: EntryKind,
    _to: &BoxPublic,
    _plain: &[u8],
) -> VaultEntry {
    unimplemented!()
}

/// The version that says that there is nothing any more.
pub fn gone(_owner: &dyn Signer, _new: &NewEntry<'_>) -> VaultEntry {
    unimplemented!()
}

/// Whether the owner that the entry names signed it for this mesh, and its form. Opens nothing.
///
/// # Errors
/// [`Refused`].
pub fn check(_mesh: &MeshId, _entry: &VaultEntry) -> Result<(), Refused> {
    unimplemented!()
}

/// The value. The signature is not looked at again: [`check`] does that.
///
/// # Errors
/// [`Refused::OtherKey`] when it is sealed to another key than `key`, [`Refused::Damaged`] in every other case.
pub fn open(_key: &BoxKey, _mesh: &MeshId, _entry: &VaultEntry) -> Result<Zeroizing<Vec<u8>>, Refused> {
    unimplemented!()
}

/// What a rotation has to know of an entry; `None` of one that is gone.
pub fn wrap_of(_entry: &VaultEntry) -> Option<WrapOf> {
    unimplemented!()
}

/// Seals the content key of an entry to another vault key. The content and the owner's signature stay as they are.
///
/// # Errors
/// As [`open`].
pub fn rewrap(_old: &BoxKey, _new: &BoxPublic, _mesh: &MeshId, _of: &WrapOf) -> Result<Wrap, Refused> {
    unimplemented!()
}
