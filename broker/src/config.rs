//! What a broker is told at start. Everything is parsed; nothing here is read from the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use wire::Secret;

/// One per process; consumed by [`crate::App::build`].
pub struct Config {
    /// Port 0 asks the operating system for a free one; see [`crate::App::addr`].
    pub listen: SocketAddr,
    /// `sqlite:PATH` or `postgres://…`.
    pub database_url: String,
    pub runner: RunnerLink,
    /// Roots of what this broker encrypts at rest, e.g. environment values and git tokens. The first seals, all open.
    pub at_rest_roots: Vec<vault::AtRestKey>,
    /// `ws://HOST:PORT/ws`, as clients reach this broker; told in `/health`.
    pub public_url: String,
    pub limits: Limits,
    /// Name of a migration that must have run before `/health/ready` says yes.
    pub expected_migration: Option<String>,
}

/// How the broker reaches its runner.
#[derive(Debug, Clone)]
pub enum RunnerLink {
    Unix(PathBuf),
    Http { url: String, token: Secret },
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub max_connections_per_mesh: usize,
    /// A larger frame is answered with `too_large`. The connection ends only far above it.
    pub max_message_bytes: usize,
    pub max_services_per_mesh: usize,
    pub max_upload_bytes: usize,
    pub hello_timeout: Duration,
    pub ping_every: Duration,
    /// A connection that has not answered a ping for so long is dead.
    pub idle_limit: Duration,
    /// Frames that may wait for one slow receiver.
    pub send_queue: usize,
    /// KiB that may wait for one slow receiver.
    pub send_queue_kib: u32,
    /// How long the host of a live server may take for a call.
    pub live_call: Duration,
    /// Somebody who said `working` and nothing more for so long is idle. An agent says it once a turn, and may think for minutes.
    pub working_for: Duration,
}

/// How much larger than others a frame of [`BULKY`] may be, and all frames before the connection ends.
pub(crate) const HARD_CAP_FACTOR: usize = 8;
/// A skill with its files, the tools of a live server, what such a server answered, what a client answered a server: without that
/// answer its call would wait for its end.
const BULKY: [&str; 4] = ["share_skill", "mcp_register", "mcp_call_response", "mcp_ask_answer"];

impl Limits {
    /// Most bytes of a frame of this type.
    pub(crate) fn frame(&self, kind: &str) -> usize {
        let factor = if BULKY.contains(&kind) { HARD_CAP_FACTOR } else { 1 };
        self.max_message_bytes.saturating_mul(factor)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections_per_mesh: 100,
            max_message_bytes: 1 << 20,
            max_services_per_mesh: 20,
            max_upload_bytes: 50 << 20,
            hello_timeout: Duration::from_secs(10),
            ping_every: Duration::from_secs(30),
            idle_limit: Duration::from_secs(75),
            send_queue: 1024,
            send_queue_kib: 64 << 10,
            live_call: Duration::from_secs(30),
            working_for: Duration::from_secs(15 * 60),
        }
    }
}
