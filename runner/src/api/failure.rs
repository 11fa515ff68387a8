//! Failures as HTTP answers.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use wire::ErrorCode;
use wire::runner::Failure;

use crate::prepare::PrepareError;
use crate::service::{ApplyError, RemoveError};

/// A request that ends with its code's status and a [`Failure`].
#[derive(Debug)]
pub struct ApiError(Failure);

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Failure { code, message: message.into(), stderr: vec![], rpc: None })
    }

    pub fn no_service() -> Self {
        Self::new(ErrorCode::NotFound, "the runner has no such service")
    }
}

impl From<ApiError> for Failure {
    fn from(ApiError(failure): ApiError) -> Self {
        failure
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).expect("a failure is plain JSON");
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<ApplyError> for ApiError {
    fn from(e: ApplyError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

impl From<RemoveError> for ApiError {
    fn from(e: RemoveError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

impl From<PrepareError> for ApiError {
    fn from(e: PrepareError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

/// Reads a JSON body; the message names the field.
pub fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::new(ErrorCode::InvalidArgs, e.to_string()))
}
