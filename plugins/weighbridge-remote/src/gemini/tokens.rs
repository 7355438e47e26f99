//! Token counts and log-probabilities of `generateContent` answers.

use serde_json::Value;
use weighbridge_core::{TokenId, TokenLogprob, TopLogprob, Usage};

use crate::emitter::Emitter;

/// Takes a `usageMetadata` object into the one definition. A count of zero where there must be some
/// is unknown: servers that do not count send zeros.
pub(super) fn usage(raw: &Value, has_output: bool, out: &mut Emitter<'_>) -> Usage {
    let count = |name: &str| raw[name].as_u64();
    // Results of tools that ran at the vendor's are counted apart, and so are thoughts.
    let prompt = sum(count("promptTokenCount"), count("toolUsePromptTokenCount"));
    let thought = count("thoughtsTokenCount");
    let answer = count("candidatesTokenCount");
    let generated = match answer {
        // A count of zero is left out.
        None if !has_output => thought,
        None => None,
        Some(_) => sum(answer, thought),
    };
    if let (Some(prompt), Some(generated), Some(total)) =
        (prompt, generated, count("totalTokenCount"))
        && prompt.checked_add(generated) != Some(total)
    {
        out.warning("usage_contradicts_itself: totalTokenCount is not the sum of its parts");
    }
    let mut usage = Usage::default();
    usage.n_prompt_tokens = prompt.filter(|&n| n > 0);
    usage.n_cached_tokens = count("cachedContentTokenCount");
    usage.n_generated_tokens = generated.filter(|&n| n > 0 || !has_output);
    usage.n_reasoning_tokens = thought;
    usage.raw = Some(raw.clone());
    usage
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.map(|a| a.saturating_add(b.unwrap_or(0)))
}

/// Reads a `logprobsResult`; entries that are none are left out.
pub(super) fn logprobs(raw: &Value) -> Vec<TokenLogprob> {
    let chosen = raw["chosenCandidates"].as_array().into_iter().flatten();
    chosen
        .enumerate()
        .filter_map(|(step, chosen)| token(chosen, &raw["topCandidates"][step]))
        .collect()
}

fn token(chosen: &Value, top: &Value) -> Option<TokenLogprob> {
    let bytes = chosen["token"].as_str()?.as_bytes().to_vec();
    let mut alternatives: Vec<TopLogprob> = top["candidates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let bytes = entry["token"].as_str()?.as_bytes().to_vec();
            Some(TopLogprob::new(id(entry), bytes, entry["logProbability"].as_f64()?))
        })
        .collect();
    // Stable, so that equals keep the server's order.
    alternatives.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    let rank = alternatives.iter().position(|alternative| {
        alternative.bytes == bytes && (alternative.id == id(chosen) || alternative.id.is_none())
    });
    let mut token = TokenLogprob::new(id(chosen), bytes, chosen["logProbability"].as_f64());
    token.rank = rank.and_then(|rank| u32::try_from(rank).ok());
    token.top = alternatives;
    Some(token)
}

fn id(entry: &Value) -> Option<TokenId> {
    entry["tokenId"].as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId)
}
