//! The vault: its state, the boot key, grants, and the ledger of openings.
//!
//! Invariant: no answer repeats anything of a request that is secret.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use wire::runner::Failure;
use wire::vault::{BootKey, Grants, Opening, RunnerVault};
use wire::{ErrorCode, MeshId};

use super::App;
use super::failure::{ApiError, parse};

pub async fn show(State(app): State<Arc<App>>) -> Result<Json<RunnerVault>, ApiError> {
    let vault = app.shop.vault.clone();
    // It may have to wait for somebody who writes.
    tokio::task::spawn_blocking(move || vault.describe()).await.map(Json).map_err(|_| panicked())
}

/// `PUT /v1/vault/boot-key`.
pub async fn unlock(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<RunnerVault>, Response> {
    // Not with the parser's words: they may repeat what was sent.
    let refused = || ApiError::new(ErrorCode::InvalidArgs, "the body is not a boot key").into_response();
    let boot: BootKey = serde_json::from_slice(&body).map_err(|_| refused())?;
    let vault = app.shop.vault.clone();
    let unlocked = tokio::task::spawn_blocking(move || vault.unlock(&boot).map(|()| vault.describe())).await;
    match unlocked.map_err(|_| panicked().into_response())? {
        Ok(description) => Ok(Json(description)),
        // A wrong key is a conflict of two parties; the same code for a service means that it has to wait.
        Err(e) if e.code() == ErrorCode::VaultLocked => {
            let failure = Failure { code: e.code(), message: e.to_string(), stderr: vec![], rpc: None };
            Err((StatusCode::CONFLICT, Json(failure)).into_response())
        }
        Err(e) => Err(ApiError::new(e.code(), e.to_string()).into_response()),
    }
}

/// `PUT /v1/vault/meshes/{mesh}`.
pub async fn hold(
    State(app): State<Arc<App>>,
    Path(mesh): Path<String>,
    body: Bytes,
) -> Result<Json<RunnerVault>, ApiError> {
    let mesh = MeshId::parse(&mesh).map_err(|e| ApiError::new(ErrorCode::InvalidName, e.to_string()))?;
    let grants: Grants = parse(&body)?;
    let vault = app.shop.vault.clone();
    let held =
        tokio::task::spawn_blocking(move || vault.hold(&mesh, &grants).map(|()| vault.describe())).await;
    held.map_err(|_| panicked())?.map(Json).map_err(|e| ApiError::new(e.code(), e.to_string()))
}

#[derive(Deserialize)]
pub struct After {
    #[serde(default)]
    after: i64,
}

/// `GET /v1/vault/openings`.
pub async fn openings(
    State(app): State<Arc<App>>,
    Query(After { after }): Query<After>,
) -> Result<Json<Vec<Opening>>, ApiError> {
    let vault = app.shop.vault.clone();
    let openings = tokio::task::spawn_blocking(move || vault.openings(after)).await;
    let openings = openings.map_err(|_| panicked())?;
    openings.map(Json).map_err(|message| ApiError::new(ErrorCode::LedgerFailed, message))
}

fn panicked() -> ApiError {
    ApiError::new(ErrorCode::Internal, "the vault panicked")
}
