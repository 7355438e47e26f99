//! Whole runs over scripted models: what is asked, what is kept, what follows.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use weighbridge::compare::Cause;
use weighbridge::report::{ControlResult, Report};
use weighbridge::verdict::Action;
use weighbridge::{
    Environment, ErrorKind, Evaluation, Placement, Plan, Plugin, Registry, Result, Retry, Start,
    Unobserved, Usage, evaluate, suite,
};
use weighbridge_testkit::{Scripted, ScriptedProvider, Step};

/// What a scripted model does with the `n`-th call (from 0) about a prompt.
type Script = fn(prompt: &str, n: usize) -> Step;

fn number(prompt: &str) -> u32 {
    prompt.trim_start_matches("q").parse().unwrap()
}

/// Right on every prompt: the data's answer to `qN` is `aN`.
fn right(prompt: &str, _: usize) -> Step {
    Step::say(prompt.replace('q', "a"))
}

fn wrong_every_third(prompt: &str, n: usize) -> Step {
    if number(prompt).is_multiple_of(3) { Step::say("no idea") } else { right(prompt, n) }
}

fn fails_every_tenth(prompt: &str, n: usize) -> Step {
    match number(prompt).is_multiple_of(10) {
        true => Step::Fail(ErrorKind::Truncated, "the stream ended early", None),
        false => right(prompt, n),
    }
}

/// Turns the first ten prompts away once.
fn busy_once(prompt: &str, n: usize) -> Step {
    let retry = Retry::Safe { after: Some(Duration::from_millis(1)) };
    match n {
        0 if number(prompt) < 10 => Step::Fail(ErrorKind::RateLimited, "slow down", Some(retry)),
        _ => right(prompt, n),
    }
}

fn no_key(_: &str, _: usize) -> Step {
    Step::Fail(ErrorKind::Auth, "the key is wrong", None)
}

fn down(_: &str, _: usize) -> Step {
    Step::Fail(ErrorKind::Transport, "nothing listens there", None)
}

fn wrong_on_odd(prompt: &str, n: usize) -> Step {
    if number(prompt) % 2 == 1 { Step::say("no idea") } else { right(prompt, n) }
}

/// Fails every other time it is asked the same.
fn fails_on_repeats(prompt: &str, n: usize) -> Step {
    match n % 2 {
        1 => Step::Fail(ErrorKind::Truncated, "the stream ended early", None),
        _ => right(prompt, n),
    }
}

const SCRIPTS: [(&str, Script); 8] = [
    ("odd", wrong_on_odd),
    ("flaky", fails_on_repeats),
    ("right", right),
    ("third", wrong_every_third),
    ("tenth", fails_every_tenth),
    ("busy", busy_once),
    ("nokey", no_key),
    ("down", down),
];

struct Bench {
    dir: tempfile::TempDir,
    models: Vec<Arc<Scripted>>,
    n_runs: AtomicU32,
}

impl Bench {
    fn new(n_samples: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut data = String::new();
        for i in 0..n_samples {
            let half = if i % 2 == 0 { "even" } else { "odd" };
            let secret = i < 5;
            writeln!(
                data,
                r#"{{"id":"s{i}","q":"q{i}","a":"a{i}","half":"{half}","secret":{secret}}}"#
            )
            .unwrap();
        }
        std::fs::write(dir.path().join("data.jsonl"), data).unwrap();
        let model = |id: &str, placement, script: Script| {
            let usage = Step::Use(Usage::new(100, 10));
            Scripted::with_script(id, placement, move |prompt, n| {
                vec![usage.clone(), script(prompt, n)]
            })
        };
        let near = SCRIPTS.iter().map(|(id, script)| model(id, Placement::InProcess, *script));
        let far = model("far", Placement::Network { host: "api.example".into() }, right);
        Self { dir, models: near.chain([far]).collect(), n_runs: AtomicU32::new(0) }
    }

    fn n_calls(&self) -> usize {
        self.models.iter().map(|model| model.requests().len()).sum()
    }

    fn environment(&self) -> Environment {
        let provider = ScriptedProvider::new(self.models.iter().cloned());
        let plugin = Plugin::new("scripted", "1").provider(provider);
        let plugins = [weighbridge::evaluators::plugin(), plugin];
        Environment::new(Registry::new(plugins).unwrap())
    }

    fn suite(&self, current: &str, challenger: &str, extra: &str) -> String {
        format!(
            "version = 1\nname = \"t\"\ncurrent = \"{current}\"\n\
             [data]\nfile = \"data.jsonl\"\nid = \"id\"\nslices = [\"half\"]\n\
             [prompt]\nuser = \"{{{{ q }}}}\"\n\
             [[candidate]]\nname = \"{current}\"\nmodel = \"scripted:{current}\"\n\
             [[candidate]]\nname = \"{challenger}\"\nmodel = \"scripted:{challenger}\"\n\
             [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n{extra}"
        )
    }

    fn run_text(&self, text: &str, dir: &Path, start: &Start) -> Result<Evaluation> {
        let suite = suite::read_str(text, self.dir.path(), "suite.toml")?;
        let plan = Plan::prepare(suite, &self.environment())?;
        evaluate(&plan, dir, start, &Unobserved)
    }

    fn run(&self, current: &str, challenger: &str, extra: &str) -> Result<Report> {
        let n = self.n_runs.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.path().join(format!("run{n}"));
        self.run_text(&self.suite(current, challenger, extra), &dir, &new()).map(|e| e.report)
    }
}

fn resume() -> Start {
    Start::Resume { resend: true, created: String::new() }
}

fn new() -> Start {
    Start::New { created: "2026-01-01T00:00:00Z".into() }
}

#[test]
fn a_worse_challenger_is_refused_and_the_files_are_there() {
    let bench = Bench::new(60);
    let dir = bench.dir.path().join("run");
    let evaluation = bench.run_text(&bench.suite("right", "third", ""), &dir, &new()).unwrap();
    let report = &evaluation.report;
    assert_eq!(report.verdict.action, Action::Stay);
    let table = report.comparisons[0].agreement.table.unwrap();
    assert_eq!((table.both, table.only_reference, table.only_candidate), (40, 20, 0));
    assert_eq!(report.comparisons[0].slices.len(), 2);
    let json = std::fs::read_to_string(dir.join("report.json")).unwrap();
    assert_eq!(&serde_json::from_str::<Report>(&json).unwrap(), report);
    let samples = std::fs::read_to_string(dir.join("samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 60);
    assert!(dir.join("report.html").exists());
    assert!(report.log_root.is_some());
}

#[test]
fn equal_models_are_not_called_different_and_nothing_is_gained_by_a_switch() {
    let report = Bench::new(200).run("right", "busy", "").unwrap();
    assert_eq!(report.verdict.action, Action::Stay);
    assert!(report.verdict.sentence.contains("good enough"), "{}", report.verdict.sentence);
    assert_eq!(report.candidates[1].outcomes["ok"], 200);
    assert_eq!(report.candidates[1].n_retried, 10);
}

#[test]
fn a_verdict_on_engines_says_that_it_is_not_one_on_models() {
    let bench = Bench::new(200);
    let third = "[[candidate]]\nname = \"again\"\nmodel = \"scripted:right\"\nweights_of = \"m\"\n";
    let text = |challenger: &str| {
        bench
            .suite("right", challenger, third)
            .replace(
                "model = \"scripted:right\"\n[",
                "model = \"scripted:right\"\nweights_of = \"m\"\n[",
            )
            .replace(
                "model = \"scripted:third\"\n",
                "model = \"scripted:third\"\nweights_of = \"m\"\n",
            )
    };
    let dir = |name: &str| bench.dir.path().join(name);
    let report = bench.run_text(&text("third"), &dir("a"), &new()).unwrap().report;
    let pairs: Vec<_> = report
        .comparisons
        .iter()
        .map(|c| &c.agreement)
        .chain(&report.other_pairs)
        .map(|a| (a.reference.as_str(), a.candidate.as_str(), a.n_same_answer, a.is_same_weights))
        .collect();
    let expected = [
        ("right", "third", 133, true),
        ("right", "again", 200, true),
        ("third", "again", 133, true),
    ];
    assert_eq!(pairs, expected);
    let sentence = &report.verdict.sentence;
    let said = "These are the same weights in two set-ups (scripted; scripted): 200 of 200 answers \
                are the same.";
    assert!(sentence.contains(said) && !sentence.contains("Look first"), "{sentence}");

    let text = text("third").replace(third, "");
    let report = bench.run_text(&text, &dir("b"), &new()).unwrap().report;
    assert!(report.other_pairs.is_empty());
    let sentence = &report.verdict.sentence;
    assert!(sentence.contains("133 of 200") && sentence.contains("Look first"), "{sentence}");
}

#[test]
fn a_local_model_as_good_as_a_far_one_is_worth_a_switch() {
    let report = Bench::new(200).run("far", "right", "").unwrap();
    assert_eq!(report.verdict.action, Action::Switch, "{}", report.verdict.sentence);
    let egress = &report.candidates[0].egress;
    assert_eq!((egress.n_samples, egress.n_attempts), (200, 200));
    assert!(egress.destination.contains("api.example"));
}

#[test]
fn failures_are_missing_data_and_lopsided_ones_forbid_the_comparison() {
    let report = Bench::new(100).run("right", "tenth", "").unwrap();
    let comparison = &report.comparisons[0];
    assert_eq!(comparison.n_pairs, 90);
    assert_eq!(comparison.failures.only_candidate, 10);
    assert_eq!(report.candidates[1].quality[0].mean, Some(1.0));
    assert_eq!(report.candidates[1].quality[0].missing["cut_stream"], 10);
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
    assert!(report.verdict.sentence.contains("missing answers"), "{}", report.verdict.sentence);
}

#[test]
fn few_pairs_are_a_reading_sheet() {
    let report = Bench::new(20).run("right", "third", "").unwrap();
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
    assert!(report.verdict.sentence.contains("reading sheet"), "{}", report.verdict.sentence);
}

#[test]
fn an_empty_scale_gives_no_advice() {
    let bench = Bench::new(60);
    let text = bench.suite("right", "third", "").replace("target = \"a\"", "target = \"q\"");
    let report = bench.run_text(&text, &bench.dir.path().join("run"), &new()).unwrap().report;
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
    assert!(report.verdict.sentence.contains("neither side"), "{}", report.verdict.sentence);
    assert!(report.verdict.next.contains("max_tokens"), "{}", report.verdict.next);
}

#[test]
fn a_wrong_key_is_tried_once_and_a_dead_server_five_times() {
    let bench = Bench::new(50);
    let extra = "[run]\nmax_attempts = 1\n";
    let report = bench.run("right", "nokey", extra).unwrap();
    // Calls that were on their way when the first answer came are let through.
    let n_tried = report.candidates[1].outcomes["auth"];
    assert!(n_tried <= 4, "{n_tried}");
    assert_eq!(report.candidates[1].n_not_run, 50 - n_tried);
    assert!(report.candidates[1].stopped.as_ref().unwrap().contains("the key is wrong"));

    let report = bench.run("right", "down", extra).unwrap();
    let n_tried = report.candidates[1].outcomes["transport"];
    assert!((5..=8).contains(&n_tried), "{n_tried}");
    let why = report.candidates[1].stopped.as_ref().unwrap();
    assert!(why.contains("nothing listens there") && why.contains("--resume"), "{why}");
}

#[test]
fn when_no_model_answers_there_is_an_error_and_no_report() {
    let error = Bench::new(40).run("nokey", "down", "").unwrap_err();
    assert!(error.to_string().contains("no model answered"), "{error}");
}

#[test]
fn sensitive_samples_never_reach_a_model_elsewhere() {
    let bench = Bench::new(60);
    let extra = "";
    let text = bench
        .suite("far", "third", extra)
        .replace("id = \"id\"", "id = \"id\"\nsensitive = \"secret\"");
    let dir = bench.dir.path().join("run");
    let report = bench.run_text(&text, &dir, &new()).unwrap().report;
    assert_eq!(report.candidates[0].egress.n_withheld, 5);
    assert_eq!(report.candidates[0].outcomes["withheld"], 5);
    assert_eq!(report.comparisons[0].n_pairs, 55);
    // 55 to the far model, 60 to the local one.
    assert_eq!(bench.n_calls(), 115);
    assert_eq!(report.comparisons[0].failures.only_reference, 0);
    // What one side must not see is outside of the comparison, and does not forbid it.
    assert_eq!(report.comparisons[0].n_withheld, 5);
    assert_eq!(report.verdict.action, Action::Stay, "{}", report.verdict.sentence);
    assert!(report.verdict.sentence.contains("5 sensitive samples"), "{}", report.verdict.sentence);
}

#[test]
fn a_hybrid_sends_only_slices_that_are_proven_good_enough() {
    let report = Bench::new(400).run("far", "odd", "").unwrap();
    assert_eq!(report.verdict.action, Action::Hybrid, "{}", report.verdict.sentence);
    assert_eq!(report.verdict.slices, ["half=even"]);
    // Without a gain there is nothing to split for.
    let report = Bench::new(400).run("right", "odd", "").unwrap();
    assert_eq!(report.verdict.action, Action::Stay, "{}", report.verdict.sentence);
}

#[test]
fn failed_repeats_are_counted_although_another_repeat_has_a_score() {
    let report = Bench::new(50).run("far", "flaky", "[run]\nrepeats = 2\n").unwrap();
    let comparison = &report.comparisons[0];
    assert_eq!(comparison.n_pairs, 50);
    assert_eq!(comparison.failures.only_candidate, 50);
    assert_eq!(comparison.evidence.cause, Some(Cause::MissingAnswers));
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
}

#[test]
fn several_challengers_share_the_error_rate() {
    let bench = Bench::new(200);
    let extra = "[[candidate]]\nname = \"second\"\nmodel = \"scripted:busy\"\n";
    let report = bench.run("far", "third", extra).unwrap();
    let levels: Vec<f64> =
        report.comparisons.iter().map(|c| c.difference.as_ref().unwrap().interval.level).collect();
    assert!(levels.iter().all(|level| (level - 0.975).abs() < 1e-12), "{levels:?}");
    assert_eq!(report.verdict.challenger.as_deref(), Some("second"));
    assert_eq!(report.verdict.action, Action::Switch, "{}", report.verdict.sentence);
}

#[test]
fn a_control_that_cannot_be_decided_does_not_break_the_scale() {
    let control = "[[candidate]]\nname = \"c\"\nmodel = \"scripted:third\"\ncontrol_only = true\n\
                   [[control]]\nname = \"damaged\"\nreference = \"right\"\ncandidate = \"c\"\n\
                   expect = \"refuse_switch\"\n";
    let report = Bench::new(20).run("right", "third", control).unwrap();
    assert_eq!(report.controls[0].result, ControlResult::NotDecidable);
    assert!(report.verdict.sentence.contains("reading sheet"), "{}", report.verdict.sentence);
}

#[test]
fn the_spend_cap_stops_before_it_is_exceeded() {
    let price = "price = { input_per_million = 1000.0, output_per_million = 1000.0, source = \"x\", as_of = \"2026-01-01\" }";
    let bench = Bench::new(60);
    let text = bench
        .suite("right", "third", "[run]\nspend_cap_usd = 3.0\n")
        .replace("model = \"scripted:third\"", &format!("model = \"scripted:third\"\n{price}"));
    let dir = bench.dir.path().join("run");
    let report = bench.run_text(&text, &dir, &new()).unwrap().report;
    assert!(report.spent_usd <= 3.0, "{}", report.spent_usd);
    // A call costs 0.11 really and at most about 0.53, which is what is set aside before it.
    assert!(report.spent_usd > 2.3, "{}", report.spent_usd);
    assert!(report.candidates[1].stopped.as_ref().unwrap().contains("spend cap"));
    assert!(report.candidates[1].n_not_run > 0);
}

#[test]
fn a_finished_run_resumes_to_the_same_report_without_a_call() {
    let bench = Bench::new(50);
    let dir = bench.dir.path().join("run");
    let text = bench.suite("right", "third", "");
    let first = bench.run_text(&text, &dir, &new()).unwrap().report;
    let n_calls = bench.n_calls();
    let second = bench.run_text(&text, &dir, &resume()).unwrap().report;
    assert_eq!(first, second);
    assert_eq!(bench.n_calls(), n_calls);

    let changed = bench.suite("right", "third", "[decision]\nmargin_points = 3.0\n");
    let report = bench.run_text(&changed, &dir, &resume()).unwrap().report;
    assert_eq!(report.changed_since_start, ["suite.decision.margin_points: 5.0 → 3.0"]);
    assert_eq!(bench.n_calls(), n_calls);
    let changed = text.replace("{{ q }}", "{{ q }}!");
    let error = bench.run_text(&changed, &dir, &resume()).unwrap_err();
    assert!(error.to_string().contains("arms[0].prompt_sha256"), "{error}");
    let changed = text.replace("id = \"id\"", "id = \"id\"\nlimit = 40");
    let error = bench.run_text(&changed, &dir, &resume()).unwrap_err();
    assert!(error.to_string().contains("data.limit: null → 40"), "{error}");
    let error = bench.run_text(&text, &dir, &new()).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let bench = Bench::new(60);
    let dir = bench.dir.path().join("run");
    let text = |cap: &str| {
        let price = "price = { input_per_million = 1000.0, output_per_million = 1000.0, source = \"x\", as_of = \"2026-01-01\" }";
        bench
            .suite("right", "third", &format!("[run]\nspend_cap_usd = {cap}\n"))
            .replace("model = \"scripted:third\"", &format!("model = \"scripted:third\"\n{price}"))
    };
    let first = bench.run_text(&text("3.0"), &dir, &new()).unwrap().report;
    assert!(first.candidates[1].n_not_run > 0);
    // The same suite: what was answered stays, and the cap still holds.
    let second = bench.run_text(&text("3.0"), &dir, &resume()).unwrap().report;
    assert_eq!(first.candidates[1].outcomes, second.candidates[1].outcomes);
    assert!(second.spent_usd <= 3.0);
}

#[test]
fn recorded_answers_are_candidates_like_any_other() {
    let bench = Bench::new(40);
    let mut csv = String::from("key,said\n");
    for i in 0..39 {
        writeln!(csv, "s{i},a{i}").unwrap();
    }
    std::fs::write(bench.dir.path().join("log.csv"), csv).unwrap();
    let text = bench.suite("right", "third", "").replace(
        "model = \"scripted:third\"",
        "model = \"recorded:log.csv#said\"\noptions = { id = \"key\" }",
    );
    let report = bench.run_text(&text, &bench.dir.path().join("run"), &new()).unwrap().report;
    assert_eq!(report.candidates[1].quality[0].mean, Some(1.0));
    assert_eq!(report.candidates[1].quality[0].missing["bad_request"], 1);
    assert!(report.candidates[1].latency.is_none());
}

#[test]
fn mistakes_are_found_before_any_call() {
    let bench = Bench::new(40);
    let cases = [
        (
            bench.suite("right", "third", "").replace("scripted:third", "llama-cpp:x.gguf"),
            "unknown provider `llama-cpp`; known: `recorded`, `scripted`",
        ),
        (
            bench.suite("right", "third", "").replace("{{ q }}", "{{ question }}"),
            "`question`, which is no column",
        ),
        (
            bench.suite("right", "third", "").replace("target = \"a\"", "target = \"b\""),
            "needs the column `b`",
        ),
        (
            bench.suite("right", "third", "").replace("exact_match", "exact_mach"),
            "unknown evaluator `exact_mach`",
        ),
        (
            bench.suite("right", "third", "").replace("target = \"a\"", "tarket = \"a\""),
            "unknown option `tarket` of evaluator `exact_match`",
        ),
        (bench.suite("right", "third", "[request]\ntop_k = 3\n"), "cannot honour `top_k`"),
        (
            bench.suite("right", "third", "").replace("data.jsonl", "nothing.jsonl"),
            "nothing.jsonl: cannot open",
        ),
        (
            bench.suite("right", "third", "").replace("scripted:third", "scripted:${PORT}"),
            "--define PORT=VALUE",
        ),
    ];
    for (text, expected) in cases {
        let error = bench.run_text(&text, &bench.dir.path().join("never"), &new()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}\nwanted: {expected}");
    }
    assert_eq!(bench.n_calls(), 0);
}

#[test]
fn a_failed_control_takes_the_verdict_away() {
    let control = "[[candidate]]\nname = \"c\"\nmodel = \"scripted:third\"\ncontrol_only = true\n\
                   [[control]]\nname = \"twice\"\nreference = \"right\"\ncandidate = \"c\"\n\
                   expect = \"no_difference\"\n";
    let bench = Bench::new(60);
    let report = bench.run("right", "third", control).unwrap();
    assert_eq!(report.controls[0].result, ControlResult::Failed);
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
    assert!(report.verdict.sentence.contains("cannot be trusted"));
    let holds = control.replace("no_difference", "refuse_switch");
    let report = bench.run("right", "third", &holds).unwrap();
    assert_eq!(report.controls[0].result, ControlResult::AsExpected);
    assert_eq!(report.verdict.action, Action::Stay);
}

#[test]
fn without_gold_answers_only_agreement_is_shown() {
    let bench = Bench::new(60);
    let text = bench.suite("right", "third", "");
    let text = text.split("[[evaluator]]").next().unwrap();
    let report = bench.run_text(text, &bench.dir.path().join("run"), &new()).unwrap().report;
    let comparison = &report.comparisons[0];
    let agreement = &comparison.agreement;
    assert_eq!((agreement.n_same_answer, agreement.n_both_answered), (40, 60));
    assert_eq!(report.verdict.action, Action::NotEnoughEvidence);
    assert!(report.verdict.sentence.contains("agreement between models is not accuracy"));
}
