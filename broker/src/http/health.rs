//! `/health` (is the process well?), `/health/ready` (may it get traffic?) and `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::app::Broker;
use crate::metrics;

const PATIENCE: Duration = Duration::from_secs(2);
/// A liveness probe often waits a second at most, and a database that is away must not look like a dead broker.
const GLANCE: Duration = Duration::from_millis(400);

/// Always 200 while the process answers: a liveness probe must not kill a broker whose database is away.
pub async fn health(State(broker): State<Arc<Broker>>) -> Json<Value> {
    let db = if is_db_up(&broker, GLANCE).await { "up" } else { "down" };
    Json(json!({
        "status": "ok",
        "db": db,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime": broker.started.elapsed().as_secs(),
        "url": broker.public_url,
    }))
}

pub async fn ready(State(broker): State<Arc<Broker>>) -> Response {
    if !is_db_up(&broker, PATIENCE).await {
        return not_ready(json!({"status": "not_ready", "reason": "db_down"}));
    }
    if let Some(expected) = &broker.expected_migration {
        match timeout(PATIENCE, broker.store.schema_version()).await {
            // Names begin with their number, so the order of names is the order of migrations.
            Ok(Ok(newest)) if newest.as_str() >= expected.as_str() => {}
            Ok(Ok(_)) => {
                let body =
                    json!({"status": "not_ready", "reason": "migration_missing", "expected": expected});
                return not_ready(body);
            }
            Ok(Err(_)) | Err(_) => {
                return not_ready(json!({"status": "not_ready", "reason": "readiness_check_error"}));
            }
        }
    }
    Json(json!({
        "status": "ready",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime": broker.started.elapsed().as_secs(),
        "runner": runner(&broker).await,
    }))
    .into_response()
}

/// For people and `doctor`. A broker without a runner still routes, lists and explains, so it is ready.
async fn runner(broker: &Broker) -> Value {
    match timeout(PATIENCE, broker.runner.health()).await {
        Ok(Ok(health)) => json!({
            "connected": broker.observed.link().is_up(),
            "build": health.build,
            "pid": health.pid,
            "services": health.services,
            "tools": health.tools,
        }),
        Ok(Err(_)) | Err(_) => json!({"connected": false}),
    }
}

pub async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    let phases = broker.observed.phases();
    for phase in metrics::PHASES {
        let count = phases.get(phase).copied().unwrap_or(0);
        metrics::service_state(*phase, u32::try_from(count).unwrap_or(u32::MAX));
    }
    metrics::runner_connected(broker.observed.link().is_up());
    match &broker.metrics {
        Some(handle) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render()).into_response()
        }
        None => super::failure(
            StatusCode::NOT_FOUND,
            "not_found",
            "metrics are exported by the embedding program",
        ),
    }
}

async fn is_db_up(broker: &Broker, patience: Duration) -> bool {
    let is_up = matches!(timeout(patience, broker.store.ping()).await, Ok(Ok(())));
    metrics::database_healthy(is_up);
    is_up
}

fn not_ready(body: Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}
