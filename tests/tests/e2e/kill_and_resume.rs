//! `kill -9` at random points, then `--resume`: the report of an undisturbed run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Served, printed, program, root, weighbridge};

/// Random points at which a run is killed.
const N_KILLS: u32 = 50;
/// The same in a full test run.
const N_KILLS_FULL: u32 = 300;
const N_SAMPLES: usize = 30;
const CONCURRENCY: u64 = 4;

fn suite() -> String {
    let data = root().join("fixtures/workloads/triage-300.jsonl");
    let open = root().join("fixtures/triage-open");
    format!(
        r#"
version = 1
name = "kill"
current = "served"
[data]
file = {data:?}
id = "id"
limit = {N_SAMPLES}
[prompt]
user = "Triage this email as JSON with queue, order, urgency.\n\n{{{{ email }}}}"
[request]
max_tokens = 64
[[evaluator]]
kind = "json_fields"
target = "target"
[[candidate]]
name = "served"
model = "openai-compatible:${{SERVER}}#open"
weights = "stand_in"
options = {{ verified = true }}
concurrency = {CONCURRENCY}
[[candidate]]
name = "in-process"
model = "candle:{}"
concurrency = {CONCURRENCY}
"#,
        open.display()
    )
}

/// Removes what differs between runs: times, names given by the server, numbers of attempts, and how
/// many calls a kill left without a known end.
fn mask(value: &mut Value) {
    const VOLATILE: [&str; 11] = [
        "latency",
        "created",
        "log_root",
        "total_ms",
        "n_attempts",
        "n_prompt_bytes",
        "axes",
        "n_cached",
        "n_retried",
        "response_id",
        "n_unknown_calls",
    ];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
            fields.values_mut().for_each(mask);
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}

fn masked(dir: &Path) -> Value {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let mut report: Value = serde_json::from_str(&read("report.json")).unwrap();
    mask(&mut report);
    let samples: Vec<Value> = read("samples.jsonl")
        .lines()
        .map(|line| {
            let mut sample: Value = serde_json::from_str(line).unwrap();
            mask(&mut sample);
            sample
        })
        .collect();
    serde_json::json!({"report": report, "samples": samples})
}

/// The first place at which two values differ.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    if a == b {
        return None;
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) if x.keys().eq(y.keys()) => {
            x.iter().find_map(|(k, a)| difference(&format!("{path}.{k}"), a, &y[k]))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let mut pairs = x.iter().zip(y).enumerate();
            pairs.find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        _ => Some(format!("{path}: {a} instead of {b}")),
    }
}

/// Numbers that look random and repeat.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn fifty_kills_change_nothing_and_repeat_at_most_the_calls_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("suite.toml"), suite()).unwrap();
    let server = Served::start("candle:fixtures/triage-open", "open");
    let define = format!("SERVER={}", server.url);
    let common = ["eval", "suite.toml", "--define", &define, "--quiet"];

    // The first run is slower than those that follow: the server remembers its prompts. Kills that
    // are timed by it come after the end of most.
    let mut undisturbed = Duration::ZERO;
    for out in ["whole", "again"] {
        let started = Instant::now();
        let output = weighbridge(&[&common[..], &["--out", out]].concat(), dir.path());
        assert!(output.status.success(), "{}", printed(&output));
        undisturbed = started.elapsed();
    }
    let expected = masked(&dir.path().join("whole"));
    let mut n_before = server.n_started("open");
    assert_eq!(n_before, 2 * N_SAMPLES as u64);

    let mut state = 20_260_101;
    let mut n_killed_while_running = 0;
    let is_full = std::env::var_os("WEIGHBRIDGE_FULL_TESTS").is_some();
    let n_kills = if is_full { N_KILLS_FULL } else { N_KILLS };
    for kill in 0..n_kills {
        let run = format!("run{kill}");
        let mut child = Command::new(program())
            .args(common)
            .args(["--out", &run])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let wait = undisturbed.as_micros() as u64 * (next(&mut state) % 1000) / 1000;
        std::thread::sleep(Duration::from_micros(wait));
        let was_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        n_killed_while_running += u32::from(was_running);

        // Killed before the run had a log: there is nothing to resume, and nothing was asked.
        let has_log = dir.path().join(&run).join("log/000000.wbr").exists();
        let resumed = match has_log {
            true => weighbridge(&[&common[..], &["--resume", &run]].concat(), dir.path()),
            false => weighbridge(&[&common[..], &["--out", &run]].concat(), dir.path()),
        };
        assert!(resumed.status.success(), "kill {kill} after {wait} µs: {}", printed(&resumed));
        let found = masked(&dir.path().join(&run));
        if let Some(difference) = difference("", &found, &expected) {
            panic!("kill {kill} after {wait} µs changed the report at {difference}");
        }
        let n_now = server.n_started("open");
        let n_calls = n_now - n_before;
        assert!(
            (N_SAMPLES as u64..=N_SAMPLES as u64 + CONCURRENCY).contains(&n_calls),
            "kill {kill} after {wait} µs: the server saw {n_calls} calls"
        );
        n_before = n_now;
    }
    println!("{n_kills} kills, {n_killed_while_running} of them while it ran: the same reports");
    assert!(n_killed_while_running > n_kills / 4, "only {n_killed_while_running} kills hit a run");
}
