//! What people want of services: deploy, update, roll back, stop, start, remove, share.
//!
//! Here: the use cases, each one rights check and one transaction, then a wake-up of the reconciler. Not here: making it
//! so (`crate::reconcile`), how a service looks (`crate::describe`), frames (`crate::peer`).
//! Every write to a service goes through [`commit`].

mod change;
mod consent;
mod network;
mod new_service;
mod sealing;
mod sharing;
mod vaulted;
mod versions;

use catalog::access::{self, Action, Caller, Decision};
use wire::peer::mesh::McpUndeployed;
use wire::report::Phase;
use wire::spec::{Pin, Secrets, ServiceSpec, Source};
use wire::{ErrorCode, Generation, MemberId, MeshId, Scope, ServiceKey, Tier};

pub use change::{Change, News, final_status, plain_status};
pub use consent::{Agreed, ConsentError, agree, asked};
pub use network::change_network;
pub use new_service::{InvalidDeploy, NewService};
pub(crate) use sealing::open as open_secrets;
pub(crate) use sealing::seal as seal_secrets;
pub use sharing::{deployed_event, manages, set_scope};
pub use vaulted::uses;
pub(crate) use vaulted::{
    Mark, consent_of, mark, mark_of, material, needs_material, owner_left, vault_changed,
};
pub use versions::{rollback, update};

use crate::app::Broker;
use crate::approvals;
use crate::clock;
use crate::commit::commit;
use crate::error::FrameError;
use crate::peer::events;
use crate::reconcile::Goal;
use crate::runner::RunnerError;
use crate::store::{Deploy, Service, StoreError, Tx, Wanted};
use crate::views::{MeshView, ServiceView};

/// Versions of a service that are kept besides the target and the one that a rollback goes to.
const KEPT_GENERATIONS: u32 = 10;
/// Uploads of the largest size that a member may have waiting for a deploy.
const WAITING_UPLOADS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("no service `{0}` in this mesh")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("max {0} services per mesh")]
    Limit(usize),
    #[error("the service was changed at the same time; look at it and try again")]
    Conflict,
    #[error(
        "the name is taken by a live server that {0} lends; they take it back with `claudemesh share NAME --stop`"
    )]
    Lent(String),
    #[error("the service is being removed; try again once the runner has confirmed it")]
    Leaving,
    #[error("the archive was not uploaded, or has been cleaned away")]
    NoUpload,
    #[error("your uploads that no service uses exceed {} MiB; deploy them, or wait a day until they are cleaned away", .0 >> 20)]
    TooManyUploads(usize),
    #[error("scope.peers: no member is called `{0}`; `claudemesh members` lists them")]
    NoSuchMember(String),
    #[error(
        "config.isolation: the mesh demands at least `{0}`; an admin can lower that with `claudemesh policy`"
    )]
    TooWeak(Tier),
    #[error(transparent)]
    Invalid(#[from] InvalidDeploy),
    #[error("{0}")]
    Network(String),
    /// Names variables and references, of all that lead nowhere.
    #[error("no vault entry for {}; set it with `claudemesh vault set KEY`", .0.join(", "))]
    Missing(Vec<String>),
    #[error("config.isolation: a secret in a file needs `strict`")]
    FileInLight,
    #[error("config.inject: {0}")]
    Inject(String),
    #[error(transparent)]
    Consent(#[from] ConsentError),
    #[error("no earlier version of the service that was ready is kept")]
    NoPrevious,
    #[error("the stored secrets do not open")]
    Secrets(#[from] sealing::SealingError),
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error("storage failed")]
    Store(#[source] StoreError),
}

impl DeployError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::Forbidden(_) => ErrorCode::Forbidden,
            Self::Limit(_) => ErrorCode::Limit,
            Self::TooManyUploads(_) => ErrorCode::TooLarge,
            Self::NoSuchMember(_)
            | Self::TooWeak(_)
            | Self::Network(_)
            | Self::FileInLight
            | Self::Inject(_) => ErrorCode::InvalidArgs,
            Self::Missing(_) => ErrorCode::VaultMissing,
            Self::Consent(error) => error.code(),
            Self::Invalid(error) => error.code(),
            Self::Conflict | Self::Leaving | Self::Lent(_) => ErrorCode::Conflict,
            Self::NoUpload => ErrorCode::UploadNotFound,
            Self::NoPrevious => ErrorCode::NoPrevious,
            Self::Secrets(_) => ErrorCode::Internal,
            Self::Runner(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }
}

impl From<StoreError> for DeployError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            other => Self::Store(other),
        }
    }
}

impl From<DeployError> for FrameError {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Store(source) => source.into(),
            DeployError::Secrets(_) => Self::internal(&error),
            _ => Self::new(error.code(), error.to_string()),
        }
    }
}

/// Writes a new generation of a new or known service.
///
/// # Errors
/// [`DeployError`].
pub async fn deploy(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    new: NewService,
) -> Result<Change, DeployError> {
    let NewService { name, mut spec, secrets, network, scope } = new;
    scope.as_ref().map_or(Ok(()), |scope| sharing::names_members(view, scope))?;
    let key = ServiceKey { mesh: caller.mesh.clone(), name };
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&key.mesh).await?;
    // Who was removed since they asked takes turns with that: nothing of theirs starts after it was stopped.
    let member = tx.members().by_id(&key.mesh, &caller.member).await?;
    if member.is_none_or(|member| member.is_revoked()) {
        return Err(DeployError::Forbidden("you are no member of this mesh any more"));
    }
    let existing = tx.services().find(&key).await?;
    let before = existing.as_ref().map(|service| service.scope.clone());
    let scope = scope.or_else(|| before.clone()).unwrap_or_default();
    may_deploy(caller, existing.as_ref(), &scope)?;
    match &existing {
        Some(service) if service.wanted == Wanted::Gone => return Err(DeployError::Leaving),
        Some(_) => {}
        None if tx.services().count(&key.mesh).await? >= broker.limits.max_services_per_mesh => {
            return Err(DeployError::Limit(broker.limits.max_services_per_mesh));
        }
        // Live servers are registered while the mesh's turn is held, as here.
        None => broker.live.lender(&key).map_or(Ok(()), |lender| Err(DeployError::Lent(lender)))?,
    }
    if let Source::Archive { sha256, .. } = &spec.source
        && !tx.uploads().exists(&key.mesh, sha256).await?
    {
        return Err(DeployError::NoUpload);
    }
    is_strong_enough(&spec, view)?;
    match network {
        Some(network) => spec.network = network,
        None => network::keep(&mut tx, existing.as_ref(), &mut spec).await?,
    }
    vaulted::leads_somewhere(&mut tx, view, (caller, existing.as_ref()), &spec).await?;
    let version = Version { spec, secrets, pin: None, starts: true };
    let latest = existing.map_or(0, |service| service.latest.0);
    let generation = write(broker, &mut tx, &key, (latest, &caller.member, &scope), version).await?;
    if before.as_ref().is_some_and(|before| *before != scope && [before, &scope].contains(&&Scope::Peer)) {
        approvals::approve_what_is_there(&mut tx, &key, &caller.member).await?;
    }
    commit(broker, &key.mesh, tx).await?;
    if let Some(before) = before.filter(|before| *before != scope) {
        sharing::tell_change(broker, view, caller, &key, (&before, &scope)).await;
    }
    tracing::info!(mesh.id = %key.mesh, service.name = %key.name, generation = generation.0, "deploy of {key} accepted");
    Ok(Change::watch(broker, (key, caller.member.clone()), Goal::Serve(generation)).await)
}

/// Both rights: to the name, and to the audience.
fn may_deploy(caller: &Caller, existing: Option<&Service>, scope: &Scope) -> Result<(), DeployError> {
    let subject = existing.map(Service::subject);
    let taken = "the name is taken by a service of another member";
    match access::decide(caller, Action::Deploy, subject) {
        Decision::Allow => {}
        _ if existing.is_some() => return Err(DeployError::Forbidden(taken)),
        _ => return Err(DeployError::Forbidden("guests may not deploy")),
    }
    match access::decide(caller, Action::of_deploy(scope), subject) {
        Decision::Allow => Ok(()),
        _ => Err(DeployError::Forbidden("only admins may deploy for others than themselves")),
    }
}

/// A weaker jail than the mesh demands would be asked for in vain.
fn is_strong_enough(spec: &ServiceSpec, view: &MeshView) -> Result<(), DeployError> {
    let least = view.mesh().policy.min_isolation;
    match spec.isolation {
        Some(asked) if asked < least => Err(DeployError::TooWeak(least)),
        _ => Ok(()),
    }
}

/// What a generation is made of.
struct Version {
    spec: ServiceSpec,
    secrets: Secrets,
    pin: Option<Pin>,
    /// Whether a stopped service is to run again.
    starts: bool,
}

async fn write(
    broker: &Broker,
    tx: &mut Tx,
    key: &ServiceKey,
    (latest, by, scope): (i64, &MemberId, &Scope),
    version: Version,
) -> Result<Generation, DeployError> {
    let generation = Generation(latest + 1);
    let Version { spec, secrets, pin, starts } = version;
    let sealed = seal_secrets(&broker.at_rest, tx, key, generation, &secrets).await?;
    let deploy = Deploy {
        key,
        generation,
        by,
        scope,
        spec: &spec,
        secrets: sealed.as_ref(),
        pin: pin.as_ref(),
        starts,
        at: clock::now_ms(),
    };
    tx.services().deploy(deploy).await?;
    tx.generations().prune(key, KEPT_GENERATIONS).await?;
    Ok(generation)
}

/// Starts a stopped service, or tries a failed or crash-looping one again.
///
/// # Errors
/// [`DeployError`].
pub async fn start(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, name, Action::Start)?;
    if service.is_stopped() {
        change::ended(broker, service.key()).await;
    }
    let report = broker.observed.get(service.key());
    let serving = report.as_ref().and_then(|report| report.serving.as_ref());
    if serving.is_some_and(|serving| matches!(serving.phase, Phase::Backoff | Phase::CrashLoop)) {
        // No process is up. The reconciler applies it again, with its crashes forgotten; if the runner just went
        // away, that happens anyway.
        let removed = broker.runner.remove(service.key(), false).await;
        removed.or_else(
            |error| if error.code() == ErrorCode::RunnerUnavailable { Ok(()) } else { Err(error) },
        )?;
    }
    set_wanted(broker, service.key(), Wanted::Running).await?;
    Ok(Change::watch(broker, (service.key().clone(), caller.member.clone()), Goal::Serve(service.target()))
        .await)
}

/// Ends the process and keeps everything else.
///
/// # Errors
/// [`DeployError`].
pub async fn stop(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, name, Action::Stop)?;
    set_wanted(broker, service.key(), Wanted::Stopped).await?;
    Ok(Change::watch(broker, (service.key().clone(), caller.member.clone()), Goal::Rest).await)
}

/// Removes a service. At once nobody sees it any more; its record goes when the runner has confirmed that no process
/// and no data are left, however long the runner is away.
///
/// # Errors
/// [`DeployError`].
pub async fn undeploy(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Change, DeployError> {
    let service = permitted(caller, view, name, Action::Remove)?;
    set_wanted(broker, service.key(), Wanted::Gone).await?;
    let data = McpUndeployed { name: service.name().to_string(), by: caller.display_name.clone() };
    let saw = |member: &MemberId| {
        view.caller(member).is_some_and(|member| access::may_see(&member, service.subject()))
    };
    events::tell_members(&broker.presences, &caller.mesh, ("mcp_undeployed", &data), saw);
    tracing::info!(mesh.id = %caller.mesh, service.name = %service.name(), "removal of {} accepted", service.key());
    Ok(Change::watch(broker, (service.key().clone(), caller.member.clone()), Goal::Gone).await)
}

/// # Errors
/// [`DeployError`]; `NotFound` when it is going already.
async fn set_wanted(broker: &Broker, key: &ServiceKey, wanted: Wanted) -> Result<(), DeployError> {
    let mut tx = broker.store.begin().await?;
    if !tx.services().set_wanted(key, wanted, clock::now_ms()).await? {
        return Err(DeployError::NotFound(key.name.to_string()));
    }
    Ok(commit(broker, &key.mesh, tx).await?)
}

/// Whether a member may upload so many bytes more. The same bytes again take no room.
///
/// # Errors
/// [`DeployError`].
pub async fn upload_fits(
    broker: &Broker,
    tx: &mut Tx,
    (mesh, by): (&MeshId, &MemberId),
    sha256: &str,
    size: usize,
) -> Result<(), DeployError> {
    let most = broker.limits.max_upload_bytes.saturating_mul(WAITING_UPLOADS);
    let waiting = usize::try_from(tx.uploads().waiting_bytes(mesh, by).await?).unwrap_or(usize::MAX);
    if waiting.saturating_add(size) > most && !tx.uploads().exists(mesh, sha256).await? {
        return Err(DeployError::TooManyUploads(most));
    }
    Ok(())
}

/// Stores the bytes of an archive whose hash has been checked.
///
/// # Errors
/// [`DeployError`].
pub async fn keep_upload(
    broker: &Broker,
    mesh: &MeshId,
    by: &MemberId,
    sha256: &str,
    bytes: Vec<u8>,
) -> Result<(), DeployError> {
    let mut tx = broker.store.begin().await?;
    upload_fits(broker, &mut tx, (mesh, by), sha256, bytes.len()).await?;
    tx.uploads().put(mesh, sha256, by, &bytes, clock::now_ms()).await?;
    Ok(tx.commit().await?)
}

fn permitted<'v>(
    caller: &Caller,
    view: &'v MeshView,
    name: &str,
    action: Action,
) -> Result<&'v ServiceView, DeployError> {
    let unknown = || DeployError::NotFound(crate::error::shown(name));
    let service = view.service(name).ok_or_else(unknown)?;
    match access::decide(caller, action, Some(service.subject())) {
        Decision::Allow => Ok(service),
        Decision::NotFound => Err(unknown()),
        Decision::Forbidden => Err(DeployError::Forbidden("only who deployed it and admins may do this")),
    }
}

async fn present(tx: &mut Tx, key: &ServiceKey) -> Result<Service, DeployError> {
    let found = tx.services().find(key).await?.filter(|service| service.wanted != Wanted::Gone);
    found.ok_or_else(|| DeployError::NotFound(key.name.to_string()))
}
