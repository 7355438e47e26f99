"""Writes one random-weight GGUF file in F16, with the shape of a real model.

Usage: models.py SHAPE OUT.gguf

Speed depends on shapes and number formats and not on what was learned, so random weights measure
what real ones would, and nothing has to be downloaded. The vocabulary is a byte-level BPE of the real
size. The rows of the end tokens are zero: their logits are 0 and never the largest of the row, so
that greedy decoding always goes on to the length that was asked for.
"""

import itertools
import string
import sys

import gguf
import numpy as np

SHAPES = {
    # Qwen2-0.5B as published.
    "qwen2-896": dict(
        arch="qwen2", pre="qwen2", layers=24, width=896, heads=14, kv_heads=2, ffn=4864, vocab=151_936, rope_base=1e6
    ),
    # The same with a width that is a multiple of 256, which K-quants and tiled kernels need.
    "qwen2-1024": dict(
        arch="qwen2", pre="qwen2", layers=24, width=1024, heads=16, kv_heads=2, ffn=4864, vocab=151_936, rope_base=1e6
    ),
    # SmolLM-135M as published.
    "smol-135m": dict(
        arch="llama", pre="smollm", layers=30, width=576, heads=9, kv_heads=3, ffn=1536, vocab=49_152, rope_base=1e4
    ),
}
END_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_CTX = 32_768


def byte_alphabet():
    """The 256 printable characters that stand for bytes in GPT-2's vocabulary, in its order."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]


def vocabulary(size):
    """Tokens and merges: bytes, then words of two, three and four letters, then the end tokens."""
    tokens, merges = byte_alphabet(), []
    letters = string.ascii_lowercase
    pairs = ["".join(p) for p in itertools.product(letters, repeat=2)]
    grown = itertools.chain(
        itertools.product(letters, letters), itertools.product(pairs, letters), itertools.product(pairs, pairs)
    )
    for left, right in itertools.islice(grown, size - len(tokens) - len(END_TOKENS)):
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    tokens += END_TOKENS
    assert len(set(tokens)) == len(tokens) == size
    return tokens, merges


def write(shape, path):
    rng = np.random.default_rng(1)
    width, ffn, vocab = shape["width"], shape["ffn"], shape["vocab"]
    kv_width = width // shape["heads"] * shape["kv_heads"]
    w = gguf.GGUFWriter(path, shape["arch"], use_temp_file=False)
    w.add_name(f"random {path}")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_context_length(N_CTX)
    w.add_embedding_length(width)
    w.add_block_count(shape["layers"])
    w.add_feed_forward_length(ffn)
    w.add_head_count(shape["heads"])
    w.add_head_count_kv(shape["kv_heads"])
    w.add_rope_dimension_count(width // shape["heads"])
    w.add_rope_freq_base(shape["rope_base"])
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(vocab)

    tokens, merges = vocabulary(vocab)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(shape["pre"])
    w.add_token_list(tokens)
    w.add_token_types([normal] * (vocab - len(END_TOKENS)) + [control] * len(END_TOKENS))
    w.add_token_merges(merges)
    w.add_eos_token_id(tokens.index("<|endoftext|>"))
    w.add_pad_token_id(tokens.index("<|endoftext|>"))
    w.add_add_bos_token(False)

    def matrix(name, rows, columns):
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        values *= columns**-0.5
        return name, values

    def add(name, values, dtype=np.float16):
        w.add_tensor(name, values.astype(dtype))

    name, embedding = matrix("token_embd.weight", vocab, width)
    embedding[-len(END_TOKENS) :] = 0
    add(name, embedding)
    for layer in range(shape["layers"]):
        block = f"blk.{layer}."
        add(block + "attn_norm.weight", np.ones(width), np.float32)
        add(block + "ffn_norm.weight", np.ones(width), np.float32)
        for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            add(*matrix(f"{block}attn_{part}.weight", rows, width))
            if shape["arch"] == "qwen2":
                add(f"{block}attn_{part}.bias", 0.1 * rng.standard_normal(rows), np.float32)
        add(*matrix(block + "attn_output.weight", width, width))
        add(*matrix(block + "ffn_gate.weight", ffn, width))
        add(*matrix(block + "ffn_up.weight", ffn, width))
        add(*matrix(block + "ffn_down.weight", width, ffn))
    add("output_norm.weight", np.ones(width), np.float32)

    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    name, out = sys.argv[1:]
    write(SHAPES[name], out)
