//! Scoring continuations: how likely given texts are after given contexts.
//!
//! Items of one request that have the same context are a group: the context is fed once and the
//! sequence is cut back to it between continuations; an engine that cannot cut back feeds it again.
//! The row after the context's last token serves the first token of every continuation of the group.
//! Rows are reduced as they arrive, never kept.

use weighbridge_core::{Error, ErrorKind, Result, TokenId, TokenLogprob};

use crate::job::Sequence;
use crate::logprob::Distribution;
use crate::tokens::TokenTable;

/// The log-probabilities of one item.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) tokens: Vec<TokenLogprob>,
    pub(crate) n_prompt: usize,
    /// Context tokens that were there already.
    pub(crate) n_cached: usize,
}

/// The state of a scoring job besides its tokens.
#[derive(Debug)]
pub(crate) struct Scoring {
    groups: Vec<Group>,
    n_top: usize,
    /// The group and the item in it that is fed now.
    current: Option<(usize, usize)>,
    results: Vec<Vec<Option<TokenLogprob>>>,
    n_context: Vec<usize>,
    n_cached: Vec<usize>,
}

#[derive(Debug)]
struct Group {
    context: Vec<u32>,
    items: Vec<Item>,
    has_first_row: bool,
}

#[derive(Debug)]
struct Item {
    index: usize,
    tokens: Vec<u32>,
}

impl Scoring {
    /// Scores `(context, continuation)` pairs with `n_top` alternatives per token.
    pub(crate) fn new(items: Vec<(Vec<u32>, Vec<u32>)>, n_top: u8, table: &TokenTable) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut results = Vec::new();
        let mut n_context = Vec::new();
        let mut by_context = std::collections::HashMap::new();
        for (index, (context, tokens)) in items.into_iter().enumerate() {
            let mut result = vec![None; tokens.len()];
            if context.is_empty()
                && let (Some(slot), Some(&id)) = (result.first_mut(), tokens.first())
            {
                *slot =
                    Some(TokenLogprob::new(Some(TokenId(id)), table.bytes_of(id).to_vec(), None));
            }
            results.push(result);
            n_context.push(context.len());
            let group = *by_context.entry(context.clone()).or_insert_with(|| {
                groups.push(Group { context, items: Vec::new(), has_first_row: false });
                groups.len() - 1
            });
            groups[group].items.push(Item { index, tokens });
        }
        Self {
            n_top: usize::from(n_top),
            groups,
            current: None,
            n_cached: vec![0; results.len()],
            results,
            n_context,
        }
    }

    /// Takes the row after the token at `position`.
    pub(crate) fn take_row(
        &mut self,
        position: u32,
        logits: &[f32],
        table: &TokenTable,
    ) -> Result<()> {
        let Some((group, item)) = self.current else { return Ok(()) };
        let group = &mut self.groups[group];
        let distribution = Distribution::new(logits, position)?;
        let n_before = position as usize + 1;
        if n_before == group.context.len() {
            for item in &group.items {
                if let Some(&id) = item.tokens.first() {
                    self.results[item.index][0] =
                        Some(distribution.describe(id, self.n_top, table));
                }
            }
            group.has_first_row = true;
        } else if let Some(token_idx) = n_before.checked_sub(group.context.len())
            && let Some(&id) = group.items[item].tokens.get(token_idx)
        {
            self.results[group.items[item].index][token_idx] =
                Some(distribution.describe(id, self.n_top, table));
        }
        Ok(())
    }

    /// Turns to the next item that needs rows; the results once there is none.
    pub(crate) fn next(&mut self, sequence: &mut Sequence) -> Result<Option<Vec<Scored>>> {
        let (mut group_idx, mut item_idx) = match self.current {
            Some((group, item)) => (group, item + 1),
            None => (0, 0),
        };
        while let Some(group) = self.groups.get(group_idx) {
            let Some(item) = group.items.get(item_idx) else {
                (group_idx, item_idx) = (group_idx + 1, 0);
                continue;
            };
            let n_context = group.context.len();
            let first_row =
                if group.has_first_row { n_context } else { n_context.saturating_sub(1) };
            let n_fed = (n_context + item.tokens.len()).saturating_sub(1);
            if first_row < n_fed && !item.tokens.is_empty() {
                let mut tokens = group.context.clone();
                tokens.extend_from_slice(&item.tokens[..item.tokens.len() - 1]);
                *sequence = Sequence::new(tokens, first_row);
                self.current = Some((group_idx, item_idx));
                return Ok(None);
            }
            if group.has_first_row {
                self.n_cached[item.index] = n_context;
            }
            item_idx += 1;
        }
        self.current = None;
        self.finish().map(Some)
    }

    /// The slot holds the first `n_kept` tokens of what is to be fed.
    pub(crate) fn aligned(&mut self, n_kept: usize) {
        if let Some((group, item)) = self.current {
            let index = self.groups[group].items[item].index;
            self.n_cached[index] = n_kept.min(self.groups[group].context.len());
        }
    }

    /// The number of positions the largest item fills.
    pub(crate) fn n_positions(&self) -> usize {
        let n = |i: usize| (self.n_context[i] + self.results[i].len()).saturating_sub(1);
        (0..self.results.len()).map(n).max().unwrap_or(0)
    }

    fn finish(&mut self) -> Result<Vec<Scored>> {
        let results = std::mem::take(&mut self.results);
        results
            .into_iter()
            .enumerate()
            .map(|(index, tokens)| {
                let n_prompt = self.n_context[index] + tokens.len();
                let tokens = tokens.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| {
                    Error::new(ErrorKind::Plugin, "the engine left out a row that was asked for")
                        .with("item", index)
                })?;
                Ok(Scored { tokens, n_prompt, n_cached: self.n_cached[index] })
            })
            .collect()
    }
}
