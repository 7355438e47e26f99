"""Blocks of every quantized type with the values that gguf-py gives them.

Run: `python quant.py > quant.json`, with `pip install gguf numpy`.
"""

import json
from importlib.metadata import version

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Where the halves are that scale a block, in bytes.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}

rng = np.random.default_rng(1)
types = {}
for name in TYPES:
    block_size, type_size = GGML_QUANT_SIZES[Type[name]]
    # Every bit of codes and small scales is drawn, so that each layout is seen whole.
    blocks = rng.integers(0, 256, (2, type_size), dtype=np.uint8)
    for at in HALVES[name]:
        scales = rng.normal(0, 0.05, len(blocks)).astype("<f2")
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    values = dequantize(blocks, Type[name]).astype(np.float32)
    types[name] = {
        "blocks": blocks.tobytes().hex(),
        "values": [float(np.format_float_positional(v, unique=True)) for v in values.ravel()],
    }
    assert values.size == len(blocks) * block_size
print(json.dumps({"made_with": {"gguf": version("gguf")}, "types": types}, separators=(",", ":")))
