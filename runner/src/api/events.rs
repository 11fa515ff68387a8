//! Streams that stay open: changes of all services, and one service's log.
//!
//! Invariant: a reader first hears how things are, then every change; one that is too slow is cut off.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use tokio_stream::wrappers::BroadcastStream;
use wire::runner::{Event, ServiceLists};

use super::failure::ApiError;
use super::{App, Key};
use crate::events::{Reader, line};

const BEAT: Duration = Duration::from_secs(10);

/// `GET /v1/events`.
pub async fn follow(State(app): State<Arc<App>>) -> Response {
    // From here on every change waits in the reader, so none is lost between the snapshot and the stream.
    let reader = app.shop.events.read();
    let mut first = vec![line(&Event { hello: Some(app.health()), ..Event::default() })];
    for service in app.table.all() {
        if let Some(lists) = service.lists.borrow().as_deref() {
            let lists = ServiceLists { service: service.key.clone(), lists: lists.clone() };
            first.push(line(&Event { lists: Some(lists), ..Event::default() }));
        }
        let report = service.report.borrow().clone();
        first.push(line(&Event { report: Some(report), ..Event::default() }));
    }
    first.push(line(&Event { synced: true, ..Event::default() }));
    body(stream::iter(first).chain(changes(reader)), &app)
}

/// Ends when the reader was too slow: it has to start again.
fn changes(reader: Reader) -> impl Stream<Item = Bytes> {
    stream::unfold(reader, |mut reader| async move {
        let next = tokio::time::timeout(BEAT, reader.lines.recv()).await;
        match next {
            Ok(Ok(line)) => Some((line, reader)),
            Ok(Err(_)) => None,
            Err(_) => Some((line(&Event { beat: true, ..Event::default() }), reader)),
        }
    })
}

#[derive(Deserialize)]
pub struct Logs {
    #[serde(default = "default_lines")]
    lines: usize,
    #[serde(default)]
    follow: bool,
}

fn default_lines() -> usize {
    200
}

/// `GET …/logs`. A follower that is too slow loses lines, which their numbers show.
pub async fn logs(
    State(app): State<Arc<App>>,
    Key(key): Key,
    Query(Logs { lines, follow }): Query<Logs>,
) -> Result<Response, ApiError> {
    let service = app.table.find(&key).ok_or_else(ApiError::no_service)?;
    let (past, coming) = service.log.follow(lines);
    // The ring must not be kept alive: the stream ends when the service does.
    drop(service);
    let past = stream::iter(past.into_iter().map(|l| line(&*l)));
    if !follow {
        return Ok(body(past, &app));
    }
    let coming = BroadcastStream::new(coming).filter_map(async |next| next.ok().map(|l| line(&*l)));
    Ok(body(past.chain(coming), &app))
}

fn body(lines: impl Stream<Item = Bytes> + Send + 'static, app: &App) -> Response {
    let lines = lines.take_until(app.ended.clone().cancelled_owned());
    let body = Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
