//! Runs whose candidate is asked in batch jobs: limits, money, failures, and resumes of all kinds.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use weighbridge::report::Report;
use weighbridge::run::RunResult;
use weighbridge::{
    Environment, Error, ErrorKind, Observer, Plan, Plugin, Registry, Result, Retry, RunEvent,
    Start, Unobserved, Usage, evaluate, run, suite,
};
use weighbridge_core::{
    Backend, BatchAnswers, BatchId, BatchJobs, BatchLimits, BatchLookup, BatchRequest, BatchResult,
    BatchStatus, Capabilities, Completion, EventSink, ModelCard, ModelListing, ModelRef,
    OpenContext, Outcome, Placement, Probe, Prompt, Provider, ProviderInfo, Request, RequestOption,
    StopReason, Submission, Weights,
};

const N: usize = 50;

/// What the vendor does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// The process dies after the vendor took the job.
    CrashAfterTaking,
    /// The process dies while it waits.
    CrashAtPoll,
    /// The vendor took the job and does not say so.
    NoAnswer,
    /// Jobs never end.
    Slow,
    /// The first time, one request is not served.
    Busy,
    /// No job is accepted.
    NoKey,
}

#[derive(Debug, Default)]
struct Desk {
    fault: Fault,
    has_labels: bool,
    max_requests: usize,
    /// Label and request ids with their prompts.
    jobs: Vec<(String, Vec<(String, String)>)>,
    n_fetches: usize,
}

#[derive(Debug)]
struct Vendor {
    card: ModelCard,
    capabilities: Capabilities,
    desk: Mutex<Desk>,
}

impl Vendor {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Vendor {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn generate(&self, _: &Request, _: &mut dyn EventSink) -> Result<Completion> {
        Err(Error::new(ErrorKind::Plugin, "asked outside of a job"))
    }

    fn batch(&self) -> Option<&dyn BatchJobs> {
        Some(self)
    }
}

fn prompt(request: &Request) -> String {
    match &request.prompt {
        Prompt::Chat(messages) => messages[0].text(),
        other => panic!("{other:?}"),
    }
}

#[async_trait]
impl BatchJobs for Vendor {
    fn limits(&self) -> BatchLimits {
        BatchLimits::new(self.desk().max_requests, 1000)
    }

    fn size(&self, request: &BatchRequest) -> Result<u64> {
        match prompt(&request.request).as_str() {
            "q7" => Err(Error::new(ErrorKind::Unsupported, "no words for this")),
            "q8" => Ok(1001),
            _ => Ok(10),
        }
    }

    async fn submit(&self, label: &str, requests: &[BatchRequest]) -> Result<Submission> {
        let mut desk = self.desk();
        assert!(requests.len() <= desk.max_requests && requests.len() * 10 <= 1000);
        if desk.fault == Fault::NoKey {
            return Err(Error::new(ErrorKind::Auth, "the key is wrong"));
        }
        let requests = requests.iter().map(|r| (r.id.clone(), prompt(&r.request)));
        let job = (label.to_owned(), requests.collect());
        desk.jobs.push(job);
        let id = BatchId(format!("job{}", desk.jobs.len() - 1));
        match desk.fault {
            Fault::CrashAfterTaking => panic!("the process died"),
            Fault::NoAnswer => {
                Ok(Submission::Unknown(Error::new(ErrorKind::Timeout, "no answer came")))
            }
            _ => Ok(Submission::Accepted(id)),
        }
    }

    async fn find(&self, label: &str) -> Result<BatchLookup> {
        let desk = self.desk();
        if !desk.has_labels {
            return Ok(BatchLookup::Unknown);
        }
        let found = desk.jobs.iter().position(|(known, _)| known == label);
        Ok(found.map_or(BatchLookup::Absent, |n| BatchLookup::Found(BatchId(format!("job{n}")))))
    }

    async fn poll(&self, _: &BatchId) -> Result<BatchStatus> {
        match self.desk().fault {
            Fault::CrashAtPoll => panic!("the process died"),
            Fault::Slow => Ok(BatchStatus::Running { n_done: 0, n_total: 1 }),
            _ => Ok(BatchStatus::Ended),
        }
    }

    async fn fetch(&self, id: &BatchId, requests: &[BatchRequest]) -> Result<BatchAnswers> {
        let mut desk = self.desk();
        desk.n_fetches += 1;
        let job = &desk.jobs[id.0.strip_prefix("job").unwrap().parse::<usize>().unwrap()].1;
        // Whoever fetches knows all that the job was made of.
        let ids = |ids: Vec<&String>| ids.into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(
            ids(requests.iter().map(|r| &r.id).collect()),
            ids(job.iter().map(|(id, _)| id).collect())
        );
        let is_busy = desk.fault == Fault::Busy && desk.n_fetches == 1;
        let results = job.iter().map(|(id, prompt)| {
            let result = match prompt.as_str() {
                "q3" if is_busy => Err(Error::new(ErrorKind::Overloaded, "busy")
                    .with_retry(Retry::Safe { after: None })),
                "q4" => Err(Error::new(ErrorKind::Timeout, "expired")),
                "q5" => Err(Error::new(ErrorKind::Truncated, "lost")),
                _ => {
                    let mut answer = Completion::new(prompt.replace('q', "a"), StopReason::Stop);
                    answer.usage = Usage::new(10, 5);
                    Ok(answer)
                }
            };
            BatchResult::new(id, result)
        });
        Ok(BatchAnswers::new(results.rev().collect(), vec!["a stranger".to_owned()]))
    }

    async fn cancel(&self, _: &BatchId) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct VendorProvider(Arc<Vendor>);

#[async_trait]
impl Provider for VendorProvider {
    fn id(&self) -> &str {
        "vendor"
    }

    fn describe(&self) -> ProviderInfo {
        ProviderInfo::new("a vendor of batch jobs", "ID")
    }

    async fn probe(&self, _: &ModelRef, _: &OpenContext) -> Probe {
        Probe::Yes
    }

    async fn list(&self, _: &OpenContext) -> Result<Vec<ModelListing>> {
        Ok(Vec::new())
    }

    async fn open(&self, _: &ModelRef, _: &OpenContext) -> Result<Arc<dyn Backend>> {
        Ok(Arc::clone(&self.0) as _)
    }
}

struct Bench {
    dir: tempfile::TempDir,
    vendor: Arc<Vendor>,
}

impl Bench {
    /// All questions in one job, at a vendor that keeps labels.
    fn new(fault: Fault) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut data = String::new();
        for i in 0..N {
            writeln!(data, r#"{{"id":"s{i}","q":"q{i}","a":"a{i}"}}"#).unwrap();
        }
        std::fs::write(dir.path().join("data.jsonl"), data).unwrap();
        let placement = Placement::Network { host: "api.example".into() };
        let mut capabilities = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::Temperature,
            RequestOption::MaxTokens,
        ]);
        capabilities.batch = true;
        let desk = Desk { fault, has_labels: true, max_requests: 100, ..Desk::default() };
        let card = ModelCard::new("m", "vendor", Weights::Closed, placement);
        let vendor = Arc::new(Vendor { card, capabilities, desk: Mutex::new(desk) });
        Self { dir, vendor }
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn plan(&self, text: &str) -> Result<Plan> {
        let provider = VendorProvider(Arc::clone(&self.vendor));
        let registry = Registry::new([
            weighbridge::evaluators::plugin(),
            Plugin::new("vendor", "1").provider(provider),
        ])
        .unwrap();
        let suite = suite::read_str(text, self.dir.path(), "suite.toml")?;
        Plan::prepare(suite, &Environment::new(registry))
    }

    /// As `eval`, for runs in which no model answers, so that there is no report.
    fn run(&self, text: &str, start: &Start, observer: &dyn Observer) -> RunResult {
        run::run(&self.plan(text).unwrap(), &self.run_dir(), start, observer).unwrap()
    }

    fn eval(&self, text: &str, start: &Start) -> Report {
        let plan = self.plan(text).unwrap();
        evaluate(&plan, &self.run_dir(), start, &Unobserved).unwrap().report
    }

    /// Runs until the process dies.
    fn crash(&self, text: &str, observer: &dyn Observer) {
        let plan = self.plan(text).unwrap();
        let dir = self.run_dir();
        let died =
            catch_unwind(AssertUnwindSafe(|| evaluate(&plan, &dir, &start(), observer).map(drop)));
        assert!(died.is_err(), "{died:?}");
        // A dead process lets go of its log at once; a dead thread's helper takes a moment.
        std::thread::sleep(Duration::from_millis(200));
    }

    fn n_jobs(&self) -> usize {
        self.vendor.desk().jobs.len()
    }

    fn set(&self, fault: Fault) {
        self.vendor.desk().fault = fault;
    }
}

/// USD 50 per million prompt tokens and 500 per million generated ones, half of that in a job.
fn text(run: &str) -> String {
    format!(
        "version = 1\nname = \"t\"\ncurrent = \"far\"\n\
         [data]\nfile = \"data.jsonl\"\nid = \"id\"\n\
         [prompt]\nuser = \"{{{{ q }}}}\"\n[request]\nmax_tokens = 10\n\
         [[candidate]]\nname = \"far\"\nmodel = \"vendor:m\"\nbatch = true\n\
         price = {{ input_per_million = 50.0, output_per_million = 500.0, batch_factor = 0.5, \
         source = \"x\", as_of = \"2026-01-01\" }}\n\
         [[evaluator]]\nkind = \"exact_match\"\ntarget = \"a\"\n\
         [run]\nbatch_poll_s = 0.01\n{run}"
    )
}

fn start() -> Start {
    Start::New { created: "2026-01-01T00:00:00Z".into() }
}

fn resume() -> Start {
    Start::Resume { resend: true, created: String::new() }
}

fn outcome(report: &Report, name: &str) -> u64 {
    report.candidates[0].outcomes.get(name).copied().unwrap_or(0)
}

fn n_observed(result: &RunResult, outcome: Outcome) -> usize {
    result.observations.values().filter(|record| record.outcome == outcome).count()
}

/// Two requests have no place in a job, one expired and one was lost.
#[track_caller]
fn check_whole(report: &Report) {
    assert_eq!(outcome(report, "ok"), N as u64 - 4, "{:?}", report.candidates[0].outcomes);
    assert_eq!(outcome(report, "bad_request"), 2);
    assert_eq!((outcome(report, "deadline"), outcome(report, "cut_stream")), (1, 1));
    assert_eq!(report.candidates[0].stopped, None);
    // 46 answers of ten and five tokens; the lost one may have cost something.
    assert!((report.spent_usd - 46.0 * 0.0015).abs() < 1e-9, "{}", report.spent_usd);
    assert!(report.maybe_spent_usd > 0.0 && report.maybe_spent_usd < 0.01);
    assert_eq!(report.n_unknown_calls, 0);
}

#[test]
fn one_job_answers_all_at_half_the_price_and_without_a_latency() {
    let bench = Bench::new(Fault::None);
    let report = bench.eval(&text(""), &start());
    check_whole(&report);
    assert_eq!(bench.n_jobs(), 1);
    let candidate = &report.candidates[0];
    assert!(candidate.is_batch && candidate.latency.is_none());
    assert!((candidate.cost.as_ref().unwrap().per_call_usd - 0.0015).abs() < 1e-9);
    let plan = bench.plan(&text("")).unwrap().describe();
    assert!(plan.contains("in batch jobs") && plan.contains("asked at least every 0.01 s"));
}

#[test]
fn jobs_are_as_large_as_the_vendor_takes_them() {
    let bench = Bench::new(Fault::None);
    bench.vendor.desk().max_requests = 20;
    check_whole(&bench.eval(&text(""), &start()));
    let sizes: Vec<_> = bench.vendor.desk().jobs.iter().map(|(_, job)| job.len()).collect();
    assert_eq!(sizes, [20, 20, 8]);
    let labels: BTreeSet<_> = bench.vendor.desk().jobs.iter().map(|(l, _)| l.clone()).collect();
    assert_eq!(labels.len(), 3);
}

#[test]
fn money_that_a_job_did_not_need_pays_for_the_next_and_the_cap_holds() {
    let bench = Bench::new(Fault::None);
    let report = bench.eval(&text("spend_cap_usd = 0.05\n"), &start());
    assert!(bench.n_jobs() > 1);
    assert!(report.spent_usd + report.maybe_spent_usd <= 0.05, "{}", report.spent_usd);
    // All but what one more call might cost.
    assert!(report.spent_usd > 0.04, "{}", report.spent_usd);
    assert!(report.candidates[0].stopped.as_ref().unwrap().contains("run.spend_cap_usd"));
    let more = bench.eval(&text("spend_cap_usd = 5\n"), &resume());
    assert_eq!(outcome(&more, "ok"), N as u64 - 4);
}

#[test]
fn what_the_vendor_was_too_busy_for_is_asked_in_another_job() {
    let bench = Bench::new(Fault::Busy);
    check_whole(&bench.eval(&text(""), &start()));
    let sizes: Vec<_> = bench.vendor.desk().jobs.iter().map(|(_, job)| job.len()).collect();
    assert_eq!(sizes, [N - 2, 1]);
}

#[test]
fn a_process_that_died_while_it_waited_goes_on_with_the_same_job() {
    let bench = Bench::new(Fault::CrashAtPoll);
    bench.crash(&text(""), &Unobserved);
    bench.set(Fault::None);
    check_whole(&bench.eval(&text(""), &resume()));
    assert_eq!(bench.n_jobs(), 1);
}

#[test]
fn a_process_that_died_before_it_knew_the_job_looks_it_up() {
    let bench = Bench::new(Fault::CrashAfterTaking);
    bench.crash(&text(""), &Unobserved);
    bench.set(Fault::None);
    check_whole(&bench.eval(&text(""), &resume()));
    assert_eq!(bench.n_jobs(), 1);
}

#[derive(Default)]
struct Remarks(Mutex<Vec<String>>);

impl Observer for Remarks {
    fn event(&self, event: RunEvent<'_>) {
        if let RunEvent::Remark { text, .. } = event {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn a_job_that_nobody_can_look_up_is_said_to_be_perhaps_billed() {
    for resend in [true, false] {
        let bench = Bench::new(Fault::CrashAfterTaking);
        bench.vendor.desk().has_labels = false;
        bench.crash(&text(""), &Unobserved);
        bench.set(Fault::None);
        let remarks = Remarks::default();
        let again = Start::Resume { resend, created: String::new() };
        let result = bench.run(&text(""), &again, &remarks);
        let said = remarks.0.lock().unwrap().join("\n");
        assert!(said.contains("48 calls may have been billed"), "{said}");
        assert_eq!(result.n_unknown, 48);
        let n = |outcome| n_observed(&result, outcome);
        match resend {
            true => assert_eq!((bench.n_jobs(), n(Outcome::Ok)), (2, N - 4)),
            false => assert_eq!((bench.n_jobs(), n(Outcome::UnknownOutcome)), (1, 48)),
        }
    }
}

#[test]
fn a_job_without_an_answer_is_looked_up_and_never_handed_in_twice() {
    let bench = Bench::new(Fault::NoAnswer);
    check_whole(&bench.eval(&text(""), &start()));
    assert_eq!(bench.n_jobs(), 1);

    let bench = Bench::new(Fault::NoAnswer);
    bench.vendor.desk().has_labels = false;
    let result = bench.run(&text(""), &start(), &Unobserved);
    assert_eq!((bench.n_jobs(), n_observed(&result, Outcome::UnknownOutcome)), (1, 48));
    assert_eq!(result.n_unknown, 48);
    let why = &result.stopped[0].1;
    assert!(why.contains("may be billed") && why.contains("--no-resend"), "{why}");
}

/// Dies when the tenth outcome was told.
#[derive(Default)]
struct Mortal(Mutex<u32>);

impl Observer for Mortal {
    fn event(&self, event: RunEvent<'_>) {
        if let RunEvent::CallEnded { .. } = event {
            let mut n = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *n += 1;
            assert!(*n < 10, "the process died");
        }
    }
}

#[test]
fn a_process_that_died_among_the_answers_takes_the_others() {
    let bench = Bench::new(Fault::None);
    bench.crash(&text(""), &Mortal::default());
    let report = bench.eval(&text(""), &resume());
    assert_eq!(outcome(&report, "ok"), N as u64 - 4);
    let n_first = bench.vendor.desk().jobs[0].1.len();
    assert_eq!(n_first, N - 2);
    // What expired or was lost is asked again by a resume; nothing else is.
    let again = bench.vendor.desk().jobs.iter().skip(1).map(|(_, job)| job.len()).sum::<usize>();
    assert!(again <= 2, "{again}");
}

#[test]
fn waiting_ends_and_a_resume_waits_on() {
    let bench = Bench::new(Fault::Slow);
    let result = bench.run(&text("batch_wait_h = 0.00001\n"), &start(), &Unobserved);
    let why = &result.stopped[0].1;
    assert!(why.contains("job0") && why.contains("--resume"), "{why}");
    assert_eq!((n_observed(&result, Outcome::Ok), result.n_unknown), (0, 48));
    // Only the two that have no place in a job have an end.
    assert_eq!(result.observations.len(), 2);
    bench.set(Fault::None);
    check_whole(&bench.eval(&text("batch_wait_h = 25.0\n"), &resume()));
    assert_eq!(bench.n_jobs(), 1);
}

#[test]
fn a_wrong_key_costs_one_request_and_is_mended_by_a_resume() {
    let bench = Bench::new(Fault::NoKey);
    let result = bench.run(&text(""), &start(), &Unobserved);
    assert!(result.stopped[0].1.contains("the key is wrong"));
    assert_eq!((bench.n_jobs(), result.maybe_spent_usd), (0, 0.0));
    bench.set(Fault::None);
    check_whole(&bench.eval(&text(""), &resume()));
}

#[test]
fn mistakes_in_the_suite_are_named() {
    let bench = Bench::new(Fault::None);
    let refused = |text: String| bench.plan(&text).unwrap_err().to_string();
    std::fs::write(bench.dir.path().join("said.jsonl"), "{\"id\":\"s0\",\"x\":\"a\"}\n").unwrap();
    let recorded = text("").replace("vendor:m", "recorded:said.jsonl#x");
    assert!(refused(recorded).contains("`recorded` has no batch jobs; remove `batch = true`"));
    let factor = text("").replace("batch_factor = 0.5", "batch_factor = 50");
    assert!(refused(factor).contains("price.batch_factor must be above 0 and at most 1"));
    assert!(refused(text("batch_wait_h = 0\n")).contains("run.batch_wait_h is 0"));
    let never = text("").replace("batch_poll_s = 0.01", "batch_poll_s = -1.0");
    assert!(refused(never).contains("run.batch_poll_s is -1"));
}
