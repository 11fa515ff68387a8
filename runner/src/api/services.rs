//! Services: list, show, apply, remove; health and shutdown.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use wire::ErrorCode;
use wire::report::{Lists, ServiceReport};
use wire::runner::{Apply, Health};

use super::failure::{ApiError, parse};
use super::{App, Key};

pub async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    Json(app.health())
}

pub async fn list(State(app): State<Arc<App>>) -> Json<Vec<ServiceReport>> {
    Json(app.table.all().iter().map(|service| service.report.borrow().clone()).collect())
}

pub async fn show(State(app): State<Arc<App>>, Key(key): Key) -> Result<Json<ServiceReport>, ApiError> {
    let service = app.table.find(&key).ok_or_else(ApiError::no_service)?;
    let report = service.report.borrow().clone();
    Ok(Json(report))
}

pub async fn apply(
    State(app): State<Arc<App>>,
    Key(key): Key,
    body: Bytes,
) -> Result<(StatusCode, Json<ServiceReport>), ApiError> {
    let apply: Apply = parse(&body)?;
    let report = app.table.apply(&key, apply).await?;
    Ok((StatusCode::ACCEPTED, Json(report)))
}

pub async fn lists(State(app): State<Arc<App>>, Key(key): Key) -> Result<Json<Lists>, ApiError> {
    let service = app.table.find(&key).ok_or_else(ApiError::no_service)?;
    let lists = service.lists.borrow().clone();
    let lists = lists.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "the service was never ready"))?;
    Ok(Json(Lists::clone(&lists)))
}

#[derive(Deserialize)]
pub struct Remove {
    #[serde(default)]
    purge: bool,
}

pub async fn remove(
    State(app): State<Arc<App>>,
    Key(key): Key,
    Query(Remove { purge }): Query<Remove>,
) -> Result<StatusCode, ApiError> {
    app.table.remove(&key, purge).await.ok_or_else(ApiError::no_service)??;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn shutdown(State(app): State<Arc<App>>) -> StatusCode {
    app.ending.cancel();
    StatusCode::ACCEPTED
}
