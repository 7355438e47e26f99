//! Many calls at once with many faults: none lost, none twice, none misread. The server's own
//! journal is the witness.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{BackendExt, Outcome, Request};
use weighbridge_testkit::player::{
    Act, Player, Record, Script, answer, chunked_pieces, json as json_answer, send, sse_head,
    stream,
};

use crate::bench::Wire;

/// Streams at once, over all wires.
const N_STREAMS: usize = 256;
/// The memory of all of it, of the server too.
#[cfg(target_os = "linux")]
const MAX_MIB: u64 = 200;
/// Of a hundred calls, so many meet a fault.
const N_FAULTS_PER_HUNDRED: usize = 30;

/// What the server does to a call, and what that has to be called.
const FAULTS: [(&str, Outcome); 15] = [
    ("reset before the head", Outcome::Transport),
    ("reset in the stream", Outcome::CutStream),
    ("clean end in the stream", Outcome::CutStream),
    ("clean end before content", Outcome::CutStream),
    ("429", Outcome::RateLimited),
    ("500", Outcome::ServerError),
    ("503", Outcome::Overloaded),
    ("401", Outcome::Auth),
    ("400", Outcome::BadRequest),
    ("login page", Outcome::Transport),
    ("redirect", Outcome::Transport),
    ("broken JSON", Outcome::MalformedWire),
    ("invalid UTF-8", Outcome::MalformedWire),
    ("overload in the stream", Outcome::Overloaded),
    ("short document", Outcome::CutStream),
];

/// The fault of a call; `None` for the seventy of a hundred that get their answer.
fn fault(call: usize) -> Option<usize> {
    // Spread over the calls without a pattern that a queue could fall into step with.
    let mixed = call.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> 20;
    (mixed % 100 < N_FAULTS_PER_HUNDRED).then_some(mixed / 100 % FAULTS.len())
}

/// The number that a request carries in its prompt.
fn number(record: &Record) -> usize {
    let at = record.body.find("call #").unwrap() + "call #".len();
    let digits: String = record.body[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn script(wire: Wire, call: usize) -> Script {
    let text = format!("answer #{call} 😀");
    let begun = wire.begun(&text);
    let refuse = |status: &str| {
        let body = wire.refusal(status[..3].parse().unwrap(), "code", "message");
        vec![json_answer(status, &body.to_string())]
    };
    match fault(call).map(|fault| FAULTS[fault].0) {
        None => chunked_pieces(wire.events(&["answer ", &format!("#{call} "), "😀"])),
        Some("reset before the head") => vec![Act::Reset],
        Some("reset in the stream") => {
            vec![sse_head(), send(begun), Act::Wait(Duration::from_millis(5)), Act::Reset]
        }
        Some("clean end in the stream") => stream(begun),
        Some("clean end before content") => stream(wire.events(&[])[..wire.n_opening()].concat()),
        Some("429") => refuse("429 Too Many Requests"),
        Some("500") => refuse("500 Internal Server Error"),
        Some("503") => refuse("503 Service Unavailable"),
        Some("401") => refuse("401 Unauthorized"),
        Some("400") => refuse("400 Bad Request"),
        Some("login page") => {
            vec![answer("200 OK", "content-type: text/html\r\n", "<html>Log in</html>")]
        }
        Some("redirect") => vec![answer("307 Moved", "location: /login\r\n", "")],
        Some("broken JSON") => stream(format!("{begun}data: {{\"a\":\n\n")),
        Some("invalid UTF-8") => stream([begun.as_bytes(), b"data: \xFF\xFE\n\n"].concat()),
        Some("overload in the stream") => {
            let error = json!({"type": "error", "error": {"type": "overloaded_error",
                "message": "m", "code": "overloaded"}});
            stream(format!("{begun}event: error\ndata: {error}\n\n"))
        }
        Some("short document") => {
            let document = wire.document(&text).to_string();
            vec![json_answer("200 OK", &document[..document.len() / 2])]
        }
        Some(other) => unreachable!("{other} has no script"),
    }
}

#[test]
fn ten_thousand_calls_with_faults_are_told_apart_and_none_is_lost() {
    let is_full = std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some();
    let n_calls = if is_full { 10_000 } else { 1_000 };
    let players = Wire::ALL.map(|wire| Player::with(move |record, _| script(wire, number(record))));
    let n_per_wire = N_STREAMS / Wire::ALL.len();
    let backends: Vec<_> = Wire::ALL
        .iter()
        .zip(&players)
        .map(|(wire, player)| {
            let options = json!({"max_concurrency": n_per_wire, "timeout_s": 120});
            wire.open(player, options)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(BTreeMap::<(&str, &str), usize>::new());
    let wrong = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..N_STREAMS {
            let work = || {
                loop {
                    let call = next.fetch_add(1, Ordering::SeqCst);
                    if call >= n_calls {
                        return;
                    }
                    let request = Request::user(format!("call #{call}."));
                    let result = backends[call % backends.len()].complete_blocking(&request);
                    let seen = Outcome::of(&result);
                    let (what, expected) =
                        fault(call).map_or(("no fault", Outcome::Ok), |fault| FAULTS[fault]);
                    let is_own_text =
                        result.as_ref().map_or(true, |c| c.text == format!("answer #{call} 😀"));
                    if seen != expected || !is_own_text {
                        wrong.lock().unwrap().push(format!("{what}: {seen:?} {result:?}"));
                    }
                    *counts.lock().unwrap().entry((what, seen.as_str())).or_default() += 1;
                }
            };
            std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, work).unwrap();
        }
    });
    let elapsed = start.elapsed();

    for ((what, outcome), n) in counts.lock().unwrap().iter() {
        println!("{n:6}  {what:26} {outcome}");
    }
    let mut n_asked = vec![0; n_calls];
    for (i, player) in players.iter().enumerate() {
        for record in player.journal() {
            let call = number(&record);
            assert_eq!(call % players.len(), i, "a call went to another's server");
            n_asked[call] += 1;
        }
    }
    let n_lost = n_asked.iter().filter(|&&n| n == 0).count();
    let n_twice = n_asked.iter().filter(|&&n| n > 1).count();
    let wrong = wrong.into_inner().unwrap();
    println!(
        "{n_calls} calls, {N_STREAMS} at once, {} with faults, in {:.1} s: {n_lost} lost, {n_twice} \
         twice, {} misread",
        (0..n_calls).filter(|&call| fault(call).is_some()).count(),
        elapsed.as_secs_f64(),
        wrong.len()
    );
    #[cfg(target_os = "linux")]
    {
        let peak_mib = crate::memory::status_kib("VmHWM:") >> 10;
        println!("client and server together held at most {peak_mib} MiB");
        // Without nextest, other tests share the process.
        let is_alone = std::env::var_os("NEXTEST").is_some();
        assert!(!is_alone || peak_mib <= MAX_MIB, "{peak_mib} MiB");
    }
    assert!(
        wrong.is_empty(),
        "{} misread, such as {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    assert_eq!((n_lost, n_twice), (0, 0), "calls lost, calls made twice");
}
