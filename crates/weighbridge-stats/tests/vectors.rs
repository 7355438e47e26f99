//! Known answers. `vectors.json` was computed with scipy 1.17.1, statsmodels 0.15.0 and numpy
//! 2.4.6; `vectors_extra.json` by `make_vectors.py` with scipy, numpy and mpmath. Values written
//! out below come from the same libraries or from the published table named beside them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers")]

mod common;

use common::{close, int, list, num};
use serde_json::Value;
use weighbridge_stats::mean::{ClusterCorrection, clustered_mean, mean};
use weighbridge_stats::permutation::{Draws, paired_t, sign_flip};
use weighbridge_stats::power::{self, PairedVariance, Plan};
use weighbridge_stats::{
    Interval, PairedTable, eprocess, multiplicity, paired, proportion, quantile, ratio,
};

fn base() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn extra() -> Value {
    serde_json::from_str(include_str!("vectors_extra.json")).unwrap()
}

fn rows<'a>(v: &'a Value, key: &str) -> &'a Vec<Value> {
    let rows = v[key].as_array().unwrap();
    assert!(!rows.is_empty());
    rows
}

fn discordant(b: u64, c: u64) -> PairedTable {
    PairedTable { only_a: b, only_b: c, ..Default::default() }
}

fn table(v: &Value) -> PairedTable {
    let (b, c) = (int(v, "b"), int(v, "c"));
    PairedTable { both: int(v, "n") - b - c, ..discordant(b, c) }
}

#[track_caller]
fn close_interval(got: Interval, lo: f64, hi: f64, tol: f64) {
    close(got.lo, lo, tol);
    close(got.hi, hi, tol);
}

#[test]
fn normal_and_t_quantiles() {
    // For any data the half-width over the standard error is the t quantile.
    for (df, want) in base()["t_ppf_0.975"].as_object().unwrap() {
        let n: usize = df.parse::<usize>().unwrap() + 1;
        let values: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let estimate = mean(&values).unwrap();
        let half = estimate.t_interval(0.95).unwrap().unwrap().width() / 2.0;
        close(half / estimate.se.unwrap().value, want.as_f64().unwrap(), 1e-10);
    }
    for row in rows(&extra(), "t_two_sided") {
        let n = int(row, "df") as usize + 1;
        let values: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let estimate = mean(&values).unwrap();
        let half = estimate.t_interval(num(row, "level")).unwrap().unwrap().width() / 2.0;
        close(half / estimate.se.unwrap().value, num(row, "t"), 1e-9);
    }
    // With b+c = 0 and n = 1, Tango's limit is z²/(1+z²).
    for (q, want) in base()["norm_ppf"].as_object().unwrap() {
        let level = 2.0 * q.parse::<f64>().unwrap() - 1.0;
        let one = PairedTable { both: 1, ..Default::default() };
        let hi = paired::tango_interval(&one, level).unwrap().hi;
        close((hi / (1.0 - hi)).sqrt(), want.as_f64().unwrap(), 1e-12);
    }
}

#[test]
fn proportion_intervals() {
    for row in rows(&base(), "proportion_ci_95") {
        let (k, n) = (int(row, "k"), int(row, "n"));
        let (got, tol) = match row["method"].as_str().unwrap() {
            "wilson" => (proportion::wilson(k, n, 0.95), 1e-12),
            "beta" => (proportion::clopper_pearson(k, n, 0.95), 1e-11),
            "jeffreys" => (proportion::jeffreys(k, n, 0.95), 1e-11),
            _ => continue,
        };
        close_interval(got.unwrap(), num(row, "lo"), num(row, "hi"), tol);
    }
    for row in rows(&extra(), "clopper_pearson") {
        let (k, n, level) = (int(row, "k"), int(row, "n"), num(row, "level"));
        let got = proportion::clopper_pearson(k, n, level).unwrap();
        close_interval(got, num(row, "lo"), num(row, "hi"), 1e-9);
        let got = proportion::jeffreys(k, n, level).unwrap();
        close_interval(got, num(row, "jeffreys_lo"), num(row, "jeffreys_hi"), 1e-9);
    }
    assert_eq!(proportion::wilson(20, 20, 0.95).unwrap().hi, 1.0);
    for (n, want) in [(30, 0.1157033082), (100, 0.0362166926), (300, 0.0122209747)] {
        close(proportion::clopper_pearson(0, n, 0.95).unwrap().hi, want, 1e-8);
    }
    for (n, want) in [(30, 0.0950338529), (100, 0.0295130496), (300, 0.0099360819)] {
        close(proportion::clopper_pearson(0, n, 0.90).unwrap().hi, want, 1e-8);
    }
}

#[test]
fn mcnemar_and_e_values() {
    for row in rows(&base(), "mcnemar") {
        let t = discordant(int(row, "b"), int(row, "c"));
        close(paired::mcnemar_exact(&t), num(row, "exact_p"), 1e-12);
        close(paired::mcnemar_mid_p(&t), num(row, "midp"), 1e-11);
        close(eprocess::ln_e_value(&t), num(row, "log_e_beta11"), 1e-12);
    }
    for row in rows(&extra(), "mcnemar_tails") {
        let t = discordant(int(row, "b"), int(row, "c"));
        close(paired::mcnemar_exact(&t), num(row, "exact_p"), 1e-11);
        close(paired::mcnemar_mid_p(&t), num(row, "midp"), 1e-11);
    }
    for (b, c, e) in [
        (5, 0, 5.333333),
        (6, 0, 9.142857),
        (7, 0, 16.0),
        (8, 0, 28.444444),
        (9, 1, 9.309091),
        (10, 3, 2.045954),
        (15, 3, 16.908153),
        (53, 27, 9.707200),
        (60, 20, 4221.690372),
    ] {
        let ln_e = eprocess::ln_e_value(&discordant(b, c));
        close(ln_e.exp(), e, 1e-6);
        close(eprocess::anytime_p(ln_e), (1.0 / e).min(1.0), 1e-6);
        assert_eq!(eprocess::rejects(ln_e, 0.05).unwrap(), e >= 20.0);
    }
}

#[test]
fn paired_difference_intervals() {
    for row in rows(&base(), "tango_paired_diff_ci_95") {
        let got = paired::tango_interval(&table(row), 0.95).unwrap();
        close_interval(got, num(row, "lo"), num(row, "hi"), 1e-8);
    }
    // A second route: the restricted likelihood maximised numerically (good to about 1e-8).
    for row in rows(&extra(), "tango_numerical_mle") {
        let got = paired::tango_interval(&table(row), 0.95).unwrap();
        assert!((got.lo - num(row, "lo")).abs() < 1e-6, "{row} {got:?}");
        assert!((got.hi - num(row, "hi")).abs() < 1e-6, "{row} {got:?}");
    }
    for (a, b, c, d, lo, hi) in [
        (100, 53, 27, 20, 0.0428088285, 0.2145583090),
        (70, 12, 2, 16, 0.0263217497, 0.1756442286),
        (700, 60, 50, 190, -0.0106783713, 0.0307074148),
    ] {
        let t = PairedTable { both: a, only_a: b, only_b: c, neither: d };
        close_interval(paired::newcombe_interval(&t, 0.95).unwrap(), lo, hi, 1e-8);
    }
    let t = PairedTable { both: 700, only_a: 60, only_b: 50, neither: 190 };
    close(paired::wald_se(&t).unwrap(), 0.0104833201, 1e-8);
    // 0.010 ± 1.9599640 × 0.0104833201. With z rounded to 1.96 the limits, as sometimes printed,
    // are −0.0105473 and 0.0305473.
    let wald = paired::wald_interval(&t, 0.95).unwrap();
    close_interval(wald, -0.010546929800, 0.030546929800, 1e-7);
    close_interval(paired::wald_interval(&t, 0.90).unwrap(), -0.0072435, 0.0272435, 1e-5);
    close(paired::mcnemar_exact(&t), 0.3909274567, 1e-9);
    let verdict = paired::non_inferiority(&t, 0.01, 0.05).unwrap();
    assert!(verdict.non_inferior && (verdict.lower_limit + 0.0072435).abs() < 3e-4);
    assert!(!paired::equivalence(&t, 0.01, 0.05).unwrap().equivalent);
}

/// T(Δ) with the restricted rate found on a grid and then refined, instead of in closed form.
fn brute_force_score(b: f64, c: f64, n: f64, delta: f64) -> f64 {
    let log_likelihood = |q: f64| {
        let term = |k: f64, p: f64| if k == 0.0 { 0.0 } else { k * p.max(1e-300).ln() };
        term(b, q + delta) + term(c, q) + term(n - b - c, 1.0 - 2.0 * q - delta)
    };
    let (mut lo, mut hi) = ((-delta).max(0.0), (1.0 - delta) / 2.0);
    for _ in 0..12 {
        let step = (hi - lo) / 40.0;
        let best = (0..=40)
            .map(|i| lo + step * f64::from(i))
            .max_by(|p, q| log_likelihood(*p).total_cmp(&log_likelihood(*q)))
            .unwrap();
        (lo, hi) = ((best - step).max(lo), (best + step).min(hi));
    }
    let q = 0.5 * (lo + hi);
    (b - c - n * delta) / (n * (2.0 * q + delta * (1.0 - delta))).sqrt()
}

#[test]
fn tango_limits_satisfy_the_score_equation_everywhere() {
    let z = 1.959963984540054;
    for n in [3u64, 10, 37] {
        for b in 0..=n {
            for c in (0..=n - b).step_by(3) {
                let t = PairedTable { neither: n - b - c, ..discordant(b, c) };
                let got = paired::tango_interval(&t, 0.95).unwrap();
                let mirrored = paired::tango_interval(&discordant_n(c, b, n), 0.95).unwrap();
                assert!((got.lo + mirrored.hi).abs() < 1e-9, "{t:?}");
                let (bf, cf, nf) = (b as f64, c as f64, n as f64);
                for (limit, sign) in [(got.lo, 1.0), (got.hi, -1.0)] {
                    assert!((-1.0..=1.0).contains(&limit), "{t:?} {got:?}");
                    if limit.abs() < 1.0 - 1e-9 {
                        let score = brute_force_score(bf, cf, nf, limit);
                        assert!((score - sign * z).abs() < 1e-5, "{t:?} {got:?} T = {score}");
                    }
                }
            }
        }
    }
}

fn discordant_n(b: u64, c: u64, n: u64) -> PairedTable {
    PairedTable { neither: n - b - c, ..discordant(b, c) }
}

#[test]
fn means_clusters_and_paired_t() {
    let values: Vec<f64> = (0..20).map(f64::from).collect();
    let clusters: Vec<usize> = (0..20).map(|i| i % 4).collect();
    for (correction, want) in [
        (ClusterCorrection::Cr0, 0.5590169943749475),
        (ClusterCorrection::Cr1, 0.6454972243679028),
        (ClusterCorrection::default(), 0.6454972243679028),
    ] {
        let se = clustered_mean(&values, &clusters, correction).unwrap().se.unwrap();
        close(se.value, want, 1e-12);
        assert_eq!(se.df, 3);
    }
    close(mean(&values[..10]).unwrap().se.unwrap().value, 0.9574271078, 1e-9);
    // One cluster per item is the ordinary standard error.
    let own: Vec<usize> = (0..20).collect();
    let se = clustered_mean(&values, &own, ClusterCorrection::Cr1).unwrap().se;
    close(se.unwrap().value, mean(&values).unwrap().se.unwrap().value, 1e-12);
    // 334 of 1,000 right: n − 1.
    let values: Vec<f64> = (0..1000).map(|i| f64::from(u8::from(i < 334))).collect();
    close(mean(&values).unwrap().se.unwrap().value, 0.014922019523732928, 1e-12);

    let d: Vec<f64> = (0..200)
        .map(|i| {
            if i < 53 {
                1.0
            } else if i < 80 {
                -1.0
            } else {
                0.0
            }
        })
        .collect();
    let t = paired_t(&d).unwrap().unwrap();
    close(t.mean, 0.13, 1e-12);
    close(t.se, 0.0438762536, 1e-8);
    close(t.t, 2.9628783088, 1e-9);
    close(t.p, 0.0034192530, 1e-8);
    let v = &extra()["paired_t"];
    let t = paired_t(&list(&v["d"])).unwrap().unwrap();
    close(t.t, num(v, "t"), 1e-11);
    close(t.p, num(v, "p"), 1e-11);
}

#[test]
fn sign_flip_exact() {
    let draws = Draws { seed: 1, n_draws: 20_000 };
    let d = [1.0, -1.0, 2.0, 0.5, -0.5, 3.0];
    let got = sign_flip(&d, draws).unwrap();
    assert!(got.exact);
    assert_eq!(got.p, 0.3125);
    // 0.1 + 0.2 ≠ 0.3 in floating point, yet ties must count: in the first only ± the whole sum
    // reaches 0.6; in the second the observed sum is 0, which every pattern reaches.
    assert_eq!(sign_flip(&[0.1, 0.2, 0.3], draws).unwrap().p, 0.25);
    assert_eq!(sign_flip(&[0.1, 0.2, -0.3], draws).unwrap().p, 1.0);
    // Drawn and exact agree: 21 differences of which 15 are 0.
    let mut long = d.to_vec();
    long.resize(21, 0.0);
    let drawn = sign_flip(&long, draws).unwrap();
    assert!(!drawn.exact && (drawn.p - 0.3125).abs() < 0.0132, "{drawn:?}");
    assert_eq!(drawn, sign_flip(&long, draws).unwrap());
}

#[test]
fn sample_sizes_and_detectable_differences() {
    let plan = Plan::new(0.05, 0.8).unwrap();
    for row in rows(&base(), "connor_mcnemar_n_pairs_80pct") {
        let (psi, diff) = (num(row, "p_discordant"), num(row, "diff"));
        close(power::mcnemar_sample_size(psi, diff, plan).unwrap(), num(row, "n"), 1e-12);
    }
    for row in rows(&extra(), "connor") {
        let (psi, d, n) = (num(row, "psi"), num(row, "d"), int(row, "n"));
        let plan = Plan::new(num(row, "alpha"), num(row, "power")).unwrap();
        close(power::mcnemar_sample_size(psi, d, plan).unwrap(), num(row, "n_exact"), 1e-11);
        close(power::mcnemar_mde(n, psi, plan).unwrap().unwrap(), num(row, "mde"), 1e-9);
        let got = power::mcnemar_power(n, psi, d, plan.alpha()).unwrap();
        close(got, num(row, "power_at_n"), 1e-8);
    }
    let none = PairedVariance::new(1.0 / 9.0).unwrap();
    let with = |k| {
        let one = none.with_responses(1.0 / 6.0, k).unwrap();
        one.with_responses(1.0 / 6.0, k).unwrap()
    };
    let size = |v| power::paired_mean_sample_size(v, 0.03, plan).unwrap();
    close(size(none), 968.9974980677887, 1e-12);
    close(size(with(1)), 3875.989992, 1e-9);
    close(size(with(10)), 1259.696747, 1e-9);
    let mde = |v, n| power::paired_mean_mde(v, n, plan).unwrap();
    close(mde(with(1), 198), 0.1327333278739942, 1e-12);
    close(mde(with(10), 198), 0.0756696392667773, 1e-12);
    for (k, want) in [(2, 0.1049349), (5, 0.0839479), (100, 0.0673548)] {
        close(mde(with(k), 198), want, 1e-6);
    }
    for (n, want) in [
        (100, 0.18677),
        (164, 0.14584),
        (500, 0.08353),
        (1000, 0.05906),
        (1319, 0.05143),
        (5000, 0.02641),
    ] {
        close(mde(with(1), n), want, 2e-4);
    }
    // sd 0.35, difference 0.02, normal approximation.
    let v = PairedVariance::new(0.35 * 0.35).unwrap();
    close(power::paired_mean_sample_size(v, 0.02, plan).unwrap(), 2403.719419, 1e-9);
    // (z_0.95 + z_0.8)²·0.2/0.02² by hand.
    let n = power::non_inferiority_sample_size(0.2, 0.0, 0.02, plan).unwrap();
    close(n, (1.6448536269514722f64 + 0.8416212335729143).powi(2) * 500.0, 1e-12);
}

#[test]
fn quantiles() {
    let got = quantile::quantile_ranks(200, 0.95, 0.95).unwrap();
    assert_eq!((got.lo, got.hi), (Some(184), Some(197)));
    close(got.coverage, 0.9671521638568256, 1e-11);
    for row in rows(&extra(), "quantile_ranks") {
        let n = int(row, "n");
        let got = quantile::quantile_ranks(n, num(row, "q"), num(row, "level")).unwrap();
        assert_eq!(got.lo.unwrap_or(0), int(row, "lo"), "{row}");
        assert_eq!(got.hi.unwrap_or(n + 1), int(row, "hi"), "{row}");
        close(got.coverage, num(row, "coverage"), 1e-11);
    }
    assert_eq!(quantile::min_n_for_upper_bound(0.95, 0.95).unwrap(), 59);
    assert_eq!(quantile::min_n_for_upper_bound(0.5, 0.75).unwrap(), 2);
    assert_eq!(quantile::upper_bound_rank(58, 0.95, 0.95).unwrap(), None);
    assert_eq!(quantile::upper_bound_rank(59, 0.95, 0.95).unwrap(), Some(59));
    let cost = list(&extra()["fieller"]["cost"]);
    for row in rows(&extra(), "quantile_type7") {
        close(quantile::quantile(&cost, num(row, "q")).unwrap(), num(row, "value"), 1e-12);
    }
}

#[test]
fn ratio_intervals() {
    let v = &extra()["fieller"];
    let (cost, right) = (list(&v["cost"]), list(&v["right"]));
    let got = ratio::fieller(&cost, &right, 0.95).unwrap().unwrap();
    close_interval(got, num(v, "lo"), num(v, "hi"), 1e-9);
    let boot = ratio::bootstrap(&cost, &right, 0.95, 4000, 7).unwrap().unwrap();
    close(boot.se, num(v, "bootstrap_se"), 0.06);
    assert!(boot.interval.contains(boot.ratio));
    assert_eq!(Some(boot), ratio::bootstrap(&cost, &right, 0.95, 4000, 7).unwrap());
    assert_ne!(Some(boot), ratio::bootstrap(&cost, &right, 0.95, 4000, 8).unwrap());
}

type Adjust = fn(&[f64]) -> weighbridge_stats::Result<Vec<f64>>;

#[test]
fn multiplicity_benjamini_hochberg_1995() {
    let v = &base()["multitest_BH1995"];
    let p = list(&v["p"]);
    let methods: [(&str, Adjust, usize); 4] = [
        ("bonferroni", multiplicity::bonferroni, 3),
        ("holm", multiplicity::holm, 3),
        ("fdr_bh", multiplicity::benjamini_hochberg, 4),
        ("fdr_by", multiplicity::benjamini_yekutieli, 3),
    ];
    for (name, adjust, rejected) in methods {
        let got = adjust(&p).unwrap();
        for (got, want) in got.iter().zip(list(&v[name])) {
            close(*got, want, 1e-12);
        }
        assert_eq!(got.iter().filter(|p| **p <= 0.05).count(), rejected, "{name}");
        // The order of the input is kept.
        let reversed: Vec<f64> = p.iter().rev().copied().collect();
        let again: Vec<f64> = adjust(&reversed).unwrap().into_iter().rev().collect();
        assert_eq!(got, again, "{name}");
        assert!(adjust(&[]).unwrap().is_empty());
        assert!(adjust(&[0.5, f64::NAN]).is_err());
    }
}
