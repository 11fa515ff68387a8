//! Init: PID 1 of the jail. Builds the view, gives up its privileges, forks the server, then reaps until it ends.
//!
//! Here: the order of the steps inside, and init's loop. Not here: the view (see [`super::root`]), the network (see
//! [`super::net`]), the server's own steps (see [`crate::server`]).
//! Invariant: it holds no environment, no stream of the server and no capability while the server runs, and its memory
//! can't be read from inside.

use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{self, ForkResult, Pid};

use super::root::Root;
use super::{GO, HERE, TERMINATE, net};
use crate::frame::{self, MAX_REPORT};
use crate::identity::Identity;
use crate::report::{Step, Verdict};
use crate::server::{self, SetupError, become_server, build};
use crate::sources::Sources;
use crate::spec::JailSpec;
use crate::standing::Groups;
use crate::sys::privilege::{bound_capabilities, drop_capabilities};
use crate::sys::{self, Children, Reaped};
use crate::view::View;

/// For the helper's word that the ids are mapped.
const GO_LIMIT: Duration = Duration::from_secs(10);

pub(super) struct Order<'a> {
    pub(super) spec: &'a mut JailSpec,
    pub(super) view: &'a View,
    pub(super) stdio: &'a [OwnedFd; 3],
    pub(super) identity: Identity,
    pub(super) groups: Groups,
}

/// Runs in the process that [`super::launch`] forks. `progress` closes when the server's program is executed.
pub(super) fn become_init(order: Order<'_>, mut progress: PipeWriter, tie: UnixStream) -> ! {
    match start(order, &mut progress, &tie) {
        Ok(server) => {
            drop(progress);
            Init { tie, server }.run()
        }
        Err(failure) => {
            server::tell(&mut progress, &failure.report());
            sys::exit_now(127)
        }
    }
}

fn start(order: Order<'_>, progress: &mut PipeWriter, tie: &UnixStream) -> Result<Pid, SetupError> {
    let Order { spec, view, stdio, identity, mut groups } = order;
    let [stdin, stdout, stderr] = stdio.each_ref().map(AsFd::as_fd);
    // With the credentials of the helper, which opened them.
    groups.join()?;
    server::done(progress, Step::Cgroup);
    let lost = |errno| build(Step::Namespaces, "the helper", errno);
    sys::close_all_but(&[stdin, stdout, stderr, progress.as_fd(), tie.as_fd()]).map_err(lost)?;
    await_go(tie).map_err(lost)?;
    prctl::set_dumpable(false).map_err(lost)?;
    unistd::setsid().map_err(lost)?;
    // Now that it is in its groups: they become the root of what `/proc/self/cgroup` shows inside.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|errno| build(Step::Namespaces, "cgroup", errno))?;
    server::done(progress, Step::Namespaces);
    construct(spec, view, identity, (progress, tie))?;
    bound_capabilities()
        .and_then(|()| drop_capabilities())
        .map_err(|errno| build(Step::Capabilities, "capabilities", errno))?;
    server::done(progress, Step::Capabilities);
    prctl::set_no_new_privs().map_err(SetupError::NoNewPrivileges)?;
    server::done(progress, Step::NoNewPrivileges);
    hold_on(tie).map_err(|errno| build(Step::Lifeline, "the helper", errno))?;
    server::done(progress, Step::Lifeline);
    let server = match sys::fork().map_err(SetupError::Fork)? {
        ForkResult::Child => {
            // Its credentials go with it: they are how the helper learns the server's pid.
            let _ = (&*tie).write(&[HERE]);
            // Said here and not by init, which could be late: the helper counts on the order of the steps.
            server::done(progress, Step::Fork);
            become_server(spec, stdio, progress, server::Confinement::Strict(view))
        }
        ForkResult::Parent { child } => child,
    };
    spec.wipe();
    Ok(server)
}

fn await_go(mut tie: &UnixStream) -> Result<(), Errno> {
    let raw = |error: std::io::Error| sys::raw(&error);
    tie.set_read_timeout(Some(GO_LIMIT)).map_err(raw)?;
    let mut byte = [0];
    tie.read_exact(&mut byte).map_err(raw)?;
    if byte == [GO] { Ok(()) } else { Err(Errno::EPROTO) }
}

fn construct(
    spec: &mut JailSpec,
    view: &View,
    identity: Identity,
    (progress, tie): (&mut PipeWriter, &UnixStream),
) -> Result<(), SetupError> {
    let sources = Sources::open(spec, view)?;
    server::done(progress, Step::Sources);
    identity.assume()?;
    server::done(progress, Step::Identity);
    net::isolate(view, tie)?;
    server::done(progress, Step::Network);
    let root = Root::make(view)?;
    server::done(progress, Step::Root);
    root.add_system(&sources, view)?;
    root.add_users(identity, spec)?;
    server::done(progress, Step::System);
    root.add_binds(&sources)?;
    server::done(progress, Step::Binds);
    root.add_devices(&sources, view)?;
    server::done(progress, Step::Devices);
    root.add_proc(&sources)?;
    server::done(progress, Step::Proc);
    root.add_secrets(&mut spec.secret_files)?;
    server::done(progress, Step::Secrets);
    root.enter()?;
    server::done(progress, Step::Pivot);
    Ok(())
}

/// After every step that would clear it. A helper that died before the call sends no signal, hence the look.
fn hold_on(tie: &UnixStream) -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut fds = [PollFd::new(tie.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    if fds[0].any() == Some(true) { Err(Errno::ESRCH) } else { Ok(()) }
}

struct Init {
    tie: UnixStream,
    server: Pid,
}

impl Init {
    /// Ends when the server has ended or the helper is gone. Whatever still runs inside then, the kernel kills.
    fn run(mut self) -> ! {
        if sys::close_all_but(&[self.tie.as_fd()]).is_err() {
            sys::exit_now(1)
        }
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        // Everything is blocked since the helper's beginning, so a child that has ended already is still announced.
        let Ok(signals) = SignalFd::with_flags(&[Signal::SIGCHLD].into_iter().collect(), flags) else {
            sys::exit_now(1)
        };
        loop {
            let mut fds = [self.tie.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => sys::exit_now(1),
            }
            let [is_told, has_signal] = fds.map(|fd| fd.any().unwrap_or(true));
            if has_signal {
                while let Ok(Some(_)) = signals.read_signal() {}
                self.reap();
            }
            if is_told {
                self.obey();
            }
        }
    }

    fn reap(&mut self) {
        loop {
            match sys::ended_child() {
                Ok(Children::Ended(pid)) => match sys::reap(pid) {
                    Ok(reaped) if pid == self.server.as_raw() => self.finish(reaped),
                    Ok(_) => {}
                    Err(_) => sys::exit_now(1),
                },
                Ok(Children::Alive) => return,
                Ok(Children::None) | Err(_) => sys::exit_now(1),
            }
        }
    }

    fn finish(&mut self, reaped: Reaped) -> ! {
        let Reaped { ending, max_rss_kb, cpu_ms } = reaped;
        if let Ok(bytes) = frame::encode(&Verdict { ending, max_rss_kb, cpu_ms }, 128, MAX_REPORT) {
            let _ = self.tie.write_all(&bytes);
        }
        sys::exit_now(0)
    }

    fn obey(&mut self) {
        let mut byte = [0];
        match self.tie.read(&mut byte) {
            Ok(1) if byte == [TERMINATE] => {
                // Not reaped yet, so the group is its own; it may not have come to one.
                if killpg(self.server, Signal::SIGTERM).is_err() {
                    let _ = nix::sys::signal::kill(self.server, Signal::SIGTERM);
                }
            }
            _ => sys::exit_now(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_is_gone_is_seen_before_the_server_is_forked() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(await_go(&ours).is_err());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        (&_theirs).write_all(b"x").unwrap();
        assert_eq!(await_go(&ours), Err(Errno::EPROTO));
    }
}
