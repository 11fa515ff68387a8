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
mod root;
mod seccomp;
mod sources;

use std::fs;
use std::io::{IoSliceMut, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::wait::waitpid;
use nix::unistd::{self, ForkResult, Pid};

use crate::frame::Inbox;
use crate::report::{Step, Verdict};
use crate::server::SetupError;
use crate::spec::JailSpec;
use crate::sys::privilege::fork_into;
use crate::sys::raw;
use crate::view::{Network, View, is_private_tmp};

/// From the helper to init over the tie: the ids are mapped.
const GO: u8 = b'g';
/// From the helper to init: SIGTERM to the server's group.
const TERMINATE: u8 = b't';
/// From the process that becomes the server to the helper, for the pid that comes with it.
const HERE: u8 = b'h';

/// Who the server is, outside and inside alike.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
    /// The helper is root, so the ids are others than its own.
    is_assumed: bool,
}

impl Identity {
    pub(crate) fn of(view: &View) -> Result<Self, SetupError> {
        let own = unistd::geteuid();
        let refuse = |what: &str| Err(build(Step::Identity, what, Errno::EPERM));
        match view.uid {
            None if own.is_root() => refuse("the runner is root and gave the service no uid of its own"),
            Some(uid) if own.is_root() => Ok(Self { uid, gid: uid, is_assumed: true }),
            Some(uid) if uid != own.as_raw() => refuse("only root can give a service another uid"),
            _ => Ok(Self { uid: own.as_raw(), gid: unistd::getegid().as_raw(), is_assumed: false }),
        }
    }

    /// Root gives a directory away that nobody has used yet: its own, and empty. (Not only one that it has just made, for
    /// a helper may be killed between making and giving.) Any other must be the service's already.
    pub(crate) fn own(self, directory: &Path) -> Result<(), SetupError> {
        let failed = |error: std::io::Error| build(Step::Directories, directory.display(), raw(&error));
        let mut found = fs::symlink_metadata(directory).map_err(failed)?;
        let is_roots = self.is_assumed && found.is_dir() && found.uid() == 0;
        if is_roots && fs::read_dir(directory).map_err(failed)?.next().is_none() {
            lchown(directory, Some(self.uid), Some(self.gid)).map_err(failed)?;
            found = fs::symlink_metadata(directory).map_err(failed)?;
        }
        if found.uid() == self.uid && found.is_dir() {
            return Ok(());
        }
        let what = format!("{} is no directory of uid {}", directory.display(), self.uid);
        Err(build(Step::Directories, what, Errno::EPERM))
    }

    /// `/dev/stdout` opens the pipe again, which only its owner may.
    pub(crate) fn own_pipes(self, stdio: &[OwnedFd; 3]) -> Result<(), SetupError> {
        let failed = |errno| build(Step::Directories, "the standard streams", errno);
        for stream in stdio.iter().filter(|_| self.is_assumed) {
            let kind = fstat(stream).map_err(failed)?.st_mode & SFlag::S_IFMT.bits();
            if kind == SFlag::S_IFIFO.bits() {
                let (uid, gid) = (unistd::Uid::from_raw(self.uid), unistd::Gid::from_raw(self.gid));
                unistd::fchown(stream, Some(uid), Some(gid)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A failed step of the strict construction.
fn build(step: Step, what: impl ToString, errno: Errno) -> SetupError {
    SetupError::Build { step, what: what.to_string(), errno }
}

/// Whether the spec's `tmp` is a directory outside, to be made and bound.
pub(crate) fn has_outer_tmp(spec: &JailSpec) -> bool {
    !is_private_tmp(&spec.tmp)
}

/// Forks init into its namespaces and lets it go when its ids are mapped.
pub(crate) fn launch(
    spec: &mut JailSpec,
    view: &View,
    stdio: &[OwnedFd; 3],
    progress: PipeWriter,
) -> Result<(Pid, Tie), SetupError> {
    let failed = |what: &'static str| move |errno| build(Step::Namespaces, what, errno);
    let identity = Identity::of(view)?;
    let (tie, theirs) = UnixStream::pair().map_err(|error| failed("no tie to init")(raw(&error)))?;
    setsockopt(&tie, sockopt::PassCred, &true).map_err(failed("no pids over the tie"))?;
    // Init's files in `/proc` are root's unless it is dumpable, and an ordinary user has to write its maps. Init ends
    // this for itself before it does anything else.
    let set_dumpable = |on| prctl::set_dumpable(on).map_err(failed("memory protection"));
    set_dumpable(!identity.is_assumed)?;
    let init = match fork_into(namespaces(view.network)).map_err(failed("clone"))? {
        ForkResult::Child => {
            drop(tie);
            init::become_init(init::Order { spec, view, stdio, identity }, progress, theirs)
        }
        ForkResult::Parent { child } => child,
    };
    let start = set_dumpable(false).and_then(|()| map_ids(init, identity)).and_then(|()| {
        (&tie).write_all(&[GO]).map_err(|error| failed("the word to init")(raw(&error)))?;
        tie.set_nonblocking(true).map_err(|error| failed("the tie")(raw(&error)))
    });
    if let Err(failure) = start {
        // It has done nothing yet, so this is all there is to undo.
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
        return Err(failure);
    }
    Ok((init, Tie { socket: tie, inbox: Inbox::default(), server: None }))
}

fn namespaces(network: Network) -> CloneFlags {
    let always = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    match network {
        Network::None => always | CloneFlags::CLONE_NEWNET,
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
}

impl Tie {
    /// The server's pid as the helper sees it; known before its program runs.
    pub(crate) fn server(&mut self) -> Option<Pid> {
        if self.server.is_none() {
            self.server = self.hear_server();
        }
        self.server
    }

    fn hear_server(&self) -> Option<Pid> {
        let mut byte = [0];
        let mut pieces = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!(UnixCredentials);
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
        let pid = message.cmsgs().ok()?.find_map(|part| match part {
            ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
            _ => None,
        });
        if byte == [HERE] { pid } else { None }
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
