//! The strict jail, seen from the helper: new namespaces, and the tie to the init that lives in them.
//!
//! Here: [`launch`] and [`Tie`]. Not here: what init does there (see [`init`]), the helper's loop.
//!
//! ```text
//! helper (outside: reports, lifeline) ── Tie ── init (PID 1 inside: view, reaping) ── server (PID 2)
//! ```
//! Invariant: init ends when the helper ends, by SIGKILL too: of PDEATHSIG, and of the end of the tie. The kernel ends
//! all that is in the pid namespace with its init, and gives the helper init's end only when nothing else is left.

pub(crate) mod confine;
pub(crate) mod init;
mod net;
mod root;

use std::fs;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

use crate::frame::Inbox;
use crate::identity::Identity;
use crate::report::{Step, Verdict};
use crate::server::{SetupError, build};
use crate::spec::JailSpec;
use crate::standing::Groups;
use crate::sys::{raw, rights};
use crate::view::{Network, View};

/// From the helper to init over the tie: the ids are mapped.
const GO: u8 = b'g';
/// From the helper to init: SIGTERM to the server's group.
const TERMINATE: u8 = b't';
/// From init to the helper: the jail's sockets come with it.
const LISTENERS: u8 = b'l';
/// From the process that becomes the server to the helper, for the pid that comes with it.
const HERE: u8 = b'h';

/// Forks init into its namespaces and lets it go when its ids are mapped.
pub(crate) fn launch(
    spec: &mut JailSpec,
    view: &View,
    stdio: &[OwnedFd; 3],
    progress: PipeWriter,
) -> Result<(Pid, Tie), SetupError> {
    let failed = |what: &'static str| move |errno| build(Step::Namespaces, what, errno);
    let mut groups = Groups::open(&spec.cgroups)?;
    let identity = Identity::of(view.uid)?;
    let (tie, theirs) = UnixStream::pair().map_err(|error| failed("no tie to init")(raw(&error)))?;
    setsockopt(&tie, sockopt::PassCred, &true).map_err(failed("no pids over the tie"))?;
    // Init's files in `/proc` are root's unless it is dumpable, and an ordinary user has to write its maps. Init ends
    // this for itself before it does anything else.
    let set_dumpable = |on| prctl::set_dumpable(on).map_err(failed("memory protection"));
    set_dumpable(!identity.is_assumed)?;
    let init = match groups.fork(namespaces(&view.network)).map_err(failed("clone"))? {
        ForkResult::Child => {
            drop(tie);
            init::become_init(init::Order { spec, view, stdio, identity, groups }, progress, theirs)
        }
        ForkResult::Parent { child } => child,
    };
    let start = set_dumpable(false).and_then(|()| map_ids(init, identity));
    let start = start.and_then(|()| {
        (&tie).write_all(&[GO]).map_err(|error| failed("the word to init")(raw(&error)))?;
        tie.set_nonblocking(true).map_err(|error| failed("the tie")(raw(&error)))
    });
    if let Err(failure) = start {
        // It has built nothing yet, so this is all there is to undo.
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
        return Err(failure);
    }
    let is_filtered = matches!(view.network, Network::Filtered { .. });
    Ok((init, Tie { socket: tie, inbox: Inbox::default(), server: None, is_filtered, listeners: None }))
}

/// But for the cgroup namespace, which begins at the group that init is in when it makes it.
fn namespaces(network: &Network) -> CloneFlags {
    let always = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    match network {
        Network::None | Network::Filtered { .. } => always | CloneFlags::CLONE_NEWNET,
        Network::Host => always,
    }
}

/// One uid and one gid exist inside, with the same numbers as outside. Root inside is nobody.
fn map_ids(init: Pid, identity: Identity) -> Result<(), SetupError> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/{init}/{file}");
        fs::write(&path, text).map_err(|error| build(Step::Namespaces, path, raw(&error)))
    };
    let Identity { uid, gid, is_assumed } = identity;
    write("uid_map", format!("{uid} {uid} 1\n"))?;
    if !is_assumed {
        // The kernel's condition for a gid map by somebody who is not root.
        write("setgroups", "deny".into())?;
    }
    write("gid_map", format!("{gid} {gid} 1\n"))
}

/// The helper's end of the connection to init.
#[derive(Debug)]
pub(crate) struct Tie {
    socket: UnixStream,
    inbox: Inbox,
    server: Option<Pid>,
    is_filtered: bool,
    listeners: Option<Vec<OwnedFd>>,
}

impl Tie {
    /// The server's pid as the helper sees it; known before its program runs.
    pub(crate) fn server(&mut self) -> Option<Pid> {
        self.hear();
        self.server
    }

    /// The jail's sockets, sent before init says that the network is done. `Err`: it should have some and sent none.
    pub(crate) fn take_listeners(&mut self) -> Result<Vec<OwnedFd>, Errno> {
        self.hear();
        match self.listeners.take() {
            None if self.is_filtered => Err(Errno::EPROTO),
            listeners => Ok(listeners.unwrap_or_default()),
        }
    }

    /// One byte at a time: what follows the server's is its verdict.
    fn hear(&mut self) {
        while self.server.is_none() {
            let mut byte = [0];
            match rights::receive(&self.socket, &mut byte) {
                Ok(received) if byte == [LISTENERS] && !received.is_cut => {
                    self.listeners = Some(received.fds)
                }
                Ok(received) if byte == [HERE] && received.sender.is_some() => self.server = received.sender,
                _ => return,
            }
        }
    }

    /// Asks init to send SIGTERM to the server's group. An init that is gone has no server.
    pub(crate) fn terminate(&self) {
        let _ = (&self.socket).write(&[TERMINATE]);
    }

    /// How the server ended, if init has said so. `Err`: it never will.
    pub(crate) fn verdict(&mut self) -> Result<Option<Verdict>, Errno> {
        if self.server().is_none() {
            return self.is_open().then_some(None).ok_or(Errno::ECONNRESET);
        }
        let mut bytes = [0; 512];
        let is_over = match (&self.socket).read(&mut bytes) {
            Ok(0) => true,
            Ok(length) => {
                self.inbox.push(&bytes[..length]);
                false
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        match self.inbox.next() {
            Ok(Some(verdict)) => Ok(Some(verdict)),
            Ok(None) if !is_over => Ok(None),
            _ => Err(Errno::ECONNRESET),
        }
    }

    fn is_open(&self) -> bool {
        let mut byte = [0];
        let peeked = nix::sys::socket::recv(
            self.socket.as_raw_fd(),
            &mut byte,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        );
        !matches!(peeked, Ok(0)) && matches!(peeked, Ok(_) | Err(Errno::EAGAIN | Errno::EINTR))
    }
}

impl AsFd for Tie {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
