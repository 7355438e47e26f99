//! RFC 6962 leaf hashes and the tree root over them.

use sha2::{Digest as _, Sha256};

use super::digest::Digest;

/// The RFC 6962 hash of a leaf: SHA-256 of a zero byte and the leaf.
pub fn leaf_hash(leaf: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    for part in leaf {
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}

/// Computes the RFC 6962 root over a growing list of leaf hashes in O(log n) memory.
#[derive(Clone, Debug, Default)]
pub struct RootHasher {
    /// Roots of the perfect subtrees, left to right: one for each bit set in `n_leaves`, highest bit first.
    subtrees: Vec<Digest>,
    n_leaves: u64,
}

impl RootHasher {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one leaf hash at the right.
    pub fn push(&mut self, leaf: Digest) {
        let mut node = leaf;
        // Every trailing one bit is a finished subtree of the same height: merge.
        for _ in 0..self.n_leaves.trailing_ones() {
            let left = self.subtrees.pop().expect("one subtree for each bit set in n_leaves");
            node = node_hash(&left, &node);
        }
        self.subtrees.push(node);
        self.n_leaves += 1;
    }

    /// Number of leaves so far.
    pub fn n_leaves(&self) -> u64 {
        self.n_leaves
    }

    /// The root; SHA-256 of nothing when there is no leaf.
    pub fn root(&self) -> Digest {
        let mut right_to_left = self.subtrees.iter().rev();
        let Some(&last) = right_to_left.next() else { return Digest::of(&[]) };
        right_to_left.fold(last, |right, left| node_hash(left, &right))
    }
}

fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update([1]);
    hasher.update(left.0);
    hasher.update(right.0);
    Digest(hasher.finalize().into())
}
