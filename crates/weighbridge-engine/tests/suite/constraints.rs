//! Constraints without an engine: languages, masks, errors.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use weighbridge_core::{Constraint, ErrorKind, Result, Sampling};
use weighbridge_engine::constraint::{ConstraintFactory, ConstraintState};
use weighbridge_engine::sampler::{Sampler, SamplerParams};
use weighbridge_engine::tokenizer::load_folder;
use weighbridge_engine::tokens::{TokenEncoder, TokenKind, TokenTable};

use crate::support::fixture;

/// A model that likes all tokens equally, and end ids a little more.
struct Noise {
    factory: ConstraintFactory,
    table: Arc<TokenTable>,
}

/// What a walk gave.
#[derive(Debug, PartialEq)]
struct Walk {
    tokens: Vec<u32>,
    text: String,
    is_ended: bool,
    n_rows: usize,
}

const MAX_TOKENS: usize = 600;

impl Noise {
    fn fixture() -> Self {
        let text = load_folder(&fixture("triage-open")).unwrap();
        let table = Arc::clone(&text.table);
        Self { factory: ConstraintFactory::new(Arc::clone(&table), text.encoder), table }
    }

    fn compile(&self, constraint: &Constraint) -> ConstraintState {
        self.factory.compile(constraint).unwrap_or_else(|e| panic!("{constraint:?}: {e}"))
    }

    /// Draws a completion, with forced tokens taken at once or one by one through their masks.
    fn walk(&self, constraint: &Constraint, seed: u64, takes_forced: bool) -> Walk {
        let mut state = self.compile(constraint);
        let mut sampling = Sampling::default();
        sampling.seed = Some(seed);
        let params = SamplerParams::resolve(&sampling, &Sampling::default());
        let mut sampler = Sampler::new(params, &[]);
        let (mut tokens, mut n_rows, mut is_ended) = (Vec::new(), 0, false);
        while !is_ended && tokens.len() < MAX_TOKENS {
            let mut rng = ChaCha8Rng::seed_from_u64(seed << 16 | tokens.len() as u64);
            let mut row: Vec<f32> =
                (0..self.table.len()).map(|_| (rng.next_u32() % 1024) as f32 / 128.0).collect();
            for id in &self.table.end_ids {
                row[*id as usize] = 10.0;
            }
            n_rows += 1;
            let mask = state.mask().unwrap().clone();
            let id = sampler.sample(&row, tokens.len() as u32, &self.table, Some(&mask)).unwrap();
            if self.table.is_end(id) {
                is_ended = true;
                break;
            }
            tokens.push(id);
            state.commit(id).unwrap();
            if takes_forced {
                let forced = state.take_forced().unwrap();
                for id in &forced {
                    sampler.force(*id, 0, &self.table).unwrap();
                }
                tokens.extend(forced);
            }
            is_ended = state.is_complete();
        }
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|id| self.table.bytes_of(*id)).copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Walk { tokens, text, is_ended, n_rows }
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"enum": ["billing", "bug", 7, null, {"a": [1]}]}),
        json!({"const": "say \"é🙂\"\n"}),
        json!({"type": "object", "properties": {
            "label": {"enum": ["billing", "bug", "feature"]},
            "urgent": {"type": "boolean"},
            "score": {"type": "integer", "minimum": -3, "maximum": 12}},
            "required": ["label", "urgent", "score"], "additionalProperties": false}),
        json!({"type": "object", "properties": {
            "a": {"type": "string", "minLength": 2, "maxLength": 5},
            "b": {"type": ["null", "integer"], "multipleOf": 5, "minimum": 0, "maximum": 100}},
            "required": ["b"], "additionalProperties": {"type": "boolean"}}),
        json!({"type": "array", "items": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2},
            "minItems": 1, "maxItems": 4}),
        json!({"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": false}),
        json!({"anyOf": [{"type": "string", "pattern": "^[a-c]+[0-9]?$", "maxLength": 6},
            {"type": "string", "format": "uuid"}, {"type": "boolean"}]}),
        json!({"oneOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]}),
        json!({"allOf": [{"type": "object", "properties": {"x": {"type": "integer"}},
            "required": ["x"]}, {"properties": {"x": {"minimum": 5, "maximum": 6}},
            "additionalProperties": false}]}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "v": {"type": "integer", "minimum": 0, "maximum": 9},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
            "required": ["v", "next"], "additionalProperties": false}}}),
        json!({"type": "object", "patternProperties": {"^k[0-9]$": {"type": "integer", "minimum": 0,
            "maximum": 5}}, "additionalProperties": false, "maxProperties": 3}),
        json!({"type": "string", "format": "ipv4"}),
        json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "additionalProperties": false, "minProperties": 1}),
    ]
}

#[test]
fn every_completion_is_valid_under_its_schema() {
    let noise = Noise::fixture();
    for schema in schemas() {
        let constraint = Constraint::JsonSchema(schema.clone());
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let mut n_ended = 0;
        for seed in 0..40 {
            let walk = noise.walk(&constraint, seed, true);
            if walk.is_ended {
                n_ended += 1;
                let value: Value = serde_json::from_str(&walk.text)
                    .unwrap_or_else(|e| panic!("{schema}: {:?}: {e}", walk.text));
                assert!(validator.is_valid(&value), "{schema}: {:?}", walk.text);
            }
            assert_eq!(
                Walk { n_rows: 0, ..noise.walk(&constraint, seed, false) },
                Walk { n_rows: 0, ..walk },
                "{schema}: forced tokens change nothing"
            );
        }
        assert!(n_ended >= 24, "{schema}: {n_ended} of 40 ended within {MAX_TOKENS} tokens");
    }
}

#[test]
fn every_completion_matches_its_regular_expression_whole() {
    let noise = Noise::fixture();
    for pattern in [
        "^[A-Z][a-z]{1,5}( [a-z]{2})?$",
        r"\d{3}-\d{2}|[é🙂]{1,3}",
        r"(/[a-z/]{0,4}\\){1,2}",
        r#""(\\"|[^"\\]){0,5}""#,
        "a*",
        r"\$\$",
        "(?i:yes|no)",
        "",
        "é|è",
    ] {
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        for seed in 0..30 {
            let walk = noise.walk(&Constraint::Regex(pattern.to_owned()), seed, seed % 2 == 0);
            assert!(walk.is_ended && whole.is_match(&walk.text), "{pattern}: {walk:?}");
        }
    }
}

#[test]
fn every_completion_is_one_of_the_choices_and_each_is_possible() {
    let noise = Noise::fixture();
    let choices = ["a", "ab", "", "\"q\"\\n\n", "é", "è🙂", "yes", "yes please", "/x/ | \"y\""];
    let choices: Vec<String> = choices.iter().map(|s| (*s).to_owned()).collect();
    let constraint = Constraint::Choice(choices.clone());
    for choice in &choices {
        let mut state = noise.compile(&constraint);
        let mut rest = choice.as_bytes();
        while !rest.is_empty() {
            let mask = state.mask().unwrap();
            let goes_on = |id: &u32| {
                let bytes = noise.table.bytes_of(*id);
                mask.allows(*id) && !bytes.is_empty() && rest.starts_with(bytes)
            };
            let id = (0..noise.table.len() as u32).find(goes_on).unwrap();
            state.commit(id).unwrap();
            rest = &rest[noise.table.bytes_of(id).len()..];
        }
        let may_end = state.is_complete() || {
            let mask = state.mask().unwrap();
            noise.table.end_ids.iter().all(|id| mask.allows(*id))
        };
        assert!(may_end, "{choice:?}");
    }
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        seen.insert(noise.walk(&constraint, seed, true).text);
    }
    assert!(seen.iter().all(|text| choices.contains(text)), "{seen:?}");
    assert!(seen.len() >= 4, "{seen:?}");
}

#[test]
fn a_lark_grammar_is_kept() {
    let noise = Noise::fixture();
    let grammar = "start: item (\",\" item){0,3}\nitem: \"(\" start \")\" | /[0-9]/\n";
    for seed in 0..40 {
        let walk = noise.walk(&Constraint::Lark(grammar.to_owned()), seed, true);
        if walk.is_ended {
            let depth = walk.text.chars().try_fold(0i32, |depth, c| match c {
                '(' => Some(depth + 1),
                ')' => (depth > 0).then_some(depth - 1),
                '0'..='9' | ',' => Some(depth),
                _ => None,
            });
            assert_eq!(depth, Some(0), "{walk:?}");
        }
    }
}

#[test]
fn forced_text_is_written_in_the_encoder_s_tokens_and_costs_no_rows() {
    let noise = Noise::fixture();
    let text = "{\"category\": \"billing\", \"urgent\": ";
    let constraint = Constraint::Choice(vec![format!("{text}true"), format!("{text}false")]);
    let walk = noise.walk(&constraint, 3, true);
    let mut state = noise.compile(&constraint);
    let first = state.mask().unwrap().only().unwrap();
    state.commit(first).unwrap();
    let forced = state.take_forced().unwrap();
    assert!(forced.len() > 5, "{forced:?}");
    let mut expected = Vec::new();
    load_folder(&fixture("triage-open"))
        .unwrap()
        .encoder
        .encode(&walk.text, false, &mut expected)
        .unwrap();
    assert_eq!(walk.tokens[..forced.len()], expected[..forced.len()]);
    assert!(walk.n_rows < walk.tokens.len() / 2, "{walk:?}");
}

/// Tokens of the brute-force vocabulary; the last is the end.
fn tiny_tokens() -> Vec<&'static [u8]> {
    vec![b"a", b"b", b"ab", b"ba", b"aab", "é".as_bytes(), b"\xc3", b"\xa9", b"b\xc3", b"bb", b""]
}

#[derive(Debug)]
struct LongestFirst;

impl TokenEncoder for LongestFirst {
    fn encode(&self, text: &str, _parse_special: bool, out: &mut Vec<u32>) -> Result<()> {
        let tokens = tiny_tokens();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let fits = |(_, token): &(usize, &&[u8])| !token.is_empty() && rest.starts_with(token);
            let (id, token) =
                tokens.iter().enumerate().filter(fits).max_by_key(|(_, t)| t.len()).unwrap();
            out.push(id as u32);
            rest = &rest[token.len()..];
        }
        Ok(())
    }
}

#[test]
fn masks_equal_those_found_by_trying_every_text() {
    let n_forced = try_every_text(&tiny_tokens());
    assert_eq!(n_forced, 0, "a vocabulary without all bytes forces nothing");
    let single: Vec<[u8; 1]> = (0..=0xfe).map(|byte| [byte]).collect();
    let mut tokens = tiny_tokens();
    let end = tokens.pop().unwrap();
    tokens.extend(single.iter().map(|byte| &byte[..]));
    tokens.push(end);
    assert!(try_every_text(&tokens) > 10);
}

/// Walks every path of tokens and holds each mask to what the language allows. Returns how many
/// masks had only the encoder's token of a text that is the only one.
fn try_every_text(tokens: &[&[u8]]) -> usize {
    let end = tokens.len() as u32 - 1;
    let mut kinds = vec![TokenKind::Text; tokens.len()];
    kinds[end as usize] = TokenKind::Control;
    let table = Arc::new(TokenTable {
        bytes: tokens.iter().map(|t| t.to_vec()).collect(),
        kinds,
        end_ids: vec![end],
        bos_id: None,
    });
    let mut texts = vec![String::new()];
    for n in 0..6 {
        let longest: Vec<String> =
            texts.iter().filter(|t| t.chars().count() == n).cloned().collect();
        texts.extend(longest.iter().flat_map(|t| ["a", "b", "é"].map(|c| format!("{t}{c}"))));
    }
    let mut n_forced = 0;
    for pattern in [
        "(ab|ba){1,2}a?",
        "a{0,2}b{0,3}",
        "[aé]{1,3}",
        "[ab]{2}é?",
        "aab(ab)?",
        "(a|ab)(b|bé)?",
        "bé|ba|bab",
        "(aabab|aabba)b",
        "éé?",
    ] {
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        let language: Vec<&[u8]> =
            texts.iter().filter(|t| whole.is_match(t)).map(|t| t.as_bytes()).collect();
        assert!(language.iter().all(|t| t.len() <= 6) && language.len() > 1, "{pattern}");
        let factory = ConstraintFactory::new(Arc::clone(&table), Arc::new(LongestFirst));
        let mut rest: Vec<Vec<u32>> = vec![vec![]];
        while let Some(path) = rest.pop() {
            let mut state = factory.compile(&Constraint::Regex(pattern.to_owned())).unwrap();
            for id in &path {
                state.commit(*id).unwrap();
            }
            let prefix: Vec<u8> =
                path.iter().flat_map(|id| tokens[*id as usize]).copied().collect();
            let within: Vec<&&[u8]> = language.iter().filter(|t| t.starts_with(&prefix)).collect();
            assert_eq!(state.is_complete(), within == [&&prefix[..]], "{pattern} {prefix:?}");
            if state.is_complete() {
                continue;
            }
            let goes_on = |id: &u32| match *id == end {
                true => language.contains(&&prefix[..]),
                false => {
                    let longer = [&prefix, tokens[*id as usize]].concat();
                    within.iter().any(|text| text.starts_with(&longer))
                }
            };
            let expected: Vec<u32> = (0..=end).filter(goes_on).collect();
            let mask = state.mask().unwrap();
            let allowed: Vec<u32> = (0..=end).filter(|id| mask.allows(*id)).collect();
            if allowed != expected {
                // Forced: a token of the only text that all completions go on with.
                let [id] = allowed[..] else {
                    panic!("{pattern} {prefix:?} {allowed:?} {expected:?}")
                };
                let longer = [&prefix, tokens[id as usize]].concat();
                assert!(within.iter().all(|t| t.starts_with(&longer)), "{pattern} {prefix:?}");
                n_forced += 1;
            }
            rest.extend(
                allowed.iter().filter(|id| **id != end).map(|id| [&path[..], &[*id]].concat()),
            );
        }
    }
    n_forced
}

#[test]
fn every_end_id_ends_and_ids_without_a_token_are_masked() {
    let mut table = weighbridge_engine::toy::table(None);
    table.end_ids.push(table.len() as u32);
    table.bytes.extend([vec![], b"a".to_vec()]);
    table.kinds.extend([TokenKind::Control, TokenKind::Unused]);
    let n = table.len() as u32;
    let factory =
        ConstraintFactory::new(Arc::new(table), Arc::new(weighbridge_engine::toy::ToyEncoder));
    let mut state = factory.compile(&Constraint::Regex("b+".into())).unwrap();
    assert_eq!(state.mask().unwrap().only(), Some(2), "not the end yet");
    state.commit(2).unwrap();
    let allowed: Vec<u32> = (0..n + 64).filter(|id| state.mask().unwrap().allows(*id)).collect();
    assert_eq!(allowed, [0, 2, n - 2], "both end ids, and no id without a token");
    assert!(!state.is_complete());
    assert_eq!(state.commit(1).unwrap_err().kind(), ErrorKind::Constraint);
}

#[test]
fn white_space_is_free_up_to_a_bound() {
    let noise = Noise::fixture();
    for schema in [json!({"type": "array", "minItems": 1}), json!(true)] {
        let mut state = noise.compile(&Constraint::JsonSchema(schema));
        let id = |byte: u8| {
            (0..noise.table.len() as u32).find(|id| noise.table.bytes_of(*id) == [byte]).unwrap()
        };
        assert!(!state.mask().unwrap().allows(id(b' ')), "not before the document");
        state.commit(id(b'[')).unwrap();
        for n in 0..40 {
            state.commit(id(b" \n\t\r"[n % 4])).unwrap();
        }
        assert!(!state.mask().unwrap().allows(id(b' ')));
        for byte in b"1\n]" {
            state.commit(id(*byte)).unwrap();
        }
        assert!(state.is_complete(), "nothing follows the document");
    }
}

#[test]
fn what_a_schema_asks_and_cannot_be_kept_is_named() {
    let noise = Noise::fixture();
    for (schema, keyword) in [
        (json!({"not": {"type": "null"}}), "not"),
        (json!({"if": {"type": "null"}}), "if"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "array", "contains": {"const": 1}}), "contains"),
        (json!({"type": "array", "unevaluatedItems": false}), "unevaluatedItems"),
        (json!({"type": "object", "propertyNames": {"maxLength": 3}}), "propertyNames"),
        (json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json!({"type": "object", "dependentSchemas": {"a": true}}), "dependentSchemas"),
        (json!({"type": "object", "dependencies": {"a": ["b"]}}), "dependencies"),
        (json!({"type": "object", "unevaluatedProperties": false}), "unevaluatedProperties"),
        (json!({"$dynamicRef": "#x"}), "$dynamicRef"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]}), "oneOf"),
        (json!({"type": "string", "format": "iri"}), "format"),
        (json!({"type": "string", "pattern": "a(?=b)"}), "pattern"),
        (json!({"type": "string", "pattern": r"(a)\1"}), "pattern"),
        (json!({"type": "object", "minProperties": 2}), "minProperties"),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2,
                "additionalProperties": false}),
            "minProperties",
        ),
        (
            json!({"properties": {"a": {}, "b": {}}, "type": "object", "maxProperties": 1}),
            "maxProperties",
        ),
        (json!({"$ref": "https://example.org/schema"}), "$ref"),
        (json!({"type": "object", "patternProperties": {"a": {}, "b": {}}}), "patternProperties"),
        (json!({"x-guidance": {"lenient": true}, "not": {}}), "x-guidance"),
    ] {
        // Inside as well as at the top.
        let inside = json!({"type": "array", "items": schema});
        for schema in [schema.clone(), inside] {
            if keyword == "x-guidance" && schema.get("items").is_some() {
                continue;
            }
            let error = noise.factory.compile(&Constraint::JsonSchema(schema.clone())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{schema}: {error}");
            assert_eq!(error.context("option"), Some(&*format!("schema.{keyword}")), "{schema}");
        }
    }
}

#[test]
fn what_is_no_constraint_is_refused_with_its_place() {
    let noise = Noise::fixture();
    let compile = |constraint: Constraint| noise.factory.compile(&constraint).unwrap_err();
    for (constraint, part) in [
        (Constraint::JsonSchema(json!({"type": "strin"})), "strin"),
        (Constraint::JsonSchema(json!([1])), "object"),
        (Constraint::JsonSchema(json!({"properties": 3})), "properties"),
        (Constraint::JsonSchema(json!(false)), "schema is false"),
        (Constraint::JsonSchema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum"),
        (Constraint::JsonSchema(json!({"$ref": "#/$defs/x"})), "$defs"),
        (Constraint::Regex("a(".into()), "unclosed group"),
        (Constraint::Regex("a\\".into()), "escape"),
        (Constraint::Lark("start: \"a".into()), "1"),
        (Constraint::Lark("start: missing".into()), "missing"),
        (Constraint::Choice(vec![]), "at least one"),
    ] {
        let error = compile(constraint.clone());
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{constraint:?}: {error}");
        assert!(error.message().contains(part), "{constraint:?}: {error}");
    }
    assert_eq!(compile(Constraint::Regex("ab(c".into())).context("offset"), Some("2"));
    for pattern in ["a(?=b)", r"(a)\1", r"\bword\b", "a^b", "(?m)^a$"] {
        let error = compile(Constraint::Regex(pattern.into()));
        assert_eq!(error.context("option"), Some("regex"), "{pattern}: {error}");
    }
}

#[test]
fn a_hostile_constraint_ends_in_time() {
    let noise = Noise::fixture();
    let mut deep = json!({"type": "null"});
    for _ in 0..2_000 {
        deep = json!({"items": deep});
    }
    let wide: serde_json::Map<String, Value> =
        (0..60_000).map(|i| (format!("k{i}"), json!({"type": "string"}))).collect();
    let begin = std::time::Instant::now();
    for constraint in [
        Constraint::JsonSchema(deep),
        Constraint::JsonSchema(json!({"type": "object", "properties": wide})),
        Constraint::Regex("a".repeat(2 << 20)),
        Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))),
        Constraint::Choice(vec!["x".repeat(1 << 20), "y".into()]),
    ] {
        let shown: String = format!("{constraint:?}").chars().take(60).collect();
        let error = noise.factory.compile(&constraint).expect_err(&shown);
        assert_eq!(error.kind(), ErrorKind::Constraint, "{shown}: {error}");
    }
    // These compile to something small, or end at a limit while they run.
    for pattern in ["((((a{1,99}){1,99}){1,99}){1,99}b){1,99}", "(a|b)*a(a|b){300}", "(.*a.*b){60}"]
    {
        let mut state = match noise.factory.compile(&Constraint::Regex(pattern.into())) {
            Ok(state) => state,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Constraint, "{pattern}: {error}");
                continue;
            }
        };
        for _ in 0..40 {
            let step = state
                .mask()
                .map(|mask| (0..noise.table.len() as u32).rfind(|id| mask.allows(*id)).unwrap());
            if let Err(error) = step.and_then(|id| state.commit(id)) {
                assert_eq!(error.kind(), ErrorKind::Constraint, "{pattern}: {error}");
                break;
            }
        }
    }
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

#[test]
fn a_vocabulary_without_the_letters_is_said_to_be_so() {
    let table = Arc::new(weighbridge_engine::toy::table(None));
    let factory = ConstraintFactory::new(table, Arc::new(weighbridge_engine::toy::ToyEncoder));
    let error = factory.compile(&Constraint::JsonSchema(json!({"type": "object"}))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Constraint);
    assert!(error.message().contains("vocabulary"), "{error}");
}
