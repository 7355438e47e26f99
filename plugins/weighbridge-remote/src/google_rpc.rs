//! What Google's error details say about limits: `google.rpc.RetryInfo`, `QuotaFailure`, `ErrorInfo`.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::retry_after::duration;

/// Daily quotas begin anew at midnight there.
const PACIFIC: &str = "PST8PDT,M3.2.0,M11.1.0";

/// The parts of an error's `details` that decide what to do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Details {
    /// How long to wait.
    pub(crate) retry_delay: Option<Duration>,
    /// A quota for a whole day is used up.
    pub(crate) is_daily: bool,
    /// A quota is zero: this account never gets an answer.
    pub(crate) is_zero: bool,
    /// `ErrorInfo.reason`.
    pub(crate) reason: Option<String>,
}

impl Details {
    /// Reads the details of an error object. Its message counts only in an error about limits, and
    /// only for what the details leave open.
    pub(crate) fn read(error: &Value) -> Self {
        let mut found = Self::default();
        let mut has_limit = false;
        for detail in error["details"].as_array().into_iter().flatten() {
            let kind = detail["@type"].as_str().and_then(|kind| kind.rsplit('.').next());
            match kind {
                Some("RetryInfo") => {
                    found.retry_delay = detail["retryDelay"].as_str().and_then(duration);
                }
                Some("ErrorInfo") => found.reason = detail["reason"].as_str().map(str::to_owned),
                Some("QuotaFailure") => {
                    for violation in detail["violations"].as_array().into_iter().flatten() {
                        let id = violation["quotaId"].as_str().unwrap_or_default();
                        found.is_daily |= id.to_ascii_lowercase().contains("perday");
                        let limit = violation["quotaValue"].as_str();
                        has_limit |= limit.is_some();
                        found.is_zero |= limit == Some("0");
                    }
                }
                _ => {}
            }
        }
        if error["status"] == "RESOURCE_EXHAUSTED" {
            let message = error["message"].as_str().unwrap_or_default();
            found.is_zero |= !has_limit && names_zero_limit(message);
            found.retry_delay = found.retry_delay.or_else(|| {
                let (_, wait) = message.split_once("retry in ")?;
                let end = wait.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                duration(wait[..end.unwrap_or(wait.len())].trim_end_matches('.'))
            });
        }
        found
    }
}

fn names_zero_limit(message: &str) -> bool {
    message.split("limit: 0").skip(1).any(|rest| {
        let mut rest = rest.chars();
        match rest.next() {
            Some('.') => !rest.next().is_some_and(|c| c.is_ascii_digit()),
            Some(next) => !next.is_ascii_digit(),
            None => true,
        }
    })
}

/// The time from `now` until daily quotas begin anew.
pub(crate) fn until_daily_reset(now: SystemTime) -> Option<Duration> {
    let now = Timestamp::try_from(now).ok()?;
    let zone = TimeZone::posix(PACIFIC).ok()?;
    let reset = now.to_zoned(zone).tomorrow().ok()?.start_of_day().ok()?;
    Duration::try_from(reset.timestamp().duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn exhausted(message: &str, details: Value) -> Details {
        Details::read(&json!({
            "code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": details,
        }))
    }

    fn quota(id: &str, value: &str) -> Value {
        json!({
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaMetric": "m", "quotaId": id, "quotaValue": value}],
        })
    }

    #[test]
    fn details_come_before_prose() {
        let delay =
            json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46s"});
        let minute = quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10");
        let found = exhausted("limit: 0, retry in 10h", json!([minute, delay]));
        assert_eq!(found.retry_delay, Some(Duration::from_secs(46)));
        assert!(!found.is_daily && !found.is_zero);

        let day = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "50");
        assert!(exhausted("", json!([day, delay])).is_daily);
        assert!(exhausted("", json!([quota("x", "0")])).is_zero);
    }

    #[test]
    fn prose_counts_where_details_say_nothing() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (message, is_zero, delay) in [
            ("Please retry in 10h17m5.7s.", false, ms(37_025_700)),
            ("limit: 0\nPlease retry in 46.12s", true, ms(46_120)),
            ("limit: 0. Please retry in 3s, or later", true, ms(3000)),
            ("limit: 0", true, None),
            ("limit: 0.5", false, None),
            ("limit: 05", false, None),
            ("limit: 100, retry in a while", false, None),
        ] {
            let found = exhausted(message, Value::Null);
            assert_eq!((found.is_zero, found.retry_delay), (is_zero, delay), "{message}");
        }
        let other = json!({"code": "rate_limit_exceeded", "message": "limit: 0, retry in 10h"});
        assert_eq!(Details::read(&other), Details::default());
    }

    #[test]
    fn a_day_ends_at_midnight_pacific() {
        for (now, reset) in [
            ("2026-01-15T07:59:00Z", "2026-01-15T08:00:00Z"),
            ("2026-01-15T08:00:00Z", "2026-01-16T08:00:00Z"),
            ("2026-07-15T06:00:00Z", "2026-07-15T07:00:00Z"),
            // Clocks change: days of 23 and of 25 hours.
            ("2026-03-08T08:00:00Z", "2026-03-09T07:00:00Z"),
            ("2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z"),
        ] {
            let [now, reset] = [now, reset].map(|t| t.parse::<Timestamp>().unwrap());
            let wait = until_daily_reset(now.into()).unwrap();
            assert_eq!(wait, Duration::try_from(reset.duration_since(now)).unwrap(), "{now}");
        }
    }
}
