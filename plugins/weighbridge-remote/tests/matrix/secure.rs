//! Rows 14 and 20 with certificates that are trusted: what else may be wrong with them, and what
//! goes wrong below the answer. Trust comes from the environment, so each call is made in a child.

#![cfg(target_os = "linux")]

use crate::table::rows;

rows!(
    row_14_trusted_certificates_have_to_fit_and_be_valid,
    row_20_http_2_is_refused_and_a_connection_that_breaks_off_is_classed,
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

    pub(super) fn row_20_http_2_is_refused_and_a_connection_that_breaks_off_is_classed(wire: Wire) {
        if let Some((wanted, origin)) = child_call() {
            return call(wire, wanted, &origin);
        }
        let test = "secure::row_20_http_2_is_refused_and_a_connection_that_breaks_off_is_classed";
        // An empty SETTINGS frame and a GOAWAY for an internal error.
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x02";
        let http_2 = vec![Act::Send([&settings[..], goaway].concat()), hang()];
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let begun = wire.begun("Hi");
        let begun = send(format!("{head}{:x}\r\n{begun}\r\n", begun.len()));
        let pause = || Act::Wait(Duration::from_millis(50));
        let no_answer_yet = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000).into_bytes();
        let no_data = "1;x=y\r\n\n\r\n".repeat(1000).into_bytes();
        let cases: [(&str, &[&str], Script, &[&str]); 8] = [
            ("whole", &["http/1.1"], chunked(wire.whole("Hi")), &["ok Hi"]),
            ("HTTP/2 or nothing", &["h2"], http_2.clone(), &["transport"]),
            ("HTTP/2 whatever was asked for", &[], http_2, &["transport"]),
            ("end at once", &["http/1.1"], vec![pause()], &["transport"]),
            ("reset at once", &["http/1.1"], vec![pause(), Act::Reset], &["transport"]),
            (
                "end in the answer",
                &["http/1.1"],
                vec![begun.clone(), pause()],
                &["cut_stream", "transport"],
            ),
            (
                "100 Continue without end",
                &["http/1.1"],
                vec![Act::Repeat(no_answer_yet, 1_000), hang()],
                &["transport", "deadline"],
            ),
            (
                "empty lines and chunk extensions without end",
                &["http/1.1"],
                vec![begun, Act::Repeat(no_data, 1_000), hang()],
                &["cut_stream", "transport", "deadline"],
            ),
        ];
        for (what, protocols, script, expected) in cases {
            let authority = Authority::new();
            let player = Player::raw_tls(authority.server(Flaw::None, protocols), script);
            let start = Instant::now();
            let said = ask(test, wire, &player, &authority);
            assert!(start.elapsed() < Duration::from_secs(10), "{wire:?}, {what}: no deadline");
            let is_right = expected.iter().any(|outcome| said.starts_with(outcome));
            assert!(is_right, "{wire:?}, {what}: {said}");
            let says_version = said.contains("does not speak HTTP/1.1");
            assert_eq!(says_version, protocols == ["h2"], "{wire:?}, {what}: {said}");
            let n_requests = usize::from(protocols != ["h2"]);
            assert_eq!(player.journal().len(), n_requests, "{wire:?}, {what}");
        }
    }
}
