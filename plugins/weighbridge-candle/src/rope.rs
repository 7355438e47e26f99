//! Rotary positions: frequencies with their scalings, and tables of cosines and sines.

use std::f64::consts::TAU;

use weighbridge_models::hf_config::{HfConfig, RopeScaling};

/// Cosines and sines per position, grown as positions are used.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>, // (head_dim / 2,)
    cos: Vec<f32>,         // (n_positions, head_dim / 2)
    sin: Vec<f32>,         // (n_positions, head_dim / 2)
}

impl Rope {
    pub(crate) fn new(config: &HfConfig) -> Self {
        Self { frequencies: frequencies(config), cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes positions below `n_positions` available.
    pub(crate) fn reach(&mut self, n_positions: usize) {
        let n_now = self.cos.len() / self.frequencies.len();
        for position in n_now..n_positions {
            for frequency in &self.frequencies {
                // Angles are products in f32, as the reference implementation computes them.
                let angle = position as f32 * frequency;
                self.cos.push(angle.cos());
                self.sin.push(angle.sin());
            }
        }
    }

    /// Cosines and sines of one position, shape `(head_dim / 2,)`.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let n = self.frequencies.len();
        let range = position * n..(position + 1) * n;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

fn frequencies(config: &HfConfig) -> Vec<f32> {
    (0..config.head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f64 / config.head_dim as f64;
            // Rounded where the reference implementation rounds.
            let frequency = 1.0 / (config.rope_theta.powf(exponent) as f32);
            scaled(frequency, config.rope_scaling)
        })
        .collect()
}

/// Llama 3's scaling as in the model's own code (`apply_scaling` of llama-models).
fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let wave_length = TAU / f64::from(frequency);
            if wave_length < original_max_positions / high_freq_factor {
                return frequency;
            }
            if wave_length > original_max_positions / low_freq_factor {
                return frequency / factor as f32;
            }
            let smooth = (original_max_positions / wave_length - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            let frequency = f64::from(frequency);
            ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
        }
        _ => frequency,
    }
}
