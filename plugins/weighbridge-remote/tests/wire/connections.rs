//! Connections between calls: kept while they are good, never trusted when they are not.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{
    Backend, BackendExt, EgressScope, Error, ErrorKind, ModelRef, Provider, Request, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use crate::support::{Ledger, context, open};
use weighbridge_testkit::player::{Act, Player, chunked, send};

const BODY: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\
                    \"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn ask(backend: &Arc<dyn Backend>) -> String {
    backend.complete_blocking(&Request::user("Hi")).unwrap().text
}

#[test]
fn calls_in_turn_share_a_connection_whichever_thread_makes_them() {
    let player = Player::one(chunked(BODY));
    let backend = open(&player, json!({}));
    for _ in 0..20 {
        let backend = Arc::clone(&backend);
        assert_eq!(thread::spawn(move || ask(&backend)).join().unwrap(), "a");
    }
    assert_eq!((player.n_connections(), player.journal().len()), (1, 20));
}

#[test]
fn row_15_a_connection_that_was_closed_while_idle_is_not_used() {
    // Announces nothing, closes after each answer.
    let length = format!("content-length: {}\r\n", BODY.len());
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{length}\r\n{BODY}");
    let player = Player::start(vec![vec![send(head), Act::Reset]]);
    let backend = open(&player, json!({}));
    for n in 1..=5 {
        assert_eq!(ask(&backend), "a");
        thread::sleep(Duration::from_millis(20));
        assert_eq!((player.n_connections(), player.journal().len()), (n, n));
    }
}

#[test]
fn an_end_that_comes_late_is_awaited_in_the_background() {
    let late = vec![
        send(CHUNKED),
        send(format!("{:x}\r\n{BODY}", BODY.len())),
        Act::Wait(Duration::from_millis(50)),
        Act::Whole(b"\r\n0\r\n\r\n".to_vec()),
    ];
    let player = Player::one(late);
    let ledger = Arc::<Ledger>::default();
    let context = context(json!({"model": "m"}), EgressScope::Loopback, &ledger);
    let model: ModelRef = format!("openai-compatible:{}", player.url()).parse().unwrap();
    let backend = block_on(Remote::new(Vendor::OpenAiCompatible).open(&model, &context)).unwrap();
    let n_before = ledger.0.lock().unwrap().len();
    assert_eq!(ask(&backend), "a");
    assert_eq!(ledger.0.lock().unwrap().len(), n_before + 1, "entered once the answer is there");
    thread::sleep(Duration::from_millis(150));
    assert_eq!(ledger.0.lock().unwrap().len(), n_before + 1);
    assert_eq!(ask(&backend), "a");
    assert_eq!(player.n_connections(), 1, "the first connection was used again");
}

#[test]
fn row_38_a_connection_with_data_after_the_end_is_closed() {
    let more = vec![
        send(CHUNKED),
        send(format!("{:x}\r\n{BODY}\r\n", BODY.len())),
        Act::Wait(Duration::from_millis(30)),
        send("3\r\nxyz\r\n"),
        Act::AwaitClose,
    ];
    let player = Player::one(more);
    let backend = open(&player, json!({}));
    assert_eq!(ask(&backend), "a");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ask(&backend), "a");
    assert_eq!(player.n_connections(), 2);
}

#[test]
fn a_connection_that_nobody_uses_is_closed() {
    let player = Player::one([chunked(BODY), vec![Act::AwaitClose]].concat());
    let backend = open(&player, json!({}));
    assert_eq!(ask(&backend), "a");
    let start = Instant::now();
    let closed = player.closed_at(Duration::from_secs(9)).unwrap();
    assert!(closed - start > Duration::from_secs(3), "it was kept for a while");
    drop(backend);
}

/// The error of a call that is waited for in a runtime of the caller's.
fn fails_in_tokio(backend: &Arc<dyn Backend>, before: impl Future<Output = ()>) -> Error {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        before.await;
        backend.complete(&Request::user("Hi")).await.unwrap_err()
    })
}

#[test]
fn row_20_heads_without_end_end_at_the_deadline_on_every_executor() {
    let heads = "HTTP/1.1 100 Continue\r\n\r\n".repeat(40_000).into_bytes();
    let player = Player::one(vec![Act::Repeat(heads, usize::MAX)]);
    let backend = open(&player, json!({"timeout_s": 0.5}));
    for is_in_tokio in [false, true] {
        let start = Instant::now();
        let error = match is_in_tokio {
            false => backend.complete_blocking(&Request::user("Hi")).unwrap_err(),
            true => fails_in_tokio(&backend, async {}),
        };
        let taken = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(taken < Duration::from_secs(2), "{taken:?}");
    }
}

#[test]
fn deadlines_do_not_run_on_the_clock_of_the_callers_runtime() {
    let player = Player::one(vec![Act::AwaitClose]);
    let backend = open(&player, json!({"timeout_s": 0.5}));
    let start = Instant::now();
    let error = fails_in_tokio(&backend, async {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(10)).await;
    });
    let taken = start.elapsed();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(taken < Duration::from_secs(3), "{taken:?}");
}

#[test]
fn a_deadline_runs_from_its_own_call_on_a_connection_that_was_used_before() {
    let player = Player::start(vec![chunked(BODY), vec![Act::AwaitClose]]);
    let backend = open(&player, json!({"timeout_s": 0.6}));
    assert_eq!(ask(&backend), "a");
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let error = backend.complete_blocking(&Request::user("Hi")).unwrap_err();
    let taken = start.elapsed();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(player.n_connections(), 1);
    let (least, most) = (Duration::from_millis(600), Duration::from_millis(700));
    assert!(least <= taken && taken < most, "{taken:?}");
}
