//! The process that holds the session's link: the broker on one side, the other processes on the other.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::joiners::{Everybody, Joiners};
use super::place::{Hold, Meeting};
use super::words::{self, Answer, Word};
use super::{Session, status};
use crate::connection::inbox::Command;
use crate::connection::socket::{Link, Shared};
use crate::connection::{COMMAND_QUEUE, Reconnect};

const GREETING_DEADLINE: Duration = Duration::from_secs(5);
/// A process that takes nothing for this long is turned out.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// For what is still to be written to the others when the link has ended.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) fn listen(meeting: &Meeting) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(&meeting.socket)?;
    fs::set_permissions(&meeting.socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Session {
    /// Until the connection is closed here, or refused for good.
    pub(super) async fn hold(mut self, listener: UnixListener, hold: Hold, meeting: &Meeting) {
        meeting.sweep();
        let joiners: Everybody = Arc::new(Joiners::new(Arc::clone(&self.prefix)));
        let (pass, passed) = mpsc::channel(COMMAND_QUEUE);
        let mut tasks = JoinSet::new();
        let watch = status::Watch {
            path: meeting.status.clone(),
            state: self.ends.report.subscribe(),
            pushes: self.ends.news.pushes.subscribe(),
            ask: pass.clone(),
            prefix: Arc::clone(&self.prefix),
            session_id: self.place.session_id.clone(),
        };
        let Self { membership, announce, ends, .. } = &mut self;
        let shared = Some(Shared { joiners: &joiners, passed });
        let link = Link { membership, announce, reconnect: Reconnect::Forever, ends, shared };
        tokio::select! {
            () = link.run(None) => {}
            () = accept(listener, &joiners, &pass, &mut tasks, meeting.uid) => {}
            () = watch.keep() => {}
        }
        joiners.release();
        let farewell = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        drop(hold);
    }
}

async fn accept(
    listener: UnixListener,
    joiners: &Everybody,
    pass: &mpsc::Sender<Command>,
    tasks: &mut JoinSet<()>,
    uid: u32,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == uid) => {
                let (joiners, pass) = (Arc::clone(joiners), pass.clone());
                tasks.spawn(async move {
                    if let Err(e) = serve(stream, &joiners, &pass).await {
                        tracing::debug!("a process of this session: {e}");
                    }
                });
            }
            Ok(_) => tracing::warn!("a process of another user tried to share the session's link"),
            Err(e) => {
                tracing::warn!("the session's socket: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, joiners: &Joiners, pass: &mpsc::Sender<Command>) -> io::Result<()> {
    let (from, to) = stream.into_split();
    let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
    let greeting = tokio::time::timeout(GREETING_DEADLINE, words::greeting(&mut from)).await??;
    if greeting.version != words::VERSION {
        return words::reply(&mut to, &Answer::OtherVersion(words::VERSION.to_owned())).await;
    }
    let prefix = greeting.prefix;
    let Some(mut owed) = joiners.enter(&prefix) else {
        return words::reply(&mut to, &Answer::Later).await;
    };
    let hear = async {
        while let Some(note) = words::read_note(&mut from).await? {
            if let Some(command) = joiners.note(&prefix, note) {
                // Its own queue is what a process waits on when the link is busy.
                pass.send(command).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            }
        }
        Ok(())
    };
    let speak = async {
        words::reply(&mut to, &Answer::Welcome).await?;
        while let Some(word) = owed.recv().await {
            tokio::time::timeout(WRITE_DEADLINE, say(&mut to, &mut owed, word)).await??;
        }
        Ok(())
    };
    let served = tokio::select! { end = hear => end, end = speak => end };
    for command in joiners.gone(&prefix) {
        let _ = pass.send(command).await;
    }
    served
}

/// This word and those that wait behind it.
async fn say<W: tokio::io::AsyncWrite + Unpin>(
    to: &mut W,
    owed: &mut mpsc::Receiver<Word>,
    first: Word,
) -> io::Result<()> {
    words::write_word(to, &first).await?;
    for _ in 0..64 {
        let Ok(word) = owed.try_recv() else { break };
        words::write_word(to, &word).await?;
    }
    to.flush().await
}
