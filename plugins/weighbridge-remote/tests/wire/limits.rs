//! Limits of servers: what is waited for, what is left alone, and what stops.

use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{BackendExt, Error, ErrorKind, Request, Retry};

use crate::support::{assert_no_canary, open};
use weighbridge_testkit::player::{Act, Player, answer, json as json_answer};

const ANSWER: &str = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;

/// What comes of one call to a server that answers so.
fn once(status: &str, headers: &str, body: &str) -> Error {
    let headers = format!("content-type: application/json\r\n{headers}");
    let player = Player::one(vec![answer(status, &headers, body)]);
    let error = open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
    assert_eq!(player.journal().len(), 1);
    assert_no_canary(&error);
    error
}

/// The same, and what comes of a second call, which would get an answer.
fn twice(status: &str, headers: &str, body: &str) -> (Error, Option<Error>, usize) {
    let headers = format!("content-type: application/json\r\n{headers}");
    let refusal = vec![answer(status, &headers, body)];
    let player = Player::start(vec![refusal, vec![json_answer("200 OK", ANSWER)]]);
    let backend = open(&player, json!({}));
    let first = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
    let second = backend.complete_blocking(&Request::user("Hi")).err();
    (first, second, player.journal().len())
}

const LIMITED: &str = "429 Too Many Requests";

#[test]
fn row_4_every_stop_code_is_a_quota_and_never_safe_to_repeat() {
    let openai = [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    ]
    .map(|code| (LIMITED, json!({"error": {"message": "m", "type": "t", "code": code}})));
    let others = [
        (
            LIMITED,
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": "m",
                "details": {"error_code": "enforced_spend_limit_reached"}}}),
        ),
        (
            "400 Bad Request",
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": "m",
                "details": {"error_code": "enforced_spend_limit_reached"}}}),
        ),
        ("402 Payment Required", json!({"error": {"code": 402, "message": "m"}})),
        (
            LIMITED,
            json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message":
                "Quota exceeded for metric: m, limit: 0\nPlease retry in 46.1s."}}),
        ),
    ];
    for (status, body) in openai.into_iter().chain(others) {
        // A hint beside it changes nothing.
        let error = once(status, "retry-after: 1\r\n", &body.to_string());
        assert_eq!(error.kind(), ErrorKind::Quota, "{body}");
        assert_eq!(error.retry(), Retry::Never, "{body}");
    }
}

#[test]
fn row_1_3_hints_in_bodies_are_waits_and_a_used_up_day_ends_at_midnight() {
    let google = |details: serde_json::Value, message: &str| {
        json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message,
            "details": details}})
        .to_string()
    };
    let delay = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46s"});
    let day = json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
        {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "50"}]});
    let date = "date: Thu, 15 Jan 2026 06:30:00 GMT\r\n";
    for (headers, body, seconds) in [
        ("", google(json!([delay]), ""), 46.0),
        ("", google(json!(null), "Please retry in 10h17m5.7s."), 37_025.7),
        (date, google(json!([day, delay]), ""), 5400.0),
        // The longer of two hints holds.
        ("retry-after: 50\r\n", google(json!([delay]), ""), 50.0),
    ] {
        let error = once(LIMITED, headers, &body);
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        let after = Some(Duration::from_secs_f64(seconds));
        assert_eq!(error.retry(), Retry::Safe { after }, "{body}");
    }
}

#[test]
fn row_1_x_should_retry_is_obeyed_where_it_makes_sense() {
    for (status, header, kind, is_safe) in [
        (LIMITED, "false", ErrorKind::RateLimited, false),
        (LIMITED, "true", ErrorKind::RateLimited, true),
        ("501 Not Implemented", "true", ErrorKind::ServerError, true),
        ("501 Not Implemented", "maybe", ErrorKind::ServerError, false),
        ("401 Unauthorized", "true", ErrorKind::Auth, false),
    ] {
        let error = once(status, &format!("x-should-retry: {header}\r\n"), "{}");
        assert_eq!(error.kind(), kind);
        assert_eq!(matches!(error.retry(), Retry::Safe { .. }), is_safe, "{status} {header}");
    }
}

#[test]
fn row_1_a_hint_holds_the_next_call_back() {
    let start = Instant::now();
    let (_, second, n_seen) = twice(LIMITED, "retry-after-ms: 400\r\n", "{}");
    assert!(second.is_none() && n_seen == 2);
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn row_3_a_long_hint_fails_the_next_call_at_once_and_unsent() {
    let start = Instant::now();
    let (first, second, n_seen) = twice(LIMITED, "retry-after: 36000\r\n", "{}");
    let after = Some(Duration::from_secs(36_000));
    assert_eq!(first.retry(), Retry::Safe { after });
    let second = second.unwrap();
    assert_eq!((second.kind(), second.context("phase")), (ErrorKind::RateLimited, Some("queue")));
    let Retry::Safe { after: Some(left) } = second.retry() else { panic!("{second:?}") };
    assert!(left > Duration::from_secs(35_990));
    assert_eq!(n_seen, 1);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_budget_that_is_used_up_is_waited_for_and_shown_as_queue_time() {
    let headers = "content-type: application/json\r\nx-ratelimit-remaining-requests: 0\r\n\
                   x-ratelimit-reset-requests: 300ms\r\n";
    let player = Player::start(vec![vec![answer("200 OK", headers, ANSWER)]]);
    // Two backends of one model share what is known of its server.
    let (first, second) = (open(&player, json!({})), open(&player, json!({})));
    let ask = |backend: &dyn weighbridge_core::Backend| {
        backend.complete_blocking(&Request::user("Hi")).unwrap().timings.queue.unwrap()
    };
    assert!(ask(&*first) < Duration::from_millis(100));
    let queue = ask(&*second);
    assert!(queue >= Duration::from_millis(250), "{queue:?}");
}

#[test]
fn row_39_the_time_in_the_queue_counts_against_the_deadline() {
    let slow = vec![Act::Wait(Duration::from_millis(1500)), json_answer("200 OK", ANSWER)];
    let player = Player::one(slow);
    let options = json!({"max_concurrency": 1, "timeout_s": 2});
    let backend = open(&player, options);
    let ends = std::thread::scope(|scope| {
        let call = || {
            let start = Instant::now();
            (backend.complete_blocking(&Request::user("Hi")), start.elapsed())
        };
        let calls: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(ends.iter().filter(|(result, _)| result.is_ok()).count(), 1);
    for (result, time) in ends {
        assert!(time < Duration::from_millis(2100), "{time:?} {result:?}");
    }
}

#[test]
fn a_users_own_limit_is_kept() {
    let player = Player::one(vec![json_answer("200 OK", ANSWER)]);
    let backend = open(&player, json!({"requests_per_minute": 3, "timeout_s": 5}));
    for _ in 0..3 {
        backend.complete_blocking(&Request::user("Hi")).unwrap();
    }
    let error = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
    assert!(error.message().contains("requests_per_minute"), "{error}");
    assert_eq!(player.journal().len(), 3);
}
