//! One process of a generation: jailed, greeted, listed; and ended with everything that it forked.
//!
//! Here: pipes, the start as one future, the graceful stop, why it ended. Not here: when to start or stop
//! (see [`crate::service::state`]), what it runs in (see [`crate::cell`]), what a call means.
//! Invariant: an [`Instance`] whose `halt` has returned [`Ended::Confirmed`] has no process left; a dropped one is being
//! killed.

use std::sync::Arc;
use std::time::Duration;

use jail::{Exit, Report, Step};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vault::Redactor;
use wire::report::{Lists, Reason, Usage};
use wire::{ErrorCode, Generation, Tier};

use crate::cell::{Cell, CellOrder, Cells, Ended};
use crate::diagnosis::{Failure, diagnose, ended};
use crate::guard::{Blame, Guard};
use crate::logs::{LogRing, Voice};
use crate::masking::Masking;
use crate::mcp::handshake::{self, Greeting};
use crate::mcp::{self, Changed, Client, End, lists};
use crate::stderr;
use crate::warden::{Life, Order};

/// After stdin is closed, and after SIGTERM.
const GRACE_STDIN: Duration = Duration::from_secs(2);
const GRACE_TERM: Duration = Duration::from_secs(3);
/// From the end of a server's output to the report of how it ended.
const EXIT_REPORT: Duration = Duration::from_secs(1);
/// From there to the end of its stderr.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// What to start.
pub struct Launch {
    pub cells: Arc<Cells>,
    pub order: CellOrder,
    /// Ours, of the order's streams.
    pub pipes: Pipes,
    pub generation: Generation,
    pub log: Arc<LogRing>,
    /// Masks whatever of it leaves the runner.
    pub redactor: Redactor,
    /// Whether tool results are masked, too.
    pub masks_results: bool,
    pub limits: mcp::Limits,
    /// From the spawn to the last page of the lists.
    pub start_timeout: Duration,
}

/// Our ends of a server's streams.
pub struct Pipes {
    writer: pipe::Sender,
    reader: pipe::Receiver,
    errors: pipe::Receiver,
}

impl Pipes {
    /// The server's ends, and ours.
    pub fn new() -> std::io::Result<(jail::Stdio, Self)> {
        let (their_in, our_out) = std::io::pipe()?;
        let (our_in, their_out) = std::io::pipe()?;
        let (our_err, their_err) = std::io::pipe()?;
        let stdio =
            jail::Stdio { stdin: their_in.into(), stdout: their_out.into(), stderr: their_err.into() };
        let writer = pipe::Sender::from_owned_fd(our_out.into())?;
        let reader = pipe::Receiver::from_owned_fd(our_in.into())?;
        Ok((stdio, Self { writer, reader, errors: pipe::Receiver::from_owned_fd(our_err.into())? }))
    }
}

/// A server that answered.
pub struct Instance {
    pub client: Client,
    pub greeting: Greeting,
    /// The server's process id.
    pub pid: i32,
    pub generation: Generation,
    body: Body,
}

/// The process and the tasks around it, from the spawn on.
struct Body {
    cell: Cell,
    guard: Guard,
    end: watch::Receiver<Option<End>>,
    changed: watch::Receiver<Changed>,
    voice: Arc<Voice>,
    /// Closed once all of stderr was read.
    errors: watch::Receiver<()>,
    /// Taken by whoever halts first; a second halt waits for the first.
    tasks: Mutex<JoinSet<()>>,
}

/// How an instance is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Close stdin, wait, TERM, wait, KILL.
    Graceful,
    Kill,
}

/// Why there is no instance.
#[derive(Debug)]
pub struct StartError {
    pub reason: Reason,
    /// The program, its interpreter or its directory is not there: preparing again may help.
    pub is_gone: bool,
}

impl From<Reason> for StartError {
    fn from(reason: Reason) -> Self {
        Self { reason, is_gone: false }
    }
}

/// Starts, greets and lists. When it fails or is cancelled, nothing of it is left when this returns.
pub async fn start(launch: Launch, cancel: &CancellationToken) -> Result<(Instance, Lists), StartError> {
    let (generation, limit) = (launch.generation, launch.start_timeout);
    let (body, client) = spawn(launch).await?;
    let outcome = tokio::select! {
        outcome = timeout(limit, meet(&body, &client, generation, limit)) => outcome
            .unwrap_or(Err(Trouble::Silent)),
        blame = body.guard.exceeded(&body.cell) => Err(Trouble::Exceeded(blame)),
        () = cancel.cancelled() => Err(Trouble::Cancelled),
    };
    match outcome {
        Ok((greeting, lists)) => {
            client.mark_ready();
            // Not before: a start may take what it needs.
            body.cell.limit_cpu().await;
            let pid = body.cell.life().borrow().pid.unwrap_or_default();
            Ok((Instance { client, greeting, pid, generation, body }, lists))
        }
        Err(trouble) => {
            let exit = body.exit_report(&trouble).await;
            body.halt(&client, Manner::Kill).await;
            let is_gone = matches!(&trouble, Trouble::Jail(report) if is_missing(report));
            Err(StartError { reason: body.explain(trouble, exit.as_ref(), limit).await, is_gone })
        }
    }
}

/// Why [`meet`] gave up.
enum Trouble {
    Jail(Report),
    Ended,
    Silent,
    Chatter,
    Protocol(ErrorCode, String),
    Exceeded(Blame),
    Cancelled,
}

async fn meet(
    body: &Body,
    client: &Client,
    generation: Generation,
    limit: Duration,
) -> Result<(Greeting, Lists), Trouble> {
    body.up().await?;
    let (mut end, mut life) = (body.end.clone(), body.cell.life());
    let talk = async {
        let greeting = handshake::greet(client, limit).await.map_err(|e| (e.code(), e.to_string()))?;
        let lists = lists::read_all(client, &greeting, generation, limit).await;
        lists.map(|lists| (greeting, lists)).map_err(|e| (e.code(), e.to_string()))
    };
    let said = tokio::select! {
        said = talk => said,
        // It ended, but what it said before may still be on its way through the pipe: the connection decides.
        _ = async {
            // The sender lives as long as the warden; when it is gone, so is the process.
            let _ = life.wait_for(|life| life.exit.is_some() || life.gone).await;
            timeout(EXIT_REPORT, end.wait_for(Option::is_some)).await.is_ok()
        } => return Err(body.ended_as()),
    };
    match said {
        Ok(said) => Ok(said),
        Err((ErrorCode::InstanceLost, _)) => {
            // Waiters hear of the end a moment before its cause is known.
            let _ = timeout(EXIT_REPORT, end.wait_for(Option::is_some)).await;
            Err(body.ended_as())
        }
        Err((ErrorCode::StartTimeout, _)) => Err(Trouble::Silent),
        Err((code, message)) => Err(Trouble::Protocol(code, message)),
    }
}

/// Whether the jail did not find what it was to start.
fn is_missing(report: &Report) -> bool {
    const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
    const ENOTDIR: i32 = nix::errno::Errno::ENOTDIR as i32;
    matches!(
        report,
        Report::Failed {
            step: Step::Exec | Step::WorkingDirectory | Step::Sources,
            errno: Some(ENOENT | ENOTDIR),
            ..
        }
    )
}

/// The start was given up because nobody wants it any more.
pub fn superseded() -> Reason {
    Reason {
        code: ErrorCode::Superseded,
        message: "another generation was asked for".to_owned(),
        stderr: vec![],
    }
}

async fn spawn(launch: Launch) -> Result<(Body, Client), Reason> {
    let Launch { cells, order, pipes, log, redactor, masks_results, limits, .. } = launch;
    let Pipes { writer, reader, errors } = pipes;
    let guard = Guard::new(order.home.clone(), order.limits);
    if let Some((code, message)) = guard.disk().await {
        return Err(Reason { code, message, stderr: vec![] });
    }
    let cell = cells.open(order).await?;
    let voice = Arc::new(Voice::new(log, Masking::new(redactor, masks_results)));
    let (tell_changed, changed) = watch::channel(Changed::default());
    let (client, conn) = mcp::connect(reader, writer, limits, voice.clone(), tell_changed);
    let (tell_end, end) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(tell_end.send_replace(Some(conn.await))) });
    let (reading, errors_read) = watch::channel(());
    let words = voice.clone();
    tasks.spawn(async move {
        stderr::read(errors, words).await;
        drop(reading);
    });
    let body = Body { cell, guard, end, changed, voice, errors: errors_read, tasks: Mutex::new(tasks) };
    Ok((body, client))
}

impl Instance {
    /// Ends it and the whole process tree.
    pub async fn halt(&self, manner: Manner) -> Ended {
        self.body.halt(&self.client, manner).await
    }

    /// Waits until the process or its connection has ended, or it exceeds a limit, and says why.
    pub async fn lost(&self) -> Reason {
        let (mut life, mut end) = (self.body.cell.life(), self.body.end.clone());
        let exceeded = tokio::select! {
            _ = life.wait_for(|life| life.exit.is_some() || life.gone) => None,
            _ = end.wait_for(Option::is_some) => None,
            blame = self.body.guard.exceeded(&self.body.cell) => Some(blame),
        };
        if let Some((code, message)) = exceeded {
            return Reason { code, message, stderr: self.body.voice.last_words() };
        }
        let exit = self.body.exit_report(&Trouble::Ended).await;
        // Its last words are still in the pipe. What it forked may hold the pipe open, so not for ever.
        let mut errors = self.body.errors.clone();
        let _ = timeout(LAST_WORDS, async { while errors.changed().await.is_ok() {} }).await;
        let stderr = self.body.voice.last_words();
        if let Some((code, message)) = self.body.blame(exit.as_ref(), &stderr).await {
            return Reason { code, message, stderr };
        }
        let how = match (&exit, end.borrow().as_ref()) {
            (Some(exit), _) => ended(exit),
            (None, Some(End::Stalled)) => "did not read its input for too long".to_owned(),
            (None, Some(End::Broken(why))) => format!("broke its connection: {why}"),
            (None, _) => "closed its output".to_owned(),
        };
        Reason { code: ErrorCode::InstanceLost, message: format!("the server {how}"), stderr }
    }

    /// Counts `list_changed` notifications.
    pub fn changes(&self) -> watch::Receiver<Changed> {
        self.body.changed.clone()
    }

    /// The jail that it is in.
    pub fn tier(&self) -> Tier {
        self.body.cell.tier()
    }

    pub async fn usage(&self) -> Option<Usage> {
        let usage = self.body.cell.usage().await?;
        Some(Usage { disk_bytes: self.body.guard.disk_bytes(), ..usage })
    }
}

impl Body {
    /// Waits until the program was executed.
    async fn up(&self) -> Result<(), Trouble> {
        let mut life = self.cell.life();
        let seen = life.wait_for(|life| life.pid.is_some() || life.failed.is_some() || life.gone).await;
        match seen.ok().as_deref() {
            Some(Life { failed: Some(report), .. }) => Err(Trouble::Jail(report.clone())),
            Some(Life { pid: Some(_), .. }) => Ok(()),
            _ => Err(Trouble::Jail(Report::Gone)),
        }
    }

    fn ended_as(&self) -> Trouble {
        match *self.end.borrow() {
            Some(End::Chatter) => Trouble::Chatter,
            Some(End::Stalled) => Trouble::Silent,
            _ => Trouble::Ended,
        }
    }

    /// How the process ended by itself, if it did; waits a moment for the report, which may come after the output's end.
    async fn exit_report(&self, trouble: &Trouble) -> Option<Exit> {
        let mut life = self.cell.life();
        if matches!(trouble, Trouble::Ended) {
            // Without a report we go on without one.
            let _ = timeout(EXIT_REPORT, life.wait_for(|life| life.exit.is_some() || life.gone)).await;
        }
        life.borrow().exit.clone()
    }

    async fn blame(&self, exit: Option<&Exit>, words: &[String]) -> Option<Blame> {
        self.guard.blame(exit, self.cell.events().await, words)
    }

    async fn explain(&self, trouble: Trouble, exit: Option<&Exit>, limit: Duration) -> Reason {
        let words = self.voice.last_words();
        if matches!(trouble, Trouble::Ended | Trouble::Silent)
            && let Some((code, message)) = self.blame(exit, &words).await
        {
            return Reason { code, message, stderr: words };
        }
        match trouble {
            Trouble::Jail(report) => diagnose(&Failure::Jail(&report), words),
            Trouble::Ended => diagnose(&Failure::Exited(exit), words),
            Trouble::Silent => diagnose(&Failure::Silent { seconds: limit.as_secs() }, words),
            Trouble::Chatter => diagnose(&Failure::Chatter, words),
            Trouble::Protocol(code, message) => diagnose(&Failure::Protocol(code, message), words),
            Trouble::Exceeded((code, message)) => Reason { code, message, stderr: words },
            Trouble::Cancelled => superseded(),
        }
    }

    async fn halt(&self, client: &Client, manner: Manner) -> Ended {
        let mut tasks = self.tasks.lock().await;
        client.close();
        if manner == Manner::Graceful
            && !self.cell.reached(|life| life.exit.is_some(), GRACE_STDIN).await
            && self.cell.order(Order::Terminate).await
        {
            self.cell.reached(|life| life.exit.is_some(), GRACE_TERM).await;
        }
        let ended = self.cell.end().await;
        // With the tree gone, both pipes end by themselves; their last bytes are the last words.
        let finished = timeout(EXIT_REPORT, async { while tasks.join_next().await.is_some() {} }).await;
        if finished.is_err() {
            tasks.shutdown().await;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_is_not_there_asks_for_another_preparation() {
        let failed = |step, errno| Report::Failed { step, errno, message: String::new() };
        for step in [Step::Exec, Step::WorkingDirectory, Step::Sources] {
            assert!(is_missing(&failed(step, Some(2))) && is_missing(&failed(step, Some(20))), "{step}");
            assert!(!is_missing(&failed(step, Some(13))) && !is_missing(&failed(step, None)), "{step}");
        }
        assert!(!is_missing(&failed(Step::Limits, Some(2))));
        assert!(!is_missing(&Report::Gone));
    }
}
