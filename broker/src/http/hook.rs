//! `POST /hook/set-status`: a hook of an agent says what its session is doing (peer-protocol reference §8.1).
//!
//! Signed by the member, who speaks of their own sessions only. Not here: which session is meant (`crate::status`).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Json, Response};
use sha2::{Digest, Sha256};
use wire::ErrorCode;
use wire::peer::mesh::{HookStatus, HookStatusSet};

use super::signed::Claim;
use crate::app::Broker;
use crate::error::FrameError;
use crate::status::{self, Activity};

pub const PATH: &str = "/hook/set-status";
/// How long the whole body may take.
const BODY: Duration = Duration::from_secs(5);
/// What is kept for a session that is not here yet.
const MAX_CWD: usize = 4096;
const MAX_SESSION: usize = 256;

pub async fn set_status(State(broker): State<Arc<Broker>>, headers: HeaderMap, request: Request) -> Response {
    match take(&broker, &headers, request).await {
        Ok(done) => Json(done).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn take(broker: &Broker, headers: &HeaderMap, request: Request) -> Result<HookStatusSet, FrameError> {
    let claim = Claim::read(headers)?;
    claim.prove(broker, ("POST", PATH)).await?;
    let body = tokio::time::timeout(BODY, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| FrameError::invalid("the body took longer than five seconds"))?;
    let body =
        body.map_err(|_| FrameError::new(ErrorCode::TooLarge, "the body is too large, or broke off"))?;
    if hex::encode(Sha256::digest(&body)) != claim.sha256 {
        return Err(FrameError::invalid("the body is not the one that was signed"));
    }
    let hook: HookStatus = serde_json::from_slice(&body)
        .map_err(|_| FrameError::invalid("the body: {cwd, status, pid?, session_id?}"))?;
    if hook.cwd.len() > MAX_CWD || hook.session_id.as_ref().is_some_and(|id| id.len() > MAX_SESSION) {
        return Err(FrameError::invalid("cwd: at most 4096 bytes; session_id: at most 256"));
    }
    let activity = Activity::parse(&hook.status).map_err(|e| FrameError::invalid(e.to_string()))?;
    let own = (&claim.mesh, &claim.member);
    Ok(status::by_hook(&broker.presences, &broker.hooks, own, (hook, activity)))
}
