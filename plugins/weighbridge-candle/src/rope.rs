//! Rotary positions: frequencies with their scalings, and tables of cosines and sines.

use std::f64::consts::TAU;

use weighbridge_models::decoder::{Rope as RopeConfig, RopeScaling};

/// Cosines and sines per position, grown as positions are used.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>, // (dim / 2,)
    /// Cosines and sines are multiplied with it.
    factor: f32,
    cos: Vec<f32>, // (n_positions, dim / 2)
    sin: Vec<f32>, // (n_positions, dim / 2)
}

impl Rope {
    /// Tables for a context of `n_ctx` positions: LongRoPE has other frequencies for long ones.
    pub(crate) fn new(config: &RopeConfig, n_ctx: usize) -> Self {
        let factor = match &config.scaling {
            RopeScaling::LongRope { attention_factor, .. }
            | RopeScaling::Yarn { attention_factor, .. } => *attention_factor as f32,
            _ => 1.0,
        };
        let frequencies = frequencies(config, n_ctx);
        Self { frequencies, factor, cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes positions below `n_positions` available.
    pub(crate) fn reach(&mut self, n_positions: usize) {
        let n_now = self.cos.len() / self.frequencies.len();
        for position in n_now..n_positions {
            for frequency in &self.frequencies {
                // Angles are products in f32, as the reference implementation computes them.
                let angle = position as f32 * frequency;
                self.cos.push(angle.cos() * self.factor);
                self.sin.push(angle.sin() * self.factor);
            }
        }
    }

    /// Cosines and sines of one position, shape `(dim / 2,)`.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let n = self.frequencies.len();
        let range = position * n..(position + 1) * n;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

fn frequencies(config: &RopeConfig, n_ctx: usize) -> Vec<f32> {
    let dim = config.dim as f64;
    (0..config.dim / 2)
        .map(|i| {
            // Rounded where the reference implementation rounds.
            let power = config.theta.powf((2 * i) as f64 / dim) as f32;
            let frequency = 1.0 / power;
            match &config.scaling {
                RopeScaling::None => frequency,
                RopeScaling::Linear { factor } => frequency / *factor as f32,
                RopeScaling::Factors { factors } => frequency / factors[i],
                RopeScaling::LongRope { short, long, original_max_positions, .. } => {
                    let is_long = n_ctx as f64 > *original_max_positions;
                    1.0 / (if is_long { long[i] } else { short[i] } * power)
                }
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions,
                } => llama3(
                    frequency,
                    *factor,
                    original_max_positions / low_freq_factor,
                    original_max_positions / high_freq_factor,
                ),
                RopeScaling::Yarn {
                    factor, beta_fast, beta_slow, original_max_positions, ..
                } => {
                    // The dimension whose frequency turns that often in the original context.
                    let dimension = |n_turns: f64| {
                        let turns = original_max_positions / (n_turns * TAU);
                        dim * turns.ln() / (2.0 * config.theta.ln())
                    };
                    let low = dimension(*beta_fast).floor().max(0.0);
                    let high = dimension(*beta_slow).ceil().min(dim - 1.0);
                    let ramp = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0) as f32;
                    frequency / *factor as f32 * ramp + frequency * (1.0 - ramp)
                }
            }
        })
        .collect()
}

/// Llama 3's scaling as in the model's own code (`apply_scaling` of llama-models): wave lengths
/// above `low` are stretched, those below `high` are not.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64) -> f32 {
    let wave_length = TAU / f64::from(frequency);
    if wave_length < high {
        return frequency;
    }
    if wave_length > low {
        return frequency / factor as f32;
    }
    // (original / wave_length - low_freq_factor) / (high_freq_factor - low_freq_factor)
    let smooth = (1.0 / wave_length - 1.0 / low) / (1.0 / high - 1.0 / low);
    let frequency = f64::from(frequency);
    ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
}
