//! Seeded simulations: the methods keep what they promise, and the mistakes they avoid are
//! visible when made on purpose. Accepted within four Monte-Carlo standard errors.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers")]

mod common;

use common::Rng;
use weighbridge_stats::mean::{ClusterCorrection, MeanEstimate, clustered_mean, mean};
use weighbridge_stats::{Interval, PairedTable, eprocess, paired, proportion, ratio};

/// Fails unless `rate` of `n` trials is within four standard errors of `want`.
#[track_caller]
fn expect_rate(what: &str, rate: f64, want: f64, n: usize) {
    let se = (want * (1.0 - want) / n as f64).sqrt();
    println!("{what}: rate {rate:.4}, expected {want:.4} ± {:.4}", 4.0 * se);
    assert!((rate - want).abs() <= 4.0 * se, "{what}: {rate} against {want} ± 4×{se}");
}

/// Bin(n, p) probabilities by recurrence from the mode: nothing of the crate's is used.
fn binomial_masses(n: usize, p: f64) -> Vec<f64> {
    let mode = ((n as f64 + 1.0) * p).floor().min(n as f64) as usize;
    let mut mass = vec![0.0; n + 1];
    mass[mode] = 1.0;
    for k in mode..n {
        mass[k + 1] = mass[k] * (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
    }
    for k in (0..mode).rev() {
        mass[k] = mass[k + 1] * (k + 1) as f64 / (n - k) as f64 * (1.0 - p) / p;
    }
    let total: f64 = mass.iter().sum();
    mass.iter().map(|m| m / total).collect()
}

type Method = fn(u64, u64, f64) -> weighbridge_stats::Result<Interval>;

#[test]
fn coverage_equals_exact_enumeration() {
    const RUNS: usize = 2000;
    let methods: [(&str, Method); 3] = [
        ("wilson", proportion::wilson),
        ("clopper_pearson", proportion::clopper_pearson),
        ("jeffreys", proportion::jeffreys),
    ];
    let mut rng = Rng(20_261_121);
    for n in [20usize, 50, 100, 500] {
        for (name, method) in methods {
            let intervals: Vec<Interval> =
                (0..=n as u64).map(|k| method(k, n as u64, 0.95).unwrap()).collect();
            for p in [0.5, 0.9, 0.98] {
                let masses = binomial_masses(n, p);
                let exact: f64 =
                    intervals.iter().zip(&masses).filter(|(i, _)| i.contains(p)).map(|x| x.1).sum();
                if name == "clopper_pearson" {
                    assert!(exact >= 0.95, "{name} n {n} p {p}: {exact}");
                }
                let hits = (0..RUNS)
                    .filter(|_| {
                        let k = (0..n).filter(|_| rng.flip(p)).count();
                        intervals[k].contains(p)
                    })
                    .count();
                let what = format!("{name} n {n} p {p}");
                expect_rate(&what, hits as f64 / RUNS as f64, exact.min(1.0), RUNS);
            }
        }
    }
}

#[test]
fn wilson_coverage_matches_published_enumeration() {
    for (p, n, want) in
        [(0.9, 30, 0.9742), (0.95, 50, 0.9622), (0.9, 100, 0.9364), (0.9, 300, 0.9575)]
    {
        let exact: f64 = binomial_masses(n, p)
            .iter()
            .enumerate()
            .filter(|(k, _)| proportion::wilson(*k as u64, n as u64, 0.95).unwrap().contains(p))
            .map(|x| x.1)
            .sum();
        assert!((exact - want).abs() < 5.1e-5, "n {n} p {p}: {exact}");
    }
}

fn excludes_zero(estimate: MeanEstimate) -> bool {
    !estimate.t_interval(0.95).unwrap().unwrap().contains(0.0)
}

#[test]
fn clustered_null() {
    const RUNS: usize = 1500;
    let mut rng = Rng(7);
    let clusters: Vec<usize> = (0..300).map(|i| i / 10).collect();
    let (mut naive, mut clustered) = (0, 0);
    for _ in 0..RUNS {
        let mut values = Vec::with_capacity(300);
        for _ in 0..30 {
            let shared = rng.normal();
            values.extend((0..10).map(|_| 0.6 * shared + rng.normal()));
        }
        naive += usize::from(excludes_zero(mean(&values).unwrap()));
        let estimate = clustered_mean(&values, &clusters, ClusterCorrection::Cr1).unwrap();
        clustered += usize::from(excludes_zero(estimate));
    }
    let (naive, clustered) = (naive as f64 / RUNS as f64, clustered as f64 / RUNS as f64);
    println!("clustered {clustered:.4}, naive {naive:.4}");
    expect_rate("clustered type-I", clustered, 0.05, RUNS);
    assert!(naive > 0.15, "the naive interval must fail here, or this test cannot: {naive}");
}

#[test]
fn identical_backends_p_is_uniform_or_larger() {
    const RUNS: usize = 4000;
    let mut rng = Rng(11);
    let p_values: Vec<f64> = (0..RUNS)
        .map(|_| {
            let pairs = (0..120).map(|_| (rng.flip(0.7), rng.flip(0.7)));
            paired::mcnemar_exact(&PairedTable::from_pairs(pairs))
        })
        .collect();
    for alpha in [0.01, 0.05, 0.1, 0.25, 0.5] {
        let rate = p_values.iter().filter(|p| **p <= alpha).count() as f64 / RUNS as f64;
        let slack = 4.0 * (alpha * (1.0 - alpha) / RUNS as f64).sqrt();
        println!("alpha {alpha}: rate {rate:.4}");
        assert!(rate <= alpha + slack, "alpha {alpha}: {rate}");
    }
}

#[test]
fn repeats_are_not_items() {
    const RUNS: usize = 1500;
    let mut rng = Rng(13);
    let (mut averaged, mut pooled) = (0, 0);
    for _ in 0..RUNS {
        let mut means = Vec::new();
        let mut all = Vec::new();
        for _ in 0..60 {
            let item = rng.normal();
            let responses: Vec<f64> = (0..5).map(|_| item + rng.normal()).collect();
            means.push(responses.iter().sum::<f64>() / 5.0);
            all.extend(responses);
        }
        averaged += usize::from(excludes_zero(mean(&means).unwrap()));
        pooled += usize::from(excludes_zero(mean(&all).unwrap()));
    }
    expect_rate("averaged type-I", averaged as f64 / RUNS as f64, 0.05, RUNS);
    let pooled = pooled as f64 / RUNS as f64;
    assert!(pooled > 0.15, "pooling must fail here, or this test cannot: {pooled}");
}

#[test]
fn bootstrap_se_does_not_shrink_with_more_replicates() {
    let mut rng = Rng(17);
    let cost: Vec<f64> = (0..80).map(|_| 0.5 + rng.uniform()).collect();
    let right: Vec<f64> = (0..80).map(|_| f64::from(u8::from(rng.flip(0.7)))).collect();
    let se = |b| ratio::bootstrap(&cost, &right, 0.95, b, 3).unwrap().unwrap().se;
    let (few, many) = (se(200), se(2000));
    println!("B 200: {few:.5}, B 2000: {many:.5}");
    // The SD of an SD of 200 draws is about 1/√400 = 5 %; dividing by √B would give a factor 3.
    assert!((few / many - 1.0).abs() < 0.25, "{few} {many}");
    // Fieller's half-width is about 2 SE: an independent check of the scale.
    let fieller = ratio::fieller(&cost, &right, 0.95).unwrap().unwrap();
    assert!((fieller.width() / (2.0 * 1.99 * many) - 1.0).abs() < 0.15);
}

#[test]
fn e_process_keeps_alpha_when_looked_at_after_every_pair() {
    const RUNS: usize = 1500;
    let mut rng = Rng(19);
    let rejected = (0..RUNS)
        .filter(|_| {
            let mut table = PairedTable::default();
            (0..400).any(|_| {
                let side = if rng.flip(0.5) { &mut table.only_a } else { &mut table.only_b };
                *side += 1;
                eprocess::rejects(eprocess::ln_e_value(&table), 0.05).unwrap()
            })
        })
        .count();
    let rate = rejected as f64 / RUNS as f64;
    println!("e-process type-I {rate:.4}");
    assert!(rate > 0.005 && rate <= 0.05 + 4.0 * (0.05f64 * 0.95 / RUNS as f64).sqrt());
}
