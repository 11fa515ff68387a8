//! The keys that the broker encrypts with at rest: root → mesh key → a key for each record.
//!
//! The root never seals a record of a mesh itself: it wraps the mesh's keys, so that it can be exchanged by wrapping a few
//! keys again. Not here: where roots come from, where wrapped keys are stored.
//! Invariant: a wrapped key opens only as a key of the mesh that it was made for.

use wire::MeshId;
use zeroize::Zeroizing;

use crate::{AtRestKey, OpenError, Sealed};

const MESH_KEY_PURPOSE: &str = "claudemesh/at-rest/v1/mesh-key";

/// The configured roots: the first wraps, all open.
#[derive(Debug)]
pub struct KeyRing {
    active: AtRestKey,
    older: Vec<AtRestKey>,
}

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

impl From<OpenError> for RingError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::WrongKey(id) => Self::MissingRoot(id),
            OpenError::Damaged => Self::Damaged,
        }
    }
}

impl KeyRing {
    /// # Errors
    /// [`RingError::Empty`].
    pub fn new(roots: Vec<AtRestKey>) -> Result<Self, RingError> {
        let mut roots = roots.into_iter();
        let active = roots.next().ok_or(RingError::Empty)?;
        Ok(Self { active, older: roots.collect() })
    }

    /// Id of the root that wraps.
    pub fn active(&self) -> &str {
        self.active.id()
    }

    /// Seals something that belongs to no mesh, directly under the active root.
    pub fn seal(&self, context: &[&str], plain: &[u8]) -> Sealed {
        self.active.seal(context, plain)
    }

    /// Opens what any of the roots sealed: of no mesh, or of a time before there were mesh keys.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, context: &[&str], sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let sealed_by = sealed.key_id();
        let root = std::iter::once(&self.active)
            .chain(&self.older)
            .find(|root| sealed_by == Some(root.id()))
            .unwrap_or(&self.active);
        root.open(context, sealed)
    }

    /// A new key of a mesh, and its wrapped form for the store.
    pub fn new_mesh_key(&self, mesh: &MeshId) -> (AtRestKey, Sealed) {
        let key = AtRestKey::generate();
        let wrapped = self.wrap(mesh, &key);
        (key, wrapped)
    }

    /// # Errors
    /// [`RingError`].
    pub fn unwrap_mesh_key(&self, mesh: &MeshId, wrapped: &Sealed) -> Result<AtRestKey, RingError> {
        let root = self.open(&[MESH_KEY_PURPOSE, mesh.as_str()], wrapped)?;
        let root: &[u8; 32] = root.as_slice().try_into().map_err(|_| RingError::Damaged)?;
        Ok(AtRestKey::from_root(root))
    }

    /// The same key under the active root; `None` when it is that already.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn rewrap(&self, mesh: &MeshId, wrapped: &Sealed) -> Result<Option<Sealed>, RingError> {
        let key = self.unwrap_mesh_key(mesh, wrapped)?;
        Ok((wrapped.key_id() != Some(self.active())).then(|| self.wrap(mesh, &key)))
    }

    /// A mesh key for the store.
    pub fn wrap(&self, mesh: &MeshId, key: &AtRestKey) -> Sealed {
        self.active.seal(&[MESH_KEY_PURPOSE, mesh.as_str()], key.root())
    }
}

#[cfg(test)]
mod tests;
