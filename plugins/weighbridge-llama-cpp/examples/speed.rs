//! Tokens per second of GGUF files, single and batched, as `llama-bench` and
//! `llama-batched-bench` measure them.
//!
//! `cargo run --release -p weighbridge-llama-cpp --example speed -- THREADS FILE …`

use std::time::Instant;

use serde_json::json;
use weighbridge_core::{OpenContext, Result};
use weighbridge_engine::loader::EngineLoader;
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};
use weighbridge_llama_cpp::LlamaLoader;

const N_PROMPT: usize = 128;
const N_DECODE: usize = 64;
const N_ROUNDS: usize = 3;

#[allow(clippy::print_stdout, reason = "it is a program")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let threads: Option<u32> = arguments.next().and_then(|threads| threads.parse().ok());
    for path in arguments {
        let mut context = OpenContext::new();
        if let Some(threads) = threads {
            context.options.insert("threads".to_owned(), json!(threads));
        }
        let loader = Box::new(LlamaLoader::prepare(path.as_ref(), &context)?);
        let started = Instant::now();
        loader.run(&context, &mut |text, engine| {
            let seconds = started.elapsed().as_secs_f64();
            let build = text.card.engine.and_then(|engine| engine.build).unwrap_or_default();
            println!("{path}: opened in {seconds:.2} s, {build}");
            for n_seqs in [1, 4, 16] {
                match best_round(engine, n_seqs) {
                    Ok((prefill, decode)) => println!(
                        "  {n_seqs:2} sequences: prefill {:8.1} tok/s, decode {:8.1} tok/s",
                        (n_seqs * N_PROMPT) as f64 / prefill,
                        (n_seqs * N_DECODE) as f64 / decode
                    ),
                    Err(error) => println!("  {n_seqs:2} sequences: {error}"),
                }
            }
        })?;
    }
    Ok(())
}

fn best_round(engine: &mut dyn LogitsEngine, n_seqs: usize) -> Result<(f64, f64)> {
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..N_ROUNDS {
        let (prefill, decode) = round(engine, n_seqs)?;
        best = (best.0.min(prefill), best.1.min(decode));
    }
    Ok(best)
}

/// Seconds for the prompts and for the tokens after them.
fn round(engine: &mut dyn LogitsEngine, n_seqs: usize) -> Result<(f64, f64)> {
    let mut next = vec![0u32; n_seqs];
    let prompt: Vec<u32> = (0..N_PROMPT).map(|i| 3 + (i as u32 * 37) % 150).collect();
    let started = Instant::now();
    for (seq, next) in next.iter_mut().enumerate() {
        let (seq, tokens) = (SeqId(seq as u32), Input::Tokens(&prompt));
        let span = Span { seq, pos: 0, tokens, want: Want::Last };
        engine.feed(&[span], &mut |_: usize, _: u32, row: &[f32]| *next = argmax(row))?;
    }
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for i in 0..N_DECODE {
        let tokens = next.clone();
        let spans: Vec<Span<'_>> = tokens
            .iter()
            .enumerate()
            .map(|(seq, token)| Span {
                seq: SeqId(seq as u32),
                pos: (N_PROMPT + i) as u32,
                tokens: Input::Tokens(std::slice::from_ref(token)),
                want: Want::Last,
            })
            .collect();
        engine.feed(&spans, &mut |i: usize, _: u32, row: &[f32]| next[i] = argmax(row))?;
    }
    let decode = started.elapsed().as_secs_f64();
    for seq in 0..n_seqs {
        engine.release(SeqId(seq as u32));
    }
    Ok((prefill, decode))
}

fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i as u32)
}
