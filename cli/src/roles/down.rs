//! `down`: ends the `up` of a data folder, and waits for it.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use super::data::DataFolder;
use crate::args::DataArgs;
use crate::failure::Failure;
use crate::here::Here;

const LIMIT: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub async fn down(here: &Here, args: &DataArgs) -> Result<u8, Failure> {
    let data = DataFolder::of(args)?;
    let Some(pid) = data.holder() else {
        here.out.line(format!("claudemesh does not run on {}", data.path().display()));
        return stopped(here, None);
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .map_err(|e| Failure::user(format!("cannot stop pid {pid}: {e}")))?;
    let gone = async {
        // The lock, not the pid: a pid may be given to somebody else.
        while data.holder() == Some(pid) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if timeout(LIMIT, gone).await.is_err() {
        return Err(Failure::platform(format!("pid {pid} has not ended within {} s", LIMIT.as_secs()))
            .with_cure(format!("Look at what it says, or end it with `kill -9 {pid}`.")));
    }
    here.out.line(format!("stopped pid {pid}"));
    stopped(here, Some(pid))
}

fn stopped(here: &Here, pid: Option<i32>) -> Result<u8, Failure> {
    #[derive(serde::Serialize)]
    struct Stopped {
        stopped: Option<i32>,
    }
    if here.out.json {
        here.out.document(&Stopped { stopped: pid })?;
    }
    Ok(0)
}
