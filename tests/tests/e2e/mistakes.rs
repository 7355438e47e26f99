//! Mistakes a user makes, and servers that misbehave: each message names the place and the remedy.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::support::{printed, root, weighbridge};

const N_SAMPLES: usize = 40;

/// A folder with data, a copy of a small model, and a suite of these two candidates.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..N_SAMPLES)
            .map(|i| format!("{{\"id\":\"s{i}\",\"q\":\"q{i}\",\"a\":\"a{i}\"}}\n"))
            .collect();
        std::fs::write(dir.path().join("data.jsonl"), rows).unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(root().join("fixtures/triage-open")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && path.extension().is_none_or(|e| e != "gguf") {
                std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
            }
        }
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn suite(&self, challenger: &str) -> String {
        let recorded = "recorded:data.jsonl#a";
        format!(
            "version = 1\nname = \"t\"\ncurrent = \"known\"\n\
             [data]\nfile = \"data.jsonl\"\nid = \"id\"\n\
             [prompt]\nuser = \"{{{{ q }}}}\"\n[request]\nmax_tokens = 4\n[run]\nmax_attempts = 1\n\
             [[candidate]]\nname = \"known\"\nmodel = \"{recorded}\"\n\
             [[candidate]]\nname = \"other\"\nmodel = \"{challenger}\"\n\
             [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n"
        )
    }

    /// Exit code and everything that was printed.
    fn eval(&self, suite: &str) -> (i32, String) {
        std::fs::write(self.path().join("suite.toml"), suite).unwrap();
        let _ = std::fs::remove_dir_all(self.path().join("run"));
        let output = weighbridge(&["eval", "suite.toml", "--out", "run", "--quiet"], self.path());
        (output.status.code().unwrap_or(-1), printed(&output))
    }

    #[track_caller]
    fn refused(&self, suite: &str, expected: &[&str]) {
        let (code, text) = self.eval(suite);
        assert_eq!(code, 3, "{text}");
        for expected in expected {
            assert!(text.contains(expected), "{text}\nwanted: {expected}");
        }
    }
}

#[test]
fn suites_and_data() {
    let desk = Desk::new();
    let good = desk.suite("candle:model");
    desk.refused(
        &good.replace("current =", "curent ="),
        &["suite.toml:3", "did you mean `current`?"],
    );
    desk.refused(
        &good.replace("data.jsonl\"\nid", "nothing.jsonl\"\nid"),
        &["nothing.jsonl: cannot open"],
    );
    desk.refused(&good.replace("{{ q }}", "{{ question }}"), &["`question`, which is no column"]);
    desk.refused(
        &good.replace("candle:model", "llama-cpp:x.gguf"),
        &[
            "unknown provider `llama-cpp`",
            "`anthropic`, `azure-openai`, `candle`, `gemini`",
            "link_plugins!",
            "--features llama-cpp",
        ],
    );
    let rows = std::fs::read_to_string(desk.path().join("data.jsonl")).unwrap();
    let mut lines: Vec<_> = rows.lines().collect();
    lines[16] = "{\"id\":";
    std::fs::write(desk.path().join("data.jsonl"), lines.join("\n")).unwrap();
    desk.refused(&good, &["data.jsonl:17: not valid JSON"]);
    lines[16] = lines[3];
    std::fs::write(desk.path().join("data.jsonl"), lines.join("\n")).unwrap();
    desk.refused(&good, &["data.jsonl:17: the id `s3` was used on line 4"]);
    let output = weighbridge(&["eval", "none.toml"], desk.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(printed(&output).contains("cannot read the suite none.toml"));
    let output = weighbridge(&["eval", "--no-such-flag"], desk.path());
    assert_eq!(output.status.code(), Some(3), "usage is never mistaken for `inconclusive`");
}

#[test]
fn model_folders() {
    let desk = Desk::new();
    let suite = desk.suite("candle:model");
    let model = desk.path().join("model");
    let (code, text) = desk.eval(&suite);
    assert_eq!(code, 0, "{text}");

    let tokenizer = std::fs::read(model.join("tokenizer.json")).unwrap();
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    desk.refused(&suite, &["candidate `other`", "tokenizer.json", "model"]);
    std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();

    let weights = std::fs::read(model.join("model.safetensors")).unwrap();
    std::fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    desk.refused(&suite, &["model.safetensors", "truncated"]);
    std::fs::write(model.join("model.safetensors"), &weights).unwrap();

    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let changed = config.replace("\"intermediate_size\": 192", "\"intermediate_size\": 256");
    assert_ne!(config, changed, "the fixture's config changed: adapt this test");
    std::fs::write(model.join("config.json"), changed).unwrap();
    desk.refused(&suite, &["mlp", "256", "shape"]);
    std::fs::write(model.join("config.json"), &config).unwrap();

    desk.refused(&desk.suite("candle:nowhere"), &["candidate `other`", "nowhere"]);
}

#[test]
fn a_prompt_that_does_not_fit_is_the_models_own_limit() {
    let desk = Desk::new();
    let long = format!("{{{{ q }}}} {}", "word ".repeat(3000));
    let (code, text) = desk.eval(&desk.suite("candle:model").replace("{{ q }}", &long));
    assert_eq!(code, 0, "{text}");
    let report = std::fs::read_to_string(desk.path().join("run/report.json")).unwrap();
    assert!(report.contains(&format!("\"context_overflow\": {N_SAMPLES}")), "{report}");
    let samples = std::fs::read_to_string(desk.path().join("run/samples.jsonl")).unwrap();
    assert!(samples.contains("n_ctx"), "the message names the limit");
}

/// A server that answers every request with the same bytes; ends when the test does.
fn answers(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().take(200) {
            let Ok(mut socket) = socket else { continue };
            let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            // Until the JSON body is whole: our client sends its length first.
            while let Ok(n) = socket.read(&mut chunk) {
                request.extend_from_slice(&chunk[..n]);
                let text = String::from_utf8_lossy(&request);
                let length = text
                    .to_ascii_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
                let body = text.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
                if n == 0 || length.is_some_and(|length| body >= length) {
                    break;
                }
            }
            let _ = socket.write_all(bytes.as_bytes());
        }
    });
    format!("openai-compatible:http://{address}/v1#m")
}

const CUT_STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
    data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";

#[test]
fn servers() {
    let desk = Desk::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases: [(String, &str, &[&str]); 5] = [
        (
            format!("openai-compatible:http://{free}/v1#m"),
            "transport",
            &["nothing listens", "--resume"],
        ),
        (
            answers(
                "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 50\r\nConnection: close\r\n\r\n{\"error\":{\"message\":\"bad key\",\"type\":\"auth\"}}     ",
            ),
            "auth",
            &["401", "bad key"],
        ),
        (
            answers(
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
            ),
            "",
            &["wait 3600 s", "--resume"],
        ),
        (
            answers(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>",
            ),
            "transport",
            &["text/html"],
        ),
        (answers(CUT_STREAM), "cut_stream", &["5 calls in a row failed"]),
    ];
    for (model, outcome, expected) in cases {
        let (code, text) = desk.eval(&desk.suite(&model));
        // The recorded answers are there, so there is a report, and it does not compare.
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("Not enough evidence"), "{text}");
        for expected in expected {
            assert!(text.contains(expected), "{text}\nwanted: {expected}");
        }
        let report = std::fs::read_to_string(desk.path().join("run/report.json")).unwrap();
        assert!(outcome.is_empty() || report.contains(&format!("\"{outcome}\":")), "{report}");
    }
}

#[test]
fn offline_builds_no_outward_client() {
    let desk = Desk::new();
    std::fs::write(
        desk.path().join("suite.toml"),
        desk.suite("openai-compatible:http://127.0.0.1:1/v1#m"),
    )
    .unwrap();
    let output = weighbridge(&["eval", "suite.toml", "--out", "run", "--offline"], desk.path());
    assert_eq!(output.status.code(), Some(3));
    assert!(printed(&output).contains("the run is offline"), "{}", printed(&output));
}
