//! Golden streams over sockets: through HTTP, its chunks and the pool of connections. Every cut of
//! every framing is read in memory by the crate's own tests; here are some of them, and cuts of the
//! connection itself.

use serde_json::json;
use weighbridge_testkit::golden::{goldens, transcribe};
use weighbridge_testkit::player::{Player, Script, chunked, chunked_pieces, stream};

use crate::bench::Wire;

/// Bytes between two cuts: coprime to what streams repeat, so that cuts fall everywhere.
fn step() -> usize {
    if std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some() { 7 } else { 149 }
}

/// Does the same for all wires side by side; the sum.
fn sum_over_wires(each: impl Fn(Wire) -> usize + Sync) -> usize {
    let each = &each;
    std::thread::scope(|scope| {
        let threads = Wire::ALL.map(|wire| scope.spawn(move || each(wire)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn row_26_to_29_goldens_read_the_same_over_sockets_however_they_are_split() {
    let n_splits = sum_over_wires(|wire| {
        let mut n = 0;
        for golden in goldens(wire.name()) {
            let mut scripts: Vec<Script> = vec![chunked(&golden.stream)];
            for (_, bytes) in golden.framings() {
                scripts.push(chunked_pieces(bytes.chunks(1)));
                scripts.push(stream(&bytes));
                scripts.extend((1..bytes.len()).step_by(step()).map(|cut| {
                    let (head, tail) = bytes.split_at(cut);
                    chunked_pieces([head, tail])
                }));
            }
            let n_calls = scripts.len();
            let player = Player::start(scripts);
            let backend = wire.open(&player, json!({}));
            let request = golden.request();
            let (expected, _) = transcribe(&*backend, &request);
            let differences = golden.differences(&expected);
            assert!(differences.is_empty(), "{wire:?}/{}: {differences:#?}", golden.name);
            for i in 1..n_calls {
                let (seen, _) = transcribe(&*backend, &request);
                assert_eq!(seen, expected, "{wire:?}/{}, split {i}", golden.name);
            }
            assert_eq!(player.journal().len(), n_calls);
            n += n_calls - 1;
        }
        n
    });
    println!("{n_splits} splits of golden streams read the same over sockets");
}

#[test]
fn row_23_no_golden_is_an_answer_where_its_connection_ends_early() {
    let n_cuts = sum_over_wires(|wire| {
        let mut n = 0;
        for golden in goldens(wire.name()) {
            let bytes = golden.stream.as_bytes();
            let n_whole = golden.n_bytes_to_whole();
            let mut cuts: Vec<usize> = (0..bytes.len()).step_by(step()).collect();
            cuts.extend(n_whole.into_iter().flat_map(|n| [n - 2, n - 1, n]));
            let player = Player::start(cuts.iter().map(|&cut| stream(&bytes[..cut])).collect());
            let backend = wire.open(&player, json!({}));
            for &cut in &cuts {
                let (seen, result) = transcribe(&*backend, &golden.request());
                let may_be = n_whole.is_some_and(|n| cut >= n);
                assert_eq!(
                    result.is_ok(),
                    may_be,
                    "{wire:?}/{} cut at {cut}: {seen:?}",
                    golden.name
                );
            }
            n += cuts.len();
        }
        n
    });
    println!("{n_cuts} connections ended early: no answer before the terminal event");
}
