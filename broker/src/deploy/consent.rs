//! A member agrees that a service opens their entries.
//!
//! Here: what there is to sign, and taking a signature: of the caller themselves, to the service as it is wanted now, newer
//! than every one before. Not here: signing (the client), and whether a runner believes it (it checks everything again).

use std::collections::BTreeMap;

use catalog::access::{self, Action, Caller, Decision};
use vault::Refused;
use vault::consent::{self, Wanted as Covered};
use wire::peer::vault::McpConsent;
use wire::report::Phase;
use wire::spec::Pin;
use wire::vault::{Consent, ConsentAsk, ConsentDoc, EntryKind, RunAs};
use wire::{Generation, PublicKey, ServiceKey};

use super::vaulted::consent_of;
use super::{Change, DeployError, present};
use crate::app::Broker;
use crate::clock;
use crate::commit::commit;
use crate::reconcile::Goal;
use crate::store::{StoreError, StoredGeneration, Tx};
use crate::views::{MeshView, ServiceView};

#[derive(Debug, thiserror::Error)]
pub enum ConsentError {
    #[error("the consent is signed by another key than yours")]
    NotYou,
    #[error("the consent is not taken: {0}")]
    Refused(#[from] Refused),
    #[error("the service refers to no entry of yours")]
    NothingOfYours,
    #[error(
        "the service is not prepared yet, so nobody knows what exactly would run; try again when it waits"
    )]
    NotPrepared,
    #[error("this is not the service as it is wanted now; look at it again")]
    Changed,
    #[error("a consent as new as this one is known; sign with a higher serial")]
    Stale,
}

impl ConsentError {
    pub fn code(&self) -> wire::ErrorCode {
        use wire::ErrorCode;
        match self {
            Self::NotYou => ErrorCode::Forbidden,
            Self::Refused(Refused::Signature) => ErrorCode::BadSignature,
            Self::Refused(_) | Self::NothingOfYours => ErrorCode::VaultError,
            Self::NotPrepared | Self::Changed => ErrorCode::Conflict,
            Self::Stale => ErrorCode::VaultStale,
        }
    }
}

/// What came of a consent.
pub enum Agreed {
    /// The service goes on; its deployer waits for it as for a deploy.
    Starts(Change),
    /// The caller's own instance starts with their next call.
    Kept(ServiceKey, Generation),
}

/// What the caller would have to sign for a service as it is wanted now; `None` when that is nothing.
///
/// # Errors
/// [`DeployError`].
pub async fn asked(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    name: &str,
) -> Result<Option<ConsentAsk>, DeployError> {
    let service = concerned(caller, view, name)?;
    let Some(signer) = view.key_of(&caller.member) else { return Ok(None) };
    let pin = pin_of(broker, service.generation());
    match ask(broker, service.key(), service.target(), signer, pin).await? {
        Ask::Signed | Ask::Nothing => Ok(None),
        Ask::NoPin => Err(ConsentError::NotPrepared.into()),
        Ask::This(ask) => Ok(Some(*ask)),
    }
}

/// [`asked`] for the deployer's own instance of a generation that waits, which has this pin.
pub(super) async fn asked_for(
    broker: &Broker,
    view: &MeshView,
    (key, generation): (&ServiceKey, Generation),
    signer: &PublicKey,
    pin: Option<Pin>,
) -> Result<Option<ConsentAsk>, StoreError> {
    let Some(service) = view.service(key.name.as_str()) else { return Ok(None) };
    let main = view.key_of(service.deployed_by());
    let is_owner = service.target() == generation && consent::owners(service.spec(), main).contains(signer);
    if !is_owner {
        return Ok(None);
    }
    Ok(match ask(broker, key, generation, signer, pin).await? {
        Ask::This(ask) => Some(*ask),
        Ask::Signed | Ask::Nothing | Ask::NoPin => None,
    })
}

enum Ask {
    Nothing,
    Signed,
    NoPin,
    This(Box<ConsentAsk>),
}

async fn ask(
    broker: &Broker,
    key: &ServiceKey,
    generation: Generation,
    signer: &PublicKey,
    pin: Option<Pin>,
) -> Result<Ask, StoreError> {
    let mut tx = broker.store.read().await?;
    let Some(mut stored) = tx.generations().find(key, generation).await? else { return Ok(Ask::Nothing) };
    if !consent::owners(&stored.spec, Some(signer)).contains(signer) {
        return Ok(Ask::Nothing);
    }
    let Some(pin) = stored.pin.take().or(pin) else { return Ok(Ask::NoPin) };
    stored.pin = Some(pin.clone());
    if consent_of(&mut tx, &stored, signer).await?.is_some() {
        return Ok(Ask::Signed);
    }
    let versions = versions(&mut tx, &stored, signer).await?;
    let previous = tx.consents().by(key, signer).await?.into_iter().next();
    let StoredGeneration { spec, .. } = stored;
    let (service, generation) = (key.name.clone(), generation.0);
    let pin = consent::pin(&pin);
    Ok(Ask::This(Box::new(ConsentAsk { service, generation, spec, pin, versions, previous })))
}

async fn versions(
    tx: &mut Tx,
    stored: &StoredGeneration,
    signer: &PublicKey,
) -> Result<BTreeMap<wire::vault::VaultName, i64>, StoreError> {
    let mut versions = BTreeMap::new();
    for one in stored.spec.vault.values().filter(|one| one.owner.as_ref().is_none_or(|owner| owner == signer))
    {
        let newest = tx.entries().newest_bare(&stored.key.mesh, signer, &one.key).await?;
        if let Some(entry) = newest.filter(|entry| entry.kind != EntryKind::Gone) {
            versions.insert(entry.key, entry.version);
        }
    }
    Ok(versions)
}

/// The service, for who sees it and has something to agree to: who is named in it, or may call it.
fn concerned<'v>(caller: &Caller, view: &'v MeshView, name: &str) -> Result<&'v ServiceView, DeployError> {
    let unknown = || DeployError::NotFound(crate::error::shown(name));
    let service = view.service(name).ok_or_else(unknown)?;
    let may = |action| access::decide(caller, action, Some(service.subject())) == Decision::Allow;
    let key = view.key_of(&caller.member);
    let is_named = service.spec().vault.values().any(|one| one.owner.is_some() && one.owner.as_ref() == key);
    // What is to be signed tells all of the spec: who neither runs with it nor is named in it gets nothing of that.
    let runs = service.spec().run_as == RunAs::Caller && may(Action::Call);
    if is_named || runs || may(Action::Update) { Ok(service) } else { Err(unknown()) }
}

/// The pin of a generation: as it is stored, or as the runner prepared it.
fn pin_of(broker: &Broker, stored: &StoredGeneration) -> Option<Pin> {
    if stored.pin.is_some() {
        return stored.pin.clone();
    }
    // What is remembered of a runner that is away has pins without their locks.
    let report = broker.observed.get(&stored.key).filter(|_| broker.observed.link().is_up())?;
    let mut both = report.candidate.iter().chain(&report.serving);
    let seen = both.find(|seen| seen.generation == stored.generation && seen.phase == Phase::Waiting)?;
    seen.pin.clone()
}

/// Takes a signature.
///
/// # Errors
/// [`DeployError`]; then nothing was stored.
pub async fn agree(
    broker: &Broker,
    caller: &Caller,
    view: &MeshView,
    frame: McpConsent,
) -> Result<Agreed, DeployError> {
    let McpConsent { server_name, consent } = frame;
    let service = concerned(caller, view, &server_name)?;
    if view.key_of(&caller.member) != Some(&consent.signer) {
        return Err(ConsentError::NotYou.into());
    }
    let doc = consent::check(&consent).map_err(ConsentError::Refused)?;
    let key = service.key().clone();
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&key.mesh).await?;
    let row = present(&mut tx, &key).await?;
    let stored = tx.generations().find(&key, row.target).await?.ok_or(DeployError::Conflict)?;
    let pin = pin_of(broker, &stored);
    covers(&stored, pin.as_ref(), &doc, &consent)?;
    let newest = tx.consents().by(&key, &consent.signer).await?.into_iter().next();
    let newest = newest.and_then(|newest| consent::check(&newest).ok()).map(|doc| doc.serial);
    if newest.is_some_and(|newest| doc.serial <= newest) {
        return Err(ConsentError::Stale.into());
    }
    tx.consents().put(&key, &caller.member, &consent, &doc, clock::now_ms()).await?;
    if let (None, Some(pin)) = (&stored.pin, &pin) {
        // Agreed is this and nothing else: whoever prepares it again gets the same.
        tx.generations().set_pin(&key, row.target, pin).await?;
    }
    commit(broker, &key.mesh, tx).await?;
    tracing::info!(
        target: "audit", { mesh.id = %key.mesh, service.name = %key.name, member.id = %caller.member },
        "member {} agrees to generation {} of {key}", caller.member, row.target
    );
    let is_main = stored.spec.run_as == RunAs::Deployer || caller.member == row.deployed_by;
    if is_main {
        Ok(Agreed::Starts(Change::watch(broker, (key, caller.member.clone()), Goal::Serve(row.target)).await))
    } else {
        Ok(Agreed::Kept(key, row.target))
    }
}

fn covers(
    stored: &StoredGeneration,
    pin: Option<&Pin>,
    doc: &ConsentDoc,
    consent: &Consent,
) -> Result<(), ConsentError> {
    if !consent::owners(&stored.spec, Some(&consent.signer)).contains(&consent.signer) {
        return Err(ConsentError::NothingOfYours);
    }
    let pin = consent::pin(pin.ok_or(ConsentError::NotPrepared)?);
    let service = stored.key.name.as_str();
    let wanted = Covered { mesh: &stored.key.mesh, service, spec: &stored.spec, pin: &pin };
    if consent::covers(doc, &wanted) { Ok(()) } else { Err(ConsentError::Changed) }
}
