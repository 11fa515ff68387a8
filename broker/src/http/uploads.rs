//! `POST /v1/uploads`: the bytes of an archive, signed by a member.
//!
//! The signature ([`super::signed`]) is checked before a byte of the body is read.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Json, Response};
use catalog::access::{self, Action, Decision};
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};
use wire::ErrorCode;

use super::signed::Claim;
use crate::app::Broker;
use crate::deploy;
use crate::error::FrameError;

const PATH: &str = "/v1/uploads";
/// How long the whole body may take.
const BODY: Duration = Duration::from_secs(120);

pub async fn upload(State(broker): State<Arc<Broker>>, headers: HeaderMap, body: Body) -> Response {
    match take(&broker, &headers, body).await {
        Ok((sha256, size)) => Json(json!({"file_id": sha256, "size": size})).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn take(broker: &Broker, headers: &HeaderMap, body: Body) -> Result<(String, usize), FrameError> {
    let claim = Claim::read(headers)?;
    admit(broker, &claim).await?;
    // Held until the bytes are stored: until then they are in memory.
    let _turn = broker.uploads.try_acquire().map_err(|_| {
        FrameError::new(ErrorCode::Busy, "too many uploads at the same time; try again in a moment")
    })?;
    let limit = broker.limits.max_upload_bytes;
    let announced = announced(headers).unwrap_or(0);
    if announced > limit {
        return Err(too_large(limit));
    }
    let mut tx = broker.store.read().await?;
    deploy::upload_fits(broker, &mut tx, (&claim.mesh, &claim.member), &claim.sha256, announced).await?;
    drop(tx);
    let collected = tokio::time::timeout(BODY, collect(body, limit)).await;
    let bytes = collected.map_err(|_| FrameError::invalid("the body took longer than two minutes"))??;
    // Tens of MiB: hashing them here would hold up the calls of everybody.
    let hashed = tokio::task::spawn_blocking(move || (hex::encode(Sha256::digest(&bytes)), bytes)).await;
    let (sha256, bytes) = hashed.map_err(|e| FrameError::internal(&e))?;
    if sha256 != claim.sha256 {
        return Err(FrameError::invalid("the body is not the one that was signed"));
    }
    let size = bytes.len();
    deploy::keep_upload(broker, &claim.mesh, &claim.member, &claim.sha256, bytes).await?;
    Ok((claim.sha256, size))
}

/// The signature, then the member's right to deploy at all.
async fn admit(broker: &Broker, claim: &Claim) -> Result<(), FrameError> {
    let (_, caller) = claim.prove(broker, ("POST", PATH)).await?;
    match access::decide(&caller, Action::Deploy, None) {
        Decision::Allow => Ok(()),
        _ => Err(FrameError::new(ErrorCode::Forbidden, "your role may not deploy")),
    }
}

/// What `Content-Length` says; absent for a chunked body, which is counted as it comes.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> FrameError {
    FrameError::new(ErrorCode::TooLarge, format!("an upload holds at most {limit} bytes"))
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| FrameError::invalid("the body ended too early"))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    if bytes.is_empty() {
        return Err(FrameError::invalid("the body is empty"));
    }
    Ok(bytes)
}
