//! How long a server asks to wait.

use std::time::{Duration, SystemTime};

use hyper::header::{DATE, HeaderMap, RETRY_AFTER};

/// Longest hint that is believed; anything above it is a mistake of the server.
const MAX_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The wait that `retry-after-ms` or `retry-after` asks for.
///
/// `None` without a hint and for one that is past, negative, not a number or absurd: the caller's
/// own back-off holds then. A date is read against the response's own `Date`, never our clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let millis = text(headers, "retry-after-ms").and_then(|ms| seconds(ms, 1e-3));
    millis.or_else(|| {
        let hint = text(headers, RETRY_AFTER.as_str())?;
        seconds(hint, 1.0).or_else(|| date(hint, date_of(headers)?))
    })
}

/// The response's own `Date`.
pub(crate) fn date_of(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, DATE.as_str())?).ok()
}

/// A duration as servers write them: `46s`, `6m0s`, `100ms`, `10h17m5.7s`. `None` for anything else
/// and for more than a week.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic())?);
        let (unit, tail) =
            tail.split_at(tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len()));
        let unit = match unit {
            "d" => 86_400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok().filter(|n| *n >= 0.0)? * unit;
        rest = tail;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!text.is_empty() && duration <= MAX_WAIT).then_some(duration)
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn seconds(text: &str, unit: f64) -> Option<Duration> {
    let seconds = text.parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok().and_then(sensible)
}

fn date(hint: &str, now: SystemTime) -> Option<Duration> {
    let until = httpdate::parse_http_date(hint).ok()?;
    until.duration_since(now).ok().and_then(sensible)
}

fn sensible(wait: Duration) -> Option<Duration> {
    (!wait.is_zero() && wait <= MAX_WAIT).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn hint(headers: &[(&str, &str)]) -> Option<Duration> {
        let map = headers
            .iter()
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect();
        retry_after(&map)
    }

    #[test]
    fn every_form_of_a_hint_is_read_and_nonsense_is_not_believed() {
        let now = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        let ms = |ms| Some(Duration::from_millis(ms));
        for (value, wait) in [
            ("1", ms(1000)),
            ("0.5", ms(500)),
            (" 20 ", ms(20_000)),
            ("+3", ms(3000)),
            ("1e1", ms(10_000)),
            ("3600", ms(3_600_000)),
            ("36000", ms(36_000_000)),
            ("604800", ms(604_800_000)),
            ("604801", None),
            ("0", None),
            ("-0", None),
            ("-1", None),
            ("-0.5", None),
            ("NaN", None),
            ("nan", None),
            ("inf", None),
            ("-inf", None),
            ("infinity", None),
            ("1e400", None),
            ("-1e400", None),
            ("1e-400", None),
            ("99999999999999999999", None),
            ("", None),
            ("soon", None),
            ("1,5", None),
            ("0x10", None),
            ("10s", None),
            ("1m", None),
            ("\u{9}2", ms(2000)),
            ("Wed, 21 Oct 2015 07:28:10 GMT", ms(10_000)),
            ("Wednesday, 21-Oct-15 07:28:10 GMT", ms(10_000)),
            ("Wed Oct 21 07:28:10 2015", ms(10_000)),
            ("Wed, 21 Oct 2015 07:27:50 GMT", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", None),
            ("Thu, 21 Oct 2027 07:28:00 GMT", None),
            ("Wed, 32 Oct 2015 07:28:10 GMT", None),
            ("2015-10-21T07:28:10Z", None),
            ("Wed, 21 Oct 2015 07:28:10 +0200", None),
            ("2.", ms(2000)),
            ("1_000", None),
        ] {
            assert_eq!(hint(&[now, ("retry-after", value)]), wait, "{value}");
        }
        assert_eq!(hint(&[("retry-after", "Wed, 21 Oct 2015 07:28:10 GMT")]), None);
        assert_eq!(hint(&[("retry-after-ms", "250"), ("retry-after", "9")]), ms(250));
        assert_eq!(hint(&[("retry-after-ms", "x"), ("retry-after", "9")]), ms(9000));
        assert_eq!(hint(&[]), None);
    }

    #[test]
    fn durations_are_read_as_servers_write_them() {
        for (text, millis) in [
            ("46s", Some(46_000)),
            ("6m0s", Some(360_000)),
            ("100ms", Some(100)),
            ("1h2m", Some(3_720_000)),
            ("10h17m5.7s", Some(37_025_700)),
            ("1d2h", Some(93_600_000)),
            ("0s", Some(0)),
            ("250us", Some(0)),
            ("7d", Some(604_800_000)),
            ("7d1s", None),
            ("", None),
            ("5", None),
            ("-5s", None),
            ("5x", None),
            ("s", None),
            ("1s1", None),
            ("NaNs", None),
            ("infs", None),
            ("1e400s", None),
            ("5 s", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), millis, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_or_asks_for_the_absurd(
            hint in header_value(), millis in header_value(), date in header_value(),
        ) {
            let headers = [("retry-after", hint), ("retry-after-ms", millis), ("date", date)];
            let map = headers.into_iter().filter_map(|(name, bytes)| {
                Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(&bytes).ok()?))
            });
            if let Some(wait) = retry_after(&map.collect()) {
                prop_assert!(!wait.is_zero() && wait <= MAX_WAIT);
            }
        }

        #[test]
        fn no_duration_panics_or_is_absurd(text in "([-+]?[0-9.e_]{0,9}(d|h|m|s|ms|us|x|é|)){0,4}") {
            prop_assert!(duration(&text).is_none_or(|wait| wait <= MAX_WAIT));
        }
    }

    /// Numbers, dates and any other bytes.
    fn header_value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<f64>().prop_map(|n| n.to_string().into_bytes()),
            (-1_000_000_i64..1_000_000).prop_map(|n| n.to_string().into_bytes()),
            "[-+]?[0-9]{0,30}(\\.[0-9]{0,30})?(e[-+]?[0-9]{1,9})?".prop_map(String::into_bytes),
            "(Wed|Thu), [0-9]{2} (Oct|Feb) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
                .prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }
}
