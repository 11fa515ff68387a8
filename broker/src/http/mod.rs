//! The one port: WebSocket upgrade, health, metrics, join, hooks, uploads.
//!
//! Here: routes and the JSON form of a failure. Not here: what the routes do (the modules below, `peer`).

mod health;
mod hook;
mod join;
mod signed;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get, post};
use serde_json::json;

use crate::app::Broker;
use crate::config::HARD_CAP_FACTOR;
use crate::error::FrameError;
use crate::peer::socket;

const MAX_HOOK_BYTES: usize = 16 << 10;
/// An invite payload is some 700 bytes.
const MAX_JOIN_BYTES: usize = 64 << 10;

pub fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/ws", any(upgrade))
        .route("/health", get(health::health))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/join", post(join::join).layer(DefaultBodyLimit::max(MAX_JOIN_BYTES)))
        .route(hook::PATH, post(hook::set_status).layer(DefaultBodyLimit::max(MAX_HOOK_BYTES)))
        .route("/v1/uploads", post(uploads::upload).layer(DefaultBodyLimit::disable()))
        .fallback(unknown)
        .with_state(broker)
}

async fn upgrade(State(broker): State<Arc<Broker>>, upgrade: WebSocketUpgrade) -> Response {
    // Far above the limit that is answered; a frame beyond it costs the connection (close 1009).
    let hard_cap = broker.limits.max_message_bytes.saturating_mul(HARD_CAP_FACTOR);
    let shutdown = broker.shutdown.clone();
    // Many connections are idle: the default buffer of 128 KiB for each would be most of the broker's memory.
    upgrade
        .max_message_size(hard_cap)
        .max_frame_size(hard_cap)
        .read_buffer_size(16 << 10)
        .write_buffer_size(16 << 10)
        .on_upgrade(move |ws| {
            let tracked = broker.tracker.clone();
            tracked.track_future(socket::serve(broker, ws, shutdown))
        })
}

async fn unknown() -> Response {
    failure(StatusCode::NOT_FOUND, "not_found", "no such path")
}

fn failure(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({"error": {"code": code, "message": message}}))).into_response()
}

impl IntoResponse for FrameError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status());
        // The table of codes holds valid statuses only; its 499 is one of them.
        failure(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), self.code.as_str(), &self.message)
    }
}
