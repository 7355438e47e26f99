//! Rows 23–31 and 37–41: cuts, framing, damage, and bytes without end.

use crate::table::rows;

rows!(
    row_23_a_clean_end_before_the_terminal_event_is_a_cut_stream,
    row_24_a_reset_mid_stream_is_a_cut_stream,
    row_25_errors_inside_a_200_keep_their_class,
    row_26_every_split_gives_the_same_answer,
    row_27_characters_are_joined_and_invalid_ones_are_damage,
    row_28_line_ends_and_byte_order_marks,
    row_29_comments_ids_and_lines_of_data,
    row_31_broken_json_ends_the_call_with_its_place,
    row_37_events_twice_out_of_order_or_missing,
    row_38_data_after_the_end_is_ignored_and_noted,
    row_40_lines_comments_and_bodies_without_end_are_capped,
    row_41_a_stop_or_a_drop_closes_the_connection_within_a_second,
);

mod checks {
    use std::task::Context;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use weighbridge_core::{
        BackendExt, ErrorKind, Outcome, Request, Retry, StopReason, StopSink, block_on,
    };
    use weighbridge_testkit::player::{Act, Player, chunked_pieces, send, sse_head, stream};

    use crate::bench::{Wire, hang, named};

    pub(super) fn row_23_a_clean_end_before_the_terminal_event_is_a_cut_stream(wire: Wire) {
        let events = wire.events(&["Grüße ", "😀", "!"]);
        let (n_opening, n_whole) = (wire.n_opening(), wire.n_to_whole(3));
        for n in 0..n_whole {
            let result = wire.ask(stream(events[..n].concat()));
            assert_eq!(Outcome::of(&result), Outcome::CutStream, "{wire:?} after {n}: {result:?}");
            // Once something was shown, a repetition would show it twice.
            let retry = if n <= n_opening { Retry::Safe { after: None } } else { Retry::Never };
            assert_eq!(result.unwrap_err().retry(), retry, "{wire:?} after {n} events");
        }
        assert_eq!(wire.ask(stream(events[..n_whole].concat())).unwrap().text, "Grüße 😀!");
        // A last event without its blank line completes nothing.
        let unclosed = events[..n_whole].concat();
        let result = wire.ask(stream(unclosed.trim_end()));
        assert_eq!(Outcome::of(&result), Outcome::CutStream, "{wire:?}: no blank line");
        let result = wire.ask(stream(format!("{}\n", unclosed.trim_end())));
        assert_eq!(Outcome::of(&result), Outcome::CutStream, "{wire:?}: half a blank line");
        assert!(!wire.outcome(stream("data: [DONE]\n\n")).is_scored(), "{wire:?}: only the end");
    }

    pub(super) fn row_24_a_reset_mid_stream_is_a_cut_stream(wire: Wire) {
        let events = wire.events(&["a", "b"]);
        for n in 0..wire.n_to_whole(2) {
            let script = vec![
                sse_head(),
                send(events[..n].concat()),
                Act::Wait(Duration::from_millis(10)),
                Act::Reset,
            ];
            let outcome = wire.outcome(script);
            // Without a byte of content it may as well be called a broken connection.
            let is_right = outcome == Outcome::CutStream || n == 0 && outcome == Outcome::Transport;
            assert!(is_right, "{wire:?} after {n} events: {outcome:?}");
        }
        let silent = vec![sse_head(), send(wire.begun("a")), hang()];
        let result = wire.ask_with(silent, json!({"idle_timeout_s": 0.2}));
        assert_eq!(Outcome::of(&result), Outcome::Deadline, "{wire:?}");
        assert_eq!(result.unwrap_err().retry(), Retry::Never, "{wire:?}: content was shown");
        assert_eq!(wire.outcome(vec![Act::Reset]), Outcome::Transport, "{wire:?}");
    }

    pub(super) fn row_25_errors_inside_a_200_keep_their_class(wire: Wire) {
        // Gateways put any of the five shapes into any of the streams.
        let shapes = [
            (
                json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}),
                Outcome::Overloaded,
            ),
            (
                json!({"type": "error", "code": "server_is_overloaded", "message": "m",
                    "param": null, "sequence_number": 4}),
                Outcome::Overloaded,
            ),
            (
                json!({"type": "response.failed", "sequence_number": 4, "response":
                    {"status": "failed", "error": {"code": "server_error", "message": "m"}}}),
                Outcome::ServerError,
            ),
            (json!({"error": {"message": "m"}}), Outcome::ServerError),
            (json!({"error": {"message": "m", "code": 429}}), Outcome::RateLimited),
            (json!({"error": {"message": "m", "code": "insufficient_quota"}}), Outcome::Quota),
            (
                json!({"error": {"message": "m", "code": 503, "status": "UNAVAILABLE"}}),
                Outcome::Overloaded,
            ),
            (json!({"object": "error", "message": "m"}), Outcome::ServerError),
        ];
        for (error, outcome) in shapes {
            for name in ["", "event: error\n"] {
                for begun in ["", &wire.begun("half ")] {
                    let body = format!("{begun}{name}data: {error}\n\n");
                    let result = wire.ask(stream(body));
                    assert_eq!(Outcome::of(&result), outcome, "{wire:?} {name} {error}");
                    if !begun.is_empty() {
                        assert_eq!(result.unwrap_err().retry(), Retry::Never, "{wire:?} {error}");
                    }
                }
            }
        }
        let error = wire.ask(stream("event: error\ndata: it broke\n\n")).unwrap_err();
        let is_right = matches!(error.kind(), ErrorKind::ServerError | ErrorKind::Protocol);
        assert!(is_right && error.to_string().contains("it broke"), "{wire:?}: {error:?}");
    }

    pub(super) fn row_26_every_split_gives_the_same_answer(wire: Wire) {
        let bytes = wire.whole("Grüße 😀").into_bytes();
        let cuts: Vec<usize> = (1..bytes.len()).step_by(7).collect();
        let mut scripts: Vec<_> =
            cuts.iter().map(|&cut| chunked_pieces([&bytes[..cut], &bytes[cut..]])).collect();
        scripts.push(chunked_pieces(bytes.chunks(1)));
        let n = scripts.len();
        let player = Player::start(scripts);
        let backend = wire.open(&player, json!({}));
        for i in 0..n {
            let completion = backend.complete_blocking(&Request::user("Hi")).unwrap();
            assert_eq!(completion.text, "Grüße 😀", "{wire:?} split {i}");
            assert_eq!(completion.usage.n_generated_tokens, Some(4), "{wire:?} split {i}");
        }
        assert_eq!(player.journal().len(), n);
    }

    pub(super) fn row_27_characters_are_joined_and_invalid_ones_are_damage(wire: Wire) {
        let whole = wire.whole("é😀");
        let middle = whole.find('😀').unwrap();
        for within in 1..4 {
            let (head, tail) = whole.as_bytes().split_at(middle + within);
            let script = chunked_pieces([head, tail]);
            assert_eq!(wire.ask(script).unwrap().text, "é😀", "{wire:?}");
        }
        for bad in [&b"\xFF"[..], b"\xF0\x9F\x98", b"\xC0\xAF", b"\xED\xA0\x80"] {
            let (head, tail) = whole.split_at(middle);
            let body = [head.as_bytes(), bad, tail.as_bytes()].concat();
            let result = wire.ask(stream(body));
            assert_eq!(
                Outcome::of(&result),
                Outcome::MalformedWire,
                "{wire:?} {bad:X?}: {result:?}"
            );
        }
    }

    pub(super) fn row_28_line_ends_and_byte_order_marks(wire: Wire) {
        let whole = wire.whole("Hi");
        let mixed: String = whole
            .split_inclusive('\n')
            .zip(["\r\n", "\n", "\r"].iter().cycle())
            .map(|(line, end)| line.replace('\n', end))
            .collect();
        for body in [
            whole.replace('\n', "\r\n"),
            whole.replace('\n', "\r"),
            format!("\u{FEFF}{whole}"),
            format!("\u{FEFF}{}", whole.replace('\n', "\r\n")),
            mixed,
        ] {
            assert_eq!(wire.ask(stream(&body)).unwrap().text, "Hi", "{wire:?} {body:?}");
        }
        // Carriage return and line feed in two reads, at every place.
        let crlf = whole.replace('\n', "\r\n").into_bytes();
        let pieces = crlf.split_inclusive(|&b| b == b'\r');
        assert_eq!(wire.ask(chunked_pieces(pieces)).unwrap().text, "Hi", "{wire:?}");
    }

    pub(super) fn row_29_comments_ids_and_lines_of_data(wire: Wire) {
        let whole = wire.whole("Hi");
        let busy = whole.replace("\n\n", "\nid: 1\nretry: 10\n\n: OPENROUTER PROCESSING\n\n:\n\n");
        // A JSON document in several lines of data, and none with a space after the colon.
        let lines = whole.replace("{\"", "{\ndata: \"").replace("data: ", "data:");
        for body in [busy, lines, format!(": a\n\n\n\n{whole}")] {
            assert_eq!(wire.ask(stream(&body)).unwrap().text, "Hi", "{wire:?} {body:?}");
        }
    }

    pub(super) fn row_31_broken_json_ends_the_call_with_its_place(wire: Wire) {
        let begun = wire.begun("a");
        let rest = wire.events(&["a"])[wire.n_opening() + 1..].concat();
        for broken in
            ["data: {\"type\": \"x\", \n\n", "data: {]}\n\n", "data: 5\n\n", "data: \"x\"\n\n"]
        {
            let error = wire.ask(stream(format!("{begun}{broken}{rest}"))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{wire:?} {broken:?}: {error:?}");
            let offset = begun.len().to_string();
            assert_eq!(error.context("offset"), Some(offset.as_str()), "{wire:?} {broken:?}");
            assert_eq!(error.retry(), Retry::Never, "{wire:?}: content was shown");
        }
    }

    pub(super) fn row_37_events_twice_out_of_order_or_missing(wire: Wire) {
        let events = wire.events(&["a", "b", "c"]);
        let at = wire.n_opening();
        let mut twice = events.clone();
        twice.insert(at, events[at].clone());
        let mut swapped = events.clone();
        swapped.swap(at, at + 1);
        let mut gapped = events.clone();
        gapped.remove(at + 1);
        for (what, events) in [("twice", twice), ("swapped", swapped), ("gapped", gapped)] {
            let result = wire.ask(stream(events.concat()));
            // Only Responses counts its events; elsewhere texts are taken as they come.
            if wire == Wire::Responses {
                assert_eq!(Outcome::of(&result), Outcome::MalformedWire, "{what}: {result:?}");
            } else {
                let text = result.unwrap().text;
                let sent = match what {
                    "twice" => "aabc",
                    "swapped" => "bac",
                    _ => "ac",
                };
                assert_eq!(text, sent, "{wire:?} {what}");
            }
        }
    }

    pub(super) fn row_38_data_after_the_end_is_ignored_and_noted(wire: Wire) {
        let mut late = wire.events(&["more"]);
        late.drain(..wire.n_opening());
        let body = format!("{}{}", wire.whole("Hi"), late[0]);
        let completion = wire.ask(stream(body)).unwrap();
        assert_eq!(completion.text, "Hi", "{wire:?}");
        assert!(!completion.warnings.is_empty(), "{wire:?}: nothing was noted");
        // The connection is not used again: what comes on it might belong to this answer.
        let whole = wire.whole("Hi");
        let player = Player::start(vec![chunked_pieces([whole.as_str(), ": more\n\n"])]);
        let backend = wire.open(&player, json!({}));
        for _ in 0..3 {
            assert_eq!(backend.complete_blocking(&Request::user("Hi")).unwrap().text, "Hi");
        }
        assert_eq!(player.journal().len(), 3, "{wire:?}");
    }

    pub(super) fn row_40_lines_comments_and_bodies_without_end_are_capped(wire: Wire) {
        let mebibyte = vec![b'x'; 1 << 20];
        let line = vec![sse_head(), send("data: "), Act::Repeat(mebibyte.clone(), 100)];
        assert_eq!(wire.outcome(line), Outcome::MalformedWire, "{wire:?}: a line of 100 MiB");
        let comments = format!(": {}\n", "c".repeat(1000)).repeat(1000).into_bytes();
        let error = wire.ask(vec![sse_head(), Act::Repeat(comments, 200)]).unwrap_err();
        assert!(error.message().contains("exceeds 64 MiB"), "{wire:?}: {error}");
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n[";
        let error = wire.ask(vec![send(head), Act::Repeat(mebibyte, 100)]).unwrap_err();
        assert!(error.message().contains("exceeds 64 MiB"), "{wire:?}: {error}");
        let deep = format!("data: {}1{}\n\n", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(wire.outcome(stream(deep)), Outcome::MalformedWire, "{wire:?}: depth");
        // Pings keep a connection alive and not a call.
        let ping = if wire == Wire::Messages {
            named(&json!({"type": "ping"}))
        } else {
            ": ping\n\n".to_owned()
        };
        let drip = Act::Drip(ping.repeat(500).into_bytes(), Duration::from_millis(2));
        let start = Instant::now();
        let result = wire.ask_with(vec![sse_head(), drip], json!({"timeout_s": 0.4}));
        assert_eq!(Outcome::of(&result), Outcome::Deadline, "{wire:?}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }

    pub(super) fn row_41_a_stop_or_a_drop_closes_the_connection_within_a_second(wire: Wire) {
        let begun = vec![sse_head(), send(wire.begun("a")), hang()];
        let player = Player::one(begun.clone());
        let backend = wire.open(&player, json!({}));
        let mut sink = StopSink::after_texts(1);
        let completion = block_on(backend.generate(&Request::user("Hi"), &mut sink)).unwrap();
        let stopped = Instant::now();
        assert_eq!(completion.stop_reason, StopReason::Cancelled, "{wire:?}");
        assert_eq!(completion.text, "a", "{wire:?}: what was told is kept");
        if wire == Wire::Messages {
            // Its count of the prompt comes first.
            assert_eq!(completion.usage.n_prompt_tokens, Some(9));
        }
        let closed = player.closed_at(Duration::from_secs(5)).expect("never closed");
        assert!(closed.saturating_duration_since(stopped) < Duration::from_secs(1), "{wire:?}");

        for script in [begun, vec![hang()], vec![sse_head(), hang()]] {
            let player = Player::one(script);
            let backend = wire.open(&player, json!({}));
            let mut stream = backend.stream(Request::user("Hi"));
            let mut context = Context::from_waker(std::task::Waker::noop());
            let deadline = Instant::now() + Duration::from_secs(10);
            while player.journal().is_empty() && Instant::now() < deadline {
                let next = futures_util::StreamExt::next(&mut stream);
                let _ = std::pin::pin!(next).poll(&mut context);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(player.journal().len(), 1, "{wire:?}");
            drop(stream);
            let dropped = Instant::now();
            let closed = player.closed_at(Duration::from_secs(5)).expect("never closed");
            assert!(closed.saturating_duration_since(dropped) < Duration::from_secs(1), "{wire:?}");
        }
    }
}
