//! `cargo xtask eval`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::native::Tools;
use crate::shell::{self, cargo, root};

const DEMO_SUITE: &str = "fixtures/suites/demo.toml";
const DEMO_CLOSED: &str = "candle:fixtures/triage-large";

pub(crate) fn run(args: &[&str]) -> Result<u8, String> {
    let program = &build(needs_llama_cpp(args))?;
    let resumed = match demo_to_resume(args) {
        Some(resumed) => resumed,
        None if args.is_empty() => Vec::new(),
        None => return weighbridge(program, &[args, &["--called-as", "cargo xtask"]].concat()),
    };
    let server = StandIn::start(program)?;
    eprintln!(
        "stand-in  triage-large answers on {} from a process of its own, in place of a closed model",
        server.url
    );
    let define = format!("STAND_IN={}", server.url);
    let mut demo = vec![DEMO_SUITE, "--define", &define, "--resume-hint", "cargo xtask eval"];
    demo.extend(resumed.iter().map(String::as_str));
    let code = weighbridge(program, &demo)?;
    if code == 0 {
        println!("Weigh your own data: cargo xtask eval --data FILE");
    }
    Ok(code)
}

/// The arguments of a resume that names no suite, where it is the demo that is resumed: its folder
/// keeps no suite of its own. The folder is where the user is, or in the repository's root.
fn demo_to_resume(args: &[&str]) -> Option<Vec<String>> {
    let (dir, rest) = match args {
        ["--resume", dir, rest @ ..] => (*dir, rest),
        [first, rest @ ..] => (first.strip_prefix("--resume=")?, rest),
        [] => return None,
    };
    if rest.iter().any(|arg| !arg.starts_with('-')) || Path::new(dir).join("suite.toml").is_file() {
        return None;
    }
    let dir = match std::path::absolute(dir) {
        Ok(path) if path.is_dir() => path,
        _ => root().join(dir),
    };
    let mut resumed = vec!["--resume".to_owned(), dir.to_string_lossy().into_owned()];
    resumed.extend(rest.iter().map(|arg| (*arg).to_owned()));
    Some(resumed)
}

/// Whether a model on llama.cpp is named, by an argument, by a suite that is one, or by the suite of
/// a run that is resumed. Only then is it built: that takes minutes, and more than Rust.
fn needs_llama_cpp(args: &[&str]) -> bool {
    const NAME: &str = "llama-cpp:";
    args.iter().any(|arg| {
        let value = Path::new(arg.split_once('=').map_or(*arg, |(_, value)| value));
        let suites = [value.to_owned(), value.join("suite.toml")];
        let in_suite = |path: &PathBuf| {
            path.extension().is_some_and(|extension| extension == "toml")
                && std::fs::read_to_string(path).is_ok_and(|text| text.contains(NAME))
        };
        arg.contains(NAME) || suites.iter().any(in_suite)
    })
}

/// Builds the program for the CPU it will run on, apart from other builds, because flags that
/// differ would rebuild everything.
fn build(has_llama_cpp: bool) -> Result<PathBuf, String> {
    let target = root().join("target/native");
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "--package",
        "weighbridge-cli",
        "--locked",
        "--target-dir",
    ]);
    command.arg(&target).env("RUSTFLAGS", "-C target-cpu=native");
    let needs = if has_llama_cpp {
        Tools::provide()?.apply(&mut command);
        command.args(["--features", "llama-cpp"]);
        "Rust, a C++ compiler, cmake and libclang"
    } else {
        "Rust and a C compiler (`cc`, which also links)"
    };
    shell::run(&mut command).map_err(|e| format!("{e}; building needs {needs}"))?;
    Ok(target.join("release").join(format!("weighbridge{}", std::env::consts::EXE_SUFFIX)))
}

fn weighbridge(program: &Path, args: &[&str]) -> Result<u8, String> {
    let status = Command::new(program)
        .arg("eval")
        .args(args)
        .current_dir(working_dir(args))
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    // Killed by a signal: there is no report.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(3))
}

/// The demo runs in the repository's root; a suite of the user's where the user is.
fn working_dir(args: &[&str]) -> PathBuf {
    match args.first() {
        Some(&DEMO_SUITE) => root(),
        _ => std::env::current_dir().unwrap_or_else(|_| root()),
    }
}

/// The stand-in's process. It ends when its standard input closes, so also when this program dies.
struct StandIn {
    child: Child,
    url: String,
}

impl StandIn {
    fn start(program: &Path) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(["serve", DEMO_CLOSED, "--name", "triage-large", "--address", "127.0.0.1:0"])
            .arg("--until-stdin-closes")
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start the stand-in: {e}"))?;
        let stdout = child.stdout.take().expect("standard output was piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let url = line.trim().strip_prefix("serving ").map(|rest| rest.to_owned());
        match (read, url) {
            (Ok(_), Some(url)) => Ok(Self { child, url }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err("the stand-in did not start; its message stands above".to_owned())
            }
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_cpp_is_built_only_for_those_who_name_it() {
        assert!(!needs_llama_cpp(&[]));
        assert!(!needs_llama_cpp(&[DEMO_SUITE, "--define", "X=llama"]));
        assert!(needs_llama_cpp(&["--data", "x.csv", "--candidate", "llama-cpp:m.gguf"]));
        let dir = std::env::temp_dir().join(format!("weighbridge-eval-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for the test");
        let (suite, folder) = (dir.join("suite.toml"), format!("--resume={}", dir.display()));
        std::fs::write(&suite, "model = \"candle:m\"").expect("a suite for the test");
        let suite_arg = suite.to_string_lossy();
        assert!(!needs_llama_cpp(&[&suite_arg]) && !needs_llama_cpp(&[&folder]));
        std::fs::write(&suite, "model = \"llama-cpp:m.gguf\"").expect("a suite for the test");
        assert!(needs_llama_cpp(&[&suite_arg]) && needs_llama_cpp(&["--gate", &folder]));
        std::fs::remove_dir_all(dir).expect("the folder that was made");
    }
}
