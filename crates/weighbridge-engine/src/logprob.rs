//! Log-probabilities of one row of logits.
//!
//! The distribution is the model's own, before mask, penalties, bias and temperature:
//! `logprob(i) = l_i − log Σ_j exp(l_j)` in nats, computed in f64 from the f32 row as
//! `l_i − (m + ln Σ_j exp(l_j − m))` with `m` the largest logit. The sum runs over the whole row, ids
//! without a token included, as the model was trained. Ranks and alternatives count only ids that have
//! a token.
//!
//! A row has up to hundreds of thousands of values, so passes over it are written for vector
//! instructions: eight partial sums, and an exponential of additions and multiplications alone,
//! which gives the same bits on every platform.

use weighbridge_core::{Error, ErrorKind, Result, TokenId, TokenLogprob, TopLogprob};

use crate::tokens::{TokenKind, TokenTable};

/// The model's distribution at one position.
#[derive(Clone, Copy, Debug)]
pub struct Distribution<'a> {
    logits: &'a [f32], // (n_vocab,)
    log_z: f64,
}

impl<'a> Distribution<'a> {
    /// Normalizes a row, shape `(n_vocab,)`. `position` is named in errors.
    ///
    /// # Errors
    /// [`ErrorKind::Engine`] if the row has a NaN, an infinity above zero, or no finite value.
    pub fn new(logits: &'a [f32], position: u32) -> Result<Self> {
        let max = check_row(logits, position)?;
        Ok(Self { logits, log_z: max + exp_sum(logits, max).ln() })
    }

    /// Natural log of the probability of an id, in (−∞, 0]; −∞ beyond the row.
    pub fn logprob(&self, id: u32) -> f64 {
        let logit = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        // Rounding can lift a probability of 1 above 1 by one step.
        (f64::from(logit) - self.log_z).min(0.0)
    }

    /// Number of ids with a token that are more likely, or equally likely with a lower id.
    pub fn rank(&self, id: u32, table: &TokenTable) -> u32 {
        let logit = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let n_above: usize = self.logits.iter().map(|l| usize::from(*l > logit)).sum();
        let lower = &self.logits[..self.logits.len().min(id as usize)];
        let n_equal: usize = lower.iter().map(|l| usize::from(*l == logit)).sum();
        let is_before = |(i, l): (usize, &f32)| *l > logit || (*l == logit && i < id as usize);
        let kinds = table.kinds.iter().copied().chain(std::iter::repeat(TokenKind::Unused));
        let unused = self.logits.iter().enumerate().zip(kinds);
        let unused = unused.filter(|(entry, kind)| *kind == TokenKind::Unused && is_before(*entry));
        let n_before = n_above + n_equal;
        let n_before = if n_before == 0 { 0 } else { n_before - unused.count() };
        u32::try_from(n_before).unwrap_or(u32::MAX)
    }

    /// The `k` most likely ids that have a token, most likely first, ties by id.
    pub fn top(&self, k: usize, table: &TokenTable) -> Vec<u32> {
        if k == 0 {
            return Vec::new();
        }
        let mut top: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
        // An id is let in only if it beats the last of those that are in; ids come in their order, so
        // among equals the earlier one stays.
        let mut least = f32::NEG_INFINITY;
        for (id, (&logit, &kind)) in self.logits.iter().zip(&table.kinds).enumerate() {
            if (logit > least || top.len() < k) && kind != TokenKind::Unused {
                let at = top.partition_point(|(other, _)| *other >= logit);
                top.insert(at, (logit, id as u32));
                top.truncate(k);
                if let (true, Some((last, _))) = (top.len() == k, top.last()) {
                    least = *last;
                }
            }
        }
        top.into_iter().map(|(_, id)| id).collect()
    }

    /// An id with log-probability, rank and the `n_top` most likely ids.
    pub fn describe(&self, id: u32, n_top: usize, table: &TokenTable) -> TokenLogprob {
        let bytes = table.bytes_of(id).to_vec();
        let mut entry = TokenLogprob::new(Some(TokenId(id)), bytes, Some(self.logprob(id)));
        entry.rank = Some(self.rank(id, table));
        entry.top = self
            .top(n_top, table)
            .into_iter()
            .map(|id| {
                TopLogprob::new(Some(TokenId(id)), table.bytes_of(id).to_vec(), self.logprob(id))
            })
            .collect();
        entry
    }
}

/// Values that are computed together.
const LANES: usize = 8;

/// The largest logit of a row that can be used.
pub(crate) fn check_row(logits: &[f32], position: u32) -> Result<f64> {
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut is_bad = [false; LANES];
    let mut take = |lane: usize, logit: f32| {
        is_bad[lane] |= is_damaged(logit);
        maxima[lane] = if logit > maxima[lane] { logit } else { maxima[lane] };
    };
    for block in blocks {
        (0..LANES).for_each(|lane| take(lane, block[lane]));
    }
    rest.iter().for_each(|logit| take(0, *logit));
    if is_bad.contains(&true) {
        let id = logits.iter().position(|logit| is_damaged(*logit)).unwrap_or_default();
        let logit = logits.get(id).copied().unwrap_or(f32::NAN);
        return Err(Error::new(
            ErrorKind::Engine,
            format!("the engine gave a logit of {logit}; the weights or the device are damaged"),
        )
        .with("position", position)
        .with("token_id", id));
    }
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(Error::new(ErrorKind::Engine, "the engine gave a row without a finite logit")
            .with("position", position));
    }
    Ok(f64::from(max))
}

fn is_damaged(logit: f32) -> bool {
    logit.is_nan() | (logit == f32::INFINITY)
}

/// `Σ exp(l − max)`, to a few units of the last place.
fn exp_sum(logits: &[f32], max: f64) -> f64 {
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for block in blocks {
        for (sum, logit) in sums.iter_mut().zip(block) {
            *sum += exp(f64::from(*logit) - max);
        }
    }
    for (sum, logit) in sums.iter_mut().zip(rest) {
        *sum += exp(f64::from(*logit) - max);
    }
    sums.into_iter().sum()
}

/// `exp(x)` for `x ≤ 0`, 0 below −700: `2ⁿ · exp(r)` with `|r| ≤ ln 2 / 2`, where the series up to
/// `r¹³ / 13!` is exact to the last place.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // Adding 1.5 · 2⁵² leaves the nearest integer in the lowest bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, of which the first has few enough bits for exact products.
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let is_zero = x < -700.0;
    let x = if is_zero { 0.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.0;
    for k in [13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0] {
        series = 1.0 + series * r * (1.0 / k);
    }
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    if is_zero { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: usize) -> TokenTable {
        TokenTable {
            bytes: (0..n).map(|i| vec![b'a' + i as u8]).collect(),
            kinds: vec![TokenKind::Text; n],
            end_ids: vec![],
            bos_id: None,
        }
    }

    #[test]
    fn logprobs_are_the_logs_of_hand_made_probabilities() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln() + 3.0).collect();
        let dist = Distribution::new(&row, 0).unwrap();
        assert!((dist.logprob(0) - 0.5f64.ln()).abs() < 1e-7);
        assert!((dist.logprob(2) - 0.25f64.ln()).abs() < 1e-7);
        assert_eq!(dist.rank(2, &table(3)), 2, "ties count the lower id first");
        assert_eq!(dist.top(2, &table(3)), [0, 1]);
        assert_eq!(dist.top(9, &table(3)), [0, 1, 2]);
    }

    #[test]
    fn unused_ids_count_in_the_sum_and_not_in_the_rank() {
        let mut table = table(2);
        table.kinds[0] = TokenKind::Unused;
        let row = [5.0f32, 1.0, 9.0];
        let dist = Distribution::new(&row, 0).unwrap();
        assert_eq!(dist.rank(1, &table), 0);
        assert_eq!(dist.top(3, &table), [1]);
        let z = 5f64.exp() + 1f64.exp() + 9f64.exp();
        assert!((dist.logprob(1) - (1.0 - z.ln())).abs() < 1e-12);
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -f64::from(i) * 3.4e-4;
            let want = x.exp();
            worst = worst.max((exp(x) - want).abs() / want);
        }
        assert!(worst < 4e-16, "{worst:e}");
        assert_eq!((exp(0.0), exp(-701.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn ranks_and_alternatives_are_those_of_a_sorted_row() {
        let n = 203;
        let mut table = table(0);
        table.kinds = (0..n).map(|i| [TokenKind::Text, TokenKind::Unused][i % 7 / 6]).collect();
        table.bytes = vec![Vec::new(); n];
        // Few values, so that many are equal; the row is wider than the table.
        let row: Vec<f32> = (0..n + 5).map(|i| ((i * 37 + i / 11) % 13) as f32).collect();
        let mut ids: Vec<u32> =
            (0..n as u32).filter(|id| table.kind(*id) != TokenKind::Unused).collect();
        ids.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        let dist = Distribution::new(&row, 0).unwrap();
        for (rank, id) in ids.iter().enumerate() {
            assert_eq!(dist.rank(*id, &table), rank as u32);
        }
        for k in [0, 1, 2, 20, ids.len(), n + 9] {
            assert_eq!(dist.top(k, &table), ids[..k.min(ids.len())]);
        }
    }

    #[test]
    fn a_damaged_row_names_the_position() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Distribution::new(&[0.0, bad], 7).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Engine);
            assert_eq!(error.context("position"), Some("7"));
            assert_eq!(error.context("token_id"), Some("1"));
        }
        assert!(Distribution::new(&[f32::NEG_INFINITY; 3], 7).is_err());
        let certain = [0.0, f32::NEG_INFINITY];
        let dist = Distribution::new(&certain, 0).unwrap();
        assert_eq!(dist.logprob(0), 0.0);
        assert_eq!(dist.logprob(1), f64::NEG_INFINITY);
    }
}
