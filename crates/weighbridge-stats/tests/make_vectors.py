"""Writes vectors_extra.json: values that vectors.json lacks, from scipy and mpmath.

    python -m venv venv && venv/bin/pip install scipy==1.17.1 mpmath==1.4.1 numpy==2.4.6
    venv/bin/python make_vectors.py

Nothing here shares code with the crate: Tango's limits come from a numerical maximisation of the
restricted likelihood, the far tails from 60-digit arithmetic.
"""

import json
import math
import pathlib

import mpmath as mp
import numpy as np
import scipy
from scipy import optimize, stats

mp.mp.dps = 60
Z = stats.norm.ppf
out = {"made_with": {"scipy": scipy.__version__, "numpy": np.__version__, "mpmath": mp.__version__}}


def mcnemar_exact(b, c):
    """Exact rational sum, so that 1e-300 keeps all its digits."""
    n, m = b + c, min(b, c)
    total = sum(math.comb(n, k) for k in range(m + 1))
    p = mp.mpf(2 * total) / mp.mpf(2) ** n
    mid = p - mp.mpf(math.comb(n, m)) / mp.mpf(2) ** n
    return float(min(mp.mpf(1), p)), float(min(mp.mpf(1), mid))


out["mcnemar_tails"] = [
    dict(b=b, c=c, exact_p=mcnemar_exact(b, c)[0], midp=mcnemar_exact(b, c)[1])
    for b, c in [(1, 0), (1, 1), (2, 0), (0, 40), (1000, 0), (1060, 2), (5000, 4800), (600, 20), (7, 9)]
]

out["clopper_pearson"] = []
for k, n, level in [(1, 1, 0.95), (0, 1, 0.9), (1, 2, 0.95), (3, 1000000, 0.99), (499000, 1000000, 0.95),
                    (999999, 1000000, 0.95), (700, 1000, 0.999), (0, 300, 0.95)]:
    ci = stats.binomtest(k, n).proportion_ci(level, "exact")
    t = (1 - level) / 2
    out["clopper_pearson"].append(dict(
        k=k, n=n, level=level, lo=float(ci.low), hi=float(ci.high),
        jeffreys_lo=float(stats.beta.ppf(t, k + 0.5, n - k + 0.5)),
        jeffreys_hi=float(stats.beta.isf(t, k + 0.5, n - k + 0.5))))


def connor(psi, d, alpha, power):
    return (Z(1 - alpha / 2) * math.sqrt(psi) + Z(power) * math.sqrt(psi - d * d)) ** 2 / d**2


out["connor"] = []
for psi, d, alpha, power in [(0.2, 0.05, 0.05, 0.9), (0.15, 0.02, 0.01, 0.8), (0.5, 0.5, 0.05, 0.8), (1.0, 0.1, 0.1, 0.95)]:
    n = math.ceil(connor(psi, d, alpha, power))
    out["connor"].append(dict(
        psi=psi, d=d, alpha=alpha, power=power, n_exact=connor(psi, d, alpha, power), n=n,
        mde=optimize.brentq(lambda x: connor(psi, x, alpha, power) - n, 1e-6, psi, xtol=1e-15),
        power_at_n=optimize.brentq(lambda q: connor(psi, d, alpha, q) - n, 0.5, 1 - 1e-9, xtol=1e-15)))

out["quantile_ranks"] = []
for n, q, level in [(200, 0.95, 0.95), (100, 0.5, 0.95), (59, 0.95, 0.9), (20, 0.95, 0.95), (1000, 0.99, 0.99), (2, 0.5, 0.9)]:
    t = (1 - level) / 2
    lo, hi = int(stats.binom.ppf(t, n, q)), int(stats.binom.ppf(1 - t, n, q)) + 1
    out["quantile_ranks"].append(dict(
        n=n, q=q, level=level, lo=lo, hi=hi,
        coverage=float(stats.binom.cdf(hi - 1, n, q) - stats.binom.cdf(lo - 1, n, q))))

out["t_two_sided"] = [
    dict(level=l, df=df, t=float(stats.t.isf((1 - l) / 2, df)))
    for l in [0.5, 0.9, 0.99, 0.999999] for df in [1, 2, 3, 7, 50, 1000, 100000]
]

rng = np.random.default_rng(20)
cost = np.round(rng.gamma(2.0, 0.01, 40), 6)
right = (rng.random(40) < 0.7).astype(float)


def fieller(y, x, level):
    """Inverts the t-test of mean(y - R x) = 0 by root finding on each side of the ratio."""
    n, r = len(y), y.sum() / x.sum()
    crit = stats.t.isf((1 - level) / 2, n - 1)
    g = lambda R: abs((y - R * x).mean()) / ((y - R * x).std(ddof=1) / math.sqrt(n)) - crit
    return [optimize.brentq(g, r, r - 0.9 * r, xtol=1e-16), optimize.brentq(g, r, 4 * r, xtol=1e-16)]


lo, hi = fieller(cost, right, 0.95)
se = float(np.std([(lambda i: cost[i].sum() / right[i].sum())(rng.integers(0, 40, 40)) for _ in range(20000)], ddof=1))
out["fieller"] = dict(cost=cost.tolist(), right=right.tolist(), level=0.95, lo=lo, hi=hi, bootstrap_se=se)

d = np.round(cost - 0.02 + 0.004 * right, 6)
t = stats.ttest_1samp(d, 0.0)
out["paired_t"] = dict(d=d.tolist(), t=float(t.statistic), p=float(t.pvalue))
out["quantile_type7"] = [dict(q=q, value=float(np.quantile(cost, q))) for q in [0, 0.05, 0.5, 0.95, 1]]


def tango_limit(b, c, n, z, side):
    """Score statistic with the restricted MLE found by maximising the likelihood numerically."""
    def stat(delta):
        lo, hi = max(0.0, -delta), (1 - delta) / 2
        def nll(q):  # q = P(only B), p(only A) = q + delta
            rest = n - b - c
            v = 0.0
            for cnt, pr in [(b, q + delta), (c, q), (rest, 1 - 2 * q - delta)]:
                if cnt:
                    v -= cnt * math.log(max(pr, 1e-300))
            return v
        q = optimize.minimize_scalar(nll, bounds=(lo, hi), method="bounded", options=dict(xatol=1e-13)).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))
    est = (b - c) / n
    eps = 1e-9
    if side < 0:
        return optimize.brentq(lambda x: stat(x) - z, -1 + eps, est - eps, xtol=1e-12)
    return optimize.brentq(lambda x: stat(x) + z, est + eps, 1 - eps, xtol=1e-12)


z = float(Z(0.975))
out["tango_numerical_mle"] = [
    dict(b=b, c=c, n=n, lo=tango_limit(b, c, n, z, -1), hi=tango_limit(b, c, n, z, 1))
    for b, c, n in [(53, 27, 200), (12, 2, 100), (5, 5, 20), (3, 0, 30), (0, 7, 25), (1, 0, 2), (30, 10, 40)]
]

path = pathlib.Path(__file__).with_name("vectors_extra.json")
path.write_text(json.dumps(out, indent=1) + "\n")
