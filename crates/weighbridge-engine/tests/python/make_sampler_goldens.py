"""Known draws for the sampler, computed independently of the Rust code.

Follows the module documentation of `src/sampler.rs` literally, with Python's f64
arithmetic and its own ChaCha8. Needs only the standard library:

    python3 make_sampler_goldens.py > ../goldens/sampler.json
"""

import json
import math
import random
import struct

MASK32 = 0xFFFFFFFF


def rotl(x, n):
    return ((x << n) | (x >> (32 - n))) & MASK32


def quarter(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & MASK32
    s[d] = rotl(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & MASK32
    s[b] = rotl(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & MASK32
    s[d] = rotl(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & MASK32
    s[b] = rotl(s[b] ^ s[c], 7)


def chacha8(key):
    """The 32-bit words of the ChaCha8 stream: 64-bit counter from 0, stream 0."""
    counter = 0
    constants = struct.unpack("<4I", b"expand 32-byte k")
    words = struct.unpack("<8I", key)
    while True:
        start = [*constants, *words, counter & MASK32, counter >> 32, 0, 0]
        s = list(start)
        for _ in range(4):
            quarter(s, 0, 4, 8, 12)
            quarter(s, 1, 5, 9, 13)
            quarter(s, 2, 6, 10, 14)
            quarter(s, 3, 7, 11, 15)
            quarter(s, 0, 5, 10, 15)
            quarter(s, 1, 6, 11, 12)
            quarter(s, 2, 7, 8, 13)
            quarter(s, 3, 4, 9, 14)
        yield from ((x + y) & MASK32 for x, y in zip(s, start))
        counter += 1


def uniforms(seed):
    words = chacha8(struct.pack("<Q", seed) + bytes(24))
    while True:
        low = next(words)
        high = next(words)
        yield ((high << 32 | low) >> 11) * 2.0**-53


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def plain_sum(values):
    """Left to right; Python's own `sum` compensates since 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total


def sample(row, p, seen, unused, u):
    cand = []
    for i, logit in enumerate(row):
        if i in unused:
            continue
        x = float(logit)
        if i in seen:
            x = x / p["repetition_penalty"] if x > 0 else x * p["repetition_penalty"]
            if seen[i] > 0:
                x -= seen[i] * p["frequency_penalty"] + p["presence_penalty"]
        for j, bias in p["logit_bias"]:
            if i == j:
                x += bias
        cand.append((i, x))
    top = max(x for _, x in cand)
    if p["temperature"] == 0.0:
        return min(i for i, x in cand if x == top)
    cand = [(i, (x - top) / p["temperature"]) for i, x in cand]
    if p["top_k"] is not None:
        cand = sorted(cand, key=lambda c: (-c[1], c[0]))[: p["top_k"]]
        cand.sort()
    cand = [(i, math.exp(x)) for i, x in cand]
    if p["top_p"] < 1.0:
        cand.sort(key=lambda c: (-c[1], c[0]))
        total = plain_sum(w for _, w in cand)
        kept, running = [], 0.0
        for i, w in cand:
            kept.append((i, w))
            running += w
            if running >= p["top_p"] * total:
                break
        cand = sorted(kept)
    cand = [(i, w) for i, w in cand if w >= p["min_p"]]
    total = plain_sum(w for _, w in cand)
    running = 0.0
    for i, w in cand:
        running += w
        if running > u() * total:
            return i
    return cand[-1][0]


def case(name, rng, seed, n=32, n_draws=40, **settings):
    p = {
        "temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "logit_bias": [], **settings,
    }
    unused = settings.pop("unused", [])
    p.pop("unused", None)
    prompt = [rng.randrange(n) for _ in range(5)]
    rows = [[f32(rng.gauss(0, 2)) for _ in range(n)] for _ in range(n_draws)]
    stream = uniforms(seed)
    seen = {i: 0 for i in prompt}
    drawn = []
    for row in rows:
        value = None

        def u():
            nonlocal value
            if value is None:
                value = next(stream)
            return value

        i = sample(row, p, seen, unused, u)
        seen[i] = seen.get(i, 0) + 1
        drawn.append(i)
    return {"name": name, "seed": seed, "prompt": prompt, "unused": unused, "params": p,
            "rows": rows, "drawn": drawn}


def main():
    rng = random.Random(20261121)
    stream = uniforms(42)
    out = {
        "script": "make_sampler_goldens.py",
        "uniforms_seed_42": [next(stream).hex() for _ in range(20)],
        "cases": [
            case("plain", rng, 1),
            case("greedy", rng, 0, temperature=0.0),
            case("hot", rng, 2**63 + 5, temperature=1.7),
            case("cold", rng, 3, temperature=0.2),
            case("top_k", rng, 4, top_k=3),
            case("top_k_1", rng, 4, top_k=1),
            case("top_p", rng, 5, top_p=0.7),
            case("min_p", rng, 6, min_p=0.2),
            case("all_filters", rng, 7, temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
            case("penalties", rng, 8, repetition_penalty=1.3, frequency_penalty=0.4,
                 presence_penalty=0.6),
            case("bias", rng, 9, logit_bias=[[3, 4.0], [4, -100.0]]),
            case("unused", rng, 10, unused=[0, 1, 2, 3, 31]),
        ],
    }
    print(json.dumps(out))


main()
