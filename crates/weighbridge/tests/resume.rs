//! Runs that are broken off and go on: what is made again, what stands, and what may change.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weighbridge::report::Report;
use weighbridge::{
    Environment, ErrorKind, Placement, Plan, Plugin, Registry, Result, Retry, Start, Unobserved,
    Usage, evaluate, run, suite,
};
use weighbridge_testkit::{Scripted, ScriptedProvider, Step};

/// What is wrong with a model; each model is right where nothing is.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Key,
    CutAfterContent(&'static str),
    /// The engine dies of these prompts only.
    EngineOn(fn(&str) -> bool),
    Overloaded(&'static str),
    ComeBackLater,
    NoSuchModel,
    BadRequest,
    Engine,
    /// The process dies in the middle of the call.
    Crash(&'static str),
}

type Faults = Arc<Mutex<BTreeMap<&'static str, Fault>>>;

/// A model that is right but for its fault.
fn model(id: &'static str, placement: Placement, faults: &Faults) -> Arc<Scripted> {
    let faults = Arc::clone(faults);
    Scripted::with_script(id, placement, move |prompt, _| {
        let fault = faults.lock().unwrap().get(id).copied();
        fault.and_then(|fault| fault.steps(prompt)).unwrap_or_else(|| {
            vec![Step::Use(Usage::new(100, 10)), Step::say(prompt.replace('q', "a"))]
        })
    })
}

impl Fault {
    /// What the model does instead of an answer to this prompt, if the fault strikes.
    fn steps(self, prompt: &str) -> Option<Vec<Step>> {
        let fail = |kind, message| Some(vec![Step::Fail(kind, message, None)]);
        match self {
            Self::Key => fail(ErrorKind::Auth, "the key is wrong"),
            Self::NoSuchModel => fail(ErrorKind::NotFound, "no such model"),
            Self::BadRequest => fail(ErrorKind::InvalidRequest, "no such option"),
            Self::Engine => fail(ErrorKind::Engine, "out of memory"),
            Self::EngineOn(dies) if dies(prompt) => fail(ErrorKind::Engine, "out of memory"),
            Self::ComeBackLater => {
                let retry = Retry::Safe { after: Some(Duration::from_secs(3600)) };
                Some(vec![Step::Fail(ErrorKind::RateLimited, "come back later", Some(retry))])
            }
            Self::CutAfterContent(at) if at == prompt => {
                let cut =
                    Step::Fail(ErrorKind::Truncated, "the stream ended early", Some(Retry::Never));
                Some(vec![Step::say("a"), cut])
            }
            Self::Overloaded(at) if at == prompt => {
                let retry = Retry::Safe { after: None };
                Some(vec![Step::Fail(ErrorKind::Overloaded, "busy", Some(retry))])
            }
            Self::Crash(at) if at == prompt => panic!("the process died"),
            _ => None,
        }
    }
}

const N: u64 = 50;
const PRICE: &str = "price = { input_per_million = 1000.0, output_per_million = 1000.0, \
                     source = \"x\", as_of = \"2026-01-01\" }\n";

struct Bench {
    dir: tempfile::TempDir,
    faults: Faults,
    near: Arc<Scripted>,
    far: Arc<Scripted>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut data = String::new();
        for i in 0..N {
            let secret = i < 5;
            writeln!(data, r#"{{"id":"s{i}","q":"q{i}","a":"a{i}","secret":{secret}}}"#).unwrap();
        }
        std::fs::write(dir.path().join("data.jsonl"), data).unwrap();
        let faults = Faults::default();
        let near = model("near", Placement::InProcess, &faults);
        let far = model("far", Placement::Network { host: "api.example".into() }, &faults);
        Self { dir, faults, near, far }
    }

    fn set(&self, model: &'static str, fault: impl Into<Option<Fault>>) {
        let mut faults = self.faults.lock().unwrap();
        match fault.into() {
            Some(fault) => faults.insert(model, fault),
            None => faults.remove(model),
        };
    }

    fn n_calls(&self, model: &str, prompt: &str) -> usize {
        match model {
            "near" => self.near.n_asked(prompt),
            _ => self.far.n_asked(prompt),
        }
    }

    fn n_all_calls(&self) -> usize {
        self.near.requests().len() + self.far.requests().len()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn plan(&self, text: &str) -> Result<Plan> {
        let models = [Arc::clone(&self.near), Arc::clone(&self.far)];
        let plugin = Plugin::new("scripted", "1").provider(ScriptedProvider::new(models));
        let registry = Registry::new([weighbridge::evaluators::plugin(), plugin]).unwrap();
        let suite = suite::read_str(text, self.dir.path(), "suite.toml")?;
        Plan::prepare(suite, &Environment::new(registry))
    }

    fn eval(&self, text: &str, start: &Start) -> Result<Report> {
        evaluate(&self.plan(text)?, &self.run_dir(), start, &Unobserved).map(|e| e.report)
    }

    fn changes(&self, text: &str) -> Vec<String> {
        let plan = self.plan(text).unwrap();
        run::run(&plan, &self.run_dir(), &resume(), &Unobserved).unwrap().changed_since_start
    }
}

/// `near` is the current model, `far` the challenger, on another machine.
fn text(extra: &str) -> String {
    format!(
        "version = 1\nname = \"t\"\ncurrent = \"near\"\n\
         [data]\nfile = \"data.jsonl\"\nid = \"id\"\n\
         [prompt]\nuser = \"{{{{ q }}}}\"\n\
         [[candidate]]\nname = \"near\"\nmodel = \"scripted:near\"\n\
         [[candidate]]\nname = \"far\"\nmodel = \"scripted:far\"\n\
         [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n{extra}"
    )
}

fn priced(extra: &str) -> String {
    text(extra).replace("model = \"scripted:far\"\n", &format!("model = \"scripted:far\"\n{PRICE}"))
}

fn recorded(file: &str, options: &str) -> String {
    let model = format!("model = \"recorded:{file}#said\"\n{options}");
    text("").replace("model = \"scripted:far\"\n", &model)
}

fn new() -> Start {
    Start::New { created: "2026-01-01T00:00:00Z".into() }
}

fn resume() -> Start {
    Start::Resume { resend: true, created: String::new() }
}

fn no_resend() -> Start {
    Start::Resume { resend: false, created: String::new() }
}

/// Outcomes of the challenger.
fn far(report: &Report) -> &BTreeMap<String, u64> {
    &report.candidates[1].outcomes
}

fn all_ok(report: &Report) -> bool {
    report.candidates.iter().all(|c| c.outcomes.get("ok") == Some(&N) && c.stopped.is_none())
}

#[test]
fn a_mended_key_gives_all_answers() {
    let bench = Bench::new();
    bench.set("far", Fault::Key);
    let first = bench.eval(&text(""), &new()).unwrap();
    let n_failed = far(&first)["auth"];
    assert!(n_failed <= 4, "{n_failed}");
    assert!(first.candidates[1].stopped.is_some() && first.log_root.is_none());

    // Still wrong: what was seen stands, and is not forgotten.
    let second = bench.eval(&text(""), &resume()).unwrap();
    assert!(far(&second)["auth"] >= n_failed);
    assert!(second.candidates[1].stopped.is_some() && second.log_root.is_none());

    bench.set("far", None);
    let third = bench.eval(&text(""), &resume()).unwrap();
    assert!(all_ok(&third), "{:?}", far(&third));
    assert!(third.log_root.is_some());
    assert_eq!(bench.n_calls("near", "q1"), 1);
}

#[test]
fn a_cut_stream_is_not_sent_again_until_a_resume() {
    let bench = Bench::new();
    bench.set("far", Fault::CutAfterContent("q7"));
    let first = bench.eval(&text(""), &new()).unwrap();
    assert_eq!((far(&first)["cut_stream"], far(&first)["ok"]), (1, N - 1));
    assert_eq!(bench.n_calls("far", "q7"), 1);
    assert!(first.log_root.is_none());

    bench.set("far", None);
    let second = bench.eval(&text(""), &resume()).unwrap();
    assert!(all_ok(&second) && second.log_root.is_some());
    assert_eq!(bench.n_calls("far", "q7"), 2);
    assert_eq!(bench.n_all_calls() as u64, 2 * N + 1);
}

#[test]
fn every_resume_has_its_own_budget_of_attempts() {
    let bench = Bench::new();
    let text = text("[run]\nmax_attempts = 2\n");
    bench.set("far", Fault::Overloaded("q7"));
    let first = bench.eval(&text, &new()).unwrap();
    assert_eq!((far(&first)["overloaded"], bench.n_calls("far", "q7")), (1, 2));
    let second = bench.eval(&text, &resume()).unwrap();
    assert_eq!((far(&second)["overloaded"], bench.n_calls("far", "q7")), (1, 4));
    assert!(second.log_root.is_none());
    bench.set("far", None);
    assert!(all_ok(&bench.eval(&text, &resume()).unwrap()));
    assert_eq!(bench.n_calls("far", "q7"), 5);
}

#[test]
fn a_service_that_asks_for_an_hour_is_asked_again_by_a_resume() {
    let bench = Bench::new();
    bench.set("far", Fault::ComeBackLater);
    let first = bench.eval(&text(""), &new()).unwrap();
    let stopped = first.candidates[1].stopped.as_ref().unwrap();
    assert!(stopped.contains("wait 3600 s"), "{stopped}");
    assert!((1..=4).contains(&far(&first)["rate_limited"]));
    bench.set("far", None);
    assert!(all_ok(&bench.eval(&text(""), &resume()).unwrap()));
}

#[test]
fn a_dead_engine_is_tried_again_by_a_resume() {
    let bench = Bench::new();
    bench.set("near", Fault::Engine);
    let first = bench.eval(&text(""), &new()).unwrap();
    assert!(first.candidates[0].stopped.is_some());
    bench.set("near", None);
    assert!(all_ok(&bench.eval(&text(""), &resume()).unwrap()));
}

#[test]
fn samples_that_always_fail_do_not_keep_a_resume_from_the_others() {
    let bench = Bench::new();
    // The longest prompts come first, so the first calls of all fail.
    bench.set("near", Fault::EngineOn(|prompt| prompt.len() == 3 && prompt < "q20"));
    let first = bench.eval(&text(""), &new()).unwrap();
    assert!(first.candidates[0].n_not_run >= 40, "{}", first.candidates[0].n_not_run);
    let second = bench.eval(&text(""), &resume()).unwrap();
    assert_eq!(second.candidates[0].outcomes["ok"], N - 10, "{:?}", second.candidates[0].outcomes);
}

#[test]
fn withheld_samples_stay_withheld_in_the_report_of_a_sealed_run() {
    let bench = Bench::new();
    let text = priced("[run]\nspend_cap_usd = 100.0\n")
        .replace("id = \"id\"", "id = \"id\"\nsensitive = \"secret\"");
    let first = bench.eval(&text, &new()).unwrap();
    assert_eq!((far(&first)["withheld"], far(&first)["ok"]), (5, N - 5));
    assert!(first.log_root.is_some());
    let n_calls = bench.n_all_calls();
    assert_eq!(first, bench.eval(&text, &resume()).unwrap());
    assert_eq!(bench.n_all_calls(), n_calls);
    assert!(first.maybe_spent_usd == 0.0 && first.maybe_spent_usd.is_sign_positive());
}

#[test]
fn a_call_whose_end_was_never_seen_is_shown_whether_it_is_made_again_or_not() {
    let bench = Bench::new();
    let text = priced("[run]\nspend_cap_usd = 100.0\n");
    bench.set("far", Fault::Crash("q7"));
    catch_unwind(AssertUnwindSafe(|| bench.eval(&text, &new()))).unwrap_err();
    bench.set("far", None);

    // The writer of the dead process lets go of the log when its queue is empty.
    let mut first = bench.eval(&text, &no_resend());
    for _ in 0..100 {
        match &first {
            Err(e) if e.to_string().contains("lock") => {}
            _ => break,
        }
        std::thread::sleep(Duration::from_millis(20));
        first = bench.eval(&text, &no_resend());
    }
    let first = first.unwrap();
    let n_unknown = far(&first)["unknown_outcome"];
    assert!((1..=4).contains(&n_unknown), "{n_unknown}");
    assert_eq!(first.n_unknown_calls as u64, n_unknown);
    assert!(first.maybe_spent_usd > 0.0 && first.log_root.is_none());
    assert_eq!(first, bench.eval(&text, &no_resend()).unwrap());

    let resent = bench.eval(&text, &resume()).unwrap();
    assert!(all_ok(&resent) && resent.log_root.is_some());
    assert_eq!(resent.n_unknown_calls as u64, n_unknown);
    assert_eq!(resent.maybe_spent_usd, first.maybe_spent_usd);
    assert_eq!(resent, bench.eval(&text, &no_resend()).unwrap());
}

#[test]
fn a_raised_spend_cap_is_taken_by_a_resume_and_listed() {
    let bench = Bench::new();
    let first = bench.eval(&priced("[run]\nspend_cap_usd = 2.0\n"), &new()).unwrap();
    assert!(first.candidates[1].stopped.as_ref().unwrap().contains("raise run.spend_cap_usd"));
    let raised = priced("[run]\nspend_cap_usd = 100.0\nmax_attempts = 5\ntimeout_s = 60.0\n");
    assert!(all_ok(&bench.eval(&raised, &resume()).unwrap()));
    let changes = bench.changes(&raised);
    assert!(changes.contains(&"suite.run.spend_cap_usd: 2.0 → 100.0".to_owned()), "{changes:?}");
    assert_eq!(changes.len(), 3);
}

#[test]
fn a_changed_decision_is_listed_even_after_it_was_taken_back() {
    let bench = Bench::new();
    let first = bench.eval(&text(""), &new()).unwrap();
    assert!(bench.changes(&text("")).is_empty());
    let other = text("[decision]\nmargin_points = 3.0\n");
    let change = "suite.decision.margin_points: 5.0 → 3.0";
    assert_eq!(bench.changes(&other), [change]);
    let report = bench.eval(&other, &resume()).unwrap();
    assert_eq!(report.suite.configuration_hash, first.suite.configuration_hash);
    assert!(report.log_root.is_some());
    // Sealed again, and the same on every later resume.
    let again = bench.eval(&other, &resume()).unwrap();
    assert_eq!((report.log_root, bench.changes(&other)), (again.log_root, vec![change.into()]));
    assert_eq!(bench.changes(&text("")), [format!("{change} (in an earlier resume)")]);
}

#[test]
fn what_changes_an_answer_or_its_score_is_refused() {
    let bench = Bench::new();
    bench.eval(&text(""), &new()).unwrap();
    let cases = [
        (text("").replace("{{ q }}", "{{ q }}?"), "arms[0].prompt_sha256"),
        (text("").replace("id = \"id\"", "id = \"id\"\nlimit = 10"), "data.limit: null → 10"),
        (text("").replace("target = \"a\"", "target = \"q\""), "evaluators[0].options.target"),
        (text("[run]\nrepeats = 2\n"), "repeats: 1 → 2"),
        (text("[request]\nmax_tokens = 9\n"), "arms[0].settings.max_tokens: 512 → 9"),
    ];
    for (text, expected) in cases {
        let error = bench.eval(&text, &resume()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("cannot resume"), "{error}");
    }
}

#[test]
fn the_spend_cap_tells_whom_it_does_not_cover_and_stops_nobody_who_is_free() {
    let bench = Bench::new();
    let line = "spend cap does not cover far: no price";
    assert!(bench.plan(&text("")).unwrap().describe().contains(line));
    assert!(!bench.plan(&text("")).unwrap().describe().contains("cover near"));
    assert!(!bench.plan(&priced("")).unwrap().describe().contains("does not cover"));

    bench.set("near", Fault::Engine);
    bench.eval(&priced("[run]\nspend_cap_usd = 2.0\n"), &new()).unwrap();
    bench.set("near", None);
    let report = bench.eval(&priced("[run]\nspend_cap_usd = 0.01\n"), &resume()).unwrap();
    assert!(report.spent_usd > 0.01);
    assert_eq!(report.candidates[0].outcomes["ok"], N);
    assert!(report.candidates[1].stopped.as_ref().unwrap().contains("spend cap"));
}

#[test]
fn a_service_that_refuses_every_request_is_left_alone() {
    for (fault, remedy, is_mendable) in [
        (Fault::NoSuchModel, "continue with --resume", true),
        (Fault::BadRequest, "start a new run", false),
    ] {
        let bench = Bench::new();
        bench.set("far", fault);
        let report = bench.eval(&text(""), &new()).unwrap();
        let n_refused = far(&report)["bad_request"];
        assert!((3..=6).contains(&n_refused), "{n_refused}");
        assert_eq!(report.candidates[1].n_not_run, N - n_refused);
        let why = report.candidates[1].stopped.as_ref().unwrap();
        assert!(why.contains("no such") && why.contains(remedy), "{why}");
        bench.set("far", None);
        let report = bench.eval(&text(""), &resume()).unwrap();
        assert_eq!(all_ok(&report), is_mendable);
        assert!(report.log_root.is_some());

        // A model on this machine may refuse one sample after the other.
        let bench = Bench::new();
        bench.set("near", fault);
        let report = bench.eval(&text(""), &new()).unwrap();
        assert_eq!(report.candidates[0].outcomes["bad_request"], N);
    }
}

#[test]
fn recorded_answers_may_be_missing_and_their_file_may_not_change() {
    let bench = Bench::new();
    let file = bench.dir.path().join("log.csv");
    std::fs::write(&file, "id,said\ns1,a1\n").unwrap();
    let text = recorded("log.csv", "");
    let first = bench.eval(&text, &new()).unwrap();
    assert_eq!((far(&first)["bad_request"], far(&first)["ok"]), (N - 1, 1));
    assert!(first.candidates[1].stopped.is_none() && first.log_root.is_some());
    assert_eq!(first, bench.eval(&text, &resume()).unwrap());
    std::fs::write(&file, "id,said\ns1,a2\n").unwrap();
    let error = bench.eval(&text, &resume()).unwrap_err().to_string();
    assert!(error.contains("arms[1].recorded_sha256"), "{error}");
}

#[test]
fn recorded_answers_join_as_the_samples_are_named() {
    let bench = Bench::new();
    let write = |name: &str, head: &str, id: &dyn Fn(u64) -> String| {
        let mut csv = format!("{head},said\n");
        (0..N).for_each(|i| writeln!(csv, "{},a{i}", id(i)).unwrap());
        std::fs::write(bench.dir.path().join(name), csv).unwrap();
    };
    let quality = |text: &str| {
        let _ = std::fs::remove_dir_all(bench.run_dir());
        bench.eval(text, &new()).map(|r| r.candidates[1].quality[0].mean)
    };
    let error = |text: &str| quality(text).unwrap_err().to_string();
    // Numbers that are off by one: right as names of rows, wrong as row numbers.
    write("numbered.csv", "id", &|i| i.to_string());
    write("named.csv", "id", &|i| format!("s{i}"));
    write("keyed.csv", "key", &|i| format!("s{i}"));
    let by_row = |text: String| text.replace("id = \"id\"\n", "");

    assert_eq!(quality(&by_row(recorded("numbered.csv", ""))).unwrap(), Some(1.0));
    assert_eq!(quality(&recorded("named.csv", "")).unwrap(), Some(1.0));
    let option = "options = { id = \"key\" }\n";
    assert_eq!(quality(&recorded("keyed.csv", option)).unwrap(), Some(1.0));
    let renamed = recorded("keyed.csv", "")
        .replace("id = \"id\"\n", "id = \"key\"\ncolumns = { key = \"id\" }\n");
    assert_eq!(quality(&renamed).unwrap(), Some(1.0));

    let e = error(&by_row(recorded("keyed.csv", option)));
    assert!(e.contains("data.id") && e.contains("candidate `far`"), "{e}");
    let e = error(&recorded("keyed.csv", ""));
    assert!(e.contains("looked for `id`") && e.contains("options = { id"), "{e}");
    let e = error(&recorded("numbered.csv", ""));
    assert!(e.contains("begin with `0`, `1`") && e.contains("`s0`, `s1`"), "{e}");
    let e = error(&recorded("named.csv", "options = { join = \"row\" }\n"));
    assert!(e.contains("follows from data.id"), "{e}");
}
