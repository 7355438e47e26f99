"""Tiny random-weight GGUF models of the kinds that llama.cpp treats differently, an adapter for a fixture model, and
reference numbers by Hugging Face transformers in float32 on the CPU.

    python make.py          writes NAME.gguf and NAME.json beside this file; needs torch, transformers, gguf, numpy

Weights are F32, so that what differs is arithmetic alone, and large enough that every part of the graph changes the
numbers visibly.
"""
import json, pathlib

import gguf, numpy as np, torch, transformers
from transformers import (AutoModelForCausalLM, BertConfig, BertModel, Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM)

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parents[3] / "fixtures"
VOCAB = 64
MADE_WITH = {"transformers": transformers.__version__, "torch": torch.__version__,
             "script": "plugins/weighbridge-llama-cpp/tests/data/make.py"}


def randomize(model, seed):
    torch.manual_seed(seed)
    for key, p in model.named_parameters():
        with torch.no_grad():
            if "norm" in key.lower():
                p.copy_((0 if "Gemma" in type(model).__name__ or key.endswith("bias") else 1) + 0.3 * torch.randn_like(p))
            elif "A_log" in key or key.endswith(".D") or "dt_proj" in key:
                p.add_(0.2 * torch.randn_like(p))
            elif key.endswith("bias"):
                p.copy_(0.5 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.25 if "embed" in key else 1.6 / p.shape[-1] ** 0.5))
    return model.to(torch.float32).eval()


def writer(name, arch):
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", arch)
    w.add_name(name)
    w.add_file_type(0)
    return w


def add_vocab(w, model):
    if model == "bert":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + ["\u2581" + chr(97 + i) for i in range(26)] + [chr(97 + i) for i in range(26)]
        types = [3, 2, 3, 3, 3]
        w.add_pad_token_id(0), w.add_unk_token_id(1), w.add_bos_token_id(2), w.add_sep_token_id(3), w.add_eos_token_id(3)
        w.add_token_type_count(2)
    else:
        tokens = ["<end>", "<start>"] + [chr(33 + i) for i in range(60)] + ["\u0120", "\u010a"]
        types = [3, 3]
        w.add_tokenizer_pre("gpt-2"), w.add_token_merges(["a b"])
        w.add_eos_token_id(0), w.add_bos_token_id(1), w.add_add_bos_token(False)
    tokens += [f"<unused{i}>" for i in range(VOCAB - len(tokens))]
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    w.add_token_scores([0.0] * VOCAB)
    w.add_token_types(types + [1 if not t.startswith("<unused") else 5 for t in tokens[len(types):]])


def finish(w, tensors):
    for name, t in tensors.items():
        w.add_tensor(name, np.ascontiguousarray(t.detach().to(torch.float32).numpy()))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


@torch.no_grad()
def save(name, **out):
    (HERE / f"{name}.json").write_text(json.dumps({"made_with": MADE_WITH} | out) + "\n")
    print(name, (HERE / f"{name}.gguf").stat().st_size)


@torch.no_grad()
def causal(name, model, n):
    ids = torch.randint(2, VOCAB - 2, (n,)).tolist()
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    lp = torch.log_softmax(logits.to(torch.float64), -1)
    save(name, ids=ids, argmax=[int(i) for i in lp.argmax(-1)], logprobs=[round(float(lp[k, t]), 6) for k, t in enumerate(ids[1:])],
         last_row=[round(float(v), 5) for v in logits[-1]])


def mamba():
    c = MambaConfig(vocab_size=VOCAB, hidden_size=24, state_size=8, num_hidden_layers=2, conv_kernel=4, expand=2, time_step_rank=3,
                    layer_norm_epsilon=1e-5, use_mambapy=False)
    m = randomize(MambaForCausalLM(c), 1)
    w = writer("mamba", "mamba")
    w.add_context_length(512), w.add_embedding_length(24), w.add_feed_forward_length(0), w.add_head_count(0), w.add_block_count(2)
    w.add_ssm_conv_kernel(4), w.add_ssm_inner_size(48), w.add_ssm_state_size(8), w.add_ssm_time_step_rank(3), w.add_layer_norm_rms_eps(1e-5)
    add_vocab(w, "gpt2")
    s, t = m.state_dict(), {}
    t["token_embd.weight"], t["output_norm.weight"], t["output.weight"] = s["backbone.embeddings.weight"], s["backbone.norm_f.weight"], s["lm_head.weight"]
    for i in range(2):
        a, b = f"backbone.layers.{i}.", f"blk.{i}."
        t[b + "attn_norm.weight"] = s[a + "norm.weight"]
        for theirs, ours in [("in_proj", "ssm_in"), ("x_proj", "ssm_x"), ("dt_proj", "ssm_dt"), ("out_proj", "ssm_out")]:
            t[b + ours + ".weight"] = s[a + f"mixer.{theirs}.weight"]
        t[b + "ssm_dt.bias"] = s[a + "mixer.dt_proj.bias"]
        t[b + "ssm_conv1d.weight"], t[b + "ssm_conv1d.bias"] = s[a + "mixer.conv1d.weight"].squeeze(1), s[a + "mixer.conv1d.bias"]
        t[b + "ssm_a"], t[b + "ssm_d"] = -torch.exp(s[a + "mixer.A_log"]), s[a + "mixer.D"]
    finish(w, t)
    causal("mamba", m, 40)


def gemma2():
    c = Gemma2Config(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                     head_dim=16, query_pre_attn_scalar=16, sliding_window=8, max_position_embeddings=256, rms_norm_eps=1e-6)
    c._attn_implementation = "eager"
    m = randomize(Gemma2ForCausalLM(c), 2)
    w = writer("gemma2", "gemma2")
    w.add_context_length(256), w.add_embedding_length(32), w.add_block_count(3), w.add_feed_forward_length(48), w.add_head_count(4)
    w.add_head_count_kv(2), w.add_layer_norm_rms_eps(1e-6), w.add_key_length(16), w.add_value_length(16), w.add_sliding_window(8)
    w.add_attn_logit_softcapping(c.attn_logit_softcapping), w.add_final_logit_softcapping(c.final_logit_softcapping)
    add_vocab(w, "gpt2")
    s = m.state_dict()
    t = {"token_embd.weight": s["model.embed_tokens.weight"], "output_norm.weight": s["model.norm.weight"] + 1}
    for i in range(3):
        a, b = f"model.layers.{i}.", f"blk.{i}."
        for theirs, ours in [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm"),
                             ("pre_feedforward_layernorm", "ffn_norm"), ("post_feedforward_layernorm", "post_ffw_norm")]:
            t[b + ours + ".weight"] = s[a + theirs + ".weight"] + 1
        for x in "qkv":
            t[b + f"attn_{x}.weight"] = s[a + f"self_attn.{x}_proj.weight"]
        t[b + "attn_output.weight"] = s[a + "self_attn.o_proj.weight"]
        for x in ("gate", "up", "down"):
            t[b + f"ffn_{x}.weight"] = s[a + f"mlp.{x}_proj.weight"]
    finish(w, t)
    causal("gemma2", m, 60)


@torch.no_grad()
def bert():
    c = BertConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
                   hidden_act="gelu", layer_norm_eps=1e-12)
    c._attn_implementation = "eager"
    m = randomize(BertModel(c, add_pooling_layer=False), 3)
    w = writer("bert", "bert")
    w.add_context_length(64), w.add_embedding_length(32), w.add_block_count(2), w.add_feed_forward_length(48), w.add_head_count(4)
    w.add_layer_norm_eps(1e-12), w.add_causal_attention(False), w.add_pooling_type(gguf.PoolingType.MEAN)
    add_vocab(w, "bert")
    s = m.state_dict()
    t = {"token_embd.weight": s["embeddings.word_embeddings.weight"], "position_embd.weight": s["embeddings.position_embeddings.weight"],
         "token_types.weight": s["embeddings.token_type_embeddings.weight"]}
    pairs = {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value", "attn_output": "attention.output.dense",
             "attn_output_norm": "attention.output.LayerNorm", "ffn_up": "intermediate.dense", "ffn_down": "output.dense",
             "layer_output_norm": "output.LayerNorm"}
    for x in ("weight", "bias"):
        t[f"token_embd_norm.{x}"] = s[f"embeddings.LayerNorm.{x}"]
        for i in range(2):
            for ours, theirs in pairs.items():
                t[f"blk.{i}.{ours}.{x}"] = s[f"encoder.layer.{i}.{theirs}.{x}"]
    finish(w, t)
    ids = torch.randint(5, 57, (20,)).tolist()
    hidden = m(input_ids=torch.tensor([[2] + ids + [3]])).last_hidden_state[0]
    row = lambda v: [round(float(x), 6) for x in v]
    save("bert", ids=ids, mean=row(hidden.mean(0)), cls=row(hidden[0]))


@torch.no_grad()
def lora():
    base = AutoModelForCausalLM.from_pretrained(FIXTURES / "triage-open", dtype=torch.float32, attn_implementation="eager").eval()
    rank, alpha, scale = 4, 8.0, 0.5
    torch.manual_seed(4)
    w = gguf.GGUFWriter(HERE / "lora.gguf", "llama")
    w.add_type("adapter"), w.add_string("adapter.type", "lora"), w.add_float32("adapter.lora.alpha", alpha)
    t = {}
    for i, layer in enumerate(base.model.layers):
        for name, linear in [("attn_v", layer.self_attn.v_proj), ("ffn_down", layer.mlp.down_proj)]:
            a = torch.randn(rank, linear.in_features) / linear.in_features ** 0.5
            b = torch.randn(linear.out_features, rank) * 0.1
            t[f"blk.{i}.{name}.weight.lora_a"], t[f"blk.{i}.{name}.weight.lora_b"] = a, b
            linear.weight += scale * alpha / rank * (b @ a)
    finish(w, t)
    ids = json.loads((FIXTURES / "reference/triage-open.json").read_text())["prompts"][0]["prompt_ids"]
    lp = torch.log_softmax(base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].to(torch.float64), -1)
    save("lora", ids=ids, scale=scale, last_logprobs=[round(float(v), 6) for v in lp])


if __name__ == "__main__":
    torch.set_num_threads(1)
    mamba(), gemma2(), bert(), lora()
