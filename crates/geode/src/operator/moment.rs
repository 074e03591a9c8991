//! Moments as people write and read them: RFC 3339, and "so long ago".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 24 * 60 * 60;

/// `10m`, `2h` and so on ago, or a time like `2026-11-23T20:37:14Z`, in microseconds since 1970.
///
/// # Errors
/// The text is neither.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago = parse_ago(text).map(|ago| now.saturating_sub(ago).as_micros() as u64);
    ago.or_else(|| parse_rfc3339(text))
        .ok_or_else(|| "give how long ago (30s, 10m, 2h, 7d) or a time like 2026-11-23T20:37:14Z".to_owned())
}

fn parse_ago(text: &str) -> Option<Duration> {
    let units = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", DAY_S)];
    let (number, unit_s) =
        units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    number.parse::<u64>().ok()?.checked_mul(*unit_s).map(Duration::from_secs)
}

/// RFC 3339 from 1970 on.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let time = rest.strip_prefix(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let (clock, rest) = time.split_at_checked(8)?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let (fraction_us, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.find(|character: char| !character.is_ascii_digit())?;
            let fraction: String = rest[..digits].chars().chain("000000".chars()).take(6).collect();
            ((digits > 0).then(|| fraction.parse::<i64>().ok())??, &rest[digits..])
        }
        None => (0, rest),
    };
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let seconds = days_before(year, month, day) * DAY_S as i64 + hour * 3600 + minute * 60 + second;
    let us = (seconds - offset_s(zone)?) * 1_000_000 + fraction_us;
    u64::try_from(us).ok().filter(|_| valid)
}

/// `Z`, `+hh:mm` or `-hh:mm`.
fn offset_s(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, zone) =
        zone.strip_prefix('+').map(|zone| (1, zone)).or_else(|| Some((-1, zone.strip_prefix('-')?)))?;
    let [hours, minutes] = numbers(zone, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Numbers of so many digits with something between them.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Microseconds since 1970 in RFC 3339, UTC, to the millisecond.
pub(super) fn show(time_us: u64) -> String {
    let (seconds, millis) = (time_us / 1_000_000, time_us / 1000 % 1000);
    let (mut days, mut year) = ((seconds / DAY_S) as i64, 1970);
    while days >= days_before(year + 1, 1, 1) - days_before(year, 1, 1) {
        days -= days_before(year + 1, 1, 1) - days_before(year, 1, 1);
        year += 1;
    }
    let mut month = 1;
    while days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z", days + 1)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let past = year - 1;
    let leap_days = past / 4 - past / 100 + past / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let months: i64 = (1..month).map(|month| days_in(year, month)).sum();
    (year - 1970) * 365 + leap_days + months + day - 1
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_shown_in_rfc_3339() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2023-11-14T22:13:20Z", 1_700_000_000),
            ("2023-11-14 23:43:20+01:30", 1_700_000_000),
            ("2023-11-14t17:13:20-05:00", 1_700_000_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse_rfc3339(text), Some(seconds * 1_000_000), "{text}");
        }
        assert_eq!(parse_rfc3339("2023-11-14T22:13:20.123456789Z"), Some(1_700_000_000_123_456));
        for time_us in
            [0, 951_868_799_999_000, 1_700_000_000_123_000, 4_107_542_400_000_000, 7_258_118_399_000_000]
        {
            assert_eq!(parse_rfc3339(&show(time_us)), Some(time_us), "{}", show(time_us));
        }
        assert_eq!(show(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn what_is_no_time_is_refused_with_what_is() {
        for text in [
            "",
            "10",
            "m",
            "-1m",
            "10y",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-02-29T00:00:00Z",
            "1969-12-31T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20.5",
            "+023-11-14T22:13:20Z",
            "2023-11-14T22:13:20+1:00",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse("é").unwrap_err().contains("10m"));
    }

    #[test]
    fn so_long_ago_counts_from_now() {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        for (text, seconds) in [("0s", 0), ("30s", 30), ("10m", 600), ("2h", 7200), ("7d", 604_800)] {
            assert!(parse(text).unwrap() + seconds * 1_000_000 >= now_us, "{text}");
            assert_eq!(parse_ago(text), Some(Duration::from_secs(seconds)));
        }
    }
}
