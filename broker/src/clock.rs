//! The broker's one reading of the wall clock, and the text form of times.
//!
//! Not here: deadlines and intervals, which use tokio's monotonic clock.

use chrono::{DateTime, SecondsFormat, Utc};

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

/// ISO 8601, UTC, milliseconds and `Z`, as every time on the wire.
pub fn iso(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_and_z() {
        assert_eq!(iso(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
    }
}
