//! What the engine's sequences hold, as a radix tree over tokens.
//!
//! A node is a run of tokens in the KV cache, and a sequence is a path from the root that ends at the
//! end of a node. A fork shares the nodes of the part it copies; what is fed afterwards gets a node of
//! its own. So the tree is both the index that finds the longest beginning of a prompt and, for
//! engines whose forks share memory, the exact count of positions in use: runs that were computed
//! twice stand in it twice.

use crate::logits::SeqId;

type NodeId = usize;

/// The root holds no tokens and every sequence passes through it.
const ROOT: NodeId = 0;

#[derive(Debug, Default)]
struct Node {
    tokens: Vec<u32>,
    parent: NodeId,
    children: Vec<NodeId>,
    /// The sequences that pass through the node or end with it.
    seqs: Vec<u32>,
}

/// Where a sequence ends.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    node: NodeId,
    len: usize,
}

/// A sequence that begins like a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) seq: SeqId,
    /// Tokens that it has in common with the prompt.
    pub(crate) n_shared: usize,
    /// Tokens that it holds.
    pub(crate) n_held: usize,
}

/// The tokens of all sequences.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    ends: Vec<End>,
}

impl PrefixTree {
    /// `n_seqs` empty sequences.
    pub(crate) fn new(n_seqs: usize) -> Self {
        let root = Node { seqs: (0..n_seqs as u32).collect(), ..Node::default() };
        Self { nodes: vec![root], unused: Vec::new(), ends: vec![End::default(); n_seqs] }
    }

    /// Tokens that a sequence holds.
    pub(crate) fn len(&self, seq: SeqId) -> usize {
        self.ends[seq.0 as usize].len
    }

    /// The tokens that a sequence holds.
    pub(crate) fn tokens(&self, seq: SeqId) -> Vec<u32> {
        let mut path = Vec::new();
        let mut node = self.ends[seq.0 as usize].node;
        while node != ROOT {
            path.push(node);
            node = self.nodes[node].parent;
        }
        path.into_iter().rev().flat_map(|node| self.nodes[node].tokens.iter().copied()).collect()
    }

    /// Adds tokens to the end of a sequence.
    pub(crate) fn append(&mut self, seq: SeqId, tokens: &[u32]) {
        if tokens.is_empty() {
            return;
        }
        let End { node, len } = self.ends[seq.0 as usize];
        let is_own = node != ROOT
            && self.nodes[node].children.is_empty()
            && self.nodes[node].seqs.len() == 1;
        let node = if is_own {
            self.nodes[node].tokens.extend_from_slice(tokens);
            node
        } else {
            self.add(node, tokens.to_vec(), vec![seq.0])
        };
        self.ends[seq.0 as usize] = End { node, len: len + tokens.len() };
    }

    /// Cuts a sequence back to its first `len` tokens.
    pub(crate) fn truncate(&mut self, seq: SeqId, len: usize) {
        let End { mut node, len: mut end } = self.ends[seq.0 as usize];
        while end > len {
            let start = end - self.nodes[node].tokens.len();
            if start < len {
                let is_own = self.nodes[node].seqs.len() == 1;
                if is_own {
                    self.nodes[node].tokens.truncate(len - start);
                } else {
                    self.split(node, len - start);
                    // The others go on into the lower half, which `split` gave to all.
                    let lower = self.nodes[node].children[0];
                    self.leave(lower, seq);
                }
                end = len;
                break;
            }
            let parent = self.nodes[node].parent;
            self.leave(node, seq);
            (node, end) = (parent, start);
        }
        self.ends[seq.0 as usize] = End { node, len: end };
        self.join(node);
    }

    /// Makes `to` the first `len` tokens of `from`. What `to` held is gone.
    pub(crate) fn fork(&mut self, from: SeqId, to: SeqId, len: usize) {
        if from == to {
            return self.truncate(to, len);
        }
        self.truncate(to, 0);
        let End { mut node, len: mut end } = self.ends[from.0 as usize];
        let len = len.min(end);
        while end > len {
            let start = end - self.nodes[node].tokens.len();
            if start < len {
                self.split(node, len - start);
                end = len;
                break;
            }
            (node, end) = (self.nodes[node].parent, start);
        }
        self.ends[to.0 as usize] = End { node, len: end };
        while node != ROOT {
            self.nodes[node].seqs.push(to.0);
            node = self.nodes[node].parent;
        }
    }

    /// The sequence that has most in common with the beginning of `tokens`, of those that `rank` gives
    /// a rank; among equals the one with the higher rank.
    pub(crate) fn longest<R: Ord>(
        &self,
        tokens: &[u32],
        rank: impl Fn(Match) -> Option<R>,
    ) -> Option<Match> {
        let mut best: Option<(usize, R, Match)> = None;
        let mut open = vec![(ROOT, 0)];
        while let Some((node, start)) = open.pop() {
            for &child in &self.nodes[node].children {
                let held = &self.nodes[child].tokens;
                let n_run = n_shared(held, &tokens[start..]);
                if n_run == 0 {
                    continue;
                }
                for &seq in &self.nodes[child].seqs {
                    let n_held = self.ends[seq as usize].len;
                    let found = Match { seq: SeqId(seq), n_shared: start + n_run, n_held };
                    let Some(rank) = rank(found) else { continue };
                    let is_better = best.as_ref().is_none_or(|(n_best, best_rank, _)| {
                        (found.n_shared, &rank) > (*n_best, best_rank)
                    });
                    if is_better {
                        best = Some((found.n_shared, rank, found));
                    }
                }
                if n_run == held.len() {
                    open.push((child, start + n_run));
                }
            }
        }
        best.map(|(.., found)| found)
    }

    /// Positions of a sequence that none of the counted ones has.
    pub(crate) fn n_beyond(&self, seq: SeqId, is_counted: impl Fn(SeqId) -> bool) -> usize {
        let mut node = self.ends[seq.0 as usize].node;
        let mut n = 0;
        // What is counted at a node is counted at all before it.
        while node != ROOT && !self.nodes[node].seqs.iter().any(|seq| is_counted(SeqId(*seq))) {
            n += self.nodes[node].tokens.len();
            node = self.nodes[node].parent;
        }
        n
    }

    /// Positions in use by the sequences that are counted; shared ones count once.
    pub(crate) fn n_positions(&self, is_counted: impl Fn(SeqId) -> bool) -> usize {
        let is_live = |node: &&Node| node.seqs.iter().any(|seq| is_counted(SeqId(*seq)));
        self.nodes.iter().filter(is_live).map(|node| node.tokens.len()).sum()
    }

    fn add(&mut self, parent: NodeId, tokens: Vec<u32>, seqs: Vec<u32>) -> NodeId {
        let node = Node { tokens, parent, children: Vec::new(), seqs };
        let id = match self.unused.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.push(id);
        id
    }

    /// Cuts a node in two, of which the first keeps the id; sequences that end with it end with the
    /// second.
    fn split(&mut self, node: NodeId, at: usize) {
        let tokens = self.nodes[node].tokens.split_off(at);
        let seqs = self.nodes[node].seqs.clone();
        let children = std::mem::take(&mut self.nodes[node].children);
        let lower = self.add(node, tokens, seqs);
        for &child in &children {
            self.nodes[child].parent = lower;
        }
        self.nodes[lower].children = children;
        for end in self.ends.iter_mut().filter(|end| end.node == node) {
            end.node = lower;
        }
    }

    /// A sequence passes no longer through a node, which goes if it was the last.
    fn leave(&mut self, node: NodeId, seq: SeqId) {
        self.nodes[node].seqs.retain(|other| *other != seq.0);
        if self.nodes[node].seqs.is_empty() {
            let parent = self.nodes[node].parent;
            self.nodes[parent].children.retain(|child| *child != node);
            self.nodes[node] = Node::default();
            self.unused.push(node);
        } else {
            self.join(node);
        }
    }

    /// Joins a node with its only child if the same sequences pass through both, so that old cuts
    /// leave no trace.
    fn join(&mut self, node: NodeId) {
        let [child] = self.nodes[node].children[..] else { return };
        if node == ROOT || self.nodes[child].seqs.len() != self.nodes[node].seqs.len() {
            return;
        }
        let lower = std::mem::take(&mut self.nodes[child]);
        self.unused.push(child);
        self.nodes[node].tokens.extend(lower.tokens);
        for &grandchild in &lower.children {
            self.nodes[grandchild].parent = node;
        }
        self.nodes[node].children = lower.children;
        for end in self.ends.iter_mut().filter(|end| end.node == child) {
            end.node = node;
        }
    }
}

/// Length of the common beginning.
pub(crate) fn n_shared(a: &[u32], b: &[u32]) -> usize {
    // Whole blocks first: comparing them is one instruction for many tokens.
    const BLOCK: usize = 32;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let start = BLOCK * blocks.take_while(|(a, b)| a == b).count();
    start + a[start..].iter().zip(&b[start..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    /// The same with plain lists: each position knows which feed computed it.
    #[derive(Clone, Default)]
    struct Plain {
        held: Vec<(u32, usize)>,
    }

    #[test]
    fn it_is_what_plain_lists_are() {
        let n_seqs = 6;
        for seed in 0..60 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut tree = PrefixTree::new(n_seqs);
            let mut plain = vec![Plain::default(); n_seqs];
            let mut n_computed = 0;
            for _ in 0..300 {
                let mut below = |n: usize| rng.next_u32() as usize % n;
                let (seq, other) = (below(n_seqs), below(n_seqs));
                let id = SeqId(seq as u32);
                match below(4) {
                    0 | 1 => {
                        let tokens: Vec<u32> = (0..below(70)).map(|_| below(2) as u32).collect();
                        tree.append(id, &tokens);
                        for token in tokens {
                            n_computed += 1;
                            plain[seq].held.push((token, n_computed));
                        }
                    }
                    2 => {
                        let len = below(plain[seq].held.len() + 1);
                        tree.truncate(id, len);
                        plain[seq].held.truncate(len);
                    }
                    _ => {
                        let len = below(plain[seq].held.len() + 1);
                        tree.fork(id, SeqId(other as u32), len);
                        let copy = plain[seq].held[..len].to_vec();
                        plain[other].held = copy;
                    }
                }
                for (seq, plain) in plain.iter().enumerate() {
                    let held: Vec<u32> = plain.held.iter().map(|held| held.0).collect();
                    assert_eq!(tree.tokens(SeqId(seq as u32)), held);
                    assert_eq!(tree.len(SeqId(seq as u32)), held.len());
                }
                let prompt: Vec<u32> = (0..below(40)).map(|_| below(2) as u32).collect();
                let shares = |plain: &Plain| {
                    let held = plain.held.iter().map(|(token, _)| token);
                    held.zip(&prompt).take_while(|(a, b)| a == b).count()
                };
                let want = plain.iter().map(shares).max().unwrap();
                let found = tree.longest(&prompt, |_| Some(0)).map_or(0, |found| {
                    let seq = &plain[found.seq.0 as usize];
                    assert_eq!((found.n_shared, found.n_held), (shares(seq), seq.held.len()));
                    found.n_shared
                });
                assert_eq!(found, want);
                let cells = |plain: &Plain| plain.held.iter().map(|h| h.1).collect::<Vec<_>>();
                let others: Vec<usize> = plain[..2].iter().flat_map(cells).collect();
                let n_beyond = cells(&plain[5]).iter().filter(|c| !others.contains(c)).count();
                assert_eq!(tree.n_beyond(SeqId(5), |seq| seq.0 < 2), n_beyond);
                for counted in [n_seqs, 2] {
                    let mut live: Vec<usize> =
                        plain[..counted].iter().flat_map(|p| p.held.iter().map(|h| h.1)).collect();
                    live.sort_unstable();
                    live.dedup();
                    let n = tree.n_positions(|seq| (seq.0 as usize) < counted);
                    assert_eq!(n, live.len());
                }
            }
            for seq in 0..n_seqs as u32 {
                tree.truncate(SeqId(seq), 0);
            }
            assert_eq!(tree.nodes.len(), tree.unused.len() + 1, "only the root is left");
        }
    }

    #[test]
    fn cuts_leave_no_trace() {
        let mut tree = PrefixTree::new(3);
        let tokens: Vec<u32> = (0..1000).collect();
        tree.append(SeqId(0), &tokens);
        for len in 1..1000 {
            tree.fork(SeqId(0), SeqId(1), len);
            tree.append(SeqId(1), &[7, 8]);
        }
        assert!(tree.nodes.len() - tree.unused.len() <= 4);
        assert_eq!(tree.n_positions(|_| true), 1002);
    }

    #[test]
    fn the_rank_decides_among_equals_and_can_refuse() {
        let mut tree = PrefixTree::new(3);
        tree.append(SeqId(0), &[1, 2, 3, 4]);
        tree.fork(SeqId(0), SeqId(1), 3);
        tree.append(SeqId(1), &[9]);
        tree.append(SeqId(2), &[1, 2]);
        let prompt = [1, 2, 3, 5];
        let by_seq = |rank: fn(Match) -> Option<u32>| tree.longest(&prompt, rank).unwrap();
        assert_eq!(by_seq(|found| Some(found.seq.0)).seq, SeqId(1));
        assert_eq!(by_seq(|found| Some(9 - found.seq.0)).seq, SeqId(0));
        let exact = by_seq(|found| (found.n_held == found.n_shared).then_some(0));
        assert_eq!(exact, Match { seq: SeqId(2), n_shared: 2, n_held: 2 });
        assert_eq!(tree.longest(&prompt, |_| None::<u32>), None);
    }
}
