//! The runner's HTTP API (`wire::runner`): routes, and what handlers share.
//!
//! Here: the router, the token, errors as answers. Not here: listening (see [`crate::listen`]), any decision.
//! Invariant: over TCP no handler runs for a request without the token.

mod calls;
mod events;
mod failure;
mod listening;
mod rpc;
mod services;
mod store;
mod vault;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use wire::runner::Health;
use wire::{ErrorCode, MeshId, Secret, ServiceKey, ServiceName};

use crate::shop::Shop;
use crate::table::Table;
use failure::ApiError;

/// What every handler may use.
pub struct App {
    pub shop: Arc<Shop>,
    pub table: Arc<Table>,
    pub build: String,
    pub boot: String,
    pub started: Instant,
    /// Asked to end.
    pub ending: CancellationToken,
    /// Ended: open streams close.
    pub ended: CancellationToken,
}

impl App {
    pub fn health(&self) -> Health {
        Health {
            build: self.build.clone(),
            boot: self.boot.clone(),
            pid: std::process::id().cast_signed(),
            uptime_s: self.started.elapsed().as_secs(),
            services: self.table.all().len(),
            tools: self.shop.workshop.known_tools(),
            isolation: self.shop.cells.isolation().clone(),
        }
    }
}

/// All routes. `token`: what each request must carry, when the transport does not decide.
pub fn router(app: Arc<App>, token: Option<Secret>) -> Router {
    let limit = app.shop.config.max_body_bytes;
    let service = get(services::show).put(services::apply).delete(services::remove);
    let router = Router::new()
        .route("/health", get(services::health))
        .route("/v1/services", get(services::list))
        .route("/v1/services/{mesh}/{name}", service)
        .route("/v1/services/{mesh}/{name}/lists", get(services::lists))
        .route("/v1/services/{mesh}/{name}/rpc", post(rpc::call))
        .route("/v1/services/{mesh}/{name}/logs", get(events::logs))
        .route("/v1/calls", get(calls::open))
        .route("/v1/events", get(events::follow))
        // axum answers HEAD with the GET handler, without its body.
        .route("/v1/blobs/{sha256}", get(store::has_blob).put(store::put_blob))
        .route("/v1/artefacts/retain", post(store::retain))
        .route("/v1/vault", get(vault::show))
        .route("/v1/vault/boot-key", put(vault::unlock))
        .route("/v1/vault/meshes/{mesh}", put(vault::hold))
        .route("/v1/vault/openings", get(vault::openings))
        .route("/v1/shutdown", post(services::shutdown))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(limit))
        .with_state(app);
    match token {
        Some(token) => router.layer(middleware::from_fn_with_state(Arc::new(token), check_token)),
        None => router,
    }
}

async fn unknown() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no such path")
}

async fn check_token(
    State(token): State<Arc<Secret>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if carries(request.headers(), &token) {
        return Ok(next.run(request).await);
    }
    Err(ApiError::new(ErrorCode::Unauthorized, "the request does not carry the runner's token"))
}

fn carries(headers: &HeaderMap, token: &Secret) -> bool {
    let value = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let given = value.strip_prefix(b"Bearer ").unwrap_or_default();
    // Constant in time over equal lengths; the length of a token is no secret.
    !token.expose().is_empty() && bool::from(given.ct_eq(token.expose().as_bytes()))
}

/// The service that the path names.
pub struct Key(pub ServiceKey);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((mesh, name)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(ErrorCode::InvalidName, "the path does not name a service"))?;
        let bad = |e: wire::BadId| ApiError::new(ErrorCode::InvalidName, e.to_string());
        let mesh = MeshId::parse(&mesh).map_err(bad)?;
        let name = ServiceName::parse(&name).map_err(bad)?;
        Ok(Self(ServiceKey { mesh, name }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_token_opens() {
        let token = Secret::new("s3cret");
        let given = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            carries(&headers, &token)
        };
        assert!(given("Bearer s3cret"));
        for wrong in ["Bearer s3cre", "Bearer s3crett", "bearer s3cret", "s3cret", "Bearer ", "Basic s3cret"]
        {
            assert!(!given(wrong), "{wrong}");
        }
        assert!(!carries(&HeaderMap::new(), &token));
        let mut empty = HeaderMap::new();
        empty.insert(header::AUTHORIZATION, "Bearer ".parse().expect("a header"));
        assert!(!carries(&empty, &Secret::new("")), "an empty token opens nothing");
    }
}
