//! Rows 14 and 20 with certificates that are trusted: what else may be wrong with them, and HTTP/2
//! below the answer. Trust comes from the environment, so each call is made in a child.

#![cfg(target_os = "linux")]

use crate::table::rows;

rows!(
    row_14_trusted_certificates_have_to_fit_and_be_valid,
    row_20_http_2_that_breaks_off_or_floods_is_classed,
);

mod checks {
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use weighbridge_core::{BackendExt, EgressScope, Outcome, Request};
    use weighbridge_testkit::player::tls::{Authority, Flaw};
    use weighbridge_testkit::player::{Act, Player, Script, chunked, send};

    use crate::bench::{Wire, child_call, hang, in_child};

    /// In a child: the call. It prints outcome and error.
    fn call(wire: Wire, wanted: Wire, origin: &str) {
        if wanted != wire {
            return;
        }
        let options = json!({"timeout_s": 2, "connect_timeout_s": 2});
        let backend = wire.try_open(origin, options, EgressScope::Loopback).unwrap();
        let result = backend.complete_blocking(&Request::user("Hi"));
        let outcome = Outcome::of(&result);
        let said = result.map_or_else(|error| error.report(), |completion| completion.text);
        println!("child: {} {}", outcome.as_str(), said.replace('\n', " "));
    }

    /// Makes the call of `test` in a child that trusts the authority.
    fn ask(test: &str, wire: Wire, player: &Player, authority: &Authority) -> String {
        let mut trusted = tempfile::NamedTempFile::new().unwrap();
        trusted.write_all(authority.pem().as_bytes()).unwrap();
        let path = trusted.path().to_str().unwrap().to_owned();
        in_child(test, wire, &player.origin(), &[("SSL_CERT_FILE", &path)])
    }

    pub(super) fn row_14_trusted_certificates_have_to_fit_and_be_valid(wire: Wire) {
        if let Some((wanted, origin)) = child_call() {
            return call(wire, wanted, &origin);
        }
        let test = "secure::row_14_trusted_certificates_have_to_fit_and_be_valid";
        let authority = Authority::new();
        let body = wire.whole("Hi");
        for flaw in [Flaw::None, Flaw::Expired, Flaw::WrongHost] {
            let body = body.clone();
            let config = authority.server(flaw, &["http/1.1"]);
            let player = Player::tls(config, move |_, _| chunked(&body));
            let said = ask(test, wire, &player, &authority);
            let n_requests = player.journal().len();
            if flaw == Flaw::None {
                assert_eq!((said.as_str(), n_requests), ("ok Hi", 1), "{wire:?}");
            } else {
                assert!(said.starts_with("transport"), "{wire:?} {flaw:?}: {said}");
                assert_eq!(n_requests, 0, "{wire:?} {flaw:?}: the key was sent");
            }
        }
        // Trusted, but not by us.
        let config = Authority::new().server(Flaw::None, &["http/1.1"]);
        let player = Player::tls(config, move |_, _| chunked(&body));
        let said = ask(test, wire, &player, &authority);
        assert!(said.starts_with("transport"), "{wire:?}: {said}");
        assert_eq!(player.journal().len(), 0, "{wire:?}: the key was sent");
    }

    /// A frame of HTTP/2.
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let n = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&n[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    pub(super) fn row_20_http_2_that_breaks_off_or_floods_is_classed(wire: Wire) {
        if let Some((wanted, origin)) = child_call() {
            return call(wire, wanted, &origin);
        }
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const GOAWAY: u8 = 7;
        const END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;
        const INTERNAL_ERROR: [u8; 4] = [0, 0, 0, 2];
        let test = "secure::row_20_http_2_that_breaks_off_or_floods_is_classed";
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, 1, 0, &[])].concat();
        // `:status: 200` and a content type, in the words of the static table.
        let event_stream = b"text/event-stream";
        let header_block = [&[0x88, 0x0F, 0x10, 17][..], event_stream].concat();
        let head = frame(HEADERS, END_HEADERS, 1, &header_block);
        let begun = frame(DATA, 0, 1, wire.begun("Hi").as_bytes());
        let whole = frame(DATA, END_STREAM, 1, wire.whole("Hi").as_bytes());
        // Until the request is there; an answer to none would be an error of ours.
        let request = || Act::Wait(Duration::from_millis(150));
        let play = |frames: Vec<Vec<u8>>| -> Script {
            let mut script = vec![send(&settings), request()];
            script.extend(frames.into_iter().map(Act::Send));
            script.push(hang());
            script
        };
        let goaway = frame(GOAWAY, 0, 0, &[[0; 4], INTERNAL_ERROR].concat());
        let goaway_mid = frame(GOAWAY, 0, 0, &[[0, 0, 0, 1], INTERNAL_ERROR].concat());
        let reset = frame(RST_STREAM, 0, 1, &INTERNAL_ERROR);
        let mut flood = play(vec![head.clone(), begun.clone()]);
        let empty = frame(DATA, 0, 1, &[]).repeat(1000);
        flood.insert(flood.len() - 1, Act::Repeat(empty, 1_000));
        let cases: [(&str, Script, &[&str]); 6] = [
            ("whole", play(vec![head.clone(), whole]), &["ok Hi"]),
            ("GOAWAY at once", play(vec![goaway]), &["transport"]),
            ("RST_STREAM at once", play(vec![reset.clone()]), &["transport"]),
            (
                "RST_STREAM in the answer",
                play(vec![head.clone(), begun.clone(), reset]),
                &["cut_stream", "transport"],
            ),
            (
                "GOAWAY and end in the answer",
                vec![
                    send(&settings),
                    request(),
                    Act::Send([head, begun, goaway_mid].concat()),
                    Act::Wait(Duration::from_millis(50)),
                ],
                &["cut_stream", "transport"],
            ),
            ("empty DATA without end", flood, &["cut_stream", "transport", "deadline"]),
        ];
        for (what, script, expected) in cases {
            let authority = Authority::new();
            let player = Player::raw_tls(authority.server(Flaw::None, &["h2"]), script);
            let start = Instant::now();
            let said = ask(test, wire, &player, &authority);
            assert!(start.elapsed() < Duration::from_secs(10), "{wire:?}, {what}: no deadline");
            let is_right = expected.iter().any(|outcome| said.starts_with(outcome));
            assert!(is_right, "{wire:?}, {what}: {said}");
            assert!(player.journal()[0].head.starts_with("PRI * HTTP/2.0"), "{wire:?}, {what}");
        }
    }
}
