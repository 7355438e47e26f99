//! GGUF vocabularies against llama.cpp's own tokens: `fixtures/tokenizers/`.

use serde_json::{Value, json};
use weighbridge_core::{ErrorKind, Sampling};
use weighbridge_engine::tokenizer::ModelText;
use weighbridge_engine::tokenizer::gguf::{GgufVocab, load};
use weighbridge_engine::tokens::{Piece, TokenKind};

use crate::support::fixture;

/// Files with llama.cpp's tokens of every text, with and without control tokens.
const REFERENCES: [&str; 6] =
    ["byte-level", "sentencepiece", "sentencepiece-phi3", "gemma4", "harmony", "fill-in"];

fn reference(name: &str) -> Value {
    let path = fixture("tokenizers").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers<T>(value: &Value, number: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    Some(value.as_array()?.iter().map(|value| number(value).unwrap()).collect())
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value, |id| Some(id.as_u64()? as u32)).unwrap()
}

fn vocab(value: &Value) -> GgufVocab {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let id = |name: &str| value[name].as_u64().map(|id| id as u32);
    let texts = |name: &str| numbers(&value[name], |text| Some(text.as_str()?.as_bytes().to_vec()));
    GgufVocab {
        name: text("name"),
        model: text("model").unwrap(),
        pre: text("pre"),
        tokens: texts("tokens").unwrap(),
        scores: numbers(&value["scores"], |score| Some(score.as_f64()? as f32)),
        token_types: numbers(&value["token_types"], |kind| Some(kind.as_i64()? as i32)),
        merges: texts("merges"),
        bos_id: id("bos_id"),
        eos_id: id("eos_id"),
        eot_id: id("eot_id"),
        eom_id: id("eom_id"),
        unk_id: id("unk_id"),
        sep_id: id("sep_id"),
        pad_id: id("pad_id"),
        fim_pre_id: id("fim_pre_id"),
        fim_suf_id: id("fim_suf_id"),
        fim_mid_id: id("fim_mid_id"),
        fim_pad_id: id("fim_pad_id"),
        fim_rep_id: id("fim_rep_id"),
        fim_sep_id: id("fim_sep_id"),
        add_bos: value["add_bos"].as_bool(),
        add_space_prefix: value["add_space_prefix"].as_bool(),
        ..GgufVocab::default()
    }
}

fn encode(text: &ModelText, input: &str, parse_special: bool) -> Vec<u32> {
    let mut out = Vec::new();
    text.encoder.encode(input, parse_special, &mut out).unwrap();
    out
}

fn decode(text: &ModelText, ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| text.table.bytes_of(id).to_vec()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn texts_have_the_tokens_of_llama_cpp() {
    for name in REFERENCES {
        let reference = reference(name);
        let text = load(vocab(&reference["vocab"])).unwrap();
        let cases = reference["cases"].as_array().unwrap();
        assert!(cases.len() >= 30);
        for case in cases {
            let input = case["text"].as_str().unwrap();
            assert_eq!(encode(&text, input, false), ids(&case["plain"]), "{name} {input:?}");
            assert_eq!(encode(&text, input, true), ids(&case["special"]), "{name} {input:?}");
        }
    }
}

#[test]
fn tokens_have_the_bytes_of_llama_cpp_and_end_and_begin_texts_as_there() {
    for name in REFERENCES {
        let reference = reference(name);
        let table = load(vocab(&reference["vocab"])).unwrap().table;
        assert_eq!(table.end_ids, ids(&reference["ends"]), "{name}");
        assert_eq!(table.bos_id.map(u64::from), reference["bos"].as_u64(), "{name}");
        let pieces = reference["pieces"].as_array().unwrap();
        assert_eq!(table.len(), pieces.len());
        for (id, piece) in (0u32..).zip(pieces) {
            let bytes = hex::encode(table.bytes_of(id));
            let expected = if table.is_end(id) { "" } else { piece.as_str().unwrap() };
            assert_eq!(bytes, expected, "{name} {id}");
            assert_eq!(table.kind(id) == TokenKind::Text, !expected.is_empty(), "{name} {id}");
        }
    }
}

#[test]
fn every_pre_tokenizer_cuts_as_in_llama_cpp() {
    let base = reference("byte-level");
    let reference = reference("pre-tokenizers");
    let names = reference["pres"].as_array().unwrap();
    for (n, name) in names.iter().enumerate() {
        let name = name.as_str().unwrap();
        let text = load(GgufVocab { pre: Some(name.to_owned()), ..vocab(&base["vocab"]) }).unwrap();
        assert_eq!(text.table.bos_id.map(u64::from), reference["bos"][name].as_u64(), "{name}");
        for case in reference["cases"].as_array().unwrap() {
            let input = case["text"].as_str().unwrap();
            let which = case["which"].as_str().unwrap().as_bytes()[n] - b'A';
            let expected = ids(&case["ids"][usize::from(which)]);
            assert_eq!(encode(&text, input, false), expected, "{name} {input:?}");
        }
    }
}

#[test]
fn texts_come_back_whole_and_control_tokens_come_from_markup_only() {
    for name in ["byte-level", "sentencepiece", "gemma4"] {
        let reference = reference(name);
        let text = load(vocab(&reference["vocab"])).unwrap();
        let control = text.encoder.special_texts().iter().max_by_key(|s| s.len()).unwrap().clone();
        assert_eq!(encode(&text, &control, true).len(), 1);
        let input = format!("a{control}b \u{2764}\u{fe0f}\n<0x0A>");
        let prefix = if name == "sentencepiece" { " " } else { "" };
        assert_eq!(decode(&text, &encode(&text, &input, false)), format!("{prefix}{input}"));

        let pieces = [Piece::Markup(&control), Piece::Text(&control), Piece::Markup("x")];
        let mut out = Vec::new();
        text.encoder.encode_pieces(&pieces, &mut out).unwrap();
        assert_eq!(out[0], encode(&text, &control, true)[0]);
        assert!(out[1..].iter().all(|id| text.table.kind(*id) == TokenKind::Text), "{out:?}");
        assert_eq!(decode(&text, &out[1..]), format!("{prefix}{control}x"));
    }
}

#[test]
fn the_hash_is_the_documented_one_and_covers_what_decides_about_tokens() {
    for name in REFERENCES {
        let reference = reference(name);
        let text = load(vocab(&reference["vocab"])).unwrap();
        assert_eq!(text.tokenizer_sha256, reference["sha256"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn variables_template_and_settings_are_those_of_the_file() {
    let mut default_sampling = Sampling::default();
    default_sampling.temperature = Some(0.5);
    default_sampling.top_p = Some(2.0);
    default_sampling.top_k = Some(0);
    let text = load(GgufVocab {
        chat_template: Some("T".to_owned()),
        default_sampling,
        ..vocab(&reference("byte-level")["vocab"])
    })
    .unwrap();
    assert_eq!(text.chat_template.as_deref(), Some("T"));
    let mut kept = Sampling::default();
    kept.temperature = Some(0.5);
    assert_eq!(text.default_sampling, kept, "what no request may ask for is no default");
    let variables = text.encoder.template_variables();
    let of = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
    assert_eq!(of("bos_token"), Some("<|endoftext|>"));
    assert_eq!(of("eos_token"), Some("<|im_end|>"));
    assert_eq!(of("unk_token"), None);
}

#[test]
fn broken_and_unknown_vocabularies_are_refused_by_name() {
    let good = vocab(&reference("byte-level")["vocab"]);
    let refused = |change: &dyn Fn(&mut GgufVocab)| {
        let mut vocab = good.clone();
        change(&mut vocab);
        let error = load(vocab).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ModelLoad);
        error.to_string()
    };
    let bert = refused(&|vocab| vocab.model = "bert".to_owned());
    assert!(bert.contains("`tokenizer.ggml.model` is `bert`"), "{bert}");
    assert!(bert.contains("llama-cpp:PATH"), "{bert}");
    let pre = refused(&|vocab| vocab.pre = Some("next-year".to_owned()));
    assert!(pre.contains("`tokenizer.ggml.pre` is `next-year`"), "{pre}");
    let merges = refused(&|vocab| vocab.merges = None);
    assert!(merges.contains("tokenizer.ggml.merges"), "{merges}");
    let twice = refused(&|vocab| vocab.tokens[7] = vocab.tokens[9].clone());
    assert!(twice.contains("a token twice"), "{twice}");
    let short = refused(&|vocab| vocab.token_types = Some(vec![1; 3]));
    assert!(short.contains("tokenizer.ggml.token_type"), "{short}");
    let nan = refused(&|vocab| vocab.scores = Some(vec![f32::NAN; vocab.tokens.len()]));
    assert!(nan.contains("tokenizer.ggml.scores"), "{nan}");
    let beyond = refused(&|vocab| vocab.fim_sep_id = Some(1_000_000));
    assert!(beyond.contains("tokenizer.ggml.fim_sep_token_id"), "{beyond}");
    let byte = refused(&|vocab| vocab.token_types.as_mut().unwrap()[0] = 6);
    assert!(byte.contains("<0x0A>"), "{byte}");
    let bos = refused(&|vocab| (vocab.bos_id, vocab.add_bos) = (None, Some(true)));
    assert!(bos.contains("tokenizer.ggml.bos_token_id"), "{bos}");
}

#[test]
fn what_a_vocabulary_cannot_express_is_an_error() {
    let tokens = json!({"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": []});
    let text = load(vocab(&tokens)).unwrap();
    assert_eq!(encode(&text, "abba", false), [0, 1, 1, 0]);
    let error = text.encoder.encode("abc", false, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("cannot express"), "{error}");
}
