//! The `weighbridge` program.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program talks to its user.

mod discover;
mod eval;
mod hint;
mod keys;
mod plugins;
mod progress;
mod serve;
mod try_model;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use weighbridge::{Environment, Error, ErrorKind, Keys, Registry, Result};

/// A remote call is many small parts of JSON and HTTP, freed as fast as they come: with the C
/// library's allocator it takes a fifth more CPU time (`cargo xtask bench remote`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A report was written, and the gate, if one was asked for, holds.
const EXIT_OK: u8 = 0;
/// The gate fails.
const EXIT_GATE_FAILED: u8 = 1;
/// The gate can neither hold nor fail on this evidence.
const EXIT_INCONCLUSIVE: u8 = 2;
/// Wrong usage or a failing infrastructure: there is no report.
const EXIT_NO_REPORT: u8 = 3;

/// Weigh open-weight against closed-weight models on your own workload.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask two or more models the same, compare the answers, and say which model to use
    Eval(eval::EvalArgs),
    /// Send one prompt to one model and stream the answer
    Try(try_model::TryArgs),
    /// Serve a model to other programs on this machine, over OpenAI's Chat Completions
    Serve(serve::ServeArgs),
    /// Keep, list and remove the keys of models behind APIs
    Keys(keys::KeysArgs),
    /// List the kinds of models this program can open and the ways it can judge answers
    Plugins,
}

const EXAMPLES: &str = "\
A model is named PROVIDER:LOCATION, as in candle:models/my-model or
openai-compatible:http://127.0.0.1:8080/v1#my-model; `weighbridge plugins` lists the providers.

Examples:
  weighbridge try candle:models/my-model \"Hello\"
  weighbridge eval --data questions.jsonl --current openai-compatible:http://127.0.0.1:8080/v1#m \\
      --candidate candle:models/my-model
  weighbridge eval suite.toml";

fn main() -> ExitCode {
    leave_no_core();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no mistakes; a mistake must not look like "inconclusive".
            let code = if error.use_stderr() { EXIT_NO_REPORT } else { EXIT_OK };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let run = || match &args.command {
        Command::Eval(args) => eval::run(args),
        Command::Try(args) => try_model::run(args).map(|()| EXIT_OK),
        Command::Serve(args) => serve::run(args).map(|()| EXIT_OK),
        Command::Keys(args) => keys::run(args).map(|()| EXIT_OK),
        Command::Plugins => plugins::run().map(|()| EXIT_OK),
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            eprintln!("error: {}", error.report());
            ExitCode::from(EXIT_NO_REPORT)
        }
        // The panic's message is on standard error already.
        Err(_) => ExitCode::from(EXIT_NO_REPORT),
    }
}

/// A core file would hold the keys.
fn leave_no_core() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Core);
        limit.current = Some(0);
        // To lower one's own limit is always permitted.
        let _ = setrlimit(Resource::Core, limit);
    }
}

/// Prints to standard output. A reader that has gone away is no error: `head` has seen enough.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Io, "cannot write to standard output").with_source(e))
        }
        _ => Ok(()),
    }
}

/// The plugins linked into this program.
fn registry() -> Result<Registry> {
    let builtin = weighbridge::evaluators::plugin as fn() -> weighbridge::Plugin;
    Registry::linked(&[
        ("weighbridge", builtin),
        #[cfg(feature = "plugin-candle")]
        ("weighbridge_candle", weighbridge_candle::plugin),
        #[cfg(feature = "llama-cpp")]
        ("weighbridge_llama_cpp", weighbridge_llama_cpp::plugin),
        #[cfg(feature = "plugin-remote")]
        ("weighbridge_remote", weighbridge_remote::plugin),
    ])
}

fn environment(keys: &Arc<Keys>) -> Result<Environment> {
    Ok(Environment::new(registry()?).with_secrets(Arc::clone(keys) as _))
}
