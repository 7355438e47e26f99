//! Runs against services with limits: what is parked, what stops, and what it may cost.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weighbridge::report::Report;
use weighbridge::{
    Environment, ErrorKind, Placement, Plan, Plugin, Registry, Retry, Start, Unobserved, Usage,
    evaluate, suite,
};
use weighbridge_testkit::{Scripted, ScriptedProvider, Step};

const PRICE: &str = "price = { input_per_million = 1000.0, output_per_million = 1000.0, \
                     source = \"x\", as_of = \"2026-01-01\" }";

fn right(prompt: &str) -> Vec<Step> {
    vec![Step::Use(Usage::new(100, 10)), Step::say(prompt.replace('q', "a"))]
}

fn far(script: impl Fn(&str, usize) -> Vec<Step> + Send + Sync + 'static) -> Arc<Scripted> {
    let placement = Placement::Network { host: "api.example".into() };
    Scripted::with_script("far", placement, script)
}

fn fail(kind: ErrorKind, after: Option<u64>) -> Vec<Step> {
    let retry = match kind {
        ErrorKind::Quota | ErrorKind::Auth => None,
        _ => Some(Retry::Safe { after: after.map(Duration::from_millis) }),
    };
    vec![Step::Wait(Duration::from_millis(5)), Step::Fail(kind, "refused", retry)]
}

/// Compares a model on this machine with one that is far, which `extra` may give settings.
fn compare(far: &Arc<Scripted>, n_samples: u32, extra: &str) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let mut data = String::new();
    for i in 0..n_samples {
        writeln!(data, r#"{{"id":"s{i}","q":"q{i}","a":"a{i}"}}"#).unwrap();
    }
    std::fs::write(dir.path().join("data.jsonl"), data).unwrap();
    let text = format!(
        "version = 1\nname = \"t\"\ncurrent = \"near\"\n\
         [data]\nfile = \"data.jsonl\"\nid = \"id\"\n\
         [prompt]\nuser = \"{{{{ q }}}}\"\n\
         [[candidate]]\nname = \"near\"\nmodel = \"scripted:near\"\n\
         [[candidate]]\nname = \"far\"\nmodel = \"scripted:far\"\nconcurrency = 4\n{PRICE}\n\
         request = {{ max_tokens = 400 }}\n\
         [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n{extra}"
    );
    let near = Scripted::with_script("near", Placement::InProcess, |prompt, _| right(prompt));
    let plugin = Plugin::new("scripted", "1").provider(ScriptedProvider::new([near, far.clone()]));
    let registry = Registry::new([weighbridge::evaluators::plugin(), plugin]).unwrap();
    let suite = suite::read_str(&text, dir.path(), "suite.toml").unwrap();
    let plan = Plan::prepare(suite, &Environment::new(registry)).unwrap();
    let start = Start::New { created: String::new() };
    let report = evaluate(&plan, &dir.path().join("run"), &start, &Unobserved).unwrap().report;
    assert_eq!(report.candidates[0].outcomes["ok"], u64::from(n_samples), "the other arm goes on");
    report
}

#[test]
fn a_quota_or_a_wrong_key_costs_one_request() {
    for (kind, outcome) in [(ErrorKind::Quota, "quota"), (ErrorKind::Auth, "auth")] {
        let far = far(move |_, _| fail(kind, None));
        let report = compare(&far, 40, "");
        assert_eq!(far.requests().len(), 1, "{kind}");
        assert_eq!(report.candidates[1].outcomes[outcome], 1);
        assert_eq!(report.candidates[1].n_not_run, 39);
        assert!(report.candidates[1].stopped.as_ref().unwrap().contains("--resume"));
        assert_eq!((report.spent_usd, report.maybe_spent_usd), (0.0, 0.0));
    }
}

#[test]
fn a_service_that_asks_for_an_hour_is_parked_with_its_time() {
    let far = far(|prompt, _| match prompt {
        "q7" => fail(ErrorKind::RateLimited, Some(3_600_000)),
        prompt => right(prompt),
    });
    let start = Instant::now();
    let report = compare(&far, 60, "[run]\nspend_cap_usd = 100.0\n");
    assert!(start.elapsed() < Duration::from_secs(20), "nobody sleeps for an hour");
    let why = report.candidates[1].stopped.as_ref().unwrap();
    assert!(why.contains("wait 3600 s, until 2") && why.contains(" UTC (refused)"), "{why}");
    assert!(report.candidates[1].n_not_run > 0);
    assert_eq!(far.n_asked("q7"), 1);
}

#[test]
fn a_short_hint_is_waited_for() {
    let far = far(|prompt, n| match (prompt, n) {
        ("q3", 0) => fail(ErrorKind::RateLimited, Some(300)),
        (prompt, _) => right(prompt),
    });
    let start = Instant::now();
    let report = compare(&far, 10, "[run]\nspend_cap_usd = 100.0\n");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!((report.candidates[1].outcomes["ok"], far.n_asked("q3")), (10, 2));
}

#[test]
fn a_service_that_goes_down_is_probed_and_then_left_alone() {
    let far = far(|prompt, _| match prompt {
        "q0" | "q1" => right(prompt),
        _ => fail(ErrorKind::Overloaded, None),
    });
    let report = compare(&far, 60, "[run]\nspend_cap_usd = 1000.0\nmax_attempts = 20\n");
    let n_attempts = far.requests().len() as u64;
    // Five in a row open the circuit, four are on their way by then, and five probes find nothing.
    assert!((10..=2 + 5 + 4 + 5).contains(&n_attempts), "{n_attempts}");
    let why = report.candidates[1].stopped.as_ref().unwrap();
    assert!(why.contains("answered none of 5 probes") && why.contains("--resume"), "{why}");
}

/// The most that one call of these tests can cost: 400 tokens and the bytes of the prompt.
const MAX_USD: f64 = 0.43;

#[test]
fn calls_at_once_and_repetitions_stay_below_the_cap_together() {
    for n_busy in [0, 1, 2] {
        let far = far(move |prompt, n| match n < n_busy && prompt.ends_with(['1', '2', '5']) {
            true => fail(ErrorKind::RateLimited, Some(1)),
            false => right(prompt),
        });
        let report = compare(&far, 60, "[run]\nspend_cap_usd = 2.0\n");
        assert!(report.spent_usd <= 2.0, "{}", report.spent_usd);
        // Refusals cost nothing, so money is left only for less than one more call.
        assert!(report.spent_usd + MAX_USD > 2.0 - 0.11, "{}", report.spent_usd);
        assert_eq!(report.maybe_spent_usd, 0.0);
        assert!(report.candidates[1].stopped.as_ref().unwrap().contains("spend cap"));
    }
}

#[test]
fn what_may_have_been_billed_counts_in_full() {
    for kind in [ErrorKind::Truncated, ErrorKind::Timeout, ErrorKind::ServerError] {
        // One in three fails unseen, and its usage is never told.
        let far = far(move |prompt, _| match prompt.ends_with(['0', '3', '6']) {
            true => fail(kind, Some(1)),
            false => right(prompt),
        });
        let report = compare(&far, 60, "[run]\nspend_cap_usd = 5.0\n");
        let n_unseen = far.requests().len() as f64 - report.candidates[1].outcomes["ok"] as f64;
        assert!(report.spent_usd + report.maybe_spent_usd <= 5.0, "{report:?}");
        assert!(n_unseen > 1.0);
        let per_call = report.maybe_spent_usd / n_unseen;
        assert!((0.4..=MAX_USD).contains(&per_call), "{kind}: {per_call}");
    }
}

#[test]
fn an_answer_without_usage_counts_in_full() {
    let far = far(|prompt, _| vec![Step::Use(Usage::default()), Step::say(prompt)]);
    let report = compare(&far, 60, "[run]\nspend_cap_usd = 3.0\n");
    let n_calls = far.requests().len();
    assert_eq!(report.spent_usd, 0.0);
    assert!(report.maybe_spent_usd <= 3.0 && report.maybe_spent_usd > 3.0 - MAX_USD);
    // 7 times 0.42 is as near to 3 as whole calls come.
    assert_eq!(n_calls, 7);
}
