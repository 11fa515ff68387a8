//! What the store says about a mesh, kept in memory: members, services, lists. A frame or a call costs no SQL.
//!
//! Here: the snapshot ([`MeshView`]) and its one place of invalidation ([`Views::changed`]), which `crate::commit` calls for
//! every write to members or services. Not here: what the runner says (`observed`), who may see what
//! (`catalog::access`).
//! This, and what hangs on its epochs, is the only state of a broker that a second broker on the same database would not see
//! change; several brokers will need `changed` on a bus.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use catalog::access::{Caller, Subject, may_see};
use catalog::quarantine::{self, Quarantine};
use catalog::suspicion;
use tokio::sync::watch;
use wire::peer::trust::Suspicion;
use wire::report::{Lists, Reason};
use wire::spec::{Pin, ServiceSpec};
use wire::{ErrorCode, Generation, MemberId, MeshId, PublicKey, Scope, ServiceKey, ServiceName};

use crate::callers::Admitted;
use crate::error::FrameError;
use crate::store::{Member, Mesh, Service, Store, StoreError, StoredGeneration, Wanted};

/// One service: the record, its target generation, what it last listed, and what of that is withheld.
pub struct ServiceView {
    row: Service,
    target: StoredGeneration,
    /// While the target is unproven: the newest generation before it that was ready.
    former: Option<StoredGeneration>,
    lists: Option<Arc<Lists>>,
    /// The lists without what is withheld.
    offered: Option<Arc<Lists>>,
    quarantine: Quarantine,
    is_approved: bool,
    suspicions: OnceLock<Vec<Suspicion>>,
}

impl ServiceView {
    fn new(
        row: Service,
        (target, former): (StoredGeneration, Option<StoredGeneration>),
        lists: Option<Arc<Lists>>,
        approved: Option<&[quarantine::Item]>,
    ) -> Self {
        let quarantine =
            lists.as_ref().map(|lists| quarantine::quarantine(approved, lists)).unwrap_or_default();
        let offered = match &lists {
            Some(lists) if !quarantine.is_empty() => Some(Arc::new(quarantine.without(lists))),
            lists => lists.clone(),
        };
        let (is_approved, suspicions) = (approved.is_some(), OnceLock::new());
        Self { row, target, former, lists, offered, quarantine, is_approved, suspicions }
    }

    pub fn row(&self) -> &Service {
        &self.row
    }

    pub fn key(&self) -> &ServiceKey {
        &self.row.key
    }

    pub fn name(&self) -> &ServiceName {
        &self.row.key.name
    }

    pub fn deployed_by(&self) -> &MemberId {
        &self.row.deployed_by
    }

    pub fn scope(&self) -> &Scope {
        &self.row.scope
    }

    pub fn subject(&self) -> Subject<'_> {
        self.row.subject()
    }

    pub fn spec(&self) -> &ServiceSpec {
        &self.target.spec
    }

    /// The generation that should serve.
    pub fn generation(&self) -> &StoredGeneration {
        &self.target
    }

    /// The generation that serves, as far as the store knows: the target, or what worked before it as long as the target
    /// was never ready.
    pub fn serves(&self) -> &StoredGeneration {
        self.former.as_ref().unwrap_or(&self.target)
    }

    pub fn pin(&self) -> Option<&Pin> {
        self.target.pin.as_ref()
    }

    pub fn target(&self) -> Generation {
        self.row.target
    }

    /// Whether the target generation has been ready before.
    pub fn is_proven(&self) -> bool {
        self.target.proven
    }

    /// Everything, as the server said it. For who manages the service: see [`Self::lists_for`].
    pub fn lists(&self) -> Option<&Arc<Lists>> {
        self.lists.as_ref()
    }

    /// The lists that everybody else may have.
    pub fn offered(&self) -> Option<&Arc<Lists>> {
        self.offered.as_ref()
    }

    /// What this caller may have of the lists.
    pub fn lists_for(&self, caller: &Caller) -> Option<&Arc<Lists>> {
        if self.quarantine_for(caller).is_some() { self.offered.as_ref() } else { self.lists.as_ref() }
    }

    /// What is withheld from this caller, if anything is.
    pub fn quarantine_for(&self, caller: &Caller) -> Option<&Quarantine> {
        let holds = !self.quarantine.is_empty() && quarantine::applies_to(caller, self.subject());
        holds.then_some(&self.quarantine)
    }

    /// Whether anything of it was ever approved. Not so only for what an older version of the broker stored.
    pub fn is_approved(&self) -> bool {
        self.is_approved
    }

    /// Of all its tools, found when somebody first asks.
    pub fn suspicions(&self) -> &[Suspicion] {
        let tools = || self.lists.iter().flat_map(|lists| &lists.tools);
        self.suspicions.get_or_init(|| tools().flat_map(suspicion::of).take(MAX_SUSPICIONS).collect())
    }

    pub fn is_stopped(&self) -> bool {
        self.row.wanted == Wanted::Stopped
    }

    /// Why nothing serves and nothing tries again.
    pub fn failure(&self) -> Option<&Reason> {
        self.row.failed.as_ref().filter(|_| self.row.has_failed()).map(|failed| &failed.reason)
    }
}

/// Most suspicions of one service: enough for anybody to stop trusting it.
const MAX_SUSPICIONS: usize = 100;

/// A mesh at one moment.
pub struct MeshView {
    mesh: Mesh,
    members: HashMap<MemberId, (Member, Arc<Caller>)>,
    services: BTreeMap<ServiceName, Arc<ServiceView>>,
    /// Callers who were found to have what a service needs of them.
    pub(crate) admitted: Admitted,
}

impl MeshView {
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// For people: the name, else the slug, else the id.
    pub fn mesh_name(&self) -> &str {
        [self.mesh.name.as_str(), self.mesh.slug.as_str()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or(self.mesh.id.as_str())
    }

    /// The member as the access table asks for it; `None` when unknown or removed.
    pub fn caller(&self, member: &MemberId) -> Option<Arc<Caller>> {
        self.members.get(member).filter(|(row, _)| !row.is_revoked()).map(|(_, caller)| Arc::clone(caller))
    }

    /// Everyone who has not been removed.
    pub fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.members.values().filter(|(row, _)| !row.is_revoked()).map(|(_, caller)| &**caller)
    }

    pub fn key_of(&self, member: &MemberId) -> Option<&PublicKey> {
        self.members.get(member).map(|(row, _)| &row.pubkey)
    }

    /// Display name, also of a removed member.
    pub fn name_of(&self, member: &MemberId) -> String {
        self.members.get(member).map_or_else(|| "unknown".to_owned(), |(row, _)| row.display_name.clone())
    }

    /// Display name of who has this key, also of a removed member.
    pub fn name_of_key(&self, key: &PublicKey) -> String {
        let found = self.members.values().find(|(row, _)| row.pubkey == *key);
        found.map_or_else(|| "unknown".to_owned(), |(row, _)| row.display_name.clone())
    }

    pub fn message_mode(&self, member: &MemberId) -> String {
        self.members.get(member).map_or_else(|| "push".to_owned(), |(row, _)| row.message_mode.clone())
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services.values()
    }

    /// Whether the caller may see it is `catalog::access`'s question.
    pub fn service(&self, name: &str) -> Option<&Arc<ServiceView>> {
        self.services.get(&ServiceName::parse(name).ok()?)
    }

    /// The service, if the caller may know of it.
    ///
    /// # Errors
    /// `not_found`, whether there is none or it is hidden.
    pub fn visible(&self, caller: &Caller, name: &str) -> Result<Arc<ServiceView>, FrameError> {
        let found = self.service(name).filter(|service| may_see(caller, service.subject()));
        found.cloned().ok_or_else(|| FrameError::not_found(name))
    }

    pub fn visible_to(&self, caller: &Caller) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services().filter(|service| may_see(caller, service.subject()))
    }
}

#[derive(Default)]
struct Slot {
    /// Counts changes, so that a snapshot that was read before a change is not kept after it.
    epoch: watch::Sender<u64>,
    view: Option<Arc<MeshView>>,
}

pub struct Views {
    store: Store,
    slots: RwLock<HashMap<MeshId, Slot>>,
    /// One reader of the store at a time: after a change every connection wants the same snapshot.
    loading: tokio::sync::Mutex<()>,
}

impl Views {
    pub fn new(store: Store) -> Self {
        Self { store, slots: RwLock::default(), loading: tokio::sync::Mutex::default() }
    }

    /// The mesh now.
    ///
    /// # Errors
    /// `mesh_not_found`, or `internal` when the store fails.
    pub async fn of(&self, mesh: &MeshId) -> Result<Arc<MeshView>, FrameError> {
        let found = self.find(mesh).await?;
        found.ok_or_else(|| FrameError::new(ErrorCode::MeshNotFound, ErrorCode::MeshNotFound.cause()))
    }

    /// # Errors
    /// When the store fails.
    pub async fn find(&self, mesh: &MeshId) -> Result<Option<Arc<MeshView>>, StoreError> {
        if let Some(view) = self.kept(mesh).1 {
            return Ok(Some(view));
        }
        let _turn = self.loading.lock().await;
        let (epoch, view) = self.kept(mesh);
        if view.is_some() {
            return Ok(view);
        }
        let Some(view) = self.load(mesh).await?.map(Arc::new) else { return Ok(None) };
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(mesh.clone()).or_default();
        if *slot.epoch.borrow() == epoch {
            slot.view = Some(Arc::clone(&view));
        }
        Ok(Some(view))
    }

    /// Something about the mesh was written, or may have been.
    pub fn changed(&self, mesh: &MeshId) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(mesh.clone()).or_default();
        slot.view = None;
        slot.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Tells of each change of the mesh from now on.
    pub fn watch(&self, mesh: &MeshId) -> watch::Receiver<u64> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.entry(mesh.clone()).or_default().epoch.subscribe()
    }

    /// How often each mesh changed. What was read after this was asked is as good as the snapshots are, until it changes again.
    pub(crate) fn epochs(&self) -> HashMap<MeshId, u64> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|(mesh, slot)| (mesh.clone(), *slot.epoch.borrow())).collect()
    }

    fn kept(&self, mesh: &MeshId) -> (u64, Option<Arc<MeshView>>) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(mesh).map_or((0, None), |slot| (*slot.epoch.borrow(), slot.view.clone()))
    }

    async fn load(&self, id: &MeshId) -> Result<Option<MeshView>, StoreError> {
        let mut tx = self.store.read().await?;
        let Some(mesh) = tx.meshes().find(id).await? else { return Ok(None) };
        let members = tx.members().list(id).await?;
        let mut lists: HashMap<ServiceKey, Arc<Lists>> = HashMap::new();
        for listing in tx.lists().of_mesh(id).await? {
            lists.insert(listing.key, Arc::new(listing.lists));
        }
        let mut approvals = HashMap::new();
        for approval in tx.approvals().of_mesh(id).await? {
            approvals.insert(approval.key, approval.items);
        }
        let mut services = BTreeMap::new();
        for row in tx.services().list(id).await? {
            if row.wanted == Wanted::Gone {
                continue;
            }
            let Some(target) = tx.generations().find(&row.key, row.target).await? else {
                let id = row.key.to_string();
                return Err(StoreError::Inconsistent { table: "service", column: "target", id });
            };
            let (lists, approved) = (lists.remove(&row.key), approvals.remove(&row.key));
            let former = if target.proven {
                None
            } else {
                tx.generations().previous_proven(&row.key, row.target).await?
            };
            let view = ServiceView::new(row, (target, former), lists, approved.as_deref());
            services.insert(view.name().clone(), Arc::new(view));
        }
        let with_caller = |member: Member| {
            let caller = Arc::new(member.caller());
            (member.id.clone(), (member, caller))
        };
        let members = members.into_iter().map(with_caller).collect();
        Ok(Some(MeshView { mesh, members, services, admitted: Admitted::default() }))
    }
}
