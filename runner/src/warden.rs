//! The owner of one jail: its reports become a [`Life`] that others watch, their orders become commands.
//!
//! Here: waiting on the jail's socket, reaping its helper. Not here: deciding when to terminate or kill.
//! Invariant: [`Life::gone`] is said once, last, whatever happened to the helper.

use std::time::Duration;

use jail::{Exit, Jailed, Listeners, Reading, Report};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

/// From the jail's last word to the end of its helper.
const REAP: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub enum Order {
    Terminate,
    Kill,
    /// The helper does not answer.
    Force,
}

/// What the jail has reported.
#[derive(Debug, Clone, Default)]
pub struct Life {
    pub pid: Option<i32>,
    pub failed: Option<Report>,
    pub exit: Option<Exit>,
    /// The jail is over.
    pub gone: bool,
    /// It said itself that no process is left.
    pub confirmed: bool,
}

/// Owns the jail: turns its reports into [`Life`] and carries out orders, until nothing is left. `control` is the
/// jail's own socket once more, to wait on; `doors` is given the jail's sockets when they are there.
pub async fn watch_jail(
    mut jail: Jailed,
    control: UnixStream,
    mut orders: mpsc::Receiver<Order>,
    life: watch::Sender<Life>,
    doors: oneshot::Sender<Listeners>,
) {
    let mut doors = Some(doors);
    loop {
        tokio::select! {
            ready = control.readable() => {
                if ready.is_err() || is_over(&mut jail, &control, &life) { break }
                if doors.is_some()
                    && let Some(listeners) = jail.take_listeners()
                    && let Some(doors) = doors.take()
                {
                    // Nobody takes them when the cell is being dropped: then they close.
                    let _ = doors.send(listeners);
                }
            }
            order = orders.recv() => {
                // A helper that can not be told is ending; its socket says so above.
                let _ = match order {
                    Some(Order::Terminate) => jail.terminate(),
                    Some(Order::Kill) => jail.kill(),
                    Some(Order::Force) => {
                        let swept = jail.force_kill().is_ok();
                        life.send_modify(|life| life.confirmed = swept);
                        break;
                    }
                    // The instance was dropped: so is the jail, which kills the tree.
                    None => return,
                };
            }
        }
    }
    // Reaps the helper, so that no zombie stays.
    let reaped = tokio::task::spawn_blocking(move || jail.wait(REAP).ok().flatten()).await;
    if !matches!(reaped, Ok(Some(_))) {
        tracing::warn!("a jail helper did not end after its tree was gone");
    }
    life.send_modify(|life| life.gone = true);
}

/// Takes one report; true after the last.
fn is_over(jail: &mut Jailed, control: &UnixStream, life: &watch::Sender<Life>) -> bool {
    let read = control.try_io(Interest::READABLE, || match jail.try_read_report() {
        Ok(Reading::Empty) => Err(std::io::ErrorKind::WouldBlock.into()),
        read => Ok(read),
    });
    match read {
        Ok(Ok(Reading::Report(report))) => note(report, life),
        Ok(_) => {
            tracing::warn!("a jail helper ended without saying that its tree is gone");
            true
        }
        // Only `WouldBlock`: wait again.
        Err(_) => false,
    }
}

/// True when it was the last report.
fn note(report: Report, life: &watch::Sender<Life>) -> bool {
    match report {
        Report::Step { .. } => {}
        Report::Started { pid } => life.send_modify(|life| life.pid = i32::try_from(pid).ok()),
        failed @ Report::Failed { .. } => life.send_modify(|life| life.failed = Some(failed)),
        Report::Exited(exit) => life.send_modify(|life| life.exit = Some(exit)),
        Report::Stuck { processes } => {
            tracing::warn!(processes, "processes of a service outlive SIGKILL; still trying");
        }
        Report::Gone => {
            life.send_modify(|life| life.confirmed = true);
            return true;
        }
    }
    false
}
