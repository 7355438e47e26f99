//! Answers of a job, joined to its requests.

use weighbridge_core::{ErrorKind, StopReason, Timings};
use weighbridge_testkit::batch_vendor::{BatchVendor, Habits, Reply};

use crate::support::{CANARY, WIRES, echo, number, shown, whole_job};

/// What comes of a job at each vendor whose second request gets this reply.
fn second_is(reply: Reply) -> Vec<Vec<String>> {
    let one = |wire: usize| {
        let reply = reply.clone();
        let judge = move |body: &str| if number(body) == 1 { reply.clone() } else { echo(body) };
        let vendor = BatchVendor::start(WIRES[wire].1, Habits::default(), judge);
        shown(&whole_job(&vendor, wire).unwrap())
    };
    (0..WIRES.len()).map(one).collect()
}

fn with_second(second: &str) -> Vec<String> {
    vec![
        "\"first/../id\": answer 0".to_owned(),
        format!("\"zweite Frage ä\": {second}"),
        "\"\": answer 2".to_owned(),
    ]
}

#[test]
fn answers_in_another_order_find_their_requests() {
    for (wire, (_, api, _)) in WIRES.into_iter().enumerate() {
        let vendor = BatchVendor::start(api, Habits::default(), echo);
        let answers = whole_job(&vendor, wire).unwrap();
        assert_eq!(shown(&answers), with_second("answer 1"), "{api:?}");
        assert_eq!(answers.warnings, [] as [&str; 0]);
        let completion = answers.results[0].result.as_ref().unwrap();
        assert_eq!(completion.stop_reason, StopReason::Stop);
        assert_eq!(completion.usage.n_prompt_tokens, Some(7));
        assert_eq!(completion.usage.n_generated_tokens, Some(3));
        // Nobody waited for it, so it took no time.
        assert_eq!(completion.timings, Timings::default());
        assert!(!completion.effective.values.contains_key("stream"));
    }
}

#[test]
fn what_is_wrong_with_one_answer_is_wrong_with_one_answer() {
    let overloaded = Reply::Error(503, "overloaded_error", "Overloaded");
    let bad = Reply::Error(400, "invalid_request_error", "no such option");
    let cases = [
        (Reply::Missing, "truncated"),
        (Reply::Twice("twice".to_owned()), "protocol"),
        (overloaded, "overloaded, again"),
        (bad, "invalid_request"),
    ];
    for (reply, expected) in cases {
        for found in second_is(reply.clone()) {
            assert_eq!(found, with_second(expected), "{reply:?}");
        }
    }
}

#[test]
fn a_damaged_answer_is_no_answer() {
    for found in second_is(Reply::Damaged) {
        let kinds = ["truncated", "protocol"].map(|k| format!("\"zweite Frage ä\": {k}"));
        let second = found[1].trim_end_matches(", again").to_owned();
        assert!(kinds.contains(&second), "{second}");
        assert_eq!((&*found[0], &*found[2]), ("\"first/../id\": answer 0", "\"\": answer 2"));
    }
}

#[test]
fn a_request_that_the_vendor_did_not_get_to_says_why() {
    for found in second_is(Reply::Expired) {
        assert!(
            // Gemini has no word of its own for one request: 504, as of a call of its own.
            [with_second("timeout"), with_second("server_error, again")].contains(&found),
            "{found:?}"
        );
    }
    let cancelled = second_is(Reply::Cancelled);
    assert_eq!(cancelled[0], with_second("cancelled"));
    assert_eq!(cancelled[1], with_second("cancelled"));
    assert_eq!(cancelled[2], with_second("cancelled"));
}

#[test]
fn answers_to_nobody_are_named_and_change_nothing() {
    for (wire, (_, api, _)) in WIRES.into_iter().enumerate().take(3) {
        let habits = Habits { litters: true, ..Habits::default() };
        let vendor = BatchVendor::start(api, habits, echo);
        let answers = whole_job(&vendor, wire).unwrap();
        assert_eq!(shown(&answers), with_second("answer 1"));
        let warning = answers.warnings.join("\n");
        assert!(warning.contains("`stranger`") && warning.contains("`not json`"), "{warning}");
    }
}

#[test]
fn answers_elsewhere_are_not_fetched() {
    let foreign = BatchVendor::start(WIRES[2].1, Habits::default(), echo);
    for origin in [foreign.url().trim_end_matches("/v1"), "https://user@127.0.0.1", "ftp:/x", "x"] {
        let habits = Habits { results_origin: Some(origin.to_owned()), ..Habits::default() };
        let vendor = BatchVendor::start(WIRES[2].1, habits, echo);
        let error = whole_job(&vendor, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EgressDenied, "{error}");
        assert!(!format!("{error:?} {error}").contains(CANARY));
    }
    assert_eq!(foreign.journal().len(), 0);
}

#[test]
fn a_line_may_be_long_and_the_file_longer_than_a_call_s_answer() {
    // 24 MiB in one line, and 72 MiB in all: more than a call of its own may bring.
    let long = "x".repeat(24 << 20);
    let text = long.clone();
    let judge = move |_: &str| Reply::Text(text.clone());
    let vendor = BatchVendor::start(WIRES[2].1, Habits::default(), judge);
    let answers = whole_job(&vendor, 2).unwrap();
    for answer in &answers.results {
        assert_eq!(answer.result.as_ref().unwrap().text.len(), long.len());
    }
}
