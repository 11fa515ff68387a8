//! The jail: a small single-threaded helper process that becomes and supervises one hosted MCP server.
//!
//! Here: [`spawn`] and [`Jailed`] (the runner's side), [`main`] (the helper's side), and the messages between them.
//! Not here: threads, an async runtime, logging, any other crate of ours. The runner wraps the control socket itself.
//!
//! ```text
//! light   runner ── control ── helper (subreaper, empty environment) ── server (own session and process group, own uid)
//! strict  runner ── control ── helper ── tie ── init (PID 1 of new namespaces) ── server (PID 2)
//!           `──────────── stdin, stdout, stderr of the server, by SCM_RIGHTS ────────────┘
//! ```
//!
//! The helper is our own binary, re-executed with the single argument [`ROLE`]. It receives the [`JailSpec`] and the
//! three descriptors over the socket that is its stdin, so nothing of the spec is in an argv or in an environment before
//! the last `exec`; the values of secrets are in no message at all, they follow it as bytes. It reports every [`Step`], then stays: when the server ends, on [`Jailed::kill`], and when the
//! control socket closes (the runner died), it kills all that is left of the tree, daemons included, and says
//! [`Report::Gone`] only when the kernel says that it has no child any more.
//!
//! [`Isolation::Light`] needs no namespace: Landlock for files and TCP, seccomp, and as root a uid of its own for each
//! service. The server can read the system's programs and what the spec names, write its own directories, connect to the
//! port of the runner's proxy, and nothing else; no socket of its own can listen. **Landlock knows ports and no addresses**:
//! whoever listens on that port on another machine is reached past the proxy. **It sees** the processes of the machine with their
//! command lines, the names, sizes and owners of files, mounts, routes and the host's name. Where it has no uid of its own
//! (the runner is an ordinary user) it can, besides, change mode, owner, times and attributes of that user's files, which
//! Landlock does not rule, and before Linux 6.12 signal that user's processes, the helper among them. A helper that dies of
//! SIGKILL takes the server with it (PDEATHSIG), but **a daemonised grandchild survives such a helper** unless it is in a
//! cgroup; a helper stopped by SIGSTOP is what [`Jailed::force_kill`] is for.
//!
//! [`Isolation::Strict`] needs no privilege, and as root it gives each service a uid of its own. The server sees the
//! [`View`] and nothing else, has no capability, and is held by Landlock and seccomp besides; when init, the helper or
//! the runner ends, however it ends, so does everything. With [`Network::Filtered`] whatever it connects to arrives at the
//! [`Listeners`] that the runner holds, or nowhere.
//!
//! A step that fails starts nothing, in both. Held by neither: memory in files (`memfd`) and processor time, which want the
//! spec's cgroups; the size of `home`, which wants a quota or somebody who looks; and in a strict jail with
//! [`Network::Host`] the network.

pub mod cgroup;
mod frame;
mod helper;
mod identity;
mod light;
mod listeners;
mod parent;
mod probe;
mod process;
mod report;
mod seccomp;
mod secret;
mod server;
mod sources;
mod spec;
mod standing;
mod strict;
mod sys;
mod tree;
mod view;

pub use helper::main;
pub use listeners::Listeners;
pub use parent::{ControlError, FrameError, Jailed, Reading, SpawnError, Stdio, reap_dropped, spawn};
pub use probe::{Primitive, Refused, Tier, light_available, probe, strict_available};
pub use process::{Usage, usage};
pub use report::{Ending, Exit, Report, Step};
pub use secret::SecretFile;
pub use spec::{BadSpec, JailSpec, Limits};
pub use view::{Isolation, LightView, Network, View};

/// Keeps a key of the runner out of the swap space for as long as the runner lives. Here, since nowhere else may be `unsafe`.
///
/// # Errors
/// The kernel lets this user lock no (more) memory.
pub fn lock_in_memory<T>(value: &T) -> std::io::Result<()> {
    sys::lock(value).map_err(Into::into)
}

/// The argument that makes our binary the helper: a `main` that sees it first in its arguments calls [`main`].
pub const ROLE: &str = "jail";
