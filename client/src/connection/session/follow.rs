//! Reaching the broker through the process that holds the session's link.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::place::Meeting;
use super::words::{self, Answer, Greeting, Note, Word};
use crate::connection::LinkState;
use crate::connection::frame::{Frame, News, Waiter, Waiting};
use crate::connection::inbox::{Command, Inbox, cancel_frame};
use crate::connection::socket::{Ends, route};

const GREETING_DEADLINE: Duration = Duration::from_secs(5);

pub(super) enum Followed {
    /// Closed here, or the broker refused the session for good: the state says which.
    Closed,
    /// The holder has ended.
    Lost,
    /// There is no holder to talk to at the moment.
    Unreached,
    OtherVersion(String),
}

/// What the two halves share. They run in one task.
struct Line {
    waiting: Waiting,
    /// `None` while the link is down.
    epoch: watch::Sender<Option<u32>>,
    is_leaving: AtomicBool,
}

pub(super) async fn follow(meeting: &Meeting, prefix: &str, ends: &mut Ends) -> Followed {
    let closing = Arc::clone(&ends.closing);
    let meet = tokio::time::timeout(GREETING_DEADLINE, greet(meeting, prefix));
    let met = tokio::select! {
        biased;
        () = closing.notified() => {
            // The caller looks at the same bell.
            closing.notify_one();
            return Followed::Unreached;
        }
        met = meet => met,
    };
    let (from, to) = match met {
        Ok(Ok((from, to, Answer::Welcome))) => (from, to),
        Ok(Ok((_, _, Answer::OtherVersion(version)))) => return Followed::OtherVersion(version),
        Ok(Ok((_, _, Answer::Later)) | Err(_)) | Err(_) => return Followed::Unreached,
    };
    let line = Line {
        waiting: Waiting::default(),
        epoch: watch::Sender::new(None),
        is_leaving: AtomicBool::new(false),
    };
    let Ends { inbox, report, news, closing } = ends;
    let followed = tokio::select! {
        followed = hear(from, &line, report, news) => followed,
        followed = speak(to, &line, inbox, closing) => followed,
    };
    match followed {
        Followed::Closed if !matches!(&*report.borrow(), LinkState::Ended(_)) => {
            report.send_replace(LinkState::Ended("it was closed here".to_owned()));
        }
        Followed::Closed => {}
        // Before the waiters are answered by dropping them.
        _ => drop(report.send_replace(LinkState::Down("the process that held it has ended".to_owned()))),
    }
    followed
}

type Greeted = (BufReader<OwnedReadHalf>, BufWriter<OwnedWriteHalf>, Answer);

async fn greet(meeting: &Meeting, prefix: &str) -> std::io::Result<Greeted> {
    let stream = UnixStream::connect(&meeting.socket).await?;
    if stream.peer_cred()?.uid() != meeting.uid {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let (from, to) = stream.into_split();
    let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
    let greeting = Greeting { version: words::VERSION.to_owned(), prefix: prefix.to_owned() };
    words::greet(&mut to, &greeting).await?;
    let answer = words::answer(&mut from).await?;
    Ok((from, to, answer))
}

async fn hear<R: AsyncRead + Unpin>(
    mut from: R,
    line: &Line,
    report: &watch::Sender<LinkState>,
    news: &News,
) -> Followed {
    loop {
        match words::read_word(&mut from).await {
            Ok(Some(Word::Up { epoch, ack })) => match serde_json::from_str(&ack) {
                Ok(ack) => {
                    report.send_replace(LinkState::Up(Arc::new(ack)));
                    line.epoch.send_replace(Some(epoch));
                }
                Err(e) => tracing::warn!("unreadable state of the session's link: {e}"),
            },
            Ok(Some(Word::Down(why))) => {
                report.send_replace(LinkState::Down(why.as_ref().to_owned()));
                line.epoch.send_replace(None);
                line.waiting.clear();
            }
            Ok(Some(Word::Ended(why))) => {
                report.send_replace(LinkState::Ended(why.as_ref().to_owned()));
                return Followed::Closed;
            }
            Ok(Some(Word::Leaving)) => line.is_leaving.store(true, Ordering::Relaxed),
            Ok(Some(Word::Frame(text))) => route(Frame::new(text), &line.waiting, news, None),
            Ok(None) => return Followed::Lost,
            Err(e) => {
                tracing::debug!("the session's link: {e}");
                return Followed::Lost;
            }
        }
    }
}

async fn speak(
    mut to: BufWriter<OwnedWriteHalf>,
    line: &Line,
    inbox: &mut Inbox,
    closing: &tokio::sync::Notify,
) -> Followed {
    let mut epochs = line.epoch.subscribe();
    loop {
        // The sender lives in `line`.
        tokio::select! {
            biased;
            () = closing.notified(), if line.epoch.borrow().is_none() => return Followed::Closed,
            _ = epochs.wait_for(Option::is_some) => {}
        }
        let command = match next(line, inbox).await {
            Some(Command::Close) | None => {
                let _ = to.flush().await;
                return Followed::Closed;
            }
            Some(command) => command,
        };
        // It may have been lost while we waited.
        let Some(epoch) = *line.epoch.borrow() else {
            inbox.put_back(command);
            continue;
        };
        if line.is_leaving.load(Ordering::Relaxed) && matches!(command, Command::Ask { .. }) {
            inbox.hold(command);
            continue;
        }
        if write(&mut to, line, epoch, command).await.is_err() {
            return Followed::Lost;
        }
    }
}

async fn next(line: &Line, inbox: &mut Inbox) -> Option<Command> {
    if line.is_leaving.load(Ordering::Relaxed) {
        // What is held is for the next holder.
        if inbox.is_full() {
            std::future::pending::<()>().await;
        }
        return inbox.next_fresh().await;
    }
    inbox.next().await
}

async fn write(
    to: &mut BufWriter<OwnedWriteHalf>,
    line: &Line,
    epoch: u32,
    command: Command,
) -> std::io::Result<()> {
    match command {
        Command::Ask { id, nature, text, waiter } => {
            if waiter.is_gone() {
                return Ok(());
            }
            let is_once = matches!(waiter, Waiter::Once(_));
            line.waiting.enter(id.clone(), waiter);
            words::write_note(to, &Note::Ask { epoch, is_once, nature, id, text }).await?;
        }
        Command::Forget { id, cancel } => {
            line.waiting.forget(&id);
            if cancel && let Some(text) = cancel_frame(&id) {
                words::write_note(to, &Note::Tell { epoch, text }).await?;
            }
            words::write_note(to, &Note::Forget { id }).await?;
        }
        Command::Tell { text } => words::write_note(to, &Note::Tell { epoch, text }).await?,
        // Nobody joins a joiner, and closing is the caller's.
        Command::Pass { .. } | Command::Close => {}
    }
    to.flush().await
}
