//! Exit codes of the gate, and printed commands that work.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{printed, weighbridge};

const N: usize = 200;

/// Data in which `old` is right on the first rows and `new` on the last ones.
fn data(dir: &Path, n_old: usize, n_new: usize) {
    let rows: String = (0..N)
        .map(|i| {
            let old = if i < n_old { "yes" } else { "no" };
            let new = if i >= N - n_new { "yes" } else { "no" };
            format!(
                "{{\"id\":\"s{i}\",\"q\":\"q\",\"target\":\"yes\",\"old\":\"{old}\",\"new\":\"{new}\"}}\n"
            )
        })
        .collect();
    std::fs::write(dir.join("data.jsonl"), rows).unwrap();
}

const SUITE: &str = "version = 1\nname = \"g\"\ncurrent = \"old\"\n\
    [data]\nfile = \"data.jsonl\"\nid = \"id\"\n[prompt]\nuser = \"{{ q }}\"\n\
    [[candidate]]\nname = \"old\"\nmodel = \"recorded:data.jsonl#old\"\n\
    [[candidate]]\nname = \"new\"\nmodel = \"recorded:${FILE}#new\"\n\
    [[evaluator]]\nkind = \"exact_match\"\ntarget = \"target\"\n";

const DATA_RUN: [&str; 9] = [
    "eval",
    "--data",
    "data.jsonl",
    "--prompt",
    "{{ q }}",
    "--candidate",
    "recorded:data.jsonl#new",
    "--offline",
    "--yes",
];

/// Runs the command that was printed after "go on with".
fn run_hint(text: &str, dir: &Path) -> String {
    let hint = text.split("go on with\n").nth(1).unwrap_or_else(|| panic!("{text}"));
    let hint = hint.lines().next().unwrap().trim();
    let output = Command::new("sh")
        .args(["-c", hint])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = printed(&output);
    assert!(output.status.success(), "{hint}\n{text}");
    text
}

#[test]
fn the_gate_fails_only_beyond_the_margin() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("suite.toml"), SUITE).unwrap();
    // The margin is 5 points. Better; the same; worse beyond it; worse, by how much is open.
    for (case, n_old, n_new, expected) in [
        ("better", 100, 160, 0),
        ("same", 200, 200, 0),
        ("worse", 200, 100, 1),
        ("open", 200, 188, 2),
    ] {
        data(dir.path(), n_old, n_new);
        let define = "FILE=data.jsonl";
        let args = ["eval", "suite.toml", "--gate", "--out", case, "--define", define, "--quiet"];
        let output = weighbridge(&args, dir.path());
        assert_eq!(output.status.code(), Some(expected), "{case}: {}", printed(&output));
    }
    for wrong in [&["eval"][..], &["eval", "suite.toml", "--out", "x", "--gate"]] {
        let output = weighbridge(wrong, dir.path());
        assert_eq!(output.status.code(), Some(3), "{}", printed(&output));
    }
}

#[test]
#[cfg(unix)]
fn the_printed_command_goes_on_with_a_run() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path(), 150, 160);
    std::fs::write(dir.path().join("my suite.toml"), SUITE).unwrap();
    let mut from_data = DATA_RUN.to_vec();
    from_data.extend(["--current", "recorded:data.jsonl#old", "--limit", "120", "--out", "run 2"]);
    let from_suite = [
        "eval",
        "my suite.toml",
        "--define",
        "FILE=data.jsonl",
        "--limit",
        "120",
        "--offline",
        "--out",
        "run",
    ];
    for (args, run) in [(&from_suite[..], "run"), (&from_data[..], "run 2")] {
        let output = weighbridge(args, dir.path());
        assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
        let report = dir.path().join(run).join("report.json");
        let before = std::fs::read_to_string(&report).unwrap();
        std::fs::remove_file(&report).unwrap();
        run_hint(&printed(&output), dir.path());
        assert_eq!(std::fs::read_to_string(&report).unwrap(), before, "{run}");
    }
    let output =
        weighbridge(&["eval", "--resume", "run 2", "--limit", "120", "--offline"], dir.path());
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    let output = weighbridge(&["eval", "--resume", "run"], dir.path());
    assert!(printed(&output).contains("name the suite"), "{}", printed(&output));
}

#[test]
fn a_named_candidate_is_never_the_model_in_use() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path(), 150, 160);
    let output = weighbridge(&DATA_RUN, dir.path());
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("which model is in use today?") && text.contains("--current"), "{text}");
}
