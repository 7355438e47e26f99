//! Connections between calls: kept while they are good, never trusted when they are not.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{Backend, BackendExt, ErrorKind, Request};

use crate::support::open;
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
    let backend = open(&player, json!({}));
    assert_eq!(ask(&backend), "a");
    thread::sleep(Duration::from_millis(150));
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
