//! Token counts and log-probabilities of Chat Completions answers.

use serde_json::Value;
use weighbridge_core::{TokenLogprob, TopLogprob, Usage};

use crate::emitter::Emitter;

/// Takes a `usage` object into the one definition. A count of zero where there must be some is
/// unknown: servers that do not count send zeros.
pub(super) fn usage(raw: &Value, has_output: bool, out: &mut Emitter<'_>) -> Usage {
    let count = |value: &Value| value.as_u64();
    let prompt = count(&raw["prompt_tokens"]);
    let generated = count(&raw["completion_tokens"]);
    if let (Some(prompt), Some(generated), Some(total)) =
        (prompt, generated, count(&raw["total_tokens"]))
        && prompt.checked_add(generated) != Some(total)
    {
        out.warning("usage_contradicts_itself: total_tokens is not the sum of its parts");
    }
    let mut usage = Usage::default();
    usage.n_prompt_tokens = prompt.filter(|&n| n > 0);
    usage.n_generated_tokens = generated.filter(|&n| n > 0 || !has_output);
    usage.n_cached_tokens = count(&raw["prompt_tokens_details"]["cached_tokens"]);
    usage.n_reasoning_tokens = count(&raw["completion_tokens_details"]["reasoning_tokens"]);
    usage.raw = Some(raw.clone());
    usage
}

/// Reads the `logprobs` object of a choice; entries that are none are left out.
pub(super) fn logprobs(raw: &Value) -> Vec<TokenLogprob> {
    let list = |name: &str| raw[name].as_array().into_iter().flatten();
    list("content").chain(list("refusal")).filter_map(token).collect()
}

fn token(entry: &Value) -> Option<TokenLogprob> {
    let bytes = bytes(entry)?;
    let mut top: Vec<TopLogprob> = entry["top_logprobs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            Some(TopLogprob::new(None, self::bytes(entry)?, entry["logprob"].as_f64()?))
        })
        .collect();
    // Stable, so that equals keep the server's order.
    top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    let rank = top.iter().position(|alternative| alternative.bytes == bytes);
    let mut token = TokenLogprob::new(None, bytes, entry["logprob"].as_f64());
    token.rank = rank.and_then(|rank| u32::try_from(rank).ok());
    token.top = top;
    Some(token)
}

/// `bytes` where the server gives them: `token` cannot show half a character.
fn bytes(entry: &Value) -> Option<Vec<u8>> {
    let given = entry["bytes"].as_array().and_then(|bytes| {
        bytes.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect()
    });
    given.or_else(|| Some(entry["token"].as_str()?.as_bytes().to_vec()))
}
