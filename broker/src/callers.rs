//! Services that run as their caller: which instance serves whom.
//!
//! Here: what a caller needs before they get an instance, the note that they called, the wait until the runner has it. Not
//! here: the call (`crate::calls`), applying instances (`crate::reconcile`), opening entries (the runner).
//! Invariant: a call goes to the instance of its own caller, or is refused; there is no other identity to fall back to.
//! The plain name is the instance of who deployed the service: it lists the tools, and serves nobody else.
//!
//! ```text
//!   call ─▶ admit: consent? entries? room? ─▶ row in the store ─wake─▶ reconciler ─▶ runner holds `name.<member>`
//!     └──────────────── waits for exactly what it was admitted with ◀── Given ◀───────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use catalog::access::{self, Caller};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use wire::report::Reason;
use wire::vault::{EntryKind, RunAs};
use wire::{ErrorCode, Generation, MeshId, PublicKey, ServiceKey, ServiceName};

use crate::app::Broker;
use crate::clock;
use crate::commit::commit;
use crate::deploy::{self, Mark};
use crate::reconcile::{Goal, Verdict, Watch};
use crate::store::{CallerInstance, StoreError, StoredGeneration, Tx};
use crate::views::{MeshView, ServiceView};

/// Callers of one service that may have an instance at the same time.
const MAX_INSTANCES: usize = 50;
/// Without a call for this long, the runner need not hold the instance any more. Its data stays.
const KEPT_MS: i64 = 24 * 3600 * 1000;
/// How old the note of the last call may get while calls go on: a call that finds it younger writes nothing.
const NOTED_MS: i64 = 3600 * 1000;
/// How long a call waits for a runner that is away.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    #[error(
        "`{0}` runs as its caller, and you have not agreed to it as it is now; look at it and sign with `claudemesh consent {0}`"
    )]
    NoConsent(ServiceName),
    /// Variables and references.
    #[error("`{0}` runs as its caller, and your vault has no entry for {list}; set it with `claudemesh vault set KEY`", list = .1.join(", "))]
    Missing(ServiceName, Vec<String>),
    #[error(
        "`{0}` runs as its caller, and {MAX_INSTANCES} callers have an instance already; try again tomorrow"
    )]
    Full(ServiceName),
    #[error("service `{0}` did not become ready before the deadline")]
    NotReady(ServiceName),
    #[error("{}", .0.message)]
    Failed(Reason),
    #[error("the service was removed, or is not yours to call any more")]
    Gone,
    #[error("no runner is connected")]
    NoRunner,
    #[error("storage failed")]
    Store(#[from] StoreError),
}

impl CallerError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoConsent(_) => ErrorCode::AwaitingConsent,
            Self::Missing(..) => ErrorCode::VaultMissing,
            Self::Full(_) => ErrorCode::Limit,
            Self::NotReady(_) => ErrorCode::ServiceStarting,
            Self::Failed(reason) => reason.code,
            Self::Gone => ErrorCode::NotFound,
            Self::NoRunner => ErrorCode::RunnerUnavailable,
            Self::Store(error) => error.code(),
        }
    }
}

/// What an instance has: with this it may serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub generation: Generation,
    /// Names whose entries these are, and which versions.
    pub held: String,
}

/// With what the runner was given the instances of callers, in this life of the broker.
pub struct Callers {
    given: watch::Sender<HashMap<ServiceKey, Given>>,
}

impl Default for Callers {
    fn default() -> Self {
        Self { given: watch::Sender::new(HashMap::new()) }
    }
}

impl Callers {
    pub(crate) fn give(&self, key: &ServiceKey, given: Given) {
        self.given.send_modify(|all| drop(all.insert(key.clone(), given)));
    }

    /// The instance is about to end.
    pub(crate) fn forget(&self, key: &ServiceKey) {
        self.given.send_if_modified(|all| all.remove(key).is_some());
    }

    fn has(&self, key: &ServiceKey, given: &Given) -> bool {
        self.given.borrow().get(key) == Some(given)
    }
}

/// Callers whose admission was looked up for one snapshot of a mesh, so that the next calls need no SQL: whatever changes
/// an entry, a consent or a service also makes a new snapshot.
#[derive(Default)]
pub struct Admitted {
    all: Mutex<HashMap<ServiceName, (i64, Given)>>,
}

impl Admitted {
    fn get(&self, name: &ServiceName, now: i64) -> Option<Given> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).filter(|(at, _)| now - at < NOTED_MS).map(|(_, given)| given.clone())
    }

    fn put(&self, name: ServiceName, now: i64, given: Given) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (now, given));
    }
}

impl CallerInstance {
    /// Its name at the runner.
    pub(crate) fn key(&self) -> ServiceKey {
        ServiceKey { mesh: self.service.mesh.clone(), name: self.service.name.for_caller(&self.member) }
    }

    /// Whether somebody called it lately.
    pub(crate) fn is_in_use(&self, now: i64) -> bool {
        now - self.last_call_at < KEPT_MS
    }
}

/// The service that a key belongs to: itself, unless it is the instance of a caller.
pub(crate) fn service_of(key: &ServiceKey) -> ServiceKey {
    let name = ServiceName::parse(key.name.plain()).expect("the plain part of a service name is one");
    ServiceKey { mesh: key.mesh.clone(), name }
}

/// The key of who calls, when it is the instance of a caller.
pub(crate) async fn caller_of(tx: &mut Tx, key: &ServiceKey) -> Result<Option<PublicKey>, StoreError> {
    let Some(member) = key.name.caller() else { return Ok(None) };
    let found = tx.members().by_id(&key.mesh, &member).await?;
    let id = key.to_string();
    let none = || StoreError::Inconsistent { table: "caller_instance", column: "member_id", id };
    found.map(|member| Some(member.pubkey)).ok_or_else(none)
}

/// How a member stands to a generation that runs as its caller.
pub(crate) struct Standing {
    /// As in [`Given::held`].
    pub(crate) held: String,
    /// References that lead to no entry.
    missing: Vec<String>,
    has_agreed: bool,
}

impl Standing {
    pub(crate) async fn of(
        tx: &mut Tx,
        stored: &StoredGeneration,
        caller: &PublicKey,
    ) -> Result<Self, StoreError> {
        let mesh = &stored.key.mesh;
        let (mut versions, mut missing) = (Vec::new(), Vec::new());
        for (variable, reference) in &stored.spec.vault {
            let owner = reference.owner.as_ref().unwrap_or(caller);
            let newest = tx.entries().newest_bare(mesh, owner, &reference.key).await?;
            match newest.filter(|entry| entry.kind != EntryKind::Gone) {
                // It covers owner, key and version; a rotation of the vault's key leaves it as it is.
                Some(entry) => versions.push(entry.signature),
                None => missing.push(format!("{variable} ({})", reference.text())),
            }
        }
        let mut has_agreed = true;
        for owner in vault::consent::owners(&stored.spec, Some(caller)) {
            has_agreed &= deploy::consent_of(tx, stored, &owner).await?.is_some();
        }
        let fields = std::iter::once(caller.as_str()).chain(versions.iter().map(String::as_str));
        Ok(Self { held: Mark::of(fields).to_hex(), missing, has_agreed })
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.has_agreed && self.missing.is_empty()
    }

    fn complete(self, name: &ServiceName) -> Result<String, CallerError> {
        if !self.has_agreed {
            return Err(CallerError::NoConsent(name.clone()));
        }
        if !self.missing.is_empty() {
            return Err(CallerError::Missing(name.clone(), self.missing));
        }
        Ok(self.held)
    }
}

/// The instance that serves this caller. Returns once the runner has it as it is to be, though perhaps still starting.
///
/// # Errors
/// [`CallerError`]; nothing was sent then.
pub async fn instance(
    broker: &Broker,
    service: &ServiceView,
    caller: &Caller,
    ends: Instant,
) -> Result<ServiceKey, CallerError> {
    if is_shared(service, caller) {
        return Ok(service.key().clone());
    }
    let mut was_awaited = false;
    loop {
        let view = look(broker, &caller.mesh).await?;
        let service = view.service(service.name().as_str()).ok_or(CallerError::Gone)?;
        let may_call =
            view.caller(&caller.member).is_some_and(|now| access::may_call(&now, service.subject()));
        if !may_call {
            return Err(CallerError::Gone);
        }
        if is_shared(service, caller) {
            return Ok(service.key().clone());
        }
        if service.serves().proven {
            let given = admit(broker, &view, service, caller).await?;
            let name = service.name().for_caller(&caller.member);
            let key = ServiceKey { mesh: caller.mesh.clone(), name };
            until_given(broker, &key, &given, ends).await?;
            return Ok(key);
        }
        // Nobody knows yet whether it works at all.
        if was_awaited {
            return Err(CallerError::NotReady(service.name().clone()));
        }
        first_ready(broker, service, ends).await?;
        was_awaited = true;
    }
}

/// Whether this caller's calls go to the instance of the plain name. The runner looks again: that instance does not
/// answer others, should another version have taken its place meanwhile.
fn is_shared(service: &ServiceView, caller: &Caller) -> bool {
    service.serves().spec.run_as == RunAs::Deployer || caller.member == *service.deployed_by()
}

/// Where this caller's instance is, or would be if it was there. Admits nobody and wakes nothing.
pub(crate) fn place(service: &ServiceView, caller: &Caller) -> ServiceKey {
    if is_shared(service, caller) {
        return service.key().clone();
    }
    let name = service.name().for_caller(&caller.member);
    ServiceKey { mesh: caller.mesh.clone(), name }
}

async fn look(broker: &Broker, mesh: &MeshId) -> Result<std::sync::Arc<MeshView>, CallerError> {
    broker.views.find(mesh).await?.ok_or(CallerError::Gone)
}

async fn admit(
    broker: &Broker,
    view: &MeshView,
    service: &ServiceView,
    caller: &Caller,
) -> Result<Given, CallerError> {
    let (name, now) = (service.name().for_caller(&caller.member), clock::now_ms());
    if let Some(given) = view.admitted.get(&name, now) {
        return Ok(given);
    }
    let stored = service.serves();
    let pubkey = view.key_of(&caller.member).ok_or(CallerError::Gone)?;
    let mut tx = broker.store.read().await?;
    let standing = Standing::of(&mut tx, stored, pubkey).await?;
    let known = tx.callers().find(service.key(), &caller.member).await?;
    drop(tx);
    let held = standing.complete(service.name())?;
    let is_noted = known.is_some_and(|known| {
        now - known.last_call_at < NOTED_MS && known.held.is_none_or(|before| before == held)
    });
    if !is_noted {
        note(broker, service.key(), caller, &held).await?;
    }
    let given = Given { generation: stored.generation, held };
    view.admitted.put(name, now, given.clone());
    Ok(given)
}

/// Writes down that this caller is to have an instance.
async fn note(broker: &Broker, service: &ServiceKey, caller: &Caller, held: &str) -> Result<(), CallerError> {
    let now = clock::now_ms();
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&service.mesh).await?;
    let known = tx.callers().of(service).await?;
    let n_others = known.iter().filter(|one| one.member != caller.member && one.is_in_use(now)).count();
    if n_others >= MAX_INSTANCES {
        return Err(CallerError::Full(service.name.clone()));
    }
    tx.callers().touch(service, &caller.member, now).await?;
    tx.callers().expect(service, &caller.member, held).await?;
    Ok(commit(broker, &service.mesh, tx).await?)
}

/// Waits until the runner was given exactly this.
async fn until_given(
    broker: &Broker,
    key: &ServiceKey,
    due: &Given,
    ends: Instant,
) -> Result<(), CallerError> {
    if broker.callers.has(key, due) {
        return Ok(());
    }
    let patience = PATIENCE.min(ends.saturating_duration_since(Instant::now()));
    if !broker.observed.runner_returns(patience).await {
        return Err(CallerError::NoRunner);
    }
    broker.reconciler.wake();
    let mut given = broker.callers.given.subscribe();
    let arrives = given.wait_for(|all| all.get(key) == Some(due));
    match timeout_at(ends, arrives).await {
        Ok(_) => Ok(()),
        Err(_) => Err(match broker.observed.trouble(key) {
            Some(reason) => CallerError::Failed(reason),
            None => CallerError::NotReady(service_of(key).name),
        }),
    }
}

/// Waits until the first version of a service is ready for its deployer.
async fn first_ready(broker: &Broker, service: &ServiceView, ends: Instant) -> Result<(), CallerError> {
    let (progress, _nobody_reads) = mpsc::channel(1);
    let (verdict, answer) = oneshot::channel();
    let goal = Goal::Serve(service.target());
    broker.reconciler.watch(Watch { key: service.key().clone(), goal, progress, verdict }).await;
    match timeout_at(ends, answer).await {
        Ok(Ok(Verdict::Running)) => Ok(()),
        Ok(Ok(Verdict::Failed(reason) | Verdict::Held { reason, .. })) => Err(CallerError::Failed(reason)),
        _ => Err(CallerError::NotReady(service.name().clone())),
    }
}

/// Whose instance this is, and what it is to hold. An instance that may hold something else is ended before: the same
/// generation with other material would leave it running as it is.
pub(crate) async fn make_room(broker: &Broker, key: &ServiceKey, held: &str) -> Result<(), MakeRoomError> {
    let (service, Some(member)) = (service_of(key), key.name.caller()) else { return Ok(()) };
    let mut tx = broker.store.read().await?;
    let known = tx.callers().find(&service, &member).await?;
    drop(tx);
    if known.ok_or(MakeRoomError::NoRow)?.held.as_deref() == Some(held) {
        return Ok(());
    }
    broker.callers.forget(key);
    broker.runner.remove(key, false).await?;
    // Before it is given, so that a broker that dies in between never takes old for new.
    let mut tx = broker.store.begin().await?;
    if !tx.callers().hold(&service, &member, held).await? {
        return Err(MakeRoomError::NoRow);
    }
    Ok(tx.commit().await?)
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeRoomError {
    #[error("nobody notes the caller any more")]
    NoRow,
    #[error(transparent)]
    Runner(#[from] crate::runner::RunnerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
