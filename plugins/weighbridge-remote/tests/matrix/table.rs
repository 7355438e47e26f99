//! The table of rows: one test per row over all wires, and one that prints what holds where.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bench::Wire;

/// Rows of the matrix that are about wires.
const N_ROWS: usize = 41;

/// One row of the matrix on one wire; panics where it does not hold.
pub(crate) type Check = fn(Wire);

/// Makes a test of each row, and a list of them.
macro_rules! rows {
    ($($row:ident),* $(,)?) => {
        pub(crate) const ROWS: &[(&str, $crate::table::Check)] =
            &[$((stringify!($row), checks::$row)),*];
        $(
            #[test]
            fn $row() {
                std::thread::scope(|scope| {
                    for wire in $crate::bench::Wire::ALL {
                        scope.spawn(move || checks::$row(wire));
                    }
                });
            }
        )*
    };
}
pub(crate) use rows;

/// Every row on every wire, side by side, as a table.
#[test]
fn the_whole_matrix_holds_and_is_printed() {
    let mut rows: Vec<(&str, Check)> = [
        crate::retries::ROWS,
        crate::http::ROWS,
        #[cfg(target_os = "linux")]
        crate::secure::ROWS,
        crate::streams::ROWS,
        crate::content::ROWS,
        crate::deadlines::ROWS,
    ]
    .concat();
    rows.sort_by_key(|&(name, _)| name);
    let cells: Vec<Vec<bool>> = std::thread::scope(|scope| {
        let threads: Vec<_> = rows
            .iter()
            .map(|&(_, check)| {
                scope.spawn(move || {
                    Wire::ALL.map(|wire| catch_unwind(AssertUnwindSafe(|| check(wire))).is_ok())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().to_vec()).collect()
    });
    let mut n_passed = 0;
    println!("{:60} {}", "row", Wire::ALL.map(Wire::name).join("  "));
    for ((name, _), cells) in rows.iter().zip(&cells) {
        let shown: Vec<String> = Wire::ALL
            .iter()
            .zip(cells)
            .map(|(wire, &holds)| {
                format!("{:width$}", if holds { "pass" } else { "FAIL" }, width = wire.name().len())
            })
            .collect();
        println!("{name:60} {}", shown.join("  "));
        n_passed += cells.iter().filter(|&&holds| holds).count();
    }
    let numbers: BTreeSet<&str> = rows.iter().map(|(name, _)| &name[..6]).collect();
    let n_cells = rows.len() * Wire::ALL.len();
    println!(
        "{n_passed} of {n_cells} cells hold: {} checks of {} rows x {} wires",
        rows.len(),
        numbers.len(),
        Wire::ALL.len()
    );
    assert!(
        !cfg!(target_os = "linux") || numbers.len() == N_ROWS,
        "a row of the matrix has no check"
    );
    assert_eq!(n_passed, n_cells);
}
