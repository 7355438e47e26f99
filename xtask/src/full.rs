//! What `cargo xtask test --full` adds: judges that others wrote, and a record of the result.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::bench_peers;
use crate::shell::{self, answers, output, root};

/// Where the result of the last full run is kept.
const RECORD: &str = "docs/test-full.json";
/// What nextest writes with this profile of `.config/nextest.toml`.
const PROFILE: &str = "full";
const JUNIT: &str = "target/nextest/full/junit.xml";
/// So many of the longest tests are recorded.
const N_LONGEST: usize = 12;
/// Official clients, as peers of our server and as judges of golden streams, and a server that
/// judges its clients; from PyPI.
const PYTHON_PACKAGES: [&str; 4] =
    ["openai==3.54.0", "anthropic==2.12.0", "google-genai==3.4.0", "llmock==0.2.2"];
/// A server of four wires that counts what it is asked; from npm.
const AIMOCK: &str = "@copilotkit/aimock@1.43.0";

/// Programs of others that the full tests need.
pub(crate) struct Judges {
    sdk_python: PathBuf,
    aimock: PathBuf,
    llama_server: PathBuf,
    /// Package and version of each, for the record.
    names: Vec<String>,
}

impl Judges {
    /// Installs or builds under `target/` what is not there yet.
    pub(crate) fn provide() -> Result<Self, String> {
        const PROGRAM: &str = "llama-server";
        let (sdk_python, aimock) = (sdk_python()?, aimock()?);
        let peers = bench_peers::build(&[PROGRAM])?;
        let mut names: Vec<String> = PYTHON_PACKAGES.map(str::to_owned).into();
        names.extend([AIMOCK.to_owned(), format!("{PROGRAM} of {}", peers.source)]);
        Ok(Self { sdk_python, aimock, llama_server: peers.program(PROGRAM), names })
    }

    /// Makes a run of nextest a full one.
    pub(crate) fn apply(&self, nextest: &mut Command) {
        nextest
            .args(["--profile", PROFILE])
            .env("WEIGHBRIDGE_FULL_TESTS", "1")
            .env("WEIGHBRIDGE_SDK_PYTHON", &self.sdk_python)
            .env("WEIGHBRIDGE_AIMOCK", &self.aimock)
            .env("WEIGHBRIDGE_LLAMA_SERVER", &self.llama_server);
    }
}

/// A Python with the foreign packages; made under `target/` if need be.
fn sdk_python() -> Result<PathBuf, String> {
    let dir = root().join("target/sdk-venv");
    let python = dir.join("bin/python");
    let has_all = [
        "-c",
        "import importlib.metadata as m, sys\n\
         for p in sys.argv[1:]: assert m.version(p.split('==')[0]) == p.split('==')[1]",
    ];
    if !answers(Command::new(&python).args(has_all).args(PYTHON_PACKAGES)) {
        let names = PYTHON_PACKAGES.join(", ");
        let remedy = format!(
            "; --full needs Python 3.10 or later with venv (Debian: `apt install python3-venv`) and \
             the PyPI packages {names}"
        );
        let with_remedy = |e| format!("{e}{remedy}");
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&dir)).map_err(with_remedy)?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        shell::run(Command::new(&python).args(install).args(PYTHON_PACKAGES))
            .map_err(with_remedy)?;
    }
    Ok(python)
}

/// The script that starts aimock; installed under `target/` if need be.
fn aimock() -> Result<PathBuf, String> {
    let remedy = "; --full needs Node.js 20 or later with npm (https://nodejs.org, Debian: `apt \
                  install nodejs npm`) for the npm package @copilotkit/aimock";
    let version = output(Command::new("node").arg("--version")).map_err(|e| e + remedy)?;
    let major = version.trim_start_matches('v').split('.').next().and_then(|v| v.parse().ok());
    if major.is_none_or(|major: u32| major < 20) {
        return Err(format!("node is {version}{remedy}"));
    }
    let dir = root().join("target/aimock");
    let package = dir.join("node_modules/@copilotkit/aimock");
    let wanted = AIMOCK.rsplit('@').next().unwrap_or_default();
    let installed = std::fs::read_to_string(package.join("package.json")).unwrap_or_default();
    if !installed.contains(&format!("\"version\": \"{wanted}\"")) {
        let mut install = Command::new("npm");
        install.args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"]);
        shell::run(install.arg(&dir).arg(AIMOCK)).map_err(|e| e + remedy)?;
    }
    Ok(package.join("dist/cli.js"))
}

/// The result of a full run, with what was tested.
pub(crate) struct Record {
    started: Instant,
    commit: String,
    is_clean: bool,
    judges: Vec<String>,
}

impl Record {
    /// Before anything is tested.
    pub(crate) fn begin(judges: &Judges) -> Result<Self, String> {
        let git = |args: &[&str]| output(Command::new("git").args(args).current_dir(root()));
        let others = format!(":(exclude){RECORD}");
        let status = git(&["status", "--porcelain", "--", ".", &others])?;
        // What an earlier run left is no result of this one.
        let _ = std::fs::remove_file(root().join(JUNIT));
        let commit = git(&["rev-parse", "HEAD"])?;
        let judges = judges.names.iter().map(|name| quoted(name)).collect();
        Ok(Self { started: Instant::now(), commit, is_clean: status.is_empty(), judges })
    }

    /// Writes the record. Nothing is written where no test was run.
    pub(crate) fn keep(&self, tests_pass: bool, doc_tests_pass: bool) -> Result<(), String> {
        let Ok(junit) = std::fs::read_to_string(root().join(JUNIT)) else { return Ok(()) };
        let mut cases = cases(&junit);
        let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let is_failed = |case: &&Case| case.is_failed;
        let failed: Vec<String> = cases.iter().filter(is_failed).map(|c| quoted(&c.name)).collect();
        let printed: Vec<String> = cases
            .iter()
            .filter(|case| !case.is_failed && !case.printed.is_empty())
            // Its tests print tables of made-up numbers.
            .filter(|case| !case.name.starts_with("weighbridge-bench "))
            .map(|case| {
                let lines: Vec<String> = case.printed.iter().map(|line| quoted(line)).collect();
                format!("{}: [{}]", quoted(&case.name), lines_of(&lines, 3))
            })
            .collect();
        cases.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let longest: Vec<String> = cases
            .iter()
            .take(N_LONGEST)
            .map(|case| format!("{}: {:.1}", quoted(&case.name), case.seconds))
            .collect();
        let fields = [
            ("command", quoted("cargo xtask test --full")),
            ("passed", (tests_pass && doc_tests_pass).to_string()),
            ("commit", quoted(&self.commit)),
            ("clean_checkout", self.is_clean.to_string()),
            ("date", quoted(&date)),
            ("seconds", self.started.elapsed().as_secs().to_string()),
            ("cpus", n_cpus.to_string()),
            ("judges", format!("[{}]", lines_of(&self.judges, 2))),
            ("tests_passed", (cases.len() - failed.len()).to_string()),
            ("tests_failed", failed.len().to_string()),
            ("failed", format!("[{}]", lines_of(&failed, 2))),
            ("doc_tests_passed", doc_tests_pass.to_string()),
            ("longest_seconds", format!("{{{}}}", lines_of(&longest, 2))),
            ("printed", format!("{{{}}}", lines_of(&printed, 2))),
        ];
        let fields = fields.map(|(name, value)| format!("{}: {value}", quoted(name)));
        std::fs::write(root().join(RECORD), format!("{{{}}}\n", lines_of(&fields, 1)))
            .map_err(|e| format!("cannot write {RECORD}: {e}"))?;
        eprintln!("kept in {RECORD}");
        Ok(())
    }
}

/// A test that was run.
#[derive(Debug, Default, PartialEq)]
struct Case {
    /// Binary and test: `weighbridge-remote::wire llama_server::…`.
    name: String,
    seconds: f64,
    is_failed: bool,
    /// Lines, without those of the test harness.
    printed: Vec<String>,
}

/// The tests of a JUnit file.
fn cases(junit: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    // Text has no `<` of its own: it is escaped.
    for element in junit.split('<') {
        let (tag, text) = element.split_once('>').unwrap_or((element, ""));
        match (tag.split_whitespace().next(), cases.last_mut()) {
            (Some("testcase"), _) => {
                let attribute = |name: &str| {
                    let after = tag.split_once(&format!(" {name}=\""))?.1;
                    Some(unescaped(after.split_once('"')?.0))
                };
                let part = |name| attribute(name).unwrap_or_default();
                cases.push(Case {
                    name: format!("{} {}", part("classname"), part("name")),
                    seconds: part("time").parse().unwrap_or_default(),
                    ..Case::default()
                });
            }
            (Some("failure" | "error"), Some(case)) => case.is_failed = true,
            (Some("system-out"), Some(case)) => {
                let text = unescaped(text);
                let own = text.lines().filter(|line| !is_of_harness(line));
                case.printed = own.map(|line| line.trim_end().to_owned()).collect();
            }
            _ => {}
        }
    }
    cases
}

fn is_of_harness(line: &str) -> bool {
    line.is_empty()
        || line == "running 1 test"
        || line.starts_with("test result: ")
        || line.starts_with("test ")
            && (line.ends_with(" ... ok") || line.contains(" has been running for over "))
}

fn unescaped(xml: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(xml.to_owned(), |text, (name, character)| text.replace(name, character))
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '"' | '\\' => format!("\\{character}"),
        '\0'..' ' => format!("\\u{:04x}", u32::from(character)),
        _ => character.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Members of a list or an object, each in a line of its own, this deep.
fn lines_of(members: &[String], depth: usize) -> String {
    if members.is_empty() {
        return String::new();
    }
    let indent = "  ".repeat(depth);
    let lines: Vec<String> = members.iter().map(|member| format!("\n{indent}{member}")).collect();
    format!("{}\n{}", lines.join(","), "  ".repeat(depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_read_from_junit() {
        let junit = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="2" failures="1" errors="0" time="4.5">
    <testsuite name="a::wire" tests="2" disabled="0" errors="0" failures="1">
        <testcase name="llama::works" classname="a::wire" timestamp="2026-11-21" time="4.004">
            <system-out>
running 1 test
test llama::works has been running for over 60 seconds
2 calls, 2 &lt;counted&gt;
test llama::works ... ok

test result: ok. 1 passed; 0 failed</system-out>
        </testcase>
        <testcase name="falls" classname="a::wire" time="0.5">
            <failure type="test failure">panicked</failure>
        </testcase>
    </testsuite>
</testsuites>"#;
        let passed = Case {
            name: "a::wire llama::works".to_owned(),
            seconds: 4.004,
            is_failed: false,
            printed: vec!["2 calls, 2 <counted>".to_owned()],
        };
        let name = "a::wire falls".to_owned();
        let failed = Case { name, seconds: 0.5, is_failed: true, printed: Vec::new() };
        assert_eq!(cases(junit), [passed, failed]);
    }

    #[test]
    fn lists_are_json() {
        assert_eq!(quoted("a \"b\"\\\n\u{fc}"), r#""a \"b\"\\\u000aü""#);
        assert_eq!(lines_of(&[], 2), "");
        assert_eq!(lines_of(&["1".to_owned(), "2".to_owned()], 2), "\n    1,\n    2\n  ");
    }
}
