//! `cargo xtask test`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::native::Tools;
use crate::shell::{self, answers, cargo, output, root};

/// Where the result of the last full run is kept.
const FULL_RESULT: &str = "docs/test-full.json";
/// The official client that the server is tested with.
const SDK: &str = "openai==3.54.0";

pub(crate) fn run(full: bool) -> Result<u8, String> {
    let started = Instant::now();
    let tools = Tools::provide()?;
    let cargo = || {
        let mut cargo = cargo();
        tools.apply(&mut cargo);
        cargo
    };
    // The end-to-end tests run the programs. Built with the features of the tests, so that nothing
    // is compiled twice.
    shell::run(cargo().args(["build", "--locked", "--workspace"]))?;
    let mut tests = cargo();
    if answers(cargo().args(["nextest", "--version"])) {
        tests.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args([
            "test",
            "--locked",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    if full {
        tests.env("WEIGHBRIDGE_FULL_TESTS", "1").env("WEIGHBRIDGE_SDK_PYTHON", sdk_python()?);
    }
    shell::run(&mut tests)?;
    shell::run(cargo().args(["test", "--locked", "--workspace", "--doc"]))?;
    if full {
        keep_result(started.elapsed().as_secs())?;
    }
    Ok(0)
}

/// A Python with the official client, as a peer of our server; made under `target/` if need be.
fn sdk_python() -> Result<PathBuf, String> {
    let dir = root().join("target/sdk-venv");
    let python = dir.join("bin/python");
    if !answers(Command::new(&python).args(["-c", "import openai"])) {
        let remedy = "; --full needs Python 3 with venv, and the PyPI package `openai`";
        let with_remedy = |e| format!("{e}{remedy}");
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&dir)).map_err(with_remedy)?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK];
        shell::run(Command::new(&python).args(install)).map_err(with_remedy)?;
    }
    Ok(python)
}

fn keep_result(n_seconds: u64) -> Result<(), String> {
    let git = |args: &[&str]| output(Command::new("git").args(args).current_dir(root()));
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain"])?.is_empty();
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let json = format!(
        "{{\n  \"command\": \"cargo xtask test --full\",\n  \"passed\": true,\n  \"commit\": \
         \"{commit}\",\n  \"clean_checkout\": {is_clean},\n  \"date\": \"{date}\",\n  \"seconds\": \
         {n_seconds}\n}}\n"
    );
    std::fs::write(root().join(FULL_RESULT), json)
        .map_err(|e| format!("cannot write {FULL_RESULT}: {e}"))?;
    eprintln!("kept in {FULL_RESULT}");
    Ok(())
}
