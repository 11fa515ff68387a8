//! The helper's side: build the jail, then stay until the tree is gone.
//!
//! Here: the steps before `fork`, and one loop over the control socket, the child's progress and the signals.
//! Not here: the steps after `fork` (see [`crate::server`]), the choice of whom to kill (see [`crate::tree`]).
//!
//! ```text
//! starting ─ program executed ─▶ running ─ exit, Kill, end of control, SIGTERM ─▶ ending ─ no child left ─▶ Gone
//!     `────────────── a step failed, ten seconds passed ─────────────────────────────^
//! ```
//! Invariant: the loop leaves `ending` only when the kernel says ECHILD, and waits for events everywhere.

mod outbox;
mod starting;

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use crate::frame::Inbox;
use crate::process::oom_kills;
use crate::report::{Command, Ending, Exit, Report, Step, Verdict};
use crate::strict::Tie;
use crate::sys::{self, Children, Reaped};
use crate::tree;
use outbox::Outbox;
use starting::Starting;

const FIRST_PACE: Duration = Duration::from_millis(20);
const SLOWEST_PACE: Duration = Duration::from_secs(1);
/// SIGKILL works within milliseconds, unless a process hangs in the kernel.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// The helper's whole life. Called before any thread exists, when the first argument is [`crate::ROLE`].
pub fn main() -> ExitCode {
    let control = match starting::take_control() {
        Ok(control) => control,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(64);
        }
    };
    let mut outbox = Outbox::default();
    match starting::prepare(&control, &mut outbox) {
        Ok(prepared) => Helper::new(control, outbox, prepared).run(),
        Err(failure) => {
            outbox.put(&failure.report());
            outbox.put(&Report::Gone);
            outbox.send(&control);
            ExitCode::FAILURE
        }
    }
}

/// What [`starting::prepare`] leaves behind: a forked child on its way, and how to hear from it.
struct Prepared {
    /// The server; with a tie, the init above it.
    server: Pid,
    tie: Option<Tie>,
    starting: Starting,
    signals: SignalFd,
    memory_bytes: Option<u64>,
    oom_kills: u64,
}

struct Helper {
    /// `None` when the runner's end is closed.
    control: Option<UnixStream>,
    /// Sent at the end of each turn.
    outbox: Outbox,
    commands: Inbox,
    signals: SignalFd,
    /// `None` when it is reaped; until then its pid and group are nobody else's.
    server: Option<Pid>,
    /// To the init of a strict jail, which then is `server`'s process.
    tie: Option<Tie>,
    /// Init's word on how the server ended.
    verdict: Option<Verdict>,
    /// `None` when the program was executed or a step failed.
    starting: Option<Starting>,
    has_failed: bool,
    was_asked_to_stop: bool,
    ending: Option<Sweeps>,
    memory_bytes: Option<u64>,
    oom_kills: u64,
}

/// The repeated killing of what is left.
struct Sweeps {
    since: Instant,
    next: Instant,
    pace: Duration,
    is_told: bool,
}

impl Helper {
    fn new(control: UnixStream, outbox: Outbox, prepared: Prepared) -> Self {
        let Prepared { server, tie, starting, signals, memory_bytes, oom_kills } = prepared;
        Self {
            control: Some(control),
            outbox,
            commands: Inbox::default(),
            signals,
            server: Some(server),
            tie,
            verdict: None,
            starting: Some(starting),
            has_failed: false,
            was_asked_to_stop: false,
            ending: None,
            memory_bytes,
            oom_kills,
        }
    }

    fn run(mut self) -> ExitCode {
        loop {
            match self.reap() {
                Ok(Children::None) => {
                    self.tell(&Report::Gone);
                    self.send();
                    return if self.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
                }
                Ok(_) => {}
                // Neither call can fail for a reason that another try would mend. Our death ends the server.
                Err(_) => return ExitCode::FAILURE,
            }
            self.check_clock(Instant::now());
            self.send();
            if self.wait().is_err() {
                return ExitCode::FAILURE;
            }
        }
    }

    /// Reaps every child that has ended.
    fn reap(&mut self) -> Result<Children, Errno> {
        loop {
            match sys::ended_child()? {
                Children::Ended(pid) if self.server == Some(Pid::from_raw(pid)) => self.server_ended(pid)?,
                Children::Ended(pid) => drop(sys::reap(pid)?),
                other => return Ok(other),
            }
        }
    }

    fn server_ended(&mut self, pid: i32) -> Result<(), Errno> {
        self.hear_progress();
        self.hear_init();
        // Still a zombie, so this can't be another's group; and a signal to a group can't be outrun by a fork.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let reaped = sys::reap(pid)?;
        self.server = None;
        if !self.has_failed {
            let exit = self.judge(reaped);
            self.tell(&Report::Exited(exit));
        }
        self.end();
        Ok(())
    }

    fn judge(&self, reaped: Reaped) -> Exit {
        let Reaped { ending, max_rss_kb, cpu_ms } = self.verdict.map_or(reaped, Reaped::from);
        let is_own_end = !self.was_asked_to_stop && ending != Ending::Code(0);
        let by_kernel = ending == Ending::Signal(Signal::SIGKILL as i32) && oom_kills() > self.oom_kills;
        let at_limit = self.memory_bytes.is_some_and(|limit| max_rss_kb * 1024 >= limit / 10 * 9);
        Exit { ending, oom_hint: is_own_end && (by_kernel || at_limit), max_rss_kb, cpu_ms }
    }

    /// Kills the group at once, and begins to sweep for whoever left it.
    fn end(&mut self) {
        self.was_asked_to_stop = true;
        self.begin_end();
    }

    fn begin_end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.signal_server(Signal::SIGKILL);
        let now = Instant::now();
        // The end of init is the end of all; a sweep of `/proc` then only counts who is stuck.
        let next = if self.tie.is_some() { now + FIRST_PACE } else { now };
        self.ending = Some(Sweeps { since: now, next, pace: FIRST_PACE, is_told: false });
    }

    fn signal_server(&self, signal: Signal) {
        let Some(server) = self.server else { return };
        // A child that has not come to its own session yet has no group of its own.
        if killpg(server, signal).is_err() {
            let _ = kill(server, signal);
        }
    }

    fn terminate(&self) {
        match &self.tie {
            Some(tie) => tie.terminate(),
            None => self.signal_server(Signal::SIGTERM),
        }
    }

    fn check_clock(&mut self, now: Instant) {
        if self.starting.as_ref().is_some_and(|starting| starting.deadline <= now) {
            self.hear_progress();
            if let Some(report) = self.starting.as_ref().map(Starting::timed_out) {
                self.fail(&report);
            }
        }
        let Some(sweeps) = self.ending.as_mut().filter(|sweeps| sweeps.next <= now) else { return };
        let left = tree::sweep(Pid::this().as_raw()).unwrap_or(0);
        sweeps.next = now + sweeps.pace;
        sweeps.pace = (sweeps.pace * 2).min(SLOWEST_PACE);
        if left > 0 && !sweeps.is_told && now - sweeps.since >= STUCK_AFTER {
            sweeps.is_told = true;
            self.tell(&Report::Stuck { processes: left });
        }
    }

    /// Waits for the next event or the next time that matters, and takes the event in.
    fn wait(&mut self) -> Result<(), Errno> {
        let until = self.starting.as_ref().map(|starting| starting.deadline);
        let until = until.into_iter().chain(self.ending.as_ref().map(|sweeps| sweeps.next)).min();
        let [control, progress, init, signals] = self.poll(until)?;
        if signals {
            self.take_signals()?;
        }
        if progress {
            self.hear_progress();
        }
        if init {
            self.hear_init();
        }
        if control {
            self.take_commands();
        }
        Ok(())
    }

    fn poll(&self, until: Option<Instant>) -> Result<[bool; 4], Errno> {
        let control = self.control.as_ref().map(AsFd::as_fd);
        let progress = self.starting.as_ref().map(|starting| starting.progress.as_fd());
        let init = self.tie.as_ref().filter(|_| self.ending.is_none()).map(AsFd::as_fd);
        // Until the program is executed only the end of the steps counts, in success and in failure: waking up for each
        // of them would take the processor from the one who does them.
        let (any, end) = (PollFlags::POLLIN, PollFlags::empty());
        let of_init = if self.starting.is_some() { end } else { any };
        let mut places = Vec::with_capacity(4);
        let mut fds = Vec::with_capacity(4);
        let all = [(control, any), (progress, end), (init, of_init), (Some(self.signals.as_fd()), any)];
        for (place, (fd, events)) in all.into_iter().enumerate() {
            if let Some(fd) = fd {
                places.push(place);
                fds.push(PollFd::new(fd, events));
            }
        }
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, or the last millisecond would be spent in turns without a pause.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut ready = [false; 4];
        for (place, fd) in places.into_iter().zip(&fds) {
            ready[place] = fd.any().unwrap_or(true);
        }
        Ok(ready)
    }

    fn take_signals(&mut self) -> Result<(), Errno> {
        while let Some(signal) = self.signals.read_signal()? {
            // Ended children are looked for at each turn. Any other signal asks us to go.
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.end();
            }
        }
        Ok(())
    }

    fn hear_progress(&mut self) {
        let Some(starting) = self.starting.as_mut() else { return };
        let (reports, is_over) = starting.hear();
        for report in &reports {
            if self.has_failed {
                return;
            }
            match report {
                Report::Failed { .. } => self.fail(report),
                Report::Step { name: Step::Network } => self.hand_out(report),
                _ => self.tell(report),
            }
        }
        if is_over
            && self.starting.take().is_some()
            && let Some(server) = self.tie.as_mut().map_or(self.server, Tie::server)
        {
            self.tell(&Report::Started { pid: server.as_raw().unsigned_abs() });
        }
    }

    /// The jail's sockets go with the step that made them. Without them the server, which may be executed by now, would
    /// wait for answers in vain.
    fn hand_out(&mut self, made: &Report) {
        let sockets = self.tie.as_mut().map_or(Ok(Vec::new()), Tie::take_listeners);
        self.outbox.put(made);
        let sent = sockets.and_then(|sockets| match &self.control {
            Some(control) => self.outbox.send_with(control, &sockets),
            None => Ok(()),
        });
        if let Err(errno) = sent {
            let message = format!("the jail's sockets could not be handed out: {errno}");
            self.fail(&Report::Failed { step: Step::Network, errno: Some(errno as i32), message });
        }
    }

    /// Init says how the server ended, and ends. When it says nothing, its own end will say it.
    fn hear_init(&mut self) {
        if self.verdict.is_some() {
            return;
        }
        match self.tie.as_mut().map(Tie::verdict) {
            None | Some(Ok(None)) => {}
            Some(Ok(verdict)) => {
                self.hear_progress();
                self.verdict = verdict;
                self.begin_end();
            }
            Some(Err(_)) => self.begin_end(),
        }
    }

    fn fail(&mut self, report: &Report) {
        self.starting = None;
        self.has_failed = true;
        self.tell(report);
        self.end();
    }

    fn take_commands(&mut self) {
        let mut bytes = [0; 512];
        let read = self.control.as_mut().map_or(Ok(0), |control| control.read(&mut bytes));
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(length) if length > 0 => self.commands.push(&bytes[..length]),
            _ => return self.lose_control(),
        }
        loop {
            match self.commands.next() {
                Ok(Some(Command::Terminate)) => {
                    self.was_asked_to_stop = true;
                    self.terminate();
                }
                Ok(Some(Command::Kill)) => self.end(),
                Ok(None) => return,
                Err(_) => return self.lose_control(),
            }
        }
    }

    /// The runner is gone, or talks nonsense: nobody would ever stop this server.
    fn lose_control(&mut self) {
        self.control = None;
        self.end();
    }

    fn tell(&mut self, report: &Report) {
        self.outbox.put(report);
    }

    fn send(&mut self) {
        if let Some(control) = &self.control {
            self.outbox.send(control);
        }
    }
}
