//! Paired right/wrong answers of which some are missing (refused, timed out, rate-limited).
//!
//! A failure is an outcome of its own. The difference is reported under three treatments of it;
//! if the verdict depends on which, it is inconclusive. Nothing is imputed, and one arm's item
//! is never dropped while the other's is kept.

use crate::paired::PairedTable;

/// The same comparison under every treatment of missing answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MissingAnalyses {
    /// (i) Available case: only items both systems answered.
    pub available: PairedTable,
    /// (ii) A missing answer counts as wrong, in either arm.
    pub as_wrong: PairedTable,
    /// (iii, lower bound) Missing answers of A wrong, of B right (Manski 1990).
    pub worst_for_a: PairedTable,
    /// (iii, upper bound) Missing answers of A right, of B wrong.
    pub best_for_a: PairedTable,
    /// The paired table of *answering*: `only_a` counts items that only A answered. Test it with
    /// [`crate::paired::mcnemar_exact`]: do the systems fail equally often?
    pub answered: PairedTable,
}

impl MissingAnalyses {
    /// The four tables that can change a verdict, with their names in reports.
    pub fn tables(&self) -> [(&'static str, PairedTable); 4] {
        [
            ("available", self.available),
            ("as_wrong", self.as_wrong),
            ("worst_for_a", self.worst_for_a),
            ("best_for_a", self.best_for_a),
        ]
    }

    /// The verdict that `judge` gives under every treatment, or `None`: inconclusive.
    ///
    /// `judge` sees each of the four tables once. The available-case table may be empty.
    pub fn unanimous<T: PartialEq>(&self, mut judge: impl FnMut(&PairedTable) -> T) -> Option<T> {
        let [first, rest @ ..] = self.tables().map(|(_, table)| judge(&table));
        rest.iter().all(|verdict| *verdict == first).then_some(first)
    }
}

/// Builds the analyses from one (A, B) pair per item; `None` is a missing answer.
///
/// Empty input gives empty tables. With nothing missing all four tables agree.
pub fn analyses(pairs: &[(Option<bool>, Option<bool>)]) -> MissingAnalyses {
    let fill = |a: bool, b: bool| {
        PairedTable::from_pairs(pairs.iter().map(|(x, y)| (x.unwrap_or(a), y.unwrap_or(b))))
    };
    MissingAnalyses {
        available: PairedTable::from_pairs(pairs.iter().filter_map(|&(x, y)| x.zip(y))),
        as_wrong: fill(false, false),
        worst_for_a: fill(false, true),
        best_for_a: fill(true, false),
        answered: PairedTable::from_pairs(pairs.iter().map(|(x, y)| (x.is_some(), y.is_some()))),
    }
}
