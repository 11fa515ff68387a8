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
use wire::report::Lists;
use wire::runner::{Event, ServiceLists};

use super::failure::ApiError;
use super::{App, Key};
use crate::events::{Notice, Reader, line};
use crate::service::ServiceHandle;
use crate::table::Table;

const BEAT: Duration = Duration::from_secs(10);

/// `GET /v1/events`.
pub async fn follow(State(app): State<Arc<App>>) -> Response {
    // From here on every change waits in the reader, so none is lost between the snapshot and the stream.
    let reader = app.shop.events.read();
    let mut first = vec![line(&Event { hello: Some(app.health()), ..Event::default() })];
    for service in app.table.all() {
        first.extend(lists_line(&service));
        let report = service.report.borrow().clone();
        first.push(line(&Event { report: Some(report), ..Event::default() }));
    }
    first.push(line(&Event { synced: true, ..Event::default() }));
    body(stream::iter(first).chain(changes(reader, app.table.clone())), &app)
}

/// The lists as they are now, if it was ever ready.
fn lists_line(service: &ServiceHandle) -> Option<Bytes> {
    let lists = service.lists.borrow().clone()?;
    let lists = ServiceLists { service: service.key.clone(), lists: Lists::clone(&lists) };
    Some(line(&Event { lists: Some(lists), ..Event::default() }))
}

/// Ends when the reader was too slow: it has to start again.
fn changes(reader: Reader, table: Arc<Table>) -> impl Stream<Item = Bytes> {
    stream::unfold((reader, table), |(mut reader, table)| async move {
        loop {
            let line = match tokio::time::timeout(BEAT, reader.notices.recv()).await {
                Ok(Ok(Notice::Line(line))) => Some(line),
                // Of a service that is gone meanwhile there is nothing to say but that, which comes next.
                Ok(Ok(Notice::Lists(key))) => table.find(&key).and_then(|service| lists_line(&service)),
                Ok(Err(_)) => return None,
                Err(_) => Some(line(&Event { beat: true, ..Event::default() })),
            };
            if let Some(line) = line {
                return Some((line, (reader, table)));
            }
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
