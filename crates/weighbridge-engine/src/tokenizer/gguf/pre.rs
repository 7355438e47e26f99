//! Pre-tokenizers of byte-level BPE: how llama.cpp cuts a text into words, by `tokenizer.ggml.pre`.
//!
//! The expressions are those of `src/llama-vocab.cpp` as they work there, which is not always as they
//! are written: its matcher has one class of letters (`\p{Lu}`, `\p{Ll}`, … are `\p{L}`), sees white
//! space beyond ASCII as `\s` only, never as a member of a range, and its tables are those of
//! Unicode 15.1.

use std::ops::Range;

use fancy_regex::{Regex, RegexBuilder};
use weighbridge_core::{Error, ErrorKind, Result};

/// How far a match may go back before it is given up: a text of many MB without a break gets there.
const BACKTRACK_LIMIT: usize = 100_000_000;

/// A known pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pre {
    /// Applied one after the other, each to the pieces that the one before left; what stands between
    /// two matches is a piece too.
    splits: &'static [&'static str],
    /// A word that is a token becomes it, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// BOS goes before a text where the file does not say otherwise.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CJK_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
const CJK_AND_MORE: &str = r"[[一-龥ࠀ-一가-퟿]&&[^\s]]+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TINY_AYA: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LINES: &str = r"[^\n]+|\n+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Threes of a number counted from its end, after [`UP_TO_NUMBER`]. The first of them takes in what
/// stands before it; later expressions cut that off again.
const THREES_FROM_THE_END: &str =
    r"\A(?>[^\p{N}]*)\p{N}{1,2}(?=(?>(?:\p{N}{3})*)\z)|(?>[^\p{N}]*)\p{N}{3}|[^\p{N}]+";
const UP_TO_NUMBER: &str = r"[^\p{N}]*\p{N}+|[^\p{N}]+";

/// Lines, of text that is not spelt byte by byte.
pub(super) const GEMMA4: Pre = Pre { splits: &[LINES], ignore_merges: false, add_bos: true };

/// The pre-tokenizer of a name; none for one that is unknown or of models that only embed.
pub(super) fn find(name: &str) -> Option<Pre> {
    let splits: &[&str] = match name {
        "default" => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &[LLAMA3],
        "jais-2" => &[JAIS2],
        "deepseek-llm" => &[
            r"[\r\n]",
            DEEPSEEK_LLM_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+\z",
            CJK_AND_MORE,
            r"\p{N}+",
        ],
        "deepseek-coder" => &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_MORE, r"\p{N}"],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
            &[r"\p{N}{1,3}", CJK_AND_KANA, DEEPSEEK3]
        }
        "spark2_5" => &[r"\p{N}{1,3}", CJK_AND_KANA, SPARK, r"\p{N}"],
        "youtu" => &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
        "falcon" => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => &[r"\p{N}", GPT2],
        "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" | "mpt" | "olmo"
        | "jais" | "trillion" | "granite-docling" => &[GPT2],
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
        | "solar-open" | "grok-2" => &[QWEN2],
        "qwen35" => &[QWEN35],
        "poro-chat" | "bloom" | "gpt3-finnish" => &[BLOOM],
        "viking" => &[BLOOM, r"\p{N}"],
        "tekken" => &[TEKKEN],
        "chameleon" => &[
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => &[GPT4O],
        "tiny_aya" | "cohere2moe" => &[UP_TO_NUMBER, THREES_FROM_THE_END, TINY_AYA],
        "kimi-k2" => &[KIMI],
        "superbpe" => &[r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))"],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
        "seed-coder" => &[SEED_CODER],
        "ufakzeka" => &[UFAKZEKA],
        "afmoe" => &[
            UP_TO_NUMBER,
            THREES_FROM_THE_END,
            "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
            DEEPSEEK3,
        ],
        "laguna" => &[LINES, QWEN2],
        "exaone-moe" => &[EXAONE_MOE],
        "minicpm5" => &[r"\p{N}{1,3}", MINICPM5],
        _ => return None,
    };
    let is_llama3 = matches!(
        name,
        "llama3"
            | "llama-v3"
            | "llama-bpe"
            | "falcon3"
            | "falcon-h1"
            | "pixtral"
            | "midm-2.0"
            | "lfm2"
    );
    Some(Pre {
        splits,
        ignore_merges: is_llama3
            || matches!(name, "tekken" | "youtu" | "glm4" | "glm5" | "minicpm5"),
        add_bos: is_llama3 || matches!(name, "tekken" | "chameleon"),
    })
}

/// Cuts texts into words.
#[derive(Debug)]
pub(super) struct Splitter(Vec<Regex>);

impl Splitter {
    pub(super) fn new(pre: &Pre) -> Result<Self> {
        let compile = |split: &&str| {
            let mut pattern = (*split).to_owned();
            for class in ["L", "M", "N", "P", "S"] {
                let known = format!(r"[\p{{{class}}}&&\p{{Age=15.1}}]");
                pattern = pattern.replace(&format!(r"\p{{{class}}}"), &known);
            }
            RegexBuilder::new(&pattern).backtrack_limit(BACKTRACK_LIMIT).build().map_err(|error| {
                Error::new(ErrorKind::ModelLoad, "a pre-tokenizer of this build is no expression")
                    .with("expression", split)
                    .with_source(error)
            })
        };
        Ok(Self(pre.splits.iter().map(compile).collect::<Result<_>>()?))
    }

    /// The words of a text, in order; together they are the text.
    pub(super) fn words<'a>(&self, text: &'a str) -> Result<Vec<&'a str>> {
        let mut words = vec![text];
        for regex in &self.0 {
            let mut cut = Vec::new();
            for word in words {
                split(regex, word, &mut cut)?;
            }
            words = cut;
        }
        Ok(words)
    }
}

fn split<'a>(regex: &Regex, text: &'a str, words: &mut Vec<&'a str>) -> Result<()> {
    let mut push = |range: Range<usize>| {
        if !range.is_empty() {
            words.push(&text[range]);
        }
    };
    let mut start = 0;
    for found in regex.find_iter(text) {
        let found = found.map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, "the text is too long to be cut into words")
                .with("n_bytes", text.len())
                .with_source(error)
        })?;
        push(start..found.start());
        push(found.range());
        start = found.end();
    }
    push(start..text.len());
    Ok(())
}
