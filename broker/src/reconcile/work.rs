//! Carrying out one action of a plan: the requests to the runner.
//!
//! Here: what an apply is made of (spec, opened secrets, pin, archive bytes). Not here: when, and what follows.

use wire::report::{Reason, ServiceReport};
use wire::runner::Apply;
use wire::spec::Source;
use wire::vault::Material;
use wire::{ErrorCode, Generation, ServiceKey};

use super::plan::{Action, Told};
use crate::app::Broker;
use crate::callers::{self, Given, MakeRoomError, Standing};
use crate::deploy;
use crate::runner::RunnerError;
use crate::store::StoreError;

/// Sealed values that one service may refer to: with everything else they still fit what a runner reads of one request.
const MAX_MATERIAL: usize = 12 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error(transparent)]
    Runner(#[from] RunnerError),
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    #[error("the stored secrets do not open under this broker's key")]
    Secrets,
    #[error("the archive was not uploaded, or has been cleaned away")]
    NoUpload,
    #[error("the generation is not in the store")]
    NoGeneration,
    #[error("the vault's entries that it refers to take more than {} MiB together", MAX_MATERIAL >> 20)]
    TooMuch,
}

impl From<MakeRoomError> for WorkError {
    fn from(error: MakeRoomError) -> Self {
        match error {
            MakeRoomError::NoRow => Self::NoGeneration,
            MakeRoomError::Runner(error) => Self::Runner(error),
            MakeRoomError::Store(error) => Self::Store(error),
        }
    }
}

impl WorkError {
    /// Whether trying the same again may help. When not, somebody has to do something else.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            // What a vault lacks is given to it some time.
            Self::Runner(RunnerError::Refused(failure)) => failure.code.is_vault_wait(),
            Self::Runner(_) => true,
            Self::Store(_) | Self::NoGeneration => true,
            Self::Secrets | Self::NoUpload | Self::TooMuch => false,
        }
    }

    pub(super) fn reason(&self) -> Reason {
        let (code, stderr) = match self {
            Self::Runner(RunnerError::Refused(failure)) => (failure.code, failure.stderr.clone()),
            Self::Runner(error) => (error.code(), Vec::new()),
            Self::Store(error) => (error.code(), Vec::new()),
            Self::Secrets | Self::NoGeneration => (ErrorCode::Internal, Vec::new()),
            Self::NoUpload => (ErrorCode::UploadNotFound, Vec::new()),
            Self::TooMuch => (ErrorCode::TooLarge, Vec::new()),
        };
        Reason { code, message: self.to_string(), stderr }
    }
}

/// A service that the runner took.
pub(super) struct Applied {
    pub(super) report: ServiceReport,
    /// With what it was given to the runner.
    pub(super) told: Told,
}

/// Answers what the runner says about an applied service.
pub(super) async fn carry_out(broker: &Broker, action: &Action) -> Result<Option<Box<Applied>>, WorkError> {
    match action {
        Action::Apply(key, generation) => {
            apply(broker, key, *generation).await.map(|applied| Some(Box::new(applied)))
        }
        Action::Stop(key) => remove(broker, key, false).await,
        Action::Purge(key) => remove(broker, key, true).await,
    }
}

async fn remove(broker: &Broker, key: &ServiceKey, purge: bool) -> Result<Option<Box<Applied>>, WorkError> {
    broker.callers.forget(key);
    Ok(broker.runner.remove(key, purge).await.map(|()| None)?)
}

async fn apply(broker: &Broker, key: &ServiceKey, generation: Generation) -> Result<Applied, WorkError> {
    let mut tx = broker.store.read().await?;
    let service = callers::service_of(key);
    let stored = tx.generations().find(&service, generation).await?.ok_or(WorkError::NoGeneration)?;
    let mesh = tx.meshes().find(&key.mesh).await?.ok_or(WorkError::NoGeneration)?;
    let caller = callers::caller_of(&mut tx, key).await?;
    let material = deploy::material(&mut tx, &stored, caller.as_ref()).await?;
    let size = |material: &Material| material.entries.iter().map(|entry| entry.content.len()).sum::<usize>();
    if material.as_ref().map_or(0, size) > MAX_MATERIAL {
        return Err(WorkError::TooMuch);
    }
    let held = match &caller {
        Some(caller) => Some(Standing::of(&mut tx, &stored, caller).await?.held),
        None => None,
    };
    let secrets = deploy::open_secrets(&broker.at_rest, &mut tx, &stored).await;
    let secrets = secrets.map_err(|_| WorkError::Secrets)?;
    drop(tx);
    let told = Told { policy: mesh.policy, material: material.as_ref().map(deploy::mark_of) };
    if let Source::Archive { sha256, .. } = &stored.spec.source {
        bring_archive(broker, key, sha256).await?;
    }
    let apply = Apply {
        generation,
        spec: stored.spec,
        secrets,
        pin: stored.pin,
        proven: stored.proven,
        policy: mesh.policy,
        vault: material.unwrap_or_default(),
    };
    if let Some(held) = &held {
        callers::make_room(broker, key, held).await?;
    }
    let report = broker.runner.apply(key, &apply).await?;
    if let Some(held) = held {
        broker.callers.give(key, Given { generation, held });
    }
    Ok(Applied { report, told })
}

async fn bring_archive(broker: &Broker, key: &ServiceKey, sha256: &str) -> Result<(), WorkError> {
    if broker.runner.has_blob(sha256).await? {
        return Ok(());
    }
    let mut tx = broker.store.read().await?;
    let bytes = tx.uploads().bytes(&key.mesh, sha256).await?.ok_or(WorkError::NoUpload)?;
    drop(tx);
    Ok(broker.runner.put_blob(sha256, bytes).await?)
}

/// Lets the runner drop what no generation needs, and the store what no generation names.
pub(super) async fn tidy(broker: &Broker, uploads_before_ms: i64) -> Result<(), WorkError> {
    let mut tx = broker.store.begin().await?;
    tx.uploads().sweep(uploads_before_ms).await?;
    let needed = tx.generations().needed().await?;
    tx.commit().await?;
    let retained = broker.runner.retain(&needed).await?;
    if retained.removed > 0 {
        tracing::info!(
            "the runner removed {} artefacts nobody needs ({} bytes)",
            retained.removed,
            retained.freed_bytes
        );
    }
    Ok(())
}
