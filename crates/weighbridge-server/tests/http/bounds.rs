//! Who may ask, and how much.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use weighbridge_core::{Backend, ErrorKind, Secret};
use weighbridge_server::{Limits, Server};

use crate::support::{
    Scripted, Step, chat, connect, free, get, post_chat, raw, reply, request, server, server_with,
    within_a_second,
};

fn backend() -> Arc<dyn Backend> {
    Scripted::new(vec![Step::say("a")])
}

fn short() -> Limits {
    let mut limits = Limits::default();
    limits.head_timeout = Duration::from_millis(300);
    limits.body_timeout = Duration::from_millis(300);
    limits.write_timeout = Duration::from_millis(300);
    limits.drain_timeout = Duration::from_millis(300);
    limits
}

#[test]
fn only_loopback_is_bound() {
    for addr in ["0.0.0.0:0", "[::]:0", "192.168.1.1:80", "8.8.8.8:80"] {
        let server = Server::new([("m".to_owned(), backend())]);
        let error = server.spawn(addr.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{addr}");
        assert!(error.message().contains("loopback addresses only"), "{error}");
    }
    assert!(Server::new([]).spawn(free()).is_err());
    let twice = [("m".to_owned(), backend()), ("m".to_owned(), backend())];
    assert!(Server::new(twice).spawn(free()).unwrap_err().message().contains("occurs twice"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::new([("m".to_owned(), backend())]);
    let error = server.spawn(taken.local_addr().unwrap()).unwrap_err();
    assert!(error.message().contains("another program listens there"), "{error}");
}

#[test]
fn row_70_71_foreign_hosts_and_pages_get_nowhere() {
    let model = Scripted::new(vec![Step::say("a")]);
    let server = server(&model);
    let addr = server.addr();
    let port = addr.port();
    let body = chat(json!({})).to_string();
    let ask = |host: &str, headers: &str| {
        let text = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n{host}connection: close\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        raw(addr, text.as_bytes()).unwrap().status
    };
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")]
    {
        assert_eq!(ask(&format!("host: {host}\r\n"), ""), 200, "{host}");
    }
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        "localhost".to_owned(),
        "localhost:1".to_owned(),
    ] {
        assert_eq!(ask(&format!("host: {host}\r\n"), ""), 403, "{host}");
    }
    let ours = format!("host: {addr}\r\n");
    assert_eq!(ask(&format!("{ours}host: evil.example\r\n"), ""), 403);
    for origin in ["null", "http://evil.example", "http://localhost"] {
        assert_eq!(ask(&ours, &format!("origin: {origin}\r\n")), 403, "{origin}");
    }
    let plain = raw(
        addr,
        &request(addr, "POST", "/v1/chat/completions", "content-type: text/plain\r\n", &body),
    );
    assert_eq!(plain.unwrap().status, 415);
    let preflight =
        raw(addr, &request(addr, "OPTIONS", "/v1/chat/completions", "origin: http://evil\r\n", ""))
            .unwrap();
    assert_eq!(preflight.status, 403);
    assert!(!preflight.headers.keys().any(|name| name.starts_with("access-control")));
    assert_eq!(server.stats().models["m"].started, 3);
}

#[test]
fn row_72_a_token_is_asked_first() {
    let server = Server::new([("m".to_owned(), backend())])
        .with_token(Secret::new("t0ken"))
        .spawn(free())
        .unwrap();
    let addr = server.addr();
    for path in ["/health", "/v1/models", "/weighbridge/stats", "/nowhere"] {
        let reply = get(addr, path);
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.headers["connection"], "close");
    }
    let with =
        |headers: &str| raw(addr, &request(addr, "GET", "/health", headers, "")).unwrap().status;
    assert_eq!(with("authorization: Bearer t0ken\r\n"), 200);
    assert_eq!(with("authorization: Bearer wrong\r\n"), 401);
    assert_eq!(with("authorization: Bearer t0ken\r\nauthorization: Bearer t0ken\r\n"), 401);
    // A body that is too large is not even looked at.
    let huge = "content-length: 999999999\r\n";
    let text = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\n{huge}\r\n");
    assert_eq!(raw(addr, text.as_bytes()).unwrap().status, 401);
}

#[test]
fn row_74_bodies_are_bounded() {
    let server = server(&Scripted::new(vec![Step::say("a")]));
    let addr = server.addr();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\n"
    );
    let told = raw(addr, format!("{head}content-length: 1000000000\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(told.status, 413);

    let mut endless = connect(addr);
    endless.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 65536], b"\r\n".to_vec()].concat();
    let mut n_chunks = 0;
    while n_chunks < 2000 && endless.write_all(&chunk).is_ok() {
        n_chunks += 1;
    }
    assert!(n_chunks < 2000, "a body without end was read");

    let post = |body: &str| {
        raw(
            addr,
            &request(
                addr,
                "POST",
                "/v1/chat/completions",
                "content-type: application/json\r\n",
                body,
            ),
        )
        .unwrap()
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(post(&deep).status, 400);
    assert_eq!(post(r#"{"model":"m","model":"m"}"#).status, 400);
    assert_eq!(post("{\"model\":\"\u{1}\"}").status, 400);
    assert_eq!(post("").status, 400);
    let whole = post(
        &chat(json!({"messages": [{"role": "user", "content": "x".repeat(7 << 20)}]})).to_string(),
    );
    assert_eq!(whole.status, 200);
}

#[test]
fn row_76_slow_clients_are_left() {
    let model = Scripted::new(vec![Step::say("a")]);
    let server = server_with(&model, short());
    let addr = server.addr();
    let ends_in_time = |bytes: &[u8]| {
        let start = Instant::now();
        let answer = raw(addr, bytes);
        let elapsed = start.elapsed();
        assert!(
            elapsed >= Duration::from_millis(250) && elapsed < Duration::from_secs(2),
            "{elapsed:?}"
        );
        answer
    };
    assert!(ends_in_time(b"").is_none());
    ends_in_time(b"GET /health HTTP/1.1\r\nhost: ");
    let body = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{{"
    );
    assert_eq!(ends_in_time(body.as_bytes()).unwrap().status, 408);
    // A kept connection that idles.
    let idle = format!("GET /health HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    assert_eq!(ends_in_time(idle.as_bytes()).unwrap().status, 200);
}

#[test]
fn row_76_a_reader_that_stalls_loses_its_generation() {
    // Far more than the kernel's buffers hold.
    let text = "x".repeat(1 << 20);
    let model = Scripted::new(
        (0..64).flat_map(|_| [Step::say(&text), Step::Wait(Duration::ZERO)]).collect(),
    );
    let server = server_with(&model, short());
    let mut client = connect(server.addr());
    let body = chat(json!({"stream": true})).to_string();
    client
        .write_all(&request(
            server.addr(),
            "POST",
            "/v1/chat/completions",
            "content-type: application/json\r\n",
            &body,
        ))
        .unwrap();
    within_a_second("cancelled", || server.stats().models["m"].cancelled == 1);
}

#[test]
fn row_80_heads_that_are_too_large_or_broken_are_refused() {
    let server = server(&Scripted::new(vec![Step::say("a")]));
    let addr = server.addr();
    for (bytes, statuses) in [
        (
            format!("GET /health HTTP/1.1\r\nhost: {addr}\r\nx: {}\r\n\r\n", "y".repeat(100_000)),
            &[431][..],
        ),
        (format!("GET /{} HTTP/1.1\r\nhost: {addr}\r\n\r\n", "y".repeat(100_000)), &[414, 431]),
        (format!("GET /health HTTP/1.1\r\nhost: {addr}\r\n{}\r\n", "x: y\r\n".repeat(100)), &[431]),
        (format!("GET /health HTTP/1.1\r\nhost : {addr}\r\n\r\n"), &[400]),
        ("garbage\r\n\r\n".to_owned(), &[400]),
        (
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"
            ),
            &[400],
        ),
        (
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
            ),
            &[400],
        ),
    ] {
        let status = raw(addr, bytes.as_bytes()).map(|reply| reply.status);
        assert!(
            status.is_some_and(|s| statuses.contains(&s)),
            "{status:?} for {}",
            &bytes[..bytes.len().min(99)]
        );
    }
}

#[test]
fn connections_and_calls_at_once_are_bounded() {
    let model = Scripted::new(vec![Step::Wait(Duration::from_secs(60))]);
    let mut limits = short();
    limits.head_timeout = Duration::from_secs(20);
    limits.max_connections = 4;
    limits.max_calls = 2;
    let server = server_with(&model, limits);
    let addr = server.addr();
    let body = chat(json!({})).to_string();
    let bytes =
        request(addr, "POST", "/v1/chat/completions", "content-type: application/json\r\n", &body);
    let mut held = Vec::new();
    for n in 1..=2 {
        let mut client = connect(addr);
        client.write_all(&bytes).unwrap();
        held.push(client);
        within_a_second("started", || server.stats().models["m"].started == n);
    }
    let full = post_chat(addr, json!({}));
    assert_eq!(full.status, 503);
    assert_eq!(full.headers["retry-after"], "1");
    held.push(connect(addr));
    held.push(connect(addr));
    std::thread::sleep(Duration::from_millis(100));
    let mut above = connect(addr);
    let mut buffer = Vec::new();
    let _ = above.read_to_end(&mut buffer);
    assert!(reply(&buffer).is_none());
    drop(held);
    within_a_second("freed", || server.stats().models["m"].cancelled == 2);
    // The drain limit ends what does not end by itself.
    let mut stuck = connect(addr);
    stuck.write_all(&bytes).unwrap();
    within_a_second("started", || server.stats().models["m"].started == 3);
    let start = Instant::now();
    let stats = server.stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(stats.models["m"].cancelled, 3);
}

#[test]
fn row_79_urls_in_requests_are_not_fetched() {
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let server = server(&Scripted::new(vec![Step::say("a")]));
    let url = format!("http://{}/x.png", canary.local_addr().unwrap());
    for fields in [
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}),
        json!({"base_url": url}),
        json!({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": url}}]}]}),
    ] {
        assert_eq!(post_chat(server.addr(), fields).status, 400);
    }
    assert!(canary.accept().is_err());
}
