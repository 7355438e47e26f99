//! Servers that others wrote: `aimock` and `llmock`, each with a journal of its own, and official
//! clients that read the golden streams. Only in `cargo xtask test --full`, which sets them up.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weighbridge_core::{BackendExt, Completion, EgressScope, Outcome, Request, Result};
use weighbridge_testkit::golden::goldens;
use weighbridge_testkit::player::{Player, chunked};

use crate::bench::{Ledger, Wire};

/// A program that the full tests need, from this variable; `None` in other tests.
///
/// # Panics
/// If the full tests are run and the variable is not set.
fn program(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() && std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some() {
        panic!("{variable} is not set; run the full tests by `cargo xtask test --full`");
    }
    if path.is_none() {
        println!("not judged: only `cargo xtask test --full` sets up the judges");
    }
    path
}

/// A server of a foreign program, ended with this.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Starts a program at a free port, which `arguments` make arguments of; waits until it
    /// answers at `path`.
    fn start(mut command: Command, port: u16, path: &str) -> Self {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.ask("GET", path, "").is_none() {
            assert!(Instant::now() < deadline, "{command:?} does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The body of an answer to a request of ours that is no model's call.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let n = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
             content-length: {n}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> Value {
        let text = self.ask(method, path, &body.to_string()).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn aimock(script: &PathBuf, arguments: &[&str], fixtures: &Value) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.json");
    std::fs::write(&file, fixtures.to_string()).unwrap();
    let port = free_port();
    let mut command = Command::new("node");
    command.arg(script).args(["--port", &port.to_string(), "--journal-max", "0"]);
    command.args(["--log-level", "silent", "--fixtures"]).arg(&file).args(arguments);
    Server::start(command, port, "/__aimock/journal")
}

/// Requests that aimock counted.
fn n_counted(server: &Server) -> usize {
    let journal = server.json("GET", "/__aimock/journal?limit=100000", &json!({}));
    let entries = journal.as_array().or_else(|| journal["entries"].as_array());
    entries.unwrap_or_else(|| panic!("{journal}")).len()
}

#[test]
fn aimock_answers_and_counts_on_four_wires() {
    const N_CALLS: usize = 25;
    let Some(script) = program("WEIGHBRIDGE_AIMOCK") else { return };
    let text = "Gr\u{fc}\u{df}e \u{1F469}\u{200D}\u{1F680} \u{4f60}\u{597d}, e\u{301}. ".repeat(8);
    let fixtures = json!({"fixtures": [
        {"match": {"userMessage": "greet"}, "response": {"content": text}},
        {"match": {"userMessage": "weather"}, "response": {"toolCalls": [
            {"name": "get_weather", "arguments": {"city": "K\u{f6}ln", "days": 3}},
            {"name": "get_time", "arguments": {"zone": "CET"}}]}},
        {"match": {"userMessage": "fail"}, "response": {"error":
            {"message": "broken", "type": "server_error"}, "status": 503}},
    ]});
    let server = aimock(&script, &[], &fixtures);
    for wire in Wire::ALL {
        let before = n_counted(&server);
        let backend = wire.try_open(&server.origin(), json!({}), EgressScope::Loopback).unwrap();
        let ask = |prompt: &str| backend.complete_blocking(&Request::user(prompt));
        for _ in 0..N_CALLS {
            assert_eq!(ask("greet").unwrap().text, text, "{wire:?}");
        }
        let completion = ask("weather").unwrap();
        let calls: Vec<(&str, Value)> = completion
            .tool_calls
            .iter()
            .map(|call| (call.name.as_str(), serde_json::from_str(&call.arguments).unwrap()))
            .collect();
        let expected = [
            ("get_weather", json!({"city": "K\u{f6}ln", "days": 3})),
            ("get_time", json!({"zone": "CET"})),
        ];
        assert_eq!(calls, expected, "{wire:?}");
        assert_eq!(Outcome::of(&ask("fail")), Outcome::Overloaded, "{wire:?}");
        let n = n_counted(&server) - before;
        println!("aimock, {}: {} calls, {n} counted", wire.name(), N_CALLS + 2);
        assert_eq!(n, N_CALLS + 2, "{wire:?}");
    }
}

#[test]
fn aimock_in_chaos_gets_no_call_twice_and_no_wrong_answer_through() {
    const N_CALLS: usize = 200;
    let Some(script) = program("WEIGHBRIDGE_AIMOCK") else { return };
    let text = "The same answer, every time, in several chunks.";
    let fixtures =
        json!({"fixtures": [{"match": {"userMessage": "greet"}, "response": {"content": text}}]});
    let chaos = [
        "--chaos-drop",
        "0.1",
        "--chaos-malformed",
        "0.1",
        "--chaos-disconnect",
        "0.1",
        "--chaos-ratelimit",
        "0.1",
    ];
    let server = aimock(&script, &chaos, &fixtures);
    for wire in Wire::ALL {
        let before = n_counted(&server);
        let open = || wire.try_open(&server.origin(), json!({}), EgressScope::Loopback).unwrap();
        let mut backend = open();
        let (mut n_ok, mut n_limited) = (0, 0);
        for _ in 0..N_CALLS {
            let result = backend.complete_blocking(&Request::user("greet"));
            let outcome = Outcome::of(&result);
            if let Ok(completion) = &result {
                assert_eq!(completion.text, text, "{wire:?}: {result:?}");
                n_ok += 1;
            }
            if outcome == Outcome::RateLimited {
                n_limited += 1;
                // It told of no budget for six minutes: what is asked next is not sent.
                let held = backend.complete_blocking(&Request::user("greet")).unwrap_err();
                assert_eq!(held.context("phase"), Some("queue"), "{wire:?}: {held}");
                // The budget is forgotten with the last backend that it was told to.
                drop(backend);
                backend = open();
            }
            // No fault of the server is taken for the model's doing.
            assert!(result.is_ok() || !outcome.is_scored(), "{wire:?}: {outcome:?}");
        }
        let n = n_counted(&server) - before;
        println!(
            "aimock in chaos, {}: {N_CALLS} calls, {n} counted, {n_ok} answered, {n_limited} rate \
             limits after which nothing was sent",
            wire.name()
        );
        assert_eq!(n, N_CALLS, "{wire:?}");
        assert!((N_CALLS / 4..N_CALLS).contains(&n_ok), "{wire:?}: {n_ok} of {N_CALLS} answered");
        assert!(n_limited > 0, "{wire:?}: no rate limit in {N_CALLS} calls");
    }
}

#[test]
fn llmock_finds_no_fault_with_us() {
    let Some(python) = program("WEIGHBRIDGE_SDK_PYTHON") else { return };
    let port = free_port();
    let mut command = Command::new(python.with_file_name("llmock"));
    command.args(["serve", "--port", &port.to_string(), "--response-style", "varied"]);
    command.args(["--stream-chunk-delay-ms", "1", "--log-level", "critical"]);
    let server = Server::start(command, port, "/_llmock/requests");
    // It speaks three of the four wires.
    for (wire, base, faults) in [
        (Wire::Chat, server.origin(), &["truncate", "disconnect", "malformed"][..]),
        (Wire::Messages, format!("{}/anthropic", server.origin()), &["truncate", "disconnect"]),
        (Wire::Gemini, format!("{}/gemini", server.origin()), &["truncate", "disconnect"]),
    ] {
        server.json("POST", "/_llmock/reset", &json!({}));
        let options = json!({"idle_timeout_s": 0.5});
        let ledger = Arc::<Ledger>::default();
        let backend = wire.connect(&base, options, EgressScope::Loopback, ledger.clone()).unwrap();
        let model = weighbridge::Retrying::new(backend);
        let mut n_calls = 0;
        let mut n_caught = 0;
        let mut ask = |behaviors: Value, n_repetitions: usize| -> Result<Completion> {
            if !behaviors.as_array().unwrap().is_empty() {
                server.json("POST", "/_llmock/scenario", &json!({"behaviors": behaviors}));
            }
            n_calls += 1;
            let request = Request::user(format!("question {n_calls}"));
            let mut result = model.complete_blocking(&request);
            // Nothing is sent again by itself once content was shown; whoever asked sees the error
            // and may ask again. What nobody noticed is not asked again, and llmock finds it.
            for _ in 0..n_repetitions {
                let outcome = Outcome::of(&result);
                if outcome == Outcome::Ok {
                    break;
                }
                assert!(!outcome.is_scored(), "{wire:?}: taken for an answer: {result:?}");
                n_caught += 1;
                result = model.complete_blocking(&request);
            }
            result
        };
        for (behavior, is_answered) in [
            (json!([]), true),
            (json!([{"type": "fail", "status": 429, "retry_after": 0.4, "times": 2}]), true),
            (json!([{"type": "fail", "status": 500}]), true),
            (json!([{"type": "fail", "status": 503}]), true),
            (json!([{"type": "fail", "status": 401}]), false),
            (json!([{"type": "fail", "status": 400}]), false),
        ] {
            let result = ask(behavior.clone(), 0);
            assert_eq!(result.is_ok(), is_answered, "{wire:?} {behavior}: {result:?}");
        }
        for kind in faults {
            for after_chunks in 0..5 {
                let fault =
                    json!([{"type": "stream_fault", "kind": kind, "after_chunks": after_chunks}]);
                let result = ask(fault, 1);
                assert!(result.is_ok(), "{wire:?} {kind} after {after_chunks}: {result:?}");
            }
        }
        let stall = json!([{"type": "stream_fault", "kind": "stall", "after_chunks": 3,
            "stall_seconds": 5}]);
        assert!(ask(stall, 1).is_ok(), "{wire:?}: stall");
        let verdict = server.json("GET", "/_llmock/verdict", &json!({}));
        let report = Command::new(python.with_file_name("llmock"))
            .args(["report", "--url", &server.origin()])
            .output()
            .unwrap();
        let n_sent = ledger.n_exchanges();
        println!(
            "llmock, {}: {n_calls} calls, {n_sent} requests, {} counted, {} faults, {n_caught} told \
             to the caller, {} errors of ours: {}",
            wire.name(),
            verdict["attempts"],
            verdict["faults_injected"],
            verdict["errors"],
            String::from_utf8_lossy(&report.stdout).lines().last().unwrap_or_default(),
        );
        assert_eq!(verdict["attempts"], n_sent, "{wire:?}: {verdict:#}");
        // Its warnings are about damaged chunks, after which only the caller may ask again.
        assert_eq!(verdict["errors"], 0, "{wire:?}: {verdict:#}");
        assert!(report.status.success(), "{wire:?}: {}", String::from_utf8_lossy(&report.stdout));
    }
}

/// What an official client is known to read otherwise.
const CLIENT_FAILS: [(Wire, &str, &str); 2] = [
    (Wire::Chat, "comments", "openai takes a comment after an id for an event of its own"),
    (Wire::Gemini, "comments", "google-genai for Python takes a comment for damaged data"),
];

#[test]
fn official_clients_read_the_same_from_golden_streams() {
    let Some(python) = program("WEIGHBRIDGE_SDK_PYTHON") else { return };
    let judge = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire/judge.py");
    let mut n_judged = 0;
    let mut differences = Vec::new();
    for wire in Wire::ALL {
        let goldens = goldens(wire.name());
        let streams: BTreeMap<String, String> =
            goldens.iter().map(|golden| (golden.name.clone(), golden.stream.clone())).collect();
        let player = Player::with(move |record, _| {
            // A model's name is in the path or in the body.
            let in_path = record.path().split(['/', ':']).find_map(|part| streams.get(part));
            let body: Value = serde_json::from_str(&record.body).unwrap();
            let in_body = || streams.get(body["model"].as_str().unwrap_or_default());
            chunked(in_path.or_else(in_body).unwrap())
        });
        let names = goldens.iter().map(|golden| golden.name.as_str());
        let output = Command::new(&python)
            .arg(&judge)
            .args([wire.name(), &player.origin()])
            .args(names)
            .output()
            .unwrap();
        let read: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        for golden in &goldens {
            let (theirs, ours) = (&read[&golden.name], &golden.expected["reads"]);
            if let Some((.., why)) =
                CLIENT_FAILS.iter().find(|(w, name, _)| *w == wire && *name == golden.name)
            {
                println!("{}/{}: not judged, for {why}", wire.name(), golden.name);
                assert!(theirs["error"].is_string(), "it does read it: {theirs}");
                continue;
            }
            n_judged += 1;
            let mut differs = |what: &str| {
                differences.push(format!("{}/{}: {what}: {theirs}", wire.name(), golden.name));
            };
            if theirs["error"].is_string() != ours["error"].is_string() {
                differs("an error");
            }
            if theirs["error"].is_string() {
                continue;
            }
            for field in ["text", "reasoning"] {
                if ours.get(field).is_some_and(|expected| theirs[field] != *expected) {
                    differs(field);
                }
            }
            // Responses has a word only for what is incomplete.
            if theirs["stop"].is_string()
                && ours.get("raw_stop_reason").is_some_and(|expected| theirs["stop"] != *expected)
            {
                differs("the stop reason");
            }
            let calls = |reads: &Value| -> Vec<(String, Option<Value>)> {
                let calls = reads["tool_calls"].as_array().cloned().unwrap_or_default();
                let arguments = |call: &Value| match call.get("args") {
                    Some(args) => Some(args.clone()),
                    None => serde_json::from_str(call["arguments"].as_str().unwrap()).ok(),
                };
                calls.iter().map(|c| (c["name"].to_string(), arguments(c))).collect()
            };
            if calls(theirs) != calls(ours) {
                differs("the tool calls");
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{n_judged} golden streams read the same by official clients");
    assert!(n_judged >= 60, "only {n_judged} were judged");
}
