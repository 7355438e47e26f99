//! Refusals, deadlines, bytes without end, and keys that must not travel.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{BackendExt, Completion, ErrorKind, Outcome, Request, Result, Retry};

use crate::support::{CANARY, ask, assert_no_canary, open, try_open};
use weighbridge_testkit::player::{Act, Player, answer, json as json_answer, send, sse_head};

fn refusal(status: &str, headers: &str, body: &str) -> weighbridge_core::Error {
    let headers = format!("content-type: application/json\r\n{headers}");
    let player = Player::one(vec![answer(status, &headers, body)]);
    let error = open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
    assert_eq!(player.journal().len(), 1, "one request, no retries here");
    assert_eq!(player.journal()[0].header("authorization").unwrap(), format!("Bearer {CANARY}"));
    assert_no_canary(&error);
    error
}

fn safe(millis: Option<u64>) -> Retry {
    Retry::Safe { after: millis.map(Duration::from_millis) }
}

#[test]
fn row_1_to_8_statuses_have_classes_and_advice() {
    let code = |c: &str| {
        format!(r#"{{"error":{{"message":"because {CANARY}","code":"{c}"}}}}"#)
            .replace("\"9", "\\\"9")
    };
    for (status, headers, body, kind, retry) in [
        (
            "429 Too Many Requests",
            "retry-after: 2\r\n",
            code("rate_limit_exceeded"),
            ErrorKind::RateLimited,
            safe(Some(2000)),
        ),
        (
            "429 Too Many Requests",
            "retry-after-ms: 70\r\nretry-after: 9\r\n",
            String::new(),
            ErrorKind::RateLimited,
            safe(Some(70)),
        ),
        (
            "429 Too Many Requests",
            "retry-after: NaN\r\n",
            String::new(),
            ErrorKind::RateLimited,
            safe(None),
        ),
        (
            "429 Too Many Requests",
            "date: Wed, 21 Oct 2015 07:28:00 GMT\r\nretry-after: Wed, 21 Oct 2015 07:28:03 GMT\r\n",
            String::new(),
            ErrorKind::RateLimited,
            safe(Some(3000)),
        ),
        (
            "429 Too Many Requests",
            "retry-after: 36000\r\n",
            String::new(),
            ErrorKind::RateLimited,
            safe(Some(36_000_000)),
        ),
        (
            "429 Too Many Requests",
            "retry-after: 2\r\n",
            code("insufficient_quota"),
            ErrorKind::Quota,
            Retry::Never,
        ),
        (
            "429 Too Many Requests",
            "x-should-retry: false\r\n",
            String::new(),
            ErrorKind::RateLimited,
            Retry::Never,
        ),
        ("402 Payment Required", "", String::new(), ErrorKind::Quota, Retry::Never),
        (
            "503 Service Unavailable",
            "retry-after: 1\r\n",
            String::new(),
            ErrorKind::Overloaded,
            safe(Some(1000)),
        ),
        ("529 Overloaded", "", String::new(), ErrorKind::Overloaded, safe(None)),
        ("500 Internal Server Error", "", code("x"), ErrorKind::ServerError, safe(None)),
        ("502 Bad Gateway", "", String::new(), ErrorKind::ServerError, safe(None)),
        ("504 Gateway Timeout", "", String::new(), ErrorKind::ServerError, safe(None)),
        ("408 Request Timeout", "", String::new(), ErrorKind::ServerError, safe(None)),
        ("409 Conflict", "", String::new(), ErrorKind::ServerError, safe(None)),
        ("401 Unauthorized", "", code("invalid_api_key"), ErrorKind::Auth, Retry::Never),
        ("403 Forbidden", "", String::new(), ErrorKind::Auth, Retry::Never),
        ("404 Not Found", "", code("model_not_found"), ErrorKind::NotFound, Retry::Never),
        ("400 Bad Request", "", code("x"), ErrorKind::InvalidRequest, Retry::Never),
        ("413 Too Large", "", String::new(), ErrorKind::InvalidRequest, Retry::Never),
        (
            "422 Unprocessable",
            "",
            r#"{"detail":"x"}"#.to_owned(),
            ErrorKind::InvalidRequest,
            Retry::Never,
        ),
        (
            "400 Bad Request",
            "",
            code("context_length_exceeded"),
            ErrorKind::ContextOverflow,
            Retry::Never,
        ),
    ] {
        let error = refusal(status, headers, &body);
        assert_eq!(error.kind(), kind, "{status} {body}");
        assert_eq!(error.retry(), retry, "{status} {headers}");
        assert_eq!(error.context("status"), Some(&status[..3]));
    }
    let error = refusal("401 Unauthorized", "x-request-id: r1\r\n", &code("invalid_api_key"));
    assert_eq!(error.context("request_id"), Some("r1"));
    let text = error.to_string();
    assert!(text.contains("answered 401: because [redacted]"), "{text}");
    assert!(text.contains("check the key in `CANARY_KEY`"), "{text}");
}

#[test]
fn row_9_error_bodies_of_any_kind_are_cut_and_escaped() {
    let long = format!("<html>\u{1b}[31m\n{}</html>", "x".repeat(100_000));
    let error =
        ask(vec![answer("502 Bad Gateway", "content-type: text/html\r\n", &long)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServerError);
    let body = error.context("body").unwrap();
    assert!(body.len() <= 4100 && body.starts_with("<html>\\u{1b}[31m\\n"), "{}", body.len());
    let error = ask(vec![answer("500 Oops", "", "")]).unwrap_err();
    assert_eq!(error.context("body"), None);
    // A key at the edge of the excerpt leaves no half behind.
    let edge = format!("{}{CANARY}", "y".repeat(4 * 1024 - 8));
    assert_no_canary(&ask(vec![answer("500 Oops", "", &edge)]).unwrap_err());
}

#[test]
fn row_10_html_with_status_200_is_no_empty_answer() {
    for kind in ["text/html; charset=utf-8", "text/plain", "application/octet-stream"] {
        let headers = format!("content-type: {kind}\r\n");
        let result = ask(vec![answer("200 OK", &headers, "<html>Log in</html>")]);
        assert_eq!(Outcome::of(&result), Outcome::Transport, "{kind}");
        let error = result.unwrap_err();
        assert!(error.message().starts_with("bad content type"), "{error}");
        assert_eq!(error.context("body"), Some("<html>Log in</html>"));
    }
    for (body, expected) in [("<html>", Outcome::Transport), ("", Outcome::Transport)] {
        assert_eq!(Outcome::of(&ask(vec![answer("200 OK", "", body)])), expected, "{body:?}");
    }
    let chunk = r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
    let untyped = answer("200 OK", "", format!("data: {chunk}\n\ndata: [DONE]\n\n"));
    assert_eq!(ask(vec![untyped]).unwrap().text, "a");
    let document = chunk.replace("delta", "message");
    assert_eq!(ask(vec![answer("200 OK", "", &document)]).unwrap().text, "a");
    assert_eq!(Outcome::of(&ask(vec![json_answer("200 OK", "{\"choices\"")])), Outcome::CutStream);
    assert_eq!(Outcome::of(&ask(vec![json_answer("200 OK", "<html>")])), Outcome::MalformedWire);
}

#[test]
fn row_12_redirects_are_not_followed_and_the_key_stays() {
    for status in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let other = Player::one(vec![json_answer("200 OK", "{}")]);
        let headers = format!("location: http://{}/v1?key=secret\r\n", other.address());
        let player = Player::one(vec![answer(status, &headers, "")]);
        let error = open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transport, "{status}");
        assert!(error.to_string().contains("redirects are not followed"), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
        assert_eq!(other.n_connections(), 0);
        let same = format!("location: {}/other\r\n", player.url());
        let player = Player::one(vec![answer(status, &same, "")]);
        open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
        assert_eq!(player.journal().len(), 1);
    }
}

#[test]
fn row_13_what_cannot_be_reached_says_where_and_why() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = try_open(&format!("http://{free}/v1#m"), json!({})).unwrap();
    let error = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transport);
    assert_eq!(error.retry(), safe(None));
    assert!(
        error
            .message()
            .contains(&format!("nothing listens at {free}; start the server or correct the URL")),
        "{error}"
    );
    let error = try_open("http://no-such-host.invalid/v1#m", json!({})).unwrap_err();
    assert!(error.message().contains("`no-such-host.invalid` cannot be resolved"), "{error}");

    let garbage = Player::one(vec![send("SSH-2.0-OpenSSH_9\r\n")]);
    let error = open(&garbage, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
    assert_eq!(Outcome::of(&Err(error)), Outcome::Transport);
}

#[test]
fn row_14_tls_fails_closed() {
    let plain = Player::one(vec![send("HTTP/1.1 400 Bad Request\r\n\r\n")]);
    let url = format!("https://{}/v1#m", plain.address());
    let backend =
        try_open(&url, json!({"api_key_env": "CANARY_KEY", "connect_timeout_s": 1})).unwrap();
    let error = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Transport | ErrorKind::Timeout), "{error:?}");
    assert_no_canary(&error);
}

#[test]
fn row_18_compressed_bodies_are_refused() {
    let headers = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    let player = Player::one(vec![answer("200 OK", headers, "\x1f")]);
    let error = open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transport);
    assert_eq!(player.journal()[0].header("accept-encoding"), Some("identity"));
}

/// A call ends at its deadline, not before, and at most 100 ms after. The machine may be busy with
/// other tests, so the upper bound has three tries.
#[track_caller]
fn assert_ends_in_time(script: Vec<Act>, options: serde_json::Value, millis: u64, phase: &str) {
    let player = Player::one(script);
    let backend = open(&player, options);
    let deadline = Duration::from_millis(millis);
    let tries: Vec<Duration> = (0..3)
        .map(|_| {
            let start = Instant::now();
            let result = backend.complete_blocking(&Request::user("Hi"));
            let elapsed = start.elapsed();
            assert_eq!(Outcome::of(&result), Outcome::Deadline);
            let error = result.unwrap_err();
            assert_eq!(error.context("phase"), Some(phase));
            assert_no_canary(&error);
            assert!(elapsed >= deadline, "{elapsed:?}");
            elapsed
        })
        .take_while(|&elapsed| elapsed > deadline + Duration::from_millis(100))
        .collect();
    assert!(tries.len() < 3, "{tries:?}");
}

#[test]
fn row_16_39_deadlines_hold_under_every_kind_of_slowness() {
    let drip = |bytes: &str| Act::Drip(bytes.as_bytes().to_vec(), Duration::from_millis(20));
    let pings = ": ping\n\n".repeat(500);
    let total = json!({"timeout_s": 0.4});
    assert_ends_in_time(vec![Act::AwaitClose], total.clone(), 400, "total");
    assert_ends_in_time(
        vec![drip("HTTP/1.1 200 OK\r\nx-long: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy")],
        total.clone(),
        400,
        "total",
    );
    assert_ends_in_time(vec![sse_head(), drip(&pings)], total.clone(), 400, "total");
    assert_ends_in_time(
        vec![Act::AwaitClose],
        json!({"timeout_s": 5, "first_byte_timeout_s": 0.3}),
        300,
        "first_byte",
    );
    assert_ends_in_time(
        vec![sse_head(), Act::AwaitClose],
        json!({"timeout_s": 5, "first_byte_timeout_s": 0.3}),
        300,
        "first_byte",
    );
    assert_ends_in_time(
        vec![sse_head(), send("data: {\"choices\":[]}\n\n"), Act::AwaitClose],
        json!({"timeout_s": 5, "idle_timeout_s": 0.3}),
        300,
        "idle",
    );
    // An error whose body never ends is still the error that its status says.
    let script = vec![send("HTTP/1.1 401 Nope\r\ncontent-length: 99\r\n\r\nxx"), Act::AwaitClose];
    let player = Player::one(script);
    let backend = open(&player, json!({"timeout_s": 0.4}));
    assert_eq!(
        backend.complete_blocking(&Request::user("Hi")).unwrap_err().kind(),
        ErrorKind::Auth
    );
}

#[test]
fn row_40_lines_and_bodies_without_end_are_capped() {
    let mebibyte = vec![b'x'; 1 << 20];
    let result = ask(vec![sse_head(), send("data: "), Act::Repeat(mebibyte.clone(), 100)]);
    assert_eq!(Outcome::of(&result), Outcome::MalformedWire);
    let comments = format!(": {}\n", "c".repeat(1000)).repeat(1000).into_bytes();
    let result = ask(vec![sse_head(), Act::Repeat(comments, 200)]);
    let error = result.unwrap_err();
    assert!(error.message().contains("exceeds 64 MiB"), "{error}");
    let head =
        send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n[");
    let error = ask(vec![head, Act::Repeat(mebibyte, 100)]).unwrap_err();
    assert!(error.message().contains("exceeds 64 MiB"), "{error}");
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(Outcome::of(&ask(vec![json_answer("200 OK", &deep)])), Outcome::MalformedWire);
}

#[test]
fn calls_above_the_limit_wait_their_turn() {
    let body = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;
    let script = vec![Act::Wait(Duration::from_millis(100)), json_answer("200 OK", body)];
    let player = Player::one(script);
    let backend = open(&player, json!({"max_concurrency": 2}));
    assert_eq!(backend.capabilities().max_concurrency, Some(2));
    let start = Instant::now();
    let queues: Vec<Duration> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| backend.complete_blocking(&Request::user("Hi")).unwrap()))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap().timings.queue.unwrap()).collect()
    });
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert!(queues.iter().any(|q| *q >= Duration::from_millis(150)), "{queues:?}");
    weighbridge_core::block_on(backend.close()).unwrap();
    let closed: Result<Completion> = backend.complete_blocking(&Request::user("Hi"));
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Cancelled);
}
