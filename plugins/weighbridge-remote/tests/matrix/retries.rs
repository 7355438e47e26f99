//! Rows 1–6, 15, 17, 21 and 22: refusals for now, hints, outages and proxies. Models are asked as
//! runs and production ask them, through `weighbridge::Retrying`.

use crate::table::rows;

rows!(
    row_01_a_hint_is_waited_for_and_other_models_go_on,
    row_02_hints_in_every_form_are_read_safely,
    row_03_a_long_hint_ends_the_call_with_its_hint,
    row_04_a_used_up_quota_is_one_request,
    row_05_an_overload_opens_the_circuit_until_a_probe_is_answered,
    row_06_failures_of_the_service_are_tried_again,
    row_15_a_pooled_connection_that_closes_is_noted_and_tried_again,
    row_17_proxies_of_the_environment_are_ignored,
    row_21_dates_are_read_against_the_date_of_the_answer,
    row_22_an_outage_costs_at_most_a_tenth_more_attempts,
);

mod checks {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};
    use weighbridge::{RetryPolicy, Retrying};
    use weighbridge_core::{BackendExt, Outcome, Request, Retry};
    use weighbridge_testkit::player::{Act, Player, Script, answer, chunked, json as json_answer};

    use crate::bench::{CANARY, Wire, assert_no_canary, child_call, in_child};

    fn retrying(wire: Wire, player: &Player, change: impl FnOnce(&mut RetryPolicy)) -> Retrying {
        let mut policy = RetryPolicy::default();
        change(&mut policy);
        Retrying::new(wire.open(player, json!({}))).with_policy(policy)
    }

    fn whole(wire: Wire) -> Script {
        chunked(wire.whole("Hi"))
    }

    fn refusal(wire: Wire, status: &str, headers: &str) -> Script {
        let body = wire.refusal(status[..3].parse().unwrap(), "code", "message").to_string();
        vec![answer(status, &format!("content-type: application/json\r\n{headers}"), body)]
    }

    /// A refusal with a hint as this vendor gives it.
    fn hinted(wire: Wire, seconds: &str) -> Script {
        let status = "429 Too Many Requests";
        if wire != Wire::Gemini {
            return refusal(wire, status, &format!("retry-after: {seconds}\r\n"));
        }
        let body = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
                {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{seconds}s")},
        ]}});
        vec![json_answer(status, &body.to_string())]
    }

    pub(super) fn row_01_a_hint_is_waited_for_and_other_models_go_on(wire: Wire) {
        let player = Player::start(vec![hinted(wire, "0.5"), whole(wire)]);
        let limited = retrying(wire, &player, |_| {});
        let other_player = Player::one(whole(wire));
        let other = retrying(wire, &other_player, |_| {});
        let start = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| limited.complete_blocking(&Request::user("Hi")).unwrap());
            other.complete_blocking(&Request::user("Hi")).unwrap();
            assert!(start.elapsed() < Duration::from_millis(450), "{wire:?}: the other one waited");
            assert_eq!(waiting.join().unwrap().text, "Hi");
        });
        let journal = player.journal();
        assert_eq!(journal.len(), 2, "{wire:?}");
        let waited = journal[1].received - journal[0].received;
        assert!(waited >= Duration::from_millis(500), "{wire:?}: waited {waited:?}");
        assert!(waited < Duration::from_secs(3), "{wire:?}: waited {waited:?}");
    }

    pub(super) fn row_02_hints_in_every_form_are_read_safely(wire: Wire) {
        const DATE: &str = "date: Wed, 21 Oct 2015 07:28:00 GMT\r\n";
        /// What may be made of a hint.
        enum Read {
            Millis(u64),
            /// None, or nothing to wait for.
            Own,
            /// None, or one that is too long to be sat through.
            OwnOrLong,
        }
        use Read::{Millis, Own, OwnOrLong};
        let seconds = |value: &str| format!("retry-after: {value}\r\n");
        let cases = [
            (seconds("1"), Millis(1000)),
            (seconds("007"), Millis(7000)),
            (seconds("2.5"), Millis(2500)),
            (seconds("0.25"), Millis(250)),
            (seconds("  3  "), Millis(3000)),
            (seconds("59.999"), Millis(59_999)),
            (seconds("3600"), Millis(3_600_000)),
            (seconds("0"), Own),
            (seconds("0.0"), Own),
            (seconds("-0"), Own),
            (seconds("-1"), Own),
            (seconds("-1e9"), Own),
            (seconds("NaN"), Own),
            (seconds("nan"), Own),
            (seconds("inf"), OwnOrLong),
            (seconds("-inf"), Own),
            (seconds("infinity"), OwnOrLong),
            (seconds("1e400"), OwnOrLong),
            (seconds("1e308"), OwnOrLong),
            (seconds("99999999999999999999"), OwnOrLong),
            (seconds("18446744073709551616"), OwnOrLong),
            (seconds(""), Own),
            (seconds("soon"), Own),
            (seconds("0x10"), Own),
            (seconds("1,5"), Own),
            (seconds("1 2"), Own),
            (seconds("\u{661}"), Own),
            (seconds("Wed, 21 Oct 2015 07:28:03 GMT") + DATE, Millis(3000)),
            (seconds("Wednesday, 21-Oct-15 07:28:03 GMT") + DATE, Millis(3000)),
            (seconds("Wed Oct 21 07:28:03 2015") + DATE, Millis(3000)),
            (seconds("Wed, 21 Oct 2015 07:27:00 GMT") + DATE, Own),
            (seconds("Wed, 21 Oct 2015 07:28:00 GMT") + DATE, Own),
            (seconds("Wed, 21 Oct 9999 07:28:00 GMT") + DATE, OwnOrLong),
            (seconds("Wed, 32 Oct 2015 07:28:00 GMT") + DATE, Own),
            (seconds("Mon, 01 Jan 1900 00:00:00 GMT"), Own),
            (seconds("soon") + "retry-after: 4\r\n", Own),
            ("retry-after-ms: 70\r\n".to_owned(), Millis(70)),
            ("retry-after-ms: 70\r\nretry-after: 9\r\n".to_owned(), Millis(70)),
            ("retry-after-ms: NaN\r\nretry-after: 9\r\n".to_owned(), Millis(9000)),
            ("retry-after-ms: -5\r\n".to_owned(), Own),
            ("retry-after-ms: 1e400\r\n".to_owned(), OwnOrLong),
        ];
        let n = cases.len();
        assert!(n >= 40, "{n} forms");
        for (headers, expected) in &cases {
            // An origin of its own: a hint holds back every later call there.
            let player = Player::one(refusal(wire, "429 Too Many Requests", headers));
            let backend = wire.open(&player, json!({}));
            let result = backend.complete_blocking(&Request::user("Hi"));
            assert_eq!(Outcome::of(&result), Outcome::RateLimited, "{wire:?} {headers}");
            assert_eq!(player.journal().len(), 1, "{wire:?} {headers}");
            let Retry::Safe { after } = result.unwrap_err().retry() else {
                panic!("{wire:?} {headers}: not to be tried again");
            };
            let is_right = match expected {
                Millis(millis) => after == Some(Duration::from_millis(*millis)),
                Own => after.unwrap_or_default().is_zero(),
                OwnOrLong => after.is_none_or(|after| after > Duration::from_secs(60)),
            };
            assert!(is_right, "{wire:?} {headers}: {after:?}");
        }
    }

    pub(super) fn row_03_a_long_hint_ends_the_call_with_its_hint(wire: Wire) {
        for (seconds, hint) in [("3600", 3_600), ("36000", 36_000)] {
            let player = Player::start(vec![hinted(wire, seconds), whole(wire)]);
            let start = Instant::now();
            let result = retrying(wire, &player, |_| {}).complete_blocking(&Request::user("Hi"));
            assert!(start.elapsed() < Duration::from_secs(2), "{wire:?}: slept silently");
            assert_eq!(Outcome::of(&result), Outcome::RateLimited, "{wire:?}");
            let after = Some(Duration::from_secs(hint));
            assert_eq!(result.unwrap_err().retry(), Retry::Safe { after }, "{wire:?}");
            assert_eq!(player.journal().len(), 1, "{wire:?}");
        }
        if wire == Wire::Gemini {
            let prose = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED",
                "message": "You exceeded your quota. Please retry in 10h17m5.7s."}});
            let script = vec![json_answer("429 Too Many Requests", &prose.to_string())];
            let Retry::Safe { after: Some(after) } = wire.ask(script).unwrap_err().retry() else {
                panic!("the prose was not read");
            };
            assert_eq!(after, Duration::from_millis(37_025_700));
        }
    }

    pub(super) fn row_04_a_used_up_quota_is_one_request(wire: Wire) {
        let mut refusals: Vec<(&str, Value)> =
            vec![("402 Payment Required", wire.refusal(402, "billing_error", "no credit"))];
        match wire {
            Wire::Chat | Wire::Responses => {
                for code in [
                    "insufficient_quota",
                    "credit_balance_exhausted",
                    "organization_spend_limit_exceeded",
                    "project_spend_limit_exceeded",
                    "organization_usage_limit_exceeded",
                ] {
                    refusals.push(("429 Too Many Requests", wire.refusal(429, code, "m")));
                }
            }
            Wire::Messages => refusals.push((
                "429 Too Many Requests",
                json!({"type": "error", "request_id": "r", "error": {"type": "rate_limit_error",
                    "message": "m", "details": {"error_code": "enforced_spend_limit_reached"}}}),
            )),
            Wire::Gemini => refusals.push((
                "429 Too Many Requests",
                json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message":
                    "Quota exceeded for metric: generate_content_free_tier_requests, limit: 0"}}),
            )),
        }
        for (status, body) in refusals {
            let script = vec![json_answer(status, &body.to_string())];
            let player = Player::start(vec![script, whole(wire)]);
            let model = retrying(wire, &player, |_| {});
            let result = model.complete_blocking(&Request::user("Hi"));
            assert_eq!(Outcome::of(&result), Outcome::Quota, "{wire:?} {status} {body}");
            let error = result.unwrap_err();
            assert_eq!(error.retry(), Retry::Never, "{wire:?} {status} {body}");
            assert_eq!(player.journal().len(), 1, "{wire:?} {status} {body}");
            assert_no_canary(&error);
        }
    }

    pub(super) fn row_05_an_overload_opens_the_circuit_until_a_probe_is_answered(wire: Wire) {
        for status in ["503 Service Unavailable", "529 Overloaded"] {
            let once = Player::start(vec![refusal(wire, status, ""), whole(wire)]);
            let completion =
                retrying(wire, &once, |_| {}).complete_blocking(&Request::user("Hi")).unwrap();
            assert_eq!(completion.text, "Hi", "{wire:?} {status}");
            assert_eq!(once.journal().len(), 2, "{wire:?} {status}");
        }
        // Five failures in a row; then whoever will not wait is not let through.
        let mut scripts = vec![refusal(wire, "529 Overloaded", ""); 5];
        scripts.push(whole(wire));
        let player = Player::start(scripts);
        let model = retrying(wire, &player, |policy| {
            policy.max_attempts = 1;
            policy.patience = Duration::ZERO;
        });
        let outcome = || Outcome::of(&model.complete_blocking(&Request::user("Hi")));
        for n in 1..=5 {
            assert_eq!(outcome(), Outcome::Overloaded, "{wire:?}");
            assert_eq!(player.journal().len(), n, "{wire:?}");
        }
        for _ in 0..20 {
            assert_eq!(outcome(), Outcome::Overloaded, "{wire:?}: the circuit is open");
        }
        assert_eq!(player.journal().len(), 5, "{wire:?}: nothing was asked");
        std::thread::sleep(Duration::from_millis(1_100));
        assert_eq!(outcome(), Outcome::Ok, "{wire:?}: the probe was answered");
        assert_eq!(outcome(), Outcome::Ok, "{wire:?}: the circuit is closed");
        assert_eq!(player.journal().len(), 7, "{wire:?}");
    }

    pub(super) fn row_06_failures_of_the_service_are_tried_again(wire: Wire) {
        for status in [
            "500 Internal Server Error",
            "502 Bad Gateway",
            "504 Gateway Timeout",
            "408 Request Timeout",
            "409 Conflict",
        ] {
            let player = Player::start(vec![refusal(wire, status, ""), whole(wire)]);
            let completion =
                retrying(wire, &player, |_| {}).complete_blocking(&Request::user("Hi")).unwrap();
            assert_eq!(completion.text, "Hi", "{wire:?} {status}");
            let journal = player.journal();
            assert_eq!(journal.len(), 2, "{wire:?} {status}");
            assert_eq!(journal[0].body, journal[1].body, "{wire:?}: the same call");
        }
    }

    pub(super) fn row_15_a_pooled_connection_that_closes_is_noted_and_tried_again(wire: Wire) {
        let scripts = || vec![whole(wire), vec![Act::Reset], whole(wire)];
        let player = Player::start(scripts());
        let backend = wire.open(&player, json!({}));
        let request = Request::user("Hi");
        backend.complete_blocking(&request).unwrap();
        let error = backend.complete_blocking(&request).unwrap_err();
        assert_eq!(error.context("maybe_sent"), Some("true"), "{wire:?}: {error:?}");
        assert_eq!(error.retry(), Retry::Safe { after: None }, "{wire:?}");
        let journal = player.journal();
        assert_eq!(journal.len(), 2, "{wire:?}: nothing was sent again unseen");
        assert_eq!(journal[0].connection, journal[1].connection, "{wire:?}: it was a pooled one");

        let player = Player::start(scripts());
        let model = retrying(wire, &player, |_| {});
        model.complete_blocking(&request).unwrap();
        assert_eq!(model.complete_blocking(&request).unwrap().text, "Hi", "{wire:?}");
        assert_eq!(player.journal().len(), 3, "{wire:?}");
    }

    pub(super) fn row_17_proxies_of_the_environment_are_ignored(wire: Wire) {
        if let Some((wanted, origin)) = child_call() {
            if wanted == wire {
                let scope = weighbridge_core::EgressScope::Loopback;
                let backend = wire.try_open(&origin, json!({}), scope).unwrap();
                let result = backend.complete_blocking(&Request::user("Hi"));
                println!("child: {}", Outcome::of(&result).as_str());
            }
            return;
        }
        let player = Player::one(whole(wire));
        let proxy = Player::one(vec![answer("407 Proxy Authentication Required", "", CANARY)]);
        let address = proxy.origin();
        let names =
            ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        let variables = names.map(|name| (name, address.as_str()));
        let test = "retries::row_17_proxies_of_the_environment_are_ignored";
        assert_eq!(in_child(test, wire, &player.origin(), &variables), "ok", "{wire:?}");
        assert_eq!((player.journal().len(), proxy.n_connections()), (1, 0), "{wire:?}");

        // A proxy in the way all the same: what it says is not the model's.
        let denied = vec![answer("407 Proxy Authentication Required", "", CANARY)];
        assert!(!wire.outcome(denied).is_scored(), "{wire:?}");
        let stripped = vec![answer("200 OK", "content-type: text/plain\r\n", wire.whole("Hi"))];
        assert_eq!(wire.outcome(stripped), Outcome::Transport, "{wire:?}: type taken away");
        let buffered = [vec![Act::Wait(Duration::from_secs(5))], whole(wire)].concat();
        let options = json!({"first_byte_timeout_s": 1});
        let result = wire.ask_with(buffered, options);
        assert_eq!(Outcome::of(&result), Outcome::Deadline, "{wire:?}: held back");
    }

    pub(super) fn row_21_dates_are_read_against_the_date_of_the_answer(wire: Wire) {
        // The server's clock is a day behind, a day ahead, and decades off.
        let day = Duration::from_secs(86_400);
        let now = std::time::SystemTime::now();
        for clock in [now - day, now + day, std::time::UNIX_EPOCH + day] {
            let date = httpdate::fmt_http_date(clock);
            let until = httpdate::fmt_http_date(clock + Duration::from_secs(7));
            let headers = format!("date: {date}\r\nretry-after: {until}\r\n");
            let result = wire.ask(refusal(wire, "503 Service Unavailable", &headers));
            let after = Some(Duration::from_secs(7));
            assert_eq!(result.unwrap_err().retry(), Retry::Safe { after }, "{wire:?} {headers}");
        }
    }

    pub(super) fn row_22_an_outage_costs_at_most_a_tenth_more_attempts(wire: Wire) {
        const N_CALLS: usize = 120;
        let player = Player::one(refusal(wire, "503 Service Unavailable", ""));
        let model = Arc::new(retrying(wire, &player, |policy| policy.patience = Duration::ZERO));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let model = Arc::clone(&model);
                scope.spawn(move || {
                    for _ in 0..N_CALLS / 8 {
                        let result = model.complete_blocking(&Request::user("Hi"));
                        assert_eq!(Outcome::of(&result), Outcome::Overloaded, "{wire:?}");
                    }
                });
            }
        });
        let n_attempts = player.journal().len();
        assert!(n_attempts >= 5, "{wire:?}: the circuit opens after five");
        assert!(n_attempts * 10 <= N_CALLS * 11, "{wire:?}: {n_attempts} attempts");
    }
}
