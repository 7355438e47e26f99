//! Empty, single, extreme and senseless input: a typed error or `None`, never 0.0 or NaN.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers")]

mod common;

use weighbridge_stats::mean::{ClusterCorrection, clustered_mean, mean, paired_mean};
use weighbridge_stats::missing::analyses;
use weighbridge_stats::permutation::{Draws, paired_t, sign_flip, sign_flip_clustered};
use weighbridge_stats::power::{self, PairedVariance, Plan};
use weighbridge_stats::{PairedTable, StatsError, eprocess, paired, proportion, quantile, ratio};

const DRAWS: Draws = Draws { seed: 0, n_draws: 999 };

#[test]
fn proportions() {
    for method in [proportion::wilson, proportion::clopper_pearson, proportion::jeffreys] {
        assert_eq!(method(0, 0, 0.95), Err(StatsError::TooFew { name: "n", got: 0, need: 1 }));
        assert_eq!(
            method(3, 2, 0.95),
            Err(StatsError::CountExceeds { name: "k", got: 3, limit: 2 })
        );
        for level in [0.0, 1.0, -0.5, 95.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(method(1, 2, level), Err(StatsError::OutOfRange { .. })));
        }
        for n in [1, 2, 3, 50, 1000] {
            for k in [0, 1, n / 2, n - 1, n] {
                for level in [0.01, 0.5, 0.95, 0.999_999] {
                    let ci = method(k, n, level).unwrap();
                    assert!(0.0 <= ci.lo && ci.lo < ci.hi && ci.hi <= 1.0, "{k}/{n} {ci:?}");
                    let mirror = method(n - k, n, level).unwrap();
                    assert!((ci.lo - (1.0 - mirror.hi)).abs() < 1e-12, "{k}/{n} {ci:?}");
                }
            }
        }
    }
    // n = 1 in closed form: k = 0 gives [0, 1 − α/2].
    let ci = proportion::clopper_pearson(0, 1, 0.95).unwrap();
    assert!(ci.lo == 0.0 && (ci.hi - 0.975).abs() < 1e-14);
}

#[test]
fn means() {
    assert!(mean(&[]).is_err());
    assert_eq!(mean(&[1.0, f64::NAN]), Err(StatsError::NotFinite { name: "values", index: 1 }));
    let one = mean(&[3.0]).unwrap();
    assert_eq!((one.mean, one.se), (3.0, None));
    assert_eq!(one.t_interval(0.95).unwrap(), None);
    assert!(one.t_interval(1.0).is_err());
    let flat = mean(&[0.1; 7]).unwrap();
    assert_eq!(flat.se.unwrap().value, 0.0);
    let single = clustered_mean(&[1.0, 2.0, 3.0], &["doc"; 3], ClusterCorrection::Cr1).unwrap();
    assert_eq!(single.se, None);
    assert!(clustered_mean(&[1.0], &[1, 2], ClusterCorrection::Cr1).is_err());
    assert!(paired_mean(&[1.0, 2.0], &[1.0]).is_err());
    // One large offset must not eat the digits.
    let shifted = mean(&[1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0, 1e9 + 16.0]).unwrap();
    assert!((shifted.se.unwrap().value - 7.5f64.sqrt()).abs() < 1e-12);
}

#[test]
fn paired_tables() {
    let empty = PairedTable::default();
    assert_eq!(paired::mcnemar_exact(&empty), 1.0);
    assert_eq!(paired::mcnemar_mid_p(&empty), 1.0);
    assert_eq!(eprocess::ln_e_value(&empty), 0.0);
    assert_eq!(empty.difference(), None);
    assert_eq!(paired::wald_se(&empty), None);
    assert!(paired::tango_interval(&empty, 0.95).is_err());
    assert!(paired::newcombe_interval(&empty, 0.95).is_err());
    assert!(paired::wald_interval(&empty, 0.95).is_err());
    assert!(paired::non_inferiority(&empty, 0.01, 0.05).is_err());

    let ties = PairedTable { both: 50, neither: 50, ..empty };
    let tango = paired::tango_interval(&ties, 0.95).unwrap();
    assert!(tango.contains(0.0) && tango.width() > 0.05, "{tango:?}");
    assert_eq!(paired::mcnemar_exact(&ties), 1.0);
    assert!(!paired::non_inferiority(&ties, 0.01, 0.05).unwrap().non_inferior);

    for table in [
        PairedTable { only_a: 5, ..empty },
        PairedTable { only_b: 5, ..empty },
        PairedTable { only_a: 1, ..empty },
        PairedTable { both: 1, only_b: 1, ..empty },
        PairedTable { both: 9, ..empty },
        PairedTable { only_a: 3, only_b: 3, ..empty },
    ] {
        for method in [paired::tango_interval, paired::newcombe_interval] {
            let ci = method(&table, 0.95).unwrap();
            let delta = table.difference().unwrap();
            assert!(ci.contains(delta) && ci.width() > 0.0, "{table:?} {ci:?}");
            assert!(-1.0 <= ci.lo && ci.hi <= 1.0, "{table:?} {ci:?}");
        }
    }
    for bad in [0.0, -0.01, 1.5, f64::NAN] {
        assert!(paired::non_inferiority(&ties, bad, 0.05).is_err());
        assert!(paired::equivalence(&ties, 0.01, bad).is_err());
    }
}

#[test]
fn equivalence_p_agrees_with_its_interval() {
    for (b, c) in [(0, 0), (1, 0), (4, 5), (10, 3), (20, 22), (0, 30), (60, 50), (100, 0)] {
        for margin in [0.005, 0.02, 0.05, 0.1, 0.5, 1.0] {
            let table = PairedTable { both: 500 - b - c, only_a: b, only_b: c, neither: 0 };
            let got = paired::equivalence(&table, margin, 0.05).unwrap();
            assert_eq!(got.equivalent, got.p < 0.05, "{table:?} {margin} {got:?}");
            assert!((0.0..=1.0).contains(&got.p), "{got:?}");
        }
    }
    for table in [
        PairedTable { only_b: 5, ..Default::default() },
        PairedTable { only_a: 5, ..Default::default() },
    ] {
        let got = paired::equivalence(&table, 1.0, 0.05).unwrap();
        assert!(got.p.is_finite() && !got.equivalent, "{got:?}");
    }
}

#[test]
fn permutation_tests() {
    assert!(sign_flip(&[], DRAWS).is_err());
    assert!(sign_flip(&[f64::INFINITY], DRAWS).is_err());
    assert!(sign_flip(&[1.0], Draws { n_draws: 0, ..DRAWS }).is_err());
    assert_eq!(sign_flip(&[1.0], DRAWS).unwrap().p, 1.0);
    assert_eq!(sign_flip(&[1.0, 1.0], DRAWS).unwrap().p, 0.5);
    assert_eq!(sign_flip(&[0.0; 5], DRAWS).unwrap().p, 1.0);
    assert_eq!(sign_flip(&[0.0; 50], DRAWS).unwrap().p, 1.0);
    assert_eq!(sign_flip(&[1.0; 20], DRAWS).unwrap().p, 2f64.powi(-19));
    assert_eq!(sign_flip(&[1.0; 500], DRAWS).unwrap().p, 1e-3);
    // Forty items in two clusters are two observations.
    let clusters: Vec<usize> = (0..40).map(|i| i / 20).collect();
    let got = sign_flip_clustered(&[1.0; 40], &clusters, DRAWS).unwrap();
    assert!(got.exact && got.p == 0.5);
    assert_eq!(paired_t(&[1.0]).unwrap(), None);
    assert_eq!(paired_t(&[1.0, 1.0]).unwrap(), None);
    assert!(paired_t(&[]).is_err());
}

#[test]
fn planning() {
    assert!(Plan::new(0.0, 0.8).is_err());
    assert!(Plan::new(0.05, 1.0).is_err());
    assert!(Plan::new(0.05, f64::NAN).is_err());
    let plan = Plan::new(0.05, 0.8).unwrap();
    assert!(power::mcnemar_sample_size(0.1, 0.2, plan).is_err());
    assert!(power::mcnemar_sample_size(0.1, 0.0, plan).is_err());
    assert!(power::mcnemar_sample_size(0.0, 0.0, plan).is_err());
    assert!(power::mcnemar_sample_size(f64::NAN, 0.1, plan).is_err());
    assert!(power::mcnemar_mde(0, 0.1, plan).is_err());
    // Twenty items with 10 % flips show nothing, whatever the difference.
    assert_eq!(power::mcnemar_mde(20, 0.1, plan).unwrap(), None);
    let null = power::mcnemar_power(100, 0.2, 0.0, 0.05).unwrap();
    assert!((null - 0.025).abs() < 1e-14);
    assert_eq!(power::mcnemar_power(100, 1.0, 1.0, 0.05).unwrap(), 1.0);
    assert_eq!(power::mcnemar_power(1, 1.0, 1.0, 0.05).unwrap(), 0.0);
    assert!(power::non_inferiority_sample_size(0.1, -0.02, 0.02, plan).is_err());
    assert!(power::non_inferiority_sample_size(0.1, 0.0, 0.0, plan).is_err());
    assert!(PairedVariance::new(-1.0).is_err());
    assert!(PairedVariance::new(0.1).unwrap().with_responses(0.1, 0).is_err());
    assert!(power::paired_mean_mde(PairedVariance::new(0.1).unwrap(), 0, plan).is_err());
}

#[test]
fn quantiles_and_ratios() {
    assert!(quantile::quantile(&[], 0.5).is_err());
    assert!(quantile::quantile(&[1.0], 1.5).is_err());
    assert_eq!(quantile::quantile(&[2.0, 1.0], 0.5).unwrap(), 1.5);
    assert_eq!(quantile::quantile_interval(&[1.0, 2.0], 0.95, 0.95).unwrap(), None);
    let ranks = quantile::quantile_ranks(1, 0.5, 0.95).unwrap();
    assert_eq!((ranks.lo, ranks.hi, ranks.coverage), (None, None, 1.0));
    assert!(quantile::min_n_for_upper_bound(1.0, 0.95).is_err());

    assert_eq!(ratio::ratio(&[1.0, 2.0], &[0.0, 0.0]).unwrap(), None);
    assert_eq!(ratio::fieller(&[1.0, 2.0, 1.0], &[0.0, 1.0, 0.0], 0.95).unwrap(), None);
    assert_eq!(ratio::bootstrap(&[1.0, 2.0], &[0.0, 1.0], 0.9, 100, 1).unwrap(), None);
    assert!(ratio::bootstrap(&[1.0, 2.0], &[1.0, 1.0], 0.95, 39, 1).is_err());
    assert!(ratio::bootstrap(&[1.0, 2.0], &[1.0, 1.0], 0.95, 40, 1).unwrap().is_some());
    assert!(ratio::fieller(&[1.0], &[1.0], 0.95).is_err());
}

#[test]
fn missing_answers() {
    let mut pairs = vec![(Some(true), Some(false)); 12];
    pairs.extend([(Some(false), Some(true)); 2]);
    pairs.extend([(Some(true), Some(true)); 86]);
    let complete = analyses(&pairs);
    assert!(complete.tables().iter().all(|(_, t)| *t == complete.available));
    let verdict = |t: &PairedTable| {
        let ci = paired::tango_interval(t, 0.95).unwrap();
        (ci.lo > 0.0, ci.hi < 0.0)
    };
    assert_eq!(complete.unanimous(verdict), Some((true, false)));

    // Failures of A alone: the bounds straddle 0, so the verdict is inconclusive.
    pairs.extend([(None, Some(true)); 15]);
    pairs.push((None, None));
    let cut = analyses(&pairs);
    assert_eq!(cut.available, complete.available);
    assert_eq!(cut.answered, PairedTable { both: 100, only_a: 0, only_b: 15, neither: 1 });
    assert_eq!(cut.as_wrong, PairedTable { both: 86, only_a: 12, only_b: 17, neither: 1 });
    assert_eq!(cut.worst_for_a, PairedTable { both: 86, only_a: 12, only_b: 18, neither: 0 });
    assert_eq!(cut.best_for_a, PairedTable { both: 101, only_a: 13, only_b: 2, neither: 0 });
    assert_eq!(cut.unanimous(verdict), None);
    assert!(paired::mcnemar_exact(&cut.answered) < 1e-4);
    assert_eq!(analyses(&[]).available.n(), 0);
}

#[test]
fn errors_name_value_and_limit() {
    says(proportion::wilson(3, 2, 0.95).unwrap_err(), "k = 3 exceeds 2");
    says(proportion::wilson(1, 2, 95.0).unwrap_err(), "level = 95 is outside (0, 1)");
    says(mean(&[]).unwrap_err(), "values holds 0 observations, at least 1 needed");
}

#[track_caller]
fn says(error: StatsError, want: &str) {
    assert_eq!(error.to_string(), want);
}
