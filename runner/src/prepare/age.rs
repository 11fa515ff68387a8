//! The least age of a version: how long it must have been public before it is installed.
//!
//! Here: the moment before which versions count, its text, and what is said about a younger one. Pure but for the clock.
//! Not here: asking registries (`npm`, `pypi`). Git and archives have no release; a pin is not judged again, and neither
//! is a lock that the project brings.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wire::ErrorCode;

use super::error::PrepareError;

const DAY: u64 = 86_400;

/// `None`: any version will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MinAge {
    /// Seconds since the epoch.
    latest: Option<u64>,
    now: u64,
}

impl MinAge {
    pub(crate) fn seconds(seconds: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        Self::at(now, seconds)
    }

    fn at(now: u64, seconds: u64) -> Self {
        Self { latest: (seconds > 0).then(|| now.saturating_sub(seconds)), now }
    }

    /// The moment as `2026-11-21T15:00:00Z`, which package managers take.
    pub(crate) fn before(self) -> Option<String> {
        self.latest.map(written)
    }

    /// Whether a version of this moment is old enough. One of no readable moment is not.
    pub(crate) fn covers(self, published: Option<&str>) -> bool {
        match (self.latest, published.and_then(read)) {
            (None, _) => true,
            (Some(latest), Some(published)) => published <= latest,
            (Some(_), None) => false,
        }
    }

    /// The whole seconds that are demanded; for tools that take an age.
    pub(crate) fn demanded(self) -> Option<u64> {
        self.latest.map(|latest| self.now - latest)
    }

    /// What is said when `what` is younger. `other`: a version that would do.
    pub(crate) fn too_new(self, what: &str, published: Option<&str>, other: Option<&str>) -> PrepareError {
        let age = match published.and_then(read) {
            Some(published) => format!("is {} old", span(self.now.saturating_sub(published))),
            None => "is younger than that, or its registry does not tell".to_owned(),
        };
        let demanded = span(self.demanded().unwrap_or_default());
        let cure = match other {
            Some(version) => format!("deploy {version}, or wait"),
            None => "no version is old enough; wait".to_owned(),
        };
        PrepareError::new(
            ErrorCode::TooNew,
            format!("`{what}` {age}, and the mesh demands {demanded}; {cure}"),
        )
    }
}

/// For people, in the largest unit of which there are at least two.
fn span(seconds: u64) -> String {
    let units = [(DAY, "days"), (3600, "hours"), (60, "minutes")];
    let (size, name) = units.into_iter().find(|(size, _)| seconds >= 2 * size).unwrap_or((1, "seconds"));
    format!("{} {name}", seconds / size)
}

/// Proleptic Gregorian, UTC.
fn written(seconds: u64) -> String {
    let (days, rest) = (seconds / DAY, seconds % DAY);
    // Years that begin in March, from the year 0: leap days come last (H. Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-11-21T15:00:00[.123](Z|+00:00)`; anything else is no moment.
fn read(text: &str) -> Option<u64> {
    let (moment, zone) = text.split_at_checked(19)?;
    let zone = zone.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if !matches!(zone, "Z" | "+00:00") {
        return None;
    }
    let part = |range: std::ops::Range<usize>| moment.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let shifted = if month <= 2 { year.checked_sub(1)? } else { year };
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + of_year;
    Some(days.checked_sub(719_468)? * DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_and_read_back() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_273_199, "2026-11-21T14:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(written(seconds), text);
            assert_eq!(read(text), Some(seconds));
        }
        assert_eq!(read("2026-11-21T14:59:59.123456Z"), Some(1_795_273_199));
        for bad in ["", "yesterday", "2026-11-21", "2026-11-21T14:59:59+02:00", "2026-11-21T14:59:5é"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_version_counts_when_it_is_old_enough_or_nothing_is_demanded() {
        let now = read("2026-11-21T12:00:00Z").unwrap();
        let week = MinAge::at(now, 7 * DAY);
        assert_eq!(week.before().as_deref(), Some("2026-11-14T12:00:00Z"));
        assert!(week.covers(Some("2026-11-14T12:00:00.000Z")) && !week.covers(Some("2026-11-14T12:00:01Z")));
        assert!(!week.covers(None) && MinAge::at(now, 0).covers(None));
        assert_eq!(MinAge::at(now, 0).before(), None);
    }

    #[test]
    fn a_younger_one_is_told_with_its_age_and_what_would_do() {
        let now = read("2026-11-21T12:00:00Z").unwrap();
        let error = MinAge::at(now, 7 * DAY).too_new("a@2.0.0", Some("2026-11-18T12:00:00Z"), Some("1.9.0"));
        assert_eq!(error.code(), ErrorCode::TooNew);
        assert_eq!(
            error.to_string(),
            "`a@2.0.0` is 3 days old, and the mesh demands 7 days; deploy 1.9.0, or wait"
        );
    }
}
