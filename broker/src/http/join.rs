//! `POST /join`: an invite and a public key become a member.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;
use wire::peer::mesh::Join;

use crate::app::Broker;
use crate::error::FrameError;
use crate::invites::{self, JoinError};

/// 200, or 400 with `{ok: false, error}` in the words of the original.
pub async fn join(State(broker): State<Arc<Broker>>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Join>(&body) else {
        let error = "invite_token, invite_payload, peer_pubkey, display_name required";
        return refuse(StatusCode::BAD_REQUEST, error);
    };
    match invites::join(&broker, request).await {
        Ok(joined) => Json(joined).into_response(),
        Err(JoinError::Store(source)) => {
            let status = StatusCode::from_u16(source.code().http_status());
            let error = FrameError::from(source);
            refuse(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error.message)
        }
        Err(error @ (JoinError::Refused(_) | JoinError::Field(_))) => {
            refuse(StatusCode::BAD_REQUEST, &error.to_string())
        }
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({"ok": false, "error": error}))).into_response()
}
