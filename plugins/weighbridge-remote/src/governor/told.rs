//! What servers tell about the budget that is left: OpenAI's and Anthropic's headers.

use std::time::Duration;

use hyper::header::HeaderMap;
use jiff::Timestamp;

use crate::retry_after::{date_of, duration, text};

/// What a budget is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Requests,
    Tokens,
}

/// How many kinds of budget are known.
pub(super) const N_BUDGETS: usize = 6;

/// Unit, and the headers of what remains and of the time until it is whole again.
const BUDGETS: [(Unit, &str, &str); N_BUDGETS] = [
    (Unit::Requests, "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    (Unit::Tokens, "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    (
        Unit::Requests,
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    (Unit::Tokens, "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    (
        Unit::Tokens,
        "anthropic-ratelimit-input-tokens-remaining",
        "anthropic-ratelimit-input-tokens-reset",
    ),
    (
        Unit::Tokens,
        "anthropic-ratelimit-output-tokens-remaining",
        "anthropic-ratelimit-output-tokens-reset",
    ),
];

/// A budget as one response tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) unit: Unit,
    pub(super) remaining: u64,
    /// Until it is whole again; zero if it is already.
    pub(super) resets_in: Duration,
}

/// The budgets that these headers tell, each at its own place.
pub(super) fn told(headers: &HeaderMap) -> [Option<Told>; N_BUDGETS] {
    // Most servers tell none.
    if !headers.keys().any(|name| name.as_str().contains("ratelimit")) {
        return [None; N_BUDGETS];
    }
    BUDGETS.map(|(unit, remaining, reset)| {
        let remaining = text(headers, remaining)?.parse().ok()?;
        let resets_in = resets_in(text(headers, reset)?, headers)?;
        Some(Told { unit, remaining, resets_in })
    })
}

/// A duration, or a moment, which is read against the response's own `Date` and may lie before it.
fn resets_in(reset: &str, headers: &HeaderMap) -> Option<Duration> {
    duration(reset).or_else(|| {
        let reset = reset.parse::<Timestamp>().ok()?;
        let now = Timestamp::try_from(date_of(headers)?).ok()?;
        Some(Duration::try_from(reset.duration_since(now)).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        headers.iter().map(parse).collect()
    }

    fn all(headers: &[(&str, &str)]) -> Vec<(Unit, u64, u64)> {
        let told = told(&map(headers)).into_iter().flatten();
        told.map(|t| (t.unit, t.remaining, t.resets_in.as_millis() as u64)).collect()
    }

    #[test]
    fn openai_tells_durations() {
        for (reset, millis) in
            [("6m0s", 360_000), ("100ms", 100), ("1h2m", 3_720_000), ("0s", 0), ("7.66s", 7660)]
        {
            let told = all(&[
                ("x-ratelimit-limit-requests", "60"),
                ("x-ratelimit-remaining-requests", "59"),
                ("x-ratelimit-reset-requests", reset),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", reset),
            ]);
            assert_eq!(told, [(Unit::Requests, 59, millis), (Unit::Tokens, 0, millis)]);
        }
    }

    #[test]
    fn anthropic_tells_moments_that_may_have_passed() {
        for (reset, millis) in [
            ("2026-11-21T10:00:30Z", 30_000),
            ("2026-11-21T11:00:00.5+01:00", 500),
            ("2026-11-21T09:59:58Z", 0),
        ] {
            let told = all(&[
                ("date", "Sat, 21 Nov 2026 10:00:00 GMT"),
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", reset),
                ("anthropic-ratelimit-input-tokens-remaining", "5000"),
                ("anthropic-ratelimit-input-tokens-reset", reset),
            ]);
            assert_eq!(told, [(Unit::Requests, 0, millis), (Unit::Tokens, 5000, millis)]);
        }
    }

    #[test]
    fn what_is_incomplete_or_nonsense_is_not_told() {
        for (remaining, reset) in
            [("", "1s"), ("-1", "1s"), ("1.5", "1s"), ("0", "soon"), ("0", "1700000000"), ("0", "")]
        {
            let headers =
                [("x-ratelimit-remaining-tokens", remaining), ("x-ratelimit-reset-tokens", reset)];
            assert_eq!(all(&headers), [], "{headers:?}");
        }
        let no_date = [
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", "2026-11-21T10:00:30Z"),
        ];
        assert_eq!(all(&no_date), []);
        assert_eq!(all(&[("x-ratelimit-remaining-tokens", "0")]), []);
    }

    proptest! {
        #[test]
        fn no_header_panics(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 12),
            moment in "[0-9]{1,6}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})",
        ) {
            let mut headers = map(&[("date", "Sat, 21 Nov 2026 10:00:00 GMT")]);
            for (i, (_, remaining, reset)) in BUDGETS.iter().enumerate() {
                for (name, value) in [(remaining, &values[2 * i]), (reset, &values[2 * i + 1])] {
                    if let Ok(value) = HeaderValue::from_bytes(value) {
                        headers.insert(*name, value);
                    }
                }
            }
            let _ = told(&headers);
            headers.insert(BUDGETS[2].1, HeaderValue::from_static("0"));
            headers.insert(BUDGETS[2].2, HeaderValue::from_str(&moment).unwrap());
            let _ = told(&headers);
        }
    }
}
