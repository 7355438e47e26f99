//! The same weights in two set-ups: agreement, flips and the gap of log-probabilities in every output.

use std::path::Path;

use serde_json::Value;

use crate::support::{Served, printed, root, weighbridge};

/// A folder, the same model behind a server, its damaged copy, and answers without probabilities.
fn suite(dir: &Path, url: &str) -> String {
    let fixtures = root().join("fixtures");
    let shown = |path: &str| fixtures.join(path).display().to_string();
    let candidate = |name: &str, model: &str, extra: &str| {
        format!("[[candidate]]\nname = \"{name}\"\nmodel = '{model}'\n{extra}\n")
    };
    let asks = "request = { logprobs = 0 }";
    let served = format!("options = {{ verified = true }}\nweights_of = \"triage-open\"\n{asks}");
    let answers = dir.join("answers.jsonl");
    std::fs::copy(fixtures.join("workloads/triage-300.jsonl"), &answers).unwrap();
    [
        "version = 1\nname = \"engines\"\ncurrent = \"folder\"\n[data]\n".to_owned(),
        format!("file = '{}'\n", shown("workloads/triage-300.jsonl")),
        "id = \"id\"\ncluster = \"group\"\nlimit = 80\n[prompt]\nuser = \"Triage this email as \
         JSON with queue, order, urgency.\\n\\n{{ email }}\"\n[request]\nmax_tokens = 64\n"
            .to_owned(),
        "[[evaluator]]\nkind = \"json_fields\"\ntarget = \"target\"\n".to_owned(),
        "fields = [\"queue\", \"order\", \"urgency\"]\n".to_owned(),
        candidate(
            "folder",
            &format!("candle:{}", shown("triage-open")),
            &format!("weights_of = \"triage-open\"\n{asks}"),
        ),
        candidate("served", &format!("openai-compatible:{url}#open"), &served),
        candidate("damaged", &format!("candle:{}", shown("triage-damaged")), asks),
        candidate("recorded", "recorded:answers.jsonl#target", ""),
    ]
    .concat()
}

fn agreement<'a>(report: &'a Value, reference: &str, candidate: &str) -> &'a Value {
    let compared = report["comparisons"].as_array().unwrap().iter().map(|c| &c["agreement"]);
    let mut pairs = compared.chain(report["other_pairs"].as_array().unwrap());
    let is_it = |pair: &&Value| pair["reference"] == reference && pair["candidate"] == candidate;
    pairs.find(is_it).unwrap_or_else(|| panic!("{reference}, {candidate}"))
}

#[test]
fn one_model_in_two_set_ups_is_shown_to_be_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start("candle:fixtures/triage-open", "open");
    std::fs::write(dir.path().join("suite.toml"), suite(dir.path(), &served.url)).unwrap();
    let output = weighbridge(&["eval", "suite.toml", "--out", "run", "--quiet"], dir.path());
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join("run").join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("report.json")).unwrap();
    let html = read("report.html");

    let same = agreement(&report, "folder", "served");
    assert_eq!(same["is_same_weights"], true);
    assert_eq!((&same["n_same_answer"], &same["n_both_answered"]), (&80.into(), &80.into()));
    assert_eq!(same["table"]["only_reference"], 0);
    let gap = &same["logprobs"];
    assert_eq!((&gap["kind"], &gap["n_whole"]), (&"measured".into(), &80.into()), "{gap}");
    assert!(gap["n_tokens"].as_u64().unwrap() > 800, "{gap}");
    // The batch a token was computed in may differ.
    assert!(gap["max_abs"].as_f64().unwrap() < 1e-3, "{gap}");
    assert!(text.contains("alike    served          80 of 80 answers the same"), "{text}");
    assert!(html.contains("The same weights as the candidate in use"));

    // Another model is not called the same, and its gap is far from zero.
    let damaged = agreement(&report, "folder", "damaged");
    assert_eq!(damaged["is_same_weights"], false);
    assert!(damaged["table"]["only_reference"].as_u64().unwrap() > 20, "{damaged}");
    assert!(damaged["logprobs"]["mean_abs"].as_f64().unwrap() > 1e-3, "{damaged}");
    assert!(!text.contains("alike    damaged"), "{text}");

    // What is not known is not zero.
    for other in ["folder", "served", "damaged"] {
        let recorded = agreement(&report, other, "recorded");
        assert_eq!(recorded["logprobs"]["kind"], "not_defined", "{recorded}");
        assert_eq!(recorded["logprobs"]["reason"], "recorded gave no log-probabilities");
    }
    assert_eq!(html.matches("not defined: recorded gave no log-probabilities").count(), 4);
}
