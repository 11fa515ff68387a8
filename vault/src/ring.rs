//! The keys that the broker encrypts with at rest: root → mesh key → a key for each record.
//!
//! The root never seals a record of a mesh itself: it wraps the mesh's keys, so that it can be exchanged by wrapping a few
//! keys again. Not here: where roots come from, where wrapped keys are stored.

use wire::MeshId;

use crate::{AtRestKey, OpenError, Sealed};

/// The configured roots: the first wraps, all open.
pub struct KeyRing(());

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("no at-rest key is given")]
    Empty,
    /// The id of the root that is missing.
    #[error("the at-rest key {0} is not given any more, but something is still encrypted under it")]
    MissingRoot(String),
    #[error("a stored key is damaged")]
    Damaged,
}

impl KeyRing {
    /// # Errors
    /// [`RingError::Empty`].
    pub fn new(_roots: Vec<AtRestKey>) -> Result<Self, RingError> {
        unimplemented!()
    }

    /// Id of the root that wraps.
    pub fn active(&self) -> &str {
        unimplemented!()
    }

    /// Seals something that belongs to no mesh, directly under the active root.
    pub fn seal(&self, _context: &[&str], _plain: &[u8]) -> Sealed {
        unimplemented!()
    }

    /// Opens what any of the roots sealed: of no mesh, or of a time before there were mesh keys.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &self,
        _context: &[&str],
        _sealed: &Sealed,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, OpenError> {
        unimplemented!()
    }

    /// A new key of a mesh, and its wrapped form for the store.
    pub fn new_mesh_key(&self, _mesh: &MeshId) -> (AtRestKey, Sealed) {
        unimplemented!()
    }

    /// # Errors
    /// [`RingError`].
    pub fn unwrap_mesh_key(&self, _mesh: &MeshId, _wrapped: &Sealed) -> Result<AtRestKey, RingError> {
        unimplemented!()
    }

    /// The same key under the active root; `None` when it is that already.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn rewrap(&self, _mesh: &MeshId, _wrapped: &Sealed) -> Result<Option<Sealed>, RingError> {
        unimplemented!()
    }
}
