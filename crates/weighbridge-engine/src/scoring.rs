//! Scoring continuations: how likely given texts are after given contexts.
//!
//! Items of one request that have the same context are a group. One of them, the *leader*, is fed with
//! the context; the row after the context's last token serves the first token of every continuation,
//! so continuations of one token cost nothing more. The others follow as sequences of their own that
//! begin with the context, which the prefix cache has by then. Rows are reduced as they arrive, never
//! kept.

use std::collections::HashMap;

use weighbridge_core::{Error, ErrorKind, Result, TokenId, TokenLogprob};

use crate::job::Sequence;
use crate::logprob::Distribution;
use crate::tokens::TokenTable;

/// The log-probabilities of one item.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) tokens: Vec<TokenLogprob>,
    /// Context tokens that were there already.
    pub(crate) n_cached: usize,
}

/// An item whose sequence is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ItemId {
    group: usize,
    index: usize,
}

/// The state of a scoring job.
#[derive(Debug)]
pub(crate) struct Scoring {
    groups: Vec<Group>,
    n_top: usize,
    items: Vec<Item>,
    /// Sequences that are fed.
    n_open: usize,
}

#[derive(Debug)]
struct Group {
    context: Vec<u32>,
    /// Items whose turn comes after the leader, in reverse.
    waiting: Vec<usize>,
    /// All of the group.
    members: Vec<usize>,
    has_first_row: bool,
}

#[derive(Debug)]
struct Item {
    tokens: Vec<u32>,
    results: Vec<Option<TokenLogprob>>,
    n_cached: usize,
}

impl Item {
    /// Whether it needs rows beyond the one after the context.
    fn needs_more(&self) -> bool {
        self.tokens.len() > 1
    }
}

impl Scoring {
    /// Scores `(context, continuation)` pairs with `n_top` alternatives per token.
    pub(crate) fn new(pairs: Vec<(Vec<u32>, Vec<u32>)>, n_top: u8, table: &TokenTable) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut items = Vec::with_capacity(pairs.len());
        let mut by_context: HashMap<Vec<u32>, usize> = HashMap::new();
        for (index, (context, tokens)) in pairs.into_iter().enumerate() {
            let mut results = vec![None; tokens.len()];
            if context.is_empty()
                && let (Some(first), Some(&id)) = (results.first_mut(), tokens.first())
            {
                *first =
                    Some(TokenLogprob::new(Some(TokenId(id)), table.bytes_of(id).to_vec(), None));
            }
            items.push(Item { tokens, results, n_cached: 0 });
            let group = *by_context.entry(context).or_insert_with_key(|context| {
                groups.push(Group {
                    context: context.clone(),
                    waiting: Vec::new(),
                    members: Vec::new(),
                    has_first_row: context.is_empty(),
                });
                groups.len() - 1
            });
            groups[group].members.push(index);
        }
        for group in &mut groups {
            group.waiting.extend(group.members.iter().rev());
            if group.has_first_row {
                group.waiting.retain(|index| items[*index].needs_more());
            } else {
                group.waiting.retain(|index| !items[*index].tokens.is_empty());
            }
        }
        Self { n_top: usize::from(n_top), groups, items, n_open: 0 }
    }

    /// The sequences to begin with: of each group its longest item, and all that have no context.
    pub(crate) fn start(&mut self) -> Vec<(ItemId, Sequence)> {
        let mut started = Vec::new();
        for group in 0..self.groups.len() {
            let waiting = &mut self.groups[group].waiting;
            waiting.sort_by_key(|index| self.items[*index].tokens.len());
            let n_first = if self.groups[group].has_first_row { usize::MAX } else { 1 };
            started.extend(self.follow(group, n_first));
        }
        started
    }

    /// The sequences of at most `n_most` further items of a group.
    pub(crate) fn follow(&mut self, group: usize, n_most: usize) -> Vec<(ItemId, Sequence)> {
        let state = &mut self.groups[group];
        let n_context = state.context.len();
        let first_row = if state.has_first_row { n_context } else { n_context.saturating_sub(1) };
        let n_left = state.waiting.len().saturating_sub(n_most);
        let chosen = state.waiting.split_off(n_left);
        self.n_open += chosen.len();
        let begin = |index: usize| {
            let mut tokens = state.context.clone();
            let continuation = &self.items[index].tokens;
            tokens.extend_from_slice(&continuation[..continuation.len() - 1]);
            (ItemId { group, index }, Sequence::new(tokens, n_context, first_row))
        };
        chosen.into_iter().rev().map(begin).collect()
    }

    /// The group whose other items can follow this one.
    pub(crate) fn group_of(&self, id: ItemId) -> Option<usize> {
        let group = &self.groups[id.group];
        (group.has_first_row && !group.waiting.is_empty()).then_some(id.group)
    }

    /// Takes the row after the token at `position`.
    pub(crate) fn take_row(
        &mut self,
        id: ItemId,
        position: u32,
        logits: &[f32],
        table: &TokenTable,
    ) -> Result<()> {
        let group = &mut self.groups[id.group];
        let n_context = group.context.len();
        let distribution = Distribution::new(logits, position)?;
        let n_before = position as usize + 1;
        if n_before == n_context {
            for &member in &group.members {
                let item = &mut self.items[member];
                if let Some(&token) = item.tokens.first() {
                    item.results[0] = Some(distribution.describe(token, self.n_top, table));
                }
                item.n_cached = if member == id.index { item.n_cached } else { n_context };
            }
            group.has_first_row = true;
            group.waiting.retain(|index| self.items[*index].needs_more());
            return Ok(());
        }
        let item = &mut self.items[id.index];
        if let Some(token_idx) = n_before.checked_sub(n_context)
            && let Some(&token) = item.tokens.get(token_idx)
        {
            item.results[token_idx] = Some(distribution.describe(token, self.n_top, table));
        }
        Ok(())
    }

    /// An item's slot holds the first `n_kept` tokens of what is to be fed.
    pub(crate) fn admitted(&mut self, id: ItemId, n_kept: usize) {
        self.items[id.index].n_cached = n_kept.min(self.groups[id.group].context.len());
    }

    /// A sequence is fed; the results if it was the last.
    pub(crate) fn close(&mut self) -> Result<Option<Vec<Scored>>> {
        self.n_open -= 1;
        let has_waiting = self.groups.iter().any(|group| !group.waiting.is_empty());
        if self.n_open > 0 || has_waiting {
            return Ok(None);
        }
        self.finish().map(Some)
    }

    /// The results of a job that needs no rows at all, or whose rows all came.
    pub(crate) fn finish(&mut self) -> Result<Vec<Scored>> {
        let items = std::mem::take(&mut self.items);
        items
            .into_iter()
            .enumerate()
            .map(|(index, item)| {
                let tokens = item.results.into_iter().collect::<Option<Vec<_>>>();
                let tokens = tokens.ok_or_else(|| {
                    Error::new(ErrorKind::Plugin, "the engine left out a row that was asked for")
                        .with("item", index)
                })?;
                Ok(Scored { tokens, n_cached: item.n_cached })
            })
            .collect()
    }

    /// Whether no row is needed.
    pub(crate) fn needs_nothing(&self) -> bool {
        self.groups.iter().all(|group| group.waiting.is_empty())
    }
}
