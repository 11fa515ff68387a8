//! Sizes, durations and times as people write and read them.

use std::time::Duration;

/// `30s`, `10m`, `2h`, `7d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write it like 30s, 10m, 2h or 7d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write it like 30s, 10m, 2h or 7d".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

/// `512m`, `2g`, `512` → MiB.
pub fn parse_mib(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let factor = match unit {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        _ => return Err("write it like 512m or 2g".to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| "write it like 512m or 2g".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

/// `0.5`, `2` processors.
pub fn parse_cpus(text: &str) -> Result<f64, String> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = text.parse().ok().filter(|number| is_decimal && *number > 0.0);
    number.ok_or_else(|| "write it like 0.5 or 2".to_owned())
}

/// `85 / 512 MiB`: what is used (rounded up, so that a little is not nothing) of what there may be.
pub fn of_mib(bytes: u64, limit_mib: u32) -> String {
    format!("{} / {limit_mib} MiB", bytes.div_ceil(1 << 20))
}

/// `12 kB`, `330 MB`: powers of 1024, as `free -h` counts.
pub fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 10.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// `3s`, `5m`, `2h10m`, `4d3h`.
pub fn span(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..=59 => format!("{s}s"),
        60..=3599 => format!("{}m", s / 60),
        3600..=86_399 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Milliseconds since the epoch of an ISO 8601 time.
pub fn at_ms(iso: &str) -> Option<i64> {
    Some(chrono::DateTime::parse_from_rfc3339(iso).ok()?.timestamp_millis())
}

/// How long ago an ISO 8601 time was.
pub fn since(iso: &str, now_ms: i64) -> Option<Duration> {
    let then = at_ms(iso)?;
    Some(Duration::from_millis(u64::try_from(now_ms - then).unwrap_or(0)))
}

pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Local `HH:MM:SS` of a log line.
pub fn clock(at_ms: i64) -> String {
    match chrono::DateTime::from_timestamp_millis(at_ms) {
        Some(time) => time.with_timezone(&chrono::Local).format("%H:%M:%S").to_string(),
        None => "--:--:--".to_owned(),
    }
}

/// Local `HH:MM`, with the date when it is another day than today's.
pub fn moment(at_ms: i64, now_ms: i64) -> String {
    let local =
        |ms| chrono::DateTime::from_timestamp_millis(ms).map(|time| time.with_timezone(&chrono::Local));
    match (local(at_ms), local(now_ms)) {
        (Some(at), Some(now)) if at.date_naive() == now.date_naive() => at.format("%H:%M").to_string(),
        (Some(at), _) => at.format("%Y-%m-%d %H:%M").to_string(),
        (None, _) => "--:--".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read() {
        for (text, s) in [("30", 30), ("30s", 30), ("10m", 600), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(parse_duration(text).unwrap().as_secs(), s, "{text}");
        }
        for bad in ["", "s", "1w", "-1s", "1.5h", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for (text, mib) in [("512m", 512), ("2g", 2048), ("64", 64), ("1GiB", 1024)] {
            assert_eq!(parse_mib(text).unwrap(), mib, "{text}");
        }
        for bad in ["", "m", "1t", "-5m", "4294967295g"] {
            assert!(parse_mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors_are_read_and_use_is_said_with_its_limit() {
        assert_eq!(parse_cpus("0.5"), Ok(0.5));
        assert_eq!(parse_cpus("2"), Ok(2.0));
        for bad in ["", "0", "-1", "1e3", "inf", "half", "."] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(of_mib(85 << 20, 512), "85 / 512 MiB");
        assert_eq!(of_mib(1, 512), "1 / 512 MiB");
        assert_eq!(of_mib(0, 512), "0 / 512 MiB");
    }

    #[test]
    fn a_moment_of_another_day_has_its_date() {
        let now = chrono::DateTime::parse_from_rfc3339("2026-01-02T12:00:00Z").unwrap().timestamp_millis();
        assert_eq!(moment(now, now).len(), "12:00".len());
        assert_eq!((at_ms("2026-01-02T12:00:00Z"), at_ms("soon")), (Some(now), None));
        assert_eq!(moment(now - 3 * 86_400_000, now).len(), "2025-12-30 12:00".len());
    }

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 kB");
        assert_eq!(size(330 << 20), "330 MB");
        assert_eq!(span(Duration::from_secs(59)), "59s");
        assert_eq!(span(Duration::from_secs(7800)), "2h10m");
        assert_eq!(span(Duration::from_secs(4 * 86_400 + 3 * 3600)), "4d3h");
    }
}
