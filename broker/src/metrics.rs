//! The series of `/metrics`, registered once per process.
//!
//! Labels are closed sets: never an id, a name or a text of a client. Counters exist at zero from the start.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use wire::report::Phase;

/// Why a connection was refused; the labels of the peer-protocol reference §1.3, §1.4.
const REFUSALS: &[&str] = &[
    "bad_session_pubkey",
    "bad_parent_pubkey",
    "attestation_mismatch",
    "capacity",
    "timestamp_skew",
    "malformed",
    "bad_signature",
    "attestation_malformed",
    "attestation_expired",
    "attestation_ttl_too_long",
    "attestation_bad_signature",
    "session_timestamp_skew",
    "session_malformed",
    "session_bad_signature",
    "revoked",
    "unauthorized",
    "parent_member_id_mismatch",
    "hello_timeout",
];

const CALL_BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

pub const PHASES: &[Phase] = &[
    Phase::Fetching,
    Phase::Installing,
    Phase::Starting,
    Phase::Ready,
    Phase::Idle,
    Phase::Waiting,
    Phase::Backoff,
    Phase::CrashLoop,
    Phase::Stopping,
    Phase::Stopped,
    Phase::Failed,
];

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// The server answered with an error of its own.
    McpError,
    Refused,
    Timeout,
    Cancelled,
    /// The server or the runner was lost or absent.
    Lost,
}

impl Outcome {
    const ALL: &[Self] =
        &[Self::Ok, Self::McpError, Self::Refused, Self::Timeout, Self::Cancelled, Self::Lost];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::McpError => "mcp_error",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

/// How often samples that nobody has scraped are folded into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder on the first call; later calls (several brokers in one test process) share it.
/// `None` when the embedding program has a recorder of its own.
pub fn install() -> Option<PrometheusHandle> {
    RECORDER.get_or_init(first_install).clone()
}

/// Never returns. The recorder keeps every sample of a histogram until it is scraped or kept up, and without a
/// Prometheus nobody ever scrapes.
pub async fn keep_up(handle: Option<PrometheusHandle>) {
    let Some(handle) = handle else { return std::future::pending().await };
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        handle.run_upkeep();
    }
}

fn first_install() -> Option<PrometheusHandle> {
    let calls = Matcher::Full("claudemesh_call_seconds".into());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(calls, CALL_BUCKETS).ok()?;
    let handle = builder.install_recorder().ok()?;
    counter!("broker_connections_total").absolute(0);
    gauge!("broker_connections_active").set(0.0);
    for reason in REFUSALS {
        counter!("broker_connections_rejected_total", "reason" => *reason).absolute(0);
    }
    for outcome in Outcome::ALL {
        counter!("claudemesh_calls_total", "outcome" => outcome.as_str()).absolute(0);
    }
    for reason in ["too_large", "malformed", "unknown_type", "no_hello", "busy"] {
        counter!("broker_messages_rejected_total", "reason" => reason).absolute(0);
    }
    for phase in PHASES {
        service_state(*phase, 0);
    }
    runner_connected(false);
    Some(handle)
}

pub fn connection_opened() {
    counter!("broker_connections_total").increment(1);
}

/// Counts up and, when dropped, down again.
pub struct Active(());

impl Active {
    pub fn enter() -> Self {
        gauge!("broker_connections_active").increment(1.0);
        Self(())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        gauge!("broker_connections_active").decrement(1.0);
    }
}

pub fn connection_refused(label: &'static str) {
    counter!("broker_connections_rejected_total", "reason" => label).increment(1);
}

pub fn frame_rejected(reason: &'static str) {
    counter!("broker_messages_rejected_total", "reason" => reason).increment(1);
}

pub fn call_ended(outcome: Outcome, seconds: f64) {
    counter!("claudemesh_calls_total", "outcome" => outcome.as_str()).increment(1);
    histogram!("claudemesh_call_seconds").record(seconds);
}

pub fn service_state(phase: Phase, count: u32) {
    gauge!("claudemesh_service_state", "phase" => phase.as_str()).set(f64::from(count));
}

pub fn runner_connected(is_connected: bool) {
    gauge!("claudemesh_runner_connected").set(if is_connected { 1.0 } else { 0.0 });
}

pub fn database_healthy(is_healthy: bool) {
    gauge!("broker_db_healthy").set(if is_healthy { 1.0 } else { 0.0 });
}
