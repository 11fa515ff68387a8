//! Resource limits, put on the process that becomes the server.
//!
//! Here: which limit gets which number. Not here: their meaning to a caller (see [`crate::Limits`]).

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd;

use super::{Confinement, SetupError};
use crate::process::threads_of;
use crate::spec::Limits;

/// Locked memory, message queues, queued signals and timers: what a server may take of what the whole machine shares. In a
/// strict jail it counts for the helper's user, too, which may be root.
const LOCKED_BYTES: u64 = 8 << 20;
const QUEUE_BYTES: u64 = 800 << 10;
const PENDING_SIGNALS: u64 = 1024;

pub(super) fn limit(limits: &Limits, confinement: &Confinement<'_>) -> Result<(), SetupError> {
    let Limits { memory_bytes, max_processes, open_files, file_size_bytes } = *limits;
    // Not 0: the kernel would still start a `core_pattern` that is a program, as root of the host. 1 keeps it from that, and
    // no file is made of one byte (core(5)).
    lower(Resource::RLIMIT_CORE, 1)?;
    lower(Resource::RLIMIT_NOFILE, open_files)?;
    if let Some(bytes) = file_size_bytes {
        lower(Resource::RLIMIT_FSIZE, bytes)?;
    }
    if let Some(bytes) = memory_bytes {
        lower(Resource::RLIMIT_DATA, bytes)?;
    }
    lower(Resource::RLIMIT_MEMLOCK, LOCKED_BYTES)?;
    lower(Resource::RLIMIT_MSGQUEUE, QUEUE_BYTES)?;
    lower(Resource::RLIMIT_SIGPENDING, PENDING_SIGNALS)?;
    lower(Resource::RLIMIT_NICE, 0)?;
    lower(Resource::RLIMIT_RTPRIO, 0)?;
    let Some(processes) = max_processes else { return Ok(()) };
    let which = Resource::RLIMIT_NPROC;
    match confinement {
        // Counted in the jail's own user namespace (since Linux 5.14), where there is init besides.
        Confinement::Strict(_) => lower(which, processes.saturating_add(1)),
        Confinement::Light(_) => {
            let present = threads_of(unistd::getuid().as_raw()).map_err(|error| SetupError::Limit {
                which,
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            })?;
            lower(which, present.saturating_add(processes))
        }
    }
}

/// Soft and hard alike, so that the server can't raise it again. Never above what we have ourselves: only root could.
fn lower(which: Resource, value: u64) -> Result<(), SetupError> {
    let set = || {
        let (_, hard) = getrlimit(which)?;
        let value = value.min(hard);
        setrlimit(which, value, value)
    };
    set().map_err(|errno| SetupError::Limit { which, errno })
}
