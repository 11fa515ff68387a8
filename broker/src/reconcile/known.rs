//! What the store says about references to the vault, kept until their mesh changes: each costs queries and signatures, and the
//! reconciler looks whenever anything of any mesh does.
//!
//! Not here: what an entry, a consent or a caller's standing is (`crate::deploy`, `crate::callers`).
//! Invariant: what is kept was read after the epoch was asked for that it is kept under.

use std::collections::HashMap;
use std::sync::Arc;

use wire::{Generation, MemberId, MeshId, ServiceKey};

use crate::callers::Standing;
use crate::deploy::{self, Mark};
use crate::store::{Member, StoreError, StoredGeneration, Tx};

#[derive(Default)]
pub(super) struct Known {
    epochs: HashMap<MeshId, u64>,
    marks: HashMap<(ServiceKey, Generation), Option<Mark>>,
    callers: HashMap<(ServiceKey, Generation, MemberId), OfCaller>,
    members: HashMap<MeshId, HashMap<MemberId, Arc<Member>>>,
}

/// What a caller has of a generation that runs as its caller.
#[derive(Debug, Clone)]
pub(super) struct OfCaller {
    /// As in `crate::callers::Given`; `None` when they lack something.
    pub(super) held: Option<String>,
    pub(super) mark: Option<Mark>,
}

impl Known {
    /// Forgets what is of meshes that have changed. Before anything is read.
    pub(super) fn keep_what_holds(&mut self, epochs: HashMap<MeshId, u64>) {
        let before = std::mem::replace(&mut self.epochs, epochs);
        let holds = |mesh: &MeshId| before.get(mesh) == self.epochs.get(mesh);
        self.marks.retain(|(key, _), _| holds(&key.mesh));
        self.callers.retain(|(key, ..), _| holds(&key.mesh));
        self.members.retain(|mesh, _| holds(mesh));
    }

    /// [`deploy::mark`] of a generation for its deployer.
    pub(super) async fn mark(
        &mut self,
        tx: &mut Tx,
        stored: Option<&StoredGeneration>,
    ) -> Result<Option<Mark>, StoreError> {
        let Some(stored) = stored else { return Ok(None) };
        let at = (stored.key.clone(), stored.generation);
        if let Some(known) = self.marks.get(&at) {
            return Ok(*known);
        }
        let mark = deploy::mark(tx, stored, None).await?;
        self.marks.insert(at, mark);
        Ok(mark)
    }

    pub(super) async fn of_caller(
        &mut self,
        tx: &mut Tx,
        stored: &StoredGeneration,
        caller: &Member,
    ) -> Result<OfCaller, StoreError> {
        let at = (stored.key.clone(), stored.generation, caller.id.clone());
        if let Some(known) = self.callers.get(&at) {
            return Ok(known.clone());
        }
        let standing = Standing::of(tx, stored, &caller.pubkey).await?;
        let held = standing.is_complete().then_some(standing.held);
        let mark = deploy::mark(tx, stored, Some(&caller.pubkey)).await?;
        let found = OfCaller { held, mark };
        self.callers.insert(at, found.clone());
        Ok(found)
    }

    /// Also one who was removed.
    pub(super) async fn member(
        &mut self,
        tx: &mut Tx,
        mesh: &MeshId,
        id: &MemberId,
    ) -> Result<Option<Arc<Member>>, StoreError> {
        if let Some(known) = self.members.get(mesh) {
            return Ok(known.get(id).cloned());
        }
        let all = tx.members().list(mesh).await?;
        let all: HashMap<_, _> =
            all.into_iter().map(|member| (member.id.clone(), Arc::new(member))).collect();
        let found = all.get(id).cloned();
        self.members.insert(mesh.clone(), all);
        Ok(found)
    }
}
