//! How long a server asks to wait.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

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
        seconds(hint, 1.0).or_else(|| date(hint, text(headers, DATE.as_str())?))
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn seconds(text: &str, unit: f64) -> Option<Duration> {
    let seconds = text.parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok().and_then(sensible)
}

fn date(hint: &str, now: &str) -> Option<Duration> {
    let until = httpdate::parse_http_date(hint).ok()?;
    let now = httpdate::parse_http_date(now).ok()?;
    until.duration_since(now).ok().and_then(sensible)
}

fn sensible(wait: Duration) -> Option<Duration> {
    (!wait.is_zero() && wait <= MAX_WAIT).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

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
        ] {
            assert_eq!(hint(&[now, ("retry-after", value)]), wait, "{value}");
        }
        assert_eq!(hint(&[("retry-after", "Wed, 21 Oct 2015 07:28:10 GMT")]), None);
        assert_eq!(hint(&[("retry-after-ms", "250"), ("retry-after", "9")]), ms(250));
        assert_eq!(hint(&[("retry-after-ms", "x"), ("retry-after", "9")]), ms(9000));
        assert_eq!(hint(&[]), None);
    }
}
