//! `kill -9` while a vendor works on a batch job, then `--resume`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weighbridge_testkit::batch_vendor::{Api, BatchVendor, Habits, Reply};

use crate::support::{printed, program, root, weighbridge};

const N_SAMPLES: u64 = 12;

fn suite(provider: &str, url: &str, options: &str) -> String {
    let data = root().join("fixtures/workloads/triage-300.jsonl");
    format!(
        r#"
version = 1
name = "batch"
current = "closed"
[data]
file = {data:?}
id = "id"
limit = {N_SAMPLES}
[prompt]
user = "Triage this email.\n\n{{{{ email }}}}"
[request]
max_tokens = 64
[[candidate]]
name = "closed"
model = "{provider}:m"
batch = true
options = {{ base_url = "{url}", api_key_env = ""{options} }}
price = {{ input_per_million = 1.0, output_per_million = 2.0, batch_factor = 0.5, source = "x", as_of = "2026-01-01" }}
[[evaluator]]
kind = "json_fields"
target = "target"
[run]
batch_poll_s = 0.05
"#
    )
}

#[test]
fn a_killed_run_goes_on_with_the_job_that_it_handed_in() {
    for (api, provider, options) in [
        (Api::OpenAi, "openai", ""),
        (Api::OpenAi, "openai", ", api = \"chat\""),
        (Api::Anthropic, "anthropic", ""),
        (Api::Gemini, "gemini", ""),
    ] {
        let habits = Habits { holds: true, ..Habits::default() };
        let vendor = BatchVendor::start(api, habits, |_| Reply::Text("{}".to_owned()));
        let dir = tempfile::tempdir().unwrap();
        let suite = suite(provider, &vendor.url(), options);
        std::fs::write(dir.path().join("suite.toml"), suite).unwrap();
        let mut child = Command::new(program())
            .args(["eval", "suite.toml", "--quiet", "--out", "run"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It waits: the job was asked for twice.
        let is_poll = |head: &str| head.starts_with("GET") && head.contains("/job0");
        let started = Instant::now();
        while vendor.journal().iter().filter(|request| is_poll(&request.head)).count() < 2 {
            assert!(started.elapsed() < Duration::from_secs(60), "no job was waited for");
            assert!(child.try_wait().unwrap().is_none(), "{provider}: the run ended early");
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        vendor.release();

        let resumed =
            weighbridge(&["eval", "suite.toml", "--quiet", "--resume", "run"], dir.path());
        assert!(resumed.status.success(), "{}", printed(&resumed));
        let journal = vendor.journal();
        let n_created = journal
            .iter()
            .filter(|request| {
                request.head.starts_with("POST") && !request.path().ends_with("files")
            })
            .count();
        assert_eq!((n_created, vendor.n_jobs()), (1, 1), "{provider}");
        let text = std::fs::read_to_string(dir.path().join("run/report.json")).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        let candidate = &report["candidates"][0];
        assert_eq!(candidate["outcomes"]["ok"], N_SAMPLES, "{}", candidate["outcomes"]);
        assert_eq!(candidate["latency"], Value::Null);
        assert_eq!(report["n_unknown_calls"], 0);
        // Seven prompt and three generated tokens each, at half of the price.
        let cost = report["spent_usd"].as_f64().unwrap();
        assert!((cost - N_SAMPLES as f64 * 13.0e-6 / 2.0).abs() < 1e-12, "{cost}");
    }
}
