//! Tokens per second of a model, single and batched.
//!
//! `cargo run --release -p weighbridge-candle --example speed -- fixtures/triage-open`

use std::time::Instant;

use weighbridge_candle::{CandleEngine, ModelFiles};
use weighbridge_core::{OpenContext, Result};
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};

const N_PROMPT: usize = 100;
const N_DECODE: usize = 30;
const N_ROUNDS: usize = 8;

#[allow(clippy::print_stdout, reason = "it is a program")]
fn main() -> Result<()> {
    for path in std::env::args().skip(1) {
        let mut files = ModelFiles::open(path.as_ref())?;
        let started = Instant::now();
        let n_ctx = files.config().max_positions.min(4096) as u32;
        let mut engine = CandleEngine::load(&mut files, n_ctx, &OpenContext::new(), 0.0)?;
        println!("{path}: loaded in {:.2} s", started.elapsed().as_secs_f64());
        for n_seqs in [1, 2, 4, 8, 16] {
            let mut best = (f64::MAX, f64::MAX);
            for _ in 0..N_ROUNDS {
                let (prefill, decode) = round(&mut engine, n_seqs)?;
                best = (best.0.min(prefill), best.1.min(decode));
            }
            println!(
                "  {n_seqs:2} sequences: prefill {:8.0} tok/s, decode {:8.0} tok/s",
                (n_seqs * N_PROMPT) as f64 / best.0,
                (n_seqs * N_DECODE) as f64 / best.1
            );
        }
    }
    Ok(())
}

/// Seconds for the prompts and for the tokens after them.
fn round(engine: &mut CandleEngine, n_seqs: usize) -> Result<(f64, f64)> {
    let mut next = vec![0u32; n_seqs];
    let prompt: Vec<u32> = (0..N_PROMPT).map(|i| 3 + (i as u32 * 37) % 150).collect();
    let started = Instant::now();
    for (seq, next) in next.iter_mut().enumerate() {
        let span = Span {
            seq: SeqId(seq as u32),
            pos: 0,
            tokens: Input::Tokens(&prompt),
            want: Want::Last,
        };
        engine.feed(&[span], &mut |_: usize, _: u32, row: &[f32]| *next = argmax(row))?;
    }
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..N_DECODE {
        let tokens = next.clone();
        let spans: Vec<Span<'_>> = tokens
            .iter()
            .enumerate()
            .map(|(seq, token)| Span {
                seq: SeqId(seq as u32),
                pos: engine.len(SeqId(seq as u32)),
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
