//! Uploaded archives, and the artefacts that may go.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use wire::runner::{Retain, Retained};

use super::App;
use super::failure::{ApiError, parse};

pub async fn has_blob(State(app): State<Arc<App>>, Path(sha256): Path<String>) -> StatusCode {
    if app.shop.workshop.has_blob(&sha256) { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

pub async fn put_blob(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    app.shop.workshop.put_blob(&sha256, body.into_data_stream()).await?;
    Ok(StatusCode::CREATED)
}

pub async fn retain(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Retained>, ApiError> {
    let keep: Retain = parse(&body)?;
    let retained = app.shop.workshop.retain(&keep, &app.table.artefacts()).await?;
    Ok(Json(retained))
}
