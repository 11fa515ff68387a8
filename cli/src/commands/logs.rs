//! `logs`: the last lines of a service, and what comes.

use std::collections::BTreeSet;

use client::connection::{LogEvent, LogStream};
use client::{ClientError, Connection, LinkState, Reconnect};
use wire::peer::hosting::McpLogs;
use wire::report::LogLine;

use crate::args::LogsArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::Out;
use crate::plain::plain_line;
use crate::units;

pub async fn logs(here: &Here, args: &LogsArgs) -> Result<(), Failure> {
    if args.follow {
        return follow(here, args).await;
    }
    let connection = here.connect().await?;
    let asked = first(&connection, args, false).await;
    connection.close().await;
    let (_, entries) = asked?;
    if here.out.json {
        return here.out.document(&entries);
    }
    for entry in &entries {
        here.out.line(words(entry));
    }
    if entries.is_empty() {
        here.out.remark(format!("{} has not written anything", args.name));
    }
    Ok(())
}

async fn first(
    connection: &Connection,
    args: &LogsArgs,
    follow: bool,
) -> Result<(LogStream, Vec<LogLine>), ClientError> {
    let request = McpLogs { server_name: args.name.clone(), lines: Some(args.lines), follow };
    let mut stream = connection.logs(&request).await?;
    match tokio::time::timeout(client::connection::REQUEST_DEADLINE, stream.next()).await {
        Ok(Ok(LogEvent::Past(past))) => Ok((stream, past.entries)),
        Ok(Ok(LogEvent::Later(later))) => Ok((stream, later.entries)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Timeout(client::connection::REQUEST_DEADLINE.as_secs())),
    }
}

/// Until Ctrl-C, across restarts of broker and runner.
async fn follow(here: &Here, args: &LogsArgs) -> Result<(), Failure> {
    let connection = here.connect_as(Reconnect::Forever).await?;
    let mut seen = Seen::default();
    let ended = tokio::select! {
        ended = follow_on(here.out, &connection, args, &mut seen) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    connection.close().await;
    ended
}

async fn follow_on(
    out: Out,
    connection: &Connection,
    args: &LogsArgs,
    seen: &mut Seen,
) -> Result<(), Failure> {
    loop {
        match follow_once(out, connection, args, seen).await {
            Ok(end) => out.remark(format!("the stream ended: {}; following again", plain_line(&end))),
            Err(error) if error.is_link_loss() => {
                out.remark(format!("{}; connecting again", plain_line(&error.to_string())))
            }
            Err(ClientError::Lagged) => out.remark("lines came faster than they were read; following again"),
            Err(error) => return Err(error.into()),
        }
        wait_for_link(connection).await?;
    }
}

/// Returns why the stream ended.
async fn follow_once(
    out: Out,
    connection: &Connection,
    args: &LogsArgs,
    seen: &mut Seen,
) -> Result<String, ClientError> {
    let (mut stream, past) = first(connection, args, true).await?;
    print(out, seen.only_new(past))?;
    loop {
        match stream.next().await? {
            LogEvent::Past(past) => print(out, seen.only_new(past.entries))?,
            LogEvent::Later(later) => {
                print(out, seen.only_new(later.entries))?;
                if let Some(end) = later.end {
                    return Ok(end);
                }
            }
        }
    }
}

/// Up again, or a moment later: a broker that is up and has lost its runner needs one.
async fn wait_for_link(connection: &Connection) -> Result<(), Failure> {
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let mut state = connection.state();
    let settled = state.wait_for(|state| !matches!(state, LinkState::Down(_))).await;
    match settled.as_deref() {
        Ok(LinkState::Ended(why)) => Err(ClientError::Closed(why.clone()).into()),
        Ok(_) => Ok(()),
        Err(_) => Err(ClientError::Closed("the connection is gone".to_owned()).into()),
    }
}

fn print(out: Out, entries: Vec<LogLine>) -> Result<(), ClientError> {
    for entry in entries {
        if out.json {
            out.document(&entry).map_err(|failure| ClientError::Local(failure.message))?;
        } else {
            out.line(words(&entry));
        }
    }
    Ok(())
}

fn words(entry: &LogLine) -> String {
    format!("{} {:<7} {}", units::clock(entry.at_ms), plain_line(&entry.stream), plain_line(&entry.text))
}

/// What was printed, so that following again repeats nothing. Numbers start again with each life of the runner, so time is
/// part of an entry's name.
#[derive(Default)]
struct Seen(BTreeSet<(i64, u64)>);

impl Seen {
    /// Twice the ring.
    const KEPT: usize = 2000;

    fn only_new(&mut self, entries: Vec<LogLine>) -> Vec<LogLine> {
        let new = entries.into_iter().filter(|entry| self.0.insert((entry.at_ms, entry.seq))).collect();
        while self.0.len() > Self::KEPT {
            self.0.pop_first();
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, at_ms: i64) -> LogLine {
        LogLine { seq, at_ms, stream: "stderr".into(), text: format!("\u{1b}[1mn{seq}") }
    }

    #[test]
    fn following_again_repeats_nothing_and_a_new_runner_starts_at_one() {
        let mut seen = Seen::default();
        assert_eq!(seen.only_new(vec![line(1, 5), line(2, 5)]).len(), 2);
        assert_eq!(seen.only_new(vec![line(1, 5), line(2, 5), line(3, 6)]), [line(3, 6)]);
        assert_eq!(seen.only_new(vec![line(1, 9)]), [line(1, 9)]);
    }

    #[test]
    fn a_printed_line_is_harmless() {
        assert!(words(&line(1, 0)).ends_with(r"stderr  \u{1b}[1mn1"));
    }
}
