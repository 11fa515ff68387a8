//! The jail: a small single-threaded helper process that becomes and supervises one hosted MCP server.
//!
//! Here: [`spawn`] and [`Jailed`] (the runner's side), [`main`] (the helper's side), and the messages between them.
//! Not here: threads, an async runtime, logging, any other crate of ours. The runner wraps the control socket itself.
//!
//! ```text
//! light   runner ── control ── helper (subreaper, empty environment) ── server (own session and process group)
//! strict  runner ── control ── helper ── tie ── init (PID 1 of new namespaces) ── server (PID 2)
//!           `──────────── stdin, stdout, stderr of the server, by SCM_RIGHTS ────────────┘
//! ```
//!
//! The helper is our own binary, re-executed with the single argument [`ROLE`]. It receives the [`JailSpec`] and the
//! three descriptors over the socket that is its stdin, so nothing of the spec is in an argv or in an environment before
//! the last `exec`. It reports every [`Step`], then stays: when the server ends, on [`Jailed::kill`], and when the
//! control socket closes (the runner died), it kills all that is left of the tree, daemons included, and says
//! [`Report::Gone`] only when the kernel says that it has no child any more.
//!
//! [`Isolation::Light`] holds the process tree and nothing else: a server has the view of the file system and the
//! network, and the uid, of the runner. So it can harm the helper too. A helper that dies of SIGKILL takes the server with
//! it (PDEATHSIG), but **a daemonised grandchild survives such a helper**; a helper stopped by SIGSTOP is what
//! [`Jailed::force_kill`] is for.
//!
//! [`Isolation::Strict`] needs no privilege, and as root it gives each service a uid of its own. The server sees the
//! [`View`] and nothing else, has no capability, and is held by Landlock and seccomp besides; when init, the helper or
//! the runner ends, however it ends, so does everything. A step that fails starts nothing. Not held by it: memory in
//! files (`memfd`) and processor time, which want a cgroup; the size of `home`, which wants a quota; and with
//! [`Network::Host`] the network.

mod frame;
mod helper;
mod parent;
mod probe;
mod process;
mod report;
mod server;
mod spec;
mod strict;
mod sys;
mod tree;
mod view;

pub use helper::main;
pub use parent::{ControlError, FrameError, Jailed, Reading, SpawnError, Stdio, reap_dropped, spawn};
pub use probe::{Primitive, Refused, probe, strict_available};
pub use process::{Usage, usage};
pub use report::{Ending, Exit, Report, Step};
pub use spec::{BadSpec, JailSpec, Limits};
pub use view::{Isolation, Network, View};

/// The argument that makes our binary the helper: a `main` that sees it first in its arguments calls [`main`].
pub const ROLE: &str = "jail";
