//! Log-probabilities of one row of logits.
//!
//! The distribution is the model's own, before mask, penalties, bias and temperature:
//! `logprob(i) = l_i − log Σ_j exp(l_j)` in nats, computed in f64 from the f32 row as
//! `l_i − (m + ln Σ_j exp(l_j − m))` with `m` the largest logit and the sum in order of ids. The sum
//! runs over the whole row, ids without a token included, as the model was trained. Ranks and
//! alternatives count only ids that have a token.

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
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        Ok(Self { logits, log_z: max + sum.ln() })
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
        let before = self.logits.iter().zip(&table.kinds).enumerate().filter(|(i, (l, kind))| {
            **kind != TokenKind::Unused && (**l > logit || (**l == logit && *i < id as usize))
        });
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    /// The `k` most likely ids that have a token, most likely first, ties by id.
    pub fn top(&self, k: usize, table: &TokenTable) -> Vec<u32> {
        if k == 0 {
            return Vec::new();
        }
        let n_ids = self.logits.len().min(table.len());
        let mut ids: Vec<u32> =
            (0..n_ids as u32).filter(|&id| table.kind(id) != TokenKind::Unused).collect();
        let order = |a: &u32, b: &u32| {
            self.logits[*b as usize].total_cmp(&self.logits[*a as usize]).then(a.cmp(b))
        };
        if k < ids.len() {
            ids.select_nth_unstable_by(k - 1, order);
            ids.truncate(k);
        }
        ids.sort_unstable_by(order);
        ids
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

/// The largest logit of a row that can be used.
pub(crate) fn check_row(logits: &[f32], position: u32) -> Result<f64> {
    let mut max = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::new(
                ErrorKind::Engine,
                format!(
                    "the engine gave a logit of {logit}; the weights or the device are damaged"
                ),
            )
            .with("position", position)
            .with("token_id", id));
        }
        max = max.max(logit);
    }
    if max == f32::NEG_INFINITY {
        return Err(Error::new(ErrorKind::Engine, "the engine gave a row without a finite logit")
            .with("position", position));
    }
    Ok(f64::from(max))
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
