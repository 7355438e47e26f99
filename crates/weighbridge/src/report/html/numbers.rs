//! Numbers for a person: en-US groups and points, a fixed number of digits per kind.

pub(super) use crate::compare::grouped as whole;
use crate::compare::{Interval, points};

/// A share in [0, 1], as in `88.3 %`.
pub(super) fn share(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

/// `part` of `all`, as in `12 (4.0 %)`.
pub(super) fn part(part: u64, all: u64) -> String {
    match all {
        0 => whole(part),
        _ => format!("{} ({})", whole(part), share(part as f64 / all as f64)),
    }
}

/// A confidence level, as in `95 %`.
pub(super) fn level(level: f64) -> String {
    // Two digits more than needed, so that 0.95 does not read 94.99999.
    format!("{} %", (level * 10_000.0).round() / 100.0)
}

/// The ends of an interval of shares, as in `84.1 to 91.5 %`.
pub(super) fn share_interval(interval: &Interval) -> String {
    format!("{:.1} to {:.1} %", interval.lo * 100.0, interval.hi * 100.0)
}

/// The ends of an interval in percentage points, as in `−9.0 to +2.3`.
pub(super) fn points_interval(interval: &Interval) -> String {
    format!("{} to {}", points(interval.lo), points(interval.hi))
}

/// A p-value to three digits after the point.
pub(super) fn p_value(p: f64) -> String {
    match p {
        p if p < 0.001 => "< 0.001".to_owned(),
        p => format!("{p:.3}"),
    }
}

/// A measured amount in USD: cents from a dollar on, three significant digits below.
pub(super) fn usd(value: f64) -> String {
    if value.abs() >= 1.0 {
        let cents = (value.abs() * 100.0).round() as u64;
        let sign = if value < 0.0 { "\u{2212}" } else { "" };
        return format!("{sign}${}.{:02}", whole(cents / 100), cents % 100);
    }
    if value == 0.0 {
        return "$0.00".to_owned();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(2, 12) as usize;
    format!("${value:.digits$}")
}

/// A typed amount in USD: no more digits than it was typed with, and cents at least.
pub(super) fn usd_typed(value: f64) -> String {
    let typed = value.to_string();
    let n_digits = typed.split_once('.').map_or(0, |(_, digits)| digits.len());
    if n_digits <= 2 && value.abs() >= 1.0 {
        usd(value)
    } else {
        format!("${value:.0$}", n_digits.max(2))
    }
}

/// Bytes, as in `1.4 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut units = ["bytes", "KiB", "MiB", "GiB"].iter();
    let mut unit = units.next().expect("the list is not empty");
    while value >= 1024.0
        && let Some(larger) = units.next()
    {
        value /= 1024.0;
        unit = larger;
    }
    if *unit == "bytes" { format!("{} bytes", whole(n)) } else { format!("{value:.1} {unit}") }
}

/// `1 sample`, `2 samples`.
pub(super) fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", whole(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_in_print() {
        assert_eq!([whole(0), whole(999), whole(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!(share(0.8833), "88.3 %");
        assert_eq!(part(3, 12), "3 (25.0 %)");
        assert_eq!([level(0.95), level(0.999)], ["95 %", "99.9 %"]);
        assert_eq!([p_value(0.0004), p_value(0.0486), p_value(1.0)], ["< 0.001", "0.049", "1.000"]);
        assert_eq!(usd(1234.5), "$1,234.50");
        assert_eq!([usd(0.000_123_4), usd(0.0), usd(0.25)], ["$0.000123", "$0.00", "$0.250"]);
        assert_eq!(
            [usd_typed(0.05), usd_typed(1250.0), usd_typed(0.125)],
            ["$0.05", "$1,250.00", "$0.125"]
        );
        assert_eq!([bytes(512), bytes(1_500_000)], ["512 bytes", "1.4 MiB"]);
        assert_eq!([counted(1, "pair"), counted(2, "pair")], ["1 pair", "2 pairs"]);
    }
}
