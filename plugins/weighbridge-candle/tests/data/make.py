"""Tiny random-weight models of the shapes the decoder knows, with reference numbers by Hugging Face transformers.

    python make.py          writes NAME/{config.json,model.safetensors} and NAME.json beside this file

Weights are saved in F16 or BF16 and the numbers computed from what was saved, in float32 on the CPU with eager
attention. The weights are large enough that every part of the graph changes the logits visibly.
"""
import json, pathlib, shutil

import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = pathlib.Path(__file__).parent
VOCAB = 199          # not a multiple of anything
COMMON = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=2, rms_norm_eps=1e-5, max_position_embeddings=128,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
MODELS = {
    "llama-gqa-tied": (LlamaForCausalLM, LlamaConfig(**COMMON, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True), torch.float16),
    "llama3-bias-headdim": (LlamaForCausalLM, LlamaConfig(**COMMON, num_attention_heads=4, num_key_value_heads=4, head_dim=16, tie_word_embeddings=False,
                            attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3), torch.bfloat16),
    "llama-linear": (LlamaForCausalLM, LlamaConfig(**(COMMON | dict(intermediate_size=48)), num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                     rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=4.0)), torch.float32),
    "mistral-window": (MistralForCausalLM, MistralConfig(**COMMON, num_attention_heads=4, num_key_value_heads=2, head_dim=12, sliding_window=7,
                       tie_word_embeddings=False), torch.float16),
    "qwen2-bias": (Qwen2ForCausalLM, Qwen2Config(**COMMON, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                   use_sliding_window=False), torch.bfloat16),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config(**COMMON, num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=False,
                     use_sliding_window=True, sliding_window=5, max_window_layers=1), torch.float16),
    "qwen2-yarn": (Qwen2ForCausalLM, Qwen2Config(**COMMON, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                   rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)), torch.bfloat16),
}


@torch.no_grad()
def make(name, cls, config, dtype):
    torch.manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    model = cls(config)
    for key, p in model.named_parameters():
        if "norm" in key:
            p.copy_(1 + 0.3 * torch.randn_like(p))
        elif key.endswith("bias"):
            p.copy_(0.5 * torch.randn_like(p))
        else:
            p.copy_(torch.randn_like(p) * (0.25 if "embed" in key else 1.6 / p.shape[1] ** 0.5))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(torch.float32).eval()
    ids = torch.randint(3, VOCAB, (40,)).tolist()
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    lp = torch.log_softmax(logits.to(torch.float64), -1)
    greedy, x = [], list(ids[:12])
    for _ in range(24):
        t = int(model(input_ids=torch.tensor([x]), use_cache=False).logits[0, -1].argmax())
        greedy.append(t)
        x.append(t)
    out = {"made_with": {"transformers": transformers.__version__, "torch": torch.__version__, "script": "plugins/weighbridge-candle/tests/data/make.py"},
           "ids": ids, "argmax": [int(i) for i in lp.argmax(-1)], "logprobs": [round(float(lp[k, t]), 6) for k, t in enumerate(ids[1:])],
           "rows": {str(k): [round(float(v), 5) for v in logits[k]] for k in (0, 19, 39)}, "greedy_of_first_12": greedy}
    (HERE / f"{name}.json").write_text(json.dumps(out) + "\n")
    print(name, (folder / "model.safetensors").stat().st_size, round(float(lp.max()), 3), [round(v, 2) for v in out["logprobs"][:5]], len(set(greedy)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, spec in MODELS.items():
        make(name, *spec)
