//! Merging neighbouring symbols, best pair first: the heart of both BPE and SentencePiece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Splits a text into characters and merges neighbours, the pair of lowest rank first and of equal
/// ranks the leftmost, until no pair has a rank. Gives the symbols in order.
///
/// `rank` is asked for the two halves of a pair. Both are slices of `text` and touch.
pub(super) fn merge<'a>(
    text: &'a str,
    mut rank: impl FnMut(Pair<'a>) -> Option<u32>,
) -> Vec<&'a str> {
    // Symbol `i` is `text[starts[i]..ends[i]]`; one that was merged away is empty.
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let n = starts.len();
    let mut ends: Vec<usize> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    let mut before: Vec<Option<usize>> = (0..n).map(|i| i.checked_sub(1)).collect();
    let mut after: Vec<Option<usize>> = (0..n).map(|i| (i + 1 < n).then_some(i + 1)).collect();
    let mut queue = BinaryHeap::new();
    let mut offer = |queue: &mut BinaryHeap<_>, left: usize, right: usize, ends: &[usize]| {
        let pair =
            Pair { text: &text[starts[left]..ends[right]], n_left: ends[left] - starts[left] };
        if let Some(rank) = rank(pair) {
            queue.push(Reverse((rank, left, right, ends[right])));
        }
    };
    for right in 1..n {
        offer(&mut queue, right - 1, right, &ends);
    }
    while let Some(Reverse((_, left, right, end))) = queue.pop() {
        let is_gone = |i: usize| ends[i] == starts[i];
        if is_gone(left) || is_gone(right) || ends[right] != end {
            continue;
        }
        ends[left] = end;
        ends[right] = starts[right];
        after[left] = after[right];
        if let Some(next) = after[left] {
            before[next] = Some(left);
            offer(&mut queue, left, next, &ends);
        }
        if let Some(previous) = before[left] {
            offer(&mut queue, previous, left, &ends);
        }
    }
    starts.iter().zip(ends).filter(|(start, end)| *start < end).map(|(&s, e)| &text[s..e]).collect()
}

/// Two neighbouring symbols.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    /// Both.
    pub(super) text: &'a str,
    /// Bytes of the left one.
    pub(super) n_left: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged<'a>(text: &'a str, ranks: &[(&str, &str)]) -> Vec<&'a str> {
        merge(text, |pair| {
            let halves = pair.text.split_at(pair.n_left);
            ranks.iter().position(|r| *r == halves).map(|rank| rank as u32)
        })
    }

    #[test]
    fn the_best_pair_goes_first_and_of_equal_ones_the_leftmost() {
        assert_eq!(merged("", &[]), [""; 0]);
        assert_eq!(merged("éa", &[]), ["é", "a"]);
        assert_eq!(merged("abc", &[("b", "c"), ("a", "b")]), ["a", "bc"]);
        assert_eq!(merged("abc", &[("a", "b"), ("b", "c")]), ["ab", "c"]);
        assert_eq!(merged("aaaaa", &[("a", "a")]), ["aa", "aa", "a"]);
        assert_eq!(merged("aaaaa", &[("a", "a"), ("aa", "aa")]), ["aaaa", "a"]);
        // The pair (a, bc) was never offered as (ab, c).
        assert_eq!(merged("abc", &[("a", "b"), ("a", "bc")]), ["ab", "c"]);
    }
}
