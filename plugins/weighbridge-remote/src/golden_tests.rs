//! Golden streams in memory: whatever the chunks and the framing, the same events; whatever the
//! cut, no answer before the end. The same goes over sockets in `tests/matrix`.

use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{Completion, Error, ErrorKind, Event, Request, Result};
use weighbridge_testkit::golden::{Golden, Scribe, Transcript, WIRES, goldens};

use crate::emitter::Emitter;
use crate::options::Options;
use crate::sse::SseParser;
use crate::text::Redactor;
use crate::vendor::Vendor;
use crate::wire::{Flow, Wire};

fn wire(name: &str) -> Box<dyn Wire> {
    let (vendor, options) = match name {
        "chat" => (Vendor::OpenAi, json!({"api": "chat"})),
        "messages" => (Vendor::Anthropic, json!({})),
        "responses" => (Vendor::OpenAi, json!({"api": "responses"})),
        _ => (Vendor::Gemini, json!({})),
    };
    vendor.wire(&Options::read(vendor, options.as_object().unwrap()).unwrap())
}

/// What a stream in these chunks shows and comes to.
fn read<'a>(
    wire: &dyn Wire,
    request: &Request,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Transcript, bool) {
    let mut scribe = Scribe::default();
    let redactor = Redactor::default();
    let mut sink = |event: Event<'_>| scribe.note(&event);
    let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
    let mut decoder = wire.decoder(request);
    let mut parser = SseParser::new();
    let feed = || -> Result<()> {
        for mut input in chunks {
            while let Some(frame) = parser.next(&mut input)? {
                if decoder.frame(&frame, &mut out)? == Flow::End {
                    return Ok(());
                }
            }
        }
        if !decoder.is_complete() && parser.has_unfinished_event() {
            return Err(Error::new(ErrorKind::Truncated, "in the middle of an event"));
        }
        Ok(())
    };
    let result: Result<Completion> = feed()
        .and_then(|()| decoder.close(&mut out))
        .map(|ending| out.completion(ending, Duration::ZERO, true, request.logprobs.is_some()));
    (scribe.transcript(&result), result.is_ok())
}

/// Does the same with every golden stream of every wire, the wires side by side; the sum.
fn sum_over_goldens(each: impl Fn(&dyn Wire, &Golden) -> usize + Sync) -> usize {
    let each = &each;
    std::thread::scope(|scope| {
        let threads = WIRES.map(|name| {
            scope.spawn(move || {
                let wire = wire(name);
                let goldens = goldens(name);
                assert!(goldens.len() >= 15, "{name} has {} golden streams", goldens.len());
                goldens.iter().map(|golden| each(&*wire, golden)).sum::<usize>()
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn every_golden_reads_as_expected() {
    let mut differences = Vec::new();
    for name in WIRES {
        let wire = wire(name);
        for golden in goldens(name) {
            let (seen, _) = read(&*wire, &golden.request(), [golden.stream.as_bytes()]);
            let found = golden.differences(&seen);
            differences.extend(found.iter().map(|d| format!("{name}/{}: {d}", golden.name)));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
#[allow(clippy::print_stdout)] // The count is what the test is for.
fn row_26_to_29_every_cut_of_every_golden_gives_the_same_events() {
    let is_full = std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some();
    let n_splits = sum_over_goldens(|wire, golden| {
        let request = golden.request();
        let (expected, _) = read(wire, &request, [golden.stream.as_bytes()]);
        let mut n = 0;
        for (framing, bytes) in golden.framings() {
            let place = |cut: &str| format!("{}, {framing}, cut {cut}", golden.name);
            assert_eq!(
                read(wire, &request, bytes.chunks(1)).0,
                expected,
                "{}",
                place("everywhere")
            );
            // Each framing has cuts of its own: within line ends, byte order mark and comments.
            let step = if is_full || framing == "lf" { 1 } else { 5 };
            for cut in (1..bytes.len()).step_by(step) {
                let (head, tail) = bytes.split_at(cut);
                let (seen, _) = read(wire, &request, [head, tail]);
                assert_eq!(seen, expected, "{}", place(&cut.to_string()));
            }
            n += (1..bytes.len()).step_by(step).len() + 1;
        }
        n
    });
    println!("{n_splits} splits of golden streams read the same");
    assert!(n_splits >= 160_000, "only {n_splits} splits");
    assert!(!is_full || n_splits >= 180_000, "only {n_splits} splits");
}

#[test]
#[allow(clippy::print_stdout)] // The count is what the test is for.
fn row_23_no_golden_is_an_answer_before_its_end() {
    let n_cuts = sum_over_goldens(|wire, golden| {
        let bytes = golden.stream.as_bytes();
        let n_whole = golden.n_bytes_to_whole();
        for cut in 0..=bytes.len() {
            let (transcript, is_answer) = read(wire, &golden.request(), [&bytes[..cut]]);
            let may_be = n_whole.is_some_and(|n| cut >= n);
            assert_eq!(is_answer, may_be, "{} cut at {cut}: {transcript:?}", golden.name);
            if cut == 0 {
                assert_eq!(transcript.reads["outcome"], "cut_stream", "{}", golden.name);
            }
        }
        bytes.len() + 1
    });
    println!("{n_cuts} cuts of golden streams: none is an answer before its terminal event");
}
