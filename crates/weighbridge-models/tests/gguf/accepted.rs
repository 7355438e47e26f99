//! Files that are whole: what gguf-py wrote is what is read.

use std::path::{Path, PathBuf};

use weighbridge_models::gguf::{GgmlType, Gguf};

use crate::writer::{Writer, accepted_when, file};

/// Written by `data/make.py`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/data").join(name)
}

#[test]
fn every_type_of_value_is_read() {
    let gguf = Gguf::open(&data("types.gguf")).unwrap();
    assert!(Gguf::is_gguf(&data("types.gguf")));
    assert_eq!((gguf.arch(), gguf.name(), gguf.license()), ("llama", "Value Types", Some("mit")));
    assert_eq!(gguf.quantization(), "Q4_K_M");
    assert_eq!(gguf.arch_key("block_count"), "llama.block_count");
    assert_eq!(gguf.u64s(&gguf.arch_key("attention.head_count")), Some(vec![4, 2]));

    assert_eq!(gguf.u64("t.u8"), Some(255));
    assert_eq!(gguf.i64("t.i8"), Some(-128));
    assert_eq!(gguf.u64("t.u16"), Some(65_535));
    assert_eq!(gguf.i64("t.i16"), Some(-32_768));
    assert_eq!(gguf.u64("t.u32"), Some(4_294_967_295));
    assert_eq!(gguf.i64("t.i32"), Some(-2_147_483_648));
    assert_eq!(gguf.u64("t.u64"), Some(u64::MAX));
    assert_eq!(gguf.i64("t.i64"), Some(i64::MIN));
    assert_eq!(gguf.f64("t.f32"), Some(f64::from(0.1f32)));
    assert_eq!(gguf.f64("t.f64"), Some(0.1));
    assert_eq!((gguf.bool("t.true"), gguf.bool("t.false")), (Some(true), Some(false)));
    assert_eq!(gguf.str("t.str"), Some("größer"));
    assert_eq!(gguf.i64s("t.ints"), Some(vec![-1, 0, 2_147_483_647]));
    assert_eq!(gguf.f32s("t.floats"), Some(vec![0.5, -0.25]));
    assert_eq!(gguf.bools("t.bools"), Some(vec![true, false, true]));
    let tokens = gguf.strs("tokenizer.ggml.tokens").unwrap();
    assert_eq!(*tokens[3], [0xFF, 0xFE]);
    assert_eq!(*tokens[4], *"é".as_bytes());
    assert_eq!(gguf.strs("t.strs").unwrap()[0].len(), 0);
}

#[test]
fn another_type_is_none() {
    let gguf = Gguf::open(&data("types.gguf")).unwrap();
    assert_eq!(gguf.u64("t.i8"), None, "negative");
    assert_eq!(gguf.i64("t.u64"), None, "too large");
    assert_eq!(gguf.u64("t.f32"), None);
    assert_eq!(gguf.u64("t.true"), None);
    assert_eq!(gguf.u64("t.ints"), None, "an array");
    assert_eq!(gguf.u64s("t.ints"), None, "one is negative");
    assert_eq!(gguf.i64s("t.u8"), None, "no array");
    assert_eq!(gguf.f32s("t.ints"), None);
    assert_eq!(gguf.f64("t.i8"), Some(-128.0), "any number");
    assert_eq!(gguf.f64("t.str"), None);
    assert_eq!(gguf.str("t.strs"), None);
    assert!(gguf.strs("t.str").is_none());
    assert_eq!(gguf.str("none"), None);
    assert!(!gguf.contains("none") && gguf.contains("t.u8"));
    assert!(gguf.keys().any(|key| key == "t.u8"));
}

#[test]
fn tensors_are_read_as_they_were_written() {
    let mut gguf = Gguf::open(&data("types.gguf")).unwrap();
    let tensors: Vec<_> = gguf
        .tensors()
        .map(|t| (t.name.as_str(), t.dims.as_slice(), t.dtype, t.offset, t.n_bytes))
        .collect();
    // As gguf-py's own reader lists them.
    let expected: [(&str, &[u64], GgmlType, u64, u64); 4] = [
        ("half", &[5], GgmlType::F16, 2144, 10),
        ("last", &[3], GgmlType::I32, 2400, 12),
        ("quantized", &[32, 6], GgmlType::Q8_0, 2176, 204),
        ("token_embd.weight", &[32, 6], GgmlType::F32, 1376, 768),
    ];
    assert_eq!(tensors, expected);
    assert_eq!(gguf.n_params(), 5 + 3 + 192 + 192);
    assert_eq!(gguf.n_bytes(), 2432);
    let mut bytes = vec![1, 2, 3];
    gguf.read("last", &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0]);
    gguf.read("token_embd.weight", &mut bytes).unwrap();
    let numbers: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(numbers.iter().enumerate().all(|(idx, number)| *number == idx as f32));
    let error = gguf.read("none", &mut bytes).unwrap_err().to_string();
    assert!(error.contains("no tensor `none`"), "{error}");
    // As sha256sum prints it.
    let mut n_seen = 0;
    let hash = gguf.sha256(&mut |n| {
        n_seen = n;
        Ok(())
    });
    assert_eq!(hash.unwrap(), "13ba5cd74a3e4998cb67eaf358b73a6bc19787bc8754c41f617a2bf4a169ccbf");
    assert_eq!(n_seen, 2432);
}

#[test]
fn whole_models_are_accepted() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let quantizations = ["triage-open-f16", "triage-open-q8_0"].map(|name| {
        let gguf = Gguf::open(&fixtures.join("triage-open").join(format!("{name}.gguf"))).unwrap();
        assert_eq!((gguf.arch(), gguf.n_params()), ("llama", 430_944));
        gguf.quantization()
    });
    assert_eq!(quantizations, ["F16", "Q8_0"]);
}

#[test]
fn what_engines_accept_is_accepted() {
    accepted_when(|_| {});
    accepted_when(|w| w.version = 2);
    accepted_when(|w| w.set("llama.attention.head_count", &[2u32][..]));
    accepted_when(|w| w.set("tokenizer.ggml.scores", &[0i32; 10][..]));
    accepted_when(|w| w.set("tokenizer.ggml.seperator_token_id", u32::MAX));
    accepted_when(|w| w.set("general.name", ""));
    accepted_when(|w| w.tensors[0].dims = vec![8, 10, 1, 1]);
    accepted_when(|w| {
        w.set("llama.expert_count", 8u32);
        w.set("llama.expert_used_count", 2u32);
    });
    accepted_when(|w| {
        w.set("tokenizer.ggml.model", "none");
        w.unset("tokenizer.ggml.tokens");
    });
    let mut writer = Writer::llama();
    writer.set("general.alignment", 64u32);
    writer.alignment = 64;
    writer.n_data = 0;
    for tensor in std::mem::take(&mut writer.tensors) {
        writer.tensor(&tensor.name, &tensor.dims);
    }
    writer.tensor("a scalar", &[]);
    let mut bytes = writer.bytes();
    bytes.extend([0; 100]);
    let (_folder, path) = file(&bytes);
    assert_eq!(Gguf::open(&path).unwrap().tensor("a scalar").unwrap().n_elements(), 1);
}

#[test]
fn names_without_metadata_come_from_the_file() {
    let gguf = accepted_when(|w| {
        w.unset("general.name");
        w.tensor_of("many", &[256, 2], 12, 288);
    });
    assert_eq!(gguf.name(), "model");
    assert_eq!(gguf.quantization(), "F32", "most elements");
    let gguf = accepted_when(|w| w.tensor_of("many", &[256, 64], 12, 64 * 144));
    assert_eq!(gguf.quantization(), "Q4_K");
}

/// As `ggml_type_size` and `ggml_blck_size` of ggml 0.25.3 return them, by id.
#[test]
fn types_have_their_sizes() {
    let sizes: Vec<_> = GgmlType::ALL
        .iter()
        .map(|dtype| format!("{dtype}:{}/{}", dtype.type_size(), dtype.block_size()))
        .collect();
    assert_eq!(
        sizes.join(" "),
        "F32:4/1 F16:2/1 Q4_0:18/32 Q4_1:20/32 Q5_0:22/32 Q5_1:24/32 Q8_0:34/32 Q8_1:36/32 \
         Q2_K:84/256 Q3_K:110/256 Q4_K:144/256 Q5_K:176/256 Q6_K:210/256 Q8_K:292/256 \
         IQ2_XXS:66/256 IQ2_XS:74/256 IQ3_XXS:98/256 IQ1_S:50/256 IQ4_NL:18/32 IQ3_S:110/256 \
         IQ2_S:82/256 IQ4_XS:136/256 I8:1/1 I16:2/1 I32:4/1 I64:8/1 F64:8/1 IQ1_M:56/256 \
         BF16:2/1 TQ1_0:54/256 TQ2_0:66/256 MXFP4:17/32 NVFP4:36/64 Q1_0:18/128 Q2_0:18/64"
    );
}
