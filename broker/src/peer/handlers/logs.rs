//! `mcp_logs`: the last lines of a service, and what follows them.

use std::time::Duration;

use catalog::access::{self, Action, Decision};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use wire::peer::hosting::{McpLogs, McpLogsEvent, McpLogsResult};
use wire::report::LogLine;
use wire::{ErrorCode, ServiceKey};

use crate::app::Broker;
use crate::error::FrameError;
use crate::peer::dispatch::Asked;
use crate::runner::{Lines, RunnerError};

const DEFAULT_LINES: u32 = 50;
const MAX_LINES: u32 = 1000;
/// Lines that arrive within this time are sent in one frame.
const GATHER: Duration = Duration::from_millis(20);
const MAX_BATCH: usize = 200;

pub async fn logs(asked: Asked, frame: McpLogs, cancel: CancellationToken) {
    let work = async {
        match answer(&asked, &frame).await {
            Ok(Some((key, last))) if frame.follow => follow(&asked, &key, last).await,
            Ok(_) => {}
            Err(error) => asked.refuse(error).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = cancel.cancelled() => {}
    }
}

/// The lines that are there now; `None` when there is nothing to follow.
async fn answer(asked: &Asked, frame: &McpLogs) -> Result<Option<(ServiceKey, u64)>, FrameError> {
    let service = asked.view.visible(&asked.caller, &frame.server_name)?;
    match access::decide(&asked.caller, Action::Logs, Some(service.subject())) {
        Decision::Allow => {}
        Decision::NotFound => return Err(FrameError::not_found(&frame.server_name)),
        Decision::Forbidden => {
            let message = "only who deployed it and admins may read the logs";
            return Err(FrameError::new(ErrorCode::Forbidden, message));
        }
    }
    let wanted = frame.lines.unwrap_or(DEFAULT_LINES).min(MAX_LINES);
    let entries = match past(&asked.broker, service.key(), wanted).await {
        Ok(entries) => entries,
        // A stopped service has no lines at the runner, but it is a service all the same.
        Err(RunnerError::Refused(failure)) if failure.code == ErrorCode::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let last = entries.last().map_or(0, |line| line.seq);
    let lines = entries.iter().map(|line| format!("[{}] {}", line.stream, line.text)).collect();
    let server_name = service.name().to_string();
    asked.answer(&McpLogsResult { server_name, lines, entries }).await;
    Ok(Some((service.key().clone(), last)))
}

async fn past(broker: &Broker, key: &ServiceKey, wanted: u32) -> Result<Vec<LogLine>, RunnerError> {
    let mut lines = broker.runner.logs(key, wanted, false).await?;
    let mut entries = Vec::new();
    while let Some(line) = lines.next().await? {
        entries.push(parse(&line)?);
    }
    Ok(entries)
}

/// Follows until the service is gone, the runner is lost, the reader may not read any more, or the client cancels.
async fn follow(asked: &Asked, key: &ServiceKey, last: u64) {
    let end = match asked.broker.runner.logs(key, MAX_LINES, true).await {
        Ok(lines) => stream(asked, key, lines, last).await,
        Err(error) => error.to_string(),
    };
    let server_name = key.name.to_string();
    asked.answer(&McpLogsEvent { server_name, entries: Vec::new(), end: Some(end) }).await;
}

async fn stream(asked: &Asked, key: &ServiceKey, mut lines: Lines, mut last: u64) -> String {
    loop {
        let mut entries = Vec::new();
        let ended = gather(&mut lines, &mut entries, &mut last).await;
        if !may_still_read(asked, key).await {
            return "the service is not visible any more".into();
        }
        if !entries.is_empty() {
            let server_name = key.name.to_string();
            asked.answer(&McpLogsEvent { server_name, entries, end: None }).await;
        }
        if let Some(end) = ended {
            return end;
        }
    }
}

/// Waits for one new line and takes those that come right after it. Answers why the stream ended, if it did.
async fn gather(lines: &mut Lines, entries: &mut Vec<LogLine>, last: &mut u64) -> Option<String> {
    let mut until: Option<Instant> = None;
    while entries.len() < MAX_BATCH {
        let next = match until {
            None => lines.next().await,
            Some(until) => match timeout_at(until, lines.next()).await {
                Ok(next) => next,
                Err(_) => return None,
            },
        };
        match next.and_then(|line| line.map(|line| parse(&line)).transpose()) {
            Ok(Some(line)) if line.seq > *last => {
                *last = line.seq;
                until = until.or(Some(Instant::now() + GATHER));
                entries.push(line);
            }
            Ok(Some(_)) => {}
            Ok(None) => return Some("the service was stopped or removed".into()),
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

async fn may_still_read(asked: &Asked, key: &ServiceKey) -> bool {
    let Ok(view) = asked.broker.views.of(&key.mesh).await else { return false };
    let Some(caller) = view.caller(&asked.caller.member) else { return false };
    view.service(key.name.as_str()).is_some_and(|service| {
        access::decide(&caller, Action::Logs, Some(service.subject())) == Decision::Allow
    })
}

fn parse(line: &[u8]) -> Result<LogLine, RunnerError> {
    serde_json::from_slice(line).map_err(|e| RunnerError::Nonsense(e.to_string()))
}
