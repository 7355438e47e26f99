//! Rows 18 and 40: what a flood of bytes costs in memory, measured in a process of its own.

#![cfg(target_os = "linux")]

use serde_json::json;
use weighbridge_core::{BackendExt, EgressScope, Outcome, Request};
use weighbridge_testkit::player::{Act, Player, Script, chunked, gzip_bomb, send, sse_head};

use crate::bench::{Wire, child_call, in_child};

/// The promise, in KiB.
const MAX_GROWTH_KIB: u64 = 32 << 10;

/// A value of this process's status, in KiB.
pub(crate) fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One good call, so that all that is loaded once is loaded; then the flood.
fn measured_call(wire: Wire, origin: &str) {
    let backend = wire.try_open(origin, json!({}), EgressScope::Loopback).unwrap();
    assert_eq!(backend.complete_blocking(&Request::user("Hi")).unwrap().text, "Hi");
    let before = status_kib("VmRSS:");
    let result = backend.complete_blocking(&Request::user("Hi"));
    let growth = status_kib("VmHWM:").saturating_sub(before);
    println!("child: {} {growth}", Outcome::of(&result).as_str());
}

#[test]
fn row_18_40_floods_cost_at_most_32_mib() {
    if let Some((wire, origin)) = child_call() {
        return measured_call(wire, &origin);
    }
    let mebibyte = vec![b'x'; 1 << 20];
    let document =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n[\"";
    let comments = format!(": {}\n", "c".repeat(1000)).repeat(1000).into_bytes();
    let floods: [(&str, Script); 5] = [
        ("a gzip bomb of 300 MB as a stream", gzip_bomb("text/event-stream", 300)),
        ("a gzip bomb of 300 MB as a document", gzip_bomb("application/json", 300)),
        ("a line of 100 MB", vec![sse_head(), send("data: "), Act::Repeat(mebibyte.clone(), 100)]),
        ("comments of 100 MB", vec![sse_head(), Act::Repeat(comments, 100)]),
        (
            "an error body of 100 MB",
            vec![send(document.replace("200 OK", "500 Oops")), Act::Repeat(mebibyte.clone(), 100)],
        ),
    ];
    for wire in Wire::ALL {
        for (what, flood) in &floods {
            let player = Player::start(vec![chunked(wire.whole("Hi")), flood.clone()]);
            let test = "memory::row_18_40_floods_cost_at_most_32_mib";
            let measured = in_child(test, wire, &player.origin(), &[]);
            let (outcome, growth) = measured.split_once(' ').unwrap();
            let growth: u64 = growth.parse().unwrap();
            println!("{}, {what}: {outcome}, {:.1} MiB", wire.name(), growth as f64 / 1024.0);
            assert_eq!(player.journal().len(), 2, "{wire:?}, {what}: the flood was asked for");
            let scored = Outcome::ALL.iter().find(|o| o.as_str() == outcome).unwrap().is_scored();
            assert!(!scored, "{wire:?}, {what}: {outcome}");
            assert!(growth <= MAX_GROWTH_KIB, "{wire:?}, {what}: {growth} KiB");
        }
    }
}
