//! Files whose header is in order and whose model is not: llama.cpp would fail or abort.

use weighbridge_models::gguf::{Gguf, KNOWN_ARCHITECTURES};

use crate::writer::{TOKENS, Writer, accepted_when, file, refused, refused_when};

#[test]
fn companions_of_models_are_told_apart() {
    refused_when(|w| w.set("general.type", "adapter"), &["an adapter (LoRA)", "not a model"]);
    refused_when(|w| w.set("general.type", "imatrix"), &["imatrix"]);
    refused_when(|w| w.set("general.type", "mmproj"), &["mmproj"]);
    refused_when(|w| w.set("general.architecture", "clip"), &["mmproj"]);
    refused_when(|w| w.set("general.architecture", "controlvector"), &["control vector"]);
    refused(&Writer::vocabulary().bytes(), &["a vocabulary but no tensors"]);
    refused_when(|w| w.unset("tokenizer.ggml.model"), &["no vocabulary", "tokenizer.ggml.model"]);
}

#[test]
fn the_architecture_is_known() {
    refused_when(|w| w.set("general.architecture", "lama"), &["architecture `lama`"]);
    refused_when(|w| w.unset("general.architecture"), &["no `general.architecture`"]);
    assert!(KNOWN_ARCHITECTURES.is_sorted());
}

#[test]
fn values_have_the_types_that_engines_read() {
    refused_when(
        |w| w.set("llama.block_count", 1u64),
        &["type u64 as `llama.block_count`", "u32 is expected"],
    );
    refused_when(|w| w.set("general.name", 7u32), &["type u32 as `general.name`", "str"]);
    refused_when(|w| w.set("general.architecture", &[1u8][..]), &["array of u8", "str"]);
    refused_when(
        |w| w.set("llama.attention.head_count", &[2f32][..]),
        &["array of f32 as `llama.attention.head_count`", "u32 or array of u32 or array of i32"],
    );
    refused_when(|w| w.set("llama.rope.freq_base", 1e4f64), &["`llama.rope.freq_base`", "f32"]);
    refused_when(
        |w| w.set("tokenizer.ggml.tokens", "a"),
        &["`tokenizer.ggml.tokens`", "array of str"],
    );
    refused_when(
        |w| w.set("tokenizer.ggml.bos_token_id", 1i32),
        &["`tokenizer.ggml.bos_token_id`"],
    );
    refused_when(|w| w.set("tokenizer.ggml.add_bos_token", 1u8), &["add_bos_token", "u8", "bool"]);
    refused_when(
        |w| w.set("tokenizer.ggml.token_type", &[1u32; 10][..]),
        &["token_type", "array of i32"],
    );
    refused_when(|w| w.set("split.count", 1u32), &["`split.count`", "u16"]);
}

#[test]
fn layers_are_bounded_and_arrays_have_one_value_each() {
    for n in [0u32, 513] {
        refused_when(
            |w| w.set("llama.block_count", n),
            &["llama.block_count", &n.to_string(), "1 to 512"],
        );
    }
    refused_when(|w| w.unset("llama.block_count"), &["no `llama.block_count`"]);
    for name in ["attention.head_count", "attention.head_count_kv", "feed_forward_length"] {
        let key = format!("llama.{name}");
        refused_when(|w| w.set(&key, &[2u32, 2][..]), &["2 values", &key, "1 layers"]);
    }
    refused_when(
        |w| w.set("llama.nextn_predict_layers", 2u32),
        &["nextn_predict_layers", "1 layers"],
    );
    refused_when(|w| w.set("llama.context_length", 0u32), &["0 as `llama.context_length`"]);
    refused_when(|w| w.set("llama.embedding_length", 0u32), &["0 as `llama.embedding_length`"]);
    refused_when(|w| w.set("llama.rope.scaling.type", "banana"), &["`banana`", "yarn"]);
}

#[test]
fn expert_counts_are_consistent() {
    let experts = |total: u32, used: u32, groups: u32, groups_used: u32, expected: &str| {
        refused_when(
            |w| {
                w.set("llama.expert_count", total);
                w.set("llama.expert_used_count", used);
                w.set("llama.expert_group_count", groups);
                w.set("llama.expert_group_used_count", groups_used);
            },
            &["expert", expected],
        );
    };
    experts(4, 5, 0, 0, "more are used");
    experts(513, 5, 0, 0, "at most 512");
    experts(4, 0, 0, 0, "none is used");
    experts(0, 1, 0, 0, "more are used");
    experts(0, 0, 2, 0, "2 groups have none");
    experts(4, 2, 4, 1, "4 groups are too many");
    experts(8, 2, 3, 1, "not of one size");
    experts(8, 2, 4, 0, "0 of 4 groups");
    experts(8, 2, 4, 4, "4 of 4 groups");
    refused_when(
        |w| {
            w.set("llama.expert_count", 4u32);
            w.set("llama.expert_used_count", &[-1i32][..]);
        },
        &["4294967295", "more are used"],
    );
}

#[test]
fn vocabularies_add_up() {
    refused_when(
        |w| w.set("tokenizer.ggml.scores", &[0f32; 9][..]),
        &["10 tokens", "9 of", "scores"],
    );
    refused_when(|w| w.set("tokenizer.ggml.token_type", &[1i32; 11][..]), &["11 of", "token_type"]);
    refused_when(|w| w.unset("tokenizer.ggml.tokens"), &["no vocabulary", "tokens"]);
    refused_when(|w| w.set("tokenizer.ggml.model", "sentence"), &["tokenizer `sentence`"]);
    refused_when(|w| w.set("tokenizer.ggml.model", "gpt2"), &["tokenizer.ggml.merges"]);
    refused_when(
        |w| w.set("tokenizer.ggml.eos_token_id", 10u32),
        &["10 as `tokenizer.ggml.eos_token_id`", "10 tokens"],
    );
    refused_when(
        |w| {
            w.set("tokenizer.ggml.model", "t5");
            w.set("tokenizer.ggml.precompiled_charsmap", &[9u8, 0, 0, 0, 1][..]);
        },
        &["precompiled_charsmap", "5 bytes"],
    );
}

#[test]
fn tokens_are_unique_as_the_engine_sees_them() {
    let with = |id: usize, text: &'static str, expected: &[&str]| {
        let mut tokens = TOKENS.to_vec();
        tokens[id] = text;
        refused_when(|w| w.set("tokenizer.ggml.tokens", tokens), expected);
    };
    with(8, "ab", &["token `ab` twice", "7 and 8"]);
    with(8, "ab\0c", &["twice", "7 and 8"]);
    let mut tokens = TOKENS.to_vec();
    tokens[4] = "[EMPTY_5]";
    tokens[5] = "";
    refused_when(|w| w.set("tokenizer.ggml.tokens", tokens), &["twice", "4 and 5"]);
}

#[test]
fn line_breaks_and_bytes_can_be_tokenized() {
    let mut tokens = TOKENS.to_vec();
    tokens[3] = "<0x0B>";
    refused_when(
        |w| w.set("tokenizer.ggml.tokens", tokens.clone()),
        &["no token for a line break (`<0x0A>`)"],
    );
    refused_when(|w| w.set("tokenizer.ggml.model", "rwkv"), &["line break"]);
    refused_when(
        |w| {
            w.set("tokenizer.ggml.model", "bert");
            w.set("tokenizer.ggml.bos_token_id", 1u32);
        },
        &["token 3 of type byte", "`bert`"],
    );
    for (model, line_break) in [("llama", "\n"), ("rwkv", "\\n")] {
        let mut tokens = tokens.clone();
        tokens[3] = line_break;
        accepted_when(|w| {
            w.set("tokenizer.ggml.model", model);
            w.set("tokenizer.ggml.tokens", tokens);
        });
    }
}

#[test]
fn a_bos_token_that_prompts_begin_with_exists() {
    let with = |model: &'static str, pre: &'static str, add: Option<bool>| {
        move |w: &mut Writer| {
            w.set("tokenizer.ggml.model", model);
            w.set("tokenizer.ggml.pre", pre);
            w.set("tokenizer.ggml.merges", vec!["a b"]);
            w.set("tokenizer.ggml.token_type", &[1i32; 10][..]);
            w.unset("tokenizer.ggml.bos_token_id");
            if let Some(add) = add {
                w.set("tokenizer.ggml.add_bos_token", add);
            }
        }
    };
    let expected = &["BOS", "tokenizer.ggml.bos_token_id"];
    refused_when(with("bert", "default", Some(false)), expected);
    refused_when(with("t5", "default", Some(true)), expected);
    refused_when(with("gpt2", "llama-bpe", None), expected);
    refused_when(with("gpt2", "gpt-2", Some(true)), expected);
    refused_when(with("gemma4", "default", Some(false)), expected);
    for accepted in [
        with("llama", "default", None),
        with("t5", "default", None),
        with("gpt2", "gpt-2", None),
        with("gpt2", "llama-bpe", Some(false)),
    ] {
        accepted_when(accepted);
    }
}

#[test]
fn the_embedding_fits_width_and_vocabulary() {
    refused_when(|w| w.tensors[0].name = "embd".into(), &["no tensor `token_embd.weight`"]);
    refused_when(
        |w| w.tensors[0].dims = vec![10, 8],
        &["[10, 8]", "token_embd.weight", "[8, 10]", "llama.embedding_length"],
    );
    refused_when(|w| w.tensors[0].dims = vec![8, 5, 2], &["[8, 5, 2]", "[8, 10]"]);
}

#[test]
fn a_vocabulary_alone_is_held_to_its_own_rules() {
    let mut writer = Writer::vocabulary();
    let (_folder, path) = file(&writer.bytes());
    let gguf = Gguf::open_vocab_only(&path).unwrap();
    assert_eq!(gguf.strs("tokenizer.ggml.tokens").unwrap().len(), TOKENS.len());
    writer.set("tokenizer.ggml.tokens", vec!["a", "a"]);
    writer.unset("tokenizer.ggml.scores");
    writer.unset("tokenizer.ggml.token_type");
    let (_folder, path) = file(&writer.bytes());
    let error = Gguf::open_vocab_only(&path).unwrap_err().to_string();
    assert!(error.contains("token `a` twice"), "{error}");
}
