//! From a row of logits to a token, the same for every engine and every platform.
//!
//! # Order
//! All arithmetic is f64 on the engine's f32 row.
//!
//! 1. **Mask**: ids without a token ([`TokenKind::Unused`](crate::tokens::TokenKind) and everything
//!    beyond the table) are out, always; then what a constraint forbids. A mask that allows one id
//!    ends here: it is taken without a random number, whatever its logit is, unless it is banned.
//! 2. **Penalties**: repetition (of prompt and completion: positive logits are divided, others
//!    multiplied), then frequency (per occurrence in the completion) and presence (once), subtracted.
//! 3. **Logit bias** is added; −∞ bans a token.
//! 4. **Temperature 0** ends here: the highest value, ties to the lowest id, no random number drawn.
//!    Otherwise `x_i = (l_i − max l) / temperature`.
//! 5. **Top-k** keeps the `k` highest, ties to the lower id.
//! 6. **Top-p**: weights `w_i = exp(x_i)` of what is left are summed from the highest down (ties by
//!    id); kept is the shortest such beginning whose sum reaches `p · Σ w`.
//! 7. **Min-p** keeps `w_i ≥ min_p` (the highest has weight 1).
//! 8. **Draw**: the weights are summed in order of ids; the token is the first whose running sum
//!    exceeds `u · Σ w`.
//!
//! # Random numbers
//! ChaCha with 8 rounds, 64-bit counter from 0, stream 0. Key: the request's seed as 8 bytes,
//! little-endian, then 24 zero bytes. A draw takes one 64-bit output (two words, low word first):
//! `u = (output >> 11) · 2⁻⁵³`, in [0, 1). A request without a seed uses seed 0, and the completion
//! says so.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use weighbridge_core::{EffectiveParams, Error, ErrorKind, Result, Sampling};

use crate::logprob::check_row;
use crate::tokens::{TokenKind, TokenTable};

/// Seed of requests that name none.
pub const DEFAULT_SEED: u64 = 0;

/// Settings of a draw with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// 0 is greedy.
    pub temperature: f64,
    /// `None` keeps all.
    pub top_k: Option<u32>,
    /// 1 keeps all.
    pub top_p: f64,
    /// 0 keeps all.
    pub min_p: f64,
    /// 1 is off.
    pub repetition_penalty: f64,
    /// 0 is off.
    pub frequency_penalty: f64,
    /// 0 is off.
    pub presence_penalty: f64,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl SamplerParams {
    /// The request's settings, then the model's `defaults`, then: temperature 1, everything else off,
    /// seed [`DEFAULT_SEED`]. Values are taken as checked.
    pub fn resolve(request: &Sampling, defaults: &Sampling) -> Self {
        let bias =
            if request.logit_bias.is_empty() { &defaults.logit_bias } else { &request.logit_bias };
        Self {
            temperature: request.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_k: request.top_k.or(defaults.top_k),
            top_p: request.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: request.min_p.or(defaults.min_p).unwrap_or(0.0),
            repetition_penalty: request
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(1.0),
            frequency_penalty: request
                .frequency_penalty
                .or(defaults.frequency_penalty)
                .unwrap_or(0.0),
            presence_penalty: request.presence_penalty.or(defaults.presence_penalty).unwrap_or(0.0),
            logit_bias: bias.iter().map(|(id, value)| (id.0, *value)).collect(),
            seed: request.seed.or(defaults.seed).unwrap_or(DEFAULT_SEED),
        }
    }

    /// Writes every setting under its request name; those that are off are left out.
    #[must_use]
    pub fn record(&self, effective: EffectiveParams) -> EffectiveParams {
        let mut effective = effective.with("temperature", self.temperature).with("seed", self.seed);
        if let Some(top_k) = self.top_k {
            effective = effective.with("top_k", top_k);
        }
        for (name, value, off) in [
            ("top_p", self.top_p, 1.0),
            ("min_p", self.min_p, 0.0),
            ("repetition_penalty", self.repetition_penalty, 1.0),
            ("frequency_penalty", self.frequency_penalty, 0.0),
            ("presence_penalty", self.presence_penalty, 0.0),
        ] {
            if value != off {
                effective = effective.with(name, value);
            }
        }
        if !self.logit_bias.is_empty() {
            let bias = self.logit_bias.iter();
            // JSON has no infinity, and a ban must not be read back as a bias of nothing.
            let bias: Vec<_> =
                bias.map(|(id, value)| serde_json::json!([id, value.to_string()])).collect();
            effective = effective.with("logit_bias", bias);
        }
        effective
    }
}

/// The ids that a constraint allows, shape `(n_vocab,)` in bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
}

impl TokenMask {
    /// Allows nothing of `n_vocab` ids.
    pub fn none(n_vocab: usize) -> Self {
        Self { words: vec![0; n_vocab.div_ceil(64)] }
    }

    /// Allows an id; ids beyond the mask stay forbidden.
    pub fn allow(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Allows exactly the ids of a bit set, lowest bit first; ids beyond the mask stay forbidden.
    pub(crate) fn set_words(&mut self, bits: &[u32]) {
        let mut pairs = bits.chunks(2);
        for word in &mut self.words {
            let pair = pairs.next().unwrap_or_default();
            let half = |index: usize| u64::from(pair.get(index).copied().unwrap_or(0));
            *word = half(0) | half(1) << 32;
        }
    }

    /// The only id that is allowed.
    pub fn only(&self) -> Option<u32> {
        let mut words = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        let (index, word) = words.next()?;
        let is_only = word.is_power_of_two() && words.next().is_none();
        is_only.then(|| index as u32 * 64 + word.trailing_zeros())
    }

    /// Whether an id is allowed.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}

/// The draws of one generation.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    rng: ChaCha8Rng,
    /// Occurrences in the completion; 0 for an id that only the prompt has.
    seen: BTreeMap<u32, u32>,
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// The sampler of a generation that continues `prompt`.
    pub fn new(params: SamplerParams, prompt: &[u32]) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&params.seed.to_le_bytes());
        Self {
            rng: ChaCha8Rng::from_seed(key),
            seen: prompt.iter().map(|&id| (id, 0)).collect(),
            candidates: Vec::new(),
            params,
        }
    }

    /// Chooses a token from a row of logits, shape `(n_vocab,)`, and counts it for the penalties.
    /// `position` is named in errors.
    ///
    /// # Errors
    /// [`ErrorKind::Engine`] for a row with a NaN, an infinity above zero or no finite value;
    /// [`ErrorKind::Constraint`] if mask and bans leave no token.
    pub fn sample(
        &mut self,
        logits: &[f32],
        position: u32,
        table: &TokenTable,
        mask: Option<&TokenMask>,
    ) -> Result<u32> {
        let max = check_row(logits, position)?;
        if let Some(id) = self.shortcut(logits, max, table, mask) {
            *self.seen.entry(id).or_insert(0) += 1;
            return Ok(id);
        }
        if let Some(id) = mask.and_then(TokenMask::only) {
            self.force(id, position, table)?;
            return Ok(id);
        }
        self.fill(logits, table, mask);
        let Some((best, max)) = self.best() else { return Err(none_left(position)) };
        let id = if self.params.temperature == 0.0 { best } else { self.draw(max) };
        *self.seen.entry(id).or_insert(0) += 1;
        Ok(id)
    }

    /// The token with the highest logit, where nothing changes that it is the one: a pass over the row
    /// instead of a list of candidates.
    fn shortcut(
        &self,
        logits: &[f32],
        max: f64,
        table: &TokenTable,
        mask: Option<&TokenMask>,
    ) -> Option<u32> {
        let p = &self.params;
        let is_plain = p.temperature == 0.0
            && p.repetition_penalty == 1.0
            && p.frequency_penalty == 0.0
            && p.presence_penalty == 0.0;
        // A bias that only bans changes nothing for others.
        let only_bans = p.logit_bias.iter().all(|(_, bias)| *bias == f32::NEG_INFINITY);
        if !is_plain || !only_bans || mask.is_some() {
            return None;
        }
        let best = logits.iter().position(|logit| f64::from(*logit) == max)? as u32;
        let is_banned = p.logit_bias.iter().any(|(banned, _)| *banned == best);
        (!is_banned && table.kind(best) != TokenKind::Unused).then_some(best)
    }

    /// Takes a token that leaves no choice and counts it for the penalties.
    ///
    /// # Errors
    /// [`ErrorKind::Constraint`] if the token is banned, or if the id has none.
    pub fn force(&mut self, id: u32, position: u32, table: &TokenTable) -> Result<()> {
        let is_ban = |(banned, bias): &(u32, f32)| *banned == id && *bias == f32::NEG_INFINITY;
        if table.kind(id) == TokenKind::Unused || self.params.logit_bias.iter().any(is_ban) {
            return Err(none_left(position).with("token_id", id));
        }
        *self.seen.entry(id).or_insert(0) += 1;
        Ok(())
    }

    /// Mask, penalties, bias: what is left, in order of ids.
    fn fill(&mut self, logits: &[f32], table: &TokenTable, mask: Option<&TokenMask>) {
        self.candidates.clear();
        for (id, (&logit, &kind)) in logits.iter().zip(&table.kinds).enumerate() {
            let id = id as u32;
            if kind != TokenKind::Unused && mask.is_none_or(|mask| mask.allows(id)) {
                self.candidates.push((id, f64::from(logit)));
            }
        }
        let p = &self.params;
        let penalizes =
            p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0;
        if penalizes {
            for (id, value) in &mut self.candidates {
                let Some(&n) = self.seen.get(id) else { continue };
                if *value > 0.0 {
                    *value /= p.repetition_penalty;
                } else {
                    *value *= p.repetition_penalty;
                }
                if n > 0 {
                    *value -= f64::from(n) * p.frequency_penalty + p.presence_penalty;
                }
            }
        }
        for (id, bias) in &p.logit_bias {
            if let Ok(index) = self.candidates.binary_search_by_key(id, |c| c.0) {
                self.candidates[index].1 += f64::from(*bias);
            }
        }
        self.candidates.retain(|(_, value)| *value > f64::NEG_INFINITY);
    }

    fn best(&self) -> Option<(u32, f64)> {
        let mut best: Option<(u32, f64)> = None;
        for &(id, value) in &self.candidates {
            if best.is_none_or(|(_, max)| value > max) {
                best = Some((id, value));
            }
        }
        best
    }

    /// Temperature, top-k, top-p, min-p, draw.
    fn draw(&mut self, max: f64) -> u32 {
        let falling = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let p = &self.params;
        let candidates = &mut self.candidates;
        for (_, value) in candidates.iter_mut() {
            *value = (*value - max) / p.temperature;
        }
        let mut is_sorted_by_id = true;
        if let Some(k) = p.top_k.map(|k| k.max(1) as usize)
            && k < candidates.len()
        {
            candidates.select_nth_unstable_by(k - 1, falling);
            candidates.truncate(k);
            is_sorted_by_id = false;
        }
        for (_, value) in candidates.iter_mut() {
            *value = value.exp();
        }
        if p.top_p < 1.0 {
            candidates.sort_unstable_by(falling);
            is_sorted_by_id = false;
            let total: f64 = candidates.iter().map(|c| c.1).sum();
            let mut sum = 0.0;
            let n_kept = candidates.iter().position(|c| {
                sum += c.1;
                sum >= p.top_p * total
            });
            candidates.truncate(n_kept.map_or(candidates.len(), |n| n + 1));
        }
        candidates.retain(|(_, weight)| *weight >= p.min_p);
        if !is_sorted_by_id {
            candidates.sort_unstable_by_key(|c| c.0);
        }

        let u = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut sum = 0.0;
        let drawn = candidates.iter().find(|c| {
            sum += c.1;
            sum > u * total
        });
        // Rounding can leave the last sum at the target; the last token with weight is meant then.
        let last = candidates.iter().rev().find(|c| c.1 > 0.0);
        drawn.or(last).map_or(0, |c| c.0)
    }
}

fn none_left(position: u32) -> Error {
    Error::new(ErrorKind::Constraint, "no token is left after mask, bans and unused ids")
        .with("position", position)
}
