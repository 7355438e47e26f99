//! Rows 7–14, 16, 18 and 19: refusals, wrong content, connections.

use crate::table::rows;

rows!(
    row_07_a_refused_key_is_one_request_and_never_shown,
    row_08_a_refused_request_is_one_request_with_its_reason,
    row_09_error_bodies_of_any_kind_are_classed_by_status,
    row_10_a_wrong_content_type_is_no_empty_answer,
    row_11_a_document_for_a_stream_and_the_reverse,
    row_12_redirects_are_not_followed_and_the_key_stays,
    row_13_what_cannot_be_reached_says_why_in_time,
    row_14_tls_fails_closed,
    row_16_headers_that_never_come_end_at_the_deadline,
    row_18_compressed_bodies_never_pass_the_caps,
    row_19_wrong_lengths_and_chunks_are_no_answer,
);

mod checks {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use weighbridge_core::{BackendExt, EgressScope, ErrorKind, Outcome, Request, Retry};
    use weighbridge_testkit::player::tls::{Authority, Flaw};
    use weighbridge_testkit::player::{Act, Player, answer, gzip_bomb, json as json_answer, send};

    use crate::bench::{CANARY, Wire, assert_no_canary, hang};

    /// One request with this refusal; its error.
    #[track_caller]
    fn refused(wire: Wire, status: &str, code: &str) -> weighbridge_core::Error {
        let number = status[..3].parse().unwrap();
        let echo = format!("because of {CANARY}");
        let player =
            Player::one(vec![json_answer(status, &wire.refusal(number, code, &echo).to_string())]);
        let error =
            wire.open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
        let journal = player.journal();
        assert_eq!(journal.len(), 1, "{wire:?} {status}: one request");
        let (name, value) = wire.key_header();
        assert_eq!(journal[0].header(name), Some(value.as_str()), "{wire:?}");
        assert!(!journal[0].path().contains("key"), "{}", journal[0].path());
        assert!(error.to_string().contains("because of [redacted]"), "{error}");
        assert_eq!(error.context("status"), Some(&status[..3]));
        assert_eq!(error.retry(), Retry::Never, "{wire:?} {status}");
        assert_no_canary(&error);
        error
    }

    pub(super) fn row_07_a_refused_key_is_one_request_and_never_shown(wire: Wire) {
        for (status, code) in [("401 Unauthorized", "invalid"), ("403 Forbidden", "denied")] {
            let error = refused(wire, status, code);
            assert_eq!(error.kind(), ErrorKind::Auth, "{wire:?} {status}");
            assert!(error.to_string().contains("`CANARY_KEY`"), "{error}");
        }
    }

    pub(super) fn row_08_a_refused_request_is_one_request_with_its_reason(wire: Wire) {
        for (status, kind) in [
            ("400 Bad Request", ErrorKind::InvalidRequest),
            ("404 Not Found", ErrorKind::NotFound),
            ("413 Content Too Large", ErrorKind::InvalidRequest),
            ("422 Unprocessable Content", ErrorKind::InvalidRequest),
        ] {
            assert_eq!(refused(wire, status, "nope").kind(), kind, "{wire:?} {status}");
        }
    }

    pub(super) fn row_09_error_bodies_of_any_kind_are_classed_by_status(wire: Wire) {
        let html = format!("<html>\u{1b}[31m\n{}</html>", "x".repeat(100_000));
        for (body, media) in
            [(html.as_str(), "text/html"), ("", "text/plain"), ("not { json", "application/json")]
        {
            for (status, outcome) in [
                ("502 Bad Gateway", Outcome::ServerError),
                ("503 Service Unavailable", Outcome::Overloaded),
                ("429 Too Many Requests", Outcome::RateLimited),
                ("401 Unauthorized", Outcome::Auth),
            ] {
                let headers = format!("content-type: {media}\r\n");
                let result = wire.ask(vec![answer(status, &headers, body)]);
                assert_eq!(Outcome::of(&result), outcome, "{wire:?} {status} {media}");
                let error = result.unwrap_err();
                let excerpt = error.context("body").unwrap_or_default();
                assert!(excerpt.len() <= 4 * 1024 + 3, "{} bytes", excerpt.len());
                assert!(!excerpt.contains(['\u{1b}', '\n']), "{excerpt}");
                assert_eq!(excerpt.is_empty(), body.is_empty(), "{wire:?} {status} {media}");
            }
        }
        // A key at the edge of the excerpt leaves no half behind; `ask` looks for it.
        let edge = format!("{}{CANARY}", "y".repeat(4 * 1024 - 8));
        wire.ask(vec![answer("500 Oops", "", edge)]).unwrap_err();
    }

    pub(super) fn row_10_a_wrong_content_type_is_no_empty_answer(wire: Wire) {
        for media in ["text/html; charset=utf-8", "text/plain", "application/octet-stream"] {
            for body in ["<html>Log in</html>", ""] {
                let headers = format!("content-type: {media}\r\n");
                let result = wire.ask(vec![answer("200 OK", &headers, body)]);
                assert_eq!(Outcome::of(&result), Outcome::Transport, "{wire:?} {media} {body}");
                let error = result.unwrap_err();
                assert!(error.message().starts_with("bad content type"), "{error}");
            }
        }
        // Not even a whole answer is read from a body that is said to be something else.
        let headers = "content-type: text/html\r\n";
        let body = wire.whole("Hi");
        assert_eq!(wire.outcome(vec![answer("200 OK", headers, &body)]), Outcome::Transport);
        assert_eq!(wire.outcome(vec![answer("200 OK", "", "<html>")]), Outcome::Transport);
        assert_eq!(wire.outcome(vec![answer("200 OK", "", "")]), Outcome::Transport);
        let json_type = "content-type: application/json\r\n";
        let html_as_json = wire.outcome(vec![answer("200 OK", json_type, "<html>")]);
        assert_eq!(html_as_json, Outcome::MalformedWire, "{wire:?}");
        let sse_type = "content-type: text/event-stream\r\n";
        let html_as_stream = wire.outcome(vec![answer("200 OK", sse_type, "<html></html>")]);
        assert_eq!(html_as_stream, Outcome::CutStream, "{wire:?}");
    }

    pub(super) fn row_11_a_document_for_a_stream_and_the_reverse(wire: Wire) {
        let document = wire.document("Hi").to_string();
        let completion = wire.ask(vec![json_answer("200 OK", &document)]).unwrap();
        assert_eq!(completion.text, "Hi", "{wire:?}");
        assert_eq!(completion.usage.n_prompt_tokens, Some(9), "{wire:?}");
        let stream = wire.events(&["Hi"]).concat();
        let headers = "content-type: text/event-stream\r\n";
        let script = vec![answer("200 OK", headers, &stream)];
        let completion = wire.ask_with(script, json!({"stream": false})).unwrap();
        assert_eq!(completion.text, "Hi", "{wire:?}");
        // Half a document is no answer, whole documents of another protocol neither.
        let half = &document[..document.len() / 2];
        assert_eq!(wire.outcome(vec![json_answer("200 OK", half)]), Outcome::CutStream);
        for other in [json!({"ok": true}), json!([]), json!("Hi"), json!(null), json!({})] {
            let outcome = wire.outcome(vec![json_answer("200 OK", &other.to_string())]);
            let is_right = matches!(outcome, Outcome::MalformedWire | Outcome::CutStream);
            assert!(is_right, "{wire:?} {other}: {outcome:?}");
        }
    }

    pub(super) fn row_12_redirects_are_not_followed_and_the_key_stays(wire: Wire) {
        for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
        {
            let other = Player::one(vec![json_answer("200 OK", "{}")]);
            let location = format!("location: {}/v1?key=secret\r\n", other.origin());
            let player = Player::one(vec![answer(status, &location, "")]);
            let error =
                wire.open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Transport, "{wire:?} {status}");
            assert!(error.to_string().contains("redirects are not followed"), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
            assert_eq!((player.journal().len(), other.n_connections()), (1, 0), "{wire:?}");
            assert_no_canary(&error);

            let same = "location: /elsewhere\r\n";
            let player = Player::one(vec![answer(status, same, "")]);
            wire.open(&player, json!({})).complete_blocking(&Request::user("Hi")).unwrap_err();
            assert_eq!(player.journal().len(), 1, "{wire:?} {status} to the same host");
        }
    }

    pub(super) fn row_13_what_cannot_be_reached_says_why_in_time(wire: Wire) {
        let request = Request::user("Hi");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let backend =
            wire.try_open(&format!("http://{free}"), json!({}), EgressScope::Loopback).unwrap();
        let refused = backend.complete_blocking(&request).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Transport);
        assert_eq!(refused.retry(), Retry::Safe { after: None });
        assert!(refused.message().contains(&format!("nothing listens at {free}")), "{refused}");

        let unknown =
            wire.try_open("https://no-such-host.invalid", json!({}), EgressScope::Network);
        let unknown = unknown.and_then(|backend| backend.complete_blocking(&request)).unwrap_err();
        assert!(
            unknown.message().contains("`no-such-host.invalid` cannot be resolved"),
            "{unknown}"
        );

        // An address of documentation: no route, no answer, or a firewall that refuses.
        let options = json!({"connect_timeout_s": 0.3, "api_key_env": ""});
        let start = Instant::now();
        let backend = wire.try_open("http://192.0.2.1:9", options, EgressScope::Network).unwrap();
        let far = backend.complete_blocking(&request).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(far.message().contains("192.0.2.1:9"), "{far}");
        assert!(matches!(far.kind(), ErrorKind::Transport | ErrorKind::Timeout), "{far:?}");
        for error in [refused, unknown, far] {
            assert_no_canary(&error);
        }
    }

    pub(super) fn row_14_tls_fails_closed(wire: Wire) {
        let ask = |player: &Player, what: &str| {
            let origin = format!("https://{}", player.address());
            let options = json!({"connect_timeout_s": 0.5});
            let backend = wire.try_open(&origin, options, EgressScope::Loopback).unwrap();
            let start = Instant::now();
            let error = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
            let is_known = matches!(error.kind(), ErrorKind::Transport | ErrorKind::Timeout);
            assert!(is_known, "{wire:?} {what}: {error:?}");
            assert!(start.elapsed() < Duration::from_secs(3), "{what}: {:?}", start.elapsed());
            assert_no_canary(&error);
            error
        };
        // Good but for its authority. With a trusted one: `tls.rs`.
        let unknown =
            Player::tls(Authority::new().server(Flaw::None, &["http/1.1"]), |_, _| vec![]);
        assert!(ask(&unknown, "unknown authority").message().contains("no secure connection"));
        assert_eq!(unknown.journal().len(), 0, "{wire:?}: nothing was sent");
        ask(&Player::raw(vec![hang()]), "stall");
        ask(&Player::raw(vec![send([0x16, 3, 1, 255, 255, 0, 1, 2, 3])]), "garbage");
        ask(&Player::raw(vec![send("HTTP/1.1 400 Bad Request\r\n\r\n")]), "plain http");
        ask(&Player::raw(vec![Act::Reset]), "reset");
    }

    pub(super) fn row_16_headers_that_never_come_end_at_the_deadline(wire: Wire) {
        let options = json!({"timeout_s": 5, "first_byte_timeout_s": 0.3});
        for script in
            [vec![hang()], vec![send("HTTP/1.1 200 OK\r\ncontent-type: text/event-str"), hang()]]
        {
            let start = Instant::now();
            let result = wire.ask_with(script, options.clone());
            assert_eq!(Outcome::of(&result), Outcome::Deadline, "{wire:?}");
            assert_eq!(result.unwrap_err().context("phase"), Some("first_byte"));
            // How exact deadlines are is measured in `deadlines.rs`.
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
    }

    pub(super) fn row_18_compressed_bodies_never_pass_the_caps(wire: Wire) {
        let media = "content-type: text/event-stream\r\n";
        for encoding in ["gzip", "br", "zstd", "deflate", "x-novel", "gzip, gzip"] {
            let headers = format!("{media}content-encoding: {encoding}\r\n");
            let script = vec![answer("200 OK", &headers, [0x1F, 0x8B, 8, 0])];
            // Damaged or not asked for: never an answer, never the model's fault.
            let outcome = wire.outcome(script);
            assert!(
                matches!(outcome, Outcome::Transport | Outcome::MalformedWire),
                "{wire:?} {encoding}: {outcome:?}"
            );
        }
        for media in ["text/event-stream", "application/json"] {
            let result = wire.ask(gzip_bomb(media, 300));
            assert!(!Outcome::of(&result).is_scored(), "{wire:?}: {result:?}");
        }
        let identity = format!("{media}content-encoding: identity\r\n");
        let whole = wire.whole("Hi");
        assert_eq!(wire.ask(vec![answer("200 OK", &identity, whole)]).unwrap().text, "Hi");
    }

    pub(super) fn row_19_wrong_lengths_and_chunks_are_no_answer(wire: Wire) {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let begun = wire.begun("a");
        let whole = wire.whole("a");
        let n = begun.len();
        for (what, script) in [
            ("length too long", format!("{head}content-length: {}\r\n\r\n{begun}", n + 99)),
            ("length too short", format!("{head}content-length: {n}\r\n\r\n{whole}")),
            ("length no number", format!("{head}content-length: many\r\n\r\n{whole}")),
            (
                "two lengths",
                format!("{head}content-length: {n}\r\ncontent-length: 5\r\n\r\n{whole}"),
            ),
            (
                "no last chunk",
                format!("{head}transfer-encoding: chunked\r\n\r\n{n:x}\r\n{begun}\r\n"),
            ),
            ("chunk no number", format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{whole}")),
            (
                "chunk too large",
                format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{begun}", n + 50),
            ),
            (
                "huge chunk size",
                format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{whole}"),
            ),
            (
                "chunk without end",
                format!("{head}transfer-encoding: chunked\r\n\r\n{n:x}\r\n{begun}XX0\r\n\r\n"),
            ),
        ] {
            let result = wire.ask(vec![send(script)]);
            assert!(
                matches!(Outcome::of(&result), Outcome::Transport | Outcome::CutStream),
                "{wire:?}, {what}: {result:?}"
            );
        }
        // A whole answer with trailers, and one whose connection fails after its end.
        let trailers = format!(
            "{head}transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n{:x}\r\n{whole}\r\n0\r\n\
             x-sum: 1\r\n\r\n",
            whole.len()
        );
        let late = format!("{head}content-length: {}\r\n\r\n{whole}", whole.len() + 99);
        for script in [trailers, late] {
            assert_eq!(wire.ask(vec![send(script)]).unwrap().text, "a", "{wire:?}");
        }
    }
}
