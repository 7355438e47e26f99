//! A peer: one prefill and one decode by candle-transformers' own `quantized_qwen2`.
//!
//! Usage: `stock-candle MODEL.gguf N_PROMPT N_GENERATED`. Prints one JSON line with rates in tokens
//! per second. The first, uncounted pass warms up, as llama-bench does.
#![allow(clippy::print_stdout)] // Its result is what it prints.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{D, Device, Tensor};
use candle_transformers::models::quantized_qwen2::ModelWeights;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, n_prompt, n_generated] = args.as_slice() else {
        return Err("usage: stock-candle MODEL.gguf N_PROMPT N_GENERATED".into());
    };
    let (n_prompt, n_generated): (usize, usize) = (n_prompt.parse()?, n_generated.parse()?);
    let mut file = File::open(model)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;

    measure(&mut model, n_prompt.min(64), 2)?;
    let (prefill, decode) = measure(&mut model, n_prompt, n_generated)?;
    println!("{}", serde_json::json!({ "prefill": prefill, "decode": decode }));
    Ok(())
}

/// Tokens per second of a prompt pass, and of steps of one token after a short prompt.
fn measure(
    model: &mut ModelWeights,
    n_prompt: usize,
    n_generated: usize,
) -> candle_core::Result<(f64, f64)> {
    // Spread over the vocabulary; what they are does not matter for speed.
    let prompt: Vec<u32> = (0..n_prompt as u32).map(|i| 300 + i * 67 % 40_000).collect();
    let started = Instant::now();
    greedy(&model.forward(&batch(&prompt)?, 0)?)?;
    let prefill = n_prompt as f64 / started.elapsed().as_secs_f64();

    let short = &prompt[..n_prompt.min(16)];
    let mut token = greedy(&model.forward(&batch(short)?, 0)?)?;
    let started = Instant::now();
    for i in 0..n_generated {
        token = greedy(&model.forward(&batch(&[token])?, short.len() + i)?)?;
    }
    Ok((prefill, n_generated as f64 / started.elapsed().as_secs_f64()))
}

fn batch(tokens: &[u32]) -> candle_core::Result<Tensor> {
    Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)
}

fn greedy(logits: &Tensor) -> candle_core::Result<u32> {
    logits.squeeze(0)?.argmax(D::Minus1)?.to_scalar()
}
