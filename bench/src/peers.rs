//! The peers that are programs: how they are called, and what they print.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::ours::N_SHORT_PROMPT;
use crate::server::Server;
use weighbridge_bench::Result;

/// Tokens of a logical and of a physical batch, for every peer that has such a thing; llama.cpp's
/// own defaults, written out.
const BATCHES: [&str; 4] = ["--batch-size", "2048", "--ubatch-size", "512"];

/// Where llama.cpp's programs and stock candle lie.
#[derive(Debug)]
pub(crate) struct Peers {
    dir: PathBuf,
    stock_candle: PathBuf,
    n_threads: usize,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
}

impl Peers {
    /// llama.cpp's programs are in `dir`, stock candle is beside this program.
    pub(crate) fn new(dir: PathBuf, n_threads: usize) -> Result<Self> {
        let name = format!("stock-candle{}", std::env::consts::EXE_SUFFIX);
        let stock_candle = std::env::current_exe()?.with_file_name(name);
        let peers = Self { dir, stock_candle, n_threads };
        let mut programs: Vec<_> =
            ["llama-bench", "llama-batched-bench", "llama-server"].map(|p| peers.program(p)).into();
        programs.push(peers.stock_candle.clone());
        match programs.iter().find(|program| !program.is_file()) {
            Some(missing) => Err(format!("there is no {}", missing.display()).into()),
            None => Ok(peers),
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }

    /// What llama.cpp says of its version and its compiler.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(self.program("llama-server")).arg("--version").output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// One stream: a prompt of `n_prompt` tokens, and `n_generated` steps of one token behind as
    /// many others as ours has before it.
    pub(crate) fn llama_bench(
        &self,
        model: &Path,
        n_prompt: usize,
        n_generated: usize,
    ) -> Result<Rates> {
        let rate = |n_prompt: usize, n_generated: usize, depth: usize| {
            let mut command = Command::new(self.program("llama-bench"));
            command
                .args(["--repetitions", "1", "--output", "json"])
                .args(["--n-prompt", &n_prompt.to_string(), "--n-gen", &n_generated.to_string()])
                .args(["--n-depth", &depth.to_string()])
                .args(["--threads", &self.n_threads.to_string()])
                .args(BATCHES)
                .arg("--model")
                .arg(model);
            bench_rate(&output(command)?)
        };
        Ok(Rates { prefill: rate(n_prompt, 0, 0)?, decode: rate(0, n_generated, N_SHORT_PROMPT)? })
    }

    /// `n_sequences` streams at once, each with its own prompt: prompt and generated tokens of all
    /// per second.
    pub(crate) fn batched_bench(
        &self,
        model: &Path,
        n_sequences: usize,
        n_prompt: usize,
        n_generated: usize,
    ) -> Result<f64> {
        let n_ctx = n_sequences * (n_prompt + n_generated);
        let mut command = Command::new(self.program("llama-batched-bench"));
        command
            .args(["--output-format", "jsonl", "--ctx-size", &n_ctx.to_string()])
            .args(["-npp", &n_prompt.to_string(), "-ntg", &n_generated.to_string()])
            .args(["-npl", &n_sequences.to_string()])
            .args(["--threads", &self.n_threads.to_string()])
            .args(BATCHES)
            .arg("--model")
            .arg(model);
        batched_speed(&output(command)?)
    }

    /// Starts llama-server with this many slots, which share `n_ctx` positions.
    pub(crate) fn server(&self, model: &Path, n_slots: usize, n_ctx: usize) -> Result<Server> {
        let threads = ["--threads".to_owned(), self.n_threads.to_string()];
        let slots = ["--parallel".to_owned(), n_slots.to_string(), "--kv-unified".to_owned()];
        let context = ["--ctx-size".to_owned(), n_ctx.to_string()];
        // Enough that every request is heard at once.
        let http = ["--threads-http".to_owned(), "80".to_owned()];
        let args =
            [&threads[..], &slots[..], &context[..], &http[..], &BATCHES.map(str::to_owned)[..]];
        Server::start(&self.program("llama-server"), model, &args.concat())
    }

    /// One stream of candle-transformers' own code.
    pub(crate) fn stock_candle(
        &self,
        model: &Path,
        n_prompt: usize,
        n_generated: usize,
    ) -> Result<Rates> {
        let mut command = Command::new(&self.stock_candle);
        command.arg(model).args([n_prompt.to_string(), n_generated.to_string()]);
        let value: Value = serde_json::from_str(&output(command)?)?;
        let rate = |name: &str| value[name].as_f64().ok_or(format!("no {name} in {value}"));
        Ok(Rates { prefill: rate("prefill")?, decode: rate("decode")? })
    }
}

fn output(mut command: Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot start `{program}`: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        return Err(format!("`{program}` failed, {}: {last:?}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Reads what `llama-bench --output json` prints: an array with one test.
fn bench_rate(text: &str) -> Result<f64> {
    let tests: Vec<Value> = serde_json::from_str(text)?;
    match &tests[..] {
        [test] => test["avg_ts"].as_f64().ok_or_else(|| "llama-bench printed no rate".into()),
        tests => Err(format!("llama-bench printed {} tests instead of one", tests.len()).into()),
    }
}

/// Reads what `llama-batched-bench --output-format jsonl` prints among its messages.
fn batched_speed(text: &str) -> Result<f64> {
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let speed = rows.filter_map(|row| row["speed"].as_f64()).next_back();
    speed.ok_or_else(|| "llama-batched-bench printed no row of results".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_llama_bench_is_that_of_its_one_test() {
        let test = r#"{"n_prompt": 512, "n_gen": 0, "avg_ts": 331.5}"#;
        assert_eq!(bench_rate(&format!("[{test}]")).unwrap(), 331.5);
        for text in ["[]", "[{}]", &format!("[{test}, {test}]")] {
            assert!(bench_rate(text).is_err());
        }
    }

    #[test]
    fn the_row_of_llama_batched_bench_is_found_among_its_messages() {
        let text = "loading\n{\"pp\": 128, \"tg\": 64, \"pl\": 16, \"speed\": 350.5}\n\n";
        assert_eq!(batched_speed(text).unwrap(), 350.5);
        assert!(batched_speed("loading\n").is_err());
    }
}
