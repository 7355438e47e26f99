//! Developer tasks. Shells out, imports nothing of the workspace, compiles in seconds.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program talks to its user.

mod bench;
mod bench_peers;
mod eval;
mod full;
mod native;
mod shell;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask TASK

  eval                 the demo: a small open model against a stand-in for a closed one
  eval --resume DIR    goes on with a demo that was broken off
  eval SUITE [ARG …]   any suite; the arguments are those of `weighbridge eval`
  eval --data FILE …   your own data: looks for models on this machine, shows the plan, asks
  test [--full]        all tests; --full makes some run for minutes, sets up programs of others that
                       judge ours (cargo-nextest, Python 3.10, Node.js 20); result: docs/test-full.json
  bench engines        speed of the local engines; --peers builds llama.cpp's programs and measures
                       them in turns, --peers-dir DIR takes built ones; --only, --rounds, --quick
  bench remote         what the client of remote models costs, in turns with wrk and a bare hyper
                       client; needs nginx and wrk; --only, --rounds, --calls, --quick
  native               finds or installs what building llama.cpp needs; prints it for a shell:
                       eval \"$(cargo xtask native)\"
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["eval", rest @ ..] => eval::run(rest),
        ["bench", "engines", rest @ ..] => bench::engines(rest),
        ["bench", "remote", rest @ ..] => bench::remote(rest),
        ["native"] => native::Tools::provide().map(|tools| {
            print!("{}", tools.exports());
            0
        }),
        ["test"] => test::run(false),
        ["test", "--full"] => test::run(true),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("unknown task `{}`\n\n{HELP}", other.join(" "));
            return ExitCode::from(3);
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::from(3)
        }
    }
}
